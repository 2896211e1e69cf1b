# SPDX-License-Identifier: Apache-2.0
"""A law is recovered from runs that follow it, its interval covers it under noise, and a sweep keeps what it has."""

import json

import numpy as np
import pytest
from tiny_run import RECIPES

import fit_scaling_law
from fit_scaling_law import add_row, fit, load_experiment, read_rows
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
from recipe_config import RecipeError


EXPERIMENT = RECIPES / "experiments" / "scaling_law.yaml"
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


def test_under_noise_the_interval_covers_the_exponent_and_foretells_a_larger_run():
    runs = runs_of(LAW, noise=0.002)
    parabolas = fit_parabolas(runs)
    law = fit_loss(runs, "multiplying")
    laws = [fit_loss(again, "multiplying", start=law) for again in resample(runs, parabolas, 60, seed=0)]
    low, high = interval([size_exponent(one) for one in laws])
    assert low < TRUE_EXPONENT < high and high - low > 0.01
    size, tokens = LAW.optimum(32e12)
    assert law.loss(size, tokens) == pytest.approx(LAW.loss(size, tokens), rel=0.01)


def test_budgets_without_a_minimum_are_said_not_guessed():
    runs = runs_of(LAW)
    falling = Runs(runs.budget, runs.parameters, runs.tokens, 2 - 0.1 * np.log(runs.parameters))
    parabolas = fit_parabolas(falling)
    assert not any(parabola.inside for parabola in parabolas)
    with pytest.raises(ValueError, match="fewer than two budgets have a minimum"):
        fit_minima(parabolas)


def rows_of(law: LossLaw) -> list[dict]:
    """Return the rows of the shipped experiment as they would be if its runs followed a law."""
    _, planned = load_experiment(EXPERIMENT)
    rows = []
    for number, run in enumerate(planned):
        tokens = run.recipe.training.max_tokens
        loss = law.loss(run.counts["multiplying"], tokens)
        counts = {f"{name}_parameters": str(count) for name, count in run.counts.items()}
        row = {"key": f"{number:016x}", "budget_flops": str(run.budget_flops), "held_out": str(int(run.held_out))}
        rows.append(row | counts | {"tokens": str(tokens), "bits_per_byte": f"{loss:.6f}"})
    return rows


def test_the_shipped_experiment_has_four_budgets_of_five_sizes_and_a_larger_run_that_no_fit_sees(tmp_path):
    experiment, planned = load_experiment(EXPERIMENT)
    assert len(experiment.budgets) >= 4 and all(len(budget.shapes) >= 5 for budget in experiment.budgets)
    assert experiment.held_out.flops > max(budget.flops for budget in experiment.budgets)
    keys = {run.key({}) for run in planned}
    assert len(keys) == len(planned) and keys == {run.key({}) for run in load_experiment(EXPERIMENT)[1]}
    assert not keys & {run.key({"tokens": "other"}) for run in planned}
    for run in planned:
        flops = 6 * run.counts["multiplying"] * run.recipe.training.max_tokens
        assert flops == pytest.approx(run.budget_flops, rel=0.01)
        assert run.recipe.training.learning_rate == pytest.approx(7.0 * run.counts["multiplying"] ** -0.62)


def test_a_sweep_is_fitted_from_its_rows_and_the_held_out_run_is_foretold(tmp_path):
    found = fit(rows_of(LAW), resamples=5)
    assert found["runs"] == 20 and len(found["held_out"]) == 1
    assert abs(found["held_out"][0]["error_fraction"]) < 0.01
    assert found["exponents"]["approach_3"]["a"] == pytest.approx(TRUE_EXPONENT, abs=0.01)
    assert json.loads(json.dumps(found)) == found
    assert "held out" in fit_scaling_law.describe(found)
    rows = [row for row in rows_of(LAW) if row["held_out"] == "0"]
    fit_scaling_law.draw_isoflop(fit_scaling_law.collect(rows, "multiplying", False), found, tmp_path / "a.png")
    fit_scaling_law.draw_frontier(found, tmp_path / "b.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))


def test_a_row_is_added_whole_and_once(tmp_path):
    csv_file = tmp_path / "results" / "runs.csv"
    first, second = rows_of(LAW)[:2]
    for row in (first, second, first | {"bits_per_byte": "9"}):
        add_row(csv_file, row)
    rows = read_rows(csv_file)
    assert list(rows) == [first["key"], second["key"]] and rows[first["key"]]["bits_per_byte"] == "9"
    assert len(csv_file.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("shapes: [0, 1, 2, 3, 4]", "shapes: [0, 1, 2, 3, 40]"),
            "budgets.0.shapes: 40 is no shape; there are 0 to 7",
        ),
        (("shapes: [0, 1, 2, 3, 4]", "shapes: [0, 1, 2]"), "budgets.0.shapes: 3 sizes do not show a minimum"),
        (("flops: 3e11", "flops: -1"), "budgets.0.flops: Input should be greater than 0"),
        (("optimizer: adamw", "optimiser: adamw"), "training.optimiser: unknown key"),
        (("results: ", "resluts: "), "results: Field required"),
    ],
)
def test_an_experiment_that_cannot_be_run_is_refused(tmp_path, change, message):
    broken = tmp_path / "broken.yaml"
    text = EXPERIMENT.read_text()
    assert change[0] in text
    broken.write_text(text.replace(*change, 1))
    with pytest.raises(RecipeError) as error:
        load_experiment(broken)
    assert message in str(error.value), error.value
