# SPDX-License-Identifier: Apache-2.0
"""The files that lie in the run folder itself, beside the outputs of stages, with the bytes and sha256 of each.

`run_files.json` has an entry for a file from when it is written for the last time: recipe.yaml and environment.json at
each start, metrics, samples, chronicle, status and training.json at the end of training, the plan, the leak audit and
the report when they are made. Until then the manifest of each checkpoint has the hash of what metrics, samples and
chronicle held at its step: they only grow, so a later file begins with it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atomic_files import CHECKSUM, RECORD, StaleStageError, file_sha256, hash_files, read_json, write_json


RUN_FILES = "run_files.json"
APPENDED = ("metrics.jsonl", "samples.jsonl", "chronicle.jsonl")
OF_TRAINING = (*APPENDED, "chronicle.md", "status.json", "training.json", "recipe.yaml", "environment.json")
OF_REPORT = ("report.html", "summary.txt")
ALL = (*OF_TRAINING, *OF_REPORT, "plan.json", "preflight.json", "dropped_samples.jsonl")
REMEDY = (
    f"Restore {RUN_FILES} from a copy, or move it and the folder model/ away and run the recipe again: training then "
    "checks its files against its last checkpoint, writes the model from it and records them, or starts at step 0 "
    "where there is none"
)


def record_run_files(run: Path, names: tuple[str, ...], forget: tuple[str, ...] = ()) -> None:
    """Record files of a run folder as they are now, if they exist, and forget others.

    Raises: StaleStageError: the record is damaged; a new one would lack the files that others recorded.
    """
    if problem := find_record_damage(run):
        raise StaleStageError(f"{run / RUN_FILES} {problem}. {REMEDY}")
    files = recorded_run_files(run)
    for name in {*names, *forget}:
        files.pop(name, None)
        path = run / name
        if name in names and path.is_file():
            files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    files = dict(sorted(files.items()))
    write_json(run / RUN_FILES, {"format": 1, "sha256": hash_files(files), "files": files})


@contextmanager
def recording(run: Path, *names: str) -> Iterator[None]:
    """Record files that the block writes: a kill in it leaves them unrecorded, not damaged.

    Raises: StaleStageError: as record_run_files.
    """
    record_run_files(run, (), forget=names)
    yield
    record_run_files(run, names)


def recorded_run_files(run: Path) -> dict[str, dict]:
    """Return name -> bytes and sha256; empty where there is no record, as in runs of earlier versions."""
    return (read_json(run / RUN_FILES) or {}).get("files", {})


def find_record_damage(run: Path) -> str | None:
    """Return what is wrong with the record itself; None if nothing is, or if there is none."""
    if not (run / RUN_FILES).exists():
        return None
    try:
        record = read_json(run / RUN_FILES) or {}
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if record.keys() != {"format", "sha256", "files"} or record["format"] != 1:
        return "cannot be read"
    return None if hash_files(record["files"]) == record["sha256"] else "is not as it was written"


def find_damaged_run_files(run: Path) -> dict[str, str]:
    """Return name -> what is wrong, of the recorded files and of the record itself."""
    if problem := find_record_damage(run):
        return {RUN_FILES: problem}
    recorded = recorded_run_files(run)
    found = {name: find_difference(run / name, file) for name, file in recorded.items()}
    found = {name: problem for name, problem in found.items() if problem}
    if "training.json" not in recorded and must_be_recorded(run):
        found[RUN_FILES] = "lacks the files of training, which is finished"
    return found


def must_be_recorded(run: Path) -> bool:
    """Return whether training is finished, by a version that records its files, and checksums too."""
    finished = (read_json(run / "status.json") or {}).get("status") == "finished"
    return finished and CHECKSUM in (read_json(run / "model" / RECORD) or {})


def recorded_beginnings(checkpoint: Path, run: Path) -> dict[str, dict] | None:
    """Return the entry of what each file that only grows held at a checkpoint.

    None for a checkpoint of another run, and of an earlier version, which recorded none.
    """
    if checkpoint.resolve().parent.parent != run.resolve():
        return None
    return (read_json(checkpoint / "manifest.json") or {}).get("records")


def find_difference(path: Path, recorded: dict, grows: bool = False) -> str | None:
    """Return how a file differs from its entry; None if it does not.

    Args: grows: only its first bytes are recorded.
    """
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size < recorded["bytes"] or (size > recorded["bytes"] and not grows):
        return f"{size:,} bytes, {recorded['bytes']:,} when it was recorded"
    try:
        found = describe_beginning(path, recorded["bytes"])
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if found == recorded else "its sha256 is not the recorded one"


def describe_beginning(path: Path, num_bytes: int) -> dict:
    """Return the entry of the first bytes of a file."""
    digest, left = hashlib.sha256(), num_bytes
    with path.open("rb") as file:
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return {"bytes": num_bytes, "sha256": digest.hexdigest()}


def appended_sizes(run: Path) -> dict[str, int]:
    """Return the present bytes of the files that only grow."""
    return {name: (run / name).stat().st_size for name in APPENDED if (run / name).exists()}
