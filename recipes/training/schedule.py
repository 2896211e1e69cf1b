# SPDX-License-Identifier: Apache-2.0
"""The schedule of a run: its learning rate, how many steps a time limit allows, and the micro-steps of a step."""

import math

from recipe_config import RecipeError, Training


# The speed that training.max_seconds is planned with is measured over these steps; the first step compiles.
SPEED_STEPS = range(4, 12)


def warmup_length(max_steps: int, training: Training) -> int:
    """Return the steps of the warm-up: the recipe's, or a twentieth of the run and at most 500."""
    return min(500, max_steps // 20) if training.warmup_steps is None else training.warmup_steps


def plan_steps(step_ended: list[float], step: int, left_seconds: float, max_steps: int, training: Training) -> int:
    """Return how many steps training has time for.

    Args:
        step_ended: the clock (seconds) at the ends of the first steps, up to SPEED_STEPS.stop.
        step: the steps done.
        left_seconds: time that is left.
        max_steps: most steps.
        training: the settings to train with.
    """
    measured = [step_ended[k + 1] - step_ended[k] for k in SPEED_STEPS[:-1]]
    # A twentieth is left for validation and checkpoints.
    affordable = step + int(0.95 * left_seconds * len(measured) / sum(measured))
    least = math.ceil(max(step, warmup_length(max_steps, training)) / (1 - min(training.decay_fraction, 0.9)))
    return min(max_steps, max(affordable, least))  # so that the learning rate has time to decay


def accumulation_steps(training: Training, num_processes: int) -> int:
    """Return the micro-steps of a step.

    Raises: RecipeError: tokens_per_step is not a whole number of micro-steps; names the nearest values that are.
    """
    batch_size, sequence_length = training.per_device_train_batch_size, training.sequence_length
    micro_tokens = batch_size * sequence_length * num_processes
    steps, rest = divmod(training.tokens_per_step, micro_tokens)
    if rest:
        nearest = " or ".join(str(k * micro_tokens) for k in (steps, steps + 1) if k)
        raise RecipeError(
            f"training.tokens_per_step={training.tokens_per_step} is not divisible by per_device_train_batch_size * "
            f"sequence_length * num_processes = {batch_size} * {sequence_length} * {num_processes} = {micro_tokens}; "
            f"nearest: {nearest}"
        )
    return steps


def learning_rate_at(step: int, max_steps: int, training: Training) -> float:
    """Return the learning rate of optimizer step `step`, 1 to max_steps."""
    warmup_steps = warmup_length(max_steps, training)
    if step <= warmup_steps:
        return training.learning_rate * step / warmup_steps
    if training.lr_scheduler_type == "cosine":
        progress = (step - warmup_steps) / (max_steps - warmup_steps)
        height = (1 + math.cos(math.pi * progress)) / 2
    else:
        decay_steps = max(1, round(training.decay_fraction * max_steps))
        height = min(1.0, (max_steps - step + 1) / decay_steps)
    least = training.min_learning_rate_fraction
    return training.learning_rate * (least + (1 - least) * height)
