# SPDX-License-Identifier: Apache-2.0
"""Special and reserved tokens, which no text encodes to, and the tokenizer built from a trained model.

Ids run in this order: the special tokens, of which `<|endoftext|>` is the first; the learnt tokens; and the reserved
tokens `<|reserved_0|>`, `<|reserved_1|>` and so on, for later use such as the roles of a chat. All are in the model's
own vocabulary, so their ids stay when tokens are added after them.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models

from recipe_config import RecipeError
from vocabulary.pretokenization import byte_level, splitter


END_OF_TEXT = "<|endoftext|>"
BYTES = 256


def reserved_tokens(num_reserved: int) -> list[str]:
    return [f"<|reserved_{index}|>" for index in range(num_reserved)]


def check_special_tokens(special_tokens: Sequence[str], num_reserved: int, vocab_size: int, style: str) -> None:
    """Refuse special tokens that repeat, are named like a reserved one or could be learnt, and a vocabulary too small.

    No token crosses a split of the pre-tokenization, so a special token that is split is never learnt from text.
    """
    pre_tokenizer, problems = splitter(style), []
    fixed = len(special_tokens) + BYTES + num_reserved
    if vocab_size < fixed:
        problems.append(
            f"tokenizer.vocab_size={vocab_size}: the bytes, special and reserved tokens alone are {fixed:,} tokens; "
            "set it to more"
        )
    for index, token in enumerate(special_tokens):
        if token in special_tokens[:index]:
            problems.append(f"special token {token!r} is listed twice; list it once")
        elif token.startswith("<|reserved_"):
            problems.append(f"special token {token!r} has the name of a reserved token; choose another")
        elif len(pre_tokenizer.pre_tokenize_str(token)) < 2:
            problems.append(f"special token {token!r} could be a word of a document; write it as <|name|>")
    if problems:
        raise RecipeError(*problems)


def check_size(reached: int, vocab_size: int, reason: str, pad: bool) -> int:
    """Return how many reserved tokens pad a vocabulary of size `reached` to vocab_size.

    Raises: RecipeError: it is smaller than vocab_size, and `pad` is not set.
    """
    missing = vocab_size - reached
    if missing and not pad:
        raise RecipeError(
            f"tokenizer.vocab_size={vocab_size}: the text yields only {reached:,} tokens, {reason}; "
            "set it to that or less, add text, or add reserved tokens by tokenizer.pad_vocabulary=true"
        )
    return missing


def byte_level_tokenizer(model: models.Model, style: str, special_tokens: Sequence[str]) -> Tokenizer:
    """Return the tokenizer of a model whose tokens are spelled in byte characters and include special_tokens."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = byte_level(splitter(style))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    return tokenizer
