# SPDX-License-Identifier: Apache-2.0
"""The bytes of text that a tokenizer's tokens stand for, and the refusal of a tokenizer that changes text."""

import os
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from recipe_config import RecipeError
from vocabulary.measures import byte_spelling
from vocabulary.pretokenization import VALUES


EXCERPT_BYTES = 20  # of a changed text, in the message


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of text of each token, by id; empty for special tokens and for ids without a token.

    A byte-level vocabulary writes a token with one character a byte. One of SentencePiece's kind writes text, with a
    mark for each space, and <0x0A> for a single byte. A token that was added as text is written as that text.
    """
    spelled = bytes_of_text if byte_spelling(tokenizer) == "fallback" else bytes_of_letters
    added, numbers = tokenizer.get_added_tokens_decoder(), tokenizer.get_vocab()
    table = [b""] * (1 + max(numbers.values()))  # ids of a foreign vocabulary may have gaps
    for token, token_id in numbers.items():
        if token_id in added:
            table[token_id] = b"" if added[token_id].special else token.encode()
        else:
            table[token_id] = spelled(token)
    return table


def bytes_of_letters(token: str) -> bytes:
    """Return the bytes of a byte-level token; other characters are of a token that no text yields."""
    return bytes(VALUES[character] for character in token if character in VALUES)


def bytes_of_text(token: str) -> bytes:
    """Return the bytes of a token of SentencePiece's kind."""
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes.fromhex(token[3:5])
    return token.replace("\u2581", " ").encode()


def refuse_changed_text(text: str, token_ids: Sequence[int], table: list[bytes], where: str) -> None:
    """Refuse a tokenizer whose tokens do not spell the text that was encoded.

    A normalizer that lower-cases, a space put before the text or a vocabulary without some bytes changes text.

    Args:
        text: the text that was encoded.
        token_ids: its tokens.
        table: of token_bytes.
        where: the place of the text, for the message.

    Raises: RecipeError: the tokens are of another text, so bits per byte would be too.
    """
    expected, found = text.encode(), b"".join(map(table.__getitem__, token_ids))
    if found != expected:
        first = len(os.path.commonprefix([expected, found]))
        wanted, got = (data[first : first + EXCERPT_BYTES].decode(errors="replace") for data in (expected, found))
        raise RecipeError(
            f"{where}: the tokenizer changes the text: from byte {first:,} on it encodes {wanted!r} as {got!r}; "
            "choose a tokenizer that keeps every character"
        )
