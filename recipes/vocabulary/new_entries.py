# SPDX-License-Identifier: Apache-2.0
"""Choose the words that an existing tokenizer splits most often on a text."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer

from vocabulary.pretokenization import as_bytes


def choose_entries(tokenizer: Tokenizer, texts: Iterable[str], number: int, min_frequency: int) -> list[str]:
    """Return the pieces that would save the most tokens on the texts as tokens of their own, best first, at most
    `number`.

    An entry saves, each time it stands there, all of its pieces but one; see tokenizer_extension.py for why only whole
    pieces count. Memory grows with the number of different words.

    Args:
        tokenizer: byte-level BPE or Unigram.
        texts: a sample of the domain.
        number: most pieces to return.
        min_frequency: occurrences an entry needs.
    """
    cut = tokenizer.pre_tokenizer.pre_tokenize_str
    counts = Counter(piece for text in texts for piece, _ in cut(text))
    savings = {}
    for characters, count in counts.items():
        if count < min_frequency:
            continue
        try:
            entry = as_bytes(characters).decode()
        except UnicodeDecodeError:
            continue
        pieces = len(tokenizer.encode(entry, add_special_tokens=False).ids)
        if pieces > 1 and [piece for piece, _ in cut(entry)] == [characters]:
            savings[entry] = count * (pieces - 1)
    return sorted(savings, key=lambda entry: (-savings[entry], entry))[:number]
