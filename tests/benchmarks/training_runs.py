# SPDX-License-Identifier: Apache-2.0
"""Runs of pretrain.py on the tokens of a run that is there, for the benchmarks beside it that time whole runs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
# Nothing but training, for a stated number of tokens: evaluated once, at the end.
TRAINING_ALONE = ["--data.fit_to_corpus=false", "--training.eval_steps=1_000_000", "--training.save_steps=1_000_000"]


def command(source: Path, folder: Path, overrides: list[str]) -> list[str]:
    """Ready a folder with the tokens of `source`, a run folder, and return what trains there by its recipe."""
    folder.mkdir(parents=True)
    for name in ("documents", "tokenizer", "tokens"):
        (folder / name).symlink_to((source / name).resolve(), target_is_directory=True)
    script = [str(RECIPES / "pretrain.py"), "--config", str(source / "recipe.yaml"), f"--run.output_dir={folder}"]
    return [*script, "--training.max_seconds=null", "--training.report_to=[]", *overrides]


def launch(
    script: list[str],
    num_processes: int = 1,
    threads: int | None = None,
    precision: str = "fp32",
    compile_cache: Path | None = None,
) -> subprocess.Popen:
    """Start it on processors, with what it says in a log beside the script's run folder.

    Args:
        script: what `command` returned.
        num_processes: that share each step.
        threads: of each process; None: as torch chooses.
        precision: fp32 or bf16.
        compile_cache: of torch.compile; None: the machine's.
    """
    mixed_precision = "bf16" if precision == "bf16" else "no"
    folder = next(part.partition("=")[2] for part in script if part.startswith("--run.output_dir="))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": mixed_precision}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    if compile_cache is not None:
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(compile_cache)
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--quiet", "--multi_gpu", "--num_machines", "1"]
        launcher += [
            "--num_processes",
            str(num_processes),
            "--mixed_precision",
            mixed_precision,
            "--dynamo_backend",
            "no",
        ]
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
