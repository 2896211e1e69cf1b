# SPDX-License-Identifier: Apache-2.0
"""Draw the text that a tokenizer is trained on: a sample of each source that depends only on the texts and the seed.

The hash of a piece of text is its slot, so all repeats of a piece are in a sample or none. A sample is the pieces of
the first slots: it does not depend on the number and order of the files, and contains the smaller samples of its seed.
How many slots it has follows from the bytes in each, which are known when the corpus has been read. So that it is read
only once, the pieces of a few slots more than expected are copied while they are counted.
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import xxhash


# Longer documents are sampled in parts, so that one of many megabytes is not drawn whole.
PIECE_CHARACTERS = 1 << 16
SLOTS = 1 << 16
# A sample whose pieces are all of the largest size has more slots than expected by so many standard deviations almost
# never; then the corpus is read again.
MARGIN_DEVIATIONS = 6
BUFFERED_BYTES = 1 << 24


def cut_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts in pieces of at most PIECE_CHARACTERS."""
    for text in texts:
        for start in range(0, len(text), PIECE_CHARACTERS):
            yield text[start : start + PIECE_CHARACTERS]


def slot(piece: str, seed: int) -> int:
    """Return the slot of a piece, 0 to SLOTS - 1, by its hash."""
    return xxhash.xxh64_intdigest(piece.encode(), seed=seed) % SLOTS


def copied_slots(sample_bytes: int, source_bytes: int) -> int:
    """Return how many slots to copy of a source for a sample of it: enough, unless its pieces are very uneven."""
    sample_bytes = max(sample_bytes, 1)
    margin = 1 + MARGIN_DEVIATIONS * math.sqrt(PIECE_CHARACTERS / sample_bytes)
    return min(SLOTS, math.ceil(SLOTS * margin * sample_bytes / source_bytes))


def copy_pieces(texts: Iterable[str], num_slots: int, seed: int, file: Path) -> None:
    """Copy the pieces in the first slots to a file, a line for each text with some; beside it, the bytes in each slot.

    Memory is that of one text.
    """
    bytes_in = np.zeros(SLOTS, dtype=np.int64)
    with file.open("w", encoding="ascii") as lines:
        for text in texts:
            copied = []
            for piece in cut_pieces([text]):
                number = slot(piece, seed)
                bytes_in[number] += len(piece.encode())
                if number < num_slots:
                    copied.append([number, piece])
            if copied:
                lines.write(json.dumps(copied) + "\n")
    np.save(file.with_suffix(".npy"), bytes_in[:num_slots])


def count_slots(folder: Path, max_bytes: int) -> int | None:
    """Return how many slots of the copies in a folder have at most max_bytes; None if more of them were needed.

    The sample of these slots falls short of max_bytes by at most one slot, a 65,536th of the source, or by one piece
    if the source is small.
    """
    bytes_in = np.sum([np.load(file) for file in sorted(folder.glob("*.npy"))], axis=0)
    num_slots = int(np.searchsorted(np.cumsum(bytes_in), max_bytes, side="right"))
    return num_slots if num_slots < len(bytes_in) or len(bytes_in) == SLOTS else None


def read_copies(folder: Path, num_slots: int) -> Iterator[list[str]]:
    """Yield the pieces in the first slots of the copies in a folder, those of one text together."""
    for file in sorted(folder.glob("*.jsonl")):
        with file.open(encoding="ascii") as lines:
            for line in lines:
                if pieces := [piece for number, piece in json.loads(line) if number < num_slots]:
                    yield pieces


def write_chunks(pieces: Iterable[str], num_chunks: int, folder: Path, seed: int) -> list[Path]:
    """Write pieces to files of about equal size, one JSON string a line; return the files that are not empty.

    A piece's hash decides its file, so the files hold the same pieces for any order of the texts.
    """
    folder.mkdir(parents=True)
    buffers: list[list[str]] = [[] for _ in range(num_chunks)]
    buffered = 0

    def write() -> None:
        for index, lines in enumerate(buffers):
            if lines:
                with open(folder / f"{index:05d}.jsonl", "a", encoding="ascii") as file:
                    file.writelines(lines)
                lines.clear()

    for piece in pieces:
        line = json.dumps(piece) + "\n"
        # Not the seed of the sample: its first slots would all be in the first chunks.
        buffers[slot(piece, seed + 1) * num_chunks // SLOTS].append(line)
        buffered += len(line)
        if buffered > BUFFERED_BYTES:
            write()
            buffered = 0
    write()
    return sorted(folder.glob("*.jsonl"))


def read_chunk(file: Path) -> Iterator[str]:
    """Yield the pieces of a file of write_chunks."""
    with open(file, encoding="ascii") as lines:
        yield from map(json.loads, lines)
