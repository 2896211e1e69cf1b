# SPDX-License-Identifier: Apache-2.0
"""A lock on the run folder: one process at a time works in it, and the next one learns which."""

import errno
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from recipe_config import RecipeError
from recovery.agreement import from_main
from recovery.chronicle import utc_now


LOCK = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class RunLockedError(RecipeError):
    """Another process works in the run folder; the message names it."""


@contextmanager
def run_lock(run: Path) -> Iterator[str | None]:
    """Lock a run folder.

    The kernel releases the lock when its holder ends, however it ends, so the folder of a killed run is free; the file
    only names the holder. Between machines this needs a file system that passes locks on: NFS 4, Lustre mounted with
    `flock`, GPFS.

    Yields: the process that was killed while it held the lock, or None.
    Raises:
        RunLockedError: another process holds it.
        RecipeError: the file system has no locks.
    """
    run.mkdir(parents=True, exist_ok=True)
    path = run / LOCK
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        acquire(lock, run)
    except Timeout:
        raise RunLockedError(
            f"{run} is in use by {read_holder(path) or 'another process'}; wait for it, stop it, or set another "
            "run.output_dir"
        ) from None
    killed = read_holder(path)
    holder = {"pid": os.getpid(), "host": platform.node(), "since": utc_now(), "command": Path(sys.argv[0]).name}
    path.write_text(json.dumps(holder), encoding="utf-8")
    try:
        yield killed
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def acquire(lock: FileLock, run: Path) -> None:
    """Take a lock, or raise at once.

    Raises:
        Timeout: another process holds it.
        RecipeError: the file system has no locks.
    """
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise RecipeError(
            f"{run} cannot be locked, so two runs could write into it: {file_system(run)} has no flock "
            f"({os.strerror(error.errno)}). Mount it with locks (Lustre: -o flock; NFS: version 4), or set "
            "run.output_dir to a folder on another file system."
        ) from error


def file_system(folder: Path) -> str:
    """Return the type and mount point of the file system that a folder is on."""
    folder = folder.resolve()
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return "the file system"
    mounts = [line.split()[1:3] for line in lines]
    place, kind = max((mount for mount in mounts if folder.is_relative_to(mount[0])), key=lambda mount: len(mount[0]))
    return f"the file system {kind} mounted on {place}"


def read_holder(path: Path) -> str | None:
    """Return the process that a lock file names; None where it names none."""
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder['pid']} on {holder['host']} ({holder['command']}, since {holder['since']})"
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def is_held(run: Path) -> bool:
    """Return whether a process works in a run folder now; changes nothing.

    Raises: RecipeError: the file system has no locks.
    """
    if not (run / LOCK).exists():
        return False
    lock = FileLock(run / LOCK, timeout=0, fallback_to_soft=False)
    try:
        acquire(lock, run)
    except Timeout:
        return True
    lock.release()
    return False


@contextmanager
def held_run(run: Path, accelerator: Accelerator) -> Iterator[str | None]:
    """Lock a run folder for all processes, as run_lock does for one."""
    with ExitStack() as stack:
        yield from_main(accelerator, lambda: stack.enter_context(run_lock(run)))
