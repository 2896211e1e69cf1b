# SPDX-License-Identifier: Apache-2.0
"""Read the examples of a source: files, folders, archives, URLs and Hub datasets in the same way.

A source is a list of units (units.py). Each unit yields examples, which `extract_text` of the recipe's data.py turns
into documents: the rows of JSON lines, JSON, Parquet, Arrow or a table of columns, or `{"text": content}` for any
other file. text_field and text_template put the text of a row into its field `text` (row_text.py), and
document_separator divides it (separators.py). Each example has the name of its file as `path`, and as `converted_from`
what a text was converted from if it was not UTF-8 (text_encoding.py). A text that looks like a date or a number stays
a text.

A unit can be a range of bytes of a file (ranges.py): then it yields the lines or row groups that start in it.

Data that cannot be read is yielded as an `Unreadable`, never dropped silently: the line of JSON lines, the row or the
rest of the row group of Parquet, the rest of a compressed file, otherwise the file. A failed connection is not damage:
the file systems retry for a limited time, then reading ends with an error.

Memory is bounded, whatever a file unpacks to: at worst about 10 * MAX_ROW_BYTES = 1.3 GB (a row with a character
outside the basic plane, for which Python stores four bytes a character, as read, as parsed and as yielded), 5 *
MAX_ROW_BYTES for plain ASCII, a few MB for rows of usual length. Parquet takes twice its largest page, which writers
limit to 1 MB or 1,024 rows, Arrow its largest batch, usually of 1,000 rows. Formats that `datasets` reads have its
bounds.
"""

import copy
import csv
import dataclasses
import gzip
import io
import json
import math
import os
import shutil
import tempfile
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import accumulate, chain
from typing import BinaryIO

import fsspec
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq

from recipe_config import Source
from sources.conversion import convert_file
from sources.file_kinds import COLUMNS, DOCUMENTS, TABLES, suffix
from sources.packed_files import DAMAGED_PACKING, open_archive, read_tar, unpack
from sources.row_text import kind_of, set_text
from sources.separators import compile_separator, split_text
from sources.text_encoding import Encoding, Recoded, find_encoding, find_mark, find_stream_encoding
from sources.units import Unit, load_builder, matching_members, named_errors, why_left_out


# The longest row or file, unpacked.
MAX_ROW_BYTES = 128 << 20
# The most values of a row: `[[],[],` takes three bytes a value in a file, and seventy in Python.
MAX_ROW_VALUES = 10_000_000
# Rows of a Parquet file in memory at a time, few because one text in a dictionary can repeat in any number of rows.
PARQUET_BATCH_ROWS = 4
# Above this compression ratio, which text never reaches, a Parquet page must not exceed MAX_ROW_BYTES.
MAX_COMPRESSION_RATIO = 100
# The largest member of a tar that is copied to memory.
COPIED_BYTES = 16 << 20
NOT_UTF8 = "not UTF-8"
AS_ROW = '; write it as {"text": ...}'
# Errors of the readers on a file that is damaged, truncated or of another type.
DAMAGED = (*DAMAGED_PACKING, UnicodeDecodeError, pa.ArrowException)
# Errors of `datasets` on one.
DAMAGED_FOR_DATASETS = (*DAMAGED, ValueError, TypeError, KeyError)


@dataclass(frozen=True)
class Unreadable:
    """A part of a unit that cannot be read: its position, the reason and its size."""

    position: str
    reason: str
    size_bytes: int


def read_unit(
    source: Source, unit: Unit, opened: Callable[[BinaryIO], object] = lambda stream: None
) -> Iterator[dict | Unreadable]:
    """Yield the examples of one unit, and an `Unreadable` for each damaged part of it.

    Args:
        source: of the unit.
        unit: to read.
        opened: gets each stream of the file's own bytes that is opened, whose position says how much has been read.
    """
    of_tar = not unit.by_datasets and is_tar(unit)
    if unit.by_datasets:
        examples = set_texts(read_with_datasets(source, unit), unit.name, source)
        examples = split_rows(examples, source) if source.document_separator else examples
    elif of_tar:
        examples = read_tar_unit(source, unit, opened)
    elif unit.stop is not None:
        examples = read_range(source, unit, opened)
    else:
        examples = read_file(partial(open_unit, unit, opened), unit.name, source)
    number = 0
    with named_errors(source):
        while True:
            number += 1
            try:
                example = next(examples, None)
            except Exception as error:
                if not is_damage(error, DAMAGED_FOR_DATASETS if unit.by_datasets else DAMAGED):
                    raise
                yield Unreadable(f"{unit.place}: row {number}", describe_damage(error), unit.range_bytes)
                return
            if example is None:
                return
            if isinstance(example, dict) and not of_tar:
                example = {**example, "path": unit.name}
            yield example


def is_damage(error: Exception, kinds: tuple[type[Exception], ...] = DAMAGED) -> bool:
    """Return whether an error means a damaged file, rather than a failure to get at it."""
    if isinstance(error, OSError | httpx2.HTTPError) and not isinstance(error, gzip.BadGzipFile):
        # Arrow's decoders raise a bare OSError; the operating system's have an errno, a client's are a subclass.
        return type(error) is OSError and error.errno is None
    return isinstance(error, kinds)


def describe_damage(error: Exception) -> str:
    return f"damaged or cut short: {(str(error) or type(error).__name__).splitlines()[0]}"


def read_with_datasets(source: Source, unit: Unit) -> Iterator[dict | Unreadable]:
    """Stream one data file of a Hub dataset through the `datasets` library."""
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.json.json import Json

    builder = copy.copy(load_builder(source))
    whole = builder.config.data_files[source.split]
    one = DataFilesList([unit.path], [whole.origin_metadata[whole.index(unit.path)]])
    builder.config = dataclasses.replace(builder.config, data_files=DataFilesDict({source.split: one}))
    builder.info = builder.info.copy()  # features inferred from one file must not apply to another
    from_json = isinstance(builder, Json)
    for number, example in enumerate(builder.as_streaming_dataset(split=source.split), start=1):
        position, reason = f"{unit.name}: row {number}", why_unfit(example)
        if reason is not None:
            yield Unreadable(position, reason, len(repr(example)))
        elif from_json and any(isinstance(value, date) for value in example.values()):
            yield Unreadable(position, "a text that looks like a date was read as one", len(repr(example)))
        else:
            yield example


@contextmanager
def open_unit(unit: Unit, opened: Callable[[BinaryIO], object]) -> Iterator[BinaryIO]:
    """Open a file or a member of an archive, unpacked."""
    with ExitStack() as open_files:
        if unit.member:
            try:
                stream = open_files.enter_context(
                    open_archive(unit.path, os.stat(unit.path).st_mtime_ns).open(unit.member)
                )
            except RuntimeError as error:  # encrypted, or an unknown compression
                raise zipfile.BadZipFile(str(error)) from error
        elif "://" in unit.path:
            remote = open_files.enter_context(fsspec.open(unit.path, "rb"))
            stream = io.BufferedReader(WholeFile(remote, unit.size_bytes), 1 << 20)
        else:
            stream = open_files.enter_context(open(unit.path, "rb"))
        opened(stream)
        yield unpack(stream, unit.name, open_files)


def is_tar(unit: Unit) -> bool:
    return suffix(unit.name) == ".tar" and not unit.member and "://" not in unit.path


def read_tar_unit(source: Source, unit: Unit, opened: Callable[[BinaryIO], object]) -> Iterator[dict | Unreadable]:
    """Yield the examples of the members of a tar, in its order, each with the path of its member.

    A member is copied first, since a tar can be read forwards only: to memory, or a large one to a temporary file.
    """
    is_match = matching_members(source) if unit.path == source.path else None
    largest = MAX_ROW_BYTES + MAX_COMPRESSION_RATIO * unit.size_bytes
    for member, size_bytes, content in read_tar(unit.path, unit.start, unit.stop, opened):
        if why_left_out(source, member, is_match) is not None:
            continue
        name = f"{unit.name}/{member}".encode(errors="backslashreplace").decode()
        if size_bytes > largest:
            yield Unreadable(name, f"unpacks to {size_bytes:,} bytes, from a tar of {unit.size_bytes:,}", size_bytes)
            continue
        with ExitStack() as copies:
            if size_bytes <= COPIED_BYTES:
                fresh = partial(io.BytesIO, content.read())
            else:
                copied = copies.enter_context(tempfile.NamedTemporaryFile())
                shutil.copyfileobj(content, copied, 1 << 20)
                copied.flush()
                fresh = partial(open, copied.name, "rb")
            try:
                for example in read_file(partial(open_copied, fresh, name), name, source):
                    yield {**example, "path": name} if isinstance(example, dict) else example
            except Exception as error:
                if not is_damage(error):
                    raise
                yield Unreadable(name, describe_damage(error), size_bytes)


@contextmanager
def open_copied(fresh: Callable[[], BinaryIO], name: str) -> Iterator[BinaryIO]:
    """Open a copied member of a tar, unpacked."""
    with ExitStack() as opened:
        yield unpack(opened.enter_context(fresh()), name, opened)


class WholeFile(io.RawIOBase):
    """Read a file of any fsspec file system to its full size; an earlier end is a broken connection.

    All errors of a client become a ConnectionError, so that none counts as damage of the file.
    """

    def __init__(self, file, size_bytes: int):
        self.file, self.size_bytes = file, size_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer) -> int:
        try:
            content = self.file.read(len(buffer))
        except Exception as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        if not content and self.file.tell() < self.size_bytes:
            raise ConnectionError(f"the connection ended at byte {self.file.tell():,} of {self.size_bytes:,}")
        buffer[: len(content)] = content
        return len(content)


def read_file(
    opener: Callable[[], AbstractContextManager[BinaryIO]], name: str, source: Source
) -> Iterator[dict | Unreadable]:
    """Yield the rows of a file, or the file as one row, divided at the source's separator.

    Args:
        opener: opens the file at its start, unpacked.
        name: of the file, whose ending says what it is, and which positions start with.
        source: says which fields are the text.
    """
    kind = suffix(name)
    if kind in TABLES + COLUMNS:
        examples = set_texts(read_rows(opener, name, kind), name, source)
        yield from split_rows(examples, source) if source.document_separator else examples
    elif kind in DOCUMENTS:
        examples = iter([read_document(opener, name)])
        yield from split_rows(examples, source) if source.document_separator else examples
    elif source.document_separator:
        yield from split_file(opener, name, source)
    else:
        with opener() as stream:
            yield decode_file(read_bounded(stream), name)


def read_range(source: Source, unit: Unit, opened: Callable[[BinaryIO], object]) -> Iterator[dict | Unreadable]:
    """Yield the rows that begin in a unit's range of bytes."""
    rows = read_rows(partial(open_unit, unit, opened), unit.place, suffix(unit.name), (unit.start, unit.stop))
    examples = set_texts(rows, unit.place, source)
    return split_rows(examples, source) if source.document_separator else examples


def rows_before(source: Source, unit: Unit) -> int | None:
    """Return how many examples of a file come before a unit's range; None where only reading them tells."""
    if not unit.start:
        return 0
    if suffix(unit.name) != ".parquet" or source.document_separator:
        return None
    with open_unit(unit, lambda stream: None) as stream:
        metadata = pq.ParquetFile(stream).metadata
        earlier = groups_in(metadata, unit.size_bytes, 0, unit.start)
        return sum(metadata.row_group(index).num_rows for index in earlier)


def read_document(opener: Callable[[], AbstractContextManager[BinaryIO]], name: str) -> dict | Unreadable:
    """Return a document of Word, PDF or another format as an example, or why it has no text."""
    answer, size_bytes = convert_file(opener, name)
    reason = answer.get("error") or why_unfit(answer)
    return answer if reason is None else Unreadable(name, reason, size_bytes)


def read_rows(
    opener: Callable[[], AbstractContextManager[BinaryIO]],
    name: str,
    kind: str,
    span: tuple[int, int] | None = None,
) -> Iterator[dict | Unreadable]:
    """Yield the rows of a file of the given kind, or those that begin in a range of its bytes.

    A file that turns out to have no ranges is read whole with its first one: a single JSON value, JSON lines in
    UTF-16, a server that sends files from their start only.
    """
    if kind == ".json" and holds_json_lines(opener):
        kind = ".jsonl"
    if kind in COLUMNS:
        with opener() as stream:
            encoding = find_stream_encoding(stream)
        if not encoding.is_certain:
            yield Unreadable(name, explain_encoding(encoding), 0)
            return
    with opener() as stream:
        if kind == ".parquet":
            yield from read_parquet(stream, name, span)
        elif kind == ".arrow":
            yield from read_arrow(stream, name)
        elif kind in COLUMNS:
            yield from read_columns(recode(stream, encoding.name), name, kind)
        elif kind == ".json":
            if span is None or not span[0]:
                yield from read_json(as_utf8(stream), name)
        else:
            lines = as_utf8(stream)
            if span is not None and lines is stream and stream.seekable():
                yield from read_json_lines(stream, name, *span)
            elif span is None or not span[0]:
                yield from read_json_lines(lines, name)


def set_texts(examples: Iterator[dict | Unreadable], name: str, source: Source) -> Iterator[dict | Unreadable]:
    """Yield rows with their text where the source says it is."""
    if source.text_field is None and source.text_template is None:
        yield from examples
        return
    for number, example in enumerate(examples, start=1):
        if isinstance(example, dict):
            found = set_text(example, source)
            example = (
                Unreadable(f"{name}: row {number}", found, len(repr(example))) if isinstance(found, str) else found
            )
        yield example


def split_rows(examples: Iterator[dict | Unreadable], source: Source) -> Iterator[dict | Unreadable]:
    """Yield rows whose text is divided at the source's separator."""
    separator = compile_separator(source.document_separator)
    for example in examples:
        if isinstance(example, dict) and isinstance(example.get("text"), str):
            whole = {name: value for name, value in example.items() if name != "page_starts"}
            for text in split_text([example["text"]], separator, MAX_ROW_BYTES):
                yield {**whole, "text": text}
        else:
            yield example


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
        texts = split_text(
            iter(partial(pieces.read, 1 << 20), ""), compile_separator(source.document_separator), MAX_ROW_BYTES
        )
        for number, text in enumerate(texts, start=1):
            position = f"{name}: document {number}"
            reason = f"longer than {MAX_ROW_BYTES:,} bytes" if text is None else why_unfit(text)
            yield {"text": text, **noted} if reason is None else Unreadable(position, reason, 0)


def recode(stream: BinaryIO, encoding: str) -> BinaryIO:
    """Return a stream of UTF-8 for a file in an encoding."""
    return stream if encoding == "utf-8" else io.BufferedReader(Recoded(stream, encoding), 1 << 20)


def as_utf8(stream: BinaryIO) -> BinaryIO:
    """Return a stream of UTF-8 for a file that starts with the mark of another Unicode encoding."""
    buffered = stream if hasattr(stream, "peek") else io.BufferedReader(stream, 1 << 20)
    return recode(buffered, find_mark(buffered.peek(4)[:4]) or "utf-8")


def decode_file(content: bytearray, name: str) -> dict | Unreadable:
    """Return a text file as an example: converted where its encoding is certain, else why it is not read."""
    text = decode(content, name)
    if not isinstance(text, Unreadable):
        return {"text": text}
    if len(content) > MAX_ROW_BYTES:
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


def read_bounded(stream: BinaryIO) -> bytearray:
    """Read a stream to its end, or a little past MAX_ROW_BYTES."""
    content = bytearray()
    while len(content) <= MAX_ROW_BYTES and (piece := stream.read(1 << 20)):
        content += piece
    return content


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
    while position < stop and (line := stream.readline(MAX_ROW_BYTES + 1)):
        position += len(line)
        number += 1
        too_long = len(line) > MAX_ROW_BYTES and not line.endswith(b"\n")
        if not line.isspace():
            row = check_row(parse_json(line, f"{name}:{number}"), f"{name}:{number}", len(line))
            del line
            yield row
        while too_long:
            rest = stream.readline(1 << 20)
            position += len(rest)
            too_long = rest and not rest.endswith(b"\n")


def explain_encoding(encoding: Encoding) -> str:
    """Return why a text in an encoding that is not certain is not read."""
    guess = f"; perhaps {encoding.name}: convert it with iconv -t utf-8 -f {encoding.name}" if encoding.name else ""
    return NOT_UTF8 + guess


def read_columns(stream: BinaryIO, name: str, kind: str) -> Iterator[dict | Unreadable]:
    """Yield the rows of a table. Its first line names the columns, and what it has most of divides them."""
    csv.field_size_limit(MAX_ROW_BYTES)
    first = stream.readline(MAX_ROW_BYTES).decode("utf-8-sig")
    delimiter = "\t" if kind == ".tsv" else max(",;\t|", key=first.count)
    lines = chain([first], (line.decode() for line in iter(partial(stream.readline, MAX_ROW_BYTES), b"")))
    rows = csv.reader(lines, delimiter=delimiter)
    try:
        columns = [column.strip() for column in next(rows, [])]
        named = [column for column in columns if column]
        if len(set(named)) < len(named):
            yield Unreadable(name, f"two columns have one name: {', '.join(named)[:200]}", 0)
            return
        for number, row in enumerate(rows, start=1):
            position, size_bytes = f"{name}: row {number}", sum(map(len, row))
            if not row:
                continue
            if len(row) != len(columns):
                reason = f"{len(row)} values, where the first line names {len(columns)} columns"
                yield Unreadable(position, reason, size_bytes)
            else:
                yield check_row(dict(zip(columns, row, strict=True)), position, size_bytes)
    except csv.Error as error:
        yield Unreadable(f"{name}: after line {rows.line_num}", f"damaged table: {error}", 0)


def holds_json_lines(opener: Callable[[], AbstractContextManager[BinaryIO]]) -> bool:
    """Return whether a .json file is JSON lines, as many on the Hub are: one of its first two lines is an object."""
    with opener() as packed:
        stream = as_utf8(packed)
        first, second = stream.readline(MAX_ROW_BYTES + 1), stream.readline(MAX_ROW_BYTES + 1)
    if first.lstrip()[:1] != b"{" or not second.strip():
        return False
    return any(isinstance(parse_json(line, ""), dict) for line in (first, second))


def read_json(stream: BinaryIO, name: str) -> Iterator[dict | Unreadable]:
    """Yield the elements of a list or the values of an object of objects; any other object is one row."""
    content = read_bounded(stream)
    value, size = parse_json(content, name), len(content)
    del content
    if isinstance(value, dict) and 2 * sum(isinstance(row, dict) for row in value.values()) > len(value):
        value = list(value.values())
    if not isinstance(value, list):
        yield check_row(value, name, size)
        return
    for number, row in enumerate(value, start=1):
        yield check_row(row, f"{name}: row {number}", 0)


def read_parquet(stream: BinaryIO, name: str, span: tuple[int, int] | None = None) -> Iterator[dict | Unreadable]:
    """Yield the rows; for a damaged row group those before the damage, then continue with the next group.

    With a span, only those of the row groups that begin in it; what is wrong with the whole file is for the first one.

    A page is unpacked as a whole, to a size that only its header has. Writers end a page at 1 MB, but check its size
    only every 1,024 rows. Larger pages are refused only in a file with a compression ratio that text never reaches,
    because a file with many long documents has such pages too.
    """
    size_bytes = stream.seek(0, io.SEEK_END)
    try:
        file = pq.ParquetFile(stream, buffer_size=1 << 20, page_checksum_verification=True)
    except Exception as error:
        if span and span[0] and is_damage(error):
            return
        raise
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    suspicious = sum(group.total_byte_size for group in groups) > MAX_COMPRESSION_RATIO * size_bytes
    start, stop = span or (0, size_bytes)
    chosen = groups_in(file.metadata, size_bytes, start, stop)
    promised, listed = file.metadata.num_rows, sum(group.num_rows for group in groups)
    if start == 0 and promised != listed:
        yield Unreadable(name, f"damaged or cut short: {promised:,} rows, of which {listed:,} are listed", 0)
    number = 0
    for index, group in enumerate(groups):
        last = number + group.num_rows
        if index not in chosen:
            number = last
            continue
        page_bytes = int(group.total_byte_size * min(1, 1024 / max(group.num_rows, 1)))
        if suspicious and page_bytes > MAX_ROW_BYTES:
            reason = f"unpacks to pages of {page_bytes:,} bytes, from a file of {size_bytes:,}"
            yield Unreadable(f"{name}: rows {number + 1} to {last}", reason, group.total_byte_size)
            number = last
            continue
        try:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, row_groups=[index], use_threads=False):
                for row in range(len(batch)):
                    number += 1
                    yield convert_row(batch.slice(row, 1), f"{name}: row {number}")
            if number < last:
                raise EOFError("these rows are missing")
        except Exception as error:
            if not is_damage(error):
                raise
            yield Unreadable(f"{name}: rows {number + 1} to {last}", describe_damage(error), group.total_byte_size)
        number = last


def groups_in(metadata: pq.FileMetaData, size_bytes: int, start: int, stop: int) -> range:
    """Return the row groups that begin in a range of a file's bytes.

    Each begins after the earlier ones' part of the file. Where its pages are, damaged metadata can't be asked: Arrow
    ends the process.
    """
    sizes = [max(metadata.row_group(index).total_byte_size, 0) for index in range(metadata.num_row_groups)]
    before = [size * size_bytes // max(sum(sizes), 1) for size in accumulate(sizes, initial=0)]
    starts = [min(start, size_bytes - 1) for start in before[:-1]]
    return range(bisect_left(starts, start), bisect_left(starts, stop))


def read_arrow(stream: BinaryIO, name: str) -> Iterator[dict | Unreadable]:
    """Yield the rows of an Arrow file or stream, as `datasets` writes them; after damage, no more."""
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    if is_file:
        file = pa.ipc.open_file(stream)
        batches = (file.get_batch(index) for index in range(file.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(stream))
    number = 0
    for batch in batches:
        for row in range(len(batch)):
            number += 1
            yield convert_row(batch.slice(row, 1), f"{name}: row {number}")


def convert_row(row: pa.RecordBatch, position: str) -> dict | Unreadable:
    """Convert a batch of one row to an example."""
    if row.nbytes > MAX_ROW_BYTES:
        return Unreadable(position, f"longer than {MAX_ROW_BYTES:,} bytes", row.nbytes)
    try:
        example = row.to_pylist()[0]
    except UnicodeDecodeError:
        return Unreadable(position, NOT_UTF8, row.nbytes)
    except (ValueError, OverflowError) as error:
        return Unreadable(position, f"holds a value out of range: {error}", row.nbytes)
    reason = why_unfit(example)
    return example if reason is None else Unreadable(position, reason, row.nbytes)


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
