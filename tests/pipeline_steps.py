# SPDX-License-Identifier: Apache-2.0
"""Steps of pipelines for tests, in a module of their own that a worker anywhere can import."""

import atexit
import os
import signal
import time
from pathlib import Path

from recipe_config import RecipeError


def write(documents, rank: int, world_size: int, folder: Path) -> None:
    """Write the documents of a task, and append to `runs` that it ran."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "runs").open("a") as runs:
        runs.write(f"{rank} {os.getpid()}\n")
    lines = [f"{document.id} {len(document.text)} {document.text}\n" for document in documents or []]
    (folder / f"{rank:05d}.txt").write_text("".join(lines))


def wait_for(documents, rank: int, world_size: int, file: Path):
    """Note this process in `<file>.<rank>` and go on when the file is there."""
    partial = file.with_name(f".{file.name}.{rank}")  # this process may be ended at any moment
    partial.write_text(str(os.getpid()))
    partial.rename(file.with_name(f"{file.name}.{rank}"))
    while not file.exists():
        time.sleep(0.05)
    return documents


def refuse(documents, rank: int, world_size: int, bad: int):
    if rank == bad:
        raise RecipeError("law: a.txt: not text", "law: b.txt: not text either")
    return documents


def break_down(documents, rank: int, world_size: int, bad: int):
    if rank == bad:
        raise LookupError(f"nothing at {rank}")
    return documents


def be_killed(documents, rank: int, world_size: int, bad: int, unless: Path):
    """Die as by the kernel's hand for want of memory, unless a file is there."""
    if rank == bad and not unless.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return documents


def abort_at_exit(documents, rank: int, world_size: int):
    """Have the interpreter abort when it is taken down, as it does when a thread of Arrow's wants it then."""
    atexit.register(os.abort)
    return documents
