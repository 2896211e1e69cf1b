# SPDX-License-Identifier: Apache-2.0
"""Benchmark tasks: eval/results.json."""

import math
import textwrap

from run_files import RunFiles, Shown
from wording import heading, plain


# The groups of items that results.json tells apart, and what they are for the model.
OVERLAP_GROUPS = {
    "clean": "no run of their words is in the text that was kept",
    "overlapping": "the text that was kept shares runs of words with them",
    "not_checkable": "too short to be told from other text, or only wording that many items share",
    "unchecked": "the text was not checked against them",
}


def show(run: RunFiles) -> Shown | None:
    results = run.json("eval/results.json")
    if results is None or not results["tasks"]:
        return None
    values = {
        "tasks": results["tasks"],
        "task_sentence": task_sentence,
        "accuracies": accuracies,
        "overlap_groups": OVERLAP_GROUPS,
    }
    lines = heading("Benchmark tasks")
    for name, task in results["tasks"].items():
        for metric in accuracies(task):
            lines += textwrap.wrap(task_sentence(plain(name), metric, task), 100)
    return Shown("Benchmark tasks", values, summary=lines)


def task_sentence(name: str, metric: str, task: dict) -> str:
    """Compare an accuracy with chance, at two standard errors of guessing."""
    value, stderr = task["metrics"][metric]["value"], task["metrics"][metric]["stderr"]
    chance = task["chance"]
    noise = 2 * math.sqrt(chance * (1 - chance) / task["num_items"])
    measured = f"{name}, {metric}: {value:.3f} (standard error {stderr:.3f}) over {task['num_items']:,} items"
    if abs(value - chance) <= noise:
        return f"{measured} is within noise of chance ({chance:.3f} +- {noise:.3f}): it shows nothing yet."
    return f"{measured} is {'above' if value > chance else 'below'} chance ({chance:.3f} +- {noise:.3f})."


def accuracies(task: dict) -> list[str]:
    """Return the metrics that chance level applies to."""
    return [metric for metric in task["metrics"] or {} if metric.startswith("acc")]
