# SPDX-License-Identifier: Apache-2.0
"""Write an evaluation's folder as a whole, one evaluation at a time: one that is killed leaves the earlier folder."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


OWN_FILES = {"results.json", "stage.json", "items", "baselines"}


def parts_folder(output: Path) -> Path:
    """Return the folder that keeps finished pieces of an evaluation until all of it is done."""
    return output.resolve().with_name(f".{output.resolve().name}.parts")


@contextmanager
def locked_output(output: Path) -> Iterator[None]:
    """Let one evaluation at a time write to a folder: the first to end would delete the pieces of the other.

    Raises: SystemExit: another one does.
    """
    parts = parts_folder(output)
    parts.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parts / "lock", timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise SystemExit(f"another evaluation writes to {output}; wait for it, or name another --output") from None
    except OSError as error:  # a file system without locks
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    try:
        yield
    finally:
        with suppress(OSError):
            (parts / "lock").unlink(missing_ok=True)
            parts.rmdir()  # unless it has pieces to resume from
        lock.release()


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
