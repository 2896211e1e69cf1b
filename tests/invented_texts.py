# SPDX-License-Identifier: Apache-2.0
"""Texts of invented words, as frequent as in a language, to train tokenizers on."""

import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path

from datatrove.data import Document

from corpus.document_files import document_id, write_documents
from vocabulary.split_and_merge import train_unigram
from vocabulary.training_sample import cut_pieces, slot, write_chunks


SYLLABLES = ["".join(pair) for pair in itertools.product("bcdfglmnprst", "aeiou")]
WORDS = ["".join(random.Random(seed).choices(SYLLABLES, k=1 + seed % 4)) for seed in range(3000)]


def make_text(seed: int, num_words: int = 500) -> str:
    """Return sentences of invented words, the first ones of WORDS the most frequent, as in a language."""
    choose = random.Random(seed)
    words = choose.choices(WORDS, weights=[1 / rank for rank in range(1, len(WORDS) + 1)], k=num_words)
    return "".join(word + choose.choice([" ", " ", " ", " ", ", ", ". ", " 12 ", "\n"]) for word in words)


TEXTS = [make_text(seed) for seed in range(60)]


def unigram(texts, folder, style="gpt4", vocab_size=600, num_chunks=1, **settings):
    chunks = {"all": write_chunks(cut_pieces(texts), num_chunks, folder, seed=0)}
    return train_unigram(chunks, style, vocab_size, **settings)


def write_training_texts(folder: Path, texts: dict[str, list[str]], files: int = 1) -> Path:
    """Write the training split of a documents/ folder, each source in so many files, with stats.json."""
    for source, own in texts.items():
        for number in range(files):
            rows = [Document(text, document_id(text), metadata={"source": source}) for text in own[number::files]]
            write_documents(rows, number, files, folder / "train" / source)
    sizes = {source: {"documents": len(own), "bytes": count_bytes(own)} for source, own in texts.items()}
    stats = {"sources": {source: {"kept": {"train": size}} for source, size in sizes.items()}}
    (folder / "stats.json").write_text(json.dumps(stats))
    return folder


def sample_by_hand(texts: list[str], max_bytes: int, seed: int = 0) -> list[str]:
    """Return the pieces of the sample of a source, the first slots that fit in max_bytes."""
    by_slot: dict[int, list[str]] = {}
    for piece in cut_pieces(texts):
        by_slot.setdefault(slot(piece, seed), []).append(piece)
    drawn: list[str] = []
    for _, pieces in sorted(by_slot.items()):
        if count_bytes(drawn) + count_bytes(pieces) > max_bytes:
            break
        drawn += pieces
    return sorted(drawn)


def count_bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)
