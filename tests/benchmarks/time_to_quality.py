# SPDX-License-Identifier: Apache-2.0
"""Seconds until the validation bits per byte that AdamW, a cosine and an uncompiled loop end with.

    python tests/benchmarks/time_to_quality.py runs/legal-quickstart --max_tokens 2e6 --fractions 0.3 0.4 0.5

The run folder lends its tokens and its recipe. The baseline trains for --max_tokens; the recipe, changed by keys that
are given here, trains for each of --fractions of them in turn, with its schedule planned for that length, until one
ends at least as low. The ratio is of the seconds of these two runs, compiling anew and the last validation included.
"""

import argparse
import tempfile
from pathlib import Path

from training_runs import TRAINING_ALONE, command, finish, launch, metrics


BASELINE = ["--training.optimizer=adamw", "--training.lr_scheduler_type=cosine", "--training.torch_compile=false"]


def train(source: Path, max_tokens: int, precision: str, overrides: list[str]) -> tuple[float, float]:
    """Train a run to its end; return its seconds and its last validation bits per byte."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, compile_cache = Path(temporary) / "run", Path(temporary) / "compiled"  # which no run before it filled
        script = command(source, folder, [*TRAINING_ALONE, f"--training.max_tokens={max_tokens}", *overrides])
        training = finish(launch(script, precision=precision, compile_cache=compile_cache), folder)
        bits = [line["eval/bits_per_byte"] for line in metrics(folder) if "eval/bits_per_byte" in line][-1]
    return training["seconds"], bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="with tokens, tokenizer and recipe.yaml")
    parser.add_argument("--max_tokens", type=float, default=2e6, help="of the baseline")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.65, 0.8, 1.0])
    parser.add_argument(
        "--baseline_learning_rate", type=float, nargs="+", default=[2e-3], help="the best of them counts"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of all runs")
    options, overrides = parser.parse_known_args()
    print("| run | tokens | seconds | bits per byte |\n|---|--:|--:|--:|")
    best = None
    for rate in options.baseline_learning_rate:
        baseline = [*BASELINE, f"--training.learning_rate={rate}"]
        seconds, bits = train(options.run_folder, int(options.max_tokens), options.precision, baseline)
        print(f"| baseline, {rate:g} | {options.max_tokens:,.0f} | {seconds:.1f} | {bits:.4f} |", flush=True)
        best = (seconds, bits) if best is None or bits < best[1] else best
    for fraction in sorted(options.fractions):
        seconds, bits = train(options.run_folder, int(fraction * options.max_tokens), options.precision, overrides)
        print(f"| recipe | {fraction * options.max_tokens:,.0f} | {seconds:.1f} | {bits:.4f} |", flush=True)
        if bits <= best[1]:
            print(f"\nseconds of the recipe / of the baseline: {seconds / best[0]:.2f}")
            return
    print("\nno fraction reached the baseline; name larger ones")


if __name__ == "__main__":
    main()
