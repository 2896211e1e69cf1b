# SPDX-License-Identifier: Apache-2.0
"""Which tokens begin and end a document: the tokenizer's bos and eos, in training and wherever its model is used.

One token may do both. Then it stands once between two documents."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from recipe_config import RecipeError


if TYPE_CHECKING:  # it takes seconds to import, and tokenizing needs none of it
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class DocumentEnds(NamedTuple):
    """The tokens that begin and end a document, as text or as ids."""

    bos: str | int
    eos: str | int

    @property
    def between(self) -> tuple:
        """The tokens between two documents: the end of one and the begin of the next."""
        return (self.eos,) if self.bos == self.eos else (self.eos, self.bos)


def document_ends(folder: Path) -> DocumentEnds:
    """Return the tokens that begin and end a document for the tokenizer in a folder, as text.

    A tokenizer that has no bos token, as some models have it, begins a document with its eos token.
    """
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens = [config.get(name) or config["eos_token"] for name in ("bos_token", "eos_token")]
    return DocumentEnds(*(token if isinstance(token, str) else token["content"] for token in tokens))


def settle_document_ends(tokenizer: "PreTrainedTokenizerBase", where: str) -> None:
    """Give a tokenizer without a bos token its eos token for one, so that every later reader begins a document alike.

    Raises: RecipeError: it has no eos token, or encoding puts another token than bos around a text.
    """
    if tokenizer.eos_token is None:
        raise RecipeError(f"{where} has no eos token to end a document; choose another")
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    if not adds_at_most_bos(tokenizer):
        found = " ".join(tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]))
        raise RecipeError(
            f"{where} encodes 'a' as {found}; only its bos token, {tokenizer.bos_token}, may stand before a text, and "
            "nothing after it: choose another"
        )


def adds_at_most_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether encoding puts nothing around a text but the token that begins a document."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return tokenizer("a")["input_ids"] in (plain, [tokenizer.bos_token_id, *plain])


def set_document_ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", stops: Sequence[int]) -> None:
    """Write the tokens that begin and end a document into a model's config and generation config.

    Args: stops: tokens of a kept chat template at which generation stops too.
    """
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    if others := set(stops) - {tokenizer.eos_token_id}:
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, *sorted(others)]
    model.config.pad_token_id = None


def stops_of(model: "PreTrainedModel") -> list[int]:
    """Return the tokens at which a model's generation config stops, which for a chat are more than its end."""
    stops = model.generation_config.eos_token_id
    return [] if stops is None else stops if isinstance(stops, list) else [stops]
