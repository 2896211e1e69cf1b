# SPDX-License-Identifier: Apache-2.0
"""What torch.compile gains and costs: tokens per second and seconds to the first step, with and without, by turns.

    python tests/benchmarks/compiling.py runs/legal-quickstart

The run folder lends its tokens and its recipe. The first turn compiles anew, the second from the cache.
"""

import argparse
import os
import tempfile
from itertools import product
from pathlib import Path
from statistics import median

from training_runs import command, finish, launch, metrics


MAX_TOKENS = 204_800


def train(source: Path, folder: Path, precision: str, compiled: bool, overrides: list[str]) -> tuple[float, ...]:
    """Train a short run; return the seconds to the end of step 1, the tokens per second after it, and all seconds."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if precision == "bf16" else "no"
    fixed = [f"--training.max_tokens={MAX_TOKENS}", "--data.fit_to_corpus=false", "--training.logging_steps=10"]
    fixed += ["--training.eval_steps=1_000_000", "--training.save_steps=1_000_000"]
    script = command(source, folder, [*fixed, f"--training.torch_compile={str(compiled).lower()}", *overrides])
    training = finish(launch(script), folder)
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
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(temporary) / "compiled")
        for turn, precision, compiled in product((1, 2), ("bf16", "fp32"), (True, False)):
            folder = Path(temporary) / f"{turn}-{precision}-{compiled}"
            first, speed, seconds = train(options.run_folder, folder, precision, compiled, overrides)
            said = "yes" if compiled else "no"
            print(f"| {precision} | {said} | {turn} | {first:.1f} | {speed:,.0f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
