# SPDX-License-Identifier: Apache-2.0
"""The shares of the mixture: those the recipe fixes, and the rest as the bytes at hand divide it.

A source with a share keeps it. The others divide what is left in proportion to their training bytes; then the sources
of a label in data.min_shares are raised together to its least share, and a source that the run would go through more
often than its max_repetitions is lowered to that, what it gives up going to the others in proportion.
"""

import math
from collections.abc import Iterator

import numpy as np

from mixture.order import PATTERN_LENGTH
from mixture.phases import schedule_phases
from mixture.shards import TokenShards
from recipe_config import Data, RecipeError, Training


def resolve_shares(
    data: Data, train_bytes: dict[str, int], most: dict[str, float] | None = None, max_tokens: int = 0
) -> dict[str, float]:
    """Return the share of each source outside data.phases.

    Args:
        data: the recipe's data section.
        train_bytes: training bytes at hand of each source.
        most: largest share of each source without a fixed one. None: no limit.
        max_tokens: the length of training that `most` follows from.

    Raises: RecipeError: no shares keep to all that is asked, here or in a phase; every problem with its remedy.
    """
    shares = divide(data, train_bytes, most or {})
    problems = [*find_problems(data, shares, max_tokens), *find_phase_problems(data)]
    if problems:
        raise RecipeError(*problems)
    return shares


def members(data: Data, label: str) -> list[str]:
    """Return the sources that a key of data.min_shares counts: the domain's, or the one of this name."""
    return [source.name for source in data.sources if label in (source.name, source.label)]


def divide(data: Data, train_bytes: dict[str, int], most: dict[str, float]) -> dict[str, float]:
    """Divide the bytes as far as that goes; what cannot be kept to is for find_problems to see."""
    shares = {source.name: source.share for source in data.sources}
    free = [name for name, share in shares.items() if share is None]
    left = 1 - sum(share for share in shares.values() if share is not None)
    weights = {name: max(1, train_bytes[name]) for name in free}
    bounds = {name: (0.0, most.get(name, 1.0)) for name in free}
    groups = {label: members(data, label) for label in data.min_shares}
    for label, names in groups.items():
        if len(names) == 1 and names[0] in bounds:
            bounds[names[0]] = (min(data.min_shares[label], bounds[names[0]][1]), bounds[names[0]][1])
    waiting = [label for label, names in groups.items() if len(names) > 1]
    while True:
        shares |= fill(left, weights, bounds)
        short = [label for label in waiting if sum(shares[n] for n in groups[label]) < data.min_shares[label]]
        if not short:
            return shares
        waiting.remove(short[0])
        raised = [name for name in groups[short[0]] if name in bounds]
        fixed = sum(shares[name] for name in groups[short[0]] if name not in bounds)
        parts = fill(data.min_shares[short[0]] - fixed, weights, {name: bounds[name] for name in raised})
        bounds |= {name: (part, part) for name, part in parts.items()}


def fill(total: float, weights: dict[str, int], bounds: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Divide total in proportion to weights with each part held within its bounds: water-filling.

    Each part is clip(level * weight, least, most), and their sum rises with the level in straight pieces between the
    levels at which one reaches a bound, so the level that gives the total is read off between two of them.
    """
    if not bounds:
        return {}
    weight = np.array([weights[name] for name in bounds], dtype=float)
    least, most = np.array(list(bounds.values())).T
    levels = np.unique(np.concatenate([least / weight, most / weight]))
    totals = [np.clip(level * weight, least, most).sum() for level in levels]
    parts = np.clip(np.interp(total, totals, levels) * weight, least, most)
    return dict(zip(bounds, parts.tolist(), strict=True))


def find_problems(data: Data, shares: dict[str, float], max_tokens: int) -> Iterator[str]:
    """Say what of the recipe's demands the shares do not keep to, and what would be the least change."""
    given = {source.name: source.share for source in data.sources if source.share is not None}
    for label, least in data.min_shares.items():
        names = members(data, label)
        have, fixed = sum(shares[name] for name in names), sum(given.get(name, 0) for name in names)
        if have > least - 1e-9:
            continue
        said = f"data.min_shares.{label}={least:g}: {', '.join(names)} "
        if all(name in given for name in names):
            yield f"{said}have {have:g} by their shares; raise one of them, or lower it to {have:g}"
        else:
            tokens = int(max_tokens * (have - fixed) / (least - fixed))
            yield (
                f"{said}reach {round_down(have):g} within max_repetitions; lower training.max_tokens={max_tokens:,} "
                f"to {tokens:,}, lower it to {round_down(have):g}, raise data.max_repetitions, or add text"
            )
    total = sum(shares.values())
    if total > 1 + 1e-9:
        yield (
            f"data.min_shares and the shares in data.sources add up to {total:.4g}; lower them by "
            f"{total - 1:.4g} together"
        )
    elif total < 1 - 1e-9:
        taken = sum(given.values())
        tokens = int(max_tokens * (total - taken) / (1 - taken))
        yield (
            f"data.max_repetitions={data.max_repetitions:g}: the sources without a share can take "
            f"{round_down(total - taken):g} of the {1 - taken:g} that is left to them in training.max_tokens="
            f"{max_tokens:,}; lower that to {tokens:,}, raise data.max_repetitions, or add text"
        )


def round_down(share: float) -> float:
    return math.floor(share * 10_000) / 10_000


def find_phase_problems(data: Data) -> Iterator[str]:
    for index, phase in enumerate(data.phases):
        for label, least in data.min_shares.items():
            have = sum(phase.shares.get(name, 0) for name in members(data, label))
            if have < least - 1e-9:
                yield (
                    f"data.phases.{index}.shares: {label} has {have:g}, less than data.min_shares.{label}={least:g}; "
                    "raise it here, or lower the least share"
                )


def average_shares(data: Data, shares: dict[str, float]) -> dict[str, float]:
    """Return the shares over the whole of training, every step taken for as many bytes."""
    starts = [0.0, *(phase.start_fraction for phase in data.phases), 1.0]
    parts = [shares, *(phase.shares for phase in data.phases)]
    return {name: sum(np.diff(starts) * [part.get(name, 0.0) for part in parts]) for name in shares}


def most_repetitions(data: Data) -> dict[str, float]:
    return {source.name: source.max_repetitions or data.max_repetitions for source in data.sources}


def resolve_for_run(data: Data, training: Training, shards: TokenShards) -> dict[str, float]:
    """Return the shares of a run of training.max_steps, in which max_repetitions limits sources without a share.

    The bytes of a run of so many tokens follow from the shares, and the shares that repetitions allow from the bytes:
    more bytes, smaller limits. The bytes at which both agree are found by bisection.

    Raises: RecipeError: see resolve_shares.
    """
    phases = schedule_phases(data, dict.fromkeys(shards.names, 0.0), training.max_steps)
    ends = [*(phase["after_step"] for phase in phases[1:]), training.max_steps]
    lengths = np.diff([0, *ends]) * (training.tokens_per_step // training.sequence_length)  # sequences of each phase
    first, *others = lengths.tolist()
    later = np.zeros(len(shards.names))
    for length, phase in zip(others, phases[1:], strict=True):
        later += length * shards.sequence_shares(phase["shares"])
    # The pattern of the mixture may give a source one place more than its share, and be a few sequences ahead.
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
        shares = np.array(list(divide(data, shards.train_bytes, limits(middle)).values()))
        low, high = (middle, high) if first > middle * (shares / shards.bytes_per_sequence).sum() else (low, middle)
    return resolve_shares(data, shards.train_bytes, limits(high), training.max_tokens)
