# SPDX-License-Identifier: Apache-2.0
"""From a source of the recipe to its examples: files, folders, archives, URLs and Hub datasets read the same way.

A source is a list of units (a file, a member of an archive, a Hub dataset), in an order that depends on their names
alone. Each unit yields examples, mappings that `extract_text` of the recipe's data.py turns into documents: the rows
of JSON lines, JSON or Parquet as they are, any other file as `{"text": its content}`. Each carries the name of its
unit as `path`. What cannot be read is yielded as an `Unreadable`, never dropped in silence.
"""

import fnmatch
import gzip
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import fsspec
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from recipe_config import RecipeError, Source


TABLES = (".jsonl", ".json", ".parquet")
TEXTS = (".txt", ".md", ".text")
PACKED = (".gz", ".zst")
FULLY_HASHED_BYTES = 64 << 20
# A longer row or file is refused, whatever it unpacks to: reading takes about four times this in memory.
MAX_ROW_BYTES = 256 << 20
# What the readers raise on a file that is damaged or cut short.
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError, pa.ArrowInvalid, zipfile.BadZipFile)


@dataclass(frozen=True)
class Unit:
    """One thing to read: a file of `size_bytes`, a member of an archive, or a Hub dataset (size unknown: 0)."""

    path: str
    member: str = ""
    size_bytes: int = 0

    @property
    def name(self) -> str:
        return self.member or self.path


@dataclass(frozen=True)
class Unreadable:
    """A piece of a unit that is not what its format says, with where it stands and why."""

    position: str
    reason: str
    size_bytes: int


def list_units(source: Source) -> list[Unit]:
    """List what a source consists of.

    Raises: RecipeError: nothing there, nothing matches, or a path that is neither local, a URL nor a Hub dataset id.
    """
    where = f"data.sources: {source.name}: path {source.path!r}"
    patterns = [source.data_files] if isinstance(source.data_files, str) else source.data_files
    local = Path(source.path)
    if local.is_dir():
        found = [file for pattern in patterns or ["**/*"] for file in local.glob(pattern) if file.is_file()]
        known = [file for file in found if patterns or suffix(file.name) in TABLES + TEXTS]
        units = [Unit(file.as_posix(), size_bytes=file.stat().st_size) for file in known]
    elif local.is_file() and local.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(local) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
        matching = [m for m in members if any(fnmatch.fnmatchcase(m.filename, p) for p in patterns or ["*"])]
        units = [Unit(local.as_posix(), info.filename, info.file_size) for info in matching]
    elif local.is_file():
        units = [Unit(local.as_posix(), size_bytes=local.stat().st_size)]
    elif "://" in source.path:
        with named_errors(source):
            filesystem, root = fsspec.core.url_to_fs(source.path)
            if not patterns and filesystem.isdir(root):
                files = [file for file in filesystem.find(root) if suffix(file) in TABLES + TEXTS]
            else:
                roots = [f"{root.rstrip('/')}/{pattern}" for pattern in patterns] if patterns else [root]
                files = [file for pattern in roots for file in filesystem.glob(pattern)]
            units = [Unit(filesystem.unstrip_protocol(file), size_bytes=filesystem.size(file) or 0) for file in files]
    elif is_hub_dataset(source):
        return [Unit(source.path)]
    else:
        raise RecipeError(f"{where}: no such file or folder, and not a Hub dataset id (org/name) or URL")
    if not units:
        wanted = f"that matches data_files={source.data_files!r}" if patterns else f"of type {TABLES + TEXTS}"
        raise RecipeError(f"{where}: no file {wanted}")
    return sorted(set(units), key=lambda unit: unit.name)


def list_all_units(sources: list[Source]) -> dict[str, list[Unit]]:
    """List the units of every source by its name.

    Raises: RecipeError: with what is wrong with any of them.
    """
    units, problems = {}, []
    for source in sources:
        try:
            units[source.name] = list_units(source)
        except (RecipeError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise RecipeError(*problems)
    return units


def is_hub_dataset(source: Source) -> bool:
    parts = source.path.split("/")
    return len(parts) == 2 and all(parts) and not Path(source.path).exists() and not source.path.startswith((".", "~"))


def source_fingerprint(source: Source) -> str:
    """Identify the content of a source: a hash over its units' names and bytes, or a Hub dataset's id and revision.

    Of a file larger than 64 MiB the size and the first and last 64 KiB stand for the rest, so that finding out that
    nothing changed takes seconds whatever the size of the corpus.
    """
    digest = hashlib.sha256()
    if not Path(source.path).exists():
        return digest.hexdigest() if is_hub_dataset(source) else hash_names(list_units(source))
    files = sorted({unit.path for unit in list_units(source)})
    for file in files:
        size_bytes = Path(file).stat().st_size
        digest.update(f"{Path(file).relative_to(source.path).as_posix()}\0{size_bytes}\0".encode())
        with open(file, "rb") as stream:
            if size_bytes <= FULLY_HASHED_BYTES:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
            else:
                digest.update(stream.read(1 << 16))
                stream.seek(-(1 << 16), io.SEEK_END)
                digest.update(stream.read())
    return digest.hexdigest()


def hash_names(units: list[Unit]) -> str:
    return hashlib.sha256(repr([(unit.path, unit.size_bytes) for unit in units]).encode()).hexdigest()


def suffix(name: str) -> str:
    """Return the type of a file, whatever it is packed with: `.jsonl` of `a.jsonl.gz`."""
    path = Path(name)
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


def read_unit(source: Source, unit: Unit) -> Iterator[dict | Unreadable]:
    """Yield the examples of one unit; what is damaged in it as `Unreadable`, the rest all the same."""
    examples = read_hub_dataset(source) if is_hub_dataset(source) else read_stream(unit)
    number = 0
    with named_errors(source):
        while True:
            number += 1
            try:
                example = next(examples, None)
            except DAMAGED as error:
                yield Unreadable(f"{unit.name}: row {number}", f"damaged or cut short: {error}", unit.size_bytes)
                return
            if example is None:
                return
            if isinstance(example, dict):
                yield {**example, "path": unit.name}
            elif isinstance(example, Unreadable):
                yield example
            else:
                yield Unreadable(f"{unit.name}: row {number}", "not a JSON object", len(json.dumps(example)))


@contextmanager
def named_errors(source: Source) -> Iterator[None]:
    """Turn what a library raises about a source into an error that names it."""
    try:
        yield
    except RecipeError:
        raise
    except (OSError, ValueError, httpx2.HTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(
            f"data.sources: {source.name}: path {source.path!r}: {reason}; check path, config, split, revision and "
            "data_files, and the connection"
        ) from error


def read_hub_dataset(source: Source) -> Iterator[dict]:
    """Stream a Hub dataset. The order is the repository's own: no shuffle buffer, whose resume loses rows."""
    from datasets import load_dataset

    yield from load_dataset(
        source.path,
        name=source.config,
        data_files=source.data_files,
        split=source.split,
        revision=source.revision,
        streaming=True,
    )


@lru_cache(maxsize=2)
def open_archive(path: str) -> zipfile.ZipFile:
    """Open an archive once for all its members: the index of a wheel of 37,000 files takes 0.1 s to read."""
    return zipfile.ZipFile(path)


def open_unit(unit: Unit):
    if unit.member:
        return open_archive(unit.path).open(unit.member)
    if unit.path.endswith(".zst"):
        return io.BufferedReader(ZstdStream(fsspec.open(unit.path, "rb").open()))
    return fsspec.open(unit.path, "rb", compression="infer").open()


class ZstdStream(io.RawIOBase):
    """The content of a .zst file; one that is cut short is an error, where zstandard's own reader just ends.

    It is fed in pieces of 4 KiB, which can unpack to at most about 128 MiB.
    """

    def __init__(self, packed):
        self.packed, self.frame, self.unpacked = packed, zstandard.ZstdDecompressor().decompressobj(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.unpacked:
            chunk = self.frame.unused_data if self.frame.eof else self.packed.read(1 << 12)
            if self.frame.eof:
                chunk = chunk or self.packed.read(1 << 12)
                if not chunk:
                    return 0
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            elif not chunk:
                raise EOFError("the file ends inside a frame")
            self.unpacked = self.frame.decompress(chunk)
        size = min(len(buffer), len(self.unpacked))
        buffer[:size], self.unpacked = self.unpacked[:size], self.unpacked[size:]
        return size


def read_stream(unit: Unit) -> Iterator[object]:
    """Yield the rows of a file, or the file as one row; neither is held in memory beyond MAX_ROW_BYTES."""
    kind = suffix(unit.name)
    with open_unit(unit) as stream:
        if kind == ".parquet":
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=256):
                yield from batch.to_pylist()
        elif kind == ".jsonl":
            for number, line in enumerate(read_lines(stream), start=1):
                if line.strip():
                    yield parse_json(line, f"{unit.name}:{number}")
        elif kind == ".json":
            content = parse_json(stream.read(MAX_ROW_BYTES + 1), unit.name)
            if isinstance(content, Unreadable):
                yield content
            else:
                yield from content.values() if isinstance(content, dict) else content
        else:
            content = stream.read(MAX_ROW_BYTES + 1)
            text = decode(content, unit.name)
            yield text if isinstance(text, Unreadable) else {"text": text}


def read_lines(stream) -> Iterator[bytes]:
    """Yield lines, of one longer than MAX_ROW_BYTES only so much that it is seen to be too long."""
    while line := stream.readline(MAX_ROW_BYTES + 1):
        yield line
        rest = line
        while len(rest) > MAX_ROW_BYTES and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_ROW_BYTES + 1)


def decode(content: bytes, position: str) -> str | Unreadable:
    """Decode UTF-8 text that a document can hold: of bounded length, without NUL."""
    if len(content) > MAX_ROW_BYTES:
        return Unreadable(position, f"longer than {MAX_ROW_BYTES:,} bytes", len(content))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Unreadable(f"{position}: byte {error.start}", "not UTF-8", len(content))
    return Unreadable(position, "holds NUL", len(content)) if "\0" in text else text


def parse_json(content: bytes, position: str) -> object:
    """Parse JSON, or return an `Unreadable`."""
    text = decode(content, position)
    if isinstance(text, Unreadable):
        return text
    try:
        value = json.loads(text)
        written = json.dumps(value, ensure_ascii=False)
        written.encode()
    except UnicodeEncodeError:  # UTF-8 cannot hold it
        return Unreadable(position, "lone surrogate", len(content))
    except (ValueError, RecursionError):
        return Unreadable(position, "broken JSON", len(content))
    return Unreadable(position, "holds NUL", len(content)) if "\\u0000" in written else value
