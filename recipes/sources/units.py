# SPDX-License-Identifier: Apache-2.0
"""List the units of a source: files, members of an archive, URLs, the data files of a Hub dataset.

Their order depends on their names alone. readers.py reads them; inventory.py counts them, with all that is not read.
"""

import dataclasses
import fnmatch
import hashlib
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import fsspec
import httpx2
from fsspec.utils import glob_translate

from atomic_files import file_sha256
from recipe_config import RecipeError, Source
from sources.file_kinds import ARCHIVES, CHOSEN, HIDDEN, TABLES, UNNAMED, is_hidden, suffix, why_not_read
from sources.folders import walk
from sources.inventory import Inventory
from sources.packed_files import DAMAGED_PACKING, list_tar, list_zip


ONCE_FULLY_HASHED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Unit:
    """A file, a URL, a member of a zip or a whole tar; or a range of bytes of one (ranges.py).

    Attributes:
        path: of the file or the archive, or the URL; a data file of a Hub dataset has an hf:// URL.
        member: name in a zip, or empty.
        size_bytes: of the whole file, 0 if unknown.
        by_datasets: whether only the library `datasets` can read it.
        in_folder: whether it is a member of a zip in a folder: then its name starts with the zip's.
        start, stop: the range of bytes that is read; stop is None for a whole file.
    """

    path: str
    member: str = ""
    size_bytes: int = 0
    by_datasets: bool = False
    in_folder: bool = False
    start: int = 0
    stop: int | None = None

    @property
    def sort_key(self) -> bytes:
        """Return the bytes of the name, which do not depend on the locale."""
        if self.in_folder:
            return os.fsencode(self.path) + b"/" + self.member.encode(errors="surrogatepass")
        if self.member or "://" in self.path:
            return (self.member or self.path).encode(errors="surrogatepass")
        return os.fsencode(self.path)

    @property
    def name(self) -> str:
        """Return the name used in positions; bytes of a file name that are not UTF-8 are escaped."""
        return self.sort_key.decode(errors="backslashreplace")

    @property
    def place(self) -> str:
        """Return the name, and where a range begins that is not a file's first."""
        return f"{self.name} from byte {self.start}" if self.start else self.name

    @property
    def is_sized(self) -> bool:
        """Return whether the size is known; a local file of 0 bytes is empty."""
        return bool(self.size_bytes) or "://" not in self.path

    @property
    def range_bytes(self) -> int:
        """Return how many bytes are read, 0 if unknown."""
        return self.size_bytes if self.stop is None else self.stop - self.start


@dataclass
class Listing:
    """The units of a source, sorted by name, and the counts of all of its files."""

    units: list[Unit]
    inventory: Inventory


def list_units(source: Source) -> list[Unit]:
    """Return the units of a source, sorted by name.

    Raises: RecipeError: as list_source, or no unit, or more bytes would be left out than read.
    """
    listing = list_source(source)
    listing.inventory.check()
    return listing.units


def list_source(source: Source) -> Listing:
    """Return the units of a source and the counts of its files.

    Raises: RecipeError: a path that is neither local, a URL nor a Hub dataset id, or a file that may not be read.
    """
    where = f"data.sources: {source.name}: path {source.path!r}"
    inventory, local = Inventory(source), Path(source.path)
    with named_errors(source):
        if local.is_dir():
            units = list_folder(source, inventory)
        elif local.is_file() and (suffix(local.name) in ARCHIVES or local.suffix.lower() == ".whl"):
            try:
                units = list_archive(source, inventory, local.as_posix(), in_folder=False)
            except DAMAGED_PACKING as error:  # the index of a zip is at its end, so a truncated one has none
                raise RecipeError(f"{where}: damaged or cut short: {error}; download it again") from error
        elif local.is_file():
            unit = Unit(local.as_posix(), size_bytes=local.stat().st_size)
            reason = why_not_read(local.name, source.ignore, has_columns(source), is_named=True)
            inventory.add(unit.path, unit.size_bytes, reason)
            units = [unit] if reason is None else []
            refuse_unreadable(source, units, [])
        elif "://" in source.path:
            units = list_url(source, inventory)
        elif is_hub_dataset(source):
            units = list_hub_dataset(source)
            for unit in units:
                inventory.add(unit.path, unit.size_bytes, None)
        else:
            remedy = "name a file, a folder or a URL"
            if source.path.count("/") == 1 and not source.path.startswith(("/", "./", "../", "~")):
                remedy += ", or, if it is a dataset of the Hub, add its commit or branch, such as revision: main"
            raise RecipeError(f"{where}: no such file or folder in {Path.cwd()}, and the Hub was not asked; {remedy}")
    units = sorted({unit.sort_key: unit for unit in units}.values(), key=lambda unit: unit.sort_key)
    return Listing(units, inventory)


def list_all_sources(sources: list[Source]) -> dict[str, Listing]:
    """Return source -> units and counts, for all sources.

    Raises: RecipeError: the problems of all sources.
    """
    listings, problems = {}, []
    for source in sources:
        try:
            listings[source.name] = list_source(source)
            listings[source.name].inventory.check()
        except (RecipeError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise RecipeError(*problems)
    return listings


def take(
    source: Source,
    inventory: Inventory,
    path: str,
    relative: str,
    size_bytes: int,
    is_match: Callable[[str], bool] | None,
) -> bool:
    """Return whether a file is read, and count it.

    Args:
        source: of the file.
        inventory: counts the file.
        path: of the file, for the terminal.
        relative: its path below the source or archive.
        size_bytes: its size.
        is_match: says whether the recipe's patterns name the file; None if it has none for such files.
    """
    reason = why_left_out(source, relative, is_match)
    inventory.add(path, size_bytes, reason)
    return reason is None


def why_left_out(source: Source, relative: str, is_match: Callable[[str], bool] | None) -> str | None:
    """Return why a file below a source is not read; None if it is."""
    if is_match and not is_match(relative):
        return UNNAMED
    if is_hidden(relative) and not names_hidden(source):
        return HIDDEN
    return why_not_read(posixpath.basename(relative), source.ignore, has_columns(source), is_match is not None)


def has_columns(source: Source) -> bool:
    """Return whether the recipe says which columns of a table are the text."""
    return source.text_field is not None or source.text_template is not None


def names_hidden(source: Source) -> bool:
    """Return whether the recipe names a hidden file or folder."""
    parts = [part for pattern in list_patterns(source) for part in pattern.split("/")]
    return any(part.startswith(".") and part not in (".", "..") for part in parts)


def list_folder(source: Source, inventory: Inventory) -> list[Unit]:
    """List the files of a folder, of the folders that it links to, and of its zips."""
    patterns = [posixpath.normpath(pattern) for pattern in list_patterns(source)]
    compiled = [re.compile(glob_translate(pattern)) for pattern in patterns]
    is_match = (lambda relative: any(pattern.match(relative) for pattern in compiled)) if compiled else None
    deep = not patterns or any("**" in pattern for pattern in patterns)
    depth = None if deep else max(pattern.count("/") for pattern in patterns)
    units, found = [], walk(source.path, depth, enter_hidden=names_hidden(source))
    folder = (Path(source.path) / "x").as_posix()[:-1]
    for relative, size_bytes in found.files:
        path = folder + relative
        reason = why_left_out(source, relative, is_match)
        if suffix(relative) in ARCHIVES and reason not in CHOSEN:
            refuse_unreadable(source, [Unit(path)], [])
            try:
                units += list_archive(source, inventory, path, in_folder=True)
            except DAMAGED_PACKING:
                inventory.add(path, size_bytes, "a damaged archive")
        else:
            inventory.add(path, size_bytes, reason)
            units += [Unit(path, size_bytes=size_bytes)] if reason is None else []
    for relative, size_bytes, reason in found.others:
        inventory.add(folder + relative, size_bytes, reason)
    refuse_unreadable(source, units, found.refused)
    return units


def list_archive(source: Source, inventory: Inventory, path: str, in_folder: bool) -> list[Unit]:
    """List the members of a zip or wheel; a tar is one unit, which is read from its start to its end.

    Args:
        source: of the archive.
        inventory: counts the members.
        path: of the archive.
        in_folder: whether the source is a folder; then data_files names archives, else members.

    Raises: RecipeError: two members of a zip that would be read have one name.
    """
    is_match = None if in_folder else matching_members(source)
    is_tar = suffix(path) == ".tar"
    in_tar = list_tar(path, os.stat(path).st_mtime_ns) if is_tar else []
    members = [(name, size_bytes) for name, size_bytes, _ in in_tar] if is_tar else list_zip(path)
    taken = [
        Unit(path, name, size_bytes, in_folder=in_folder)
        for name, size_bytes in members
        if take(source, inventory, f"{path}/{name}", name, size_bytes, is_match)
    ]
    if is_tar:
        return [Unit(path, size_bytes=os.stat(path).st_size)] if taken else []
    # A zip is read by name, which finds the last of them.
    if twice := [name for name, files in Counter(unit.member for unit in taken).items() if files > 1]:
        raise RecipeError(
            f"data.sources: {source.name}: {path}: {len(twice):,} of its names stand for several files each, such as "
            f"{twice[0]!r}, of which only the last would be read; unpack it, and give each file a name of its own"
        )
    return taken


def matching_members(source: Source) -> Callable[[str], bool] | None:
    """Return the function that says whether data_files names a member of the archive that is the source."""
    patterns = list_patterns(source)
    return (lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)) if patterns else None


def refuse_unreadable(source: Source, units: list[Unit], refused: list[str]) -> None:
    """Raise a RecipeError that names the files and folders that this user may not read."""
    refused = sorted({*refused, *(unit.path for unit in units if not os.access(unit.path, os.R_OK))})
    if refused:
        more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise RecipeError(
            f"data.sources: {source.name}: path {source.path!r}: may not be read by this user: "
            f"{', '.join(refused[:5])}{more}; change their rights, or move them out of the folder"
        )


def list_patterns(source: Source) -> list[str]:
    return [source.data_files] if isinstance(source.data_files, str) else source.data_files or []


def list_url(source: Source, inventory: Inventory) -> list[Unit]:
    """List the files at a URL: one file, those of a folder of a known type, or those that patterns name."""
    filesystem, root = fsspec.core.url_to_fs(source.path)
    patterns, is_match = list_patterns(source), None
    if not patterns and filesystem.isdir(root):
        found = filesystem.find(root, detail=True)
    else:
        found, is_match = {}, lambda relative: True
        for wanted in [f"{root.rstrip('/')}/{pattern}" for pattern in patterns] or [root]:
            found |= filesystem.glob(wanted, detail=True)
    files = {file: info for file, info in found.items() if info["type"] == "file"}
    return [
        Unit(filesystem.unstrip_protocol(file), size_bytes=info.get("size") or 0)
        for file, info in files.items()
        if take(
            source,
            inventory,
            filesystem.unstrip_protocol(file),
            file.removeprefix(root).strip("/") or posixpath.basename(file),
            info.get("size") or 0,
            is_match,
        )
    ]


def list_hub_dataset(source: Source) -> list[Unit]:
    """List the data files of a split as `datasets` finds them, as hf:// URLs with the commit."""
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


def source_fingerprint(source: Source, sha256: Callable[[Path], str] = file_sha256, whole: bool = True) -> str:
    """Return a hash that identifies the content of a source.

    Local files: over names, sizes and bytes, and over `ignore` where it chooses among the members of an archive. URLs:
    over names and sizes. A Hub dataset: a constant, since the recipe names its revision.

    Args:
        source: of the recipe.
        sha256: returns a file's hash.
        whole: False: the fingerprint of earlier versions, which read only both ends of files larger than 64 MiB and
            knew nothing of `ignore`.
    """
    digest = hashlib.sha256()
    if not Path(source.path).exists():
        return digest.hexdigest() if is_hub_dataset(source) else hash_names(list_source(source).units)
    units = list_source(source).units
    if whole and source.ignore and any(unit.member or suffix(unit.path) == ".tar" for unit in units):
        digest.update(repr(sorted(set(source.ignore))).encode())
    files = sorted({unit.path for unit in units})
    folder = (Path(source.path) / "x").as_posix()[:-1]
    for file in files:
        path = Path(file)
        size_bytes = path.stat().st_size
        is_below = file.startswith(folder)
        relative = file.removeprefix(folder) if is_below else path.relative_to(source.path).as_posix()
        digest.update(os.fsencode(relative) + f"\0{size_bytes}\0".encode())
        if whole or size_bytes <= ONCE_FULLY_HASHED_BYTES:
            digest.update(bytes.fromhex(sha256(path)))
        else:
            with open(file, "rb") as stream:
                digest.update(stream.read(1 << 16))
                stream.seek(-(1 << 16), io.SEEK_END)
                digest.update(stream.read())
    return digest.hexdigest()


def hash_names(units: list[Unit]) -> str:
    return hashlib.sha256(repr([(unit.path, unit.size_bytes) for unit in units]).encode()).hexdigest()


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
