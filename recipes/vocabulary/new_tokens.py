# SPDX-License-Identifier: Apache-2.0
"""Choose the words that an existing tokenizer splits most often, to add them as tokens."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer

from vocabulary.pretokenization import as_bytes


def choose_tokens(tokenizer: Tokenizer, texts: Iterable[str], number: int, min_frequency: int) -> list[str]:
    """Return at most `number` words that would save the most tokens on the texts as tokens of their own, best first.

    Each occurrence of a new token saves all of its present tokens but one. tokenizer_extension.py says why only whole
    pieces of the pre-tokenization count. Memory grows with the number of different words.

    Args:
        tokenizer: byte-level BPE or Unigram.
        texts: a sample of the domain.
        number: most words to return.
        min_frequency: occurrences that a word needs.
    """
    pre_tokenize = tokenizer.pre_tokenizer.pre_tokenize_str
    counts = Counter(piece for text in texts for piece, _ in pre_tokenize(text))
    savings = {}
    for characters, count in counts.items():
        if count < min_frequency:
            continue
        try:
            word = as_bytes(characters).decode()
        except UnicodeDecodeError:
            continue
        num_tokens = len(tokenizer.encode(word, add_special_tokens=False).ids)
        if num_tokens > 1 and [piece for piece, _ in pre_tokenize(word)] == [characters]:
            savings[word] = count * (num_tokens - 1)
    return sorted(savings, key=lambda word: (-savings[word], word))[:number]
