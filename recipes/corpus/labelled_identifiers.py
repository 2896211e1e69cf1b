# SPDX-License-Identifier: Apache-2.0
"""Find identifiers that count only behind a label, such as "Patienten-Nr. 0088172" or "date of admission: 4/2/22".

Labels are in English, German, French, Spanish and Korean, with those of some other countries' numbers. All words of a
text are compared at once with the first three letters of labels, then a pattern is tried where they are the same, so
the time is linear in the text.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np


SPACE = r"[ \u00a0]"
NO = r"(?:\s?\(?(?:numbers?|nos?\b\.?|num\b\.?|\#|n[\u00b0\u00ba]|n\.\s?\u00ba|-?nr\b\.?|nummer|\ubc88\ud638)\)?)"
TO = rf"(?:{SPACE}(?:is|was|of))?[\s:\#=.(\"'\u201c]{{0,5}}"
UNIT = r"(?:%|(?:m?c?g|kg|[mdc]?l|[cm]m|units?|tab(?:let)?s?|days?|weeks?|years?|times|of|x)\b)"
# Capitals and digits in groups, no decimal. A group behind a space has no unit after it: "MRN 482913 20 mg" ends at 3.
CODE = rf"""(?=[A-Z*./-]{{0,9}}{SPACE}?[A-Z*]{{0,3}}[0-9])(?![0-9]{{1,4}}\.[0-9]{{1,2}}(?![\w.]))[A-Z0-9*]{{1,24}}
    (?:[./-][A-Z0-9*]{{1,12}}|{SPACE}[A-Z]?[0-9]{{1,12}}[A-Z]{{0,2}}(?!\w|{SPACE}?{UNIT})){{0,8}}(?!\w)"""
MONTH = r"""(?i:jan(?:uary|uar|vier)?|enero|feb(?:ruary|ruar|rero)?|f\u00e9v(?:rier)?|mar(?:ch|zo|s)?|m\u00e4rz|
    apr(?:il)?|abril|avril|may|mai|mayo|june?|juni|juin|junio|july?|juli|juillet|julio|
    aug(?:ust)?|agosto|ao\u00fbt|sept?(?:ember|embre|iembre)?|
    o[ck]t(?:ober|obre|ubre)?|nov(?:ember|embre|iembre)?|de[cz](?:ember)?|d\u00e9c(?:embre)?|dic(?:iembre)?)\b\.?"""
YEAR = r"(?:1[89]|20)[0-9]{2}"
DATE = rf"""(?:{YEAR}(?P<bar>[/.-])\s?[0-9]{{1,2}}(?P=bar)\s?[0-9]{{1,2}}|
    {YEAR}\ub144\s?[0-9]{{1,2}}\uc6d4\s?[0-9]{{1,2}}\uc77c|
    [0-9]{{1,2}}(?P<dot>[/.-])[0-9]{{1,2}}(?P=dot)(?:{YEAR}|[0-9]{{2}})|
    [0-3]?[0-9](?:st|nd|rd|th|er|\.)?(?:\sday)?(?:\sde|\sof)?[\s-]{MONTH}(?:\sde)?,?[\s-]?{YEAR}|
    {MONTH}\s[0-3]?[0-9](?:st|nd|rd|th)?(?:,?\s{YEAR})?)(?![\w/-]|[.,][0-9])"""
ON = r"(?:\s(?:date|day))?[\s:,.(=]{0,4}(?:(?:is|was|on|of|am|le|el|il|the)\s)?"
PLATE = r"""(?:[0-9]{2,3}[\uac00-\ud7a3]\s?[0-9]{4}|(?=[A-Z -]{0,5}[0-9])[A-Z0-9]{1,4}(?:[ -][A-Z0-9]{1,4}){1,2}|
    (?=[A-Z]{0,6}[0-9])[A-Z0-9]{5,8}|[A-HJ-NPR-Z0-9]{17})(?!\w)"""
OLD = (
    r"(?:[\s-]?(?:years?|yrs?)[\s-]old|\s?yo\b|\s?y/o\b|\s?yrs?\b|-?j\u00e4hrige[rnms]?|\sans(?=\))|\sa\u00f1os\b"
    r"|\uc138)"
)


class Labels(NamedTuple):
    """The labels of one kind of identifier."""

    labels: dict[
        str, str
    ]  # what a label begins with, in lower case -> pattern of the rest, whose case does not matter
    value: str = CODE
    between: str = TO  # label, perhaps with a word for "number", and value
    min_digits: int = 5


LABELLED = {
    "ssn": Labels(dict.fromkeys(("xxx-xx", "***-**"), r"-[0-9]{4}(?!\w)"), value="", between="", min_digits=4),
    "tax": Labels(
        {
            **{"vat": r"(?:\s(?:registration|reg\.?|id))?", "ust-id": r"(?:-?Nr\.?)?", "ustid": r"(?:-?Nr\.?)?"},
            **{"tva": r"(?:\sintracommunautaire)?", "steuernummer": "", "p45 reference": "", "p. iva": ""},
            **dict.fromkeys(("uid", "mwst", "cif", "c.i.f.", "siret", "siren", "utr", "cnpj", "pan", "tfn"), ""),
            "\uc0ac\uc5c5\uc790\ub4f1\ub85d": "",
        },
        min_digits=4,
    ),
    "account": Labels(
        {
            "account": r"(?:\snumber|\sno\.?)?(?:\s(?:ending|ends)(?:\sin|\swith)?|(?=\s?[:\#]|\sn))",
            "acct": r"\.?(?:\s(?:ending|ends)(?:\sin|\swith)?|(?=\s?[:\#]|\sn))",
            **{"acc": r"\.?(?=\s?[:\#]|\s[0-9n])", "a/c": "", "aba": r"(?:\s(?:routing|RTN))?", "bsb": "", "ccc": ""},
            **{"routing": "(?=\\s?n)", "transit": "(?=\\s?n)", "sort code": "", "transfer to sav": "", "rum": ""},
            **{"konto": "", "blz": "", "bankleitzahl": "", "mandat": "(?:sreferenz)?", "cuenta": ""},
            **dict.fromkeys(("n\u00b0 de compte", "code banque", "code guichet", "cl\u00e9 rib"), ""),
            **{"\uacc4\uc88c": "", "\uc740\ud589": ""},
        },
        value=rf"(?:[Xx*]{{2,12}}[0-9]{{4}}(?!\w)|{CODE})",
        min_digits=4,
    ),
    "record": Labels(
        {
            **{
                "mrn": "",
                "mr#": "",
                "mr #": "",
                "pt. id": "",
                "pt id": "",
                "mbi": "",
                "ipp": "",
                "nda": "",
                "nuhsa": "",
                "cipa": "",
            },
            **dict.fromkeys(
                ("medical record", "health record", "hospital record", "patient record"), r"(?=\s?n|\s?\#)"
            ),
            **dict.fromkeys(("hospital", "chart", "visit", "policy", "nhs", "chi"), r"(?=\s?\#|\sn[ou])"),
            **{
                "nhs ": "(?=[0-9]{3})",
                "chi ": "(?=[0-9]{10})",
                "accession number:": "",
                "health card": "",
                "acct#": "",
                "acct #": "",
            },
            "patient": r"(?:\sID|(?=\s?\#|\sn[ou]))",
            **dict.fromkeys(("member id", "subscriber id", "beneficiary id", "medicaid id", "medicare mbi"), ""),
            **{
                "medicare": r"(?=\sno)",
                "fallnummer": "",
                "fall-nr": "",
                "patienten": "",
                "versicherten": "",
                "historia cl\u00ednica": "",
            },
            **{"\ub4f1\ub85d": "", "\ubcf4\ud5d8\uc99d": ""},
        },
        between=rf"(?:\s\(MRN\))?{TO}",
        min_digits=4,
    ),
    "national_id": Labels(
        {
            **{
                "national insurance": "",
                "nino": "",
                "ni": r"(?=\s(?:no\b|number)|\s?\#)",
                "personalausweis": "",
                "sin": "",
            },
            **{"steuer-id": "", "steuerliche id": "", "identifikation": "s", "idnr": "", "rentenversicherung": "s"},
            **{
                "sozialversicherung": "s",
                "sv-nr": "",
                "ahv": "",
                "s\u00e9curit\u00e9 sociale": "",
                "nir": "",
                "cni": "",
                "n\u00b0 fiscal": "",
            },
            **{
                "dni": "",
                "nie": r"(?:\sdel\s\w{1,20})?",
                "nif": "",
                "n.i.f.": "",
                "nass": "",
                "pps": "",
                "bsn": "",
                "cpf": "",
            },
            **{
                "rijksregister": "",
                "niss": "",
                "insz": "",
                "codice fiscale": "",
                "aadhaar": "",
                "\uc8fc\ubbfc": "(?:\ub4f1\ub85d)?",
            },
            "\uc678\uad6d\uc778\ub4f1\ub85d": "",
        },
        value=rf"""(?=(?:[{SPACE[1:-1]}./-]?[A-Z0-9*]){{8}})(?:[0-9]{{2}}{SPACE}[0-9]{{6}}{SPACE}[A-Z]{SPACE}[0-9]{{3}}|
            {CODE}(?:{SPACE}[A-D](?![\w'\u2019])|\scl\u00e9\s[0-9]{{2}})?)""",
        min_digits=2,
    ),
    "passport": Labels(
        dict.fromkeys(
            ("passport", "passeport", "reisepass", "pasaporte", "passaporto", "paspoort", "\uc5ec\uad8c"), ""
        )
    ),
    "licence": Labels(
        {
            "driver": r"(?:[\u2019']?s?)\slicen[cs]e(?:\s?\([A-Z]{2}\))?",
            "driving": r"\slicen[cs]e",
            "medical": r"\slicen[cs]e",
            "nursing": r"\slicen[cs]e",
            "pilot": r"(?:[\u2019']?s?)\slicen[cs]e",
            "lic.": r"(?=\s?(?:no|\#))",
            "kba": r"(?=\s?\#)",
            **dict.fromkeys(
                ("oln", "dea", "npi", "gmc", "rpps", "arzt", "lanr", "f\u00fchrerschein", "permis de conduire"), ""
            ),
            **{
                "permiso de conducir": "",
                "colegiad": "[oa]",
                "\uc6b4\uc804\uba74\ud5c8": "",
                "\uc758\uc0ac\uba74\ud5c8": "",
            },
        },
        value=rf"(?:[A-Z]{{3,5}}{SPACE}[0-9]{{6}}{SPACE}[A-Z0-9]{{5}}{SPACE}[0-9]{{2}}(?!\w)|{CODE})",
    ),
    "vehicle": Labels(
        {
            **{
                "vin": "",
                "v.i.n.": "",
                "license plate": "",
                "licence plate": "",
                "number plate": "",
                "registration plate": "",
            },
            **{"plate": r"(?=\s?[\#:]|\sno\b)", "kennzeichen": "", "immatriculation": "", "matr\u00edcula": ""},
            "\uc790\ub3d9\ucc28\ub4f1\ub85d": "",
        },
        value=PLATE,
        min_digits=2,
    ),
    "device": Labels(
        dict.fromkeys(
            ("implant", "pacemaker", "defibrillator", "device", "prosthe", "stent", "lens", "pump"),
            r"[^\n]{0,60}?\bserial(?=\s?n|\s?\#)",
        ),
    ),
    "birth": Labels(
        {
            **dict.fromkeys(("dob", "d.o.b", "date of birth", "born", "geb.", "geboren", "geburtsdatum"), ""),
            **dict.fromkeys(
                (
                    "n\u00e9",
                    "n\u00e9e",
                    "date de naissance",
                    "nacido",
                    "nacida",
                    "fecha de nacimiento",
                    "f. nacimiento",
                ),
                "",
            ),
            **dict.fromkeys(("nato", "nata", "\uc0dd\ub144\uc6d4\uc77c"), ""),
        },
        value=DATE,
        between=ON,
        min_digits=3,
    ),
    "date": Labels(
        {
            **{
                "admit": "(?:ted)?",
                "admission": "",
                "adm": r"\.?",
                "discharge": r"d?(?:\sfrom\s\w{2,12})?",
                "exam date": "",
                "visit date": "",
            },
            "date of ": "(?:service|visit|exam|death|admission|discharge|surgery|procedure)",
            **{
                "dos": "",
                "date of": r"\s(?:the\s)?(?:injury|accident)",
                "died": "",
                "deceased": "",
                "expired": "",
                "arrived": "",
            },
            **{
                "seen on": "",
                "follow-up": "",
                "electronically signed": r"(?:\sby\s[^\n]{2,40}?)?",
                "dictated": r"(?:\sby\s[^\n]{2,40}?\son)?",
            },
            **{
                "ct": r"\s\w{2,12}",
                "mri": r"\s\w{2,12}",
                "x-ray": "",
                "study of": "",
                "service date": "",
                "surgery": "",
                "operation": "",
            },
            **{
                "station\u00e4r vom": "",
                "vom": r"\s[0-9.]{6,10}\sbis",
                "hospitalis\u00e9": r"e?\sdu",
                "du": r"\s[0-9/.]{6,10}\sau",
            },
            **{"fecha de ingreso": "", "fecha de alta": "", "\uc785\uc6d0\uc77c": "", "\ud1f4\uc6d0\uc77c": ""},
        },
        value=DATE,
        between=ON,
        min_digits=1,
    ),
    "age": Labels(
        {
            **{f"{age}": OLD for age in range(90, 120)},
            **{
                f"aged {tens}": r"[0-9](?!\w|\s(?:to|and|or\solder)\b|\s?[-%\u2013]|\sper\s?cent|[.,][0-9])"
                for tens in (9, 10, 11)
            },
            **{f"age: {tens}": r"[0-9](?!\w|[-.,%])" for tens in (9, 10, 11)},
        },
        value="",
        between="",
        min_digits=0,
    ),
}

BEFORE_A_WORD = bytes(not chr(code).isalnum() for code in range(256))


@cache
def label_pattern(name: str, word: str) -> re.Pattern:
    """Return the pattern of one label; its group `value` is what it found, and for an age the label too."""
    kind = LABELLED[name]
    label = f"(?i:{re.escape(word)}{kind.labels[word]}(?:{NO}|(?![a-z])){kind.between})"
    return re.compile(rf"{label}(?P<value>{kind.value})" if kind.value else rf"(?P<value>{label})", re.VERBOSE)


@cache
def label_beginnings(kinds: tuple[str, ...]) -> tuple[np.ndarray, dict[str, list[tuple[str, str]]]]:
    """Return which numbers of three letters, 7 bits each, labels begin with, and two letters -> [(kind, label)]."""
    is_beginning, labels = np.zeros(1 << 21, dtype=bool), defaultdict(list)
    for kind in kinds:
        for label in LABELLED[kind].labels:
            labels[label[:2]].append((kind, label))
            letters = np.frombuffer(label[:3].encode("ascii", "replace"), dtype=np.uint8).astype(np.int32)
            number = letters[0] << 14 | letters[1] << 7
            is_beginning[number | letters[2] if len(letters) == 3 else slice(number, number + 128)] = True
    return is_beginning, dict(labels)


def find_labelled(kinds: tuple[str, ...], text: str, lowered: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, kind) of each identifier.

    Args:
        kinds: keys of LABELLED.
        text: a document.
        lowered: the text in lower case, as long as the text.
    """
    is_beginning, labels = label_beginnings(kinds)
    padded = f" {lowered}  ".encode("ascii", "replace")
    letters = np.frombuffer(padded, dtype=np.uint8)
    places = np.flatnonzero(np.frombuffer(padded[:-3].translate(BEFORE_A_WORD), dtype=bool))
    first, second, third = (letters[places + step].astype(np.int32) for step in (1, 2, 3))
    for place in places[is_beginning[first << 14 | second << 7 | third]].tolist():
        for kind, label in labels.get(lowered[place : place + 2], ()):
            begins = lowered.startswith(label, place) and not (place and lowered[place - 1].isalnum())
            match = begins and label_pattern(kind, label).match(text, place)
            if match and len(re.findall("[0-9]", match["value"])) >= LABELLED[kind].min_digits:
                yield *match.span("value"), kind
