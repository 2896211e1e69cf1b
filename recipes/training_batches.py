# SPDX-License-Identifier: Apache-2.0
"""What each process reads in training, and what data.skip passes over without moving anything else."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipe_config import RecipeError, Skip
from token_mixture import IGNORED_LABEL, Location, TokenMixture, TokenShards, document_positions


def is_skipped(skips: list[dict], step: int) -> bool:
    """Return whether an optimizer step was, or will be, passed over by a history of skips (see extend_skips)."""
    return any(first <= step <= last for first, last in skip_at(skips, step)["steps"])


def skip_at(skips: list[dict], step: int) -> dict:
    """Return what was, or will be, passed over at an optimizer step."""
    return next(skip for skip in reversed(skips) if skip["after_step"] < step)


def extend_skips(skips: list[dict], skip: Skip, step: int) -> list[dict]:
    """Return the history with what is passed over after `step`: data.skip may change whenever a run is resumed.

    An entry is {"after_step": 0, "steps": [[3, 5]], "documents": [id]} and holds until the next one.
    """
    now = skip.model_dump()
    if skips and skips[-1] == now | {"after_step": skips[-1]["after_step"]}:
        return skips
    return [*(entry for entry in skips if entry["after_step"] < step), {"after_step": step, **now}]


def describe_changes(skips: list[dict], skip: Skip, step: int, checkpoints: list[tuple[int, Path]]) -> list[str]:
    """Say what a changed data.skip does to a run that goes on after `step`, and what it comes too late for.

    Args:
        skips: the history until now.
        skip: what the recipe says.
        step: steps done.
        checkpoints: (step, folder) of those there are, newest first.
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
            remedy = f"go on from before with run.resume={earlier}" if earlier else "start again with --overwrite"
            notes.append(
                f"data.skip.steps=[{first}, {last}]: steps {trained[0]} to {trained[-1]} are already trained on; to "
                f"leave them out {remedy}"
            )
    if added and step:
        notes.append(
            f"data.skip.documents: steps up to {step} are trained on those added now as far as they had them, which "
            "document_ledger.py --document shows; to leave them out set run.resume to an earlier checkpoint"
        )
    return notes


class SkippedDocuments:
    """Where the documents of data.skip stand in the training shards, looked up once.

    Raises: RecipeError: ids that are not in the training text.
    """

    def __init__(self, shards: TokenShards, ids: list[str]):
        places = shards.find_documents(ids) if ids else {}
        unknown = [document for document, found in places.items() if not found]
        if unknown:
            raise RecipeError(
                *(
                    f"data.skip.documents: {document}: not in the training split; document_ledger.py shows the ids of "
                    "a step, and documents/train/*/*.parquet has them all"
                    for document in unknown
                )
            )
        self.ranges: dict[tuple[int, int], list[tuple[int, int]]] = {}  # of tokens, by (source, shard), in order
        for source, shard, start, end in sorted({place for found in places.values() for place in found}):
            self.ranges.setdefault((source, shard), []).append((start, end))

    def labels_in(self, location: Location, sequence_length: int) -> Iterator[slice]:
        """Yield the stretches of a sequence's labels that belong to skipped documents, their end-of-text included."""
        ranges = self.ranges.get((location.source, location.shard), [])
        first = location.start + 1  # the token that is the sequence's first label
        number = bisect_right(ranges, first, key=lambda place: place[1])
        while number < len(ranges) and ranges[number][0] < first + sequence_length:
            start, end = ranges[number]
            yield slice(max(0, start - first), end - first)
            number += 1


class MicroBatches(Dataset):
    """The batches that one process reads: item k is its k-th since the beginning of training.

    Of the windows of a micro-step, which are consecutive over all processes, each process takes the next batch_size,
    as one sequence each or, in a phase with longer ones, several in one. Window i thus belongs to step
    i // sequences_per_step whatever the processes and the phase.
    """

    def __init__(
        self,
        mixture: TokenMixture,
        skipped: SkippedDocuments,
        byte_lengths: np.ndarray,
        batch_size: int,
        process_index: int,
        num_processes: int,
    ):
        self.mixture, self.skipped, self.byte_lengths = mixture, skipped, byte_lengths.astype(np.uint16)
        self.batch_size, self.process_index, self.num_processes = batch_size, process_index, num_processes

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        shards = self.mixture.shards
        first = (k * self.num_processes + self.process_index) * self.batch_size
        windows = self.mixture.windows_at(first)  # of a sequence
        sequence_length = windows * shards.sequence_length
        locations = [self.mixture.locate(index) for index in range(first, first + self.batch_size, windows)]
        tokens = np.empty((len(locations), sequence_length + 1), dtype=np.int64)
        for row, location in zip(tokens, locations, strict=True):
            row[:] = shards.read(location, windows)
        input_ids, labels = tokens[:, :-1], tokens[:, 1:]
        num_bytes = self.byte_lengths.take(tokens)[:, 1:]
        num_targets = np.full(len(locations), sequence_length)
        if self.skipped.ranges:
            labels = labels.copy()  # the inputs stay
            for row, location in enumerate(locations):
                for stretch in self.skipped.labels_in(location, sequence_length):
                    labels[row, stretch], num_bytes[row, stretch] = IGNORED_LABEL, 0
            num_targets = np.count_nonzero(labels != IGNORED_LABEL, axis=1)
        seen = np.zeros((len(shards.names), 2), dtype=np.int64)
        np.add.at(seen, [location.source for location in locations], np.stack([num_bytes.sum(axis=1), num_targets], 1))
        return {
            "input_ids": torch.from_numpy(input_ids),
            "position_ids": torch.from_numpy(document_positions(input_ids, shards.eos_token_id)),
            "labels": torch.from_numpy(labels),
            "seen": torch.from_numpy(seen),  # (num_sources, 2): of the labels of each source, UTF-8 bytes and number
        }


def read_batches(dataset: MicroBatches, steps: Iterable[int], micro_steps: int, on_cpu: bool) -> Iterator[dict]:
    """Yield the micro-batches of optimizer steps in order, read ahead by two workers where a GPU would wait."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=((step - 1) * micro_steps + micro_step for step in steps for micro_step in range(micro_steps)),
        num_workers=0 if on_cpu else 2,
        pin_memory=not on_cpu,
        generator=torch.Generator(),  # an iterator draws its seed from the global generator otherwise
    )
    return iter(loader)
