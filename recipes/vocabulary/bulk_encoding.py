# SPDX-License-Identifier: Apache-2.0
"""Encode many texts at once: by fastokens, which is faster, as long as it gives the tokens of `tokenizers`.

`tokenizers` decides what is right. Whether fastokens agrees is tested on CORNER_CASES before it is used, then on one
text in CHECKED_ONE_IN by hash, and on every text over LONG_CHARACTERS. From the first difference on, `tokenizers`
encodes. It also does where fastokens is not installed, and for Unigram, which fastokens does not read.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import xxhash
from tokenizers import Tokenizer, models


CHECKED_ONE_IN = 128
LONG_CHARACTERS = 4_000_000
# `tokenizers` needs about 200 bytes of memory a byte of text, so longer texts are encoded in pieces.
MAX_PIECE_CHARACTERS = 1_000_000
CORNER_CASES = [
    "",
    " ",
    "\r\n\r\n\t  a\u00a0b\u2003c\u3000  ",
    "don't DON'T we'll 'S 'K \u2019s 'st",
    "a\u0301\u0328 e\u0301\u00e9 \u1112\u1161\u11ab \u0e01\u0e33 \u0915\u094d\u0937 \u05e9\u05b8\u05c1",
    "1,234.56 \u0663\u00bd\u2167\u3007 x2y 0x1F",
    "\u672c\u6cd5\u81ea2021\u5e74\u3002\uc81c1\uc870 \u79c1\u6a29\u306f",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\ufe0f \U00020000\U0001d400",
    "\ufeff\u0000\x1b\x7f\x85\u200b\u2028\ufffd\uffff\U0010ffff\U000f0000",
    "<|endoftext|></s><s>[INST]<unk> <0x0A> \u2581a \u0120b",
    *(unit * 3000 for unit in ("a", " ", "\n", "-", "7", "\u0e01", "a \n")),
]


class EncodersDiffer(Exception):
    """fastokens and `tokenizers` give different tokens for a text, or fastokens fails on it.

    Attributes:
        index: of the text in its batch.
    """

    def __init__(self, index: int, reason: str):
        super().__init__(reason)
        self.index = index


def load_fastokens(tokenizer: Tokenizer) -> tuple[Any, str]:
    """Return fastokens' tokenizer with the content of `tokenizer`, and what encodes: "fastokens" with its version.

    Where fastokens cannot be used: None, and "tokenizers" with the reason.
    """
    if not isinstance(tokenizer.model, models.BPE):
        return None, f"tokenizers: fastokens has no {type(tokenizer.model).__name__}"
    try:
        import fastokens  # here, since it may be absent
    except ImportError:
        return None, "tokenizers: fastokens is not installed; it would be many times as fast"
    name = f"fastokens {version('fastokens')}"
    try:
        fast = fastokens.Tokenizer.from_json_str(tokenizer.to_str())
        encode_batch(CORNER_CASES, tokenizer, fast, check_all=True)
    except EncodersDiffer as error:
        return None, f"tokenizers: {name} {error} on corner case {ascii(CORNER_CASES[error.index][:40])}"
    except ValueError as error:
        return None, f"tokenizers: {name} does not read this tokenizer: {str(error).splitlines()[0]}"
    return fast, name


def encode_batch(
    texts: Sequence[str], tokenizer: Tokenizer, fast: Any, check_all: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of all texts, without special tokens, and where those of each text end.

    Args:
        texts: encoded whole, though a long one in pieces.
        tokenizer: what gives the right tokens.
        fast: of load_fastokens; None: `tokenizer` encodes.
        check_all: compare every text, not a sample.

    Returns: uint32 tokens and int64 ends; text i has the tokens from ends[i - 1] to ends[i].

    Raises: EncodersDiffer: `fast` gives other tokens for a text that was compared, or fails.
    """
    if fast is None:
        found = [encode(tokenizer, text) for text in texts]
        ends = np.cumsum([len(tokens) for tokens in found], dtype=np.int64)
        return (np.concatenate(found) if found else np.empty(0, np.uint32)), ends
    pieces = [list(split_at_lines(text)) for text in texts]
    try:
        tokens, starts = fast.encode_batch_flat(
            [piece for text in pieces for piece in text], split_special_tokens=tokenizer.encode_special_tokens
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        raise EncodersDiffer(0, f"fails ({type(error).__name__})") from error
    tokens, starts = np.frombuffer(tokens, dtype="<u4"), np.frombuffer(starts, dtype="<u8").astype(np.int64)
    ends = starts[np.cumsum([len(text) for text in pieces], dtype=np.int64)]
    for index, text in enumerate(texts):
        if check_all or is_checked(text):
            start = ends[index - 1] if index else 0
            if not np.array_equal(tokens[start : ends[index]], encode(tokenizer, text)):
                raise EncodersDiffer(index, "gives other tokens")
    return tokens, ends


def is_checked(text: str) -> bool:
    """Return whether a text is one of those on which the encoders are compared."""
    return len(text) > LONG_CHARACTERS or xxhash.xxh64_intdigest(text) % CHECKED_ONE_IN == 0


def encode_all(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return what encode_batch does: by fastokens if it agrees, otherwise by `tokenizers`."""
    fast, _ = load_fastokens(tokenizer)
    try:
        return encode_batch(texts, tokenizer, fast)
    except EncodersDiffer:
        return encode_batch(texts, tokenizer, None)


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return a text's tokens by `tokenizers`, without special tokens."""
    # A fourth faster than `encode`, which records offsets; batches of one, so that no threads start.
    found = [tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0].ids for piece in split_at_lines(text)]
    return np.concatenate([np.array(ids, dtype=np.uint32) for ids in found or [[]]])


def split_at_lines(text: str) -> Iterator[str]:
    """Split a text into pieces of at most MAX_PIECE_CHARACTERS, each at its last line end if it has one."""
    start = 0
    while start < len(text):
        end = start + MAX_PIECE_CHARACTERS
        if end < len(text):
            line_end = text.rfind("\n", start, end)
            end = line_end + 1 if line_end > start else end
        yield text[start:end]
        start = end
