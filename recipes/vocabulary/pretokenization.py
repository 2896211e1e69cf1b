# SPDX-License-Identifier: Apache-2.0
"""Pre-tokenization: where a text is split before its tokens are found; no token crosses a split.

A split is a regular expression in tokenizer.json, so AutoTokenizer needs no code of ours. All three styles share three
properties. Nothing is lost: a piece is encoded as its UTF-8 bytes. Digits stand alone, so that amounts
and section numbers are always read the same way. No piece has more than MAX_CHARACTERS + 2 characters, or a text
without spaces (a hash, a table, a sequence of bases) would cost time that grows with the square of its length.
"""

from tokenizers import Regex, pre_tokenizers


# The printable character that a byte-level vocabulary writes for each byte, and back: the 188 of Latin-1 that can be
# seen stand for themselves, the other bytes are U+0100 and onwards in their order.
VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = [value for value in range(256) if value not in VISIBLE]
VALUES = {chr(value): value for value in VISIBLE} | {chr(256 + rank): value for rank, value in enumerate(HIDDEN)}
CHARACTERS = {value: character for character, value in VALUES.items()}
MAX_CHARACTERS = 64
LETTERS = r"\p{L}\p{M}"
# One run of white space: up to its last line end, then all but the space that belongs to the next word.
WHITE_SPACE = rf"\s{{0,{MAX_CHARACTERS - 1}}}[\r\n]|\s{{1,{MAX_CHARACTERS}}}(?!\S)|\s{{1,{MAX_CHARACTERS}}}"
PATTERNS = {
    # A word with the character before it, be it a space, a quote or a bracket; English contractions; punctuation with
    # the line ends after it. GPT-4's pattern with single digits.
    "gpt4": (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?[{LETTERS}]{{1,{MAX_CHARACTERS}}}|\p{{N}}|"
        rf" ?[^\s\p{{L}}\p{{N}}]{{1,{MAX_CHARACTERS}}}[\r\n]?|{WHITE_SPACE}"
    ),
    # Letters and spaces together, so that a token may be several words: BloombergGPT's pattern
    # (https://huggingface.co/papers/2303.17564, section 2.3) with the letters of every script in place of A to Z. A
    # run that is too long ends with a word if it can.
    "multiword": (
        rf"[ {LETTERS}]{{1,{MAX_CHARACTERS}}}(?![{LETTERS}])|[ {LETTERS}]{{1,{MAX_CHARACTERS}}}|\p{{N}}|"
        rf"[^{LETTERS}\p{{N}}]{{1,{MAX_CHARACTERS}}}"
    ),
    # A run of letters of any script with at most a space before it, and no rule of any language. Text that is written
    # without spaces is split at its punctuation alone, and its punctuation never becomes a part of its words.
    "neutral": (
        rf" ?[{LETTERS}]{{1,{MAX_CHARACTERS}}}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]{{1,{MAX_CHARACTERS}}}|{WHITE_SPACE}"
    ),
}


def splitter(style: str) -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer that splits a text into pieces. Args: style: a key of PATTERNS."""
    return pre_tokenizers.Split(Regex(PATTERNS[style]), behavior="isolated")


def byte_level(style: str) -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer that also spells each byte of a piece as one printable character."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([splitter(style), to_bytes])


def as_characters(entry: bytes) -> str:
    """Return bytes as they are written in the vocabulary of a byte-level tokenizer."""
    return "".join(CHARACTERS[value] for value in entry)


def as_bytes(entry: str) -> bytes:
    """Return the bytes of an entry. Raises: KeyError: it is not one of bytes but a special token."""
    return bytes(VALUES[character] for character in entry)
