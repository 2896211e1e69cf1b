# SPDX-License-Identifier: Apache-2.0
"""Check a run folder, finished or running: every file against its recorded size and sha256.

In:   a run folder; nothing else is needed, and nothing in it is changed.
Out:  a line for each stage, each checkpoint, and the state of the training; the exit code is 1 if anything is damaged
      or out of date.

    python recipes/verify_run.py runs/legal-quickstart

A stage is out of date if it was made from another version of an input than the run folder now holds.
"""

import argparse
import sys
from pathlib import Path

from atomic_files import RECORD, StaleStageError, read_json, read_record
from recipe_loading import run_command
from recovery.run_lock import is_held
from recovery.stored_tensors import find_damage, foreign_folders, list_checkpoints
from run_folder import find_damaged_files, hash_input
from stages import STAGES


def check_stage(run: Path, name: str) -> tuple[str, bool]:
    """Return the state of a stage's output in words, and whether it is in order."""
    folder = run / STAGES[name].output
    if not folder.exists():
        return "not there", True
    if not (folder / RECORD).exists():
        return f"damaged: {RECORD} is missing", False
    try:
        record = read_record(folder)
    except StaleStageError:
        return f"damaged: {RECORD} cannot be read", False
    if damage := find_damaged_files(folder):
        return f"damaged: {'; '.join(damage)}", False
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {RECORD}
    unknown = [] if STAGES[name].files else sorted(present - record["files"].keys())
    inputs = {upstream: read_record(run / STAGES[upstream].output) for upstream in record["inputs"]}
    stale = [
        upstream
        for upstream, input_record in inputs.items()
        if input_record is not None and hash_input(input_record, upstream, name) != record["inputs"][upstream]
    ]
    text = f"ok, {len(record['files'])} files, {sum(file['bytes'] for file in record['files'].values()):,} bytes"
    text += f"; made from another output of {', '.join(stale)}" if stale else ""
    text += f"; not recorded: {', '.join(unknown[:3])}" if unknown else ""
    return text, not stale


def check_training(run: Path) -> tuple[str, bool]:
    """Return the state of the training in words, and whether it is in order."""
    status = read_json(run / "status.json")
    if status is None:
        return "not started", True
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
        problem = find_damage(checkpoint)
        lines.append((f"checkpoint {step:,}", problem or "ok", problem is None))
    lines += [
        (f"checkpoints/{path.name}", "not of this program", True) for path in foreign_folders(run / "checkpoints")
    ]
    lines.append(("training", *check_training(run)))
    width = max(len(name) for name, _, _ in lines)
    for name, text, in_order in lines:
        print(f"{name:<{width}}  {'  ' if in_order else '! '}{text}")
    if not all(in_order for _, _, in_order in lines):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
