# SPDX-License-Identifier: Apache-2.0
"""Separate scores of benchmark items that the training text shares words with, and of those that it does not."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from benchmark_tasks import Benchmark
from item_scores import score_items
from results_folder import json_lines


logger = logging.getLogger(__name__)

OVERLAP_GROUPS = ("clean", "overlapping", "not_checkable", "unchecked")
# Fewer items get a count and no score: the standard error of guessing between two answers would be above 0.11.
MIN_GROUP_ITEMS = 20


def read_decontamination(path: Path | None) -> dict | None:
    """Return the content of decontamination.json. Raises: ValueError: the file is missing or of another form."""
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["settings"]["sha256"].keys() != content["tasks"].keys():
            raise KeyError("tasks")
        return content
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"{path} is not a decontamination.json as prepare writes it: {error!r}") from error


def overlap_groups(name: str, items: list[dict], decontamination: dict) -> list[str]:
    """Return each exported item's overlap with the training text, from decontamination.json.

    An item counts as clean if every document that contained it was removed.

    Returns: for each item `clean`; `overlapping`, if documents that were kept share words with it; `not_checkable`,
        if it is too short to be recognised in other text; or `unchecked`, if the check did not read this task or
        read other items under its name.
    """
    digest = hashlib.sha256(json_lines(items).encode()).hexdigest()
    if decontamination["settings"]["sha256"].get(name) != digest:
        logger.warning("%s: the training text was not checked against these items", name)
        return ["unchecked"] * len(items)
    found = decontamination["tasks"][name]
    overlapping = {entry["id"] for entry in found["overlaps"] if entry["fraction_after_removal"] > 0}
    not_checkable = {item_id for ids in found["not_checkable"].values() for item_id in ids}
    return [
        "not_checkable" if item["id"] in not_checkable else "overlapping" if item["id"] in overlapping else "clean"
        for item in items
    ]


def score_by_overlap(
    benchmark: Benchmark, scored: list[dict], groups: list[str], seed: int, answers: list[str | None]
) -> dict[str, dict]:
    """Score the items of each overlap group: {group: what `score_items` returns}.

    A group of fewer than MIN_GROUP_ITEMS items has no metrics.
    """
    by_overlap = {}
    for group in (each for each in OVERLAP_GROUPS if each in groups):
        items = [item for item, own in zip(scored, groups, strict=True) if own == group]
        if len(items) >= MIN_GROUP_ITEMS:
            by_overlap[group] = score_items(benchmark.task, items, benchmark.metrics, seed, answers)
        else:
            chance = float(np.mean([1 / len(item["nats"]) for item in items]))
            by_overlap[group] = {
                "num_items": len(items),
                "chance": chance,
                "metrics": None,
                "gold_bits_per_byte": None,
            }
    return by_overlap
