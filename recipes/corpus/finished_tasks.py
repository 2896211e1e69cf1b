# SPDX-License-Identifier: Apache-2.0
"""The mark of a finished task: the files that it wrote, each with a checksum, for the next try, which keeps them.

A disk may damage a file between a kill and the resume, and after a power failure a file may lack what was written.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from atomic_files import replace_text


written: list[Path] = []  # by the task that this process runs


def note_written(*paths: Path) -> None:
    """Note files that this process's task has written, whole and for the last time."""
    written.extend(paths)


def checksum(path: Path) -> str:
    """Return a hash of a file's content: one against damage, which need not withstand an attacker."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def mark_finished(mark: Path) -> None:
    """Write the mark of this process's task, with what `note_written` was called with."""
    files = {os.path.relpath(path, mark.parent): checksum(path) for path in written}
    mark.parent.mkdir(parents=True, exist_ok=True)
    replace_text(mark, json.dumps(files))


def drop_damaged(marks: Iterable[Path], description: str, threads: int) -> None:
    """Delete the marks of tasks whose files are not as they were written, with a line on the terminal for each."""
    marks = list(marks)
    with ThreadPoolExecutor(threads) as pool:
        for mark, damaged in zip(marks, pool.map(find_damaged, marks), strict=True):
            if damaged:
                text = f"{description}: task {mark.name} runs again: {damaged} is not as it was written\n"
                sys.stderr.write(text)
                mark.unlink()


def find_damaged(mark: Path) -> str | None:
    """Return the first file of a task that is not as its mark says; an empty mark is of an earlier version."""
    if not (content := mark.read_bytes()):
        return None
    try:
        files = dict(json.loads(content))
    except (ValueError, TypeError):
        return str(mark)
    for name, recorded in files.items():
        path = mark.parent / name
        try:
            if checksum(path) == recorded:
                continue
        except (OSError, ValueError):
            pass  # the mark's list is damaged, or the file is missing
        return os.path.normpath(path)
    return None
