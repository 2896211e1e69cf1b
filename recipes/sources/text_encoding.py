# SPDX-License-Identifier: Apache-2.0
"""Find the encoding of a text file that is not UTF-8.

A mark at the start of a file (BOM) decides. Without one, a file of Windows is converted only where two libraries agree
on it: charset-normalizer has to find the decoded text in order, and py3langid has to find it in a language that is
written in that encoding. Spanish in Windows-1250 has letters of Polish in it; as it is Spanish, it is Windows-1252.
Any other file is not converted but quarantined, with the encoding that it perhaps has.
"""

import codecs
import io
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

from charset_normalizer import from_bytes


MARKS = (  # UTF-32 first: its little-endian mark starts with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The encodings that programs wrote the languages in: of Windows, and those of ISO, Unix, Mac and DOS.
WRITTEN_IN = {
    "windows-1252": "ca da de en es fi fr gl is it nl nn no pt sv",
    "windows-1250": "bs cs hr hu pl ro sk sl",
    "iso-8859-2": "bs cs hr hu pl ro sk sl",
    "windows-1251": "be bg mk ru sr uk",
    "windows-1253": "el",
    "windows-1254": "tr az",
    "windows-1255": "he",
    "windows-1256": "ar fa ur",
    "windows-1257": "et lt lv",
    "cp949": "ko",
    "cp932": "ja",
    "euc-jp": "ja",
    "gb18030": "zh",
    "big5": "zh",
}
NAMED_ONLY = ("iso8859_15", "koi8_r", "mac_roman", "cp437", "cp850", "cp852", "cp866", "utf_16", "utf_32")
SAMPLE_BYTES = 1 << 16
# A shorter text has no language for sure.
MIN_BYTES = 40
# The share of a text that may be out of order for charset-normalizer, such as a capital inside a word.
MAX_CHAOS = 0.05
# How much more of a text must be usual in its language than of any other reading of it (of 1).
MIN_LEAD = 0.3
# What stands in a word only where a letter of another encoding was misread: a sign that is no apostrophe, hyphen or
# dash; a dagger or an accent at its end; two kinds of space after it; a capital between a letter and a small one.
MISREAD = re.compile(
    r"[^\W\d_][^\w\s\x00-\x7f\u2000-\u200f\u3000-\U0010ffff"
    r"\N{RIGHT SINGLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}\N{HYPHEN}\N{EN DASH}\N{EM DASH}\N{SOFT HYPHEN}"
    r"\N{MIDDLE DOT}][^\W\d_]"
    r"|[A-Za-z\xdf-\xff][\xc0-\xd6\xd8-\xde\u0152\u0160\u0178\u017d][a-z\xdf-\xff]"
    r"|[^\W\d_][\N{DAGGER}\N{DOUBLE DAGGER}\N{PER MILLE SIGN}\N{MODIFIER LETTER CIRCUMFLEX ACCENT}\N{SMALL TILDE}]"
    r"|[^\W\d_]\N{NO-BREAK SPACE} |\N{CURRENCY SIGN}"
)
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Encoding:
    """The encoding of a file.

    Attributes:
        name: as Python and iconv know it.
        is_certain: whether the file can be converted; otherwise the name is a guess, or empty.
    """

    name: str
    is_certain: bool


def find_encoding(content: bytes | bytearray) -> Encoding:
    """Return the encoding of a text that is not UTF-8.

    Args: content: of the file, or a part of it that has characters outside ASCII.
    """
    if marked := find_mark(content):
        return Encoding(marked, True)
    if 0 in content:
        name = find_unmarked_utf16(content)
        return Encoding(name, bool(name))
    sample = take_sample(content)
    names = WRITTEN_IN if len(content) >= MIN_BYTES else ()
    possible = [(name, *found) for name in names if (found := read_in_order(sample, name))]
    possible.sort(key=lambda entry: -entry[2])  # by how much of the text is usual in its language
    others = [coherence for _, text, coherence in possible if text != possible[0][1]]
    if possible and all(possible[0][2] - other >= MIN_LEAD for other in others):
        return Encoding(possible[0][0], True)
    guess = from_bytes(sample, cp_isolation=[*WRITTEN_IN, *NAMED_ONLY]).best()
    names = [name for name, _, _ in possible] or ([guess.encoding.replace("_", "-")] if guess else [])
    return Encoding(" or ".join(names), False)


def find_stream_encoding(stream: BinaryIO) -> Encoding:
    """Return the encoding of a file of any size, read from its start; utf-8 if it is."""
    decoder, is_start = codecs.getincrementaldecoder("utf-8")(), True
    while chunk := stream.read(64 * SAMPLE_BYTES):
        if is_start and (marked := find_mark(chunk)):
            return Encoding(marked, True)
        is_start = False
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError:
            return find_encoding(chunk)
    return Encoding("utf-8", True)


def find_mark(start: bytes | bytearray) -> str:
    """Return the encoding that a file's first bytes state, or an empty name; UTF-8's own mark needs no conversion."""
    return next((name for mark, name in MARKS if start.startswith(mark)), "")


def find_unmarked_utf16(content: bytes | bytearray) -> str:
    """Return utf-16-le or utf-16-be where half of the bytes of a text are its zeros, or an empty name."""
    sample = bytes(content[:SAMPLE_BYTES])
    for name, zeros in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[0::2])):
        if len(content) % 2 == 0 and zeros.count(0) > 0.7 * len(zeros) and decode_sample(sample, name):
            return name
    return ""


def take_sample(content: bytes | bytearray) -> bytes:
    """Return the first lines that have characters outside ASCII, which alone tell encodings apart."""
    lines, size = [], 0
    for line in bytes(content[: 64 * SAMPLE_BYTES]).splitlines(keepends=True):
        if not line.isascii() and size < SAMPLE_BYTES:
            lines.append(line)
            size += len(line)
    return b"".join(lines)[: 4 * SAMPLE_BYTES]


def decode_sample(sample: bytes, name: str) -> str:
    """Return the text of a sample in an encoding; empty if it has none. A character that is cut off at its end is
    left out."""
    try:
        text = codecs.getincrementaldecoder(name)().decode(sample)
    except UnicodeDecodeError:
        return ""
    return "" if CONTROL.search(text) else text


def read_in_order(sample: bytes, name: str) -> tuple[str, float] | None:
    """Return a sample's text in an encoding and its coherence, 0 to 1, or None if the text is not in order or its
    language is not written in this encoding."""
    text = decode_sample(sample, name)
    if not text or MISREAD.search(text) or find_language(text) not in WRITTEN_IN[name].split():
        return None
    matches = from_bytes(sample, cp_isolation=[name], threshold=MAX_CHAOS)
    return next(((text, match.coherence) for match in matches if str(match) == text), None)


def find_language(text: str) -> str:
    return load_identifier().classify(text)[0]


@lru_cache(maxsize=1)
def load_identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(sorted({language for languages in WRITTEN_IN.values() for language in languages.split()}))
    return identifier


class Recoded(io.RawIOBase):
    """Read a file in any encoding as UTF-8, without a byte-order mark.

    Raises: UnicodeDecodeError: a byte that the encoding does not have.
    """

    def __init__(self, stream: BinaryIO, encoding: str):
        self.stream, self.decoder = stream, codecs.getincrementaldecoder(encoding)()
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ready:
            chunk = self.stream.read(1 << 16)
            self.ready = memoryview(self.decoder.decode(chunk, final=not chunk).encode(errors="surrogatepass"))
            if not chunk and not self.ready:
                return 0
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size
