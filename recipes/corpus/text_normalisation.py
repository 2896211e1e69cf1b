# SPDX-License-Identifier: Apache-2.0
"""Normalise characters: one form for accents, line ends and spaces, and no invisible characters.

In:   the text of one document.
Out:  the text in Unicode's form NFC; line ends as \\n; a plain space for every horizontal space but the tab;
      no control, invisible or direction characters; no spaces at the end of a line; at most two blank lines in a row.

NFC joins a letter and its accent and changes no meaning. NFKC would also turn m² into m2, ½ into 1/2 and ™ into "tm",
and break citations, doses and units. So § ½ ² ™ ﬁ, curly quotes, dashes and bullets stay. Tabs and the spaces inside
and before a line stay too: they make tables, code and the levels of a statute.

Characters U+0080 to U+009F are decoded as Windows-1252, as browsers do (WHATWG Encoding Standard): they come from
Windows-1252 text that was decoded as Latin-1, and in old filings are quotes and dashes. Other wrong decoding stays.
"""

import re
import unicodedata


BLANK_LINES = 2
SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\x1c-\x1f"
LINE_ENDS = "\r\x0b\x0c\u2028\u2029"
# Soft hyphen; zero-width space and no-break space (the byte order mark); word joiner and invisible operators;
# direction marks; annotation and object characters; the non-characters U+FFFE and U+FFFF.
INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x7f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc\ufffe\uffff"
)
# Tag characters spell the flag of a region after a black flag; elsewhere they hide text.
TAGS, FLAG = "\U000e0000-\U000e007f", "\U0001f3f4[\U000e0020-\U000e007f]+"
ODD = re.compile(f"[{SPACES}{LINE_ENDS}{INVISIBLE}{TAGS}\x80-\x9f]")
ODD_OR_FLAG = re.compile(f"{FLAG}|{ODD.pattern}")
ODD_IN_ASCII = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
# Joiners shape letters in scripts from Arabic to Mongolian and combine emoji; elsewhere they have no effect.
JOINED = "\u0600-\u1cff\u2190-\u2bff\ua800-\uab2f\ufb1d-\ufe0f\ufe70-\ufefe\U00010a00-\U00011fff\U0001f000-\U0001faff"
STRAY_JOINER = re.compile(f"(?<![{JOINED}])[\u200c\u200d]+")


def in_document_form(text: str, normalised: bool) -> str:
    """Return a text as documents are written; `normalised` is data.normalise_text."""
    text = text.replace("\r\n", "\n")
    return (normalise(text) if normalised else text).strip()


def normalise(text: str) -> str:
    """Return the normalised text; the function is idempotent."""
    if (ODD_IN_ASCII if text.isascii() else ODD).search(text):
        text = ODD_OR_FLAG.sub(replacement, text.replace("\r\n", "\n"))
    text = unicodedata.normalize("NFC", text)
    # NFC may reorder accents that a joiner separated, and so leave another joiner stray.
    while ("\u200c" in text or "\u200d" in text) and STRAY_JOINER.search(text):
        text = unicodedata.normalize("NFC", STRAY_JOINER.sub("", text))
    if " \n" in text or "\t\n" in text:
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    while "\n" * (BLANK_LINES + 2) in text:
        text = text.replace("\n" * (BLANK_LINES + 2), "\n" * (BLANK_LINES + 1))
    return text.rstrip(" \t\n").lstrip("\n")


def replacement(match: re.Match) -> str:
    """Return the replacement of an odd character; the tags of a flag stay."""
    character = match[0]
    if len(character) > 1:
        return character
    if character in LINE_ENDS:
        return "\n"
    if "\x80" <= character <= "\x9f":
        return character.encode("latin-1").decode("windows-1252", errors="ignore")
    return " " if character.isspace() else ""
