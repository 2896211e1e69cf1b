# SPDX-License-Identifier: Apache-2.0
"""Measure a scaling law on your own text: train an IsoFLOP sweep, fit it in Chinchilla's three ways, test it.

In:   a file such as experiments/scaling_law.yaml: a recipe, shapes, budgets, and a larger run that no fit sees.
Out:  beside it, in <results>: runs.csv, one row a finished run, which is what to keep; fit.json; isoflop.png and
      frontier.png. The runs and their text are in <recipe.run.output_dir>.

    python recipes/fit_scaling_law.py --config recipes/experiments/scaling_law.yaml
    python recipes/fit_scaling_law.py --config recipes/experiments/scaling_law.yaml --max_runs 0     # only fit

Finished runs are not trained again, killed ones resume, and several processes divide the rest: see sweeps/runs.py.
"""

import sys
from functools import partial
from pathlib import Path

from atomic_files import read_record, write_json
from child_processes import leave_on_signals
from planning.charts import draw_frontier, draw_isoflop
from recipe_config import Recipe, RecipeError
from recipe_loading import run_command
from stages import output_folder
from sweeps.isoflop import IsoflopRun, load_experiment
from sweeps.isoflop_fit import collect, describe_fit, fit
from sweeps.runs import (
    KEPT,
    argument_parser,
    choose_launcher,
    locked,
    read_rows,
    run_stage,
    train_missing,
    train_model,
    write_config,
)


def make_tokens(recipe: Recipe) -> Path:
    """Run the stages up to the tokens, which all runs share, and return their folder."""
    folder = Path(recipe.run.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".prepare.lock"):
        config = write_config(recipe, folder)
        for stage in ("prepare", "tokenizer", "tokenize"):
            print(f"fit_scaling_law: {stage}, see {folder / 'log.txt'}")
            run_stage(stage, [sys.executable], config, folder, "the text of all runs")
    return folder


def hash_tokens(recipe: Recipe) -> dict[str, str]:
    """Return file -> sha256 of the token shards and the tokenizer, from the records of their stages."""
    records = {name: read_record(output_folder(recipe, name))["files"] for name in ("tokenize", "tokenizer")}
    shards = {path: file for path, file in records["tokenize"].items() if path.endswith(".ds")}
    files = shards | {"tokenizer.json": records["tokenizer"]["tokenizer.json"]}
    return {path: file["sha256"] for path, file in files.items()}


def find_keys(runs: list[IsoflopRun], csv_file: Path) -> dict[str, IsoflopRun]:
    """Return key -> run.

    Raises: RecipeError: the table has rows of other settings or other text.
    """
    tokens = hash_tokens(runs[0].recipe)
    by_key = {run.key(tokens): run for run in runs}
    others = read_rows(csv_file).keys() - by_key.keys()
    if others:
        raise RecipeError(
            f"{csv_file}: {len(others)} rows are of other settings or other text, such as {min(others)}; set another "
            "`results` for this experiment, or move the file away"
        )
    return by_key


def train(run: IsoflopRun, folder: Path, inputs: Path, launcher: list[str]) -> dict:
    """Train a run in `folder`, on the tokens in `inputs`, and return its row without the key."""
    training, scores = train_model(run.recipe, folder, inputs, launcher, run.name)
    recipe, shape = run.recipe, ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        "budget_flops": f"{run.flops:.6g}",
        "held_out": int(run.held_out),
        **{name: getattr(recipe.model, name) for name in shape},
        **{f"{name}_parameters": count for name, count in run.counts.items()},
        "tokens": training["tokens_seen"],
        "steps": scores["step"],
        "tokens_per_step": recipe.training.tokens_per_step,
        "learning_rate": f"{recipe.training.learning_rate:.6g}",
        "seed": recipe.run.seed,
        "bits_per_byte": f"{scores[f'{recipe.scored_as()}/bits_per_byte']:.6f}",
        "repetitions": f"{max(part['repetitions'] for part in training['mixture'].values()):.3f}",
        "seconds": f"{training['seconds']:.1f}",
        "device": training["device"],
        "mixed_precision": training["mixed_precision"],
    }


@leave_on_signals(KEPT)
def main(argv: list[str] | None = None) -> None:
    options = argument_parser(__doc__).parse_args(argv)
    experiment, runs = load_experiment(options.config)
    results = options.config.parent / experiment.results
    csv_file = results / "runs.csv"
    if options.max_runs != 0:
        shared = make_tokens(runs[0].recipe)
        keys = find_keys(runs, csv_file)
        begun = (run.folder(key) for key, run in keys.items())
        launcher = choose_launcher(options, runs[0].recipe, csv_file, begun)
        train_run = partial(train, inputs=shared, launcher=launcher)
        train_missing(keys, csv_file, shared, train_run, options.max_runs)
    rows = list(read_rows(csv_file).values())
    if len(rows) < len(runs):
        print(f"fit_scaling_law: {len(rows)} of {len(runs)} runs are finished; run the same command to continue")
        return
    found = fit(rows, experiment.resamples)
    write_json(results / "fit.json", found)
    draw_isoflop(collect(rows, "multiplying", held_out=False), found, results / "isoflop.png")
    draw_frontier(found, results / "frontier.png")
    for line in describe_fit(found):
        print(f"fit_scaling_law: {line}")


if __name__ == "__main__":
    run_command(main)
