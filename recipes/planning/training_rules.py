# SPDX-License-Identifier: Apache-2.0
"""Batch, learning rate and regularisation by rule: one for the planner and all recipes."""

import math

from planning.model_shape import count_parameters
from planning.scaling_laws import OLMO_PARAMETERS, olmo_rule
from planning.scarce_text import USUAL_EPOCHS
from recipe_config import Recipe, Training


LEAST_STEPS = 100  # with fewer optimizer steps a schedule has no shape


def rule_tokens_per_step(multiplying_parameters: float, sequences_tokens: int, max_tokens: float) -> int:
    """Return the batch of OLMo-core's rule as a power of two times `sequences_tokens`.

    So processes in any power of two share it evenly. No larger than the rule's for its largest model, and such that a
    run has LEAST_STEPS, where one unit of the batch is small enough for that.
    """
    wanted = olmo_rule(min(multiplying_parameters, OLMO_PARAMETERS[1])).tokens_per_step
    units = 2 ** max(0, round(math.log2(wanted / sequences_tokens)))
    while units > 1 and max_tokens / (units * sequences_tokens) < LEAST_STEPS:
        units //= 2
    return units * sequences_tokens


def rule_learning_rate(multiplying_parameters: float) -> float:
    """Return OLMo-core's peak learning rate, to two digits.

    A model smaller than the rule was made for gets the rate of the smallest: extrapolated, the rule is too high
    (experiments/README.md: at 60,000 parameters a quarter of it is best).
    """
    rule = olmo_rule(max(multiplying_parameters, OLMO_PARAMETERS[0]))
    return float(f"{rule.learning_rate:.2g}")


def rule_regularisation(epochs: float, tokens_per_parameter: float, training: Training) -> dict[str, float | None]:
    """Return weight_decay and dropout for a new model that reads a text so many times.

    Up to USUAL_EPOCHS they are the recipe's. Beyond, at least a dropout of 0.1 and a decay for how scarce the text is:
    of the decays tried, 3 is best with 0.13 different tokens a parameter, 0.3 and 1 are level with 0.56, and 0.3 is
    best with 1.1 (experiments/README.md#little-text). Beyond these ends it stays.

    Args: tokens_per_parameter: of the run, with all that are read again.
    """
    stated = {"weight_decay": training.weight_decay, "dropout": training.dropout}
    if epochs <= USUAL_EPOCHS:
        return stated
    repeated = {"weight_decay": min(3.0, max(0.3, round(0.5 * epochs / tokens_per_parameter, 1))), "dropout": 0.1}
    return {key: max(stated[key] or 0, repeated[key]) for key in stated}


def fill_in_training(recipe: Recipe) -> None:
    """Set training.optimizer, tokens_per_step and learning_rate by the rules where the recipe leaves them out."""
    training = recipe.training
    if training.optimizer is None:
        training.optimizer = "muon" if recipe.model.from_pretrained is None else "adamw"
    if recipe.model.from_pretrained is not None:  # the rules are for new models
        return
    counts = count_parameters(recipe.model, recipe.tokenizer.vocab_size)
    if training.tokens_per_step is None:
        micro_tokens = training.per_device_train_batch_size * training.sequence_length
        training.tokens_per_step = rule_tokens_per_step(counts["multiplying"], micro_tokens, training.max_tokens)
    if training.learning_rate is None:
        training.learning_rate = rule_learning_rate(counts["multiplying"])
