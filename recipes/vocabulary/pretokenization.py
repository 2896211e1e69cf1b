# SPDX-License-Identifier: Apache-2.0
"""Pre-tokenization: where a text is split before its tokens are found; no token crosses a split.

The split is a regular expression in tokenizer.json, so AutoTokenizer needs no code of ours. Nothing is lost, since a
piece is encoded as its UTF-8 bytes. Each digit is a piece, so that amounts and section numbers are always split the
same way; only `llama-bpe` keeps up to three digits together.

`qwen2`, `qwen35` and `llama-bpe` are the expressions of Qwen2, Qwen3.5 and Llama 3, letter for letter. llama.cpp,
Ollama and other programs know them by these names. The others are read by `tokenizers` and transformers alone, so they
have no GGUF file.

Text without spaces, such as a hash, a table or a DNA sequence, is one piece of any length for these three. Encoding it
takes time near linear in its length, but training would take time quadratic in it. So a tokenizer is trained on pieces
of at most MAX_TRAINED_CHARACTERS, and longer ones are split. The other styles split them in the expression itself.
"""

from tokenizers import Regex, pre_tokenizers


# The printable character that a byte-level vocabulary writes for each byte, and back. The 188 printable ones of
# Latin-1 stand for themselves; the other bytes are U+0100 and up, in order.
VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = [value for value in range(256) if value not in VISIBLE]
VALUES = {chr(value): value for value in VISIBLE} | {chr(256 + rank): value for rank, value in enumerate(HIDDEN)}
CHARACTERS = {value: character for character, value in VALUES.items()}
MAX_CHARACTERS = 64
MAX_TRAINED_CHARACTERS = MAX_CHARACTERS + 2
LOOKED_UP_WHOLE = ("llama-bpe",)  # a piece in the vocabulary is one token, whatever the merges, as in llama.cpp
LETTERS = r"\p{L}\p{M}"
# One run of white space: up to its last line end, then all but the space that belongs to the next word.
WHITE_SPACE = rf"\s{{0,{MAX_CHARACTERS - 1}}}[\r\n]|\s{{1,{MAX_CHARACTERS}}}(?!\S)|\s{{1,{MAX_CHARACTERS}}}"
QWEN_WHITE_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    # As gpt4, but a combining mark (\p{M}), as in decomposed accents, Thai and Devanagari, splits a word.
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + QWEN_WHITE_SPACE
    ),
    # Marks belong to words.
    "qwen35": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
        + QWEN_WHITE_SPACE
    ),
    # As qwen2, but up to three digits are one piece: 1234 is 123 and 4.
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        + QWEN_WHITE_SPACE
    ),
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


def training_splitter(style: str) -> pre_tokenizers.PreTokenizer:
    """Return the splitter for training, which also splits pieces of more than MAX_TRAINED_CHARACTERS."""
    return pre_tokenizers.Sequence([splitter(style), pre_tokenizers.FixedLength(MAX_TRAINED_CHARACTERS)])


def byte_level(split: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    """Return the pre-tokenizer that also spells each byte of a piece as one printable character."""
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def as_characters(token: bytes) -> str:
    """Return a token's bytes as the vocabulary of a byte-level tokenizer writes them."""
    return "".join(CHARACTERS[value] for value in token)


def as_bytes(token: str) -> bytes:
    """Return the bytes of a token of a byte-level vocabulary. Raises: KeyError: it is a special token."""
    return bytes(VALUES[character] for character in token)
