# SPDX-License-Identifier: Apache-2.0
"""Texts of invented words, as frequent as in a language, to train tokenizers on."""

import itertools
import random

from vocabulary.split_and_merge import train_unigram
from vocabulary.training_sample import cut_pieces, write_chunks


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
