# SPDX-License-Identifier: Apache-2.0
"""The share of each source: as fixed by the recipe, or in proportion to its bytes.

A source with a share keeps it. The others divide the rest in proportion to their training bytes. Then the sources of a
label in data.min_shares are raised together to its minimum, and a source that would be repeated more often than its
max_repetitions is lowered to that; the others get what it gives up, in proportion.
"""

import math
from collections.abc import Iterator

import numpy as np

from recipe_config import Data, RecipeError


def resolve_shares(
    data: Data, train_bytes: dict[str, int], most: dict[str, float] | None = None, max_tokens: int = 0
) -> dict[str, float]:
    """Return the share of each source outside data.phases.

    Args:
        data: the recipe's data section.
        train_bytes: training bytes of each source.
        most: largest share of each source without a fixed share. None: no limit.
        max_tokens: length of training that `most` was computed for.

    Raises: RecipeError: no shares satisfy the recipe, here or in a phase; every problem with its remedy.
    """
    shares = divide_shares(data, train_bytes, most or {})
    problems = [*find_problems(data, shares, max_tokens), *find_phase_problems(data)]
    if problems:
        raise RecipeError(*problems)
    return shares


def sources_of(data: Data, label: str) -> list[str]:
    """Return the sources that a key of data.min_shares names: those of a domain, or the one of this name."""
    return [source.name for source in data.sources if label in (source.name, source.label)]


def divide_shares(data: Data, train_bytes: dict[str, int], most: dict[str, float]) -> dict[str, float]:
    """Divide the bytes by the rules above as far as possible; find_problems reports what they do not satisfy."""
    shares = {source.name: source.share for source in data.sources}
    free = [name for name, share in shares.items() if share is None]
    left = 1 - sum(share for share in shares.values() if share is not None)
    weights = {name: max(1, train_bytes[name]) for name in free}
    bounds = {name: (0.0, most.get(name, 1.0)) for name in free}
    groups = {label: sources_of(data, label) for label in data.min_shares}
    for label, names in groups.items():
        if len(names) == 1 and names[0] in bounds:
            bounds[names[0]] = (min(data.min_shares[label], bounds[names[0]][1]), bounds[names[0]][1])
    waiting = [label for label, names in groups.items() if len(names) > 1]
    while True:
        shares |= water_fill(left, weights, bounds)
        short = [label for label in waiting if sum(shares[n] for n in groups[label]) < data.min_shares[label]]
        if not short:
            return shares
        waiting.remove(short[0])
        raised = [name for name in groups[short[0]] if name in bounds]
        fixed = sum(shares[name] for name in groups[short[0]] if name not in bounds)
        parts = water_fill(data.min_shares[short[0]] - fixed, weights, {name: bounds[name] for name in raised})
        bounds |= {name: (part, part) for name, part in parts.items()}


def water_fill(total: float, weights: dict[str, int], bounds: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Divide total in proportion to weights, each part limited by its bounds (least, most).

    Each part is clip(level * weight, least, most). Their sum is piecewise linear in the level, with corners where a
    part reaches a bound, so interpolation between the corners gives the level for the total.
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
    """Yield each demand of the recipe that the shares do not satisfy, with the smallest change that would."""
    given = {source.name: source.share for source in data.sources if source.share is not None}
    for label, least in data.min_shares.items():
        names = sources_of(data, label)
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
            have = sum(phase.shares.get(name, 0) for name in sources_of(data, label))
            if have < least - 1e-9:
                yield (
                    f"data.phases.{index}.shares: {label} has {have:g}, less than data.min_shares.{label}={least:g}; "
                    "raise it here, or lower the least share"
                )


def average_shares(data: Data, shares: dict[str, float]) -> dict[str, float]:
    """Return the shares over the whole of training, with equal bytes in every step."""
    starts = [0.0, *(phase.start_fraction for phase in data.phases), 1.0]
    parts = [shares, *(phase.shares for phase in data.phases)]
    return {name: sum(np.diff(starts) * [part.get(name, 0.0) for part in parts]) for name in shares}


def most_repetitions(data: Data) -> dict[str, float]:
    return {source.name: source.max_repetitions or data.max_repetitions for source in data.sources}
