# SPDX-License-Identifier: Apache-2.0
"""Check a run folder, finished or running: every file against the size and sha256 it was recorded with.

In:   a run folder.
Out:  a line for each stage, each checkpoint, and the state of the training; the exit code is 1 if anything is damaged.

    python recipes/verify_run.py runs/legal-quickstart

A stage is also checked against its inputs: what was made from another output than the one that is there is out of
date. Nothing is changed, and nothing but the folder is needed.
"""

import argparse
import sys
from pathlib import Path

from atomic_files import RECORD, StaleStageError, read_json, read_record
from recipe_loading import run_command
from recovery import stored_tensors
from recovery.run_lock import is_held
from recovery.stored_tensors import list_checkpoints, strangers
from run_folder import find_damage, hash_input
from stages import STAGES


def check_stage(run: Path, name: str) -> tuple[str, bool]:
    """Return what there is to say about a stage's output, and whether it is as it should be."""
    folder = run / STAGES[name].output
    if not folder.exists():
        return "not there", True
    if not (folder / RECORD).exists():
        return f"damaged: {RECORD} is missing", False
    try:
        record = read_record(folder)
    except StaleStageError:
        return f"damaged: {RECORD} cannot be read", False
    if damage := find_damage(folder):
        return f"damaged: {'; '.join(damage)}", False
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {RECORD}
    unknown = sorted(present - record["files"].keys())
    inputs = {upstream: read_record(run / STAGES[upstream].output) for upstream in record["inputs"]}
    stale = [
        upstream
        for upstream, found in inputs.items()
        if found is not None and hash_input(found, upstream, name) != record["inputs"][upstream]
    ]
    said = f"ok, {len(record['files'])} files, {sum(file['bytes'] for file in record['files'].values()):,} bytes"
    said += f"; made from another output of {', '.join(stale)}" if stale else ""
    said += f"; not recorded: {', '.join(unknown[:3])}" if unknown else ""
    return said, not stale


def check_training(run: Path) -> tuple[str, bool]:
    """Say how the training ended, or that it did not."""
    status = read_json(run / "status.json")
    if status is None:
        return "not begun", True
    step = f"step {status.get('step', 0):,} of {status.get('max_steps', 0):,}"
    if status["status"] == "running":
        return (f"running, {step}", True) if is_held(run) else (f"was killed after the save at {step}", True)
    return f"{status['status']} at {step}: {status['reason']}", status["status"] != "failed"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="run.output_dir of a recipe")
    run = parser.parse_args(argv).run_folder
    if not run.is_dir():
        parser.error(f"{run}: no such folder")
    lines = [(name, *check_stage(run, name)) for name in STAGES]
    for step, checkpoint in sorted(list_checkpoints(run / "checkpoints")):
        problem = stored_tensors.find_damage(checkpoint)
        lines.append((f"checkpoint {step:,}", problem or "ok", problem is None))
    lines += [(f"checkpoints/{path.name}", "not of this program", True) for path in strangers(run / "checkpoints")]
    lines.append(("training", *check_training(run)))
    width = max(len(name) for name, _, _ in lines)
    for name, said, right in lines:
        print(f"{name:<{width}}  {'  ' if right else '! '}{said}")
    if not all(right for _, _, right in lines):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
