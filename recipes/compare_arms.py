# SPDX-License-Identifier: Apache-2.0
"""Train the arms of an experiment at the same compute, and put each result into one row of a table.

In:   a file such as experiments/scratch_or_adapt.yaml: a recipe, what each arm lays over it, sizes or budgets, domain
      bytes, seeds, and the base models that arms continue, which are trained first.
Out:  beside it, in <results>: runs.csv, one row a finished run, which is what to keep; curve.png; means.csv, the
      mean of each arm over its seeds and their range; with usual_arm factors.csv, how much text each arm is worth.
      The runs are in <recipe.run.output_dir>.

    python recipes/compare_arms.py --config recipes/experiments/mixture_share.yaml --dry_run     # what it costs
    python recipes/compare_arms.py --config recipes/experiments/mixture_share.yaml
    python recipes/compare_arms.py --config recipes/experiments/mixture_share.yaml --max_runs 0  # only the figure

Arms share the documents unless one changes `data` in more than shares, and arms with the same tokenizer share the
tokens. Finished runs are not trained again, killed ones resume, and several processes divide the rest: see
sweeps/runs.py. A row is keyed by the hash of what the experiment states of its recipe, not of defaults, so state what
you compare. An arm's budget pays for its own model alone, not for its teachers, whose forward passes `flops` of its
row counts. A base model whose folder is gone is trained again. With hub.leak_audit each run is audited by
audit_leaks.py, whose figures are columns of its row.
"""

import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from child_processes import leave_on_signals
from planning.devices import UTILISATION_FRACTION, measure_products
from recipe_loading import run_command
from stages import ROOT, STAGES, exported_tasks
from sweeps.arm_results import draw, write_factors, write_means
from sweeps.arms import ArmRun, load_experiment
from sweeps.runs import (
    KEPT,
    argument_parser,
    choose_launcher,
    export_tasks,
    link,
    locked,
    read_rows,
    recipe_in,
    run_logged,
    run_stage,
    train_missing,
    train_model,
    write_config,
)


def make_tokens(run: ArmRun, config: Path) -> Path:
    """Run the stages up to the tokens for the recipe in `config`, and return their folder.

    Runs of as many domain bytes share the documents, unless their arm changes `data`; of these the runs with the same
    tokenizer share the tokens.
    """
    shared = Path(run.recipe.run.output_dir)
    recipe = recipe_in(config.parent, run.recipe)
    settings = [STAGES[stage].settings(recipe) for stage in ("prepare", "tokenizer", "tokenize")]
    documents = shared / run.documents
    tokens = shared / f"tokens-{hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:16]}"
    for folder in (documents, tokens):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(documents / ".arms.lock"):  # not the own lock of the stages, which run inside
        if exported_tasks(recipe):
            export_tasks(recipe, documents, run.name)
            link(config.parent, documents, "benchmarks")
        run_stage("prepare", [sys.executable], config, documents, run.name)
        link(tokens, documents, "documents")
        run_stage("tokenizer", [sys.executable], config, tokens, run.name)
        run_stage("tokenize", [sys.executable], config, tokens, run.name)
    return tokens


def train(run: ArmRun, folder: Path, bases: dict[str, ArmRun], launcher: list[str]) -> dict:
    """Run the stages up to the model in the run's folder, and return its row without the key."""
    if run.base:
        base = bases[run.base]
        if not (base.folder(base.key) / "model").exists():
            with locked(Path(run.recipe.run.output_dir) / f".base-{run.base}.lock"):
                train(base, base.folder(base.key), bases, launcher)
    for teacher in run.teachers:
        with locked(teacher.folder(teacher.key) / ".claim"):  # another process may be training it
            if not (teacher.folder(teacher.key) / "model").exists():
                train(teacher, teacher.folder(teacher.key), bases, launcher)
    tokens = make_tokens(run, write_config(run.recipe, folder))
    training, scores = train_model(run.recipe, folder, tokens, launcher, run.name)
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
    of_model = run.recipe.scored_as()
    for source in run.recipe.data.sources:
        part = training["mixture"][source.name]
        row |= {
            f"{source.label}_share": f"{part['delivered_fraction']:.4f}",
            f"{source.label}_bits_per_byte": f"{scores[f'{of_model}/bits_per_byte/{source.name}']:.5f}",
            f"{source.label}_bytes_per_token": f"{ratios['domain tokenizer'][source.name]:.4f}",
            f"{source.label}_repetitions": f"{part['repetitions']:.3f}",
        }
        if of_model == "average":
            row[f"{source.label}_of_last_weights"] = f"{scores[f'eval/bits_per_byte/{source.name}']:.5f}"
        if run.recipe.training.distillation is not None:
            row[f"{source.label}_of_teachers"] = f"{scores[f'teachers/bits_per_byte/{source.name}']:.5f}"
    for task in run.recipe.training.eval_tasks:
        row[f"{task}_accuracy"] = f"{scores[f'{of_model}/{task}/accuracy']:.4f}"
        row[f"{task}_gold_bits_per_byte"] = f"{scores[f'{of_model}/{task}/gold_bits_per_byte']:.5f}"
    if run.recipe.hub.leak_audit is not None:
        command = [sys.executable, str(ROOT / "recipes" / "audit_leaks.py"), str(folder)]
        run_logged(command, folder / "log.txt", f"{run.name}: audit")
        row |= leak_columns(json.loads((folder / "audit.json").read_text(encoding="utf-8")))
    computed = {name: training[name] for name in ("device", "mixed_precision")}
    return row | {"seconds": f"{training['seconds']:.1f}", **computed}


def leak_columns(audit: dict) -> dict[str, Any]:
    """Return the columns of a row that say what its model gives away.

    Of each source the documents that are continued word for word for 50 tokens, and how many were audited; of each
    level of data.canaries the mean exposure (0: records that were never planted).
    """
    columns: dict[str, Any] = {}
    for source, sides in audit["verbatim"]["by_source"].items():
        for side in ("trained", "held_out"):
            columns[f"{source}_{side}_continued_50"] = sides[side]["continued"]["50"]["documents"]
            columns[f"{source}_{side}_audited"] = sides[side]["documents"]
    for repetitions, level in audit["canaries"]["by_repetitions"].items() if audit["canaries"] else ():
        low, high = level["interval"]
        columns[f"exposure_bits_{repetitions}"] = f"{level['mean_exposure_bits']:.2f}"
        columns[f"exposure_interval_{repetitions}"] = f"{low:.2f} to {high:.2f}"
    return columns


def describe_cost(bases: dict[str, ArmRun], runs: list[ArmRun], rows: dict[str, dict]) -> str:
    """Return what the runs without a row, and all, cost: at the pace of the rows, or else of this processor."""
    waiting = [run for run in runs if run.key not in rows]
    needed = {run.base for run in waiting if run.base}
    flops = sum(run.flops for run in waiting) + sum(bases[name].flops for name in needed)
    whole = sum(run.flops for run in [*runs, *bases.values()])
    if rows:
        pace = sum(float(row["flops"]) / float(row["seconds"]) for row in rows.values()) / len(rows)
        source = "the pace of the rows"
    else:
        pace = measure_products()["fp32"] * UTILISATION_FRACTION
        cores = len(os.sched_getaffinity(0))
        source = f"{UTILISATION_FRACTION:.0%} of the fp32 product of {cores} cores here, measured now"
    return (
        f"{len(runs)} runs, {len(runs) - len(waiting)} with a row; the others and {len(needed)} base models take "
        f"{flops:.3g} FLOPs, about {flops / pace / 60:.0f} minutes of training at {source}; without the rows it is "
        f"{whole:.3g} FLOPs, about {whole / pace / 60:.0f} minutes"
    )


@leave_on_signals(KEPT)
def main(argv: list[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--dry_run", action="store_true", help="print what the runs without a row cost, then stop")
    options = parser.parse_args(argv)
    experiment, bases, runs = load_experiment(options.config)
    csv_file = options.config.parent / experiment.results / "runs.csv"
    if options.max_runs != 0:
        print(f"compare_arms: {describe_cost(bases, runs, read_rows(csv_file))}")
    if options.dry_run:
        return
    if options.max_runs != 0:
        everything = [*bases.values(), *runs]
        begun = (run.folder(run.key) for run in everything)
        launcher = choose_launcher(options, everything[0].recipe, csv_file, begun)
        train_run = partial(train, bases=bases, launcher=launcher)
        shared = Path(experiment.recipe["run"]["output_dir"])
        train_missing({run.key: run for run in runs}, csv_file, shared, train_run, options.max_runs)
    rows = list(read_rows(csv_file).values())
    if rows:
        draw(rows, experiment.x, csv_file.parent / "curve.png", experiment.usual_arm)
        write_means(rows, csv_file.parent / "means.csv")
        if experiment.usual_arm is not None:
            write_factors(rows, experiment.usual_arm, csv_file.parent / "factors.csv")
        print(f"compare_arms: {len(rows)} rows in {csv_file}, drawn in {csv_file.parent / 'curve.png'}")


if __name__ == "__main__":
    run_command(main)
