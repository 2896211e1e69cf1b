# SPDX-License-Identifier: Apache-2.0
"""What each process reads in training: micro-batches of the mixture, with positions and labels."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixture.document_borders import cumulative_lengths
from mixture.goldfish import left_out
from mixture.labels import IGNORED_LABEL
from mixture.order import TokenMixture
from mixture.skips import SkippedDocuments
from recipe_config import Goldfish


def document_positions(input_ids: np.ndarray, bos_token_id: int) -> np.ndarray:
    """Number the tokens of each document from 0, with the token that begins a document as its first.

    Args: input_ids: (batch_size, sequence_length).  bos_token_id: the token that begins a document.
    Returns: position_ids of the same shape; attention and rotary positions restart at every 0.
    """
    begins = input_ids == bos_token_id
    begins[:, 0] = True
    starts = np.flatnonzero(begins).tolist()
    numbers, positions = np.arange(input_ids.shape[1]), np.empty(begins.size, dtype=np.int64)
    for start, end in zip(starts, [*starts[1:], begins.size], strict=True):
        positions[start:end] = numbers[: end - start]
    return positions.reshape(begins.shape)


class MicroBatches(Dataset):
    """The batches that one process reads: item k is its k-th since the beginning of training.

    A micro-step's windows are consecutive over all processes; each process takes the next batch_size of them, one a
    sequence or, in a phase with longer sequences, several. Window i thus belongs to step i // sequences_per_step for
    any number of processes and in any phase.

    Args: goldfish: None: every label counts, apart from those of skipped documents.
    """

    def __init__(
        self,
        mixture: TokenMixture,
        skipped: SkippedDocuments,
        byte_lengths: np.ndarray,
        batch_size: int,
        process_index: int,
        num_processes: int,
        goldfish: Goldfish | None = None,
    ):
        self.goldfish = goldfish
        self.mixture, self.skipped, self.byte_lengths = mixture, skipped, byte_lengths.astype(np.uint16)
        self.batch_size, self.process_index, self.num_processes = batch_size, process_index, num_processes

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        shards = self.mixture.shards
        first = (k * self.num_processes + self.process_index) * self.batch_size
        windows = self.mixture.windows_at(first)  # in a sequence
        sequence_length = windows * shards.sequence_length
        locations = [self.mixture.locate(index) for index in range(first, first + self.batch_size, windows)]
        tokens = np.empty((len(locations), sequence_length + 1), dtype=np.int64)
        for row, location in zip(tokens, locations, strict=True):
            row[:] = shards.read(location, windows)
        # Copies: each is contiguous, without which a GPU's copy of pinned memory waits, and labels may be changed.
        input_ids, labels = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        num_bytes = self.byte_lengths.take(tokens)[:, 1:]
        num_targets = np.full(len(locations), sequence_length)
        if self.skipped.ranges:
            for row, location in enumerate(locations):
                for stretch in self.skipped.labels_in(location, sequence_length):
                    labels[row, stretch], num_bytes[row, stretch] = IGNORED_LABEL, 0
            num_targets = np.count_nonzero(labels != IGNORED_LABEL, axis=1)
        seen = np.zeros((len(shards.names), 2), dtype=np.int64)
        np.add.at(seen, [location.source for location in locations], np.stack([num_bytes.sum(axis=1), num_targets], 1))
        scored = seen.sum(axis=0)
        if self.goldfish:
            for row, location in enumerate(locations):
                labels[row, left_out(shards, location, sequence_length, self.goldfish)] = IGNORED_LABEL
            counting = labels != IGNORED_LABEL
            scored[:] = num_bytes[counting].sum(), counting.sum()
        positions = document_positions(input_ids, shards.ends.bos)
        return {
            "input_ids": torch.from_numpy(input_ids),
            "position_ids": torch.from_numpy(positions),
            "cumulative_lengths": cumulative_lengths(positions),
            "labels": torch.from_numpy(labels),
            # UTF-8 bytes and number of the labels of each source, (num_sources, 2), and of all that the loss is
            # computed for, (2,), which goldfish loss makes fewer.
            "seen": torch.from_numpy(seen),
            "scored": torch.from_numpy(scored),
        }


def read_batches(dataset: MicroBatches, steps: Iterable[int], micro_steps: int, on_cpu: bool) -> Iterator[dict]:
    """Yield the micro-batches of optimizer steps in order, read ahead by two workers unless on_cpu."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=((step - 1) * micro_steps + micro_step for step in steps for micro_step in range(micro_steps)),
        num_workers=0 if on_cpu else 2,
        pin_memory=not on_cpu,
        generator=torch.Generator(),  # otherwise an iterator draws its seed from the global generator
    )
    return iter(loader)
