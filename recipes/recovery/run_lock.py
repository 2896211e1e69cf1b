# SPDX-License-Identifier: Apache-2.0
"""One process at a time works in a run folder; the next is told who that is."""

import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from accelerate import Accelerator

from recipe_config import RecipeError
from recovery.agreement import from_main


LOCK = ".lock"


class RunLockedError(RecipeError):
    """Another process works in the run folder; the message names it."""


@contextmanager
def run_lock(run: Path) -> Iterator[str | None]:
    """Hold a run folder.

    The kernel lets go of the lock when its holder ends, however it ends, so what a killed run left is taken over: the
    file only says who it was. That holds between the machines of a cluster too where the file system passes locks on,
    as NFS 4, Lustre with `flock` and GPFS do.

    Yields: who held it and is gone, or None.
    Raises: RunLockedError: another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = run / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = describe_holder(os.read(descriptor, 4096))
            os.close(descriptor)
            raise RunLockedError(
                f"{run} is in use by {holder or 'another process'}; wait for it, stop it, or set another "
                "run.output_dir"
            ) from None
        # The holder before may have deleted the file after it was opened here: then this lock locks nothing.
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                break
        except FileNotFoundError:
            pass
        os.close(descriptor)
    left = describe_holder(os.read(descriptor, 4096))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": platform.node(), "since": now, "command": Path(sys.argv[0]).name}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    try:
        yield left
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def describe_holder(content: bytes) -> str | None:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']} ({holder['command']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        return None


def is_held(run: Path) -> bool:
    """Return whether a process works in a run folder now."""
    try:
        descriptor = os.open(run / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def held_run(run: Path, accelerator: Accelerator) -> Iterator[str | None]:
    """Hold a run folder for all processes; see run_lock."""
    with ExitStack() as stack:
        yield from_main(accelerator, lambda: stack.enter_context(run_lock(run)))
