# SPDX-License-Identifier: Apache-2.0
"""The sha256 of the files that stages read, remembered in the run folder: an unchanged file is not read again.

As in git's index, a file is unchanged if its path, size, times of change and inode are those of when it was read."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from atomic_files import file_sha256, replace_text


MEMORY = ".hashes"
# A file may change twice within a tick of the system's clock and keep its time, so one this young is read again.
CLOCK_TICK_NS = 50_000_000
LOCK_SECONDS = 10


@contextmanager
def remembered_hashes(folder: Path) -> Iterator[Callable[[Path], str]]:
    """Yield a function that returns a file's sha256, and remember what it read in a folder, if the folder exists."""
    memory, read = folder / MEMORY, {}
    known = load_memory(memory)

    def sha256(path: Path) -> str:
        key, before = os.path.abspath(path), identify(path)
        entry = read.get(key) or known.get(key)
        if entry is not None and entry[:-1] == before:
            return entry[-1]
        started = time.time_ns()
        found = file_sha256(path)
        if identify(path) == before and max(before[1:3]) < started - CLOCK_TICK_NS:
            read[key] = [*before, found]
        return found

    try:
        yield sha256
    finally:
        if read and folder.is_dir():
            lock = FileLock(f"{memory}.lock", timeout=LOCK_SECONDS, fallback_to_soft=False)
            with suppress(OSError), lock:  # a full or read-only disk: the files are read again the next time
                text = json.dumps(load_memory(memory) | read)
                replace_text(memory, f"{checksum(text)}\n{text}")


def identify(path: Path) -> list[int]:
    """Return what changes with a file's content; of a link, that of the file."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def load_memory(path: Path) -> dict[str, list]:
    """Return path -> identity and sha256, as remembered; empty where the file is absent or damaged."""
    try:
        return read_memory(path, *identify(path))
    except OSError:
        return {}


@lru_cache(maxsize=1)
def read_memory(path: Path, *identity: int) -> dict[str, list]:
    """Return the content of a memory of this identity: for a million files, it takes seconds to read."""
    expected, _, text = path.read_text(encoding="utf-8", errors="replace").partition("\n")
    return json.loads(text) if expected == checksum(text) else {}


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
