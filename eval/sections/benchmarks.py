# SPDX-License-Identifier: Apache-2.0
"""Benchmark tasks, of this model and of the baselines: eval/results.json, eval/baselines/<model>/results.json."""

import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from figure_style import COLORS, WIDTH
from run_files import RunFiles, Section
from wording import heading, plain


# The groups of items in results.json, by their overlap with the training text.
OVERLAP_GROUPS = {
    "clean": "no run of their words is in the training text",
    "overlapping": "they share runs of words with the training text",
    "not_checkable": "too short to check, or only wording that many items share",
    "unchecked": "the text was not checked against them",
}
MAX_ROWS = 40  # of the figure; the table has all


def build(run: RunFiles) -> Section | None:
    results = run.json("eval/results.json")
    if results is None or not results["tasks"]:
        return None
    groups, parts = results.get("groups", {}), results.get("group_parts", {})
    alone = {name: task for name, task in results["tasks"].items() if not task.get("groups")}
    grouped = {name: task for name, task in results["tasks"].items() if task.get("groups")}
    values = {
        "tasks": results["tasks"],
        "alone": alone,
        "grouped": grouped,
        "groups": groups,
        "parts": parts,
        "baselines": read_baselines(run),
        "task_sentence": task_sentence,
        "first_metric": first_metric,
        "against": against,
        "shortened": shortened,
        "overlap_groups": OVERLAP_GROUPS,
    }
    lines = heading("Benchmark tasks")
    for name, task in alone.items():
        for metric in task["metrics"]:
            lines += textwrap.wrap(task_sentence(plain(name), metric, task), 100)
    for name, group in (groups | parts).items():
        lines += textwrap.wrap(group_sentence(plain(name), group), 100)
    drawn = scores_with_baseline(groups | parts, alone)
    text = (
        "Scores with 95 % intervals. A broken line is the baseline, the better of guessing and the best constant "
        "answer. An interval that crosses its line shows nothing"
    )
    return Section("Benchmark tasks", values, {"benchmarks": (scores_figure(drawn), text)} if drawn else {}, lines)


def read_baselines(run: RunFiles) -> dict[str, dict]:
    """Return the results of each baseline, with its "folder" in the run, {name: results}.

    Where its context is another than the model's, the name says so. Earlier evaluations gave no name.
    """
    paths = sorted((run.folder / "eval" / "baselines").glob("*/results.json"))
    folders = [path.parent.relative_to(run.folder).as_posix() for path in paths]
    found = [run.json(f"{folder}/results.json") | {"folder": folder} for folder in folders]
    context = ((run.json("eval/results.json") or {}).get("settings") or {}).get("context_length")
    names = {}
    for results in found:
        own = results["settings"].get("context_length", context)
        name = results.get("name") or "/".join(results["model"].split("/")[-2:])
        name += f", {own:,} tokens" if own != context else ""
        names[f"{name} ({Path(results['folder']).name})" if name in names else name] = results
    return names


def first_metric(task: dict) -> str:
    return task.get("score") or next(iter(task["metrics"]))


def baseline_of(score: dict, chance: float | None = None) -> float | None:
    """Return the score to beat, of guessing or of the best constant answer; format 1 of results.json has no constant.

    Args:
        score: of a task or a group.
        chance: of the task, for a score of format 1.
    """
    return score.get("baseline", score.get("chance", chance))


def scores_with_baseline(groups: dict, tasks: dict) -> dict[str, dict]:
    """Return the scores to draw, of groups and of tasks outside them: {name: {value, interval, baseline}}."""
    drawn = groups | {name: task["metrics"][first_metric(task)] for name, task in tasks.items()}
    known = {name: score for name, score in drawn.items() if baseline_of(score) is not None and score.get("interval")}
    return dict(list(known.items())[:MAX_ROWS])


def scores_figure(drawn: dict[str, dict]) -> Figure:
    figure = Figure(figsize=(WIDTH, 1.2 + 0.4 * len(drawn)))
    axes = figure.subplots()
    for row, score in enumerate(drawn.values()):
        axes.plot(score["interval"], [row, row], color=COLORS[0], linewidth=2)
        axes.plot([score["value"]], [row], "o", color=COLORS[0])
        axes.plot([baseline_of(score)] * 2, [row - 0.35, row + 0.35], "--", color=COLORS[5], linewidth=1.5)
    axes.set_yticks(range(len(drawn)), [plain(name) for name in drawn])
    axes.set(xlabel="score", xlim=(0, 1), ylim=(len(drawn) - 0.5, -0.5))
    return figure


def interval_of(score: dict) -> list[float]:
    value = score["value"]
    return score.get("interval") or [value - 1.96 * score["stderr"], value + 1.96 * score["stderr"]]


def against(score: dict, chance: float | None = None) -> str:
    """Say on which side of its baseline a score is, and whether its 95 % interval holds the baseline."""
    baseline, (low, high) = baseline_of(score, chance), interval_of(score)
    if baseline is None:
        return "no baseline"
    side = "above" if score["value"] > baseline else "below" if score["value"] < baseline else "level"
    return f"{side}, within noise" if low <= baseline <= high else side


def shortened(answer: str) -> str:
    return textwrap.shorten(plain(answer), 40, placeholder="...")


def compared_with(score: dict, chance: float | None = None) -> str:
    """Compare a score with its baseline, named, in words that continue a sentence."""
    baseline = baseline_of(score, chance)
    if baseline == score.get("chance", chance):
        named = f"chance ({baseline:.3f})"
    elif score.get("constant_answer") is not None:
        named = f'the best constant answer, "{shortened(score["constant_answer"])}" ({baseline:.3f})'
    else:
        named = f"the baseline ({baseline:.3f})"
    side, _, noise = against(score, chance).partition(", ")
    side = "level with" if side == "level" else side
    return f"is {side} {named}, within noise: it shows nothing yet." if noise else f"is {side} {named}."


def task_sentence(name: str, metric: str, task: dict) -> str:
    """Say a score, and whether it differs from its baseline by more than its 95 % interval."""
    score = task["metrics"][metric]
    low, high = interval_of(score)
    measured = f"{name}, {metric}: {score['value']:.3f} ({low:.3f} to {high:.3f}) over {task['num_items']:,} items"
    if baseline_of(score, task["chance"]) is None:
        return f"{measured}."
    return f"{measured} {compared_with(score, task['chance'])}"


def group_sentence(name: str, group: dict) -> str:
    low, high = group["interval"]
    measured = f"{name}, mean of {group['num_tasks']} tasks: {group['value']:.3f} ({low:.3f} to {high:.3f})"
    return f"{measured}." if baseline_of(group) is None else f"{measured} {compared_with(group)}"
