# SPDX-License-Identifier: Apache-2.0
"""How long a run trains and with what steps: what a small corpus carries, how often a source may be repeated, what a
time limit leaves, micro-steps, the learning rate."""

import math

from mixture_shares import make_mixture, most_repetitions, resolve_for_run, resolve_shares, schedule_phases
from recipe_config import Data, Recipe, RecipeError, Training
from token_mixture import TokenShards


FIT_STEPS = 16  # a corpus that is fitted to gives at least so many steps a time round
# The speed that training.max_seconds is planned with: measured over these steps, after the compilation in the first.
SPEED_STEPS = range(4, 12)


def decide_length(recipe: Recipe, shards: TokenShards) -> tuple[Training, dict[str, float], list[str]]:
    """Return the settings to train with, the shares of the sources, and a note for each setting that changed."""
    data, training, notes = recipe.data, recipe.training, []
    if data.fit_to_corpus:  # then the length gives way to the shares, not they to it
        shares = resolve_shares(data, shards.train_bytes)
        training, notes = fit_to_corpus(training, shards, shares)
    else:
        shares = resolve_for_run(data, training, shards)
    training, more = limit_repetitions(training, data, shards, shares)
    return training, shares, notes + more


def fit_to_corpus(training: Training, shards: TokenShards, shares: dict[str, float]) -> tuple[Training, list[str]]:
    """Shrink batch and length of training to what the corpus carries.

    Returns: the settings to train with, and a note for each that changed.
    """
    most = training.model_copy()
    pairs = zip(shards.num_windows, shards.sequence_shares(shares), strict=True)
    once = int(min(windows / share for windows, share in pairs if share))
    all_sequences = min(once, training.max_tokens // training.sequence_length)
    sequences_per_step = max(1, min(training.tokens_per_step // training.sequence_length, all_sequences // FIT_STEPS))
    batch_size = min(training.per_device_train_batch_size, sequences_per_step)
    most.per_device_train_batch_size = batch_size
    most.tokens_per_step = sequences_per_step // batch_size * batch_size * training.sequence_length
    return most, [
        f"training.{key}={getattr(training, key):,} is more than {all_sequences:,} sequences carry; "
        f"taking {getattr(most, key):,}"
        for key in ("tokens_per_step", "per_device_train_batch_size")
        if getattr(training, key) != getattr(most, key)
    ]


def limit_repetitions(
    training: Training, data: Data, shards: TokenShards, shares: dict[str, float]
) -> tuple[Training, list[str]]:
    """Hold the run to max_repetitions of each source over all phases: shorten it if it may be fitted, else refuse it.

    Raises: RecipeError: with the longest run that keeps to them.
    """
    most, sequences_per_step = most_repetitions(data), training.tokens_per_step // training.sequence_length

    def too_often(max_steps: int) -> dict[str, float]:
        phases = schedule_phases(data, shares, max_steps)
        times = make_mixture(shards, phases, sequences_per_step, 0).repetitions(max_steps * sequences_per_step)
        return {name: times[name] for name in times if times[name] > most[name]}

    notes = []
    if over := too_often(training.max_steps):
        steps = max(1, int(training.max_steps * min(most[name] / times for name, times in over.items())))
        while steps > 1 and too_often(steps):
            steps -= 1
        longest = steps * training.tokens_per_step
        keys = {
            source.name: f"data.sources.{index}.max_repetitions" if source.max_repetitions else "data.max_repetitions"
            for index, source in enumerate(data.sources)
        }
        said = ", ".join(
            f"{name} {times:.1f} times, more than {keys[name]}={most[name]:g}" for name, times in over.items()
        )
        said = f"training.max_tokens={training.max_tokens:,} would show {said}; at most {longest:,} tokens keep to it"
        if not data.fit_to_corpus:
            raise RecipeError(said)
        notes.append(f"{said}, which are taken")
        training = training.model_copy(update={"max_tokens": longest})
    if data.fit_to_corpus and (training.warmup_steps or 0) >= training.max_steps:
        notes.append(f"training.warmup_steps={training.warmup_steps} is more than {training.max_steps} steps allow")
        training = training.model_copy(update={"warmup_steps": None})
    return training, notes


def warmup_length(max_steps: int, training: Training) -> int:
    return min(500, max_steps // 20) if training.warmup_steps is None else training.warmup_steps


def plan_steps(step_ended: list[float], step: int, left_seconds: float, max_steps: int, training: Training) -> int:
    """Return how many steps training will have, from when its first ones ended (seconds of a clock)."""
    measured = [step_ended[k + 1] - step_ended[k] for k in SPEED_STEPS[:-1]]
    # A twentieth is left for validation and checkpoints.
    affordable = step + int(0.95 * left_seconds * len(measured) / sum(measured))
    least = math.ceil(max(step, warmup_length(max_steps, training)) / (1 - min(training.decay_fraction, 0.9)))
    return min(max_steps, max(affordable, least))  # the learning rate always has its time to fall


def accumulation_steps(training: Training, num_processes: int) -> int:
    """Return how many micro-steps of all processes make a step.

    Raises: RecipeError: tokens_per_step is no whole number of them, with the nearest that is.
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
