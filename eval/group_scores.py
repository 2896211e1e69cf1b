# SPDX-License-Identifier: Apache-2.0
"""Scores of groups of tasks, such as mmlu or legalbench: the mean of their tasks' scores."""

import numpy as np


def average_groups(tasks: dict[str, dict], resampled: dict[str, dict[str, np.ndarray]]) -> dict[str, dict]:
    """Average the scores of each group's tasks. Every task counts once, as in LegalBench and MMLU.

    Args:
        tasks: {task: its entry in results.json}.
        resampled: {task: {metric: bootstrap scores}}.

    Returns: {group: {"score", "value", "interval", "chance", "num_tasks"}}. The interval comes from resampling the
        items of every task.
    """
    groups = {}
    for group in sorted({group for entry in tasks.values() for group in entry["groups"]}):
        members = {name: entry for name, entry in tasks.items() if group in entry["groups"]}
        scores = [entry["metrics"][entry["score"]] for entry in members.values()]
        draws = np.mean([resampled[name][entry["score"]] for name, entry in members.items()], axis=0)
        chances = [score["chance"] for score in scores]
        groups[group] = {
            "score": next(iter(members.values()))["score"],
            "value": float(np.mean([score["value"] for score in scores])),
            "interval": [float(bound) for bound in np.percentile(draws, [2.5, 97.5])],
            "chance": None if None in chances else float(np.mean(chances)),
            "num_tasks": len(members),
        }
    return groups
