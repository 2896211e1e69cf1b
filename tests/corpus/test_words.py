# SPDX-License-Identifier: Apache-2.0
"""Hashes of words: equal exactly where the words are, without case and accents."""

import random
import string
import unicodedata

import numpy as np

from corpus.words import WORD, ngram_hashes, word_hashes


TEXTS = [
    "",
    " ,. ",
    "One two, TWO; one-two 3.5 three_four O'Neill",
    "a" * 7
    + " "
    + "a" * 8
    + " "
    + "a" * 9
    + " "
    + "a" * 16
    + " "
    + "a" * 17
    + " "
    + "a" * 300
    + "b "
    + "a" * 300
    + "c",
    "Élan élan elan ÉLAN “quoted” naïve—dash § 12 ½ ² Straße STRASSE ﬁn",
    "日本語のテキスト and 中文 mixed한국어 κόσμος Κόσμος кіт",
    "".join(chr(code) for code in range(0x100, 0x800) if chr(code).isprintable()),
]


def expected_words(text: str) -> list[str]:
    folded = (unicodedata.normalize("NFKD", word.casefold()) for word in WORD.findall(text))
    return ["".join(c for c in word if not unicodedata.combining(c)) for word in folded]


def test_words_have_equal_hashes_exactly_where_they_are_equal():
    choose = random.Random(0)
    letters = string.ascii_letters + string.digits + string.punctuation + " \n\té§ß日"
    texts = TEXTS + ["".join(choose.choices(letters, k=choose.randrange(400))) for _ in range(100)]
    known: dict[str, int] = {}
    for text in texts:
        words, hashes = expected_words(text), word_hashes(text).tolist()
        assert len(words) == len(hashes), text
        for word, number in zip(words, hashes, strict=True):
            assert known.setdefault(word, number) == number, word
    assert len(set(known.values())) == len(known) > 1000


def test_ngrams_are_equal_wherever_they_stand():
    hashes = word_hashes("one two three four one two three five")
    trigrams = ngram_hashes(hashes, 3)
    assert len(trigrams) == 6 and trigrams[0] == trigrams[4] and len(np.unique(trigrams)) == 5
    assert len(ngram_hashes(hashes[:2], 3)) == 1
