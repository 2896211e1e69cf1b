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
    folded = WORD.findall(text)
    for _ in range(2):  # a capital of mathematics is a plain capital after the first time
        folded = [unicodedata.normalize("NFKD", word.casefold()) for word in folded]
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


def test_what_one_character_becomes_is_not_replaced_by_another_characters_turn():
    capitals = [chr(0x1D6A8 + number) for number in range(17)]  # of mathematics: bold Greek from Alpha to Rho
    plain = [unicodedata.normalize("NFKD", character) for character in capitals]
    fractions = [chr(code) for code in range(0x2150, 0x215F)]
    for words, others in ((capitals, plain), (fractions, ["\u2044"])):
        alone = [int(word_hashes(word)[0]) for word in words]
        assert word_hashes(" ".join([*words, *others])).tolist()[: len(words)] == alone
    assert word_hashes(" ".join(capitals)).tolist() == word_hashes(" ".join(plain).lower()).tolist()


def test_ngrams_are_equal_wherever_they_stand():
    hashes = word_hashes("one two three four one two three five")
    trigrams = ngram_hashes(hashes, 3)
    assert len(trigrams) == 6 and trigrams[0] == trigrams[4] and len(np.unique(trigrams)) == 5
    assert len(ngram_hashes(hashes[:2], 3)) == 1
