# SPDX-License-Identifier: Apache-2.0
"""Measure a scaling law on your own text: train an IsoFLOP sweep, fit it in Chinchilla's three ways, test it.

In:   a file such as experiments/scaling_law.yaml: a recipe, shapes, budgets, and a larger run that no fit sees.
Out:  beside it, in <results>: runs.csv, one row a finished run, which is what to keep; fit.json; isoflop.png and
      frontier.png. Runs and their data lie in <recipe.run.output_dir>.

    python recipes/fit_scaling_law.py --config recipes/experiments/scaling_law.yaml
    python recipes/fit_scaling_law.py --config recipes/experiments/scaling_law.yaml --max_runs 0     # only fit

Each run is recipes/pretrain.py as any recipe starts it. A row is keyed by the hash of all that decides the run, the
tokens included; what has a row is not trained again, and a run that was killed goes on from its checkpoint. Start the
command several times, on machines that share the folder, and each takes the next run that no other is at.
"""

import argparse
import csv
import fcntl
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError
from tqdm import tqdm

from atomic_files import read_json_lines, read_record, write_json
from launching import launch_command
from planning.charts import draw_frontier, draw_isoflop
from planning.law_fits import (
    Runs,
    fit_envelope,
    fit_loss,
    fit_minima,
    fit_parabolas,
    interval,
    resample,
    size_exponent,
)
from planning.model_shape import count_parameters
from planning.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN, olmo_rule
from recipe_config import Model, Positive, PositiveFloat, Recipe, RecipeError, Section
from recipe_loading import read_yaml, run_command, validate
from stages import ROOT, STAGES, output_folder


MAX_MICRO_BATCH_TOKENS = 8_192  # on one device; what a small model needs to keep a processor busy
PARAMETER_COUNTS = ("multiplying", "total", "non_vocabulary")


class Budget(Section):
    """One compute, and the shapes that are trained with it."""

    flops: PositiveFloat
    """6 N D of each run."""
    shapes: Annotated[list[int], Field(min_length=1)]
    """Which of `shapes`, counted from 0."""


class LearningRate(Section):
    """The best learning rate as a power of the size."""

    coefficient: PositiveFloat
    exponent: float
    """Over the parameters that a token is multiplied by; below 0."""


class Experiment(Section):
    """The file that --config names."""

    results: str
    """Folder for runs.csv, fit.json and the figures, beside the file."""
    budgets: Annotated[list[Budget], Field(min_length=2)]
    """IsoFLOP sets."""
    held_out: Budget
    """Runs whose loss is foretold and that no fit sees."""
    shapes: Annotated[list[Model], Field(min_length=4)]
    """Shapes of the models, as the section `model` of a recipe."""
    learning_rate: LearningRate | None = None
    """Of every run. None: the planner's rule, which was made for models of 60M parameters and more."""
    resamples: Positive = 1000
    """Times that the fits are made again with other noise, for their intervals."""
    recipe: dict
    """The recipe that all runs share, without model and without length, batch and learning rate of the training."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for name, budget in (*((f"budgets.{i}", b) for i, b in enumerate(self.budgets)), ("held_out", self.held_out)):
            for index in budget.shapes:
                if not 0 <= index < len(self.shapes):
                    yield f"{name}.shapes", f"{index} is no shape; there are 0 to {len(self.shapes) - 1}"
            if name != "held_out" and len(set(budget.shapes)) < 4:
                yield f"{name}.shapes", f"{len(set(budget.shapes))} sizes do not show a minimum; name at least 4"


@dataclass(frozen=True)
class Run:
    """One training run of the experiment.

    Attributes:
        budget_flops: what it was planned for.
        held_out: whether it is kept from the fits.
        recipe: all of it.
        counts: its parameters under each of PARAMETER_COUNTS.
    """

    budget_flops: float
    held_out: bool
    recipe: Recipe
    counts: dict[str, int]

    @property
    def name(self) -> str:
        model = self.recipe.model
        return f"{self.budget_flops:.3g} FLOPs, {model.hidden_size} wide, {model.num_hidden_layers} deep"

    def key(self, tokens: dict[str, str]) -> str:
        """Return the hash of all that decides the run's result: what its recipe states, and the text.

        Args: tokens: file -> sha256 of the tokens and the tokenizer that all runs share.
        """
        stated = self.recipe.model_dump(exclude_defaults=True, include={"model", "training", "tokenizer"})
        decides = {"recipe": stated, "seed": self.recipe.run.seed, "tokens": tokens}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def hash_tokens(recipe: Recipe) -> dict[str, str]:
    """Return file -> sha256 of the token shards and the tokenizer, from the records of their stages."""
    records = {name: read_record(output_folder(recipe, name))["files"] for name in ("tokenize", "tokenizer")}
    kept = [(path, file) for path, file in records["tokenize"].items() if path.endswith(".ds")]
    kept.append(("tokenizer.json", records["tokenizer"]["tokenizer.json"]))
    return {path: file["sha256"] for path, file in kept}


def read_experiment(path: Path, schema: type[Section]) -> tuple[Section, dict]:
    """Read an experiment's file, and where each of its keys stands.

    Raises: RecipeError: with every problem of its form.
    """
    try:
        values, origins = read_yaml(path.read_text(encoding="utf-8"), str(path))
        return schema.model_validate(values), origins
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise RecipeError(
            *(f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        ) from error


def load_experiment(path: Path) -> tuple[Experiment, list[Run]]:
    """Read the file and make the recipe of every run.

    Raises: RecipeError: with every problem of the experiment, or of the recipe in it.
    """
    experiment, origins = read_experiment(path, Experiment)
    problems = [f"{path}: {key}: {text}" for key, text in experiment.problems()]
    if problems:
        raise RecipeError(*problems)
    below = {key[1:]: where for key, where in origins.items() if key[:1] == ("recipe",)}
    runs = []
    for budget in (*experiment.budgets, experiment.held_out):
        for index in budget.shapes:
            runs.append(plan_run(experiment, budget, experiment.shapes[index], below))
    return experiment, runs


def plan_run(experiment: Experiment, budget: Budget, shape: Model, origins: dict) -> Run:
    """Make one run's recipe: as many tokens as its budget pays for; batch and learning rate by the rule."""
    shared = experiment.recipe
    vocab_size = int(shared.get("tokenizer", {}).get("vocab_size", 32_768))
    counts = count_parameters(shape, vocab_size)
    sequence_length = shared["training"]["sequence_length"]
    rule = olmo_rule(counts["multiplying"])
    learning_rate, power = rule.learning_rate, experiment.learning_rate
    if power is not None:
        learning_rate = power.coefficient * counts["multiplying"] ** power.exponent
    micro_steps = math.ceil(rule.tokens_per_step / MAX_MICRO_BATCH_TOKENS)
    batch_size = max(1, round(rule.tokens_per_step / micro_steps / sequence_length))
    training = {
        "tokens_per_step": batch_size * sequence_length * micro_steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
    } | shared["training"]
    steps = budget.flops / (FLOPS_PER_PARAMETER_AND_TOKEN * counts["multiplying"]) / training["tokens_per_step"]
    training["max_tokens"] = max(1, round(steps)) * training["tokens_per_step"]
    recipe, problems = validate({**shared, "model": shape.model_dump(), "training": training}, origins)
    if problems:
        raise RecipeError(*problems)
    recipe.data.extract_text = str(ROOT / "recipes" / "custom" / "data.py")
    return Run(budget.flops, budget is experiment.held_out, recipe, {name: counts[name] for name in PARAMETER_COUNTS})


def prepare(recipe: Recipe) -> None:
    """Run the stages up to the tokens, which all runs share; nothing where they are there."""
    folder = Path(recipe.run.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".prepare.lock"):
        config = folder / "recipe.yaml"
        config.write_text(recipe.dump_yaml(), encoding="utf-8")
        for name in ("prepare", "tokenizer", "tokenize"):
            subprocess.run([sys.executable, str(ROOT / STAGES[name].script), "--config", str(config)], check=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, whatever ends it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Yield whether this process is now the one that is at a run."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def train_all(runs: list[Run], shared: Path, csv_file: Path, options: argparse.Namespace) -> None:
    """Train the runs that have no row and that no other process is at, and add their rows.

    Raises: RecipeError: the file has rows of other settings or other text.
    """
    prepare(runs[0].recipe)
    tokens = hash_tokens(runs[0].recipe)
    by_key = {run.key(tokens): run for run in runs}
    others = read_rows(csv_file).keys() - by_key.keys()
    if others:
        raise RecipeError(
            f"{csv_file}: {len(others)} rows are of other settings or other text, such as {min(others)}; set another "
            "`results` for this experiment, or move the file away"
        )
    launch = launch_command(options.accelerate_config, options.num_processes)
    left = options.max_runs or len(runs)
    bar = tqdm(total=sum(run.budget_flops for run in runs), unit="FLOP", unit_scale=True, desc="fit_scaling_law")
    for key, run in by_key.items():
        folder = shared / "runs" / key
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder / ".claim") as mine:
            if left and mine and key not in read_rows(csv_file):
                bar.set_postfix_str(run.name)
                row = {"key": key, **train(run, folder, shared, launch)}
                with locked(shared / ".rows.lock"):
                    add_row(csv_file, row)
                left -= 1
        bar.update(run.budget_flops)
    bar.close()


def train(run: Run, folder: Path, shared: Path, launch: list[str]) -> dict:
    """Train one run in its folder, over the shared tokens, and return its row without the key."""
    recipe, model = run.recipe, run.recipe.model
    recipe.run.output_dir = str(folder)
    for name in ("documents", "tokenizer", "tokens"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to((shared / name).resolve(), target_is_directory=True)
    config = folder / "config.yaml"
    config.write_text(recipe.dump_yaml(), encoding="utf-8")
    command = [*launch, str(ROOT / STAGES["pretrain"].script), "--config", str(config)]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        result = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        last = (folder / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-5:]
        raise SystemExit(f"fit_scaling_law: {run.name} stopped with status {result.returncode}:\n" + "\n".join(last))
    metrics = last_validation(folder)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return {
        "budget_flops": f"{run.budget_flops:.6g}",
        "held_out": int(run.held_out),
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        **{f"{name}_parameters": count for name, count in run.counts.items()},
        "tokens": training["tokens_seen"],
        "steps": metrics["step"],
        "tokens_per_step": recipe.training.tokens_per_step,
        "learning_rate": f"{recipe.training.learning_rate:.6g}",
        "seed": recipe.run.seed,
        "bits_per_byte": f"{metrics['eval/bits_per_byte']:.6f}",
        "repetitions": f"{max(part['repetitions'] for part in training['mixture'].values()):.3f}",
        "seconds": f"{training['seconds']:.1f}",
        "device": training["device"],
        "mixed_precision": training["mixed_precision"],
    }


def last_validation(run: Path) -> dict:
    """Return the line of metrics.jsonl with the scores of the last validation."""
    return [line for line in read_json_lines(run / "metrics.jsonl") if "eval/bits_per_byte" in line][-1]


def read_rows(path: Path) -> dict[str, dict]:
    """Return key -> row of runs.csv."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def add_row(path: Path, row: dict) -> None:
    """Add a row such that the file is the old or the new one, whole, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {**read_rows(path), row["key"]: row}
    partial = path.with_name(f".{path.name}.tmp")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    partial.replace(path)


def collect(rows: list[dict], counts: str, held_out: bool) -> Runs:
    """Make arrays of the rows that are, or are not, held out."""
    chosen = [row for row in rows if bool(int(row["held_out"])) == held_out]
    columns = ("budget_flops", f"{counts}_parameters", "tokens", "bits_per_byte")
    return Runs(*(np.array([float(row[name]) for row in chosen]) for name in columns))


def fit(rows: list[dict], resamples: int, seed: int = 0) -> dict:
    """Fit the rows in all three ways, foretell the held-out runs, and return what fit.json holds.

    Keys: exponents (a of N_opt ~ C^a by approach, with its interval; without approach 2 where fewer than two budgets
    have a minimum between their sizes), law (approach 3) with intervals, parabolas, other_counts (a by approach 3, N
    counted in other ways), held_out (foretold and measured).
    """
    runs = collect(rows, "multiplying", held_out=False)
    parabolas = fit_parabolas(runs)
    law = fit_loss(runs, "multiplying")
    laws = {"approach_1": fit_envelope(runs)}
    if sum(parabola.inside for parabola in parabolas) >= 2:
        laws["approach_2"] = fit_minima(parabolas)
    tested = collect(rows, "multiplying", held_out=True)
    drawn: dict[str, list] = {name: [] for name in ("approach_1", "approach_2", "approach_3", "laws", "foretold")}
    progress = tqdm(resample(runs, parabolas, resamples, seed), "fit_scaling_law: resampling", resamples, leave=False)
    for again in progress:
        again_law = fit_loss(again, "multiplying", start=law)
        drawn["laws"].append(asdict(again_law))
        drawn["approach_1"].append(fit_envelope(again).exponent)
        try:
            drawn["approach_2"].append(fit_minima(fit_parabolas(again)).exponent)
        except ValueError:  # noise took the minima away: the interval is of those that have one, and is said to be
            drawn["approach_2"].append(math.nan)
        drawn["approach_3"].append(size_exponent(again_law))
        drawn["foretold"].append([again_law.loss(n, d) for n, d in zip(tested.parameters, tested.tokens, strict=True)])
    exponents = {
        name: {"a": power_law.exponent, "coefficient": power_law.coefficient, "interval": interval(drawn[name])}
        for name, power_law in laws.items()
    }
    exponents["approach_3"] = {"a": size_exponent(law), "interval": interval(drawn["approach_3"])}
    foretold = [law.loss(n, d) for n, d in zip(tested.parameters, tested.tokens, strict=True)]
    return {
        "unit": "bits per byte of held-out text",
        "counts": "multiplying",
        "runs": len(runs.loss),
        "intervals": "10th to 90th percentile of fits to the runs with their noise drawn anew",
        "resamples": resamples,
        "resamples_without_minima": int(np.isnan(drawn["approach_2"]).sum()),
        "exponents": exponents,
        "law": asdict(law)
        | {"intervals": {key: interval([one[key] for one in drawn["laws"]]) for key in ("E", "alpha", "beta")}},
        "root_mean_square_error": float(
            np.sqrt(
                np.mean(
                    (
                        np.log([law.loss(n, d) for n, d in zip(runs.parameters, runs.tokens, strict=True)])
                        - np.log(runs.loss)
                    )
                    ** 2
                )
            )
        ),
        "parabolas": [
            asdict(p) | {"coefficients": list(p.coefficients), "parameters": p.parameters} for p in parabolas
        ],
        "other_counts": {
            counts: size_exponent(fit_loss(collect(rows, counts, held_out=False), counts))
            for counts in PARAMETER_COUNTS[1:]
        },
        "held_out": [
            {
                "flops": float(flops),
                "parameters": int(n),
                "tokens": int(d),
                "foretold": prediction,
                "interval": interval([one[index] for one in drawn["foretold"]]),
                "measured": float(measured),
                "error_fraction": prediction / float(measured) - 1,
            }
            for index, (flops, n, d, prediction, measured) in enumerate(
                zip(tested.flops, tested.parameters, tested.tokens, foretold, tested.loss, strict=True)
            )
        ],
    }


def describe(found: dict) -> str:
    """Say what was found in a few lines."""
    lines = [
        f"{name.replace('_', ' ')}: N ~ C^{one['a']:.3f} ({one['interval'][0]:.3f} to {one['interval'][1]:.3f})"
        for name, one in found["exponents"].items()
    ]
    law = found["law"]
    lines.append(
        f"L = {law['E']:.3f} + {law['A']:.3g} / N^{law['alpha']:.3f} + {law['B']:.3g} / D^{law['beta']:.3f} "
        "bits per byte"
    )
    for one in found["held_out"]:
        low, high = one["interval"]
        lines.append(
            f"held out, {one['parameters']:,} parameters, {one['tokens']:,} tokens: foretold {one['foretold']:.4f} "
            f"({low:.4f} to {high:.4f}), measured {one['measured']:.4f}, {one['error_fraction']:+.2%}"
        )
    return "\n".join(f"fit_scaling_law: {line}" for line in lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the experiment")
    parser.add_argument("--accelerate_config", type=Path, help="file of accelerate_configs/ to train with")
    parser.add_argument("--num_processes", help="processes to train each run with, where that file leaves it open")
    parser.add_argument("--max_runs", type=int, help="train at most so many runs now, then fit if all are there")
    options = parser.parse_args(argv)
    experiment, runs = load_experiment(options.config)
    results, shared = options.config.parent / experiment.results, Path(runs[0].recipe.run.output_dir)
    if options.max_runs != 0:
        train_all(runs, shared, results / "runs.csv", options)
    rows = list(read_rows(results / "runs.csv").values())
    if len(rows) < len(runs):
        print(f"fit_scaling_law: {len(rows)} of {len(runs)} runs are finished; the same command goes on")
        return
    found = fit(rows, experiment.resamples)
    write_json(results / "fit.json", found)
    draw_isoflop(collect(rows, "multiplying", held_out=False), found, results / "isoflop.png")
    draw_frontier(found, results / "frontier.png")
    print(describe(found))


if __name__ == "__main__":
    run_command(main)
