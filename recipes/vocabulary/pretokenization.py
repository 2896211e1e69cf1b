# SPDX-License-Identifier: Apache-2.0
"""Pre-tokenization: where a text is split before its tokens are found; no token crosses a split.

The split is a regular expression in tokenizer.json, so AutoTokenizer needs no code of ours. All three styles share
three properties. Nothing is lost, since a piece is encoded as its UTF-8 bytes. Each digit is a piece, so that amounts
and section numbers are always split the same way. No piece has more than MAX_CHARACTERS + 2 characters: longer ones,
from text without spaces such as a hash, a table or a DNA sequence, would take time quadratic in their length.
"""

from tokenizers import Regex, pre_tokenizers


# The printable character that a byte-level vocabulary writes for each byte, and back. The 188 printable ones of
# Latin-1 stand for themselves; the other bytes are U+0100 and up, in order.
VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = [value for value in range(256) if value not in VISIBLE]
VALUES = {chr(value): value for value in VISIBLE} | {chr(256 + rank): value for rank, value in enumerate(HIDDEN)}
CHARACTERS = {value: character for character, value in VALUES.items()}
MAX_CHARACTERS = 64
LETTERS = r"\p{L}\p{M}"
# One run of white space: up to its last line end, then all but the space that belongs to the next word.
WHITE_SPACE = rf"\s{{0,{MAX_CHARACTERS - 1}}}[\r\n]|\s{{1,{MAX_CHARACTERS}}}(?!\S)|\s{{1,{MAX_CHARACTERS}}}"
PATTERNS = {
    # GPT-4's pattern with single digits: a word with one character before it (a space, a quote, a bracket), English
    # contractions, punctuation with the line end after it.
    "gpt4": (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?[{LETTERS}]{{1,{MAX_CHARACTERS}}}|\p{{N}}|"
        rf" ?[^\s\p{{L}}\p{{N}}]{{1,{MAX_CHARACTERS}}}[\r\n]?|{WHITE_SPACE}"
    ),
    # Letters and spaces together, so that a token may be several words: BloombergGPT's pattern
    # (https://huggingface.co/papers/2303.17564, section 2.3) with the letters of every script instead of A to Z. A run
    # that is too long ends after a word where possible.
    "multiword": (
        rf"[ {LETTERS}]{{1,{MAX_CHARACTERS}}}(?![{LETTERS}])|[ {LETTERS}]{{1,{MAX_CHARACTERS}}}|\p{{N}}|"
        rf"[^{LETTERS}\p{{N}}]{{1,{MAX_CHARACTERS}}}"
    ),
    # A run of letters of any script with at most a space before it; no rule is specific to a language. Text without
    # spaces is split at punctuation only, and punctuation never joins a word.
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


def as_characters(token: bytes) -> str:
    """Return a token's bytes as the vocabulary of a byte-level tokenizer writes them."""
    return "".join(CHARACTERS[value] for value in token)


def as_bytes(token: str) -> bytes:
    """Return the bytes of a token of a byte-level vocabulary. Raises: KeyError: it is a special token."""
    return bytes(VALUES[character] for character in token)
