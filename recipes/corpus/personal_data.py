# SPDX-License-Identifier: Apache-2.0
"""Find personal data in documents and replace it, drop the document, or only count it.

In:   the text of one document, the name of a profile, and what to do with each kind of personal data.
Out:  the text with fixed placeholders that belong to nobody, or None for a document to drop; how many of each kind.

    redactor = Redactor("medical", {"card": "drop", "docket": "leave"})
    text, found = redactor.apply("MRN: 00482913, born March 3, 1960")

A number counts when its form and check digits are right and, where the form alone is too common, when a cue such as
"account no." stands before it. Cues and months are English. Names and street addresses, which take a model to find,
are left. Repetitions in the patterns are bounded, so the time is linear in the text.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from datatrove.pipeline.formatters.pii import public_ip_validator


Action = Literal["replace", "drop", "leave"]
ACTIONS = ("replace", "drop", "leave")

# Cues: what stands before a number and ends where it begins, in any case of letters. All patterns are re.VERBOSE.
CUE_CHARS = 100
NO = r"(?:\s?(?:numbers?|nos?\b\.?|num\b\.?|\#))"
TO = r"(?:\s(?:is|was|of))?[\s:#=(\"'\u201c]{0,4}"
PREFIX = r"(?:\b[A-Z]{1,3}-?)?"  # the letters before the digits of some numbers
NEVER = r"(?!)"
CARD_CUE = rf"\b(?:card|visa|mastercard|american\sexpress|amex|discover|diners\sclub|jcb){NO}?{TO}"
SSN_CUE = rf"\b(?:SSNs?|soc(?:ial|\.)?[\s-]sec(?:urity|\.)?){NO}?{TO}"
TAX_CUE = rf"""\b(?:F?EIN|[IA]?TIN|(?:tax(?:payer)?|employer)\s(?:ID|I\.D\.|identification))(?!\w)
    {NO}?(?:\s\((?:EIN|ITIN|TIN)\))?{TO}"""
ACCOUNT_CUE = rf"\b(?:accounts?|acct\b\.?|a/c)(?:[\s:#(]{{0,4}}|{NO}(?:\sending)?{TO}){PREFIX}"
RECORD_CUE = rf"""\b(?:MRN|MR\s?\#|patient\sID|
    (?:(?:medical|health|hospital|patient)\srecord|hospital|chart)(?=\s?n|\s?\#)){NO}?(?:\s\(MRN\))?{TO}{PREFIX}"""
# Not over "before" or "after": statutes speak of persons born on or after a day.
BIRTH_CUE = r"""(?:\b(?:d\.?o\.?b\b\.?|date\sof\sbirth|birth\s?date)|\(b\.|\bborn\b(?:\s(?:in|at|to)\s
    (?:(?!\b(?:before|after|since|until|between)\b)[^.;:\d]|(?<=\bst)\.|(?<=\b[a-z])\.){2,60}?)?)
    [\s:,(=]{0,4}(?:(?:is|was|on|of)\s)?(?:the\s)?(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s)?"""
PHONE_CUE = rf"""\b(?:tel(?:e(?:phone|cop(?:y|ier)))?s?|phones?|fax|facsimile|mobile|cell(?:ular|phone)?|call(?:ed)?|
    pager|dial(?:ed)?)\b\.?(?:(?:\sus)?\sat)?{NO}?{TO}"""
DOCKET_CUE = r"""(?:\b(?:case|docket|appeal|cause)(?:\s(?:number|\#))?:?|
    (?<!L\.\s)(?<!law\s)(?<!act\s)(?<!release\s)(?<!file\s)(?<!rep\.\s)(?<!report\s)(?<!reg\.\s)(?<!regulation\s)
    (?<!doc\.\s)(?<!order\s)(?<!rule\s)(?<!contract\s)(?<!model\s)(?<!form\s)(?<!part\s)\bnos?\.)\s?"""
# A number introduced as one of these is not of the kind whose form it has.
OTHER_NUMBER = rf"""(?:\b(?:part|item|order|invoice|catalog(?:ue)?|model|serial|patent|contract|grant|permit|
    licen[cs]e|claim|policy|ticket|tracking|docket|case|form|release|registration|sections?|secs?\.|pages?|pp?\.|bates|sku|
    isbn|version|build|firmware|rule|clause|article|paragraph)|\bv\.?|[\u00a7$]){NO}?[\s:]{{0,2}}|\bnos?\.\s?"""

# Forms. No word, path or amount is glued to a number, nor the rest of a decimal or of thousands. Its first character
# comes before the look-behind, since re skips from candidate to candidate only where one starts a pattern.
LONE = r"(?<![\w$/+-].)(?<![0-9][.,].)"
DIGIT, END = rf"[0-9]{LONE}", r"(?!-?\w|[.,][0-9])"
DASH, SPACE = r"-\u2010-\u2013", r" \u00a0"
# Lengths by RFC 5321, 4.5.3.1 (datatrove's pattern takes quadratic time on a run like a.a.a). The domains that
# RFC 2606 keeps for examples are nobody's; logo@2x.png is a file.
EMAIL = r"""(?<![\w%+-])[\w%+-]{1,64}(?:\.[\w%+-]{1,64}){0,6}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}
    (?![\w-]|\.[A-Za-z])(?<!\bexample\.(?:com|org|net))(?<!\.(?:png|jpg|gif|svg))"""
IP = rf"{DIGIT}(?:[0-9]{{0,2}}(?:\.[0-9]{{1,3}}){{3}}|[0-9A-Fa-f]{{3}}(?::[0-9A-Fa-f]{{0,4}}){{2,7}}){END}"
# Characters of an account number by country: SWIFT IBAN Registry (ISO 13616).
IBAN_LENGTHS = {
    **{15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU XK MN", 21: "CH HR LI LV"},
    **{22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL OM SO", 24: "AD CZ ES MD PK RO SA SE SK TN VG"},
    **{25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV"},
    **{29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU"},
}
BY_COUNTRY = "|".join(
    f"(?<=(?:{codes.replace(' ', '|')})[0-9]{{2}})(?:[{SPACE}]?[A-Z0-9]){{{length - 4}}}"
    for length, codes in IBAN_LENGTHS.items()
)
IBAN = rf"[A-Z](?<!\w[A-Z])[A-Z][0-9]{{2}}(?:{BY_COUNTRY}){END}"
CARD = rf"""{DIGIT}(?:[0-9]{{13,18}}|[0-9]{{3}}(?P<gap>[{SPACE}-])
    (?:(?:[0-9]{{4}}(?P=gap)){{2}}[0-9]{{4}}|[0-9]{{6}}(?P=gap)[0-9]{{4,5}})){END}"""
# Prefixes and lengths that the networks publish (numbering by ISO/IEC 7812-1): Visa, Mastercard, American Express,
# Discover, UnionPay, JCB, Diners Club.
CARD_ISSUERS = r"""4\d{15}(?:\d{3})?|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}|
    6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14,17}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[689]\d)\d{11}"""
# Social Security Administration, POMS RM 10201.035: no area 000, 666 or 900-999, no group 00, no serial 0000.
SSN = rf"[0-8]{LONE}[0-9]{{2}}(?<!000|666)(?P<gap>[{DASH}{SPACE}]?)(?!00)[0-9]{{2}}(?P=gap)(?!0000)[0-9]{{4}}{END}"
# ITIN and ATIN: the IRS's ranges of the fourth and fifth digit. EIN: not the prefixes that no campus assigns, by its
# list "How EINs are assigned and valid EIN prefixes".
TAX = rf"""{DIGIT}(?:(?<=9)[0-9]{{2}}(?P<gap>[{DASH}{SPACE}]?)(?:[579][0-9]|6[0-5]|8[0-8])(?P=gap)[0-9]{{4}}|
    [0-9](?<!0[0789]|1[789]|2[89]|[46]9|7[089]|89|9[67])[{DASH}]?[0-9]{{7}}){END}"""
NUMBER = rf"""[0-9](?<![0-9_$/+.].)(?<![0-9]-.)(?=(?:[{SPACE}-]?[0-9]){{4}})[0-9]{{0,16}}
    (?:-[0-9]{{1,17}}|[{SPACE}][0-9]{{3,17}}){{0,5}}{END}"""
# The federal courts' case number, office:year-type-serial and the judges' initials (CM/ECF); without the type, by cue.
DOCKET = rf"""{DIGIT}(?:[0-9]?:[0-9]{{2}}|[0-9](?:[0-9]{{2}})?)[-\u2013]
    (?:(?i:cv|cr|mj|mc|md|ml|bk|ap|po|sw)[-\u2013])?[0-9]{{1,6}}(?:-[A-Z0-9]{{1,4}}){{0,3}}{END}"""
MONTH = r"""(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|
    oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"""
DAY, YEAR = r"[0-3]?[0-9](?:st|nd|rd|th)?", r"(?:1[6-9]|20)[0-9]{2}"
DATE = rf"""(?<![\w/-])(?:[0-9]{{1,2}}(?P<gap>[/.-])[0-9]{{1,2}}(?P=gap)(?:{YEAR}|[0-9]{{2}})|
    {YEAR}(?P<bar>[/.-])[0-9]{{2}}(?P=bar)[0-9]{{2}}|{MONTH}\s{DAY},?\s{YEAR}|
    {DAY}(?:\sday)?(?:\sof)?[\s-]{MONTH},?[\s-]{YEAR}){END}"""
# ITU-T E.164 behind a plus; North American numbers, whose area and exchange are 2-9 and not 11; numbers behind a cue.
# 555-0100 to 555-0199 are kept for fiction (ATIS-0300115).
EXCHANGE = r"(?!555[-. ]?01)[2-9](?!11)[0-9]{2}"
PHONE = rf"""[+(0-9]{LONE}(?:
    (?<=\+)(?![0-9]\.[0-9]{{7}})[1-9][0-9]{{0,2}}(?:[ .-]?\(0?[0-9]{{1,4}}\))?(?:[ .-]?[0-9]){{6,12}}|
    (?:(?:(?<=\()|(?<=1)[-. ]?\()[2-9](?!11)[0-9]{{2}}\)|(?<=[2-9])(?!11)[0-9]{{2}}(?=[/{SPACE}]))
    [/{SPACE}-]?{EXCHANGE}[{DASH}.{SPACE}][0-9]{{4}}|
    (?:(?<=1)[-. ]?[2-9]|(?<=[2-9]))(?!11)[0-9]{{2}}(?P<gap>[{DASH}.{SPACE}]?){EXCHANGE}(?P=gap)[0-9]{{4}}|
    (?<=[2-9])(?!55-01)[0-9]{{2}}-[0-9]{{4}}|(?<=0)[0-9](?:[ .()-]{{0,2}}[0-9]){{7,12}})(?:{END}|(?=x[0-9]))"""


def is_public_ip(value: str) -> bool:
    """Globally reachable; where all four numbers are below 32, a section or version number is likelier."""
    small = all(number.isdecimal() and int(number) < 32 for number in value.split("."))
    return not small and public_ip_validator(value)


def is_iban(value: str) -> bool:
    """ISO 13616: with the first four characters last and letters as 10 to 35, the number leaves 1 modulo 97."""
    characters = re.sub(r"[^A-Z0-9]", "", value)
    return int("".join(str(int(character, 36)) for character in characters[4:] + characters[:4])) % 97 == 1


def is_card(value: str) -> bool:
    """ISO/IEC 7812-1, annex B: with every second digit from the right doubled, the digits' sum is a multiple of 10."""
    digits = re.sub("[^0-9]", "", value)
    total = sum(map(int, digits[::-2])) + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return bool(re.fullmatch(CARD_ISSUERS, digits, re.VERBOSE)) and total % 10 == 0


def is_account(value: str) -> bool:
    """6 to 17 digits, what an ACH entry has room for (Nacha Operating Rules, DFI account number); no years."""
    years = re.fullmatch(rf"{YEAR}-(?:{YEAR}|[01][0-9]-[0-3][0-9])", value)
    return 6 <= len(re.findall("[0-9]", value)) <= 17 and not years


def is_record(value: str) -> bool:
    """5 to 12 digits; there is no standard, each hospital has a form of its own."""
    return 5 <= len(re.findall("[0-9]", value)) <= 12


class Kind(NamedTuple):
    """One kind: the form of its values, what takes their place, and how to tell them from others of that form."""

    form: str
    placeholder: str
    is_valid: Callable[[str], object] = bool
    cue: str = NEVER
    clear: str = NEVER  # values that need no cue,
    unless: str = OTHER_NUMBER  # unless this stands before them
    words: tuple[str, ...] = ()  # a text with none of these, in lower case, is not searched


RECORD_WORDS = ("mrn", "mr#", "mr #", "record", "patient id", "hospital", "chart")
# Of two kinds that start at the same character, the one named first has it.
KINDS = {
    "email": Kind(EMAIL, "email@example.com", clear="", unless=NEVER, words=("@",)),
    "ip": Kind(IP, "192.0.2.1", is_public_ip, clear=""),  # RFC 5737: kept for documentation
    "iban": Kind(IBAN, "XX00 0000 0000 0000 0000 00", is_iban, clear="", unless=NEVER),
    "card": Kind(CARD, "0000 0000 0000 0000", is_card, CARD_CUE, clear=""),
    "ssn": Kind(SSN, "000-00-0000", cue=SSN_CUE, clear=f"[{DASH}]"),
    "tax": Kind(TAX, "00-0000000", cue=TAX_CUE, clear=f"[{DASH}]"),
    "account": Kind(NUMBER, "0000000000", is_account, ACCOUNT_CUE, words=("account", "acct", "a/c")),
    "record": Kind(NUMBER, "00000000", is_record, RECORD_CUE, words=RECORD_WORDS),
    "docket": Kind(DOCKET, "00-cv-00000", cue=DOCKET_CUE, clear=f"[a-zA-Z]{{2}}[{DASH}][0-9]", unless=NEVER),
    "birth": Kind(DATE, "January 1, 1900", cue=BIRTH_CUE, words=("born", "birth", "dob", "d.o.b", "(b.")),
    "phone": Kind(PHONE, "555-555-0100", cue=PHONE_CUE, clear=r"\A(?:\+|(?!0)(?=.*[-\u2010-\u2013./(]).{12})"),
}
PATTERNS = {name: re.compile(kind.form, re.ASCII | re.VERBOSE) for name, kind in KINDS.items()}
PLACEHOLDERS = {kind.placeholder for kind in KINDS.values()}
EVERYWHERE = ("email", "ip", "iban", "card", "ssn", "phone")
# Legal: what Federal Rule of Civil Procedure 5.2(a) has filings redact. Medical: identifiers of the HIPAA safe harbour
# (45 CFR 164.514(b)(2)). Docket numbers are a court's, not a person's: in no profile.
PROFILES = {
    "finance": (*EVERYWHERE, "tax", "account", "birth"),
    "general": EVERYWHERE,
    "legal": (*EVERYWHERE, "tax", "account", "birth"),
    "medical": (*EVERYWHERE, "account", "record", "birth"),
}


def is_personal(kind: Kind, match: re.Match) -> bool:
    """Decide about a match of the kind's form by its value and by what stands before it."""

    def follows(cue: str) -> bool:
        pattern = re.compile(rf"(?:{cue})\Z", re.IGNORECASE | re.VERBOSE)  # re keeps the compiled pattern
        return bool(pattern.search(match.string, max(0, match.start() - CUE_CHARS), match.start()))

    zeros = not match[0].strip("0 -")  # a placeholder, or a part of one
    if zeros or match[0] in PLACEHOLDERS or not kind.is_valid(match[0]):
        return False
    return (bool(re.search(kind.clear, match[0])) and not follows(kind.unless)) or follows(kind.cue)


class Redactor:
    """What to do with each kind of personal data; it holds no pattern, so it can be sent to other processes.

    Args:
        profile: a key of PROFILES, the kinds that are replaced.
        actions: kind -> "replace", "drop" or "leave" (only count), over the profile's; may name further kinds.

    Raises: ValueError: an unknown profile, kind or action.
    """

    def __init__(self, profile: str, actions: Mapping[str, Action] | None = None):
        actions = dict(actions or {})
        given = [("profile", [profile], PROFILES), ("kind", actions, KINDS), ("action", actions.values(), ACTIONS)]
        for what, values, known in given:
            if unknown := [value for value in values if value not in known]:
                raise ValueError(f"personal data: no {what} {unknown[0]!r}; choose from {', '.join(known)}")
        chosen = dict.fromkeys(PROFILES[profile], "replace") | actions
        self.actions = {kind: chosen[kind] for kind in KINDS if kind in chosen}

    def find(self, text: str) -> list[tuple[int, int, str]]:
        """List (start, end, kind) in characters, in the order of the text and without overlaps."""
        if not re.search("[0-9@]", text):
            return []
        lowered = text.lower()
        candidates = [
            (*match.span(), name)
            for name, kind in KINDS.items()
            if name in self.actions and (not kind.words or any(word in lowered for word in kind.words))
            for match in PATTERNS[name].finditer(text)
            if is_personal(kind, match)
        ]
        found: list[tuple[int, int, str]] = []
        for candidate in sorted(candidates, key=lambda candidate: candidate[0]):
            if not found or candidate[0] >= found[-1][1]:
                found.append(candidate)
        return found

    def apply(self, text: str) -> tuple[str | None, Counter]:
        """Return the text with placeholders, or None where it is to be dropped, and how many of each kind it had."""
        found = self.find(text)
        counts = Counter(kind for _, _, kind in found)
        if any(self.actions[kind] == "drop" for kind in counts):
            return None, counts
        pieces, position = [], 0
        for start, end, kind in found:
            if self.actions[kind] == "replace":
                pieces += [text[position:start], KINDS[kind].placeholder]
                position = end
        return "".join([*pieces, text[position:]]), counts
