# SPDX-License-Identifier: Apache-2.0
"""Add tokens to an existing tokenizer and its model, for continued pretraining on a domain.

    pieces = extend_tokenizer("base/", [" estoppel", " certiorari"], "extended/")
    extend_embeddings(model, pieces)

A new entry must not change how text without it is encoded, or the model would meet sequences that it was not trained
on. Merges cannot promise that: those that build a long entry build its parts too, in all text. So a BPE tokenizer uses
a new entry where it is a whole piece between two cuts, by `ignore_merges`, which looks for whole pieces before it
merges; in "estoppels" a new " estoppel" is not used. A Unigram tokenizer uses it wherever its parts score worse.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel

from recipe_config import RecipeError
from vocabulary.pretokenization import as_bytes, as_characters


def extend_tokenizer(base: str | Path, new_entries: Sequence[str], output: Path) -> dict[int, list[int]]:
    """Write a byte-level tokenizer with new tokens to a folder; return the old tokenizer's pieces of each.

    Args:
        base: a BPE or Unigram tokenizer that AutoTokenizer loads.
        new_entries: as they occur in text, mostly with the space before them, such as " estoppel".
        output: the new tokenizer.

    Returns: for each new entry that was not one before, its number, from the first free one on, and the numbers of
        the pieces that it was.

    Raises: RecipeError: the tokenizer is of another kind, or an entry would never be used or stands twice.
    """
    wrapped = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    old = Tokenizer.from_str(wrapped.backend_tokenizer.to_str())
    old.encode_special_tokens = True
    content = json.loads(old.to_str())
    model, problems = content["model"], []
    if model["type"] not in ("BPE", "Unigram") or "ByteLevel" not in json.dumps(content["pre_tokenizer"]):
        raise RecipeError(f"{base}: {model['type']}, not byte-level BPE or Unigram; choose another base")
    add_added_tokens(model, content["added_tokens"])
    first = 1 + max(old.get_vocab().values())
    pieces: dict[int, list[int]] = {}
    for index, entry in enumerate(new_entries):
        characters = as_characters(entry.encode())
        cut = [piece for piece, _ in old.pre_tokenizer.pre_tokenize_str(entry)]
        if entry in new_entries[:index]:
            problems.append(f"new token {entry!r} is listed twice; list it once")
        elif cut != [characters]:
            problems.append(f"new token {entry!r} would never be used: it is split into {cut}; list what is not split")
        elif old.token_to_id(characters) is None:
            number = first + len(pieces)
            pieces[number] = old.encode(entry, add_special_tokens=False).ids
            add_entry(model, characters, number, pieces[number])
    if model["type"] == "BPE" and not model["ignore_merges"]:
        model["ignore_merges"] = True
        changed = [
            entry for entry in old.get_vocab(with_added_tokens=False) if is_whole_but_merged_otherwise(old, entry)
        ]
        if changed:
            problems.append(
                f"{base}: {len(changed)} tokens, {min(changed)!r} among them, are not what their own text is encoded "
                "to, so that looking for whole pieces first would change old encodings; choose another base"
            )
    if problems:
        raise RecipeError(*problems)
    wrapped.save_pretrained(output)
    Tokenizer.from_str(json.dumps(content)).save(str(Path(output) / "tokenizer.json"))
    return pieces


def add_added_tokens(model: dict, added_tokens: list[dict]) -> None:
    """Move tokens with ids after the model's own into the model; new tokens would take their ids otherwise."""
    for token in sorted(added_tokens, key=lambda token: token["id"]):
        if model["type"] == "BPE":
            model["vocab"].setdefault(token["content"], token["id"])
        elif token["id"] == len(model["vocab"]):
            # Far below all others, so that no text is encoded to it.
            model["vocab"].append([token["content"], 100 * min(score for _, score in model["vocab"])])


def add_entry(model: dict, characters: str, number: int, pieces: list[int]) -> None:
    if model["type"] == "BPE":
        model["vocab"][characters] = number
    else:
        # As probable as its pieces are on average; less would lose to them, more would take text from its neighbours.
        score = sum(model["vocab"][piece][1] for piece in pieces) / len(pieces)
        model["vocab"].append([characters, score])


def is_whole_but_merged_otherwise(tokenizer: Tokenizer, entry: str) -> bool:
    """Say whether an entry is a whole piece between two cuts in some text, yet not what merges make of that piece."""
    if [token.value for token in tokenizer.model.tokenize(entry)] == [entry]:
        return False
    try:
        text = as_bytes(entry).decode()
    except (KeyError, UnicodeDecodeError):
        return False
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == [entry]


def mean_of_pieces(matrix: torch.Tensor, pieces: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the mean of the rows of each new token's pieces, (num_new_tokens, width), in the type of the matrix."""
    rows = [matrix[list(numbers)].float().mean(dim=0) for numbers in pieces]
    return torch.stack(rows).to(matrix.dtype)


@torch.no_grad()
def extend_embeddings(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Add the rows of new tokens to a model's input and output matrices; the other rows do not change.

    Args:
        model: of the old tokenizer.
        pieces: of `extend_tokenizer`.
    """
    if not pieces:
        return
    rows = 1 + max(pieces)
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
        embeddings.weight[list(pieces)] = mean_of_pieces(embeddings.weight, list(pieces.values()))
