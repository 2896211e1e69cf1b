# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE: merge the most frequent pair of neighbouring tokens, again and again.

`tokenizers` trains it. The result depends only on how often each piece occurs: pairs of equal count are merged in the
order of their ids. So neither the order of the texts nor the number of threads changes it.
"""

import json
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from vocabulary.pretokenization import LOOKED_UP_WHOLE, byte_level, training_splitter
from vocabulary.special_tokens import (
    END_OF_TEXT,
    byte_level_tokenizer,
    check_size,
    check_special_tokens,
    reserved_tokens,
)


def train_bpe(
    texts: Iterable[str],
    style: str,
    vocab_size: int,
    *,
    min_frequency: int = 2,
    max_token_bytes: int = 64,
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    num_reserved: int = 0,
    pad: bool = False,
) -> Tokenizer:
    """Train a tokenizer of exactly vocab_size tokens; the order of the texts does not matter.

    Args:
        texts: documents or parts of them; a special token that a text spells is text. Takes about 20 bytes of memory
            for each byte of the different pieces.
        style: pre-tokenization, a key of pretokenization.PATTERNS.
        vocab_size: special tokens, the 256 bytes, learnt and reserved tokens together.
        min_frequency: occurrences that a pair needs to be merged.
        max_token_bytes: length of the longest token.
        special_tokens: the first tokens, in this order.
        num_reserved: reserved tokens at the end of the vocabulary.
        pad: add reserved tokens if the texts yield fewer tokens.

    Raises: RecipeError: the texts yield fewer tokens and `pad` is not set; a special token could be text;
        vocab_size has no room for the bytes.
    """
    check_special_tokens(special_tokens, num_reserved, vocab_size, style)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level(training_splitter(style))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - num_reserved,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=max_token_bytes,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    vocabulary = learnt["vocab"]
    reason = f"from pairs that occur {min_frequency} times"
    num_reserved += check_size(len(vocabulary) + num_reserved, vocab_size, reason, pad)
    reserved = reserved_tokens(num_reserved)
    vocabulary |= {token: len(vocabulary) + index for index, token in enumerate(reserved)}
    merges = [tuple(pair) for pair in learnt["merges"]]
    model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=style in LOOKED_UP_WHOLE)
    return byte_level_tokenizer(model, style, [*special_tokens, *reserved])
