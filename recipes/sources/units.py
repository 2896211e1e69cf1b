# SPDX-License-Identifier: Apache-2.0
"""What a source of the recipe consists of: files, members of an archive, URLs, the data files of a Hub dataset.

Their order depends on their names alone. source_readers.py reads them.
"""

import dataclasses
import fnmatch
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import fsspec
import httpx2

from recipe_config import RecipeError, Source


TABLES = (".jsonl", ".json", ".parquet")
TEXTS = (".txt", ".md", ".text")
PACKED = (".gz", ".zst")
FULLY_HASHED_BYTES = 64 << 20


@dataclass(frozen=True)
class Unit:
    """One thing to read: a file or a URL, of `size_bytes` (0 where unknown), or a member of an archive.

    A data file of a Hub dataset is its URL; `by_datasets` where only the library `datasets` can read it.
    """

    path: str
    member: str = ""
    size_bytes: int = 0
    by_datasets: bool = False

    @property
    def sort_key(self) -> bytes:
        """The bytes of the name, which are the same in every locale."""
        if self.member or "://" in self.path:
            return (self.member or self.path).encode(errors="surrogatepass")
        return os.fsencode(self.path)

    @property
    def name(self) -> str:
        """What the unit is called in positions; bytes of a file name that are not UTF-8 are spelled out."""
        return self.sort_key.decode(errors="backslashreplace")


def list_units(source: Source) -> list[Unit]:
    """List what a source consists of.

    Raises: RecipeError: nothing there, nothing matches, or a path that is neither local, a URL nor a Hub dataset id.
    """
    where = f"data.sources: {source.name}: path {source.path!r}"
    patterns = list_patterns(source)
    local = Path(source.path)
    if local.is_dir():
        found = [file for pattern in patterns or ["**/*"] for file in local.glob(pattern) if file.is_file()]
        known = [file for file in found if patterns or suffix(file.name) in TABLES + TEXTS]
        units = [Unit(file.as_posix(), size_bytes=file.stat().st_size) for file in known]
    elif local.is_file() and local.suffix in (".whl", ".zip"):
        try:
            members = [
                info
                for info in open_archive(local.as_posix(), local.stat().st_mtime_ns).infolist()
                if not info.is_dir()
            ]
        except zipfile.BadZipFile as error:  # its index stands at the end, so nothing is left of one that was cut
            raise RecipeError(f"{where}: damaged or cut short: {error}; fetch it anew") from error
        matching = [m for m in members if any(fnmatch.fnmatchcase(m.filename, p) for p in patterns or ["*"])]
        units = [Unit(local.as_posix(), info.filename, info.file_size) for info in matching]
    elif local.is_file():
        units = [Unit(local.as_posix(), size_bytes=local.stat().st_size)]
    elif "://" in source.path:
        units = list_url(source)
    elif is_hub_dataset(source):
        units = list_hub_dataset(source)
    else:
        raise RecipeError(f"{where}: no such file or folder, and not a Hub dataset id (org/name) or URL")
    if not units:
        wanted = f"that matches data_files={source.data_files!r}" if patterns else f"of type {TABLES + TEXTS}"
        raise RecipeError(f"{where}: no file {wanted}")
    return sorted({unit.sort_key: unit for unit in units}.values(), key=lambda unit: unit.sort_key)


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


def list_patterns(source: Source) -> list[str]:
    return [source.data_files] if isinstance(source.data_files, str) else source.data_files or []


def list_url(source: Source) -> list[Unit]:
    with named_errors(source):
        filesystem, root = fsspec.core.url_to_fs(source.path)
        patterns = list_patterns(source)
        if not patterns and filesystem.isdir(root):
            everything = filesystem.find(root, detail=True)
            found = {file: info for file, info in everything.items() if suffix(file) in TABLES + TEXTS}
        else:
            found = {}
            for wanted in [f"{root.rstrip('/')}/{pattern}" for pattern in patterns] or [root]:
                found |= filesystem.glob(wanted, detail=True)
        files = {file: info for file, info in found.items() if info["type"] == "file"}
        return [Unit(filesystem.unstrip_protocol(f), size_bytes=info.get("size") or 0) for f, info in files.items()]


def list_hub_dataset(source: Source) -> list[Unit]:
    """List the data files of a split as `datasets` finds them, as hf:// URLs that hold the commit."""
    with named_errors(source):
        files = {str(split): urls for split, urls in load_builder(source).config.data_files.items()}
        if source.split not in files:
            raise ValueError(f"no split {source.split!r}; there are {', '.join(files)}")
        filesystem, _ = fsspec.core.url_to_fs("hf://")
        plain = are_plain_tables(source)
        return [
            Unit(url, size_bytes=filesystem.size(url) or 0, by_datasets=not plain or suffix(url) not in TABLES)
            for url in files[source.split]
        ]


def load_builder(source: Source):
    """Return what `datasets` reads a Hub dataset with; it knows its card, its configurations and its files."""
    return load_builder_of(source.path, source.config, tuple(list_patterns(source)), source.revision)


@lru_cache(maxsize=16)
def load_builder_of(path: str, config: str | None, patterns: tuple[str, ...], revision: str | None):
    from datasets import load_dataset_builder

    return load_dataset_builder(path, name=config, data_files=list(patterns) or None, revision=revision)


def are_plain_tables(source: Source) -> bool:
    """Whether the files of a Hub dataset are JSON or Parquet without options in its card, for `read_file` to read.

    It passes over a damaged row, where `datasets` gives up the file, and leaves a text that looks like a date.
    """
    from datasets import BuilderConfig
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    builder = load_builder(source)
    common = {field.name for field in dataclasses.fields(BuilderConfig)}
    options = [field for field in dataclasses.fields(builder.config) if field.name not in common]
    as_usual = all(getattr(builder.config, field.name) == field.default for field in options)
    return as_usual and isinstance(builder, Json | Parquet)


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
        digest.update(os.fsencode(Path(file).relative_to(source.path).as_posix()) + f"\0{size_bytes}\0".encode())
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


@lru_cache(maxsize=2)
def open_archive(path: str, modified_ns: int) -> zipfile.ZipFile:
    """Open an archive once for all its members: the index of a wheel of 37,000 files takes 0.1 s to read.

    Args:
        path: of the archive.
        modified_ns: when it was last written, so that a newer one under the same name is opened anew.
    """
    return zipfile.ZipFile(path)


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
