# SPDX-License-Identifier: Apache-2.0
"""What a row or file may be: of bounded size, UTF-8, without NUL. All else is an `Unreadable` with its reason."""

import gzip
import json
from dataclasses import dataclass

import httpx2
import pyarrow as pa

from sources.packed_files import DAMAGED_PACKING
from sources.row_text import kind_of


# The longest row or file, unpacked.
MAX_ROW_BYTES = 128 << 20
# The most values of a row: `[[],[],` takes three bytes a value in a file, and seventy in Python.
MAX_ROW_VALUES = 10_000_000
NOT_UTF8 = "not UTF-8"
AS_ROW = '; write it as {"text": ...}'
# Errors of the readers on a file that is damaged, truncated or of another type.
DAMAGED = (*DAMAGED_PACKING, UnicodeDecodeError, pa.ArrowException)


@dataclass(frozen=True)
class Unreadable:
    """A part of a unit that cannot be read: its position, the reason and its size."""

    position: str
    reason: str
    size_bytes: int


def is_damage(error: Exception, kinds: tuple[type[Exception], ...] = DAMAGED) -> bool:
    """Return whether an error means a damaged file, rather than a failure to get at it."""
    if isinstance(error, OSError | httpx2.HTTPError) and not isinstance(error, gzip.BadGzipFile):
        # Arrow's decoders raise a bare OSError; the operating system's have an errno, a client's are a subclass.
        return type(error) is OSError and error.errno is None
    return isinstance(error, kinds)


def describe_damage(error: Exception) -> str:
    return f"damaged or cut short: {(str(error) or type(error).__name__).splitlines()[0]}"


def decode(content: bytes | bytearray, position: str) -> str | Unreadable:
    """Decode UTF-8 text that a document can contain: of bounded length, without NUL."""
    if len(content) > MAX_ROW_BYTES:
        return Unreadable(position, f"longer than {MAX_ROW_BYTES:,} bytes", len(content))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Unreadable(f"{position}: byte {error.start}", NOT_UTF8, len(content))
    return Unreadable(position, "holds NUL", len(content)) if "\0" in text else text


def parse_json(content: bytes | bytearray, position: str) -> object:
    """Parse JSON, or return an `Unreadable`."""
    text = decode(content, position)
    if isinstance(text, Unreadable):
        return text
    if text.count(",") > MAX_ROW_VALUES:
        return Unreadable(position, f"more than {MAX_ROW_VALUES:,} commas", len(content))
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return Unreadable(position, "broken JSON", len(content))


def check_row(value: object, position: str, size_bytes: int) -> dict | Unreadable:
    """Return a parsed row, or an `Unreadable`. A size of 0 means not measured yet."""
    if isinstance(value, Unreadable):
        return value
    reason = (
        why_unfit(value)
        if isinstance(value, dict)
        else f"not a JSON object but {kind_of(value)}{AS_ROW * isinstance(value, str)}"
    )
    return value if reason is None else Unreadable(position, reason, size_bytes or len(json.dumps(value)))


def why_unfit(example: object) -> str | None:
    """Return why a document cannot contain a row: one of its texts has NUL or a lone surrogate, invalid in UTF-8."""
    waiting = [example]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, str):
            if "\0" in value:
                return "holds NUL"
            try:
                value.isascii() or value.encode()
            except UnicodeEncodeError:
                return "lone surrogate"
    return None
