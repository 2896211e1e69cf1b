# SPDX-License-Identifier: Apache-2.0
"""Find URLs that carry an identifier, such as `?mrn=4418827`, `/patients/4418827/` or `user:password@host`.

The whole URL counts as the value: where one part of it identifies a person, the others seldom can be kept. Names of
parameters and folders are in English, German, French and Spanish. The parts that name an identifier are searched for,
then the URL around them, so the time is linear in the text.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote


PERSONS = r"""patient(?:en?|s)?|paciente|member|subscriber|beneficiary|insured|customer|cust|client[es]?|kunden?|user|
    usuario|benutzer|utilisateur|person|employee|emp|empleado|mitarbeiter|student|resident|borrower|applicant|claimant"""
NUMBERS = r"""uid|mrn|account|acct|konto|compte|cuenta|card|policy|loan|claim|visit|encounter|admission|prescription|
    passport|ssn|nhs|nino|nir|dni|nie|cpf|iban|phone|tel|telephone|mobile|cell|fax|dob|birth|birthdate|birthday|
    dateofbirth|geburtsdatum|naissance|nacimiento"""
# Names of parameters, in small letters and without marks: patient_id and PatientID are both patientid.
BY_NUMBER = re.compile(rf"(?:{PERSONS}|{NUMBERS})(?:id|no|nr|num|numbers?|nummer|ref)?|pa?tid", re.VERBOSE)
BY_NAME = re.compile(
    r"""e?mail|emailaddress|courriel|correo|user(?:name)?|login|usuario|benutzer|patient(?:name)?|borrower|
    (?:first|last|full|sur|given|family|display|f|l)name|nachname|vorname|prenom|apellidos?""",
    re.VERBOSE,
)
BY_TOKEN = re.compile(
    r"""(?:access|id|refresh|auth|csrf|reset|session|security|invite|api)?token|(?:j|php|asp)?sess(?:ion)?(?:id)?|sid|sitzung|
    jeton|(?:api|access|secret)key|(?:client)?secret|sig|signature|xamz(?:signature|credential|securitytoken)|auth|jwt""",
    re.VERBOSE,
)
BY_PASSWORD = re.compile("password|passwd|pwd|passphrase")
COMMON_VALUES = re.compile("true|false|yes|no|on|off|null|none|any|all|me|self|guest|anonymous|admin|default")
# What stands for a value in a manual.
STAND_IN = re.compile(r"[\[{<$*:]|your|x{3}|example|undefined", re.IGNORECASE)
YEAR = re.compile("(?:19|20)[0-9]{2}")

PARAMETER = re.compile(r"[?&;#](?P<name>[\w.\[\]-]{1,40})=(?P<value>[^\s&;#?\"'<>]{2,2000})", re.ASCII)
# A number, or a UUID, in the folder of a person; a page of a network or of a firm's own that has a person's name.
FOLDER = re.compile(
    r"""[/=](?:(?:patient(?:en|s)?|pacientes?|members?|users?|usuarios?|benutzer|utilisateurs?|customers?|kunden?|
        client[es]{0,2}|accounts?|konten|comptes?|cuentas?|employees?|persons?|people|subscribers?|residents?|students?|claimants?|
        encounters?|borrowers?)(?:/|%2f)(?P<value>[a-z]{0,4}-?[0-9][0-9-]{3,30}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})
        (?![\w%-])|personal/\w{1,64}_\w{1,64}|(?<=linkedin\.com/)in/[\w%-]{3,100})""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
LOGIN = re.compile(r"://(?:[^\s/@:\"'<>]{1,64}:[^\s/@\"'<>]{1,256}|[^\s/@:\"'<>]{20,256})@[\w\[]")

IN_URL = "[!#-;=?-~\u00c0-\u024f]"
BEFORE = re.compile(rf"{IN_URL}(?<![(\[{{'|`])")
AFTER = re.compile(f"{IN_URL}*")
URL_START = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}://|^(?:/|(?:[\w-]{1,63}\.){1,8}[a-z]{2,24}(?::[0-9]+)?[/?;])")
MAX_BEFORE = 2000  # characters of a URL before its first identifier


def identifies(name: str, value: str) -> bool:
    """Return whether a parameter holds an identifier, by its name and the form of its value."""
    plain, value = re.sub("[^a-z]", "", name.lower()), unquote(value)
    if STAND_IN.match(value) or COMMON_VALUES.fullmatch(value.lower()):
        return False
    if BY_NUMBER.fullmatch(plain) and len(re.findall("[0-9]", value)) >= 3 and not YEAR.fullmatch(value):
        return True
    if BY_TOKEN.fullmatch(plain):
        return len(value) >= 12 and bool(re.search("[0-9]", value)) and bool(re.search("[A-Za-z]", value))
    if BY_PASSWORD.fullmatch(plain):
        return len(value) >= 6
    return bool(BY_NAME.fullmatch(plain) and re.search(r"[^\W\d_]{3}", value))


def find_urls(text: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each URL that carries an identifier."""
    parameters = PARAMETER.finditer(text) if "=" in text else ()
    places = [match.start() for match in parameters if identifies(match["name"], match["value"])]
    places += [match.start() for match in FOLDER.finditer(text) if not YEAR.fullmatch(match["value"] or "")]
    places += [match.start() for match in LOGIN.finditer(text)]
    start, end, found = 0, 0, None  # of what stands between two spaces, and where a URL begins in it
    for place in sorted(places):
        if place >= end:
            start, bound = place, max(end, place - MAX_BEFORE)
            while start > bound and BEFORE.match(text[start - 1]):
                start -= 1
            end = AFTER.match(text, place).end()
            found = URL_START.search(text[start:end])
        if found and start + found.start() <= place:
            yield start + found.start(), start + len(text[start:end].rstrip(".,;:!?'()[]{}*"))
            found = None
