# SPDX-License-Identifier: Apache-2.0
"""The schedule of a run: its learning rate, random draws and micro-steps, and how many steps a time limit allows."""

import math

import torch

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


def fit_batch(training: Training, longest: int, num_processes: int) -> tuple[Training, list[str]]:
    """Lower per_device_train_batch_size to the largest that divides a step among the processes.

    The step stays as it is, so a recipe is the same experiment on any number of processes.

    Args:
        training: the settings to train with.
        longest: tokens of the longest sequence of all phases; a batch holds whole sequences of that length.
        num_processes: that share each step.

    Returns: the settings with the batch that is used, and a note if it is smaller.

    Raises: RecipeError: the processes cannot share a step; names numbers of processes and steps that can.
    """
    windows, length = longest // training.sequence_length, training.sequence_length
    groups = training.tokens_per_step // longest  # sequences of the longest phase in a step
    share, rest = divmod(groups, num_processes)
    if rest or not share or training.tokens_per_step % longest:
        fitting = [number for number in range(1, groups + 1) if groups % number == 0]
        near = [*fitting[: sum(number < num_processes for number in fitting)][-1:]]
        near += [number for number in fitting if number > num_processes][:1]
        unit = num_processes * longest
        steps = [k * unit for k in (training.tokens_per_step // unit, training.tokens_per_step // unit + 1) if k]
        raise RecipeError(
            f"training.tokens_per_step={training.tokens_per_step:,} is {training.tokens_per_step / longest:g} "
            f"sequences of {longest:,} tokens, which {num_processes} processes cannot share evenly; "
            f"use {' or '.join(map(str, near or fitting[-1:]))} processes, or another step: "
            f"nearest {' or '.join(f'{tokens:,}' for tokens in steps)}"
        )
    most = training.per_device_train_batch_size
    used = windows * max(size for size in range(1, max(1, most // windows) + 1) if share % size == 0)
    if used == most:
        return training, []
    note = (
        f"training.per_device_train_batch_size={most} is an upper bound: {used} sequences of {length:,} tokens are "
        f"used, which divide a step among {num_processes} processes"
    )
    return training.model_copy(update={"per_device_train_batch_size": used}), [note]


def accumulation_steps(training: Training, num_processes: int) -> int:
    """Return the micro-steps of a step, with the batch of fit_batch."""
    return training.tokens_per_step // (
        training.per_device_train_batch_size * training.sequence_length * num_processes
    )


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


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed what a step draws, such as dropout, by its number: no generator's state has to be saved."""
    torch.manual_seed(((seed << 40) + (step << 16) + process) & ((1 << 63) - 1))
