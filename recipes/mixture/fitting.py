# SPDX-License-Identifier: Apache-2.0
"""How long a run is, and what its mixture comes to, for the text that is there.

A small corpus shortens training (data.fit_to_corpus), and a source that would be repeated more often than its
max_repetitions gets a smaller share; the others get the rest in proportion."""

import numpy as np

from mixture.order import TokenMixture
from mixture.phases import make_mixture, schedule_phases
from mixture.shards import TokenShards
from mixture.shares import most_repetitions, resolve_for_run, resolve_shares
from recipe_config import Data, Recipe, RecipeError, Training


SAMPLED_WINDOWS = 512  # of each source, to see by how much the bytes of a window vary
FIT_STEPS = 16  # a corpus that is fitted to gives at least so many steps a time round


def expected_deviations(mixture: TokenMixture, byte_lengths: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Return the standard deviation to expect of each source's share of the bytes, as a fraction of all bytes.

    Windows of equal tokens differ in bytes. Of a source with N windows whose bytes have the variance S^2, n sequences
    are whole epochs, which deviate by nothing, and k = n mod N windows drawn without replacement, whose sum has the
    variance V = k S^2 (1 - k / N) (Cochran, Sampling Techniques, theorem 2.2). The share of source i is the ratio
    X_i / sum_j X_j of such sums, D_i on average; to first order (delta method) its variance is

        ((1 - D_i)^2 V_i + D_i^2 sum_{j != i} V_j) / (sum_j E X_j)^2.

    Args:
        mixture: the order of the data.
        byte_lengths: UTF-8 bytes of each token of the vocabulary.
        counts: sequences taken of each source.
    """
    shards, variances = mixture.shards, []
    for source, (count, windows) in enumerate(zip(counts, shards.num_windows, strict=True)):
        generator = np.random.default_rng((mixture.seed, source))
        sample = generator.choice(windows, min(windows, SAMPLED_WINDOWS), replace=False).tolist()
        num_bytes = [byte_lengths[shards.read(shards.place(source, window))[1:]].sum() for window in sample]
        part = int(count) % windows
        variances.append(part * (1 - part / windows) * np.var(num_bytes, ddof=1) if part else 0.0)
    total = counts * shards.bytes_per_sequence
    shares, variances = total / total.sum(), np.array(variances)
    squares = (1 - shares) ** 2 * variances + shares**2 * (variances.sum() - variances)
    return dict(zip(shards.names, (np.sqrt(squares) / total.sum()).tolist(), strict=True))


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
