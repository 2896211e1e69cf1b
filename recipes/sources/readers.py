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
MAX_ROW_BYTES for plain ASCII, a few MB for rows of usual length, and in arrow_rows.py the batch of its file. Formats
that `datasets` reads have its bounds.
"""

import copy
import dataclasses
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import BinaryIO

import fsspec
import pyarrow.parquet as pq

from recipe_config import Source
from sources import row_checks
from sources.arrow_rows import MAX_COMPRESSION_RATIO, groups_in, read_arrow, read_parquet
from sources.conversion import convert_file
from sources.file_kinds import COLUMNS, DOCUMENTS, TABLES, suffix
from sources.packed_files import open_archive, read_tar, unpack
from sources.row_checks import DAMAGED, Unreadable, describe_damage, is_damage, why_unfit
from sources.row_text import set_text
from sources.separators import compile_separator, split_text
from sources.text_encoding import find_stream_encoding
from sources.text_rows import (
    as_utf8,
    decode_file,
    explain_encoding,
    holds_json_lines,
    read_bounded,
    read_columns,
    read_json,
    read_json_lines,
    recode,
    split_file,
)
from sources.units import Unit, load_builder, matching_members, named_errors, why_left_out


# The largest member of a tar that is copied to memory.
COPIED_BYTES = 16 << 20
# Errors of `datasets` on a damaged file.
DAMAGED_FOR_DATASETS = (*DAMAGED, ValueError, TypeError, KeyError)


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
    is_match = matching_members(source) if Path(unit.path) == Path(source.path) else None
    largest = row_checks.MAX_ROW_BYTES + MAX_COMPRESSION_RATIO * unit.size_bytes
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
        examples = set_texts(read_rows(opener, name, kind, source), name, source)
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
    rows = read_rows(partial(open_unit, unit, opened), unit.place, suffix(unit.name), source, (unit.start, unit.stop))
    examples = set_texts(rows, unit.place, source)
    return split_rows(examples, source) if source.document_separator else examples


def rows_before(source: Source, unit: Unit) -> int | None:
    """Return how many examples of a file come before a unit's range; None where only reading them tells, and of a
    damaged file, which read_unit reports."""
    if not unit.start:
        return 0
    if suffix(unit.name) != ".parquet" or source.document_separator:
        return None
    try:
        with open_unit(unit, lambda stream: None) as stream:
            metadata = pq.ParquetFile(stream).metadata
            earlier = groups_in(metadata, unit.size_bytes, 0, unit.start)
            return sum(metadata.row_group(index).num_rows for index in earlier)
    except Exception as error:
        if not is_damage(error):
            raise
        return None


def read_document(opener: Callable[[], AbstractContextManager[BinaryIO]], name: str) -> dict | Unreadable:
    """Return a document of Word, PDF or another format as an example, or why it has no text."""
    answer, size_bytes = convert_file(opener, name)
    reason = answer.get("error") or why_unfit(answer)
    return answer if reason is None else Unreadable(name, reason, size_bytes)


def read_rows(
    opener: Callable[[], AbstractContextManager[BinaryIO]],
    name: str,
    kind: str,
    source: Source,
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
                yield from read_json(as_utf8(stream), name, source)
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
            for text in split_text([example["text"]], separator, row_checks.MAX_ROW_BYTES):
                yield {**whole, "text": text}
                whole.pop("unread_pages", None)  # of the whole file, and counted once
        else:
            yield example
