# SPDX-License-Identifier: Apache-2.0
"""How long training waits for a checkpoint, in units of a step, and what the writing behind it costs the steps after.

    python tests/benchmarks/save_stall.py runs/legal-quickstart --steps 120
    python tests/benchmarks/save_stall.py /dev/shm --gigabytes 0.4

The run folder lends its tokens and its recipe. One process trains, uncompiled, saves every so many steps, and times
each step and each call that saves. A call that comes before the last checkpoint is in its place waits for that one, so
`--save_steps` is to be as far apart as in a real run. Medians; a save is also timed as one that waits for its files.

With --gigabytes, random tensors of this size are saved in the folder, without training; the fastest save counts.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from training_runs import RECIPES, command


def write_seconds(folder: Path, gigabytes: float, rounds: int = 4) -> float:
    """Return the seconds until a checkpoint of random tensors, a third of them weights, is in its place."""
    import torch
    from accelerate import Accelerator

    from recovery.checkpoints import Checkpoints

    os.environ["ACCELERATE_USE_CPU"] = "true"
    size = int(gigabytes * 1e9 / 4 / 3 / 8)
    weights = {f"w{k}": torch.randn(size) for k in range(8)}
    moments = {f"{name}.{key}": torch.randn(size) for name in weights for key in ("exp_avg", "exp_avg_sq")}
    written: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            accelerator = Accelerator()
            checkpoints = Checkpoints(
                Path(temporary), 2, None, {}, accelerator, lambda *ended: written.append(ended[2])
            )
            checkpoints.save(1, {"model": weights, "optimizer": moments}, {"step": 1})
            checkpoints.finish()
    return min(written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="with tokens, tokenizer and recipe.yaml")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--save_steps", type=int, default=20)
    parser.add_argument("--gigabytes", type=float)
    options = parser.parse_args()
    sys.path.insert(0, str(RECIPES))
    if options.gigabytes is not None:
        seconds = write_seconds(options.run_folder, options.gigabytes)
        print(f"{options.gigabytes:g} GB are in their place after {seconds:.2f} s")
        return
    import pretrain
    from training import step as step_module

    stalls: list[float] = []
    written: list[float] = []
    steps: list[tuple[bool, float]] = []  # was a checkpoint being written, seconds
    saving: list[pretrain.Checkpoints] = []
    save, seed_step = pretrain.Checkpoints.save, step_module.seed_step
    started = [0.0]

    def timed_save(self, *what) -> None:
        started = time.perf_counter()
        saving[:] = [self]
        save(self, *what)
        stalls.append(time.perf_counter() - started)
        started[0] = 0.0  # the step that the save came after is over

    def timed_step(*what) -> None:
        now = time.perf_counter()
        if started[0]:
            writing = bool(saving) and saving[0].thread is not None and saving[0].thread.is_alive()
            steps.append((writing, now - started[0]))
        started[0] = now
        seed_step(*what)

    pretrain.Checkpoints.save, step_module.seed_step = timed_save, timed_step
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        recipe_step = json.loads((options.run_folder / "training.json").read_text())["tokens_per_step"]
        overrides = [f"--training.max_tokens={options.steps * recipe_step}", "--training.warmup_steps=1"]
        overrides += [f"--training.save_steps={options.save_steps}", "--training.eval_steps=1_000_000_000"]
        overrides += ["--training.torch_compile=false", "--data.phases=[]", "--data.fit_to_corpus=false"]
        overrides += ["--data.max_repetitions=1e9"]
        pretrain.main(command(options.run_folder, folder, overrides)[1:])
        for line in (folder / "chronicle.jsonl").read_text().split("\n")[:-1]:
            if (entry := json.loads(line))["event"] == "save":
                written.append(float(entry["text"].rpartition("written in ")[2].removesuffix(" s")))
        size = sum(path.stat().st_size for path in next((folder / "checkpoints").glob("step_*")).iterdir())
    alone = statistics.median(seconds for writing, seconds in steps if not writing)
    beside = [seconds for writing, seconds in steps if writing]
    stall, longest = statistics.median(stalls), max(stalls)
    print(
        f"{size / 1e6:,.1f} MB a checkpoint, {len(stalls)} saves, a step takes {alone:.3f} s\n"
        "| what | seconds | steps |\n|---|--:|--:|\n"
        f"| training waits for a save | {stall:.3f} | {stall / alone:.2f} |\n"
        f"| the longest wait | {longest:.3f} | {longest / alone:.2f} |\n"
        f"| until it is in its place | {statistics.median(written):.1f} | {statistics.median(written) / alone:.2f} |"
    )
    if beside:
        slowed = statistics.median(beside)
        print(f"| a step while one is written | {slowed:.3f} | {slowed / alone:.2f} |")


if __name__ == "__main__":
    main()
