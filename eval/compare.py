# SPDX-License-Identifier: Apache-2.0
"""Compare evaluated models on the same items and documents: a table, paired differences, win rates, a figure.

In:  two or more evaluations: folders with results.json and items/, as run_eval.py writes them, or run folders with one
     in eval/. The others are compared with the first.
Out: a table on the terminal; with --output, comparison.json, comparison.md and figures/comparison.png in that folder.

    python eval/compare.py runs/legal-a runs/legal-b
    python eval/compare.py runs/legal-a runs/legal-a/eval/baselines/HuggingFaceTB--SmolLM2-135M --output comparison

Differences are judged on the same items: each resample of the bootstrap draws items, or families of documents, with
both models' results, so that items that are hard for both add no noise. P-values are corrected for the number of
comparisons by Holm's method. A model's win rate is the fraction of its comparisons, over tasks and other models, in
which it scores higher, as in BloombergGPT, section 5.1. Ties count half, and the tasks of one benchmark count as one.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from figure_style import COLORS, MARKERS, save_figure, style
from intervals import Score, combine, family_sums, holm, p_value_of, paired
from item_scores import METRICS, gold_bits
from run_files import read_lines
from wording import plain, table


PARTS = ("bits_per_byte", "groups", "tasks", "gold_bits_per_byte")


def find_evaluation(path: Path) -> Path:
    """Return the folder with results.json: the path or its eval/. Raises: SystemExit: neither has one."""
    for folder in (path, path / "eval"):
        if (folder / "results.json").is_file():
            return folder
    raise SystemExit(f"{path}: no results.json in it nor in its eval/; run eval/run_eval.py first")


def read_items(folder: Path, name: str) -> dict[str, dict]:
    path = folder / "items" / f"{name}.jsonl"
    return {item["id"]: item for item in read_lines(path.read_text(encoding="utf-8"))} if path.is_file() else {}


def bits(documents: list[dict]) -> Score:
    """Return a function from drawn families of documents to their bits per byte."""
    nats, sizes = (family_sums(documents, key) for key in ("nats", "bytes"))
    return lambda draw: float(nats[draw].sum() / np.log(2) / sizes[draw].sum())


def compare_items(items: list[dict[str, dict]], name: str, scorer, seed: int) -> dict | None:
    """Compare evaluations on the items of `name` that all of them scored; None for fewer than two items.

    Documents count by the first evaluation's families, so that a draw is of the same documents in all of them.

    Args: items: of each evaluation, by what names an item.
    """
    shared = [key for key in items[0] if all(key in each for each in items[1:])]
    if len(shared) < 2:
        return None
    rows, size = [[each[key] for key in shared] for each in items], len(shared)
    if scorer is bits:
        families = [{"family": row.get("family")} for row in rows[0]]
        rows = [[row | family for row, family in zip(each, families, strict=True)] for each in rows]
        size = len(family_sums(rows[0], "bytes"))
    scores = [scorer(each) for each in rows]
    every = np.arange(size)
    return {
        "num_items": len(shared),
        "left_out": max(len(each) for each in items) - len(shared),
        "scores": [score(every) for score in scores],
        "against_first": [None, *(paired(scores[0], score, name, size, seed) for score in scores[1:])],
    }


def differing(tasks: list[dict]) -> str | None:
    """Return what differs between evaluations of a task, None if they scored the same.

    An item's id may be the number of its row, which names another item in another version of the data. Earlier
    evaluations do not state all of this, and what is not stated is taken to be the same.
    """
    datasets = [task.get("dataset") or {} for task in tasks]
    digest = "sha256" if all(each.get("sha256") for each in datasets) else "revision"
    stated = {
        "items": [each.get(digest) for each in datasets],
        "num_fewshot": [task.get("num_fewshot") for task in tasks],
        "version": [task.get("version") for task in tasks],
    }
    found = []
    for name, values in stated.items():
        if len({value for value in values if value is not None}) > 1:
            found.append(f"{name} ({', '.join('unknown' if value is None else str(value)[:12] for value in values)})")
    return " and ".join(found) or None


def compare_groups(results: dict, tasks: dict[str, dict]) -> dict[str, dict]:
    """Compare the means of groups of tasks, and of parts of groups, whose tasks all evaluations scored."""
    compared = {}
    for name, group in (results.get("groups", {}) | results.get("group_parts", {})).items():
        members = [
            entry for task, entry in tasks.items() if group.get("group", name) in results["tasks"][task]["groups"]
        ]
        if len(members) < max(2, group["num_tasks"]):
            continue
        against: list[dict | None] = [None]
        for pairs in zip(*(entry["against_first"][1:] for entry in members), strict=True):
            difference, interval = combine(
                [each["difference"] for each in pairs], [each["interval"] for each in pairs]
            )
            stderr = float(np.sqrt(sum(each["stderr"] ** 2 for each in pairs))) / len(pairs)
            p_value = p_value_of(difference, stderr, sum(entry["num_items"] for entry in members))
            against.append({"difference": difference, "stderr": stderr, "interval": interval, "p_value": p_value})
        compared[name] = {
            "num_items": sum(entry["num_items"] for entry in members),
            "scores": np.mean([entry["scores"] for entry in members], axis=0).tolist(),
            "against_first": against,
            "metric": group["score"],
        }
    return compared


def compare(folders: list[Path], seed: int = 0) -> dict:
    """Compare evaluations.

    Returns: comparison.json's content: "models"; "bits_per_byte", "tasks", "groups" and "gold_bits_per_byte" (of the
        right continuations), each {name: {"num_items", "scores" (one for each model), "against_first" (None for the
        first model, else from `paired` with "p_adjusted" and "beyond_noise", p_adjusted < 0.05), "metric"}};
        "win_rates", one for each model, over "tasks"; "not_compared", {task: what differs}.
    """
    results = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
    compared: dict = {
        "format": 2,  # in format 1, beyond_noise was not corrected for the number of comparisons
        "models": [result["model"] for result in results],
        "folders": [str(folder) for folder in folders],
        "bits_per_byte": {},
        "tasks": {},
        "groups": {},
        "gold_bits_per_byte": {},
        "not_compared": {},
    }
    for source in results[0]["bits_per_byte"]["sources"]:
        name = f"documents.{source}"
        entry = compare_items([read_items(folder, name) for folder in folders], name, bits, seed)
        if entry:
            compared["bits_per_byte"][source] = entry
    for name, task in results[0]["tasks"].items():
        if why := differing([result["tasks"][name] for result in results if name in result["tasks"]]):
            compared["not_compared"][name] = why
            continue
        items = [read_items(folder, name) for folder in folders]
        entry = compare_items(items, name, METRICS[task["score"]], seed)
        if entry:
            compared["tasks"][name] = entry | {"metric": task["score"], "chance": task["chance"]}
        if entry and task["gold_bits_per_byte"]:
            compared["gold_bits_per_byte"][name] = compare_items(items, name, gold_bits, seed)
    compared["groups"] = compare_groups(results[0], compared["tasks"])
    judge(compared)
    benchmarks = [benchmark_of(results[0]["tasks"][name], name) for name in compared["tasks"]]
    compared["win_rates"] = win_rates([entry["scores"] for entry in compared["tasks"].values()], benchmarks)
    return compared


def judge(compared: dict) -> None:
    """Add "p_adjusted" and "beyond_noise" to every difference, corrected for all differences in the comparison."""
    entries = [entry for part in PARTS for entry in compared[part].values()]
    differences = [against for entry in entries for against in entry["against_first"][1:]]
    for against, adjusted in zip(differences, holm([each["p_value"] for each in differences]), strict=True):
        against |= {"p_adjusted": adjusted, "beyond_noise": adjusted < 0.05}


def benchmark_of(task: dict, name: str) -> str:
    """Return the benchmark of a task: its data set if it is one of a group, else the task by itself."""
    return task["dataset"]["path"] if task["groups"] else name


def win_rates(scores: list[list[float]], benchmarks: list[str]) -> list[float]:
    """Return the fraction of comparisons that each model wins; ties count half.

    Args:
        scores: (tasks, models).
        benchmarks: of each task; the tasks of one benchmark count as one together.
    """
    if not scores:
        return []
    table, sizes = np.array(scores), Counter(benchmarks)
    won = (table[:, :, None] > table[:, None, :]) + 0.5 * (table[:, :, None] == table[:, None, :])
    rates = (won.sum(axis=2) - 0.5) / (table.shape[1] - 1)  # (tasks, models); without the comparison with itself
    return np.average(rates, axis=0, weights=[1 / sizes[each] for each in benchmarks]).tolist()


def describe(compared: dict) -> list[str]:
    """Return the comparison as lines of text. A star marks a difference from the first model beyond noise."""
    header = ["", "measured by", "items", *(plain(model)[-28:] for model in compared["models"])]
    rows = []
    for part, label in (
        ("bits_per_byte", "bits per byte"),
        ("groups", ""),
        ("tasks", ""),
        ("gold_bits_per_byte", "gold bits per byte"),
    ):
        for name, entry in compared[part].items():
            cells = [
                f"{value:.3f}{'*' if against and against['beyond_noise'] else ' '}"
                for value, against in zip(entry["scores"], entry["against_first"], strict=True)
            ]
            rows.append([plain(name), label or entry["metric"], f"{entry['num_items']:,}", *cells])
    if compared["win_rates"]:
        rows.append(["win rate over tasks", "", "", *(f"{rate:.2f} " for rate in compared["win_rates"])])
    return [
        *table(header, rows, left=2),
        "* differs from the first model: p < 0.05 on the items that all scored, after Holm's correction for all",
        "differences in the table. At most one such table in 20 has a false star. Without a star it may be noise.",
        "Bits per byte: lower is better.",
        *not_compared(compared),
    ]


def not_compared(compared: dict) -> list[str]:
    return [
        f"{plain(name)} is not compared, since the evaluations differ in {plain(why)}."
        for name, why in compared["not_compared"].items()
    ]


def differences_figure(compared: dict) -> Figure:
    """Draw every difference from the first model with its interval: scores above, bits per byte below."""
    parts = [part for part in ("tasks", "bits_per_byte") if compared[part]]
    rows = sum(len(compared[part]) for part in parts)
    figure = Figure(figsize=(7, 1.6 * len(parts) + 0.35 * rows))
    ratios = [len(compared[part]) + 1 for part in parts]
    all_axes = figure.subplots(len(parts), 1, squeeze=False, height_ratios=ratios)[:, 0]
    models = compared["models"]
    for axes, part in zip(all_axes, parts, strict=True):
        axes.axvline(0, color="0.3", linewidth=1)
        for index in range(1, len(models)):
            for row, entry in enumerate(compared[part].values()):
                place = row + 0.5 * (index / len(models) - 0.5)
                against = entry["against_first"][index]
                color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
                if against["interval"]:  # one family of documents has none
                    axes.plot(against["interval"], [place, place], color=color, linewidth=1.5)
                label = plain(models[index])[-40:] if row == 0 else None
                axes.plot([against["difference"]], [place], marker, color=color, label=label)
        axes.set_yticks(range(len(compared[part])), [plain(name) for name in compared[part]])
        axes.set_ylim(len(compared[part]) - 0.5, -0.5)
        better = "score (right is better)" if part == "tasks" else "bits per byte (left is better)"
        axes.set_xlabel(f"difference from {plain(models[0])[-40:]}: {better}")
        axes.legend(fontsize="small")
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("evaluations", nargs="+", type=Path, help="folders of evaluations, or run folders")
    parser.add_argument("--output", type=Path, help="folder for comparison.json, comparison.md and the figure")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    arguments = parser.parse_args(argv)
    if len(arguments.evaluations) < 2:
        raise SystemExit("give at least two evaluations")
    compared = compare([find_evaluation(path) for path in arguments.evaluations], arguments.seed)
    if not compared["tasks"] and not compared["bits_per_byte"]:
        nothing = "these evaluations have no items in common; run eval/run_eval.py with the same tasks and documents"
        raise SystemExit("\n".join([nothing, *not_compared(compared)]))
    lines = describe(compared)
    if arguments.output is not None:
        (arguments.output / "figures").mkdir(parents=True, exist_ok=True)
        text = json.dumps(compared, indent=2) + "\n"
        (arguments.output / "comparison.json").write_text(text, encoding="utf-8")
        (arguments.output / "comparison.md").write_text("\n".join(["```", *lines, "```", ""]), encoding="utf-8")
        with style():
            save_figure(differences_figure(compared), arguments.output / "figures" / "comparison.png")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
