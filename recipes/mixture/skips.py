# SPDX-License-Identifier: Apache-2.0
"""Steps and documents that are not trained on: those of data.skip, and those after a rollback."""

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

from mixture.shards import Location, TokenShards
from recipe_config import RecipeError, Skip


def is_skipped(skips: list[dict], step: int) -> bool:
    """Return whether an optimizer step was or will be skipped by a history of skips (see extend_skips)."""
    return any(first <= step <= last for first, last in skip_at(skips, step)["steps"])


def skip_at(skips: list[dict], step: int) -> dict:
    """Return the entry of the history that is in force at an optimizer step."""
    return next(skip for skip in reversed(skips) if skip["after_step"] < step)


def extend_skips(skips: list[dict], skip: Skip, step: int) -> list[dict]:
    """Return the history extended by what is skipped after `step`; data.skip may change at each resume.

    An entry is {"after_step": 0, "steps": [[3, 5]], "documents": [id]} and holds until the next one.
    """
    now = skip.model_dump()
    if skips and skips[-1] == now | {"after_step": skips[-1]["after_step"]}:
        return skips
    return [*(entry for entry in skips if entry["after_step"] < step), {"after_step": step, **now}]


def describe_changes(skips: list[dict], skip: Skip, step: int, checkpoints: list[tuple[int, Path]]) -> list[str]:
    """Report what a changed data.skip changes after `step`, and which of its steps are already trained.

    Args:
        skips: the history until now.
        skip: data.skip of the recipe.
        step: steps trained so far.
        checkpoints: (step, folder), newest first.
    """
    before, notes = skips[-1], []
    if before["steps"] != skip.steps:
        notes.append(f"data.skip.steps was {before['steps']}, is {skip.steps} after step {step}")
    added, left = set(skip.documents) - set(before["documents"]), set(before["documents"]) - set(skip.documents)
    if added or left:
        notes.append(f"data.skip.documents has {len(added)} more and {len(left)} fewer after step {step}")
    for first, last in skip.steps:
        trained = [number for number in range(first, min(last, step) + 1) if not is_skipped(skips, number)]
        if trained:
            earlier = next((path for number, path in checkpoints if number < trained[0]), None)
            remedy = (
                f"resume from before them with run.resume={earlier}" if earlier else "start again with --overwrite"
            )
            notes.append(
                f"data.skip.steps=[{first}, {last}]: steps {trained[0]} to {trained[-1]} are already trained on; to "
                f"leave them out {remedy}"
            )
    if added and step:
        notes.append(
            f"data.skip.documents: steps up to {step} may have trained on those added now; document_ledger.py "
            "--document lists them; to leave them out set run.resume to an earlier checkpoint"
        )
    return notes


class SkippedDocuments:
    """The places of data.skip's documents in the training shards, looked up once.

    Raises: RecipeError: ids that are not in the training text.
    """

    def __init__(self, shards: TokenShards, ids: list[str]):
        places = shards.find_documents(ids) if ids else {}
        unknown = [document for document, found in places.items() if not found]
        if unknown:
            raise RecipeError(
                *(
                    f"data.skip.documents: {document}: not in the training split; document_ledger.py lists the ids of "
                    "a step, documents/train/*/*.parquet all ids"
                    for document in unknown
                )
            )
        self.ranges: dict[tuple[int, int], list[tuple[int, int]]] = {}  # of tokens, by (source, shard), in order
        for source, shard, start, end in sorted({place for found in places.values() for place in found}):
            self.ranges.setdefault((source, shard), []).append((start, end))

    def labels_in(self, location: Location, sequence_length: int) -> Iterator[slice]:
        """Yield the slices of a sequence's labels that belong to skipped documents, eos included."""
        ranges = self.ranges.get((location.source, location.shard), [])
        first = location.start + 1  # the token that is the sequence's first label
        number = bisect_right(ranges, first, key=lambda place: place[1])
        while number < len(ranges) and ranges[number][0] < first + sequence_length:
            start, end = ranges[number]
            yield slice(max(0, start - first), end - first)
            number += 1


def in_rollback(rollbacks: list[dict], step: int) -> bool:
    """Return whether a step is skipped because the run rolled back to before it."""
    return any(first <= step <= last for first, last in (entry["skipped_steps"] for entry in rollbacks))
