# SPDX-License-Identifier: Apache-2.0
"""Train the arms of an experiment at the same compute, and put each result into one row of a table.

In:   a file such as experiments/scratch_or_adapt.yaml: a recipe, what each arm lays over it, sizes or budgets, domain
      bytes, seeds, and models that arms go on from, which are trained first.
Out:  beside it, in <results>: runs.csv, one row a finished run, which is what to keep; curve.png; README.md, a table
      of the rows. Runs lie in <recipe.run.output_dir>.

    python recipes/compare_arms.py --config recipes/experiments/mixture_share.yaml --dry_run     # what it costs
    python recipes/compare_arms.py --config recipes/experiments/mixture_share.yaml
    python recipes/compare_arms.py --config recipes/experiments/mixture_share.yaml --max_runs 0  # only the figure

Each run is the stages of a recipe as any recipe starts them, on documents that all arms share, and on the same tokens
where they ask for the same. A row is keyed by the hash of what the experiment states of its recipe, so state what you
compare, in every arm or in `recipe`; what has a row is not trained again, and a run that was killed goes on. Models
that arms go on from are trained anew where their folder is gone, from their configuration.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import matplotlib
from pydantic import Field
from tqdm import tqdm

from fit_scaling_law import add_row, claimed, last_validation, locked, read_experiment, read_rows
from launching import launch_command
from planning.devices import UTILISATION_FRACTION, measure_products
from planning.model_shape import count_parameters
from recipe_config import Name, Positive, PositiveFloat, Recipe, RecipeError, Section
from recipe_loading import merge, run_command, validate
from run_folder import is_finished, new_output
from stages import ROOT, STAGES, exported_tasks


BASE_PREFIX = "base:"  # `from_pretrained: base:general` is the model of the base `general`
FORWARD_AND_BACKWARD, FORWARD_ONLY_WEIGHTS = 6, 4  # FLOPs a parameter and token, where it is trained and where not


class Experiment(Section):
    """The file that --config names."""

    results: str
    """Folder for runs.csv and the figure, beside the file."""
    flops: list[PositiveFloat] = []
    """Budgets: compute of each run, that of a model it goes on from not counted."""
    sizes: dict[Name, dict] = {}
    """In place of flops: name -> {flops, and what is laid over the recipe, such as model}."""
    domain_bytes: list[Positive] = []
    """Bytes of each source with a domain other than general that a run may train on, the same held out. Empty: all."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    """Seeds of the weights and the order. An arm may have `seeds` of its own."""
    x: str
    """Column that the figure's horizontal axis shows, or `arm` for a row of points an arm."""
    bases: dict[Name, dict] = {}
    """Models that arms go on from: name -> {flops, and what is laid over the recipe}."""
    arms: Annotated[dict[Name, dict], Field(min_length=2)]
    """Name -> what is laid over the recipe."""
    recipe: dict
    """The recipe that all share, without training.max_tokens."""

    def problems(self):
        if bool(self.flops) == bool(self.sizes):
            yield "flops", "give either flops or sizes, which have their own"
        for name, over in self.sizes.items():
            if not isinstance(over.get("flops"), (int, float)):
                yield f"sizes.{name}.flops", "missing; the compute of each run of this size"
        if self.x == "domain_bytes" and not self.domain_bytes:
            yield "x", "domain_bytes is the axis, but there are none; list some, or choose another column"


@dataclass(frozen=True)
class Run:
    """One training run: of an arm, or of a base.

    Attributes:
        arm, size, flops, domain_bytes: its place in the grid; domain_bytes is None for all there is.
        recipe: all of it.
        base: the base it goes on from.
    """

    arm: str
    size: str | None
    flops: float
    domain_bytes: int | None
    recipe: Recipe
    base: str | None

    @property
    def name(self) -> str:
        limit = "" if self.domain_bytes is None else f", {self.domain_bytes / 1e6:g} MB of domain text"
        size = "" if self.size is None else f"{self.size}, "
        return f"{self.arm}, {size}{self.flops:.3g} FLOPs{limit}, seed {self.recipe.run.seed}"

    @property
    def key(self) -> str:
        """The hash of what is stated of the recipe, which names the bases by their own."""
        stated = self.recipe.model_dump(exclude_unset=True, exclude={"run": {"output_dir"}, "hub": True, "plan": True})
        return hashlib.sha256(json.dumps(stated, sort_keys=True, default=str).encode()).hexdigest()[:16]


def load_experiment(path: Path) -> tuple[Experiment, dict[str, Run], list[Run]]:
    """Read the file and make the recipe of every base and every run.

    Raises: RecipeError: with every problem of the experiment, or of a recipe in it.
    """
    experiment, _ = read_experiment(path, Experiment)
    if problems := [f"{path}: {key}: {text}" for key, text in experiment.problems()]:
        raise RecipeError(*problems)
    bases = {}
    for name, over in experiment.bases.items():
        over = dict(over)
        bases[name] = plan(path, experiment, name, None, over.pop("flops"), None, experiment.seeds[0], over, {})
    # None stands for the recipe's own size.
    sizes = experiment.sizes or dict.fromkeys([None], {})
    runs = [
        plan(
            path,
            experiment,
            arm,
            size,
            flops,
            limit,
            seed,
            merge(without(large, "flops"), without(over, "seeds")),
            bases,
        )
        for size, large in sizes.items()
        for flops in experiment.flops or [large["flops"]]
        for limit in experiment.domain_bytes or [None]
        for arm, over in experiment.arms.items()
        for seed in over.get("seeds", experiment.seeds)
    ]
    return experiment, bases, runs


def without(values: dict, key: str) -> dict:
    return {name: value for name, value in values.items() if name != key}


def plan(
    path: Path,
    experiment: Experiment,
    arm: str,
    size: str | None,
    flops: float,
    limit: int | None,
    seed: int,
    over: dict,
    bases: dict,
) -> Run:
    """Make one run's recipe: what the arm lays over the shared one, and as many tokens as the budget pays for."""
    values = merge(merge(experiment.recipe, over), {"run": {"seed": seed}})
    shares = values["data"].pop("shares", {}) if "shares" in values["data"] else {}
    values["data"] = {**values["data"], "sources": [dict(source) for source in values["data"]["sources"]]}
    for source in values["data"]["sources"]:
        if source["name"] in shares:
            source["share"] = shares[source["name"]]
        if limit is not None and source.get("domain") != "general":
            source["max_training_bytes"] = limit
    used = set()
    for section in ("model", "tokenizer"):
        named = values.get(section, {}).get("from_pretrained") or ""
        if named.startswith(BASE_PREFIX):
            base = named.removeprefix(BASE_PREFIX)
            if base not in bases:
                raise RecipeError(f"{path}: arms.{arm}: no base {base!r}; there are {', '.join(bases) or 'none'}")
            used.add(base)
            values[section] = {**values[section], "from_pretrained": folder_of(bases[base], experiment) + "/model"}
            if section == "tokenizer":
                values[section]["from_pretrained"] = folder_of(bases[base], experiment) + "/tokenizer"
    training = values["training"]
    draft, problems = validate({**values, "training": {**training, "max_tokens": training["tokens_per_step"]}}, {})
    if draft is None:
        raise RecipeError(*(f"{path}: arms.{arm}: {problem}" for problem in problems))
    tokens = flops / flops_per_token(draft)
    steps = max(1, round(tokens / training["tokens_per_step"]))
    recipe, problems = validate(
        {**values, "training": {**training, "max_tokens": steps * training["tokens_per_step"]}}, {}
    )
    if problems:
        raise RecipeError(*(f"{path}: arms.{arm}: {problem}" for problem in problems))
    return Run(arm, size, flops, limit, recipe, next(iter(used), None))


def flops_per_token(recipe: Recipe) -> float:
    """Return the training FLOPs a token: 6 for a parameter that multiplies, 4 for one that stays as it is.

    The shape is the recipe's, which in an experiment is that of its bases too; adapters are small and left out.
    """
    extra = recipe.tokenizer.extend_by or 0
    multiplying = count_parameters(recipe.model, recipe.tokenizer.vocab_size + extra)["multiplying"]
    return (FORWARD_AND_BACKWARD if recipe.model.lora is None else FORWARD_ONLY_WEIGHTS) * multiplying


def folder_of(run: Run, experiment: Experiment) -> str:
    return f"{experiment.recipe['run']['output_dir']}/runs/{run.key}"


def train(run: Run, experiment: Experiment, launch: list[str]) -> dict:
    """Run the stages up to the model in the run's folder, and return its row without the key."""
    folder, shared = Path(folder_of(run, experiment)), Path(experiment.recipe["run"]["output_dir"])
    recipe = run.recipe.model_copy(deep=True)
    recipe.run.output_dir = str(folder)
    recipe.data.extract_text = recipe.data.extract_text or str(ROOT / "recipes" / "custom" / "data.py")
    # What was read and cleaned once is the same for all runs of as many bytes, and the tokens for all that ask for the
    # same ones.
    documents = shared / f"documents-{run.domain_bytes or 'all'}"
    asked = json.dumps([STAGES[name].settings(recipe) for name in ("prepare", "tokenizer", "tokenize")], default=str)
    tokens = shared / f"tokens-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
    for place in (folder, documents, tokens):
        place.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(recipe.dump_yaml(), encoding="utf-8")
    with locked(documents / ".lock"):
        if exported_tasks(recipe):
            export_tasks(recipe, documents, run.name)
            link(folder, documents, "benchmarks")
        run_stage("prepare", [sys.executable], config, documents, run.name)
        link(tokens, documents, "documents")
        run_stage("tokenizer", [sys.executable], config, tokens, run.name)
        run_stage("tokenize", [sys.executable], config, tokens, run.name)
    for name in ("documents", "tokenizer", "tokens"):
        link(folder, tokens, name)
    run_stage("pretrain", launch, config, folder, run.name)
    metrics = last_validation(folder)
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    ratios = json.loads((folder / "tokenizer" / "report.json").read_text(encoding="utf-8"))["bytes_per_token"]
    row: dict[str, Any] = {
        "arm": run.arm,
        "size": run.size or "",
        "budget_flops": f"{run.flops:.6g}",
        "domain_bytes": run.domain_bytes or "all",
        "seed": run.recipe.run.seed,
        "parameters": training["parameters"]["total"],
        "trained": training["parameters"]["trained"],
        "flops": f"{training['flops']:.4g}",
        "tokens": training["tokens_seen"],
    }
    for source in run.recipe.data.sources:
        part = training["mixture"][source.name]
        row |= {
            f"{source.label}_share": f"{part['delivered_fraction']:.4f}",
            f"{source.label}_bits_per_byte": f"{metrics[f'eval/bits_per_byte/{source.name}']:.5f}",
            f"{source.label}_bytes_per_token": f"{ratios['domain tokenizer'][source.name]:.4f}",
            f"{source.label}_repetitions": f"{part['repetitions']:.3f}",
        }
    for task in run.recipe.training.eval_tasks:
        row[f"{task}_accuracy"] = f"{metrics[f'eval/{task}/accuracy']:.4f}"
        row[f"{task}_gold_bits_per_byte"] = f"{metrics[f'eval/{task}/gold_bits_per_byte']:.5f}"
    return row | {"seconds": f"{training['seconds']:.1f}", "device": training["device"]}


def export_tasks(recipe: Recipe, documents: Path, run_name: str) -> None:
    """Write the items of the recipe's tasks into documents/benchmarks, where prepare finds what to keep out."""
    recipe = recipe.model_copy(deep=True)
    recipe.run.output_dir = str(documents)
    if not is_finished(recipe, "requests", overwrite=False):
        with new_output(recipe, "requests") as folder:
            command = [sys.executable, *STAGES["requests"].command(recipe), str(folder)]
            run_logged("requests", command, documents, run_name)


def run_stage(name: str, launch: list[str], config: Path, output_dir: Path, run_name: str) -> None:
    """Run a stage of config's recipe in output_dir."""
    command = [*launch, str(ROOT / STAGES[name].script), "--config", str(config), f"--run.output_dir={output_dir}"]
    run_logged(name, command, output_dir, run_name)


def run_logged(name: str, command: list[str], output_dir: Path, run_name: str) -> None:
    """Run a stage's command; what it says goes to output_dir/log.txt."""
    with (output_dir / "log.txt").open("a", encoding="utf-8") as log:
        result = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        last = (output_dir / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-5:]
        raise SystemExit(f"compare_arms: {run_name} stopped in {name}:\n" + "\n".join(last))


def link(folder: Path, to: Path, name: str) -> None:
    """Have folder/name lead to what is in another folder."""
    if not (folder / name).is_symlink():
        (folder / name).symlink_to((to / name).resolve(), target_is_directory=True)


def labels_of(rows: list[dict]) -> list[str]:
    ending = "_bits_per_byte"
    return [
        name.removesuffix(ending) for name in rows[0] if name.endswith(ending) and not name.endswith("_gold" + ending)
    ]


def tasks_of(rows: list[dict]) -> list[str]:
    return [name.removesuffix("_accuracy") for name in rows[0] if name.endswith("_accuracy")]


def draw_arms(rows: list[dict], path: Path) -> None:
    """Draw a row of points an arm: bits per byte of each label, by size and seed."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels, arms = labels_of(rows), list(dict.fromkeys(row["arm"] for row in rows))
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    figure, axes = pyplot.subplots(
        len(sizes), len(labels), figsize=(5 * len(labels), (1 + 0.3 * len(arms)) * len(sizes)), squeeze=False
    )
    for of_size, size in zip(axes, sizes, strict=True):
        for axis, label in zip(of_size, labels, strict=True):
            chosen = [row for row in rows if row["size"] == size]
            bits = [float(row[f"{label}_bits_per_byte"]) for row in chosen]
            axis.plot(bits, [arms.index(row["arm"]) for row in chosen], "o", alpha=0.7)
            axis.set_yticks(range(len(arms)), arms, fontsize="small")
            axis.set(xlabel=f"bits per byte of held-out text, {label}", title=size, ylim=(len(arms) - 0.5, -0.5))
            axis.grid(axis="y", linewidth=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_page(experiment: Experiment, rows: list[dict], path: Path) -> None:
    """Write README.md of the results: each arm's mean over its seeds, and how far they lie apart."""
    labels, tasks = labels_of(rows), tasks_of(rows)
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["size"], row["parameters"], row["tokens"], row["domain_bytes"]), []).append(
            row
        )
    lines = [
        f"# {experiment.results.replace('_', ' ').capitalize()}",
        "",
        "Written by `recipes/compare_arms.py` from [runs.csv](runs.csv). Bits per byte of validation text, lower is",
        "better"
        + ("; accuracy of tasks" if tasks else "")
        + "; of several seeds the mean, and in brackets how far the highest is above the lowest.",
        "",
        "![bits per byte](curve.png)",
        "",
        "| arm | size | parameters | tokens | bytes of domain text | seeds | " + " | ".join(labels + tasks) + " |",
        "|---|---|--:|--:|--:|--:|" + "--:|" * len(labels + tasks),
    ]
    for (arm, size, parameters, tokens, domain_bytes), group in groups.items():
        cells = [arm, size, f"{int(parameters):,}", f"{int(tokens):,}", domain_bytes, str(len(group))]
        for column in [f"{label}_bits_per_byte" for label in labels] + [f"{task}_accuracy" for task in tasks]:
            values = [float(row[column]) for row in group]
            apart = f" ({max(values) - min(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{sum(values) / len(values):.3f}{apart}")
        lines.append(f"| {' | '.join(cells)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(experiment: Experiment, rows: list[dict], path: Path) -> None:
    """Draw bits per byte of each label over the column that the experiment names, a line for each arm or one for all.

    Of several seeds the line is the mean, and each is a point. Arms that are points of one line, as shares are, share
    it; where the axis is a budget, each arm has its own.
    """
    if experiment.x == "arm":
        return draw_arms(rows, path)
    matplotlib.use("Agg")
    from matplotlib import pyplot

    measures = {f"{label}_bits_per_byte": f"bits per byte of held-out text, {label}" for label in labels_of(rows)}
    measures |= {f"{task}_accuracy": f"accuracy, {task}" for task in tasks_of(rows)}
    by_arm = experiment.x in ("budget_flops", "domain_bytes")
    # Lines over domain bytes are of one budget each: where two of them cross, one road becomes the better one.
    budgets = sorted({float(row["budget_flops"]) for row in rows}) if experiment.x == "domain_bytes" else [None]
    size = (4.6 * len(measures), 3.8 * len(budgets))
    figure, axes = pyplot.subplots(len(budgets), len(measures), figsize=size, squeeze=False)
    for of_budget, budget in zip(axes, budgets, strict=True):
        shown = [row for row in rows if budget in (None, float(row["budget_flops"]))]
        for axis, (column, title) in zip(of_budget, measures.items(), strict=True):
            for arm in dict.fromkeys(row["arm"] for row in shown) if by_arm else [None]:
                seeds: dict[float, list[float]] = {}
                for row in shown:
                    if arm in (None, row["arm"]):
                        seeds.setdefault(float(row[experiment.x]), []).append(float(row[column]))
                places = sorted(seeds)
                (line,) = axis.plot(places, [mean(seeds[place]) for place in places], label=arm)
                every = [(place, value) for place in places for value in seeds[place]]
                axis.plot(*zip(*every, strict=True), "o", color=line.get_color(), alpha=0.6)
            axis.set(xlabel=experiment.x, ylabel=title, title="" if budget is None else f"{budget:.3g} FLOPs")
            if by_arm:
                axis.set_xscale("log")
    if by_arm:
        axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def train_all(
    experiment: Experiment, bases: dict[str, Run], runs: list[Run], csv_file: Path, options
) -> Iterator[str]:
    """Train what has no row and what no other process is at, adding a row as each ends; yield the names."""
    shared = Path(experiment.recipe["run"]["output_dir"])
    launch = launch_command(options.accelerate_config, options.num_processes)
    left = len(runs) if options.max_runs is None else options.max_runs
    for run in runs:
        if not left or run.key in read_rows(csv_file):
            continue
        folder = shared / "runs" / run.key
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder / ".claim") as mine:
            if not mine or run.key in read_rows(csv_file):
                continue
            if run.base and not Path(folder_of(bases[run.base], experiment), "model").exists():
                with locked(shared / f".base-{run.base}.lock"):
                    train(bases[run.base], experiment, launch)
            key = run.key
            row = {"key": key, **train(run, experiment, launch)}
            with locked(shared / ".rows.lock"):
                add_row(csv_file, row)
        left -= 1
        yield run.name


def estimate(flops: float, rows: list[dict]) -> str:
    """Say how long training of so many FLOPs takes, by the rows there are, or else by this machine's processor."""
    if rows:
        pace, source = (
            sum(float(row["flops"]) / float(row["seconds"]) for row in rows) / len(rows),
            "the pace of the rows",
        )
    else:
        pace = measure_products()["fp32"] * UTILISATION_FRACTION
        cores = len(os.sched_getaffinity(0))
        source = f"{UTILISATION_FRACTION:.0%} of the fp32 product of {cores} cores here, measured now"
    return f"about {flops / pace / 60:.0f} minutes of training at {source}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="the experiment")
    parser.add_argument("--max_runs", type=int, help="train so many runs at most, then stop; 0 only draws")
    parser.add_argument("--dry_run", action="store_true", help="say what the runs that have no row cost, then stop")
    parser.add_argument("--accelerate_config", help="file for accelerate launch; none: one process")
    parser.add_argument("--num_processes", help="processes of accelerate launch")
    options = parser.parse_args(argv)
    experiment, bases, runs = load_experiment(options.config)
    csv_file = options.config.parent / experiment.results / "runs.csv"
    done = read_rows(csv_file)
    waiting = [run for run in runs if run.key not in done]
    needed = {run.base for run in waiting if run.base}
    compute = sum(run.flops for run in waiting) + sum(bases[name].flops for name in needed)
    if options.max_runs != 0:
        print(
            f"compare_arms: {len(runs)} runs, {len(runs) - len(waiting)} with a row; the others and {len(needed)} "
            f"models to go on from take {compute:.3g} FLOPs, {estimate(compute, list(done.values()))}"
        )
    if options.dry_run:
        return
    total = len(waiting) if options.max_runs is None else min(options.max_runs, len(waiting))
    for name in tqdm(train_all(experiment, bases, runs, csv_file, options), "compare_arms", total, unit=" runs"):
        tqdm.write(f"compare_arms: {name}: {csv_file}")
    rows = list(read_rows(csv_file).values())
    if rows:
        draw(experiment, rows, csv_file.parent / "curve.png")
        write_page(experiment, rows, csv_file.parent / "README.md")
        print(f"compare_arms: {len(rows)} rows in {csv_file}, drawn in {csv_file.parent / 'curve.png'}")


if __name__ == "__main__":
    run_command(main)
