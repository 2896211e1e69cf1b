# SPDX-License-Identifier: Apache-2.0
"""A sweep of one's own: its runs, its rows, the fit of them, and what is refused."""

import json
import math
import shutil

import pytest
from tiny_run import RECIPES

import fit_scaling_law
from planning.charts import draw_frontier, draw_isoflop
from planning.law_fits import size_exponent
from planning.scaling_laws import LossLaw
from recipe_config import RecipeError
from sweeps.isoflop import load_experiment
from sweeps.isoflop_fit import collect, describe_fit, fit
from sweeps.runs import add_row, read_rows


EXPERIMENT = RECIPES / "experiments" / "scaling_law.yaml"
LAW = LossLaw("made up", "multiplying", E=0.7, A=40.0, B=90.0, alpha=0.40, beta=0.36)


def rows_of(law: LossLaw) -> list[dict]:
    """Return the rows of the shipped experiment as they would be if its runs followed a law."""
    _, planned = load_experiment(EXPERIMENT)
    rows = []
    for number, run in enumerate(planned):
        tokens = run.recipe.training.max_tokens
        loss = law.loss(run.counts["multiplying"], tokens)
        counts = {f"{name}_parameters": str(count) for name, count in run.counts.items()}
        row = {"key": f"{number:016x}", "budget_flops": str(run.flops), "held_out": str(int(run.held_out))}
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
        assert flops == pytest.approx(run.flops, rel=0.01)
        assert run.recipe.training.learning_rate == pytest.approx(7.0 * run.counts["multiplying"] ** -0.62)


def test_a_sweep_is_fitted_from_its_rows_and_the_held_out_run_is_predicted(tmp_path):
    found = fit(rows_of(LAW), resamples=5)
    assert found["runs"] == 20 and len(found["held_out"]) == 1
    assert abs(found["held_out"][0]["error_fraction"]) < 0.01
    assert found["exponents"]["approach_3"]["a"] == pytest.approx(size_exponent(LAW), abs=0.01)
    assert json.loads(json.dumps(found)) == found
    assert "held out" in describe_fit(found)[-1]
    rows = [row for row in rows_of(LAW) if row["held_out"] == "0"]
    draw_isoflop(collect(rows, "multiplying", False), found, tmp_path / "a.png")
    draw_frontier(found, tmp_path / "b.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))


def test_the_committed_rows_give_the_committed_fit(tmp_path):
    source = EXPERIMENT.parent / "scaling_law"
    shutil.copytree(source, tmp_path / "scaling_law")
    shutil.copy(EXPERIMENT, tmp_path)
    fit_scaling_law.main(["--config", str(tmp_path / EXPERIMENT.name), "--max_runs", "0"])
    found, committed = (json.loads((path / "fit.json").read_text()) for path in (tmp_path / "scaling_law", source))
    assert_close(found, committed)
    assert (tmp_path / "scaling_law" / "runs.csv").read_bytes() == (source / "runs.csv").read_bytes()


def assert_close(found: object, committed: object) -> None:
    """Compare JSON values: the last digits of a fit differ between processors."""
    if isinstance(committed, dict):
        assert found.keys() == committed.keys()
        found, committed = list(found.values()), list(committed.values())
    if isinstance(committed, list):
        for one, other in zip(found, committed, strict=True):
            assert_close(one, other)
    elif isinstance(committed, float) and math.isfinite(committed):
        assert found == pytest.approx(committed, rel=1e-3)
    else:
        assert found == committed or found != found


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
