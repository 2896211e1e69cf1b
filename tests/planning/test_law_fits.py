# SPDX-License-Identifier: Apache-2.0
"""A law is recovered from runs that follow it, and its interval covers it under noise."""

import numpy as np
import pytest

from planning.law_fits import (
    Runs,
    fit_envelope,
    fit_loss,
    fit_minima,
    fit_parabolas,
    interval,
    resample,
    size_exponent,
)
from planning.scaling_laws import LossLaw


LAW = LossLaw("made up", "multiplying", E=0.7, A=40.0, B=90.0, alpha=0.40, beta=0.36)
TRUE_EXPONENT = size_exponent(LAW)


def runs_of(law: LossLaw, noise: float = 0.0) -> Runs:
    """Return an IsoFLOP sweep whose losses are the law's, times (1 + noise)."""
    random, rows = np.random.default_rng(1), []
    for budget in (1e12, 2e12, 4e12, 8e12):
        best = law.optimum(budget)[0]
        sizes = 2.0 ** (np.round(np.log2(best) * 2) / 2 + np.array([-1, -0.5, 0, 0.5, 1]))
        rows += [(budget, size, budget / 6 / size, law.loss(size, budget / 6 / size)) for size in sizes]
    budget, parameters, tokens, loss = (np.array(column) for column in zip(*rows, strict=True))
    return Runs(budget, parameters, tokens, loss * (1 + noise * random.standard_normal(len(loss))))


def test_each_approach_recovers_the_law_from_runs_that_follow_it():
    runs = runs_of(LAW)
    fitted = fit_loss(runs, "multiplying")
    assert (fitted.E, fitted.alpha, fitted.beta) == pytest.approx((LAW.E, LAW.alpha, LAW.beta), rel=0.02)
    assert size_exponent(fitted) == pytest.approx(TRUE_EXPONENT, abs=0.005)
    parabolas = fit_parabolas(runs)
    assert all(parabola.inside for parabola in parabolas)
    for parabola in parabolas:
        assert parabola.parameters == pytest.approx(LAW.optimum(parabola.flops)[0], rel=0.06)
    assert fit_minima(parabolas).exponent == pytest.approx(TRUE_EXPONENT, abs=0.02)
    # The envelope chooses among the sizes that were run, a step of sqrt(2) apart.
    assert fit_envelope(runs).exponent == pytest.approx(TRUE_EXPONENT, abs=0.12)


def test_under_noise_the_interval_covers_the_exponent_and_the_law_predicts_a_larger_run():
    runs = runs_of(LAW, noise=0.002)
    parabolas = fit_parabolas(runs)
    law = fit_loss(runs, "multiplying")
    laws = [fit_loss(again, "multiplying", start=law) for again in resample(runs, parabolas, 60, seed=0)]
    low, high = interval([size_exponent(one) for one in laws])
    assert low < TRUE_EXPONENT < high and high - low > 0.01
    size, tokens = LAW.optimum(32e12)
    assert law.loss(size, tokens) == pytest.approx(LAW.loss(size, tokens), rel=0.01)


def test_budgets_without_a_minimum_are_reported_not_guessed():
    runs = runs_of(LAW)
    falling = Runs(runs.budget, runs.parameters, runs.tokens, 2 - 0.1 * np.log(runs.parameters))
    parabolas = fit_parabolas(falling)
    assert not any(parabola.inside for parabola in parabolas)
    with pytest.raises(ValueError, match="fewer than two budgets have a minimum"):
        fit_minima(parabolas)
