# SPDX-License-Identifier: Apache-2.0
"""Fit a scaling law to runs of one's own in Chinchilla's three ways, with intervals.

The loss may be in any unit; in bits per byte it can be compared across tokenizers. The runs form IsoFLOP sets: several
sizes at each of several budgets, each trained to the end of its own schedule.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from planning.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN, LossLaw, PowerLaw, fit_power_law


HUBER_DELTA = 1e-3  # on the log of the loss, as Hoffmann et al. 2022, section 3.3
INTERVAL = (10, 90)  # percentiles, as Hoffmann et al. 2022, Table 2


@dataclass(frozen=True)
class Runs:
    """Finished runs, one entry of each array a run.

    Attributes:
        budget: FLOPs that the run was planned for: runs of one budget are compared with each other.
        parameters: N, under one convention.
        tokens: D that was trained on.
        loss: on held-out text.
    """

    budget: np.ndarray
    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray

    @property
    def flops(self) -> np.ndarray:
        return FLOPS_PER_PARAMETER_AND_TOKEN * self.parameters * self.tokens


@dataclass(frozen=True)
class Parabola:
    """The loss of one budget's runs as a quadratic function of log10 N.

    Attributes:
        flops: the budget.
        coefficients: of the square, the linear and the constant term.
        inside: whether its minimum lies between the smallest and the largest size that was run.
    """

    flops: float
    coefficients: tuple[float, float, float]
    inside: bool

    @property
    def parameters(self) -> float:
        """N at the minimum; NaN where the parabola has none, or one off every scale."""
        square, linear, _ = self.coefficients
        log_parameters = -linear / (2 * square) if square > 0 else float("inf")
        return 10**log_parameters if abs(log_parameters) < 30 else float("nan")

    def __call__(self, parameters):
        return np.polyval(self.coefficients, np.log10(parameters))


def fit_envelope(runs: Runs) -> PowerLaw:
    """Approach 1: which size has the least loss at each compute; N as a power law of C.

    Chinchilla takes the least of all training curves. With a schedule that falls at the end, a loss in mid-training is
    not what the run would have reached had it been planned to end there. So only the ends count: between the ends of
    one size's runs of different length, its log loss is taken as linear in log C.
    """
    compute = np.geomspace(runs.budget.min(), runs.budget.max(), 200)
    sizes = np.unique(runs.parameters)
    losses = np.full((len(sizes), len(compute)), np.inf)
    for row, size in zip(losses, sizes, strict=True):
        of_size = np.flatnonzero(runs.parameters == size)
        of_size = of_size[np.argsort(runs.flops[of_size])]
        log_flops, log_loss = np.log(runs.flops[of_size]), np.log(runs.loss[of_size])
        known = (np.log(compute) >= log_flops[0] - 0.02) & (np.log(compute) <= log_flops[-1] + 0.02)
        row[known] = np.interp(np.log(compute[known]), log_flops, log_loss)
    covered = np.isfinite(losses).sum(axis=0) >= 2  # with one size there is nothing to choose
    return fit_power_law(compute[covered], sizes[losses[:, covered].argmin(axis=0)])


def fit_parabolas(runs: Runs) -> list[Parabola]:
    """Approach 2, first half: a parabola through each budget's losses over log N."""
    parabolas = []
    for budget in np.unique(runs.budget):
        of_budget = runs.budget == budget
        sizes = runs.parameters[of_budget]
        coefficients = tuple(np.polyfit(np.log10(sizes), runs.loss[of_budget], 2).tolist())
        parabola = Parabola(float(np.exp(np.log(runs.flops[of_budget]).mean())), coefficients, inside=False)
        inside = bool(sizes.min() <= parabola.parameters <= sizes.max())
        parabolas.append(replace(parabola, inside=inside))
    return parabolas


def fit_minima(parabolas: list[Parabola]) -> PowerLaw:
    """Approach 2, second half: N at the minima that lie between the sizes that were run, as a power law of C.

    Raises: ValueError: fewer than two do.
    """
    found = [(p.flops, p.parameters) for p in parabolas if p.inside]
    if len(found) < 2:
        raise ValueError("fewer than two budgets have a minimum between their sizes; run smaller and larger ones")
    return fit_power_law(*zip(*found, strict=True))


def fit_loss(runs: Runs, counts: str, start: LossLaw | None = None) -> LossLaw:
    """Approach 3: L = E + A / N^alpha + B / D^beta by L-BFGS from a grid of starts, Huber loss on log L.

    Args:
        runs: at least six.
        counts: the convention of their N.
        start: the only start, to re-fit resampled runs. None: a grid.
    """
    # Sizes and tokens relative to their middle, so that the terms at the start are of the size of the loss.
    middle_n, middle_d = (float(np.exp(np.log(x).mean())) for x in (runs.parameters, runs.tokens))
    log_n, log_d = np.log(runs.parameters / middle_n), np.log(runs.tokens / middle_d)
    log_loss = np.log(runs.loss)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        e, a, b, alpha, beta = x
        terms = np.exp([np.full_like(log_n, e), a - alpha * log_n, b - beta * log_d])
        total = terms.sum(axis=0)
        error = np.log(total) - log_loss
        inside = np.abs(error) <= HUBER_DELTA
        value = np.where(inside, error**2 / 2, HUBER_DELTA * (np.abs(error) - HUBER_DELTA / 2)).sum()
        weights = np.clip(error, -HUBER_DELTA, HUBER_DELTA) / total * terms
        slopes = weights.sum(axis=1)
        # In units of the Huber loss's own size, or the optimizer stops at its tolerance at the first step.
        gradient = np.array([*slopes, -(weights[1] * log_n).sum(), -(weights[2] * log_d).sum()])
        return value / HUBER_DELTA**2, gradient / HUBER_DELTA**2

    log_least = float(log_loss.min())
    if start is not None:
        starts = [
            [
                np.log(start.E),
                np.log(start.A) - start.alpha * np.log(middle_n),
                np.log(start.B) - start.beta * np.log(middle_d),
                start.alpha,
                start.beta,
            ]
        ]
    else:
        starts = [
            [log_least + e, log_least + a, log_least - 1.2, alpha, beta]
            for e in (-1.0, -0.3)
            for a in (-2.0, -0.7)
            for alpha in (0.2, 0.5, 1.0)
            for beta in (0.2, 0.5, 1.0)
        ]
    limits = [(log_least - 12, log_least), (-12, 5), (-12, 5), (0.01, 3), (0.01, 3)]
    fits = [minimize(objective, x, jac=True, method="L-BFGS-B", bounds=limits) for x in starts]
    e, a, b, alpha, beta = min(fits, key=lambda fit: fit.fun).x
    return LossLaw(
        "fitted to own runs",
        counts,
        E=float(np.exp(e)),
        A=float(np.exp(a + alpha * np.log(middle_n))),
        B=float(np.exp(b + beta * np.log(middle_d))),
        alpha=float(alpha),
        beta=float(beta),
    )


def size_exponent(law: LossLaw) -> float:
    """Return a of N_opt ~ C^a."""
    return law.beta / (law.alpha + law.beta)


def resample(runs: Runs, parabolas: list[Parabola], times: int, seed: int) -> Iterator[Runs]:
    """Yield the runs with other noise: the parabolas' losses plus residuals drawn from all of them.

    Three coefficients a budget make the residuals too small by sqrt((n - 3 budgets) / n), which is corrected.
    """
    fitted = np.empty_like(runs.loss)
    for budget, parabola in zip(np.unique(runs.budget), parabolas, strict=True):
        of_budget = runs.budget == budget
        fitted[of_budget] = parabola(runs.parameters[of_budget])
    n = len(runs.loss)
    residuals = (runs.loss - fitted) * np.sqrt(n / (n - 3 * len(parabolas)))
    random = np.random.default_rng(seed)
    for _ in range(times):
        yield replace(runs, loss=fitted + random.choice(residuals, n))


def interval(values: list[float]) -> list[float]:
    """Return the INTERVAL percentiles of the finite values."""
    values = [value for value in values if np.isfinite(value)]
    return [float(value) for value in np.percentile(values, INTERVAL)]
