# SPDX-License-Identifier: Apache-2.0
"""The mixture: which tokens the i-th training sequence holds, as a pure function of (seed, i).

Sequence i comes from a source, by a fixed pattern that gives each its share of the bytes; within the source it is
the next of a pseudo-random permutation of its windows, a new one each time round. Nothing is shuffled, held or
searched: opening reads the manifest, and any sequence costs the same, on any process and after any interruption.

A window is `sequence_length` tokens and the one after them, which is also the first of the next window: as a label
each token of a shard stands in exactly one window, but for the remainder at the shard's end.
"""

import json
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from recipe_config import RecipeError


PATTERN_LENGTH = 10_000  # shares are exact to 1/10,000 over each so many sequences
# Of each document: where its end-of-text token stands in the shard, its UTF-8 bytes, and its id.
DOCUMENT_RECORD = np.dtype([("end", "<u8"), ("num_bytes", "<u8"), ("id", "S32")])
IGNORED_LABEL = -100


class Location(NamedTuple):
    """Where a training sequence is: tokens [start, start + sequence_length] of a shard of a source."""

    source: int
    shard: int
    start: int


class TokenMixture:
    """The endless sequence of training sequences.

    Args:
        tokens: the tokens/ folder of a run.
        shares: source name -> share of the bytes; they add up to 1.
        sequence_length: tokens in a sequence.
        seed: of the order within each source.

    Raises: RecipeError: a shard that is not as long as the manifest says, or a source shorter than one sequence.
    """

    def __init__(self, tokens: Path, shares: dict[str, float], sequence_length: int, seed: int):
        manifest = json.loads((tokens / "manifest.json").read_text(encoding="utf-8"))
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self.eos_token_id, self.sequence_length, self.seed = manifest["eos_token_id"], sequence_length, seed
        self.names = list(shares)
        self.shards, self.first_windows, self.num_windows, bytes_per_sequence = [], [], [], []
        self.remainder_tokens = {}  # of each source: tokens at the ends of its shards that no window reaches
        for name in self.names:
            train = manifest["sources"][name]["train"]
            windows = [(shard["tokens"] - 1) // sequence_length for shard in train["shards"]]
            if not sum(windows):
                raise RecipeError(
                    f"{tokens}: source {name} has {train['tokens']:,} tokens, less than one sequence of "
                    f"{sequence_length}; lower training.sequence_length or add text"
                )
            self.shards.append([open_shard(tokens, shard, dtype) for shard in train["shards"]])
            self.first_windows.append(np.cumsum([0, *windows]).tolist())
            self.num_windows.append(sum(windows))
            self.remainder_tokens[name] = train["tokens"] - len(windows) - sum(windows) * sequence_length
            bytes_per_sequence.append(train["bytes"] / train["tokens"] * sequence_length)
        # A share of bytes is a share of sequences through the bytes that a sequence of each source holds on average.
        quotas = np.array(list(shares.values())) / np.array(bytes_per_sequence)
        self.sequence_shares = quotas / quotas.sum()
        self.pattern = interleave(self.sequence_shares, self.names)
        one_hot = self.pattern[:, None] == np.arange(len(self.names))
        self.taken_before = np.concatenate([np.zeros((1, len(self.names)), int), np.cumsum(one_hot, axis=0)])

    def counts(self, num_sequences: int) -> np.ndarray:
        """Return how many of the first num_sequences come from each source."""
        rounds, rest = divmod(num_sequences, PATTERN_LENGTH)
        return rounds * self.taken_before[-1] + self.taken_before[rest]

    def repetitions(self, num_sequences: int) -> dict[str, float]:
        """Return how often each source has been gone through after num_sequences."""
        pairs = zip(self.names, self.counts(num_sequences), self.num_windows, strict=True)
        return {name: float(count / windows) for name, count, windows in pairs}

    def locate(self, index: int) -> Location:
        """Return where sequence `index` is, in constant time."""
        source = int(self.pattern[index % PATTERN_LENGTH])
        epoch, nth = divmod(int(self.counts(index)[source]), self.num_windows[source])
        window = permute(nth, self.num_windows[source], (self.seed, source, epoch))
        shard = bisect_right(self.first_windows[source], window) - 1
        return Location(source, shard, (window - self.first_windows[source][shard]) * self.sequence_length)

    def find(self, source: int, shard: int, start: int, epoch: int) -> int:
        """Return the index of the sequence at `start` of a shard in the source's epoch: `locate` the other way."""
        window = self.first_windows[source][shard] + start // self.sequence_length
        nth = unpermute(window, self.num_windows[source], (self.seed, source, epoch))
        rounds, rest = divmod(epoch * self.num_windows[source] + nth, int(self.taken_before[-1][source]))
        return rounds * PATTERN_LENGTH + int(np.flatnonzero(self.pattern == source)[rest])

    def sequence(self, index: int) -> np.ndarray:
        """Return sequence `index`, int64 of shape (sequence_length + 1,)."""
        return self.read(self.locate(index))

    def read(self, location: Location) -> np.ndarray:
        """Return the tokens at a location, int64 of shape (sequence_length + 1,)."""
        source, shard, start = location
        return self.shards[source][shard][start : start + self.sequence_length + 1].astype(np.int64)


def open_shard(tokens: Path, shard: dict, dtype: np.dtype) -> np.memmap:
    """Map a shard after checking its size: a truncated one would be read as a shorter one without an error."""
    path, expected = tokens / shard["file"], shard["tokens"] * dtype.itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise RecipeError(f"{path}: {found:,} bytes where the manifest says {expected:,}; rerun tokenize_corpus.py")
    return np.memmap(path, dtype=dtype, mode="r")


def interleave(shares: np.ndarray, names: list[str]) -> np.ndarray:
    """Spread the sources over PATTERN_LENGTH places so that any stretch of them holds each in its share.

    Returns: int64 of shape (PATTERN_LENGTH,), the source at each place.
    """
    counts = np.floor(shares * PATTERN_LENGTH).astype(int)
    rest = np.argsort(counts - shares * PATTERN_LENGTH, kind="stable")[: PATTERN_LENGTH - counts.sum()]
    counts[rest] += 1
    for name, count in zip(names, counts, strict=True):
        if not count:
            raise RecipeError(f"data.sources: {name}: its share is less than one sequence in {PATTERN_LENGTH:,}")
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
    places = np.arange(input_ids.shape[1])
    starts = np.maximum.accumulate(np.where(input_ids == eos_token_id, places, 0), axis=1)
    return places - starts


def token_byte_lengths(tokenizer_folder: Path) -> np.ndarray:
    """Return the bytes of text that each token stands for, int64 of shape (vocab_size,); 0 for control tokens.

    A token of a byte-level vocabulary is written with one character a byte.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    control = set(tokenizer.get_added_tokens_decoder())
    lengths = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for token, token_id in tokenizer.get_vocab().items():
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
