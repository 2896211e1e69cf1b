# SPDX-License-Identifier: Apache-2.0
"""Seconds from the launch to the first step: of a new run, and of one that goes on at step 10 and at step 1,000,000.

    python tests/benchmarks/start_up.py runs/legal-quickstart --rounds 3

The run folder lends its tokens and its recipe. A run is trained to step 10, its checkpoint is taken once more with the
step set to 1,000,000, and a run resumes from each: the position in the data is one number, so both take the same time.
Started as one process, without `accelerate launch`. Medians over the rounds, in turns; compiled and then not, since
compiling is most of it.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from training_runs import RECIPES, command, launch, wait_for_step


FAR = 1_000_000
OVERRIDES = ["--training.logging_steps=1", "--training.eval_steps=100_000_000", "--training.save_steps=10"]
OVERRIDES += ["--data.max_repetitions=1e9", "--data.phases=[]", "--data.fit_to_corpus=false"]


def seconds_to_step(script: list[str], folder: Path, step: int) -> float:
    """Launch a run and return the seconds until it has logged a step, and stop it."""
    started = time.perf_counter()
    process = launch(script)
    wait_for_step(process, folder, step)
    seconds = time.perf_counter() - started
    process.terminate()  # it saves and leaves
    process.wait()
    return seconds


def move_checkpoint(folder: Path, step: int) -> None:
    """Make of the newest checkpoint the only one, of another step."""
    sys.path.insert(0, str(RECIPES))
    from recovery.checkpoints import commit, describe_file
    from recovery.stored_tensors import list_checkpoints

    checkpoints = folder / "checkpoints"
    newest = list_checkpoints(checkpoints)[0][1]
    partial = checkpoints / "moved"
    newest.rename(partial)
    for _, other in list_checkpoints(checkpoints):
        shutil.rmtree(other)
    state = json.loads((partial / "state.json").read_text())
    (partial / "state.json").write_text(json.dumps(state | {"step": step, "trained_steps": step}))
    manifest = json.loads((partial / "manifest.json").read_text())
    identity = {key: value for key, value in manifest.items() if key not in ("program", "format", "step", "files")}
    files = {name: describe_file(partial / name) for name in manifest["files"]}
    commit(partial, step, files, identity)
    (folder / "metrics.jsonl").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="with tokens, tokenizer and recipe.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    recipe_step = json.loads((options.run_folder / "training.json").read_text())["tokens_per_step"]
    overrides = [*OVERRIDES, f"--training.max_tokens={2 * FAR * recipe_step}"]
    print("| compiled | launch to step 1, s | on to step 11, s | on to step 1,000,001, s | far / near |")
    print("|---|--:|--:|--:|--:|")
    for compiled in ("true", "false"):
        seconds: dict[int, list[float]] = {0: [], 10: [], FAR: []}
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary) / "run"
                script = command(options.run_folder, folder, [*overrides, f"--training.torch_compile={compiled}"])
                seconds[0].append(seconds_to_step(script, folder, 1))
                for step in (10, FAR):
                    move_checkpoint(folder, step)
                    seconds[step].append(seconds_to_step(script, folder, step + 1))
        new, near, far = (statistics.median(values) for values in seconds.values())
        print(f"| {compiled} | {new:.1f} | {near:.1f} | {far:.1f} | {far / near:.2f} |", flush=True)


if __name__ == "__main__":
    main()
