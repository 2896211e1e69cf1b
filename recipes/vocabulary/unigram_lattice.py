# SPDX-License-Identifier: Apache-2.0
"""All segmentations of many words into pieces at once, in numpy: the inner loop of Unigram training.

A lattice has a node before the first byte of a word and one after each byte, and an edge for every piece between two
nodes. Nodes are numbered step by step, not word by word: first the node before the first byte of each word, then the
node after it, and so on, with the words in order of descending length. One array operation then does one step for all
words, and the edges of one length that end at one step form a run in which no node occurs twice.

The same words and pieces give the same numbers bit for bit, on one kind of processor. The trainer of `tokenizers` does
not: its order of summation changes from run to run.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


EDGES_AT_ONCE = 1 << 20


class Nodes:
    """The nodes of words, in the order of the words: by descending length, then by their bytes.

    Args: words: in that order, none empty.
    """

    def __init__(self, words: list[bytes]):
        lengths = np.array([len(word) for word in words], dtype=np.int32)
        self.lengths = lengths
        longest = int(lengths[0])
        # How many words have at least 0, 1, ... longest bytes: the number of nodes of each step.
        self.counts = np.searchsorted(-lengths, -np.arange(longest + 1), side="right")
        self.first = np.concatenate([[0], np.cumsum(self.counts)])
        self.total = int(self.first[-1])
        self.word = np.concatenate([np.arange(count, dtype=np.int32) for count in self.counts])
        self.final = self.first[lengths] + np.arange(len(words))
        # The node after the next byte; a final node has none and points to itself.
        self.next = np.arange(self.total, dtype=np.int32)
        self.byte = np.full(self.total, -1, dtype=np.int32)
        text, offsets = np.frombuffer(b"".join(words), dtype=np.uint8), np.cumsum(lengths) - lengths
        for step in range(longest):
            longer, start = self.counts[step + 1], self.first[step]
            self.next[start : start + longer] = self.first[step + 1] + np.arange(longer)
            self.byte[start : start + longer] = text[offsets[:longer] + step]


@dataclass
class Level:
    """The substrings of one length that occur often enough.

    Attributes:
        starts: [occurrences] nodes at which one begins, ascending.
        names: [occurrences] which substring it is, 0 to len(counts) - 1.
        counts: [substrings] weighted number of occurrences.
        prefixes, suffixes: [substrings] names, one level below, of the substring without its last and its first byte.
    """

    starts: np.ndarray
    names: np.ndarray
    counts: np.ndarray
    prefixes: np.ndarray
    suffixes: np.ndarray


def substrings(nodes: Nodes, weights: np.ndarray, max_bytes: int, min_count: float) -> Iterator[Level]:
    """Yield the substrings of the words by length, from the 256 of 1 byte up to max_bytes.

    A string occurs no more often than its parts, so only strings with a frequent prefix and suffix are counted.

    Args:
        nodes: of the words.
        weights: [words] how often each word occurs.
        max_bytes: length of the longest substrings.
        min_count: substrings of two bytes and more that occur less often are left out.
    """
    starts = np.flatnonzero(nodes.byte >= 0)
    names = nodes.byte[starts]
    counts = np.bincount(names, weights=weights[nodes.word[starts]], minlength=256)
    yield Level(starts.astype(np.int32), names, counts, np.arange(0), np.arange(0))
    name_at = np.full(nodes.total, -1, dtype=np.int32)
    for _ in range(2, max_bytes + 1):
        name_at.fill(-1)
        name_at[starts] = names
        suffix = name_at[nodes.next[starts]]
        followed = suffix >= 0
        starts, prefix, suffix = starts[followed], names[followed], suffix[followed]
        shorter = len(counts)
        keys, names = np.unique(prefix.astype(np.int64) * shorter + suffix, return_inverse=True)
        counts = np.bincount(names, weights=weights[nodes.word[starts]], minlength=len(keys))
        frequent = counts >= min_count
        renamed = np.where(frequent, np.cumsum(frequent) - 1, -1).astype(np.int32)
        names = renamed[names]
        kept = names >= 0
        starts, names, keys, counts = starts[kept].astype(np.int32), names[kept], keys[frequent], counts[frequent]
        if not len(keys):
            return
        yield Level(starts, names, counts, keys // shorter, keys % shorter)


class Lattice:
    """The edges that pieces make between the nodes of words.

    Args:
        nodes: of the words.
        starts, pieces: by length of the piece from 1, [edges] the node an edge starts at, ascending, and its piece.
    """

    def __init__(self, nodes: Nodes, starts: list[np.ndarray], pieces: list[np.ndarray]):
        self.nodes = nodes
        # Runs of edges of one length that end at one step, in order of that step: their bounds in the arrays below,
        # and the distance from start node to end node.
        self.bounds, self.shifts, self.lengths = [0], [], []
        begins = [np.searchsorted(of_length, nodes.first) for of_length in starts]
        runs = []
        for step in range(1, len(nodes.counts)):
            for length in range(1, min(step, len(starts)) + 1):
                begin, end = begins[length - 1][step - length], begins[length - 1][step - length + 1]
                if begin < end:
                    runs.append((length - 1, slice(begin, end)))
                    self.bounds.append(self.bounds[-1] + int(end - begin))
                    self.shifts.append(int(nodes.first[step] - nodes.first[step - length]))
                    self.lengths.append(length)
        self.starts = np.concatenate([starts[index][run] for index, run in runs])
        self.pieces = np.concatenate([pieces[index][run] for index, run in runs])

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield each run of edges with the nodes they start and end at."""
        for index in range(len(self.shifts)):
            yield self.run(index)

    def __reversed__(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        for index in reversed(range(len(self.shifts))):
            yield self.run(index)

    def run(self, index: int) -> tuple[slice, np.ndarray, np.ndarray]:
        run = slice(self.bounds[index], self.bounds[index + 1])
        starts = self.starts[run]
        return run, starts, starts + self.shifts[index]

    def keep(self, alive: np.ndarray) -> None:
        """Drop the edges of pieces that are not alive, [pieces] of bool; single bytes must stay."""
        kept = np.flatnonzero(alive[self.pieces])
        self.starts, self.pieces = self.starts[kept], self.pieces[kept]
        bounds = np.searchsorted(kept, self.bounds)
        filled = np.flatnonzero(bounds[1:] > bounds[:-1])
        self.bounds = [0, *bounds[filled + 1].tolist()]
        self.shifts = [self.shifts[index] for index in filled]
        self.lengths = [self.lengths[index] for index in filled]

    def best_scores(self, scores: np.ndarray) -> np.ndarray:
        """Return for each node the score of the best path to it: the sum of scores, [pieces], along it."""
        best = np.full(self.nodes.total, -np.inf)
        best[: self.nodes.counts[0]] = 0
        for run, starts, ends in self:
            best[ends] = np.maximum(best[ends], best[starts] + scores[self.pieces[run]])
        return best

    def expected_counts(self, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return each piece's expected count over all segmentations of the words, weighted by their probability.

        All sums are relative to the best path to a node, since products of probabilities would underflow.

        Args:
            scores: [pieces] log-probabilities.
            weights: [words] how often each word occurs.
        """
        nodes, best = self.nodes, self.best_scores(scores)
        shares = np.empty(len(self.starts), dtype=np.float32)
        ways_to = np.zeros(nodes.total)
        ways_to[: nodes.counts[0]] = 1
        for run, starts, ends in self:
            share = np.exp(best[starts] + scores[self.pieces[run]] - best[ends])
            shares[run] = share
            ways_to[ends] += ways_to[starts] * share
        ways_from = np.zeros(nodes.total)
        ways_from[nodes.final] = weights / ways_to[nodes.final]
        for run, starts, ends in reversed(self):
            share = shares[run] * ways_from[ends]
            ways_from[starts] += share
            shares[run] = share * ways_to[starts]
        return self.count(shares, len(scores))

    def count(self, weights: np.ndarray, num_pieces: int) -> np.ndarray:
        counts = np.zeros(num_pieces)
        for begin in range(0, len(weights), EDGES_AT_ONCE):
            some = slice(begin, begin + EDGES_AT_ONCE)
            counts += np.bincount(self.pieces[some], weights=weights[some], minlength=num_pieces)
        return counts

    def best_segmentations(self, scores: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the best segmentation of each word from its end: the unfinished words, and the next piece of each.

        Among equal scores, the segmentation with the shorter last piece is taken.
        """
        nodes = self.nodes
        best = np.full(nodes.total, -np.inf)
        best[: nodes.counts[0]] = 0
        edge = np.full(nodes.total, -1, dtype=np.int64)
        for run, starts, ends in self:
            scored = best[starts] + scores[self.pieces[run]]
            better = scored > best[ends]
            best[ends[better]] = scored[better]
            edge[ends[better]] = run.start + np.flatnonzero(better)
        words, node = np.arange(len(nodes.lengths)), nodes.final
        while len(words):
            taken = edge[node]
            yield words, self.pieces[taken]
            node = self.starts[taken]
            unfinished = node >= nodes.counts[0]
            words, node = words[unfinished], node[unfinished]
