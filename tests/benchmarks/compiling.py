# SPDX-License-Identifier: Apache-2.0
"""What torch.compile gains and costs: tokens per second and seconds to the first step, with and without, by turns.

    python tests/benchmarks/compiling.py runs/legal-quickstart

The run folder lends its tokens and its recipe. The first turn compiles anew, the second from the cache.
"""

import argparse
import tempfile
from itertools import product
from pathlib import Path
from statistics import median

from training_runs import TRAINING_ALONE, command, finish, launch, metrics


OVERRIDES = [*TRAINING_ALONE, "--training.max_tokens=204_800", "--training.logging_steps=10"]


def time_run(script: list[str], folder: Path, precision: str, compile_cache: Path) -> tuple[float, float, float]:
    """Return the seconds to the end of step 1, the tokens per second after it, and the seconds in all."""
    training = finish(launch(script, precision=precision, compile_cache=compile_cache), folder)
    first, *later = (line for line in metrics(folder) if "train/tokens_per_second" in line)
    speed = median(line["train/tokens_per_second"] for line in later)
    return first["train/seconds"], speed, training["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="with tokens, tokenizer and recipe.yaml")
    options, overrides = parser.parse_known_args()
    print("| precision | compiled | turn | to the end of step 1 | tokens per second | seconds in all |")
    print("|---|---|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as temporary:
        for turn, precision, compiled in product((1, 2), ("bf16", "fp32"), ("true", "false")):
            folder = Path(temporary) / f"{turn}-{precision}-{compiled}"
            own = [f"--training.torch_compile={compiled}", *overrides]
            script = command(options.run_folder, folder, [*OVERRIDES, *own])
            first, speed, seconds = time_run(script, folder, precision, Path(temporary) / "compiled")
            print(f"| {precision} | {compiled} | {turn} | {first:.1f} | {speed:,.0f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
