# SPDX-License-Identifier: Apache-2.0
"""How much training a corpus carries: a small one gets smaller steps, and no source is repeated past the limit."""

from recipe_config import RecipeError, Training
from token_mixture import TokenMixture


FIT_STEPS = 16  # a corpus that is fitted to gives at least so many steps a time round


def fit_to_corpus(training: Training, mixture: TokenMixture) -> tuple[Training, list[str]]:
    """Shrink batch and length of training to what the corpus carries.

    Returns: the settings to train with, and a note for each that changed.
    """
    most = training.model_copy()
    once = int(
        min(windows / share for windows, share in zip(mixture.num_windows, mixture.sequence_shares, strict=True))
    )
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


def limit_repetitions(training: Training, mixture: TokenMixture, most: float, fit: bool) -> tuple[Training, list[str]]:
    """Hold the run to at most `most` repetitions of each source: shorten it if it may be fitted, else refuse it.

    Raises: RecipeError: with the longest run that keeps to data.max_repetitions.
    """
    sequences = training.max_steps * training.tokens_per_step // training.sequence_length
    over = {name: times for name, times in mixture.repetitions(sequences).items() if times > most}
    notes = []
    if over:
        factor = most / max(over.values())
        steps = max(1, int(training.max_steps * factor))
        longest = steps * training.tokens_per_step
        shown = ", ".join(f"{name} {times:.1f} times" for name, times in over.items())
        if not fit:
            raise RecipeError(
                f"training.max_tokens={training.max_tokens:,} would show {shown}, more than data.max_repetitions="
                f"{most:g}; at most {longest:,} tokens keep to it"
            )
        notes.append(
            f"training.max_tokens={training.max_tokens:,} would show {shown}; "
            f"data.max_repetitions={most:g} gives {longest:,}"
        )
        training = training.model_copy(update={"max_tokens": longest})
    if fit and (training.warmup_steps or 0) >= training.max_steps:
        notes.append(f"training.warmup_steps={training.warmup_steps} is more than {training.max_steps} steps allow")
        training = training.model_copy(update={"warmup_steps": None})
    return training, notes
