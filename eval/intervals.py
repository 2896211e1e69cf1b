# SPDX-License-Identifier: Apache-2.0
"""Intervals of scores, of means of scores and of paired differences, and the correction for many comparisons."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm, t


RESAMPLES = 1000  # of the bootstrap

Score = Callable[[np.ndarray], float]  # a function of the indices of the drawn items


@dataclass(frozen=True)
class Mean:
    """A score that is the mean of a value for each item; called with the indices of the drawn items."""

    values: np.ndarray

    def __call__(self, draw: np.ndarray) -> float:
        return float(self.values[draw].mean())

    def is_proportion(self) -> bool:
        return bool(np.isin(self.values, (0.0, 1.0)).all())

    def interval(self) -> list[float] | None:
        """Return Wilson's interval; None if the values are not 0 or 1."""
        return wilson(int(self.values.sum()), len(self.values)) if self.is_proportion() else None


@dataclass(frozen=True)
class MeanRecall:
    """A score that is the mean over the classes of the fraction of their items that are right."""

    gold: np.ndarray  # class of each item
    right: np.ndarray  # whether it was found

    def recalls(self, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the right items and all items of each class that was drawn."""
        sizes = np.bincount(self.gold[draw])
        return np.bincount(self.gold[draw], self.right[draw])[sizes > 0].astype(int), sizes[sizes > 0]

    def __call__(self, draw: np.ndarray) -> float:
        right, sizes = self.recalls(draw)
        return float((right / sizes).mean())

    def interval(self) -> list[float]:
        """Combine Wilson's intervals of the classes."""
        right, sizes = self.recalls(np.arange(len(self.gold)))
        return combine(right / sizes, [wilson(*pair) for pair in zip(right.tolist(), sizes.tolist(), strict=True)])[1]


def wilson(right: int, size: int) -> list[float]:
    interval = binomtest(right, size).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def draws(name: str, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the bootstrap's RESAMPLES draws of a task's items: its own, and the same for every model and metric."""
    own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    generator = np.random.default_rng([seed, own])
    return (generator.integers(size, size=size) for _ in range(RESAMPLES))


def bootstrap_interval(resampled: np.ndarray, size: int) -> list[float]:
    """Return the 95 % percentile interval of the bootstrap, expanded for a sample of this size.

    Source: Hesterberg 2014, What teachers should know about the bootstrap (https://arxiv.org/abs/1411.5279).
    """
    deviations = np.sqrt(size / (size - 1)) * t.ppf(0.975, size - 1) if size > 1 else np.inf
    return [float(bound) for bound in np.quantile(resampled, norm.cdf([-deviations, deviations]))]


def measured(score: Score, name: str, size: int, seed: int) -> dict:
    """Return {"value", "stderr", "interval"}.

    The 95 % interval of a proportion and of a mean of proportions is Wilson's; that of another score comes from the
    bootstrap over items, which also gives the standard error.
    """
    value = score(np.arange(size))
    resampled = np.array([score(draw) for draw in draws(name, size, seed)])
    interval = score.interval() if isinstance(score, Mean | MeanRecall) else None
    return {
        "value": float(value),
        "stderr": float(resampled.std(ddof=1)),
        "interval": interval or bootstrap_interval(resampled, size),
    }


def paired(first: Score, other: Score, name: str, size: int, seed: int) -> dict:
    """Compare two scores on the same draws of the items.

    Returns: {"difference" (other - first), "stderr", "interval" (95 %; None of a single item, which shows nothing),
        "p_value" (two-sided)}. The p-value of two proportions comes from McNemar's exact test, that of other scores
        from the t distribution.
    """
    every = np.arange(size)
    difference = other(every) - first(every)
    resampled = np.array([other(draw) - first(draw) for draw in draws(name, size, seed)])
    stderr = float(resampled.std(ddof=1))
    if all(isinstance(score, Mean) and score.is_proportion() for score in (first, other)):
        won, lost = (int((a.values > b.values).sum()) for a, b in ((other, first), (first, other)))
        p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    else:
        p_value = p_value_of(difference, stderr, size)
    interval = bootstrap_interval(resampled, size) if size > 1 else None
    return {"difference": float(difference), "stderr": stderr, "interval": interval, "p_value": p_value}


def p_value_of(difference: float, stderr: float, size: int) -> float:
    """Return the two-sided p-value of a difference by Student's t; 1 for a single item, which shows nothing."""
    if size < 2:
        return 1.0
    if stderr == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * t.sf(abs(difference) / stderr, size - 1))


def holm(p_values: list[float]) -> list[float]:
    """Return p-values adjusted for their number: of those below 0.05, any is false with a probability of at most 0.05.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.array(p_values)[order] * np.arange(len(order), 0, -1)))
    return adjusted.tolist()


def combine(values: list[float], intervals: list[list[float]]) -> tuple[float, list[float]]:
    """Return the mean of independent estimates and its 95 % interval from theirs.

    Source: Zou and Donner 2008, Construction of confidence limits about effect measures.
    """
    mean, bounds = np.mean(values), np.array(intervals)  # (estimates, 2)
    below, above = np.sqrt(((np.array(values)[:, None] - bounds) ** 2).sum(0)) / len(values)
    return float(mean), [float(mean - below), float(mean + above)]


def family_sums(documents: list[dict], key: str) -> np.ndarray:
    """Sum a key of the documents by family, in the order of the families' first documents.

    A document without a family is one by itself.
    """
    sums: dict[object, float] = {}
    for position, each in enumerate(documents):
        family = ("document", position) if each.get("family") is None else ("family", each["family"])
        sums[family] = sums.get(family, 0) + each[key]
    return np.array(list(sums.values()), float)
