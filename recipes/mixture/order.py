# SPDX-License-Identifier: Apache-2.0
"""The mixture: which tokens the i-th training sequence holds, as a pure function of (seed, i).

Sequence i comes from a source, by a fixed pattern that gives each its share of the bytes, one pattern a phase; within
the source it is the next of a pseudo-random permutation of its windows, a new one each time round. Nothing is
shuffled, held or searched: opening reads the manifest, and any sequence costs the same, on any process and after any
interruption.

A window is `sequence_length` tokens and the one after them, which is also the first of the next window: as a label
each token of a shard stands in exactly one window, but for the remainder at the shard's end.

A phase may have longer sequences, of several windows that stand one after the other in a shard. What is numbered is
still the window: a step is the same range of numbers in every phase, and `locate` gives the windows of a sequence one
by one. Sequences of a new length are permuted by themselves, and their epochs counted by themselves.
"""

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from mixture.permutation import permute, unpermute
from mixture.shards import Location, TokenShards
from recipe_config import RecipeError


PATTERN_LENGTH = 10_000  # shares are exact to 1/10,000 over each so many sequences


class TokenMixture:
    """The endless sequence of training sequences.

    Args:
        shards: what they are taken from.
        phases: first window -> share of the bytes of each source from there on; the first is 0. A source goes on in a
            phase where it stopped in the one before of the same sequence length.
        seed: of the order within each source.
        windows_per_sequence: first window of a phase -> windows in a sequence of it, 1 where it is not named.

    Raises: RecipeError: a source of a phase has no shard as long as a sequence.
    """

    def __init__(
        self,
        shards: TokenShards,
        phases: dict[int, dict[str, float]],
        seed: int,
        windows_per_sequence: dict[int, int] | None = None,
    ):
        self.shards, self.phases, self.seed = shards, phases, seed
        self.starts = sorted(phases)
        self.lengths = [(windows_per_sequence or {}).get(start, 1) for start in self.starts]
        self.patterns = [interleave(shards.sequence_shares(phases[start]), shards.names) for start in self.starts]
        # For each length: of each source, the sequences before each of its shards, and before the end.
        self.first_sequences = {
            length: [np.cumsum([0, *(np.diff(windows) // length)]).tolist() for windows in shards.first_windows]
            for length in set(self.lengths)
        }
        num_sources = len(shards.names)
        one_hot = [pattern[:, None] == np.arange(num_sources) for pattern in self.patterns]
        # (PATTERN_LENGTH + 1, num_sources) for each phase: sequences of each source in so many places of its pattern.
        self.taken = [np.pad(np.cumsum(hot, axis=0), ((1, 0), (0, 0))) for hot in one_hot]
        self.before = [np.zeros(num_sources, dtype=int)]  # windows of each source before each phase
        self.earlier = []  # and sequences of each source that earlier phases of the same length took
        ends = [*self.starts[1:], None]
        for phase, (start, end, length) in enumerate(zip(self.starts, ends, self.lengths, strict=True)):
            self._refuse_short_sources(phase)
            same = [self.before[k + 1] - self.before[k] for k in range(phase) if self.lengths[k] == length]
            self.earlier.append(sum(same, np.zeros(num_sources, dtype=int)) // length)
            if end is not None:
                self.before.append(self.before[-1] + self._taken_in(phase, end - start))

    def _refuse_short_sources(self, phase: int) -> None:
        tokens = self.lengths[phase] * self.shards.sequence_length
        ends = [firsts[-1] for firsts in self.first_sequences[self.lengths[phase]]]
        for name, sequences in zip(self.shards.names, ends, strict=True):
            if not sequences and self.phases[self.starts[phase]][name]:
                raise RecipeError(
                    f"data.phases: sequence_length={tokens:,}: source {name} has no shard of so many tokens; give it "
                    "no share in this phase, lower sequence_length, or add text"
                )

    def _taken_in(self, phase: int, num_windows: int) -> np.ndarray:
        sequences, part = divmod(num_windows, self.lengths[phase])
        rounds, rest = divmod(sequences, PATTERN_LENGTH)
        taken = self.lengths[phase] * (rounds * self.taken[phase][-1] + self.taken[phase][rest])
        if part:
            taken[self.patterns[phase][rest]] += part
        return taken

    def counts(self, num_windows: int) -> np.ndarray:
        """Return how many of the first num_windows come from each source."""
        phase = bisect_right(self.starts, num_windows) - 1
        return self.before[phase] + self._taken_in(phase, num_windows - self.starts[phase])

    def windows_at(self, index: int) -> int:
        """Return how many windows a sequence has where window `index` is."""
        return self.lengths[bisect_right(self.starts, index) - 1]

    def repetitions(self, num_windows: int) -> dict[str, float]:
        """Return how often each source has been gone through after num_windows."""
        pairs = zip(self.shards.names, self.counts(num_windows), self.shards.num_windows, strict=True)
        return {name: float(count / windows) for name, count, windows in pairs}

    def asked(self, num_windows: int) -> dict[str, float]:
        """Return the share of the bytes asked of each source over the first num_windows, all phases together."""
        lengths = np.diff([*(min(start, num_windows) for start in self.starts), num_windows])
        shares = [self.shards.sequence_shares(self.phases[start]) for start in self.starts]
        num_bytes = self.shards.bytes_per_sequence * (lengths @ np.array(shares))
        return dict(zip(self.shards.names, (num_bytes / num_bytes.sum()).tolist(), strict=True))

    def locate(self, index: int) -> Location:
        """Return where window `index` is, in constant time."""
        phase = bisect_right(self.starts, index) - 1
        length = self.lengths[phase]
        sequence, piece = divmod(index - self.starts[phase], length)
        rounds, rest = divmod(sequence, PATTERN_LENGTH)
        taken, source = self.taken[phase], int(self.patterns[phase][rest])
        nth = int(self.earlier[phase][source]) + rounds * int(taken[-1, source]) + int(taken[rest, source])
        firsts = self.first_sequences[length][source]
        epoch, nth = divmod(nth, firsts[-1])
        number = permute(nth, firsts[-1], self._order(source, epoch, length))
        shard = bisect_right(firsts, number) - 1
        window = (number - firsts[shard]) * length + piece
        return Location(source, shard, window * self.shards.sequence_length)

    def _order(self, source: int, epoch: int, length: int) -> tuple[int, ...]:
        """Return the key of the permutation that a source's sequences are taken in."""
        return (self.seed, source, epoch) if length == 1 else (self.seed, source, epoch, length)

    def find(self, location: Location, end: int) -> Iterator[int]:
        """Yield the indices below `end` whose window is the one at a location, `locate` the other way."""
        source, ends = location.source, [*self.starts[1:], end]
        for phase, (start, until, length) in enumerate(zip(self.starts, ends, self.lengths, strict=True)):
            firsts, until = self.first_sequences[length][source], min(until, end)
            sequence, piece = divmod(location.start // self.shards.sequence_length, length)
            per_round = int(self.taken[phase][-1, source])
            in_sequence = sequence < firsts[location.shard + 1] - firsts[location.shard]  # not in a shard's remainder
            if until <= start or not per_round or not in_sequence:
                continue
            first, num_sequences = int(self.earlier[phase][source]), firsts[-1]
            last = first + -(-int(self._taken_in(phase, until - start)[source]) // length)
            for epoch in range(first // num_sequences, -(-last // num_sequences)):
                order = self._order(source, epoch, length)
                number = unpermute(firsts[location.shard] + sequence, num_sequences, order)
                nth = epoch * num_sequences + number - first
                if 0 <= nth < last - first:
                    rounds, rest = divmod(nth, per_round)
                    place = rounds * PATTERN_LENGTH + int(np.flatnonzero(self.patterns[phase] == source)[rest])
                    index = start + place * length + piece
                    if index < until:
                        yield index

    def window(self, index: int) -> np.ndarray:
        """Return the tokens of window `index`, int64 of shape (sequence_length + 1,)."""
        return self.shards.read(self.locate(index)).astype(np.int64)


def interleave(shares: np.ndarray, names: list[str]) -> np.ndarray:
    """Spread the sources over PATTERN_LENGTH places so that any stretch of them holds each in its share.

    Returns: int64 of shape (PATTERN_LENGTH,), the source at each place.
    """
    counts = np.floor(shares * PATTERN_LENGTH).astype(int)
    rest = np.argsort(counts - shares * PATTERN_LENGTH, kind="stable")[: PATTERN_LENGTH - counts.sum()]
    counts[rest] += 1
    for name, count, share in zip(names, counts, shares, strict=True):
        if share and not count:
            raise RecipeError(
                f"data.sources: {name}: its share is less than one sequence in {PATTERN_LENGTH:,}; give it a larger "
                "one, or 0"
            )
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind="stable")]
