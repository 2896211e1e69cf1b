# SPDX-License-Identifier: Apache-2.0
"""Scores of groups of tasks, such as mmlu or legalbench: the mean of their tasks' scores."""

import numpy as np

from benchmark_tasks import Benchmark
from intervals import combine


def average_groups(
    tasks: dict[str, dict], benchmarks: dict[str, Benchmark], noncommercial: bool
) -> tuple[dict[str, dict], dict[str, dict]]:
    """Average the scores of each group's tasks. Every task counts once, as in LegalBench and MMLU.

    A group has a score if all of its allowed tasks ran and were scored by one metric. Anything else is a part, under a
    name of its own.

    Args:
        tasks: {task: its entry in results.json}.
        benchmarks: all tasks that there are, {task: benchmark}.
        noncommercial: whether tasks are allowed whose licence forbids commercial use.

    Returns: the groups, {group: entry}, and the parts, {"legalbench (2 of 162)": entry}. An entry: {"group", "score",
        "value", "interval", "chance", "constant", "baseline", "num_tasks", "num_members" (tasks of the whole group)}.
    """
    groups, parts = {}, {}
    for group in sorted({group for entry in tasks.values() for group in entry["groups"]}):
        members = [task for task, benchmark in benchmarks.items() if group in benchmark.groups]
        allowed = {task for task in members if noncommercial or benchmarks[task].commercial}
        ran = {task: entry for task, entry in tasks.items() if group in entry["groups"]}
        metrics = sorted({entry["score"] for entry in ran.values()})
        scores = [entry["metrics"][entry["score"]] for entry in ran.values()]
        value, interval = combine([score["value"] for score in scores], [score["interval"] for score in scores])
        averaged = {
            "group": group,
            "score": metrics[0] if len(metrics) == 1 else f"mean of {', '.join(metrics)}",
            "value": value,
            "interval": interval,
            **{level: mean_level(scores, level) for level in ("chance", "constant", "baseline")},
            "num_tasks": len(ran),
            "num_members": len(members),
        }
        if allowed <= ran.keys() and len(metrics) == 1:
            groups[group] = averaged
        else:
            parts[f"{group} ({len(ran)} of {len(members)})"] = averaged
    return groups, parts


def mean_level(scores: list[dict], level: str) -> float | None:
    """Return the mean of a level over the tasks; None if a task has none."""
    levels = [score[level] for score in scores]
    return None if None in levels else float(np.mean(levels))
