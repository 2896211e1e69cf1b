# SPDX-License-Identifier: Apache-2.0
"""Where text is cut before its tokens are found: nothing is lost, nothing is unbounded, no language is left out."""

import random
import re
import time

import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vocabulary.pretokenization import (
    MAX_TRAINED_CHARACTERS,
    PATTERNS,
    as_bytes,
    as_characters,
    byte_level,
    splitter,
    training_splitter,
)


STYLES = list(PATTERNS)
TEXTS = [
    "The court shall not, in 2024, award $1,234.50 (net) to the plaintiff's heirs.\r\n\r\n\t  It's so ordered.  ",
    "1 tab po q.i.d. p.c. & h.s.; e\u0301\u00e9 \u200d\ufeff\u0000\U0001f468\u200d\U0001f469\u200d\U0001f467\ufe0f",
    "\uc81c1\uc870 \uc774 \ubc95\uc740 \ubbfc\uc0ac\uc5d0 \uad00\ud558\uc5ec \uc801\uc6a9\ud55c\ub2e4.",
    "\u672c\u6cd5\u81ea2021\u5e741\u67081\u65e5\u8d77\u65bd\u884c\u3002\u7b2c\u4e00\u6761\uff1a\u4e3a\u4e86\u4fdd\u62a4\u6c11\u4e8b\u4e3b\u4f53",
    "\u79c1\u6a29\u306f\u3001\u516c\u5171\u306e\u798f\u7949\u306b\u9069\u5408\u3057\u306a\u3051\u308c\u3070\u306a\u3089\u306a\u3044\u3002",
    "\u0e1b\u0e23\u0e30\u0e21\u0e27\u0e25\u0e01\u0e0e\u0e2b\u0e21\u0e32\u0e22\u0e41\u0e1e\u0e48\u0e07\u0e41\u0e25\u0e30\u0e1e\u0e32\u0e13\u0e34\u0e0a\u0e22\u0e4c",
]


def cut(style: str, text: str) -> list[str]:
    return [piece for piece, _ in splitter(style).pre_tokenize_str(text)]


def random_texts() -> list[str]:
    choose = random.Random(0)
    anything = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000] + ["\U0001f468", "\uac00"]
    common = list("aeiou  \n\r\t.,'\"-0123456789s")
    return ["".join(choose.choices(pool, k=300)) for pool in (anything, common) for _ in range(50)]


def test_a_special_token_has_no_bytes():
    with pytest.raises(KeyError):
        as_bytes("a b")


def test_every_byte_has_one_character_and_back():
    everything = bytes(range(256))
    assert [as_characters(bytes([value])) for value in range(256)] == list(
        dict(sorted(bytes_to_unicode().items())).values()
    )
    assert len(set(as_characters(everything))) == 256 and as_bytes(as_characters(everything)) == everything


@pytest.mark.parametrize("style", STYLES)
def test_pieces_put_together_are_the_text(style):
    for text in [*TEXTS, *random_texts(), "", " "]:
        assert "".join(cut(style, text)) == text
        characters = "".join(piece for piece, _ in byte_level(splitter(style)).pre_tokenize_str(text))
        assert as_bytes(characters) == text.encode()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("unit", ["a", " ", "\n", "\r\n", "-", "\u5b57", "\u0e01\u0e33", "a ", "\u0301", "\U0001f468"])
def test_no_piece_is_longer_in_training_than_the_limit(style, unit):
    pieces = [piece for piece, _ in training_splitter(style).pre_tokenize_str(unit * 5000)]
    assert max(map(len, pieces)) <= MAX_TRAINED_CHARACTERS and "".join(pieces) == unit * 5000


@pytest.mark.parametrize("style", ["gpt4", "multiword", "neutral"])
def test_the_styles_of_this_project_split_no_more_in_training_than_in_encoding(style):
    for text in [*TEXTS, *random_texts(), "a" * 500, " \n" * 500, "- \r\n" * 200]:
        pieces = [piece for piece, _ in training_splitter(style).pre_tokenize_str(text)]
        assert pieces == cut(style, text)


@pytest.mark.parametrize("style", STYLES)
def test_digits_are_pieces_of_their_own_and_no_punctuation_follows_letters_in_one(style):
    most = 3 if style == "llama-bpe" else 1
    for text in [*TEXTS, *random_texts()]:
        for piece in cut(style, text):
            assert not re.search(r"\d", piece) or (len(piece) <= most and piece.isnumeric()), piece
            assert not re.search(r"[A-Za-z][!-/:-@\[-`{-~]", piece), piece


@pytest.mark.parametrize("style", STYLES)
def test_the_text_of_a_special_token_is_split(style):
    for token in ("<|endoftext|>", "<|reserved_17|>", "x<|endoftext|>y"):
        assert len(cut(style, token)) >= 3


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("unit", ["a", "ACGT", " ", "\n", "-", "\u5b57", "a b"])
def test_time_is_near_linear_in_a_text_that_is_one_run(style, unit):
    def seconds(num_characters: int) -> float:
        text = (unit * num_characters)[:num_characters]
        start = time.process_time()
        splitter(style).pre_tokenize_str(text)
        return time.process_time() - start

    # Sixteen times the text; what grows with the square would take 256 times as long. Other work only adds.
    best = {size: min(seconds(size) for _ in range(2)) for size in (50_000, 800_000)}
    assert best[800_000] < 80 * max(best[50_000], 0.01)


def test_multiword_splits_english_text_as_bloomberggpt_does():
    published = re.compile(r"[ A-Za-z]+|[0-9]|[^A-Za-z0-9]+")
    for text in ("Net income rose 12.5% to $3.4 billion, the company said.\n\nSee Note 7 (above).", TEXTS[0]):
        assert cut("multiword", text) == published.findall(text)


def test_multiword_splits_a_run_that_is_too_long_between_words():
    text = "the party of the first part and the party of the second part agree " * 5
    pieces = cut("multiword", text)
    assert len(pieces) > 5 and all(piece.startswith(" ") for piece in pieces[1:])


@pytest.mark.parametrize("style", ["qwen2", "qwen35", "llama-bpe"])
def test_the_styles_with_a_name_of_llama_cpp_are_the_published_ones(style):
    text = "The heirs don't, see (a) 42195\n\n  ok a\u0301b \u0e01\u0e33"
    split = ["a\u0301b", " \u0e01\u0e33"] if style == "qwen35" else ["a", "\u0301b", " \u0e01\u0e33"]
    split[0] = f" {split[0]}"
    number = ["421", "95"] if style == "llama-bpe" else list("42195")
    assert cut(style, text) == [
        *("The", " heirs", " don", "'t", ",", " see", " (", "a", ")", " ", *number, "\n\n", " ", " ok"),
        *split,
    ]
    # One piece, however long: the expressions of others have no limit.
    assert cut(style, "a" * 5000) == ["a" * 5000]


def test_gpt4_keeps_a_word_with_the_space_before_it():
    assert cut("gpt4", "The heirs don't, see (a) 42\n\n  ok") == [
        *("The", " heirs", " don", "'t", ",", " see", " (", "a", ")", " ", "4", "2", "\n\n", " ", " ok"),
    ]


def test_neutral_has_no_rule_of_a_language_and_keeps_punctuation_apart():
    assert cut("neutral", "don't\u3001\u672c\u6cd5\u300c\u6c11\u4e8b\u300d \ubc95\uc740.") == [
        *("don", "'", "t", "\u3001", "\u672c\u6cd5", "\u300c", "\u6c11\u4e8b", "\u300d", " \ubc95\uc740", "."),
    ]
