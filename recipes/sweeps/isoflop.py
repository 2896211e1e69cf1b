# SPDX-License-Identifier: Apache-2.0
"""The file of fit_scaling_law.py, and the recipe of each of its runs: shapes at each of several budgets."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from planning.model_shape import count_parameters
from planning.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN, olmo_rule
from recipe_config import Model, Positive, PositiveFloat, RecipeError, Section
from recipe_loading import validate
from sweeps.isoflop_fit import PARAMETER_COUNTS
from sweeps.runs import Run, hash_settings, read_experiment, state_pretokenization


MAX_MICRO_BATCH_TOKENS = 8_192  # on one device; enough to keep a processor busy with a small model


class Budget(Section):
    """A compute budget, and the shapes that are trained with it."""

    flops: PositiveFloat
    """6 N D of each run."""
    shapes: Annotated[list[int], Field(min_length=1)]
    """Indices into `shapes`, from 0."""


class LearningRate(Section):
    """The best learning rate as a power of the size."""

    coefficient: PositiveFloat
    exponent: float
    """Of the number of parameters that a token is multiplied by; below 0."""


class Experiment(Section):
    """The file that --config names."""

    results: str
    """Folder for runs.csv, fit.json and the figures, beside the file."""
    budgets: Annotated[list[Budget], Field(min_length=2)]
    """IsoFLOP sets."""
    held_out: Budget
    """Runs whose loss is predicted and that no fit sees."""
    shapes: Annotated[list[Model], Field(min_length=4)]
    """Shapes of the models, as the section `model` of a recipe."""
    learning_rate: LearningRate | None = None
    """Of every run. None: the planner's rule, which was made for models of 60M parameters and more."""
    resamples: Positive = 1000
    """Resampled fits that the intervals are taken from."""
    recipe: dict
    """The recipe that all runs share, without model and without the training's length, batch and learning rate."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for name, budget in (*((f"budgets.{i}", b) for i, b in enumerate(self.budgets)), ("held_out", self.held_out)):
            for index in budget.shapes:
                if not 0 <= index < len(self.shapes):
                    yield f"{name}.shapes", f"{index} is no shape; there are 0 to {len(self.shapes) - 1}"
            if name != "held_out" and len(set(budget.shapes)) < 4:
                yield f"{name}.shapes", f"{len(set(budget.shapes))} sizes do not show a minimum; name at least 4"


@dataclass(frozen=True)
class IsoflopRun(Run):
    """One run of the sweep.

    Attributes:
        held_out: whether it is kept from the fits.
        counts: its parameters under each of PARAMETER_COUNTS.
    """

    held_out: bool
    counts: dict[str, int]

    @property
    def name(self) -> str:
        model = self.recipe.model
        return f"{self.flops:.3g} FLOPs, {model.hidden_size} wide, {model.num_hidden_layers} deep"

    def key(self, tokens: dict[str, str]) -> str:
        """Return the key of the run's row; `tokens` as of hash_tokens."""
        stated = self.recipe.model_dump(exclude_defaults=True, include={"model", "training", "tokenizer"})
        stated = state_pretokenization(stated, self.recipe)
        return hash_settings({"recipe": stated, "seed": self.recipe.run.seed, "tokens": tokens})


def load_experiment(path: Path) -> tuple[Experiment, list[IsoflopRun]]:
    """Read the file and make the recipe of every run.

    Raises: RecipeError: every problem of the experiment, or of the recipe in it.
    """
    experiment, origins = read_experiment(path, Experiment)
    origins = {key[1:]: where for key, where in origins.items() if key[:1] == ("recipe",)}
    return experiment, [
        plan_run(experiment, budget, experiment.shapes[index], origins)
        for budget in (*experiment.budgets, experiment.held_out)
        for index in budget.shapes
    ]


def plan_run(experiment: Experiment, budget: Budget, shape: Model, origins: dict) -> IsoflopRun:
    """Make one run's recipe: as many tokens as its budget pays for; batch and learning rate by the rule."""
    shared = experiment.recipe
    vocab_size = int(shared.get("tokenizer", {}).get("vocab_size", 32_768))
    counts = count_parameters(shape, vocab_size)
    sequence_length = shared["training"]["sequence_length"]
    rule = olmo_rule(counts["multiplying"])
    learning_rate, power = rule.learning_rate, experiment.learning_rate
    if power is not None:
        learning_rate = power.coefficient * counts["multiplying"] ** power.exponent
    micro_steps = math.ceil(rule.tokens_per_step / MAX_MICRO_BATCH_TOKENS)
    batch_size = max(1, round(rule.tokens_per_step / micro_steps / sequence_length))
    training = {
        "tokens_per_step": batch_size * sequence_length * micro_steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
    } | shared["training"]
    steps = budget.flops / (FLOPS_PER_PARAMETER_AND_TOKEN * counts["multiplying"]) / training["tokens_per_step"]
    training["max_tokens"] = max(1, round(steps)) * training["tokens_per_step"]
    recipe, problems = validate({**shared, "model": shape.model_dump(), "training": training}, origins)
    if problems:
        raise RecipeError(*problems)
    counts = {name: counts[name] for name in PARAMETER_COUNTS}
    return IsoflopRun(recipe, budget.flops, budget is experiment.held_out, counts)
