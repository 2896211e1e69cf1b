# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of fine-tuning, which TRL's trainer writes: hashes of their files, and the precision of steps."""

import sys
from pathlib import Path

from atomic_files import CHECKSUM, discard, file_sha256, is_unchanged, read_json, with_checksum, write_json
from recipe_config import RecipeError


NAMES = "checkpoint-[0-9]*"
HASHES, KEPT_CHECKPOINTS = "sha256.json", 2  # file in a checkpoint
PRECISION = "precision.json"  # beside the checkpoints
WRITTEN_LAST = "trainer_state.json"  # by the trainer


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def seal(checkpoint: Path) -> None:
    """Write the hash of each file of a checkpoint beside them, and keep the newest two checkpoints."""
    write_json(checkpoint / HASHES, {path.name: file_sha256(path) for path in checkpoint.iterdir()})
    # The trainer's own limit deletes by time, and so the newest after the clock was set back.
    for older in sorted(checkpoint.parent.glob(NAMES), key=step_of)[:-KEPT_CHECKPOINTS]:
        discard(older)


def newest_checkpoint(checkpoints: Path) -> str | None:
    """Return the newest whole checkpoint, after deleting those that are not as they were written; None for none.

    One without hashes is of an earlier version, or half-made if it lacks what is written last.
    """
    for folder in sorted(checkpoints.glob(NAMES), key=step_of, reverse=True):
        hashes = read_json(folder / HASHES) if (folder / HASHES).exists() else {}
        damaged = [
            name
            for name, sha256 in (hashes or {}).items()
            if not (folder / name).is_file() or file_sha256(folder / name) != sha256
        ]
        if hashes is not None and not damaged and read_json(folder / WRITTEN_LAST):
            return str(folder)
        sys.stderr.write(f"finetune: does not resume from {folder}, which is damaged or half-made; it is deleted\n")
        discard(folder)
    return None


def write_precision(checkpoints: Path, precision: str) -> None:
    """Record the precision in which all steps are computed."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_json(checkpoints / PRECISION, with_checksum({"mixed_precision": precision}))


def kept_precision(checkpoints: Path) -> str | None:
    """Return the precision of the steps before; None where an earlier version recorded none.

    Raises: RecipeError: the record is damaged.
    """
    path = checkpoints / PRECISION
    if not path.exists():
        return None
    record = read_json(path) or {}
    if CHECKSUM not in record or not is_unchanged(record):
        raise RecipeError(
            f"{path} is not as it was written, so the precision of the steps before is not known. Restore it from a "
            f"copy, or move {checkpoints} away to start again"
        )
    return record["mixed_precision"]
