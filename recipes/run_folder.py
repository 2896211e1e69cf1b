# SPDX-License-Identifier: Apache-2.0
"""The run folder: whether each stage's output is up to date, and how it appears all at once.

A stage writes into a hidden folder beside its output, syncs it to disk and renames it when it is complete: an output
folder that exists is complete, and a killed stage leaves only the hidden folder. A stage whose settings and inputs are
unchanged is skipped. Otherwise a cheap one runs again, and any other is refused without --overwrite."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atomic_files import (
    CHECKSUM,
    RECORD,
    RECORD_FORMAT,
    TRASH,
    StaleStageError,
    discard,
    file_sha256,
    hash_files,
    is_unchanged,
    read_json,
    read_record,
    sync,
    with_checksum,
    write_json,
)
from file_hashes import remembered_hashes
from recipe_config import Recipe
from stages import STAGES, output_folder


REPLACED = "checkpoints/replaces.json"  # names the model that training with --overwrite replaces, until its end


def input_hashes(recipe: Recipe, name: str) -> dict[str, str | None]:
    """Return the hash of each input's files; None where that stage did not run: results are optional."""
    return {
        upstream: hash_input(read_record(output_folder(recipe, upstream)), upstream, name)
        for upstream in STAGES[name].inputs
    }


def hash_input(record: dict | None, upstream: str, name: str) -> str | None:
    """Return the hash of the files that stage `name` reads from the output of `upstream`, whose record is given."""
    if record is None or STAGES[name].derived:
        return record and record["sha256"]
    return hash_files(
        {path: file for path, file in record["files"].items() if path not in STAGES[upstream].descriptions}
    )


def differences(recipe: Recipe, name: str, once: bool = False) -> list[str] | None:
    """List what changed since a stage's output was made; None where there is no output.

    Args: once: also compare the settings that Stage.once returns.
    """
    record = read_record(output_folder(recipe, name))
    if record is None:
        return None
    stage = STAGES[name]
    found = compare(record["settings"], json.loads(json.dumps(stage.settings(recipe))), "")
    if found and stage.earlier_settings:  # the record may be of an earlier version
        earlier = compare(record["settings"], json.loads(json.dumps(stage.earlier_settings(recipe))), "")
        found = min(found, earlier, key=len)
    if once:
        found += compare(record.get("once", {}), stage.once(recipe), "")
    return found + [
        f"the output of {upstream} changed"
        for upstream, sha256 in input_hashes(recipe, name).items()
        if record["inputs"].get(upstream) != sha256
    ]


def compare(before: object, now: object, path: str) -> list[str]:
    """List the leaves in which two settings differ, as `key.path was X, is Y`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        return [line for key in keys for line in compare(before.get(key), now.get(key), f"{path}.{key}".strip("."))]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [line for index, (a, b) in pairs for line in compare(a, b, f"{path}.{index}")]
    return [] if before == now else [f"{path} was {json.dumps(before)}, is {json.dumps(now)}"]


def is_finished(recipe: Recipe, name: str, overwrite: bool = False) -> bool:
    """Return whether a stage has nothing left to do.

    Raises: StaleStageError: when its output is there but out of date, unless it is derived or overwrite is set.
    """
    changed = differences(recipe, name, once=overwrite)
    if changed is None:
        return False
    if changed and not overwrite and not STAGES[name].derived:
        raise StaleStageError(
            f"{output_folder(recipe, name)} is out of date: {'; '.join(changed)}. "
            f"Run with --overwrite to replace it, or set another run.output_dir."
        )
    return not changed


def starts_again(run: Path) -> bool:
    """Return whether training with --overwrite starts at step 0: it was not stopped while it replaced this model.

    If it was, it goes on. See resuming.start_again.
    """
    record = read_record(run / "model")
    return record is not None and replaced_model(run) != record["sha256"]


def replaced_model(run: Path) -> str | None:
    """Return the hash of the model that training with --overwrite replaces; None where it replaces none.

    Raises: StaleStageError: the file that names it is damaged, and to start again would delete the checkpoints.
    """
    path = run / REPLACED
    if not path.exists():
        return None
    record = read_json(path) or {}
    if not ({"sha256"} <= record.keys() <= {"sha256", CHECKSUM} and is_unchanged(record)):
        raise StaleStageError(
            f"{path} is not as it was written, so whether the checkpoints beside it are of training that goes on is "
            f"not known. Restore it from a copy, or move {path.parent} away to start at step 0"
        )
    return record["sha256"]


def require(recipe: Recipe, name: str, reader: tuple[int, int] = (0, 1)) -> Path:
    """Return the output folder of an input stage, after checking its files; verify_run.py always reads all of them.

    Args: reader: (k, n) checks every n-th file from the k-th on, for n processes that share the work.

    Raises: StaleStageError: it is missing, out of date or damaged; with the command that makes it.
    """
    changed = differences(recipe, name)
    if changed is None or changed:
        state = "is missing" if changed is None else f"is out of date: {'; '.join(changed)}"
        script = "recipes/run_recipe.py" if STAGES[name].derived else STAGES[name].script
        raise StaleStageError(
            f"{output_folder(recipe, name)} {state}; rerun: python {script} with the same --config"
            + (" and --overwrite" if changed and not STAGES[name].derived else "")
        )
    folder = output_folder(recipe, name).resolve()  # a link, where runs share documents
    with remembered_hashes(folder.parent) as sha256:
        damage = find_damaged_files(folder, reader, sha256)
    if damage:
        raise StaleStageError(
            f"{output_folder(recipe, name)} is damaged: {'; '.join(damage[:5])}. Restore it from a copy, or delete it "
            f"and rerun {STAGES[name].script}"
        )
    return output_folder(recipe, name)


def find_damaged_files(
    folder: Path, reader: tuple[int, int] = (0, 1), sha256: Callable[[Path], str] = file_sha256
) -> list[str]:
    """List the files of a finished stage that differ from its record; `reader` as in require."""
    record, (process, processes), problems = read_record(folder), reader, []
    if hash_files(record["files"]) != record["sha256"]:
        problems.append(f"{RECORD}: the list of files is not the one it was made with")
    for name, recorded in sorted(record["files"].items())[process::processes]:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{name}: outside of the folder")
        elif not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != recorded["bytes"]:
            problems.append(f"{name}: {path.stat().st_size:,} bytes, {recorded['bytes']:,} when it was made")
        else:
            try:
                found = sha256(path)
            except OSError as error:
                problems.append(f"{name} cannot be read: {error.strerror}")
                continue
            if found != recorded["sha256"]:
                problems.append(f"{name}: its sha256 is not the one of when it was made")
    return problems


@contextmanager
def new_output(recipe: Recipe, name: str, made_from: dict[str, dict] | None = None) -> Iterator[Path]:
    """Yield the folder that a stage writes into; it becomes the stage's output if the block ends without error.

    The same recipe and inputs give the same folder, so a stage can continue from what an interrupted try left in it.

    Args: made_from: of describe_inputs, where it was computed before the stage's work; None: as it is now.
    """
    final = output_folder(recipe, name)
    final.parent.mkdir(parents=True, exist_ok=True)  # which remembers the hashes of the inputs
    made_from = made_from or describe_inputs(recipe, name)
    identity = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    partial = final.parent / f".{final.name}.{identity[:12]}.tmp"
    partial.mkdir(exist_ok=True)
    yield partial
    write_record(partial, name, made_from)
    replaced = final.parent / f".{final.name}.{identity[:12]}.old"
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    sync(final.parent)
    for leftover in final.parent.glob(f".{final.name}.*"):
        discard(leftover)


def describe_inputs(recipe: Recipe, name: str) -> dict[str, dict]:
    """Return what decides a stage's output, in the form of its record."""
    stage = STAGES[name]
    return {"settings": stage.settings(recipe), "inputs": input_hashes(recipe, name), "once": stage.once(recipe)}


def write_record(folder: Path, name: str, made_from: dict[str, dict]) -> None:
    """Sync every file of a stage's output to disk and write `stage.json` beside them."""
    paths = [folder / file for file in STAGES[name].files if (folder / file).exists()]
    if not STAGES[name].files:
        # No output has a hidden name, but .eval_results, a folder that the Hub reads. What a killed try was writing
        # has one, and what could not be deleted, as where few files may be open.
        for trash in folder.glob(f"{TRASH}*"):
            shutil.rmtree(trash)
        for leftover in folder.rglob(".*"):
            if not leftover.is_dir():
                leftover.unlink()
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD)
    files = {}
    for path in paths:
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        sync(path)
    record = {"format": RECORD_FORMAT, "stage": name, **made_from, "sha256": hash_files(files), "files": files}
    write_json(folder / RECORD, with_checksum(json.loads(json.dumps(record))))


def record_stage(recipe: Recipe, name: str) -> None:
    """Record the output of a stage that wrote it in place."""
    write_record(output_folder(recipe, name), name, describe_inputs(recipe, name))
