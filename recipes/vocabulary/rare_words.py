# SPDX-License-Identifier: Apache-2.0
"""Keep words of few documents out of a vocabulary, which would show them to whoever gets the tokenizer.

A token is part of a word, that is of a piece of the pre-tokenization. A tokenizer that is trained without the words of
fewer than N documents has therefore no token, beside single bytes, that fewer than N documents hold.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers.pre_tokenizers import PreTokenizer


class FrequentWords:
    """The words of at least min_documents documents.

    Args:
        documents: of each document its text, in pieces.
        splitter: the pre-tokenization.
        min_documents: documents that a word must occur in.

    Attributes:
        words: those that are kept.
        left_out: how many others there are.
    """

    def __init__(self, documents: Iterable[list[str]], splitter: PreTokenizer, min_documents: int):
        self.splitter = splitter
        counts: Counter[str] = Counter()
        for pieces in documents:
            counts.update({word for piece in pieces for word in self.split(piece)})
        self.words = {word for word, count in counts.items() if count >= min_documents}
        self.left_out = len(counts) - len(self.words)

    def split(self, text: str) -> Iterator[str]:
        """Yield the words of a text, which are all of it."""
        for _, (start, end) in self.splitter.pre_tokenize_str(text):
            yield text[start:end]

    def stretches(self, text: str) -> Iterator[str]:
        """Yield the stretches of a text between the words that are left out."""
        kept: list[str] = []
        for word in self.split(text):
            if word in self.words:
                kept.append(word)
            elif kept:
                yield "".join(kept)
                kept = []
        if kept:
            yield "".join(kept)
