# SPDX-License-Identifier: Apache-2.0
"""The bytes of text that the tokens of a byte-level tokenizer stand for."""

from tokenizers import Tokenizer

from vocabulary.pretokenization import VALUES


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of text of each token, by id; empty for special tokens and for ids without a token.

    A byte-level vocabulary writes a token with one character a byte. A token that was added as text is written as
    that text.
    """
    added, numbers = tokenizer.get_added_tokens_decoder(), tokenizer.get_vocab()
    table = [b""] * (1 + max(numbers.values()))  # ids of a foreign vocabulary may have gaps
    for token, token_id in numbers.items():
        if token_id in added:
            table[token_id] = b"" if added[token_id].special else token.encode()
        else:  # other characters are of a token that no text yields
            table[token_id] = bytes(VALUES[character] for character in token if character in VALUES)
    return table
