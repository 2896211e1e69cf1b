# SPDX-License-Identifier: Apache-2.0
"""Find personal data in documents and replace it, drop the document, or only count it.

In:   the text of one document, the name of a profile, and what to do with each kind of personal data.
Out:  the text with fixed placeholders that belong to nobody, or None for a document to drop; how many of each kind.

    redactor = Redactor("medical", {"card": "drop", "docket": "leave"})
    text, found = redactor.apply("MRN: 00482913, born March 3, 1960")

A number counts if its form and check digits are right. Where the form alone is too common, a cue such as "account no."
must also precede it. Cues and month names are English. Names and street addresses need a model and are not searched
for. Repetitions in the patterns are bounded, so the time is linear in the text. A pattern is tried only
where the digits or the words are that its values need: the tests show that this finds the same.
"""

import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from datatrove.pipeline.formatters.pii import public_ip_validator

from corpus.identifying_urls import find_urls
from corpus.labelled_identifiers import LABELLED, find_labelled
from recipe_config import PersonalData


Action = Literal["replace", "drop", "leave"]
ACTIONS = ("replace", "drop", "leave")

# --- parts of several patterns; all patterns are re.VERBOSE

ALWAYS, NEVER = "", r"(?!)"
DASH, SPACE = r"-\u2010-\u2013", r" \u00a0"
# In forms. No letter, path or currency sign is attached to a number, nor the rest of a decimal or of thousands. The
# look-behind comes after the first character, because re skips ahead only by a character that starts a pattern.
LONE = r"(?<![\w$/+-].)(?<![0-9][.,].)"
DIGIT, END = rf"[0-9]{LONE}", r"(?!-?\w|[.,][0-9])"
YEAR = r"(?:1[6-9]|20)[0-9]{2}"
NUMBER = rf"""[0-9](?<![0-9_$/+.].)(?<![0-9]-.)(?=(?:[{SPACE}-]?[0-9]){{4}})[0-9]{{0,16}}
    (?:-[0-9]{{1,17}}|[{SPACE}][0-9]{{3,17}}){{0,5}}{END}"""
# In cues. A cue ends where the number begins, and its case does not matter.
CUE_CHARS = 100
NO = r"(?:\s?(?:numbers?|nos?\b\.?|num\b\.?|\#))"
TO = r"(?:\s(?:is|was|of))?[\s:#=(\"'\u201c]{0,4}"
PREFIX = r"(?:\b[A-Z]{1,3}-?)?"  # the letters before the digits of some numbers
# A number that follows one of these words is of another kind, whatever its form.
OTHER_WORDS = r"""part|item|order|invoice|catalog(?:ue)?|model|serial|patent|contract|grant|permit|
    licen[cs]e|claim|policy|ticket|tracking|docket|case|form|release|registration|sections?|secs?\.|pages?|pp?\.|bates|sku|
    isbn|version|build|firmware|rule|clause|article|paragraph"""
OTHER_NUMBER = rf"(?:\b(?:{OTHER_WORDS})|\bv\.?|[\u00a7$]){NO}?[\s:]{{0,2}}|\bnos?\.\s?"


class Kind(NamedTuple):
    """How to recognise one kind of personal data, and what replaces it."""

    form: str  # pattern of the values
    placeholder: str
    is_valid: Callable[[str], object] = bool  # checks a value that has the form
    cue: str = NEVER  # a value that follows this counts
    without_cue: str = NEVER  # a value in which this is found counts without a cue,
    not_after: str = OTHER_NUMBER  # unless it follows this
    # Where a value can be, so that the form is tried only there. It has at least so many digits, the first of them
    digits: tuple[int, int] = (0, 0)  # among so many characters (0, 0: it need not start with digits),
    leads: tuple[int, ...] = (0,)  # after so many others; or
    words: tuple[str, ...] = ()  # it, or its cue, contains one of these, in lower case,
    reach: tuple[int, int] = (0, 0)  # and lies within so many characters before and after the word's start.


# --- email

LETTER = r"\w\u00c0-\u024f\u0370-\u052f"  # the letters of European names, in patterns whose \w is ASCII

# Lengths by RFC 5321, 4.5.3.1 (datatrove's pattern takes quadratic time on a run like a.a.a). RFC 2606 reserves the
# example domains; logo@2x.png is a file.
EMAIL = Kind(
    form=rf"""(?:(?<![{LETTER}%+-])[{LETTER}%+-]{{1,64}}(?:\.[{LETTER}%+-]{{1,64}}){{0,6}}|"[^"@\n]{{1,64}}")(?:@|\s?[(\[]at[)\]]\s?)
        (?:[{LETTER}-]{{1,63}}\.){{1,8}}[A-Za-z]{{2,24}}
        (?![\w-]|\.[A-Za-z])(?<!\bexample\.(?:com|org|net))(?<!\.(?:png|jpg|gif|svg))""",
    placeholder="email@example.com",
    without_cue=ALWAYS,
    not_after=NEVER,
    words=("@", "(at)", "[at]"),
    reach=(480, 640),
)

# --- ip


def is_public_ip(value: str) -> bool:
    """Accept a globally reachable address, unless all four numbers are below 32, as in a section or version number."""
    small = all(number.isdecimal() and int(number) < 32 for number in value.split("."))
    return not small and public_ip_validator(value)


IP = Kind(
    form=rf"{DIGIT}(?:[0-9]{{0,2}}(?:\.[0-9]{{1,3}}){{3}}|[0-9A-Fa-f]{{3}}(?::[0-9A-Fa-f]{{0,4}}){{2,7}}){END}",
    placeholder="192.0.2.1",  # reserved for documentation by RFC 5737
    is_valid=is_public_ip,
    digits=(1, 1),
    without_cue=ALWAYS,
)

# --- iban

# Characters of an account number by country: SWIFT IBAN Registry (ISO 13616).
IBAN_LENGTHS = {
    **{15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU XK MN", 21: "CH HR LI LV"},
    **{22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL OM SO", 24: "AD CZ ES MD PK RO SA SE SK TN VG"},
    **{25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV"},
    **{29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU"},
}
BY_COUNTRY = "|".join(
    f"(?<=(?:{codes.replace(' ', '|')})[0-9]{{2}})(?:[{SPACE}-]?[A-Z0-9]){{{length - 4}}}"
    for length, codes in IBAN_LENGTHS.items()
)


def is_iban(value: str) -> bool:
    """Check ISO 13616: with the first four characters last and letters as 10 to 35, the number is 1 modulo 97."""
    characters = re.sub(r"[^A-Z0-9]", "", value.upper())
    return int("".join(str(int(character, 36)) for character in characters[4:] + characters[:4])) % 97 == 1


IBAN = Kind(
    form=rf"(?i:[A-Z](?<!\w[A-Z])[A-Z][0-9]{{2}}(?:{BY_COUNTRY}){END})",
    placeholder="XX00 0000 0000 0000 0000 00",
    is_valid=is_iban,
    digits=(2, 2),
    leads=(2,),
    without_cue=ALWAYS,
    not_after=NEVER,
)

# --- card

# Prefixes and lengths that the networks publish (numbering by ISO/IEC 7812-1): Visa, Mastercard, American Express,
# Discover, UnionPay, JCB, Diners Club.
CARD_ISSUERS = r"""4\d{15}(?:\d{3})?|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}|
    6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14,17}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[689]\d)\d{11}"""


def is_card(value: str) -> bool:
    """Check ISO/IEC 7812-1, annex B: with every second digit from the right doubled, the digits' sum ends in 0."""
    digits = re.sub("[^0-9]", "", value)
    total = sum(map(int, digits[::-2])) + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return bool(re.fullmatch(CARD_ISSUERS, digits, re.VERBOSE)) and total % 10 == 0


CARD = Kind(
    form=rf"""{DIGIT}(?:[0-9]{{13,18}}|[0-9]{{3}}(?P<gap>[{SPACE}.-])
        (?:(?:[0-9]{{4}}(?P=gap)){{2}}[0-9]{{4}}|[0-9]{{6}}(?P=gap)[0-9]{{4,5}})){END}""",
    placeholder="0000 0000 0000 0000",
    is_valid=is_card,
    digits=(14, 17),
    cue=rf"\b(?:card|visa|mastercard|american\sexpress|amex|discover|diners\sclub|jcb){NO}?{TO}",
    without_cue=ALWAYS,
)

# --- ssn

# Social Security Administration, POMS RM 10201.035: no area 000, 666 or 900-999, no group 00, no serial 0000.
SSN = Kind(
    form=rf"""[0-8]{LONE}[0-9]{{2}}(?<!000|666)
        (?P<gap>[{DASH}{SPACE}]?)(?!00)[0-9]{{2}}(?P=gap)(?!0000)[0-9]{{4}}{END}""",
    placeholder="000-00-0000",
    digits=(9, 11),
    cue=rf"\b(?:SSNs?|SS(?=\s?n|\s?\#)|S\.S\.|soc(?:ial|\.)?[\s-]sec(?:urity|\.)?){NO}?{TO}",
    without_cue=f"[{DASH}]",
    not_after=rf"(?:\b(?:{OTHER_WORDS.replace('claim|', '')})|\bv\.?|[\u00a7$]){NO}?[\s:]{{0,2}}",
)

# --- tax

# ITIN and ATIN: the IRS's ranges of the fourth and fifth digit. EIN: without the prefixes that no campus assigns, by
# the IRS's list "How EINs are assigned and valid EIN prefixes".
TAX = Kind(
    form=rf"""{DIGIT}(?:
        (?<=9)[0-9]{{2}}(?P<gap>[{DASH}{SPACE}]?)(?:[579][0-9]|6[0-5]|8[0-8])(?P=gap)[0-9]{{4}}|
        [0-9](?<!0[0789]|1[789]|2[89]|[46]9|7[089]|89|9[67])[{DASH}]?[0-9]{{7}}){END}""",
    placeholder="00-0000000",
    digits=(9, 11),
    cue=rf"""\b(?:F?EIN|[IA]?TIN|(?:tax(?:payer)?|employer)\s(?:ID|I\.D\.|identification))(?!\w)
        {NO}?(?:\s\((?:EIN|ITIN|TIN)\))?{TO}""",
    without_cue=f"[{DASH}]",
)

# --- account


def is_account(value: str) -> bool:
    """Accept 6 to 17 digits, the room of an ACH entry (Nacha Operating Rules, DFI account number), but no years."""
    years = re.fullmatch(rf"{YEAR}-(?:{YEAR}|[01][0-9]-[0-3][0-9])", value)
    return 6 <= len(re.findall("[0-9]", value)) <= 17 and not years


ACCOUNT = Kind(
    form=NUMBER,
    placeholder="0000000000",
    is_valid=is_account,
    cue=rf"\b(?:accounts?|acct\b\.?|a/c)(?:[\s:#(]{{0,4}}|{NO}(?:\sending)?{TO}){PREFIX}",
    words=("account", "acct", "a/c"),
    reach=(0, CUE_CHARS + 160),
)

# --- record: the number of a medical record


def is_record(value: str) -> bool:
    """Accept 5 to 12 digits; there is no standard, and each hospital has a form of its own."""
    return 5 <= len(re.findall("[0-9]", value)) <= 12


RECORD = Kind(
    form=NUMBER,
    placeholder="00000000",
    is_valid=is_record,
    cue=rf"""\b(?:MRN|MR\s?\#|patient\sID|
        (?:(?:medical|health|hospital|patient)\srecord|hospital|chart)(?=\s?n|\s?\#)){NO}?(?:\s\(MRN\))?{TO}{PREFIX}""",
    words=("mrn", "mr#", "mr #", "record", "patient id", "hospital", "chart"),
    reach=(0, CUE_CHARS + 160),
)

# --- docket

# The federal courts' case number, office:year-type-serial and the judges' initials (CM/ECF). Without the type it needs
# a cue.
DOCKET = Kind(
    form=rf"""{DIGIT}(?:[0-9]?:[0-9]{{2}}|[0-9](?:[0-9]{{2}})?)[-\u2013]
        (?:(?i:cv|cr|mj|mc|md|ml|bk|ap|po|sw)[-\u2013])?[0-9]{{1,6}}(?:-[A-Z0-9]{{1,4}}){{0,3}}{END}""",
    placeholder="00-cv-00000",
    digits=(3, 7),
    cue=r"""(?:\b(?:case|docket|appeal|cause)(?:\s(?:number|\#))?:?|
        (?<!L\.\s)(?<!law\s)(?<!act\s)(?<!release\s)(?<!file\s)(?<!rep\.\s)(?<!report\s)(?<!reg\.\s)
        (?<!regulation\s)(?<!doc\.\s)(?<!order\s)(?<!rule\s)(?<!contract\s)(?<!model\s)(?<!form\s)(?<!part\s)
        \bnos?\.)\s?""",
    without_cue=f"[a-zA-Z]{{2}}[{DASH}][0-9]",
    not_after=NEVER,
)

# --- birth: a date of birth

MONTH = r"""(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|
    oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"""
DAY = r"[0-3]?[0-9](?:st|nd|rd|th)?"
# The cue does not reach over "before" or "after": statutes speak of persons born on or after a day.
BIRTH = Kind(
    form=rf"""(?<![\w/-])(?:
        [0-9]{{1,2}}(?P<gap>[/.-])[0-9]{{1,2}}(?P=gap)(?:{YEAR}|[0-9]{{2}})|
        {YEAR}(?P<bar>[/.-])[0-9]{{2}}(?P=bar)[0-9]{{2}}|
        {MONTH}\s{DAY},?\s{YEAR}|
        {DAY}(?:\sday)?(?:\sof)?[\s-]{MONTH},?[\s-]{YEAR}){END}""",
    placeholder="January 1, 1900",
    cue=r"""(?:\b(?:d\.?o\.?b\b\.?|date\sof\sbirth|birth\s?date)|\(b\.|\bborn\b(?:\s(?:in|at|to)\s
        (?:(?!\b(?:before|after|since|until|between)\b)[^.;:\d]|(?<=\bst)\.|(?<=\b[a-z])\.){2,60}?)?)
        [\s:,(=]{0,4}(?:(?:is|was|on|of)\s)?(?:the\s)?(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s)?""",
    words=("born", "birth", "dob", "d.o.b", "(b."),
    reach=(0, CUE_CHARS + 60),
)

# --- phone

# 555-0100 to 555-0199 are reserved for fiction (ATIS-0300115).
EXCHANGE = r"(?!555[-. ]?01)[2-9](?!11)[0-9]{2}"
EXTENSION = (
    r"(?:[ ,;]{0,2}(?:x|ext(?:ension|n)?\b\.?|poste|durchwahl)\s?[0-9]{1,6}|(?<=[0-9]{4})[ ]?/[ ]?[0-9]{4}(?![\w/-]))?"
)
# The alternatives: ITU-T E.164 after a plus or 00; three forms of North American numbers, whose area code and exchange
# start with 2 to 9 and are not x11; a Brazilian number; a national number after its trunk prefix 0; and, behind a cue
# only, four to eight and nine digits. A number may follow another behind a slash.
PHONE = Kind(
    form=rf"""[+(0-9](?:{LONE}|(?<=[0-9]/.))(?:
        (?<=\+)(?![0-9]\.[0-9]{{7}})[1-9][0-9]{{0,2}}(?:[ .-]?\(0?[0-9]{{1,4}}\))?(?:[ .-]?[0-9]){{6,12}}|
        (?<=0)0[1-9](?:[ .-]?[0-9]){{8,12}}|
        (?:(?:(?<=\()|(?<=1)[-. ]?\()[2-9](?!11)[0-9]{{2}}\)|(?<=[2-9])(?!11)[0-9]{{2}}(?=[/{SPACE}]))
            [/{SPACE}-]?{EXCHANGE}[{DASH}.{SPACE}][0-9]{{4}}|
        (?:(?<=1)[-. ]?[2-9]|(?<=[2-9]))(?!11)[0-9]{{2}}(?P<gap>[{DASH}.{SPACE}]?){EXCHANGE}(?P=gap)[0-9]{{4}}|
        (?<=\()[1-9][0-9]\)[ ]?9?[0-9]{{4}}-[0-9]{{4}}|
        (?:(?<=0)|(?<=\()0(?=[0-9]{{1,4}}\)))[0-9](?:[ .()/-]{{0,3}}[0-9]){{7,12}}|
        (?<=[2-9])(?!55-01)[0-9]{{2}}-[0-9]{{4}}|
        (?<=[1-9])(?:[0-9]{{3}}-[0-9]{{4}}|[0-9]{{2}}(?P<sep>[ .-]?)[0-9]{{3}}(?P=sep)[0-9]{{3}})
        ){EXTENSION}(?:{END}|(?=x[0-9]))""",
    placeholder="555-555-0100",
    digits=(7, 32),
    leads=(0, 1),
    cue=rf"""\b(?:(?:tel(?:e(?:phone|cop(?:y|ier)|fon|fax))?s?|phones?|ph|fax|facsimile|mob(?:ile?)?|m\u00f3vil|cell?(?:ular|phone)?|
        gsm|handy|festnetz|portable|port|t\u00e9l(?:\u00e9phone)?|tl?fn?o?|telefono|call(?:ed)?|pager|dial(?:ed)?)\b\.?(?:(?:\sus)?\sat)?
        {NO}?[\s.]?{TO}|(?:^|[|\s])[TFMD][ :.]{{1,2}})|
        (?:\uc804\ud654|\ud734\ub300\ud3f0|\ud329\uc2a4|\uc5f0\ub77d\ucc98)[\s:]{{0,3}}""",
    # A plus; 12 characters or more with a mark between the groups; or the groups of British, French, German and Korean
    # numbers, which start with 0.
    without_cue=r"""(?x)\A(?:\+|(?!0)(?=.*[-\u2010-\u2013./(]).{12}|00[1-9][0-9][ .-]|\(0|
        0[1-9](?P<a>[ .-])[0-9]{2}(?P=a)[0-9]{2}(?P=a)[0-9]{2}(?P=a)[0-9]{2}\Z|
        (?=(?:[0-9][ ]?){10,11}\Z)0[1278][0-9]{1,4}[ ][0-9]{3,4}[ ]?[0-9]{3,4}\Z|07[0-9]{9}\Z|
        0[1-9][0-9]{1,4}[ ]?/[ ]?[0-9]{3}|
        0(?:2|[1-9][0-9])-[0-9]{3,4}-[0-9]{4}\Z|01[016-9]-?[0-9]{3,4}-?[0-9]{4}\Z)""",
)

# --- identifiers of persons, vehicles and devices that have check digits or a form of their own; others have labels


def is_national_id(value: str) -> bool:
    """Check the letter of Spanish numbers, the key of French ones and the birthday in Korean ones."""
    characters = re.sub(r"[^A-Z0-9]", "", value)
    if re.fullmatch("[XYZ0-9][0-9]{7}[A-Z]", characters):
        number = int(characters[:-1].translate(str.maketrans("XYZ", "012")))
        return characters[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23]
    if re.fullmatch("[12][0-9]{4}[0-9AB]{2}[0-9]{8}", characters):
        number = int(characters[:13].replace("2A", "19").replace("2B", "18"))
        return int(characters[13:]) == 97 - number % 97
    if re.fullmatch("[0-9]{6}-[1-8][0-9]{6}", value):
        return 1 <= int(value[2:4]) <= 12 and 1 <= int(value[4:6]) <= 31
    return True


NATIONAL_ID = Kind(
    form=rf"""[A-Z0-9]{LONE}(?:(?<=[A-CEGHJ-PR-TW-Z])[A-CEGHJ-NPR-TW-Z](?<!BG|GB|NK|KN|TN|NT|ZZ)
        [ ]?[0-9]{{2}}[ ]?[0-9]{{2}}[ ]?[0-9]{{2}}[ ]?[A-D]|
        (?<=[0-9])[0-9]{{7}}-?[A-Z]|(?<=[XYZ])-?[0-9]{{7}}-?[A-Z]|(?<=[0-9])[0-9]{{5}}-[1-8][0-9]{{6}}|
        (?<=[12])[ ]?[0-9]{{2}}[ ]?(?:0[1-9]|1[0-2])[ ]?[0-9][0-9AB][ ]?[0-9]{{3}}[ ]?[0-9]{{3}}[ ]?[0-9]{{2}}|
        (?<=[A-Z])[A-Z]{{5}}[0-9]{{2}}[A-EHLMPRST][0-9]{{2}}[A-Z][0-9]{{3}}[A-Z]|
        (?<=[0-9])[0-9]\.[0-9]{{2}}\.[0-9]{{2}}-[0-9]{{3}}\.[0-9]{{2}}|(?<=[0-9])[0-9]{{2}}\.[0-9]{{3}}\.[0-9]{{3}}-[0-9]{{2}})(?!\w|-\w)""",
    placeholder="ID-0000000",
    digits=(6, 9),
    leads=(0, 1, 2, 3, 6),
    is_valid=is_national_id,
    without_cue=ALWAYS,
)


# The letters' values; there is no I, O or Q.
VIN_DIGITS = str.maketrans("ABCDEFGHJKLMNPRSTUVWXYZ", "12345678123457923456789")


def is_vin(value: str) -> bool:
    """Check ISO 3779 and 49 CFR 565.15: the ninth character is the weighted sum of all, modulo 11, with X for 10."""
    if not re.search("[A-Z]", value) or len(re.findall("[0-9]", value)) < 5:
        return False
    numbers = map(int, value.translate(VIN_DIGITS))
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    return "0123456789X"[sum(a * b for a, b in zip(numbers, weights, strict=True)) % 11] == value[8]


VEHICLE = Kind(
    form=rf"[A-HJ-NPR-Z0-9]{LONE}[A-HJ-NPR-Z0-9]{{7}}[0-9X][A-HJ-NPR-Z0-9]{{8}}(?!\w|-\w)",
    placeholder="VIN00000000000000",
    is_valid=is_vin,
    without_cue=ALWAYS,
)


def is_mac(value: str) -> bool:
    """Accept a network address with letters and digits: times of day and ratios have digits alone."""
    return bool(re.search("[a-fA-F]", value) and re.search("[0-9]", value))


DEVICE = Kind(
    form=rf"""[0-9A-Fa-f]{LONE}(?:[0-9A-Fa-f](?P<gap>[:-])(?:[0-9A-Fa-f]{{2}}(?P=gap)){{4}}[0-9A-Fa-f]{{2}}|
        [0-9A-Fa-f]{{3}}\.[0-9A-Fa-f]{{4}}\.[0-9A-Fa-f]{{4}})(?![\w:-]|\.[0-9])""",
    placeholder="00:00:00:00:00:00",
    is_valid=is_mac,
    without_cue=ALWAYS,
)
PASSPORT = Kind(form=NEVER, placeholder="P00000000")
LICENCE = Kind(form=NEVER, placeholder="L0000000")
DATE = Kind(form=NEVER, placeholder="January 1, 1900")
AGE = Kind(form=NEVER, placeholder="aged 90 or older")
URL = Kind(form=NEVER, placeholder="https://example.com/")

# --- kinds and profiles

KINDS = {
    **{"email": EMAIL, "ip": IP, "iban": IBAN, "card": CARD, "ssn": SSN, "tax": TAX, "account": ACCOUNT},
    **{"record": RECORD, "docket": DOCKET, "birth": BIRTH, "phone": PHONE, "national_id": NATIONAL_ID},
    **{"passport": PASSPORT, "licence": LICENCE, "vehicle": VEHICLE, "device": DEVICE, "date": DATE, "age": AGE},
    "url": URL,
}
PATTERNS = {name: re.compile(kind.form, re.ASCII | re.VERBOSE) for name, kind in KINDS.items()}
PLACEHOLDERS = {kind.placeholder for kind in KINDS.values()}
# What stats.json that names no kinds was made with.
FIRST_KINDS = ("email", "ip", "iban", "card", "ssn", "tax", "account", "record", "docket", "birth", "phone")
EVERYWHERE = ("email", "ip", "iban", "card", "ssn", "phone", "national_id", "passport", "url")
# Legal: what Federal Rule of Civil Procedure 5.2(a) has filings redact, and more. Medical: what patterns can find of
# the HIPAA safe harbour (45 CFR 164.514(b)(2)). Docket numbers identify a court's case, not a person: in no profile.
PROFILES = {
    "finance": (*EVERYWHERE, "tax", "account", "birth", "licence"),
    "general": EVERYWHERE,
    "legal": (*EVERYWHERE, "tax", "account", "birth"),
    "medical": (*EVERYWHERE, "account", "record", "birth", "licence", "vehicle", "device", "date", "age"),
}


class Digits(NamedTuple):
    """Where the digits 0 to 9 of a text are, in characters, and which of them follow no other."""

    places: np.ndarray
    are_first: np.ndarray


def find_digits(text: str) -> Digits:
    places = np.flatnonzero(np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8) - ord("0") < 10)
    are_first = np.ones(len(places), dtype=bool)
    np.not_equal(places[1:], places[:-1] + 1, out=are_first[1:])
    return Digits(places, are_first)


def find_forms(name: str, text: str, lowered: str, digits: Digits) -> Iterator[re.Match]:
    """Yield the matches of a kind's form in a text, except those that have no cue and need one.

    Args: lowered: the text in lower case, as long as the text.
    """
    kind, pattern, end = KINDS[name], PATTERNS[name], 0
    if kind.words:
        for start, stop in reached(lowered, kind.words, *kind.reach):
            yield from pattern.finditer(text, start, stop)
    elif not kind.digits[0]:
        yield from pattern.finditer(text)
    elif (possible := len(digits.places) - kind.digits[0] + 1) > 0:
        fewest, span = kind.digits
        first, last = digits.places[:possible], digits.places[fewest - 1 :]
        begins = first[(last - first < span) & digits.are_first[:possible]].tolist()
        for start in sorted([place - lead for place in begins for lead in kind.leads if place >= lead]):
            if start >= end and (match := pattern.match(text, start)):
                end = match.end()
                yield match


def reached(lowered: str, words: tuple[str, ...], before: int, after: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the parts of a text that lie around words, apart from each other and in order."""
    start = stop = 0
    present = [re.escape(word) for word in words if word in lowered]
    for place in sorted(match.start() for word in present for match in re.finditer(word, lowered)):
        if place - before > stop:
            if stop:
                yield start, stop
            start = max(0, place - before)
        stop = place + after
    if stop:
        yield start, stop


def is_personal(kind: Kind, match: re.Match) -> bool:
    """Return whether a match of the kind's form is personal data, by its value and the text before it."""

    def follows(cue: str) -> bool:
        pattern = re.compile(rf"(?:{cue})\Z", re.IGNORECASE | re.VERBOSE)  # re caches the compiled pattern
        return bool(pattern.search(match.string, max(0, match.start() - CUE_CHARS), match.start()))

    if is_placeholder(match[0]) or not kind.is_valid(match[0]):
        return False
    return (bool(re.search(kind.without_cue, match[0])) and not follows(kind.not_after)) or follows(kind.cue)


def lower(character: str) -> str:
    """Return a character in lower case, or itself where that is longer."""
    return character.lower() if len(character.lower()) == 1 else character


def is_placeholder(value: str) -> bool:
    """Return whether a value is a placeholder, or a part of one."""
    return value in PLACEHOLDERS or not value.strip("0 -()")


class Redactor:
    """Redact the personal data of documents; holds no compiled pattern, so it pickles.

    Args:
        profile: key of PROFILES; its kinds are replaced.
        actions: kind -> "replace", "drop" or "leave" (only count); overrides the profile and may add kinds.

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
        """Return (start, end, kind) of each value, in characters, in text order and without overlaps.

        Of values that overlap, one to drop comes first, then one to replace, then one to leave; of the same action the
        one that starts first, then the kind listed first, then the longest.
        """
        can_hold_url = "url" in self.actions and "/" in text  # of a person's page, which needs no digit
        if not can_hold_url and not re.search("[0-9@=]|[(\\[]at[)\\]]", text):
            return []
        lowered = "".join(map(lower, text)) if len(text.lower()) != len(text) else text.lower()
        digits = find_digits(text)
        candidates = [
            (*match.span(), name)
            for name, kind in KINDS.items()
            if name in self.actions and kind.form != NEVER
            for match in find_forms(name, text, lowered, digits)
            if is_personal(kind, match)
        ]
        kinds = tuple(name for name in LABELLED if name in self.actions)
        candidates += [
            (start, end, name)
            for start, end, name in find_labelled(kinds, text, lowered)
            if not is_placeholder(text[start:end])
        ]
        if "url" in self.actions:
            candidates += [(*span, "url") for span in find_urls(text)]
        found: list[tuple[int, int, str]] = []
        order = list(KINDS)

        def precedence(candidate: tuple[int, int, str]) -> tuple:
            start, end, name = candidate
            return ("drop", "replace", "leave").index(self.actions[name]), start, order.index(name), -end

        for start, end, name in sorted(candidates, key=precedence):
            place = bisect(found, (start, end))
            before, after = found[max(0, place - 1) : place], found[place : place + 1]
            if all(one[1] <= start for one in before) and all(end <= one[0] for one in after):
                found.insert(place, (start, end, name))
        return found

    def apply(self, text: str) -> tuple[str | None, Counter]:
        """Return the text with placeholders, or None to drop the document, and how many of each kind it had."""
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


def searched_kinds(settings: PersonalData | None, stats: dict) -> dict[str, Action] | None:
    """Return kind -> action for the kinds that documents were searched for; None if for none.

    Args: stats: content of documents/stats.json; without `personal_data_kinds` it is of the first kinds' time.
    """
    if settings is None:
        return None
    actions = Redactor(settings.profile, settings.actions).actions
    return {kind: action for kind, action in actions.items() if kind in stats.get("personal_data_kinds", FIRST_KINDS)}
