# SPDX-License-Identifier: Apache-2.0
"""Token shards of a run: memory-mapped tokens of each source, and the index of the documents in them."""

import json
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from recipe_config import RecipeError
from vocabulary.document_ends import DocumentEnds
from vocabulary.token_bytes import token_bytes


# A document: the position of its eos token in the shard, its UTF-8 bytes, its id.
DOCUMENT_RECORD = np.dtype([("end", "<u8"), ("num_bytes", "<u8"), ("id", "S32")])
RECORDS_AT_ONCE = 1 << 16  # of an index in memory while it is searched


class Location(NamedTuple):
    """The place of a training sequence: tokens [start, start + sequence_length] of a shard of a source."""

    source: int
    shard: int
    start: int


class TokenShards:
    """The training shards of the sources, memory-mapped and divided into windows; tokens are read on access.

    Args:
        tokens: the tokens/ folder of a run.
        names: its sources; a source's number is its position here.
        sequence_length: tokens in a window, without the one after them.
        repack: the windows of each epoch begin at another place, so a shard of several has one fewer than it has room
            for.

    Attributes:
        num_windows: windows of each source.
        bytes_per_sequence: mean UTF-8 bytes of a window of each source, float64 of shape (num_sources,).
        train_bytes: source name -> UTF-8 bytes of its training text.
        remainder_tokens: source name -> tokens at the ends of its shards that are in no window.

    Raises: RecipeError: a shard that is not as long as the manifest says, or a source shorter than one sequence.
    """

    def __init__(self, tokens: Path, names: list[str], sequence_length: int, repack: bool = False):
        manifest = json.loads((tokens / "manifest.json").read_text(encoding="utf-8"))
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self.folder, self.names, self.sequence_length, self.repack = tokens, list(names), sequence_length, repack
        self.ends = manifest_ends(manifest)
        self.files, self.shards, self.first_windows, self.num_windows, bytes_per_sequence = [], [], [], [], []
        self.remainder_tokens, self.train_bytes = {}, {}
        for name in self.names:
            train = manifest["sources"][name]["train"]
            windows = [(shard["tokens"] - 1) // sequence_length for shard in train["shards"]]
            if repack:
                windows = [count - 1 if count > 1 else count for count in windows]
            if not sum(windows):
                longest = max((shard["tokens"] for shard in train["shards"]), default=0)
                of_several = f" in the longest of its {len(train['shards'])} shards" * (len(train["shards"]) > 1)
                raise RecipeError(
                    f"{tokens}: source {name} has {longest:,} tokens{of_several}, less than one sequence of "
                    f"{sequence_length} and the token after it; lower training.sequence_length or add text"
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
        # Pickling would send the tokens along; the other process maps the files itself.
        return TokenShards, (self.folder, self.names, self.sequence_length, self.repack)

    def sequence_shares(self, shares: dict[str, float]) -> np.ndarray:
        """Convert fractions of bytes into fractions of sequences, by the mean bytes of a sequence of each source."""
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

    def document_start(self, index: np.ndarray, number: int) -> int:
        """Return the position in a shard of the first token of the text of its document `number`."""
        return int(index[number - 1]["end"]) + len(self.ends.between) if number else 1

    def find_documents(self, ids: list[str]) -> dict[str, list[tuple[int, int, int, int]]]:
        """Look documents up by id, in one pass over the index of all documents.

        Returns: id -> (source, shard, first token, token after its eos) of each place; an empty list: not
        there.
        """
        found: dict[str, list] = {document: [] for document in ids}
        wanted = np.array([document.encode() for document in found], dtype=DOCUMENT_RECORD["id"])
        for source, files in enumerate(self.files):
            for shard in range(len(files)):
                index = self.index(source, shard)
                for first in range(0, len(index), RECORDS_AT_ONCE):
                    matches = np.isin(index[first : first + RECORDS_AT_ONCE]["id"], wanted)
                    for number in (first + np.flatnonzero(matches)).tolist():
                        place = (source, shard, self.document_start(index, number), int(index[number]["end"]) + 1)
                        found[index[number]["id"].decode()].append(place)
        return found


def manifest_ends(manifest: dict) -> DocumentEnds:
    """Return the ids of the tokens that begin and end a document; an old manifest names one token for both."""
    return DocumentEnds(manifest.get("bos_token_id", manifest["eos_token_id"]), manifest["eos_token_id"])


def open_shard(tokens: Path, shard: dict, dtype: np.dtype) -> np.memmap:
    """Map a shard after checking its size, since a truncated one maps without an error."""
    path, expected = tokens / shard["file"], shard["tokens"] * dtype.itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise RecipeError(f"{path}: {found:,} bytes where the manifest says {expected:,}; rerun tokenize_corpus.py")
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))  # slices of a plain array cost less


def token_byte_lengths(tokenizer_folder: Path) -> np.ndarray:
    """Return the bytes of text of each token, int64 of shape (vocab_size,); 0 for special tokens."""
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    return np.array([len(data) for data in token_bytes(tokenizer)], dtype=np.int64)
