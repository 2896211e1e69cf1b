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

import json
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from recipe_config import RecipeError


PATTERN_LENGTH = 10_000  # shares are exact to 1/10,000 over each so many sequences
# Of each document: where its end-of-text token stands in the shard, its UTF-8 bytes, and its id.
DOCUMENT_RECORD = np.dtype([("end", "<u8"), ("num_bytes", "<u8"), ("id", "S32")])
IGNORED_LABEL = -100
RECORDS_AT_ONCE = 1 << 16  # of an index that is searched, to hold no more of it in memory


class Location(NamedTuple):
    """Where a training sequence is: tokens [start, start + sequence_length] of a shard of a source."""

    source: int
    shard: int
    start: int


class TokenShards:
    """The training shards of the sources, mapped and cut into windows; nothing is read until it is asked for.

    Args:
        tokens: the tokens/ folder of a run.
        names: its sources, in the order in which they are numbered.
        sequence_length: tokens in a window, beside the one after them.

    Attributes:
        num_windows: windows of each source.
        bytes_per_sequence: mean UTF-8 bytes of a window of each source, float64 of shape (num_sources,).
        train_bytes: source name -> UTF-8 bytes of its training text.
        remainder_tokens: source name -> tokens at the ends of its shards that no window reaches.

    Raises: RecipeError: a shard that is not as long as the manifest says, or a source shorter than one sequence.
    """

    def __init__(self, tokens: Path, names: list[str], sequence_length: int):
        manifest = json.loads((tokens / "manifest.json").read_text(encoding="utf-8"))
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self.folder, self.names, self.sequence_length = tokens, list(names), sequence_length
        self.eos_token_id = manifest["eos_token_id"]
        self.files, self.shards, self.first_windows, self.num_windows, bytes_per_sequence = [], [], [], [], []
        self.remainder_tokens, self.train_bytes = {}, {}
        for name in self.names:
            train = manifest["sources"][name]["train"]
            windows = [(shard["tokens"] - 1) // sequence_length for shard in train["shards"]]
            if not sum(windows):
                raise RecipeError(
                    f"{tokens}: source {name} has {train['tokens']:,} tokens, less than one sequence of "
                    f"{sequence_length}; lower training.sequence_length or add text"
                )
            self.files.append([tokens / shard["file"] for shard in train["shards"]])
            self.shards.append([open_shard(tokens, shard, dtype) for shard in train["shards"]])
            self.first_windows.append(np.cumsum([0, *windows]).tolist())
            self.num_windows.append(sum(windows))
            self.train_bytes[name] = train["bytes"]
            self.remainder_tokens[name] = train["tokens"] - len(windows) - sum(windows) * sequence_length
            bytes_per_sequence.append(train["bytes"] / train["tokens"] * sequence_length)
        self.bytes_per_sequence = np.array(bytes_per_sequence)

    def __reduce__(self):
        # A process that is sent a copy maps the files itself; the tokens would be sent along otherwise.
        return TokenShards, (self.folder, self.names, self.sequence_length)

    def sequence_shares(self, shares: dict[str, float]) -> np.ndarray:
        """Turn shares of bytes into shares of sequences, through the bytes that a sequence of each source holds."""
        quotas = np.array([shares[name] for name in self.names]) / self.bytes_per_sequence
        return quotas / quotas.sum()

    def place(self, source: int, window: int) -> Location:
        """Return where a source's window is."""
        shard = bisect_right(self.first_windows[source], window) - 1
        return Location(source, shard, (window - self.first_windows[source][shard]) * self.sequence_length)

    def read(self, location: Location, num_windows: int = 1) -> np.ndarray:
        """Return the tokens of the windows from a location on, and the one after them, as a view of the file."""
        source, shard, start = location
        return self.shards[source][shard][start : start + num_windows * self.sequence_length + 1]

    def index(self, source: int, shard: int) -> np.ndarray:
        """Return the document index of a shard, mapped: DOCUMENT_RECORDs in the order of their text."""
        file = self.files[source][shard].with_suffix(".index")
        return (
            np.memmap(file, dtype=DOCUMENT_RECORD, mode="r") if file.stat().st_size else np.empty(0, DOCUMENT_RECORD)
        )

    def find_documents(self, ids: list[str]) -> dict[str, list[tuple[int, int, int, int]]]:
        """Look documents up by id, in one pass over the index: in time that grows with the documents at hand.

        Returns: id -> (source, shard, first token, token after its end-of-text) of each place; none: not there.
        """
        found: dict[str, list] = {document: [] for document in ids}
        wanted = np.array([document.encode() for document in found], dtype=DOCUMENT_RECORD["id"])
        for source, files in enumerate(self.files):
            for shard in range(len(files)):
                index = self.index(source, shard)
                for first in range(0, len(index), RECORDS_AT_ONCE):
                    matches = np.isin(index[first : first + RECORDS_AT_ONCE]["id"], wanted)
                    for number in (first + np.flatnonzero(matches)).tolist():
                        place = (source, shard, document_start(index, number), int(index[number]["end"]) + 1)
                        found[index[number]["id"].decode()].append(place)
        return found


def document_start(index: np.ndarray, number: int) -> int:
    """Return where the first token of a shard's document stands in it."""
    return int(index[number - 1]["end"]) + 1 if number else 1


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


def open_shard(tokens: Path, shard: dict, dtype: np.dtype) -> np.memmap:
    """Map a shard after checking its size: a truncated one would be read as a shorter one without an error."""
    path, expected = tokens / shard["file"], shard["tokens"] * dtype.itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise RecipeError(f"{path}: {found:,} bytes where the manifest says {expected:,}; rerun tokenize_corpus.py")
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))  # slices of a plain array cost less


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


def permute(index: int, size: int, key: tuple[int, ...]) -> int:
    """Return where `index` goes in a pseudo-random permutation of range(size) chosen by key.

    A four-round Feistel network on the least even number of bits that hold size; what falls outside is sent through
    again until it falls inside (at most four times on average), which keeps it a permutation.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask, rounds = (1 << half_bits) - 1, round_keys(key)
    while True:
        left, right = index >> half_bits, index & mask
        for key_of_round in rounds:
            left, right = right, left ^ (mix(right ^ key_of_round) & mask)
        index = left << half_bits | right
        if index < size:
            return index


def unpermute(index: int, size: int, key: tuple[int, ...]) -> int:
    """Return what `permute` sends to `index`."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask, rounds = (1 << half_bits) - 1, round_keys(key)
    while True:
        left, right = index >> half_bits, index & mask
        for key_of_round in reversed(rounds):
            left, right = right ^ (mix(left ^ key_of_round) & mask), left
        index = left << half_bits | right
        if index < size:
            return index


@lru_cache(maxsize=1024)
def round_keys(key: tuple[int, ...]) -> list[int]:
    return [mix(hash_key(key) + number) for number in range(4)]


def hash_key(key: tuple[int, ...]) -> int:
    state = 0
    for part in key:
        state = mix(state ^ part)
    return state


def mix(value: int) -> int:
    """Scramble 64 bits: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31


def document_positions(input_ids: np.ndarray, eos_token_id: int) -> np.ndarray:
    """Number the tokens of each document from 0, where a document begins with the end-of-text token before it.

    Args: input_ids: (batch_size, sequence_length).  eos_token_id: what stands between documents.
    Returns: position_ids of the same shape; attention and rotary positions start anew at every 0.
    """
    begins = input_ids == eos_token_id
    begins[:, 0] = True
    starts = np.flatnonzero(begins).tolist()
    numbers, positions = np.arange(input_ids.shape[1]), np.empty(begins.size, dtype=np.int64)
    for start, end in zip(starts, [*starts[1:], begins.size], strict=True):
        positions[start:end] = numbers[: end - start]
    return positions.reshape(begins.shape)


def token_byte_lengths(tokenizer_folder: Path) -> np.ndarray:
    """Return the bytes of text that each token stands for, int64 of shape (vocab_size,); 0 for control tokens.

    A token of a byte-level vocabulary is written with one character a byte.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    control = set(tokenizer.get_added_tokens_decoder())
    numbers = tokenizer.get_vocab()
    lengths = np.zeros(1 + max(numbers.values()), dtype=np.int64)  # a vocabulary of others may have holes
    for token, token_id in numbers.items():
        lengths[token_id] = 0 if token_id in control else len(token)
    return lengths


class ValidationText:
    """The first documents of a source's validation split, laid out in sequences, each token predicted once.

    The end of a document is no text and is not scored; the last sequence is filled up with ends. A document that
    does not fit goes on in the next sequence without what was before, so the numbers are a little above those of
    eval/bits_per_byte.py, whose window slides.

    Attributes:
        input_ids, labels: (num_sequences, sequence_length), int64; labels are IGNORED_LABEL where nothing is scored.
        num_bytes: UTF-8 bytes of the documents.
    """

    def __init__(self, tokens: Path, source: str, sequence_length: int, max_bytes: int):
        manifest = json.loads((tokens / "manifest.json").read_text(encoding="utf-8"))
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self.eos_token_id, self.num_bytes = manifest["eos_token_id"], 0
        parts = []
        for shard in manifest["sources"][source]["validation"]["shards"]:
            index = np.fromfile((tokens / shard["file"]).with_suffix(".index"), dtype=DOCUMENT_RECORD)
            below = np.cumsum(index["num_bytes"]) - index["num_bytes"] < max_bytes - self.num_bytes
            index = index[below]
            if len(index):
                parts.append(open_shard(tokens, shard, dtype)[: int(index["end"][-1])].astype(np.int64))
                self.num_bytes += int(index["num_bytes"].sum())
        stream = np.concatenate(parts)
        num_sequences = -(-len(stream) // sequence_length)
        padded = np.full(num_sequences * sequence_length + 1, self.eos_token_id)
        padded[: len(stream)] = stream
        self.input_ids = padded[:-1].reshape(num_sequences, sequence_length)
        labels = padded[1:].reshape(num_sequences, sequence_length)
        self.labels = np.where(labels == self.eos_token_id, IGNORED_LABEL, labels)
