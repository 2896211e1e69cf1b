# SPDX-License-Identifier: Apache-2.0
"""Runs of pretrain.py on the tokens of a run that is there, for the benchmarks beside it that time whole runs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def command(source: Path, folder: Path, overrides: list[str]) -> list[str]:
    """Ready a folder with the tokens of `source`, a run folder, and return what trains there by its recipe."""
    folder.mkdir(parents=True)
    for name in ("documents", "tokenizer", "tokens"):
        (folder / name).symlink_to((source / name).resolve(), target_is_directory=True)
    script = [str(RECIPES / "pretrain.py"), "--config", str(source / "recipe.yaml"), f"--run.output_dir={folder}"]
    return [*script, "--training.max_seconds=null", "--training.report_to=[]", *overrides]


def launch(script: list[str], num_processes: int = 1, threads: int | None = None) -> subprocess.Popen:
    """Start it on processors, in fp32, with what it says in a log beside the script's run folder."""
    folder = next(part.partition("=")[2] for part in script if part.startswith("--run.output_dir="))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--quiet", "--multi_gpu", "--num_machines", "1"]
        launcher += ["--num_processes", str(num_processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    with (Path(folder) / "log.txt").open("a") as log:
        return subprocess.Popen([*launcher, *script], env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, folder: Path) -> dict:
    """Wait for a run and return its training.json.  Raises: SystemExit: it failed, with the end of its log."""
    if process.wait():
        lines = (folder / "log.txt").read_text().splitlines()[-5:]
        raise SystemExit(f"{folder}: training stopped with status {process.returncode}:\n" + "\n".join(lines))
    return json.loads((folder / "training.json").read_text())


def metrics(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    """Wait until a run has logged a step.  Raises: SystemExit: it ended before."""
    while not any(line["step"] >= step for line in metrics(folder)):
        if process.poll() is not None:
            raise SystemExit(f"{folder}: ended before step {step}; see log.txt there")
        time.sleep(0.05)
