# SPDX-License-Identifier: Apache-2.0
"""How long a run is, and what its mixture comes to, for the text that is there.

A small corpus shortens training (data.fit_to_corpus), and a source that would be repeated more often than its
max_repetitions gets a smaller share; the others get the rest in proportion."""

import numpy as np

from mixture.order import PATTERN_LENGTH, TokenMixture
from mixture.phases import make_mixture, schedule_phases
from mixture.shards import TokenShards
from mixture.shares import divide_shares, most_repetitions, resolve_shares
from recipe_config import Data, Recipe, RecipeError, Training


SAMPLED_WINDOWS = 512  # of each source, for the variance of a window's bytes
# Of English text, by a tokenizer of at least 1,024 tokens: no fewer in any trial, and as many in the usual one.
LEAST_BYTES_PER_TOKEN, USUAL_BYTES_PER_TOKEN = 2, 4.4
REMEDY = "Set --training.max_tokens={tokens} or data.fit_to_corpus: true, raise data.max_repetitions, or add text"
FIT_STEPS = 16  # data.fit_to_corpus leaves at least so many steps an epoch


def check_length(recipe: Recipe, num_bytes: dict[str, int]) -> str | None:
    """Compare the length of training with the text before there are tokens.

    Args: num_bytes: source -> bytes of its text, or more.

    Returns: with data.fit_to_corpus, a note on what will be trained on instead if the text is too small.
    Raises: RecipeError: without it, a source would be repeated too often even at LEAST_BYTES_PER_TOKEN.
    """
    data, training, most = recipe.data, recipe.training, most_repetitions(recipe.data)
    if data.phases:
        return None  # these depend on the tokens of each phase
    room = {source.name: most[source.name] * num_bytes[source.name] for source in data.sources}
    limits = {source.name: room[source.name] / source.share for source in data.sources if source.share}
    open_sources = [source.name for source in data.sources if source.share is None]
    if open_sources:
        left = 1 - sum(source.share or 0 for source in data.sources)
        limits[" and ".join(open_sources)] = sum(room[name] for name in open_sources) / left
    name, most_bytes = min(limits.items(), key=lambda limit: limit[1])
    usual = int(most_bytes / USUAL_BYTES_PER_TOKEN)
    if data.fit_to_corpus:
        if usual >= training.max_tokens:
            return None
        return (
            f"the text of {name} lasts for about {usual:,} of training.max_tokens={training.max_tokens:,}, which will "
            "be shortened (data.fit_to_corpus)"
        )
    if most_bytes >= LEAST_BYTES_PER_TOKEN * training.max_tokens:
        return None
    raise RecipeError(
        f"training.max_tokens={training.max_tokens:,} is too long for the text: {name} would be repeated "
        f"{training.max_tokens * USUAL_BYTES_PER_TOKEN / most_bytes:.1f} times as often as max_repetitions allows; "
        f"about {usual:,} tokens would not. {REMEDY.format(tokens=usual)}"
    )


def decide_length(recipe: Recipe, shards: TokenShards) -> tuple[Training, dict[str, float], list[str]]:
    """Return the settings to train with, the shares of the sources, and a note for each setting that changed."""
    data, training, notes = recipe.data, recipe.training, []
    if data.fit_to_corpus:  # the length follows from the shares; otherwise the shares from the length
        shares = resolve_shares(data, shards.train_bytes)
        training, notes = fit_to_corpus(training, shards, shares)
    else:
        shares = resolve_for_run(data, training, shards)
    training, more = limit_repetitions(training, data, shards, shares)
    return training, shares, notes + more


def resolve_for_run(data: Data, training: Training, shards: TokenShards) -> dict[str, float]:
    """Return the shares of a run of training.max_steps, with sources without a share limited by max_repetitions.

    The bytes of a run follow from its shares, and the shares that repetitions allow from its bytes: more bytes,
    smaller limits. Bisection finds the bytes at which both agree.

    Raises: RecipeError: see resolve_shares.
    """
    phases = schedule_phases(data, dict.fromkeys(shards.names, 0.0), training.max_steps)
    ends = [*(phase["after_step"] for phase in phases[1:]), training.max_steps]
    lengths = np.diff([0, *ends]) * (training.tokens_per_step // training.sequence_length)  # sequences of each phase
    first, *others = lengths.tolist()
    later = np.zeros(len(shards.names))
    for length, phase in zip(others, phases[1:], strict=True):
        later += length * shards.sequence_shares(phase["shares"])
    # The pattern may give a source one place more than its share and be a few sequences ahead.
    room = np.array([most_repetitions(data)[name] for name in shards.names]) * shards.num_windows - later
    room = np.maximum(0, room - first / PATTERN_LENGTH - len(shards.names))

    def limits(run_bytes: float) -> dict[str, float]:
        return dict(
            zip(
                shards.names, np.minimum(1, room * shards.bytes_per_sequence / max(1, run_bytes)).tolist(), strict=True
            )
        )

    low, high = first * shards.bytes_per_sequence.min(), first * shards.bytes_per_sequence.max()
    for _ in range(60):
        middle = (low + high) / 2
        shares = np.array(list(divide_shares(data, shards.train_bytes, limits(middle)).values()))
        low, high = (middle, high) if first > middle * (shares / shards.bytes_per_sequence).sum() else (low, middle)
    return resolve_shares(data, shards.train_bytes, limits(high), training.max_tokens)


def fit_to_corpus(training: Training, shards: TokenShards, shares: dict[str, float]) -> tuple[Training, list[str]]:
    """Reduce the batch to what the corpus is large enough for.

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
        f"training.{key}={getattr(training, key):,} is too much for {all_sequences:,} sequences; "
        f"{getattr(most, key):,} is used"
        for key in ("tokens_per_step", "per_device_train_batch_size")
        if getattr(training, key) != getattr(most, key)
    ]


def count_repetitions(
    training: Training, data: Data, shards: TokenShards, shares: dict[str, float], max_steps: int
) -> dict[str, float]:
    """Return how often a run of so many steps reads each source, over all phases."""
    sequences_per_step = training.tokens_per_step // training.sequence_length
    phases = schedule_phases(data, shares, max_steps)
    return make_mixture(shards, phases, sequences_per_step, 0).repetitions(max_steps * sequences_per_step)


def limit_repetitions(
    training: Training, data: Data, shards: TokenShards, shares: dict[str, float]
) -> tuple[Training, list[str]]:
    """Limit the run to max_repetitions of each source over all phases: shorten it under fit_to_corpus, else refuse it.

    Raises: RecipeError: with the longest run that satisfies them.
    """
    most = most_repetitions(data)

    def too_often(max_steps: int) -> dict[str, float]:
        times = count_repetitions(training, data, shards, shares, max_steps)
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
        said = f"training.max_tokens={training.max_tokens:,} would repeat {said}; at most {longest:,} tokens do not"
        if not data.fit_to_corpus:
            raise RecipeError(f"{said}. {REMEDY.format(tokens=longest)}")
        notes.append(f"{said}; this many are used")
        training = training.model_copy(update={"max_tokens": longest})
    if data.fit_to_corpus and (training.warmup_steps or 0) >= training.max_steps:
        notes.append(f"training.warmup_steps={training.warmup_steps} is more than {training.max_steps} steps allow")
        training = training.model_copy(update={"warmup_steps": None})
    return training, notes


def expected_deviations(mixture: TokenMixture, byte_lengths: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Return the expected standard deviation of each source's share of the bytes, as a fraction of all bytes.

    Windows of equal tokens differ in bytes. Let a source have N windows whose bytes have variance S^2. Of n sequences,
    whole epochs deviate by nothing; the other k = n mod N windows are drawn without replacement, and their sum has the
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
