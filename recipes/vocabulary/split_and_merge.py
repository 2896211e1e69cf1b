# SPDX-License-Identifier: Apache-2.0
"""Byte-level Unigram over any amount of text: train on chunks of each source in parallel, then merge.

This is BloombergGPT's method (https://huggingface.co/papers/2303.17564, section 2.3). A Unigram model is a
distribution over pieces. Models are merged by averaging the probability of each piece, weighted by the bytes each
model was trained on; a model that lacks a piece gives it probability 0. The chunks of a source are merged first, then
the sources. The 256 bytes and the most probable pieces are kept and renormalised.

Memory grows with the size of a chunk and the number of workers, not with the text. One chunk is plain Unigram.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tokenizers import Tokenizer, models
from tqdm import tqdm

from child_processes import outside_working_folder
from recipe_config import RecipeError
from vocabulary.pretokenization import as_characters
from vocabulary.special_tokens import (
    BYTES,
    END_OF_TEXT,
    byte_level_tokenizer,
    check_size,
    check_special_tokens,
    reserved_tokens,
)
from vocabulary.training_sample import read_chunk
from vocabulary.unigram_trainer import count_words, learn_pieces


# A merge that holds twice as many pieces drops the least probable down to this. A piece takes about 150 bytes.
MAX_MERGED = 1_000_000
# Score of the special and reserved tokens, which no text yields: below that of any learnt piece.
UNREACHABLE_SCORE = -1000.0

Model = Mapping[bytes, float]


def train_chunk(file: Path, style: str, size: int, max_bytes: int) -> tuple[dict[bytes, float], int]:
    """Return the pieces of one chunk with their probabilities, and the chunk's bytes of text."""
    counts = count_words(read_chunk(file), style)
    num_bytes = sum(len(word) * count for word, count in counts.items())
    return learn_pieces(counts, size, max_bytes), num_bytes


def most_probable(model: Model, size: int) -> dict[bytes, float]:
    """Return the 256 bytes and the most probable other pieces, `size` in all, by descending probability."""
    ranked = sorted(model.items(), key=lambda item: (-item[1], item[0]))
    room = size - BYTES
    kept = {}
    for piece, probability in ranked:
        if len(piece) > 1:
            room -= 1
        if len(piece) == 1 or room >= 0:
            kept[piece] = probability
    return kept


def merge(trained: Iterable[tuple[Model, int]]) -> tuple[dict[bytes, float], int]:
    """Average models, weighted by the bytes each was trained on; return the average and the sum of the bytes.

    One model at a time is in memory.
    """
    merged: dict[bytes, float] = {}
    total = 0
    for model, num_bytes in trained:
        for piece, probability in model.items():
            merged[piece] = merged.get(piece, 0.0) + probability * num_bytes
        total += num_bytes
        if len(merged) > 2 * MAX_MERGED:
            merged = most_probable(merged, MAX_MERGED)
    return {piece: weight / total for piece, weight in merged.items()}, total


@contextmanager
def ordered_map(workers: int) -> Iterator[Callable]:
    """Yield a `map` that runs in `workers` processes and keeps the order; one worker is this process."""
    if workers == 1:
        yield map
        return
    with outside_working_folder(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        yield executor.map


def train_unigram(
    chunks: Mapping[str, Sequence[Path]],
    style: str,
    vocab_size: int,
    *,
    max_token_bytes: int = 32,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    num_reserved: int = 0,
    pad: bool = False,
    workers: int = 1,
) -> Tokenizer:
    """Train a tokenizer of exactly vocab_size tokens; the number of workers does not change it.

    Args:
        chunks: by source, files of training_sample.write_chunks.
        style: pre-tokenization, a key of pretokenization.PATTERNS.
        vocab_size: special tokens, the 256 bytes, learnt and reserved tokens together.
        max_token_bytes: length of the longest token.
        special_tokens: the first tokens, in this order.
        num_reserved: reserved tokens at the end of the vocabulary.
        pad: add reserved tokens if the texts yield fewer tokens.
        workers: processes that train at a time.

    Raises: RecipeError: there is no text; it yields fewer tokens and `pad` is not set; vocab_size has no room for
        the bytes; a special token could be text.
    """
    check_special_tokens(special_tokens, num_reserved, vocab_size, style)
    size = vocab_size - len(special_tokens) - num_reserved
    sources = sorted(chunks)
    files = [file for source in sources for file in chunks[source]]
    if not files:
        raise RecipeError("data.sources: no text to train a tokenizer on; add text")
    train = partial(train_chunk, style=style, size=size, max_bytes=max_token_bytes)
    with ordered_map(workers) as run:
        trained = iter(tqdm(run(train, files), desc="tokenizer: train", total=len(files), unit=" chunks", leave=False))
        by_source = (merge(next(trained) for _ in chunks[source]) for source in sources if chunks[source])
        merged, _ = merge(by_source)
    pieces = most_probable(merged, size)
    total = math.fsum(pieces.values())
    reached = len(special_tokens) + len(pieces) + num_reserved
    reserved = reserved_tokens(num_reserved + check_size(reached, vocab_size, "from strings that recur", pad))
    learnt = [(as_characters(piece), math.log(probability / total)) for piece, probability in pieces.items()]
    scored = [
        *((token, UNREACHABLE_SCORE) for token in special_tokens),
        *learnt,
        *((token, UNREACHABLE_SCORE) for token in reserved),
    ]
    model = models.Unigram(scored, None, False)
    return byte_level_tokenizer(model, style, [*special_tokens, *reserved])
