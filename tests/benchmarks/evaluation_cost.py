# SPDX-License-Identifier: Apache-2.0
"""What scoring, sampling and logging while a model trains take of the time.

    ACCELERATE_USE_CPU=true python tests/benchmarks/evaluation_cost.py runs/legal-quickstart

The run folder lends its tokens, benchmarks and recipe. One run is trained in this process, and the clock is read
around the functions of training/ that do no training. The first evaluation compiles the forward pass, once a run,
and counts by itself; of the later ones the median counts. The fraction is of a run that evaluates every
`training.eval_steps` of the recipe.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import yaml
from training_runs import RECIPES, command, metrics


PARTS = {
    "score_validation": "validation text",
    "score_benchmarks": "tasks",
    "continue_prompts": "prompts",
    "probe": "a look inside the model",
    "append_lines": "a line of metrics.jsonl",
}


def time_calls(module, name: str) -> list[float]:
    """Have calls of a module's function timed; return the list that their seconds are added to."""
    function, seconds = getattr(module, name), []

    def timed(*args, **options):
        started = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            seconds.append(time.perf_counter() - started)

    setattr(module, name, timed)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="with tokens, tokenizer, benchmarks and recipe.yaml")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--eval_steps", type=int, default=25, help="of this run; the fraction is for the recipe's")
    options = parser.parse_args()
    recipe = yaml.safe_load((options.run_folder / "recipe.yaml").read_text())
    tokens_per_step = json.loads((options.run_folder / "training.json").read_text())["tokens_per_step"]
    sys.path.insert(0, str(RECIPES))
    import pretrain
    from training import evaluation, progress

    spent = {name: time_calls(progress if name == "append_lines" else evaluation, name) for name in PARTS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        overrides = [f"--training.max_tokens={options.steps * tokens_per_step}", "--data.fit_to_corpus=false"]
        overrides += [f"--training.eval_steps={options.eval_steps}", "--training.save_steps=1_000_000"]
        script = command(options.run_folder, folder, overrides)
        (folder / "benchmarks").symlink_to((options.run_folder / "benchmarks").resolve(), target_is_directory=True)
        pretrain.main(script[1:])
        speeds = [line["train/tokens_per_second"] for line in metrics(folder) if "train/tokens_per_second" in line]
    step_seconds = tokens_per_step / statistics.median(speeds)
    between = step_seconds * recipe["training"]["eval_steps"]
    usual = {name: statistics.median(seconds[1:]) for name, seconds in spent.items()}
    print(f"a step takes {step_seconds:.2f} s; the recipe evaluates every {recipe['training']['eval_steps']} steps\n")
    print("| what | seconds each time | the first |\n|---|--:|--:|")
    for name, label in PARTS.items():
        print(f"| {label} | {usual[name]:.3f} | {spent[name][0]:.3f} |")
    evaluation = sum(seconds for name, seconds in usual.items() if name != "append_lines")
    print(f"\nof the time between two evaluations they take {evaluation / (between + evaluation):.1%}")


if __name__ == "__main__":
    main()
