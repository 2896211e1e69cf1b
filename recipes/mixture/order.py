# SPDX-License-Identifier: Apache-2.0
"""The order of the data: which tokens the i-th training sequence holds, as a pure function of (seed, i).

A fixed pattern for each phase gives each source its share of the bytes. Within a source, sequence i is the next of a
pseudo-random permutation of its windows, a new permutation each epoch. Nothing is shuffled, buffered or searched:
opening reads the manifest, and any sequence costs the same, on any process and after any interruption.

A window is `sequence_length` tokens and the next one, which is also the first of the next window: each token of a
shard is a label in exactly one window, except the remainder at the shard's end.

With data.repack the windows of an epoch begin after a pseudo-random number of tokens, less than those of a sequence
and a window. It follows from (seed, source, epoch, shard), and divides every document at other places than in the
epoch before.

A phase may have longer sequences of several consecutive windows. Windows are numbered all the same: a step is the same
range of numbers in every phase, and `locate` gives the windows of a sequence one by one. Sequences of a new length
have permutations and epochs of their own.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mixture.permutation import hash_key, permute, unpermute
from mixture.shards import Location, TokenShards
from recipe_config import RecipeError


PATTERN_LENGTH = 10_000  # shares are exact to 1/10,000 over each so many sequences


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one set of shares and one sequence length.

    Attributes:
        start: its first window.
        shares: fraction of the bytes of each source.
        length: windows in a sequence.
        pattern: (PATTERN_LENGTH,), the source at each place.
        taken: (PATTERN_LENGTH + 1, num_sources), sequences of each source in the first k places of the pattern.
        before: (num_sources,), windows of each source in all earlier phases.
        earlier: (num_sources,), sequences of each source in earlier phases of the same length.
    """

    start: int
    shares: dict[str, float]
    length: int
    pattern: np.ndarray
    taken: np.ndarray
    before: np.ndarray
    earlier: np.ndarray

    def counts(self, num_windows: int) -> np.ndarray:
        """Return how many of the phase's first num_windows come from each source."""
        sequences, part = divmod(num_windows, self.length)
        rounds, rest = divmod(sequences, PATTERN_LENGTH)
        counts = self.length * (rounds * self.taken[-1] + self.taken[rest])
        if part:
            counts[self.pattern[rest]] += part
        return counts


class TokenMixture:
    """The endless sequence of training sequences.

    Args:
        shards: the tokens of each source.
        phases: first window -> fraction of the bytes of each source from there on; the first key is 0. A source
            continues where it stopped in the last phase of the same sequence length.
        seed: of the order within each source.
        windows_per_sequence: first window of a phase -> windows in a sequence, 1 where the phase is not a key.

    Raises: RecipeError: a source of a phase has no shard as long as a sequence.
    """

    def __init__(
        self,
        shards: TokenShards,
        phases: dict[int, dict[str, float]],
        seed: int,
        windows_per_sequence: dict[int, int] | None = None,
    ):
        self.shards, self.seed, self.starts = shards, seed, sorted(phases)
        lengths = [(windows_per_sequence or {}).get(start, 1) for start in self.starts]
        # For each length: of each source, the sequences before each of its shards, and before the end.
        self.first_sequences = {
            length: [np.cumsum([0, *(np.diff(windows) // length)]).tolist() for windows in shards.first_windows]
            for length in set(lengths)
        }
        self.phases: list[Phase] = []
        before = np.zeros(len(shards.names), dtype=int)
        taken_at = {length: before for length in lengths}  # windows of each source in sequences of this length so far
        for start, end, length in zip(self.starts, [*self.starts[1:], None], lengths, strict=True):
            pattern = interleave(shards.sequence_shares(phases[start]), shards.names)
            one_hot = pattern[:, None] == np.arange(len(shards.names))
            taken = np.pad(np.cumsum(one_hot, axis=0), ((1, 0), (0, 0)))
            earlier = taken_at[length] // length
            phase = Phase(start, phases[start], length, pattern, taken, before, earlier)
            self._refuse_short_sources(phase)
            self.phases.append(phase)
            if end is not None:
                counts = phase.counts(end - start)
                before, taken_at[length] = before + counts, taken_at[length] + counts

    def _refuse_short_sources(self, phase: Phase) -> None:
        tokens = phase.length * self.shards.sequence_length
        ends = [firsts[-1] for firsts in self.first_sequences[phase.length]]
        for name, sequences in zip(self.shards.names, ends, strict=True):
            if not sequences and phase.shares[name]:
                raise RecipeError(
                    f"data.phases: sequence_length={tokens:,}: source {name} has no shard of so many tokens; give it "
                    "no share in this phase, lower sequence_length, or add text"
                )

    def phase_at(self, index: int) -> Phase:
        """Return the phase that window `index` is in."""
        return self.phases[bisect_right(self.starts, index) - 1]

    def counts(self, num_windows: int) -> np.ndarray:
        """Return how many of the first num_windows come from each source."""
        phase = self.phase_at(num_windows)
        return phase.before + phase.counts(num_windows - phase.start)

    def windows_at(self, index: int) -> int:
        """Return how many windows a sequence has where window `index` is."""
        return self.phase_at(index).length

    def repetitions(self, num_windows: int) -> dict[str, float]:
        """Return how often each source has been read through after num_windows."""
        pairs = zip(self.shards.names, self.counts(num_windows), self.shards.num_windows, strict=True)
        return {name: float(count / windows) for name, count, windows in pairs}

    def target_shares(self, num_windows: int) -> dict[str, float]:
        """Return the recipe's fraction of the bytes of each source over the first num_windows, all phases together."""
        lengths = np.diff([*(min(start, num_windows) for start in self.starts), num_windows])
        shares = [self.shards.sequence_shares(phase.shares) for phase in self.phases]
        num_bytes = self.shards.bytes_per_sequence * (lengths @ np.array(shares))
        return dict(zip(self.shards.names, (num_bytes / num_bytes.sum()).tolist(), strict=True))

    def locate(self, index: int) -> Location:
        """Return where window `index` is, in constant time."""
        phase = self.phase_at(index)
        sequence, piece = divmod(index - phase.start, phase.length)
        rounds, rest = divmod(sequence, PATTERN_LENGTH)
        source = int(phase.pattern[rest])
        nth = int(phase.earlier[source]) + rounds * int(phase.taken[-1, source]) + int(phase.taken[rest, source])
        firsts = self.first_sequences[phase.length][source]
        epoch, nth = divmod(nth, firsts[-1])
        number = permute(nth, firsts[-1], self._order(source, epoch, phase.length))
        shard = bisect_right(firsts, number) - 1
        window = (number - firsts[shard]) * phase.length + piece
        first = self._first_token(source, epoch, phase.length, shard)
        return Location(source, shard, first + window * self.shards.sequence_length)

    def _order(self, source: int, epoch: int, length: int) -> tuple[int, ...]:
        """Return the key of the permutation of a source's sequences in an epoch."""
        return (self.seed, source, epoch) if length == 1 else (self.seed, source, epoch, length)

    def _first_token(self, source: int, epoch: int, length: int, shard: int) -> int:
        """Return where the first window of a shard begins in an epoch."""
        if not self.shards.repack:
            return 0
        firsts, tokens = self.first_sequences[length][source], len(self.shards.shards[source][shard])
        read = (firsts[shard + 1] - firsts[shard]) * length * self.shards.sequence_length
        return hash_key((*self._order(source, epoch, length), shard)) % (tokens - read)  # the last label is the last

    def find(self, source: int, shard: int, start: int, end: int, until: int) -> Iterator[tuple[int, int]]:
        """Yield (index, first token) of the windows before window `until` of which a token in [start, end) is a label.

        It is the inverse of `locate`.
        """
        tokens = self.shards.sequence_length
        for phase, phase_end in zip(self.phases, [*self.starts[1:], until], strict=True):
            firsts, last = self.first_sequences[phase.length][source], min(phase_end, until)
            per_round, num_sequences = int(phase.taken[-1, source]), firsts[-1]
            if last <= phase.start or not per_round:
                continue
            before = int(phase.earlier[source])
            stop = before + -(-int(phase.counts(last - phase.start)[source]) // phase.length)
            for epoch in range(before // num_sequences, -(-stop // num_sequences)):
                order = self._order(source, epoch, phase.length)
                first = self._first_token(source, epoch, phase.length, shard)
                for window in range(max(0, (start - 1 - first) // tokens), (end - 2 - first) // tokens + 1):
                    sequence, piece = divmod(window, phase.length)
                    if sequence >= firsts[shard + 1] - firsts[shard]:  # in a shard's remainder
                        break
                    nth = epoch * num_sequences + unpermute(firsts[shard] + sequence, num_sequences, order) - before
                    if not 0 <= nth < stop - before:
                        continue
                    rounds, rest = divmod(nth, per_round)
                    place = rounds * PATTERN_LENGTH + int(np.flatnonzero(phase.pattern == source)[rest])
                    index = phase.start + place * phase.length + piece
                    if index < last:
                        yield index, first + window * tokens

    def window(self, index: int) -> np.ndarray:
        """Return the tokens of window `index`, int64 of shape (sequence_length + 1,)."""
        return self.shards.read(self.locate(index)).astype(np.int64)


def interleave(shares: np.ndarray, names: list[str]) -> np.ndarray:
    """Spread the sources over PATTERN_LENGTH places so that each stretch of places holds each source in its share.

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
