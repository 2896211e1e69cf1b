# SPDX-License-Identifier: Apache-2.0
"""The training runs of an experiment: train those without a row in runs.csv, and add their rows.

A row is keyed by the hash of all that decides the run, so a finished run is not trained again. A run that was killed
resumes from its checkpoint. Several processes that share the folders divide the runs among them. Each stage runs as in
any recipe, in a process of its own.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout
from pydantic import ValidationError
from tqdm import tqdm

from atomic_files import read_json_lines, replace_text
from child_processes import EXIT_STOPPED, run_with_status
from launching import clear_environment, launch_command, newest_precision, read_launch_file
from recipe_config import Recipe, RecipeError, Section
from recipe_loading import read_yaml_file
from recovery.run_lock import lock_file
from run_folder import is_finished, new_output
from stages import ROOT, STAGES


KEPT = "finished runs and checkpoints are kept"


@dataclass(frozen=True)
class Run:
    """One training run of an experiment.

    Attributes:
        recipe: its recipe. Several runs may share run.output_dir; each is trained in a folder of its own below it.
        flops: its compute budget.
    """

    recipe: Recipe
    flops: float

    @property
    def name(self) -> str:
        """The run's name in messages."""
        return f"{self.flops:.3g} FLOPs"

    def folder(self, key: str) -> Path:
        """Return the folder that the run is trained in."""
        return Path(self.recipe.run.output_dir) / "runs" / key


def hash_settings(settings: dict) -> str:
    """Return the key of a run: a hash of the settings and inputs that decide its result."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def state_pretokenization(stated: dict, recipe: Recipe) -> dict:
    """Return the stated settings of a run with its pre-tokenization, unless that is gpt4, which was once the default.

    So a row made before names no other tokenizer than it did.
    """
    tokenizer = {key: value for key, value in stated.get("tokenizer", {}).items() if key != "pretokenization"}
    if recipe.tokenizer.pretokenization != "gpt4":
        tokenizer["pretokenization"] = recipe.tokenizer.pretokenization
    return {**stated, **({"tokenizer": tokenizer} if tokenizer else {})}


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of an experiment's command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file of the experiment")
    parser.add_argument("--accelerate_config", type=Path, help="file of accelerate_configs/ to train with")
    parser.add_argument("--num_processes", help="processes to train each run with, where that file leaves it open")
    parser.add_argument("--max_runs", type=int, help="train at most so many runs; 0: only evaluate the rows")
    return parser


def choose_launcher(options: argparse.Namespace, recipe: Recipe, csv_file: Path, folders: Iterable[Path]) -> list[str]:
    """Return the command that trains a run, up to the script, in the precision of the experiment so far.

    Args:
        options: of the command line.
        recipe: of a run, whose model decides the precision where there are neither rows nor checkpoints.
        csv_file: the table of rows, which need not exist yet.
        folders: of runs that may have begun.

    Raises: RecipeError: a launch file was chosen that trains in another precision.
    """
    config = Path(options.accelerate_config) if options.accelerate_config else None
    clear_environment()
    known = [row.get("mixed_precision") for row in read_rows(csv_file).values()] + [*map(newest_precision, folders)]
    before = next(filter(None, known), None)
    command = launch_command(recipe, config, options.num_processes, before)
    stated = read_launch_file(config).get("mixed_precision") if config and "--mixed_precision" not in command else None
    if before and stated not in (None, before):
        raise RecipeError(
            f"--accelerate_config {config}: mixed_precision: {stated}, but the other runs of {csv_file} were trained "
            f"in {before}; set that, or another `results` and run.output_dir in --config"
        )
    return command


def read_experiment(path: Path, schema: type[Section]) -> tuple[Section, dict]:
    """Read an experiment's file.

    Returns: the experiment, and key path -> `file:line` of each key.
    Raises: RecipeError: every problem of the file.
    """
    try:
        values, origins = read_yaml_file(path)
        experiment = schema.model_validate(values)
    except ValidationError as error:
        raise RecipeError(
            *(f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        ) from error
    if problems := [f"{path}: {key}: {text}" for key, text in experiment.problems()]:
        raise RecipeError(*problems)
    return experiment, origins


def train_missing(
    runs: dict[str, Run],
    csv_file: Path,
    shared: Path,
    train: Callable[[Run, Path], dict],
    max_runs: int | None = None,
) -> None:
    """Train the runs that have no row and that no other process is training, and add their rows.

    Args:
        runs: key -> run.
        csv_file: the table of rows, which need not exist yet.
        shared: folder for the table's lock, which all processes share.
        train: trains a run in a folder and returns its row without the key.
        max_runs: None: all.
    """
    rows = read_rows(csv_file)
    waiting = {key: run for key, run in runs.items() if key not in rows}
    left = len(waiting) if max_runs is None else max_runs
    total = sum(run.flops for run in list(waiting.values())[:left])
    with tqdm(total=total, unit="FLOP", unit_scale=True, desc="training", disable=not total) as bar:
        for key, run in waiting.items():
            if not left:
                break
            folder = run.folder(key)
            folder.mkdir(parents=True, exist_ok=True)
            with claimed(folder / ".claim") as ours:
                if not ours or key in read_rows(csv_file):
                    continue
                bar.set_postfix_str(run.name)
                row = {"key": key, **train(run, folder)}
                with locked(shared / ".rows.lock"):
                    add_row(csv_file, row)
            left -= 1
            bar.update(run.flops)
            bar.write(f"{run.name}: finished, its row is in {csv_file}")


def train_model(recipe: Recipe, folder: Path, inputs: Path, launcher: list[str], name: str) -> tuple[dict, dict]:
    """Train a recipe's model in a folder of its own, on documents, tokenizer and tokens that runs share.

    Args:
        recipe: its run.output_dir is not used.
        folder: of the run.
        inputs: folder with documents/, tokenizer/ and tokens/.
        launcher: the command up to the script; see `choose_launcher`.
        name: of the run, for messages.

    Returns: training.json, and the line of metrics.jsonl with the scores of the last validation.
    """
    config = write_config(recipe, folder)
    for shared in ("documents", "tokenizer", "tokens"):
        link(folder, inputs, shared)
    run_stage("pretrain", launcher, config, folder, name)
    scored = [line for line in read_json_lines(folder / "metrics.jsonl") if "eval/bits_per_byte" in line]
    return json.loads((folder / "training.json").read_text(encoding="utf-8")), scored[-1]


def write_config(recipe: Recipe, folder: Path) -> Path:
    """Write folder/config.yaml, the recipe with this folder as run.output_dir, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(recipe_in(folder, recipe).dump_yaml(), encoding="utf-8")
    return config


def recipe_in(folder: Path, recipe: Recipe) -> Recipe:
    """Return a copy of a recipe that runs in `folder`, with the usual data.py where the experiment names none."""
    copy = recipe.model_copy(deep=True)
    copy.run.output_dir = str(folder)
    copy.data.extract_text = recipe.data.extract_text or str(ROOT / "recipes" / "custom" / "data.py")
    return copy


def export_tasks(recipe: Recipe, folder: Path, name: str) -> None:
    """Write the items of the recipe's tasks into folder/benchmarks, against which prepare decontaminates."""
    recipe = recipe_in(folder, recipe)
    if not is_finished(recipe, "requests"):
        with new_output(recipe, "requests") as output:
            run_logged(
                [sys.executable, *STAGES["requests"].command(recipe), str(output)],
                folder / "log.txt",
                f"{name}: requests",
            )


def run_stage(stage: str, launcher: list[str], config: Path, output_dir: Path, name: str) -> None:
    """Run a stage of the recipe in `config` with another run.output_dir; its output goes to output_dir/log.txt."""
    command = [*launcher, str(ROOT / STAGES[stage].script), "--config", str(config), f"--run.output_dir={output_dir}"]
    run_logged(command, output_dir / "log.txt", f"{name}: {stage}")


def run_logged(command: list[str], log_file: Path, name: str) -> None:
    """Run a command with its output appended to a file, and pass signals on to it.

    Raises: SystemExit: a signal came (EXIT_STOPPED), or the command failed, with the last lines of its output.
    """
    with log_file.open("a", encoding="utf-8") as log:
        ended, training = run_with_status(command, log_file.with_name("status.json"), log)
    preempted = training.get("status") == "preempted"
    if ended.signal_name or preempted:
        reason = ended.signal_name or training["reason"]
        sys.stderr.write(f"{name} stopped on {reason}: {KEPT}; start again with: {shlex.join(sys.orig_argv)}\n")
        raise SystemExit(EXIT_STOPPED)
    if ended.status:
        last = log_file.read_text(encoding="utf-8").strip().splitlines()[-5:]
        raise SystemExit("\n".join([f"{name} stopped with status {ended.status}, see {log_file}:", *last]))


def link(folder: Path, target: Path, name: str) -> None:
    """Make folder/name a link to target/name, which still leads there when both are moved or copied together."""
    link, leads_to = folder / name, os.path.relpath((target / name).resolve(), folder.resolve())
    if link.is_symlink() and os.readlink(link) != leads_to:  # of an earlier version, or the folder was moved alone
        link.unlink()
    if not link.exists():  # a copy that followed links has the folder itself
        link.symlink_to(leads_to, target_is_directory=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock and hold it; it is free again whatever ends the process."""
    lock = lock_file(path, wait=True)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Yield whether this process has claimed a run; False: another process is training it."""
    try:
        lock = lock_file(path, wait=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def read_rows(path: Path) -> dict[str, dict[str, str]]:
    """Return key -> row of runs.csv; empty where there is no file."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to runs.csv, or replace the one of its key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, text = {**read_rows(path), row["key"]: row}, io.StringIO()
    columns = dict.fromkeys(column for one in rows.values() for column in one)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    replace_text(path, text.getvalue())
