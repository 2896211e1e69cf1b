# SPDX-License-Identifier: Apache-2.0
"""A lock on the run folder: one stage of one command at a time works in it, and the next one learns which.

The kernel releases the lock when its holder ends, however it ends, so the folder of a killed run is free at once.
Where the file system has no flock, or does not pass it on between machines, the holder's heartbeat decides: a lock of
another machine is taken over after STALE_SECONDS without one.
"""

import errno
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, LeaseCompromise, SoftFileLease, Timeout

from recipe_config import Recipe, RecipeError
from recovery.chronicle import utc_now
from run_folder import is_finished


LOCK, LEASE = ".lock", ".lease"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
BEAT_SECONDS, STALE_SECONDS = 10.0, 40.0
TAKEOVER_SECONDS = 1.0  # for a lease to be taken over from a dead process of this machine


class RunLockedError(RecipeError):
    """Another process works in the run folder; the message names it."""


@contextmanager
def stage_lock(recipe: Recipe, name: str, overwrite: bool) -> Iterator[bool]:
    """Lock the run folder if a stage has work to do; yield whether it has.

    Raises:
        StaleStageError: its output is out of date, as in is_finished.
        RunLockedError: another process works in the folder.
    """
    if is_finished(recipe, name, overwrite):
        yield False
        return
    with run_lock(Path(recipe.run.output_dir), name):
        yield not is_finished(recipe, name, overwrite)  # another process may have done it since


@contextmanager
def run_lock(run: Path, stage: str) -> Iterator[str | None]:
    """Lock a run folder for a stage.

    Yields: the process that was killed while it held the lock, or None.
    Raises:
        RunLockedError: another process holds it.
        RecipeError: the folder cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = acquire(run)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise RecipeError(
            f"{run} cannot be written ({error.strerror}): correct its owner or mode, or set another run.output_dir"
        ) from error
    try:
        wait_for_heartbeat(run)
        killed = describe_holder(run)
        with named_holder(run / LOCK, stage):
            yield killed
    finally:
        lock.release()


def acquire(run: Path, wait: bool = True) -> BaseFileLock:
    """Take the kernel's lock, or where there is none a lease, which this process loses if it stands still for long.

    Args: wait: for the lease of a process of another machine, which may be dead.
    Raises: RunLockedError: another process holds it.
    """
    lock = FileLock(run / LOCK, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
        return lock
    except Timeout:
        raise refuse(run) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    lease = make_lease(run / LEASE)
    try:
        lease.acquire(timeout=TAKEOVER_SECONDS)
    except Timeout:
        if not wait or not is_elsewhere(run):
            raise refuse(run) from None
        note_waiting(run)
        try:
            lease.acquire(timeout=STALE_SECONDS + 2 * BEAT_SECONDS)
        except Timeout:
            raise refuse(run) from None
    return lease


def lock_file(path: Path, wait: bool) -> BaseFileLock:
    """Take the kernel's lock on a file, or where there is none a lease beside it; release it with `release`.

    Args: wait: for ever, until its holder releases it or is dead.
    Raises: Timeout: another process holds it.
    """
    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
        return lock
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    lease = make_lease(path.with_name(f"{path.name}.lease"))
    lease.acquire(timeout=-1 if wait else TAKEOVER_SECONDS)
    return lease


def make_lease(path: Path) -> SoftFileLease:
    return SoftFileLease(
        path, lease_duration=STALE_SECONDS, heartbeat_interval=BEAT_SECONDS, on_compromise=stop_at_once
    )


def stop_at_once(lost: LeaseCompromise) -> None:
    """End this process before it writes what another process, which has its lease, writes too."""
    sys.stderr.write(f"{lost.lock_file}: the lock was taken over, since this process stood still; it ends now\n")
    os._exit(1)


def wait_for_heartbeat(run: Path) -> None:
    """Watch the lock of another machine's process, which the kernel may not have seen, until it is surely dead.

    Raises: RunLockedError: it lives.
    """
    if not is_elsewhere(run):
        return
    note_waiting(run)
    first, until = heartbeat(run), time.monotonic() + STALE_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, STALE_SECONDS / 10))
        if heartbeat(run) != first:
            raise refuse(run)


def note_waiting(run: Path) -> None:
    text = f"note: {run} was in use by {describe_holder(run)}; waiting {STALE_SECONDS:.0f} s for a sign of life\n"
    sys.stderr.write(text)


def heartbeat(run: Path) -> int | None:
    """Return when the holder last touched the lock; opened anew, since NFS asks the server only then."""
    with suppress(FileNotFoundError), (run / LOCK).open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns
    return None


@contextmanager
def named_holder(path: Path, stage: str) -> Iterator[None]:
    """Name this process in a lock's file, and touch the file as long as the block runs."""
    holder = {"pid": os.getpid(), "host": platform.node(), "since": utc_now(), "command": Path(sys.argv[0]).name}
    path.write_text(json.dumps(holder | {"stage": stage}), encoding="utf-8")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(path)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        path.unlink(missing_ok=True)


def read_holder(run: Path) -> dict | None:
    """Return what a lock's file says of its holder; None where it names none."""
    try:
        holder = json.loads((run / LOCK).read_bytes())
        return holder if {"pid", "host", "command", "since"} <= holder.keys() else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def describe_holder(run: Path) -> str | None:
    """Return the process that a lock's file names, in words; None where it names none."""
    if (holder := read_holder(run)) is None:
        return None
    stage = f"{holder['stage']}, " if "stage" in holder else ""  # absent from locks of earlier versions
    return f"process {holder['pid']} on {holder['host']} ({stage}{holder['command']}, since {holder['since']})"


def is_elsewhere(run: Path) -> bool:
    """Return whether the lock's file names a process of another machine."""
    holder = read_holder(run)
    return holder is not None and holder["host"] != platform.node()


def refuse(run: Path) -> RunLockedError:
    holder = describe_holder(run) or "another process"
    return RunLockedError(f"{run} is in use by {holder}; wait for it, stop it, or set another run.output_dir")


def is_held(run: Path) -> bool:
    """Return whether a process works in a run folder now; changes nothing."""
    if not (run / LOCK).exists():
        return False
    if is_elsewhere(run):
        return time.time() - (run / LOCK).stat().st_mtime < STALE_SECONDS
    try:
        acquire(run, wait=False).release()
    except RunLockedError:
        return True
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        return Path(f"/proc/{(read_holder(run) or {}).get('pid', 'none')}").exists()
    return False
