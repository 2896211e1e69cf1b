# SPDX-License-Identifier: Apache-2.0
"""Train the arms of an experiment at the same compute, and put each result into one row of a table.

In:   a file such as experiments/scratch_or_adapt.yaml: a recipe, what each arm lays over it, budgets, domain bytes,
      seeds, and models that arms go on from, which are trained first.
Out:  beside it, in <results>: runs.csv, one row a finished run, which is what to keep; curve.png. Runs lie in
      <recipe.run.output_dir>.

    python recipes/compare_arms.py --config recipes/experiments/mixture_share.yaml --dry_run     # what it costs
    python recipes/compare_arms.py --config recipes/experiments/mixture_share.yaml
    python recipes/compare_arms.py --config recipes/experiments/mixture_share.yaml --max_runs 0  # only the figure

Each run is the stages of a recipe as any recipe starts them, on documents that all arms share. A row is keyed by the
hash of its resolved recipe; what has a row is not trained again, and a run that was killed goes on. Models that arms
go on from are trained anew where their folder is gone, from their configuration.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
from pydantic import Field
from tqdm import tqdm

from fit_scaling_law import add_row, claimed, locked, read_experiment, read_rows
from planning.model_shape import count_parameters
from recipe_config import Name, Positive, PositiveFloat, Recipe, RecipeError, Section
from recipe_loading import merge, run_command, validate
from run_folder import ROOT, STAGES
from run_recipe import launch_command


BASE_PREFIX = "base:"  # `from_pretrained: base:general` is the model of the base `general`
FORWARD_AND_BACKWARD, FORWARD_ONLY_WEIGHTS = 6, 4  # FLOPs a parameter and token, where it is trained and where not


class Experiment(Section):
    """The file that --config names."""

    results: str
    """Folder for runs.csv and the figure, beside the file."""
    flops: Annotated[list[PositiveFloat], Field(min_length=1)]
    """Budgets: compute of each run, that of a model it goes on from not counted."""
    domain_bytes: list[Positive] = []
    """Bytes of each source with a domain other than general that a run may read. Empty: all there is."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    """Seeds of the weights and the order."""
    x: str
    """Column that the figure's horizontal axis shows."""
    bases: dict[Name, dict] = {}
    """Models that arms go on from: name -> {flops, and what is laid over the recipe}."""
    arms: Annotated[dict[Name, dict], Field(min_length=2)]
    """Name -> what is laid over the recipe."""
    recipe: dict
    """The recipe that all share, without training.max_tokens."""


@dataclass(frozen=True)
class Run:
    """One training run: of an arm, or of a base.

    Attributes:
        arm, flops, domain_bytes: its place in the grid; domain_bytes is None for all there is.
        recipe: all of it.
        base: the base it goes on from.
    """

    arm: str
    flops: float
    domain_bytes: int | None
    recipe: Recipe
    base: str | None

    @property
    def name(self) -> str:
        limit = "" if self.domain_bytes is None else f", {self.domain_bytes / 1e6:g} MB of domain text"
        return f"{self.arm}, {self.flops:.3g} FLOPs{limit}, seed {self.recipe.run.seed}"

    @property
    def key(self) -> str:
        """The hash of the resolved recipe, which names the bases by their own."""
        stated = self.recipe.model_dump(exclude={"run": {"output_dir"}, "hub": True, "plan": True})
        return hashlib.sha256(json.dumps(stated, sort_keys=True, default=str).encode()).hexdigest()[:16]


def load_experiment(path: Path) -> tuple[Experiment, dict[str, Run], list[Run]]:
    """Read the file and make the recipe of every base and every run.

    Raises: RecipeError: with every problem of the experiment, or of a recipe in it.
    """
    experiment, _ = read_experiment(path, Experiment)
    if experiment.x == "domain_bytes" and not experiment.domain_bytes:
        raise RecipeError(
            f"{path}: x: domain_bytes is the axis, but there are none; list some, or choose another column"
        )
    bases = {}
    for name, over in experiment.bases.items():
        over = dict(over)
        bases[name] = plan(path, experiment, name, over.pop("flops"), None, experiment.seeds[0], over, {})
    runs = [
        plan(path, experiment, arm, flops, limit, seed, over, bases)
        for flops in experiment.flops
        for limit in experiment.domain_bytes or [None]
        for seed in experiment.seeds
        for arm, over in experiment.arms.items()
    ]
    return experiment, bases, runs


def plan(
    path: Path, experiment: Experiment, arm: str, flops: float, limit: int | None, seed: int, over: dict, bases: dict
) -> Run:
    """Make one run's recipe: the arm laid over the shared one, and as many tokens as the budget pays for."""
    values = merge(merge(experiment.recipe, over), {"run": {"seed": seed}})
    shares = values["data"].pop("shares", {}) if "shares" in values["data"] else {}
    values["data"] = {**values["data"], "sources": [dict(source) for source in values["data"]["sources"]]}
    for source in values["data"]["sources"]:
        if source["name"] in shares:
            source["share"] = shares[source["name"]]
        if limit is not None and source.get("domain") != "general":
            source["max_bytes"] = limit
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
    recipe.data.extract_text = recipe.data.extract_text or str(ROOT / "recipes" / "custom" / "data.py")
    return Run(arm, flops, limit, recipe, next(iter(used), None))


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
    folder = Path(folder_of(run, experiment))
    folder.mkdir(parents=True, exist_ok=True)
    run.recipe.run.output_dir = str(folder)
    # What was read and cleaned once is the same for all runs of as many bytes.
    documents = Path(experiment.recipe["run"]["output_dir"]) / f"documents-{run.domain_bytes or 'all'}"
    documents.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(run.recipe.dump_yaml(), encoding="utf-8")
    for name in ("prepare", "tokenizer", "tokenize", "pretrain"):
        command = launch if name == "pretrain" else [sys.executable]
        command = [*command, str(ROOT / STAGES[name].script), "--config", str(config)]
        if name == "prepare":
            command.append(f"--run.output_dir={documents}")
        with locked(documents / ".lock"), (folder / "log.txt").open("a", encoding="utf-8") as log:
            result = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
        if result.returncode:
            last = (folder / "log.txt").read_text(encoding="utf-8").strip().splitlines()[-5:]
            raise SystemExit(f"compare_arms: {run.name} stopped in {name}:\n" + "\n".join(last))
        if name == "prepare" and not (folder / "documents").exists():
            (folder / "documents").symlink_to((documents / "documents").resolve(), target_is_directory=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = [line for line in lines if "eval/bits_per_byte" in line][-1]
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    ratios = json.loads((folder / "tokenizer" / "report.json").read_text(encoding="utf-8"))["bytes_per_token"]
    row: dict[str, Any] = {
        "arm": run.arm,
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
    return row | {"seconds": f"{training['seconds']:.1f}", "device": training["device"]}


def draw(experiment: Experiment, rows: list[dict], path: Path) -> None:
    """Draw bits per byte of each label over the column that the experiment names, a line for each arm or one for all.

    Arms that are points of one line, as shares are, share it; where the axis is a budget, each arm has its own.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = [name.removesuffix("_bits_per_byte") for name in rows[0] if name.endswith("_bits_per_byte")]
    figure, axes = pyplot.subplots(1, len(labels), figsize=(5 * len(labels), 4), squeeze=False)
    by_arm = experiment.x in ("budget_flops", "domain_bytes")
    for axis, label in zip(axes[0], labels, strict=True):
        for arm in dict.fromkeys(row["arm"] for row in rows) if by_arm else [None]:
            chosen = [row for row in rows if arm in (None, row["arm"])]
            points = sorted((float(row[experiment.x]), float(row[f"{label}_bits_per_byte"])) for row in chosen)
            axis.plot(*zip(*points, strict=True), marker="o", label=arm)
        axis.set(xlabel=experiment.x, ylabel=f"bits per byte of held-out text, {label}")
        if by_arm:
            axis.set_xscale("log")
            axis.legend()
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
    seconds = [float(row["seconds"]) / float(row["flops"]) for row in done.values()]
    pace = (
        f", about {compute * sum(seconds) / len(seconds) / 60:.0f} minutes at the pace of the rows" if seconds else ""
    )
    print(
        f"compare_arms: {len(runs)} runs, {len(runs) - len(waiting)} with a row; the others and {len(needed)} models "
        f"to go on from take {compute:.3g} FLOPs{pace}"
    )
    if options.dry_run:
        return
    total = len(waiting) if options.max_runs is None else min(options.max_runs, len(waiting))
    for name in tqdm(train_all(experiment, bases, runs, csv_file, options), "compare_arms", total, unit=" runs"):
        tqdm.write(f"compare_arms: {name}: {csv_file}")
    rows = list(read_rows(csv_file).values())
    if rows:
        draw(experiment, rows, csv_file.parent / "curve.png")
        print(f"compare_arms: {len(rows)} rows in {csv_file}, drawn in {csv_file.parent / 'curve.png'}")


if __name__ == "__main__":
    run_command(main)
