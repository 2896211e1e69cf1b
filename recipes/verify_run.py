# SPDX-License-Identifier: Apache-2.0
"""Check a run folder, finished or running: every file against its recorded size and sha256.

In:   a run folder; nothing else is needed, and nothing in it is changed.
Out:  a line for each stage, each checkpoint, each folder that is published, the files of the run folder itself and the
      state of the training, the same for the models of members/, and one for each damaged file; the exit code is 1 if
      anything is damaged or out of date. What nothing records is named as such.

    python recipes/verify_run.py runs/legal-quickstart

A stage is out of date if it was made from another version of an input than the run folder now holds.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from atomic_files import CHECKSUM, RECORD, StaleStageError, file_sha256, is_unchanged, read_json, read_record
from publishing.hub_transfer import TransferError, read_records
from recipe_config import RecipeError
from recipe_loading import run_command
from recorded_files import ALL, RUN_FILES, find_damaged_run_files, find_difference, recorded_run_files
from recovery.chronicle import read_chronicle
from recovery.run_lock import is_held
from recovery.stored_tensors import foreign_folders, list_checkpoints, list_damage
from recovery.tuning_checkpoints import HASHES, PRECISION, kept_precision
from run_folder import REPLACED, find_damaged_files, hash_input, replaced_model
from stages import STAGES


RECORD_KEYS = {"format", "stage", "settings", "inputs", "once", "sha256", "files", CHECKSUM}
RELEASES = ("release_tokenizer", "release_dataset", "revisions/step-*")  # folders with a manifest.json
HUB_RECORDS = ("publish.json", "revisions.json")
UNREADABLE = "cannot be read: "
CHECKED = {*RELEASES[:2], "revisions", "checkpoints", "members", "finetune_checkpoints"}


def check_stage(run: Path, name: str) -> list[tuple[str, bool]]:
    """Return the state of a stage's output in words, and whether it is in order: a line for each damaged file."""
    folder = run / STAGES[name].output
    if not folder.exists():
        return [("not there", True)]
    if not (folder / RECORD).exists():
        return [(f"damaged: {RECORD} is missing", False)]
    try:
        record = read_record(folder)
        damage = find_damaged_files(folder)
        if not is_unchanged(record) or not record.keys() <= RECORD_KEYS:
            damage.append(f"{RECORD} is not as its stage wrote it")
        stale = [upstream for upstream in record["inputs"] if is_stale(run, record, upstream, name)]
        text = f"ok, {len(record['files'])} files, {sum(file['bytes'] for file in record['files'].values()):,} bytes"
        recorded = record["files"].keys()
    except (StaleStageError, KeyError, TypeError, ValueError, AttributeError):
        return [(f"damaged: {RECORD} cannot be read", False)]
    if damage:
        return [(f"damaged: {problem}", False) for problem in damage]
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {RECORD}
    unknown = [] if STAGES[name].files else sorted(present - recorded)
    text += f"; made from another output of {', '.join(stale)}" if stale else ""
    text += f"; not recorded: {', '.join(unknown[:3])}" if unknown else ""
    return [(text, not stale)]


def is_stale(run: Path, record: dict, upstream: str, name: str) -> bool:
    """Return whether a stage was made from another output of one before it; a damaged one has a line of its own."""
    try:
        input_record = read_record(run / STAGES[upstream].output)
        return input_record is not None and hash_input(input_record, upstream, name) != record["inputs"][upstream]
    except (OSError, StaleStageError, KeyError, TypeError, AttributeError):
        return False


def check_checkpoint(run: Path, checkpoint: Path) -> list[tuple[str, bool]]:
    """Return the state of a checkpoint, and of what metrics, samples and chronicle held when it was saved."""
    manifest = read_json(checkpoint / "manifest.json")
    # A manifest with `records` has a checksum too: without one, a bit of its name has changed.
    if manifest is not None and not (is_unchanged(manifest) and ("records" not in manifest or CHECKSUM in manifest)):
        return [("damaged: manifest.json is not as it was written", False)]
    damage = list(list_damage(checkpoint))
    try:
        found = {
            name: find_difference(run / name, recorded, grows=True)
            for name, recorded in ((manifest or {}).get("records") or {}).items()
        }
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        found, damage = {}, [*damage, "manifest.json cannot be read"]
    lines = [(f"damaged: {problem}", False) for problem in dict.fromkeys(damage)]
    lines += [(f"{name} up to here: {problem}", False) for name, problem in found.items() if problem]
    return lines or [("ok", True)]


def check_release(folder: Path) -> list[tuple[str, bool]]:
    """Return the state of a folder that is published, by its manifest.json."""
    if not (folder / "manifest.json").exists():
        return [("not recorded: it gets a manifest.json when it is sent", True)]
    manifest = read_json(folder / "manifest.json") or {}
    listed = manifest.get("files") if isinstance(manifest.get("files"), dict) else {}
    try:
        found = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_or_reason(path)}
            for path in folder.rglob("*")
            if path.is_file() and path != folder / "manifest.json"
        }
    except FileNotFoundError:
        return [("deleted meanwhile, since it was sent", True)]
    damage = [f"{name}, of manifest.json, is missing" for name in listed.keys() - found.keys()]
    damage += [
        f"{name}: {refused(file['sha256']) or 'not the file of manifest.json'}"
        for name, file in found.items()
        if file != listed.get(name)
    ]
    if manifest != {"format": 1, "files": listed}:
        damage.append("manifest.json is not as it was written")
    return [(f"damaged: {problem}", False) for problem in sorted(damage)] or [(f"ok, {len(found)} files", True)]


def check_hashes(checkpoint: Path) -> list[tuple[str, bool]]:
    """Return the state of a checkpoint of finetune.py."""
    if not (checkpoint / HASHES).exists():
        return [("not recorded", True)]
    hashes = read_json(checkpoint / HASHES) or {HASHES: "no JSON object"}
    try:
        found = {path.name: sha256_or_reason(path) for path in checkpoint.iterdir() if path.name != HASHES}
    except FileNotFoundError:
        return [("deleted meanwhile, by fine-tuning that goes on", True)]
    damage = sorted(name for name in hashes.keys() | found.keys() if hashes.get(name) != found.get(name))
    return [
        (f"damaged: {name}: {refused(found.get(name, '')) or f'not the file of {HASHES}'}", False) for name in damage
    ] or [("ok", True)]


def sha256_or_reason(path: Path) -> str:
    """Return a file's sha256, or why it cannot be read."""
    try:
        return file_sha256(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        return f"{UNREADABLE}{error.strerror}"


def refused(found: str) -> str | None:
    """Return what sha256_or_reason says of a file that cannot be read; None of one that can."""
    return found if found.startswith(UNREADABLE) else None


def check_precision(checkpoints: Path) -> list[tuple[str, bool]]:
    """Return the state of the file that keeps the precision of fine-tuning."""
    try:
        kept_precision(checkpoints)
        return [("ok", True)]
    except RecipeError:
        return [("damaged: not as it was written", False)]


def check_replaced(run: Path) -> list[tuple[str, bool]]:
    """Return the state of the file that names the model which training with --overwrite replaces."""
    try:
        return [("ok", True)] if replaced_model(run) else []
    except StaleStageError:
        return [("damaged: not as it was written", False)]


def check(record: str, what: Callable[..., list[tuple[str, bool]]], *arguments) -> list[tuple[str, bool]]:
    """Return the state that a function finds; where it cannot read its record, a line, so that the others follow."""
    try:
        return what(*arguments)
    except OSError as error:
        return [(f"damaged: {record} {UNREADABLE}{error.strerror}", False)]


def check_run_files(run: Path) -> list[tuple[str, str, bool]]:
    """Return a line for each damaged file of the run folder itself, one for those in order, one for the others."""
    damaged = find_damaged_run_files(run)
    try:
        read_chronicle(run)
    except StaleStageError:
        damaged.setdefault("chronicle.jsonl", "a line is not as it was written")
    except OSError as error:
        damaged.setdefault("chronicle.jsonl", f"{UNREADABLE}{error.strerror}")
    recorded = set() if UNREADABLE in damaged.get(RUN_FILES, "") else set(recorded_run_files(run))
    for name in HUB_RECORDS:
        try:
            recorded |= {name} if CHECKSUM in read_records(run / name) else set()
        except TransferError as error:
            damaged[name] = error.what
        except OSError as error:
            damaged[name] = f"{UNREADABLE}{error.strerror}"
    lines = [(name, f"damaged: {problem}", False) for name, problem in damaged.items()]
    whole = sorted(recorded - damaged.keys()) if RUN_FILES not in damaged else []
    known = {*recorded, *damaged, *CHECKED, *(stage.output for stage in STAGES.values()), RUN_FILES}
    there = sorted(path.name for path in run.iterdir() if not path.name.startswith("."))
    others = [name for name in dict.fromkeys([*ALL, *there]) if name in there and name not in known]
    lines += [("run folder", f"ok, {', '.join(whole)}", True)] if whole else []
    return [*lines, *([("run folder", f"not recorded: {', '.join(others)}", True)] if others else [])]


def check_training(run: Path) -> tuple[str, bool]:
    """Return the state of the training in words, and whether it is in order."""
    if not (run / "status.json").exists():
        return "not started", True
    try:
        status = read_json(run / "status.json")
        step = f"step {status['step']:,} of {status['max_steps']:,}" if "step" in status else "step 0"
        if status["status"] == "running":
            return (f"running, {step}", True) if is_held(run) else (f"was killed after the save at {step}", True)
        return f"{status['status']} at {step}: {status['reason']}", status["status"] != "failed"
    except (OSError, KeyError, TypeError, ValueError):
        return "damaged: status.json cannot be read", False


def check_run(run: Path, is_member: bool = False) -> list[tuple[str, str, bool]]:
    """Return a line for each part of a run folder: its name, its state, and whether that is in order.

    Args: is_member: it is one of members/, which links to the documents and the tokens of its run.
    """
    names = [name for name, stage in STAGES.items() if not (is_member and (run / stage.output).is_symlink())]
    lines = [(name, *state) for name in names for state in check(RECORD, check_stage, run, name)]
    for step, checkpoint in sorted(list_checkpoints(run / "checkpoints")):
        lines += [
            (f"checkpoint {step:,}", *state) for state in check("manifest.json", check_checkpoint, run, checkpoint)
        ]
    lines += [(REPLACED, *state) for state in check(REPLACED, check_replaced, run)]
    for folder in sorted(folder for pattern in RELEASES for folder in run.glob(pattern)):
        lines += [
            (folder.relative_to(run).as_posix(), *state) for state in check("manifest.json", check_release, folder)
        ]
    for checkpoint in sorted(run.glob("finetune_checkpoints/*/checkpoint-*")):
        lines += [(f"fine-tuning {checkpoint.name}", *state) for state in check(HASHES, check_hashes, checkpoint)]
    for path in sorted(run.glob(f"finetune_checkpoints/*/{PRECISION}")):
        lines += [(f"fine-tuning {path.name}", *state) for state in check(path.name, check_precision, path.parent)]
    lines += check_run_files(run)
    lines += [
        (f"checkpoints/{path.name}", "not of this program", True) for path in foreign_folders(run / "checkpoints")
    ]
    lines.append(("training", *check_training(run)))
    for member in sorted(run.glob("members/*/")):
        lines += [(f"members/{member.name}: {name}", *state) for name, *state in check_run(member, is_member=True)]
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="run.output_dir of a recipe")
    run = parser.parse_args(argv).run_folder
    if not run.is_dir():
        parser.error(f"{run}: no such folder")
    lines = check_run(run)
    width = max(len(name) for name, _, _ in lines)
    for name, text, in_order in lines:
        print(f"{name:<{width}}  {'  ' if in_order else '! '}{text}")
    if not all(in_order for _, _, in_order in lines):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
