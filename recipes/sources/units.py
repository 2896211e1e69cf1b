# SPDX-License-Identifier: Apache-2.0
"""List the units of a source: files, members of an archive, URLs, the data files of a Hub dataset.

Their order depends on their names alone. readers.py reads them.
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
    """A file, a URL or a member of an archive.

    Attributes:
        path: of the file or the archive, or the URL; a data file of a Hub dataset has an hf:// URL.
        member: name in the archive, or empty.
        size_bytes: 0 if unknown.
        by_datasets: whether only the library `datasets` can read it.
    """

    path: str
    member: str = ""
    size_bytes: int = 0
    by_datasets: bool = False

    @property
    def sort_key(self) -> bytes:
        """Return the bytes of the name, which do not depend on the locale."""
        if self.member or "://" in self.path:
            return (self.member or self.path).encode(errors="surrogatepass")
        return os.fsencode(self.path)

    @property
    def name(self) -> str:
        """Return the name used in positions; bytes of a file name that are not UTF-8 are escaped."""
        return self.sort_key.decode(errors="backslashreplace")


def list_units(source: Source) -> list[Unit]:
    """Return the units of a source, sorted by name.

    Raises: RecipeError: no unit, or a path that is neither local, a URL nor a Hub dataset id.
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
        except zipfile.BadZipFile as error:  # the index is at the end, so a truncated archive has none
            raise RecipeError(f"{where}: damaged or cut short: {error}; download it again") from error
        matching = [m for m in members if any(fnmatch.fnmatchcase(m.filename, p) for p in patterns or ["*"])]
        units = [Unit(local.as_posix(), info.filename, info.file_size) for info in matching]
    elif local.is_file():
        units = [Unit(local.as_posix(), size_bytes=local.stat().st_size)]
    elif "://" in source.path:
        units = list_url(source)
    elif is_hub_dataset(source):
        units = list_hub_dataset(source)
    else:
        remedy = "name a file, a folder or a URL"
        if source.path.count("/") == 1 and not source.path.startswith(("/", "./", "../", "~")):
            remedy += ", or, if it is a dataset of the Hub, add its commit or branch, such as revision: main"
        raise RecipeError(f"{where}: no such file or folder in {Path.cwd()}, and the Hub was not asked; {remedy}")
    if not units:
        wanted = f"that matches data_files={source.data_files!r}" if patterns else f"of type {TABLES + TEXTS}"
        raise RecipeError(f"{where}: no file {wanted}")
    return sorted({unit.sort_key: unit for unit in units}.values(), key=lambda unit: unit.sort_key)


def list_all_units(sources: list[Source]) -> dict[str, list[Unit]]:
    """Return source -> units, for all sources.

    Raises: RecipeError: the problems of all sources.
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
    """List the data files of a split as `datasets` finds them, as hf:// URLs with the commit."""
    with named_errors(source):
        files = {str(split): urls for split, urls in load_builder(source).config.data_files.items()}
        if source.split not in files:
            raise ValueError(f"no split {source.split!r}; the splits are {', '.join(files)}")
        filesystem, _ = fsspec.core.url_to_fs("hf://")
        plain = are_plain_tables(source)
        return [
            Unit(url, size_bytes=filesystem.size(url) or 0, by_datasets=not plain or suffix(url) not in TABLES)
            for url in files[source.split]
        ]


def load_builder(source: Source):
    """Return the builder that `datasets` reads a Hub dataset with; it has the card, configurations and files."""
    return load_builder_of(source.path, source.config, tuple(list_patterns(source)), source.revision)


@lru_cache(maxsize=16)
def load_builder_of(path: str, config: str | None, patterns: tuple[str, ...], revision: str | None):
    from datasets import load_dataset_builder

    return load_dataset_builder(path, name=config, data_files=list(patterns) or None, revision=revision)


def are_plain_tables(source: Source) -> bool:
    """Return whether a Hub dataset is JSON or Parquet without options in its card, so that `read_file` can read it.

    `read_file` skips a damaged row, where `datasets` gives up the file, and does not convert a text to a date.
    """
    from datasets import BuilderConfig
    from datasets.packaged_modules.json.json import Json
    from datasets.packaged_modules.parquet.parquet import Parquet

    builder = load_builder(source)
    common_fields = {field.name for field in dataclasses.fields(BuilderConfig)}
    options = [field for field in dataclasses.fields(builder.config) if field.name not in common_fields]
    has_defaults = all(getattr(builder.config, field.name) == field.default for field in options)
    return has_defaults and isinstance(builder, Json | Parquet)


def is_hub_dataset(source: Source) -> bool:
    """Return whether a source is on the Hub: it has a revision or a config, and there is no such local path.

    Without either, `clients/acme` is a folder: as org/name it has the form of a Hub id, and the Hub's answer to a
    mistyped folder would cost time and tell the Hub its name.
    """
    parts = source.path.split("/")
    stated = source.revision is not None or source.config is not None
    has_form = len(parts) == 2 and all(parts) and not source.path.startswith((".", "~"))
    return stated and has_form and not Path(source.path).exists()


def source_fingerprint(source: Source) -> str:
    """Return a hash that identifies the content of a source.

    Local files: over names, sizes and bytes; of a file larger than 64 MiB only the first and last 64 KiB. URLs: over
    names and sizes. A Hub dataset: a constant, since the recipe names its revision.
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
    """Return the suffix of a file without that of its compression: `.jsonl` of `a.jsonl.gz`."""
    path = Path(name)
    return Path(path.stem).suffix if path.suffix in PACKED else path.suffix


@lru_cache(maxsize=2)
def open_archive(path: str, modified_ns: int) -> zipfile.ZipFile:
    """Open an archive once for all its members: reading the index of a wheel of 37,000 files takes 0.1 s.

    Args:
        path: of the archive.
        modified_ns: when it was last written, so that a newer archive with the same name is opened again.
    """
    return zipfile.ZipFile(path)


@contextmanager
def named_errors(source: Source) -> Iterator[None]:
    """Turn the errors that libraries raise into a RecipeError that names the source."""
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
