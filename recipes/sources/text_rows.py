# SPDX-License-Identifier: Apache-2.0
"""Read JSON lines, JSON, tables of columns and plain text, in UTF-8 or another certain encoding (text_encoding.py)."""

import codecs
import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from typing import BinaryIO

from recipe_config import Source
from sources import row_checks
from sources.row_checks import NOT_UTF8, Unreadable, check_row, decode, parse_json, why_unfit
from sources.row_text import has_text
from sources.separators import compile_separator, split_text
from sources.text_encoding import Encoding, Recoded, find_encoding, find_mark, find_stream_encoding


UNCLOSED = (
    "a quotation mark is not closed, so all lines from here on would be one row; close it, or get the file again if "
    "it is cut short"
)
MISQUOTED = (
    "a quotation mark is not closed, or is in a text without being doubled, so these lines would be one row; close or "
    "double it"
)


def read_json_lines(
    stream: BinaryIO, name: str, start: int = 0, stop: float = math.inf
) -> Iterator[dict | Unreadable]:
    """Yield the rows of the lines that begin from byte `start` to before byte `stop`."""
    number, position = 0, start
    if start:
        position = stream.seek(start - 1)
        begun = True  # the line that holds the byte before the range, and may end with it
        while begun:
            rest = stream.readline(1 << 20)
            position += len(rest)
            begun = rest and not rest.endswith(b"\n")
    while position < stop and (line := stream.readline(row_checks.MAX_ROW_BYTES + 1)):
        position += len(line)
        number += 1
        too_long = len(line) > row_checks.MAX_ROW_BYTES and not line.endswith(b"\n")
        if not line.isspace():
            row = check_row(parse_json(line, f"{name}:{number}"), f"{name}:{number}", len(line))
            del line
            yield row
        while too_long:
            rest = stream.readline(1 << 20)
            position += len(rest)
            too_long = rest and not rest.endswith(b"\n")


def read_json(stream: BinaryIO, name: str, source: Source) -> Iterator[dict | Unreadable]:
    """Yield the elements of a list or the values of an object of objects; any other object, and one that has a text
    where the source says it is, is one row."""
    content = read_bounded(stream)
    value, size = parse_json(content, name), len(content)
    del content
    if isinstance(value, dict) and 2 * sum(isinstance(row, dict) for row in value.values()) > len(value):
        value = value if has_text(value, source) else list(value.values())
    if not isinstance(value, list):
        yield check_row(value, name, size)
        return
    for number, row in enumerate(value, start=1):
        yield check_row(row, f"{name}: row {number}", 0)


def holds_json_lines(opener: Callable[[], AbstractContextManager[BinaryIO]]) -> bool:
    """Return whether a .json file is JSON lines, as many on the Hub are: one of its first two lines is an object."""
    with opener() as packed:
        stream = as_utf8(packed)
        first, second = stream.readline(row_checks.MAX_ROW_BYTES + 1), stream.readline(row_checks.MAX_ROW_BYTES + 1)
    if first.removeprefix(codecs.BOM_UTF8).lstrip()[:1] != b"{" or not second.strip():
        return False
    return any(isinstance(parse_json(line, ""), dict) for line in (first, second))


def read_columns(stream: BinaryIO, name: str, kind: str) -> Iterator[dict | Unreadable]:
    """Yield the rows of a table. Its first line names the columns, and what it has most of divides them."""
    csv.field_size_limit(row_checks.MAX_ROW_BYTES)
    first = stream.readline(row_checks.MAX_ROW_BYTES).decode("utf-8-sig")
    delimiter = "\t" if kind == ".tsv" else max(",;\t|", key=first.count)
    at_end, lines = False, []  # of the row that is being read

    def read_lines() -> Iterator[str]:
        nonlocal at_end
        for line in chain([first], map(bytes.decode, iter(partial(stream.readline, row_checks.MAX_ROW_BYTES), b""))):
            lines.append(line)
            yield line
        at_end = True

    rows = csv.reader(read_lines(), delimiter=delimiter)
    try:
        columns = [column.strip() for column in next(rows, [])]
        if at_end:
            yield Unreadable(f"{name}: line 1", UNCLOSED, sum(map(len, columns)))
            return
        named = [column for column in columns if column]
        if len(set(named)) < len(named):
            yield Unreadable(name, f"two columns have one name: {', '.join(named)[:200]}", 0)
            return
        lines.clear()
        for number, row in enumerate(rows, start=1):
            position, size_bytes = f"{name}: row {number}", sum(map(len, row))
            own, first_line = lines.copy(), rows.line_num - len(lines) + 1
            lines.clear()
            if at_end:  # only a quotation mark that is open makes the csv library ask for a line after the last
                yield Unreadable(f"{name}: line {first_line}", UNCLOSED, size_bytes)
                return
            if len(own) > 1 and not is_well_quoted(own, delimiter):
                yield Unreadable(f"{name}: lines {first_line} to {rows.line_num}", MISQUOTED, size_bytes)
                continue
            if not row:
                continue
            if len(row) != len(columns):
                reason = f"{len(row)} values, where the first line names {len(columns)} columns"
                yield Unreadable(position, reason, size_bytes)
            else:
                yield check_row(dict(zip(columns, row, strict=True)), position, size_bytes)
    except csv.Error as error:
        yield Unreadable(f"{name}: after line {rows.line_num}", f"damaged table: {error}", 0)


def is_well_quoted(lines: list[str], delimiter: str) -> bool:
    """Return whether the quotation marks of a row's lines are those that the format wants."""
    try:
        return len(list(csv.reader(lines, delimiter=delimiter, strict=True))) == 1
    except csv.Error:
        return False


def decode_file(content: bytearray, name: str) -> dict | Unreadable:
    """Return a text file as an example: converted where its encoding is certain, else why it is not read."""
    text = decode(content, name)
    if not isinstance(text, Unreadable):
        return {"text": text}
    if len(content) > row_checks.MAX_ROW_BYTES:
        return dataclasses.replace(text, reason=f"{text.reason}, the most of one document; set document_separator")
    encoding = find_encoding(content)
    if not encoding.is_certain:
        return dataclasses.replace(text, reason=explain_encoding(encoding)) if text.reason == NOT_UTF8 else text
    try:
        converted = content.decode(encoding.name)
    except UnicodeDecodeError as error:
        return Unreadable(f"{name}: byte {error.start}", f"not {encoding.name} throughout", len(content))
    reason = why_unfit(converted)
    return (
        {"text": converted, "converted_from": encoding.name}
        if reason is None
        else Unreadable(name, reason, len(content))
    )


def split_file(
    opener: Callable[[], AbstractContextManager[BinaryIO]], name: str, source: Source
) -> Iterator[dict | Unreadable]:
    """Yield the documents of a text file of any size, which a separator divides."""
    with opener() as stream:
        encoding = find_stream_encoding(stream)
    if not encoding.is_certain:
        yield Unreadable(name, explain_encoding(encoding), 0)
        return
    noted = {} if encoding.name == "utf-8" else {"converted_from": encoding.name}
    with opener() as stream:
        pieces = io.TextIOWrapper(recode(stream, encoding.name), encoding="utf-8-sig")
        separator, content = compile_separator(source.document_separator), iter(partial(pieces.read, 1 << 20), "")
        texts = split_text(content, separator, row_checks.MAX_ROW_BYTES)
        for number, text in enumerate(texts, start=1):
            position = f"{name}: document {number}"
            reason = f"longer than {row_checks.MAX_ROW_BYTES:,} bytes" if text is None else why_unfit(text)
            yield {"text": text, **noted} if reason is None else Unreadable(position, reason, 0)


def explain_encoding(encoding: Encoding) -> str:
    """Return why a text in an encoding that is not certain is not read."""
    guess = f"; perhaps {encoding.name}: convert it with iconv -t utf-8 -f {encoding.name}" if encoding.name else ""
    return NOT_UTF8 + guess


def recode(stream: BinaryIO, encoding: str) -> BinaryIO:
    """Return a stream of UTF-8 for a file in an encoding."""
    return stream if encoding == "utf-8" else io.BufferedReader(Recoded(stream, encoding), 1 << 20)


def as_utf8(stream: BinaryIO) -> BinaryIO:
    """Return a stream of UTF-8 for a file that starts with the mark of another Unicode encoding."""
    buffered = stream if hasattr(stream, "peek") else io.BufferedReader(stream, 1 << 20)
    return recode(buffered, find_mark(buffered.peek(4)[:4]) or "utf-8")


def read_bounded(stream: BinaryIO) -> bytearray:
    """Read a stream to its end, or a little past MAX_ROW_BYTES."""
    content = bytearray()
    while len(content) <= row_checks.MAX_ROW_BYTES and (piece := stream.read(1 << 20)):
        content += piece
    return content
