# SPDX-License-Identifier: Apache-2.0
"""Add tokens to an existing tokenizer and its model, for continued pretraining on a domain.

    pieces = extend_tokenizer("base/", [" estoppel", " certiorari"], "extended/")
    extend_embeddings(model, pieces)

A new token must not change how text without it is encoded, or the model would read sequences that it was not trained
on. Merges cannot promise that: the merges that build a long token also build its parts, in all text. So a BPE
tokenizer uses a new token only where it is a whole piece of the pre-tokenization, by `ignore_merges`, which looks up
whole pieces before it merges: "estoppels" does not use a new " estoppel". A Unigram tokenizer uses it wherever its
parts score worse.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel

from recipe_config import RecipeError
from vocabulary.pretokenization import as_bytes, as_characters


def extend_tokenizer(base: str | Path, new_tokens: Sequence[str], output: Path) -> dict[int, list[int]]:
    """Write a byte-level tokenizer with new tokens to a folder; return the old tokenizer's tokens of each.

    Args:
        base: a BPE or Unigram tokenizer that AutoTokenizer loads.
        new_tokens: as they occur in text, mostly with the space before them, such as " estoppel".
        output: folder of the new tokenizer.

    Returns: {id: old ids} of each new token that is not in the vocabulary yet; ids start at the first free one.

    Raises: RecipeError: the tokenizer is of another kind, or a new token would never be used or is listed twice.
    """
    wrapped = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    old = Tokenizer.from_str(wrapped.backend_tokenizer.to_str())
    old.encode_special_tokens = True
    refuse_unextendable(old, str(base))
    content = json.loads(old.to_str())
    model, problems = content["model"], []
    add_added_tokens(model, content["added_tokens"])
    first = 1 + max(old.get_vocab().values())
    pieces: dict[int, list[int]] = {}
    for index, token in enumerate(new_tokens):
        characters = as_characters(token.encode())
        split = [piece for piece, _ in old.pre_tokenizer.pre_tokenize_str(token)]
        if token in new_tokens[:index]:
            problems.append(f"new token {token!r} is listed twice; list it once")
        elif split != [characters]:
            problems.append(
                f"new token {token!r} would never be used: it is split into {split}; list what is not split"
            )
        elif old.token_to_id(characters) is None:
            number = first + len(pieces)
            pieces[number] = old.encode(token, add_special_tokens=False).ids
            add_token(model, characters, number, pieces[number])
    if problems:
        raise RecipeError(*problems)
    if model["type"] == "BPE":
        model["ignore_merges"] = True
    wrapped.save_pretrained(output)
    Tokenizer.from_str(json.dumps(content)).save(str(Path(output) / "tokenizer.json"))
    return pieces


def refuse_unextendable(tokenizer: Tokenizer, where: str) -> None:
    """Refuse a tokenizer that no new token can be added to without changing how other text is encoded.

    Raises: RecipeError: it is not byte-level, or merges do not reach some of its tokens.
    """
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    if model["type"] not in ("BPE", "Unigram") or "ByteLevel" not in json.dumps(content["pre_tokenizer"]):
        raise RecipeError(
            f"{where}: {model['type']}, not byte-level BPE or Unigram, so no tokens can be added; leave "
            "tokenizer.extend_by out, or choose a byte-level base, such as Llama 3, Qwen, SmolLM, OLMo, GPT-2, Pythia "
            "or Granite"
        )
    if model["type"] == "Unigram" or model["ignore_merges"]:
        return
    tokens = tokenizer.get_vocab(with_added_tokens=False)
    changed = [token for token in tokens if is_whole_but_merged_otherwise(tokenizer, token)]
    if changed:
        raise RecipeError(
            f"{where}: the text of {len(changed)} tokens, such as {min(changed)!r}, is not encoded to them, so "
            "looking up whole pieces first would change old encodings; leave tokenizer.extend_by out, or choose "
            "another base"
        )


def add_added_tokens(model: dict, added_tokens: list[dict]) -> None:
    """Move tokens with ids after the model's own into the model; otherwise new tokens would take their ids."""
    for token in sorted(added_tokens, key=lambda token: token["id"]):
        if model["type"] == "BPE":
            model["vocab"].setdefault(token["content"], token["id"])
        elif token["id"] == len(model["vocab"]):
            # Far below all others, so that no text is encoded to it.
            model["vocab"].append([token["content"], 100 * min(score for _, score in model["vocab"])])


def add_token(model: dict, characters: str, number: int, pieces: list[int]) -> None:
    if model["type"] == "BPE":
        model["vocab"][characters] = number
    else:
        # The mean score of its pieces: a lower one would lose to them, a higher one would take text from neighbours.
        score = sum(model["vocab"][piece][1] for piece in pieces) / len(pieces)
        model["vocab"].append([characters, score])


def is_whole_but_merged_otherwise(tokenizer: Tokenizer, token: str) -> bool:
    """Return whether a token can be a whole piece of the pre-tokenization that merges encode differently."""
    if [merged.value for merged in tokenizer.model.tokenize(token)] == [token]:
        return False
    try:
        text = as_bytes(token).decode()
    except (KeyError, UnicodeDecodeError):
        return False
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == [token]


def mean_of_pieces(matrix: torch.Tensor, pieces: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the mean row of each new token's pieces, (num_new_tokens, width), in the matrix's dtype."""
    rows = [matrix[list(numbers)].float().mean(dim=0) for numbers in pieces]
    return torch.stack(rows).to(matrix.dtype)


@torch.no_grad()
def extend_embeddings(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Add the rows of new tokens to a model's input and output matrices; the other rows do not change.

    Args:
        model: the old tokenizer's.
        pieces: as `extend_tokenizer` returns them.
    """
    if not pieces:
        return
    rows = 1 + max(pieces)
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        embeddings.weight[list(pieces)] = mean_of_pieces(embeddings.weight, list(pieces.values()))
