# SPDX-License-Identifier: Apache-2.0
"""Write an evaluation's folder as a whole, one evaluation at a time: one that is killed leaves the earlier folder.

In a run folder of recipes/, one command at a time works: its lock is taken here too.
"""

import errno
import json
import os
import platform
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import BaseFileLock, FileLock, LeaseCompromise, SoftFileLease, Timeout


BEAT_SECONDS, STALE_SECONDS = 10.0, 40.0  # as in recipes/recovery/run_lock.py
OWN_FILES = {"results.json", "stage.json", "items", "baselines"}


def parts_folder(output: Path) -> Path:
    """Return the folder that keeps finished pieces of an evaluation until all of it is done."""
    return output.resolve().with_name(f".{output.resolve().name}.parts")


def clear_parts(output: Path) -> None:
    """Delete the finished pieces of an evaluation, not the lock that it holds."""
    for piece in parts_folder(output).iterdir():
        if piece.name not in ("lock", "lease"):
            piece.unlink()


def take(path: Path, lease: Path) -> BaseFileLock:
    """Take the kernel's lock on a file, or where the file system has none a lease, as recipes/ do.

    Raises: Timeout: another process holds it.
    """
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
        return lock
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    lock = SoftFileLease(
        lease, lease_duration=STALE_SECONDS, heartbeat_interval=BEAT_SECONDS, on_compromise=stop_at_once
    )
    lock.acquire(timeout=1.0)  # it is taken over from a dead process
    return lock


def stop_at_once(lost: LeaseCompromise) -> None:
    """End this process before it writes what another process, which has its lease, writes too."""
    sys.stderr.write(f"{lost.lock_file}: the lock was taken over, since this process stood still; it ends now\n")
    os._exit(1)


@contextmanager
def touched(path: Path) -> Iterator[None]:
    """Touch a lock's file as long as the block runs: of other machines' processes nothing else is seen everywhere."""
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


@contextmanager
def locked_run(run: Path, stage: str) -> Iterator[None]:
    """Lock a run folder as the stages of recipes/ do, unless the command that started this one has locked it.

    Args: stage: to name to others.
    Raises: SystemExit: another command works in the folder.
    """
    path = run / ".lock"
    try:
        lock = take(path, run / ".lease")
    except Timeout:
        holder = read_holder(path)
        above = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
        if holder.get("host") != platform.node() or holder.get("pid") not in above:
            named = f"process {holder.get('pid')} on {holder.get('host')} ({holder.get('stage')})"
            raise SystemExit(f"{run} is in use by {named}; wait for it, or stop it") from None
        lock = None
    if lock is None:
        yield
        return
    own = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        path.write_text(json.dumps(own | {"command": Path(sys.argv[0]).name, "stage": stage}), encoding="utf-8")
        with touched(path):
            yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def read_holder(path: Path) -> dict:
    """Return what a lock's file says of its holder; empty if it is being written."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


@contextmanager
def locked_output(output: Path) -> Iterator[None]:
    """Let one evaluation at a time write to a folder: the first to end would delete the pieces of the other.

    Raises: SystemExit: another one does.
    """
    parts = parts_folder(output)
    parts.mkdir(parents=True, exist_ok=True)
    try:
        lock = take(parts / "lock", parts / "lease")
    except Timeout:
        raise SystemExit(f"another evaluation writes to {output}; wait for it, or name another --output") from None
    try:
        yield
    finally:
        (parts / "lock").unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            parts.rmdir()  # unless it has pieces to resume from


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_results(output: Path, files: dict[str, str]) -> None:
    """Write {path: text} to a new folder beside the output, then swap the two."""
    output = output.resolve()
    new, old = (output.with_name(f".{output.name}.{suffix}") for suffix in ("tmp", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, text in files.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        write_synced(new / name, text)
    if output.exists():
        output.rename(old)
    new.rename(output)
    shutil.rmtree(old, ignore_errors=True)
