# SPDX-License-Identifier: Apache-2.0
"""The files that training reads, and the settings that they allow; the same for a run and for its dry run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mixture.fitting import count_repetitions, decide_length
from mixture.shards import TokenShards, token_byte_lengths
from mixture.skips import SkippedDocuments
from planning.model_shape import count_parameters
from planning.training_rules import rule_regularisation
from recipe_config import Recipe, RecipeError, Training
from run_folder import require
from stages import output_folder
from training.schedule import fit_batch
from vocabulary.document_ends import DocumentEnds, settle_document_ends


@dataclass(frozen=True)
class Inputs:
    """What the stages before training wrote.

    Attributes:
        tokenizer_folder, tokenizer: of the run.
        byte_lengths: UTF-8 bytes of each token.
        shards: the training tokens of all sources.
        training: the settings to train with, fitted to the tokens.
        shares: source name -> share of the text.
        notes: a sentence for each setting that was changed.
        skipped_documents: the places of data.skip.documents.
    """

    tokenizer_folder: Path
    tokenizer: PreTrainedTokenizerBase
    byte_lengths: np.ndarray
    shards: TokenShards
    training: Training
    shares: dict[str, float]
    notes: list[str]
    skipped_documents: SkippedDocuments


def check_inputs(recipe: Recipe, part: tuple[int, int] = (0, 1)) -> None:
    """Check the files of the stages before.

    Args: part: (k, n): as the k-th of n processes, which divide the files.

    Raises: RecipeError: a stage is missing, stale or damaged.
    """
    for stage in ("tokenize", "tokenizer"):
        require(recipe, stage, part)


def read_inputs(recipe: Recipe, num_processes: int) -> Inputs:
    """Open the tokens and the tokenizer of a run, which were checked, and fit training.* to them and to the processes.

    Raises: RecipeError: the recipe asks for more than there is.
    """
    tokens, tokenizer_folder = output_folder(recipe, "tokenize"), output_folder(recipe, "tokenizer")
    names = [source.name for source in recipe.data.sources]
    shards = TokenShards(tokens, names, recipe.training.sequence_length, recipe.data.repack)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    settle_document_ends(tokenizer, f"{tokenizer_folder}: the tokenizer")
    if shards.ends != DocumentEnds(tokenizer.bos_token_id, tokenizer.eos_token_id):
        raise RecipeError(
            f"{tokens}: documents begin and end with tokens {tuple(shards.ends)}, but with {tokenizer.bos_token} and "
            f"{tokenizer.eos_token} for the tokenizer in {tokenizer_folder}; tokenize again, with --overwrite"
        )
    training, shares, notes = decide_length(recipe, shards)
    longest = recipe.data.longest_sequence(training.sequence_length)
    try:
        training, more = fit_batch(training, longest, num_processes)
    except RecipeError as error:
        raise RecipeError(*error.problems, *notes) from error  # which may be why the step is what it is
    epochs = max(count_repetitions(training, recipe.data, shards, shares, training.max_steps).values())
    if recipe.model.from_pretrained is None:
        tokens_per_parameter = training.max_tokens / count_parameters(recipe.model, len(tokenizer))["total"]
        more += [
            f"training.{key}={getattr(training, key)}, and a source is read {epochs:.0f} times: for so little "
            f"text the rule gives {value:g} (recipes/experiments/README.md#little-text)"
            for key, value in rule_regularisation(epochs, tokens_per_parameter, training).items()
            if value != getattr(training, key)
        ]
    if training.goldfish is not None:
        more.append(
            f"training.goldfish leaves one token in {training.goldfish.k} out of the loss; train/loss and "
            "train/bits_per_byte are over the others, eval/ over all"
        )
    return Inputs(
        tokenizer_folder,
        tokenizer,
        token_byte_lengths(tokenizer_folder),
        shards,
        training,
        shares,
        notes + more,
        SkippedDocuments(shards, recipe.data.skip.documents),
    )
