# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, their hashes, and the record in a finished stage's output.

The record, `stage.json`, holds the settings and inputs of the stage, and the size and sha256 of each file of its
output. run_folder.py writes it and compares it with the recipe."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from recipe_config import RecipeError


RECORD = "stage.json"
TRASH = ".trash."  # the name of a folder that is being deleted begins with it
RECORD_FORMAT = 1
CHECKSUM = "record_sha256"


class StaleStageError(RecipeError):
    """An output is missing, damaged, or made from another recipe; the message names the difference and the remedy."""


def read_record(folder: Path) -> dict | None:
    """Return a finished stage's record; None where there is no file.

    Raises: StaleStageError: the file is not a record.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not {"settings", "inputs", "sha256", "files"} <= record.keys():
        raise StaleStageError(
            f"{folder / RECORD} cannot be read. Restore it from a copy, or delete {folder} and run its stage again"
        )
    return record


def with_checksum(record: dict) -> dict:
    """Return a record with the hash of its content, so that verify_run.py sees a changed setting in it."""
    return record | {CHECKSUM: checksum_of(record)}


def checksum_of(record: dict) -> str:
    content = {key: value for key, value in record.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_unchanged(record: dict) -> bool:
    """Return whether a record has the content that it was written with; earlier versions wrote no checksum."""
    return record.get(CHECKSUM, checksum_of(record)) == checksum_of(record)


def discard(folder: Path) -> None:
    """Delete a folder; an interrupted deletion leaves only a hidden one."""
    empty_trash(folder)
    folder.rename(trash_of(folder))
    empty_trash(folder)


def empty_trash(folder: Path) -> None:
    """Delete what an interrupted deletion of a folder left."""
    shutil.rmtree(trash_of(folder), ignore_errors=True)


def trash_of(folder: Path) -> Path:
    return folder.with_name(f"{TRASH}{folder.name}")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder that replaces `folder` if the block ends without error."""
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    yield partial
    for path in partial.iterdir():
        sync(path)
    if folder.exists():
        discard(folder)
    partial.rename(folder)
    sync(folder.parent)


def hash_files(files: dict[str, dict]) -> str:
    """Return the hash of a record's list of files, which holds the hash of each."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically: after a crash the file is the old or the new one, whole."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically: after a crash it is the old or the new one, whole."""
    partial = path.with_name(f".{path.name}.tmp")
    partial.unlink(missing_ok=True)  # a planted link would lead the text out of the run folder
    try:
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
        sync(partial)
    except OSError:  # a full disk needs the room
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)
    sync(path.parent)


def append_text(path: Path, text: str) -> None:
    """Add text to a file, all of it or, where the disk is full, nothing. Raises: OSError: nothing was added."""
    left = memoryview(text.encode("utf-8"))
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(size)
            raise


def read_json(path: Path) -> dict | None:
    """Return the object in a JSON file; None where the file is absent or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_json_lines(path: Path, *keys: str) -> list[dict]:
    """Return the entries of a file of JSON lines, without a truncated last line; empty where there is no file.

    Raises: StaleStageError: a line is no JSON object, or lacks one of the keys.
    """
    if not path.exists():
        return []
    entries = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # splitlines splits at U+2028 too
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entries.append({**json.loads(line)})
            missing = [key for key in keys if key not in entries[-1]]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
        except (ValueError, TypeError, RecursionError) as error:
            raise StaleStageError(
                f"{path}:{number} cannot be read ({error}). Restore the file from a copy, or move it away"
            ) from error
    return entries


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_items(folder: Path, sha256: Callable[[Path], str] = file_sha256) -> dict[str, str]:
    """Return task -> sha256 of the benchmarks in a folder."""
    return {path.stem: sha256(path) for path in sorted(folder.glob("*.jsonl"))}


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
