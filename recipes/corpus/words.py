# SPDX-License-Identifier: Apache-2.0
"""The words of a text, and hashes of them and of their n-grams, computed for a whole text at a time.

A dictionary from words to hashes takes longer to ask than all of this: words are found as the edges between letters
and other bytes, and each is hashed by the eight bytes that are read at its start.
"""

import re
import unicodedata
from typing import NamedTuple

import numpy as np


# Chinese and Japanese are written without spaces, so there each character counts as a word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
ALONE = re.compile(r"([\u3040-\u30ff\u3400-\u9fff])")
ASCII = bytes(range(128))
SPACE = 32
# What is in no word becomes a space, and a letter a small one.
WORDS_OF_ASCII = bytes(i if i >= 128 or chr(i).isalnum() or chr(i) == "_" else SPACE for i in range(256))
PLAIN_ASCII = bytes(i + 32 if 65 <= i <= 90 else WORDS_OF_ASCII[i] for i in range(256))
FIRST_BYTES = np.array([(1 << 8 * length) - 1 for length in range(9)], dtype=np.uint64)
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so multiplying by it modulo 2**64 loses no bits


class Words(NamedTuple):
    """The words of a text that `words_apart` has divided: their first bytes, bytes and hashes."""

    starts: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray


def word_hashes(text: str) -> np.ndarray:
    """Return a uint64 for each word, in order, equal for words that differ in case and accents alone."""
    return find_words(words_apart(text, plain=True)).hashes


def find_words(apart: bytes) -> Words:
    """Return the words between the spaces of a text."""
    padded = np.frombuffer(b" " + apart + b" " * 8, dtype=np.uint8)
    inside = padded[: len(apart) + 2] != SPACE
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts = edges[::2] + 1
    lengths = edges[1::2] + 1 - starts
    eights = np.ndarray(
        len(apart) + 2, dtype="<u8", buffer=padded, strides=(1,)
    )  # at every byte, the eight from there
    hashes = mix(eights[starts] & FIRST_BYTES[np.minimum(lengths, 8)])
    place, longer = 8, np.flatnonzero(lengths > 8)
    while len(longer):
        more = eights[starts[longer] + place] & FIRST_BYTES[np.minimum(lengths[longer] - place, 8)]
        hashes[longer] = mix(hashes[longer] + more)
        place += 8
        longer = longer[lengths[longer] > place]
    return Words(starts - 1, lengths, hashes)


def words_apart(text: str, plain: bool) -> bytes:
    """Return a text's words in UTF-8, between spaces; `plain` ones without differences of case and accents."""
    if not text.isascii():
        others = set(text.encode().translate(None, ASCII).decode())
        if ALONE.search("".join(others)):
            text = ALONE.sub(r" \1 ", text)
        table = {c: plain_character(c) if plain else c if c.isalnum() else " " for c in others}
        changed = {c: replacement for c, replacement in table.items() if replacement != c}
        # Up to 100, one pass over the text for each character is faster than a look at each place; but what one of
        # them writes must not be replaced again by a later one, which the order of a set would decide.
        if len(table) > 100 or not changed.keys().isdisjoint("".join(changed.values())):
            text = text.translate(str.maketrans(changed))
        else:
            for character, replacement in changed.items():
                text = text.replace(character, replacement)
    return text.encode().translate(PLAIN_ASCII if plain else WORDS_OF_ASCII)


def plain_character(character: str) -> str:
    """Return a letter without case and accents, and a space for what divides words; a letter stays in its word."""
    if not character.isalnum():
        return " "
    plain = unicodedata.normalize("NFKD", character.casefold())
    plain = unicodedata.normalize("NFKD", plain.casefold())  # a capital of mathematics has become a plain capital
    return "".join(c for c in plain if not unicodedata.combining(c) and (c.isalnum() or not c.isascii()))


def mix(hashes: np.ndarray) -> np.ndarray:
    """Mix the bits of each hash: the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    hashes = hashes ^ (hashes >> np.uint64(30))
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes


def ngram_hashes(words: np.ndarray, length: int) -> np.ndarray:
    """Hash every n-gram: a polynomial in BASE of the hashes of its words, modulo 2**64.

    The expected number of false matches between w words of text and g n-grams is about w * g / 2**64: one in 18,000
    corpora of a billion words, for a million n-grams.

    Args:
        words: (n,) uint64, one hash a word.
        length: words of an n-gram; fewer words are one n-gram.

    Returns: (n - length + 1,) uint64, or (1,).
    """
    length = min(length, len(words))
    count = len(words) - length + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(length):
        hashes *= BASE
        hashes += words[place : place + count]
    return hashes
