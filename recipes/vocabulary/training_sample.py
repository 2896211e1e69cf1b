# SPDX-License-Identifier: Apache-2.0
"""Draw the text that a tokenizer is trained on: a sample of each source that depends only on the texts and the seed.

The hash of a piece of text decides whether it is in the sample, so all repeats of a piece are in it or none. The
sample does not depend on the number and order of the files, takes constant memory, and contains the smaller samples of
its seed.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash


# Longer documents are sampled in parts, so that one of many megabytes is not drawn whole.
PIECE_CHARACTERS = 1 << 16
SLOTS = 1 << 16
BUFFERED_BYTES = 1 << 24


def cut_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts in pieces of at most PIECE_CHARACTERS."""
    for text in texts:
        for start in range(0, len(text), PIECE_CHARACTERS):
            yield text[start : start + PIECE_CHARACTERS]


def slot(piece: str, seed: int) -> int:
    """Return the slot of a piece, 0 to SLOTS - 1, by its hash."""
    return xxhash.xxh64_intdigest(piece.encode(), seed=seed) % SLOTS


def draw_sample(texts: Callable[[], Iterable[str]], max_bytes: int, seed: int) -> Iterator[str]:
    """Yield pieces of a source's texts, at most max_bytes in all, in the order of reading.

    The texts are read twice. The sample falls short of max_bytes by at most one slot, a 65,536th of the source, or by
    one piece if the source is small. A source of at most max_bytes is taken whole.

    Args:
        texts: opens the source; each call yields the same texts, in any order.
        max_bytes: UTF-8 bytes of the sample.
        seed: of the draw.
    """
    return chain.from_iterable(draw_documents(texts, max_bytes, seed))


def draw_documents(texts: Callable[[], Iterable[str]], max_bytes: int, seed: int) -> Iterator[list[str]]:
    """Yield the pieces of draw_sample, those of one text together."""
    bytes_in = np.zeros(SLOTS, dtype=np.int64)
    for piece in cut_pieces(texts()):
        bytes_in[slot(piece, seed)] += len(piece.encode())
    num_slots = int(np.searchsorted(np.cumsum(bytes_in), max_bytes, side="right"))
    for text in texts():
        if pieces := [piece for piece in cut_pieces([text]) if slot(piece, seed) < num_slots]:
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
