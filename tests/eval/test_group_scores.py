# SPDX-License-Identifier: Apache-2.0
"""Groups of tasks: whole groups have scores, parts are named as parts, and every task has its own bootstrap draws."""

import numpy as np
import pytest
from tiny_run import RECIPES

from benchmark_tasks import choose_tasks, read_benchmarks
from group_scores import average_groups
from intervals import Mean, combine, draws, measured
from recipe_loading import load_recipe


BENCHMARKS = read_benchmarks()


def score_tasks(names: list[str]) -> dict[str, dict]:
    """Return entries as in results.json, of the names alone."""
    score = {"value": 0.6, "interval": [0.5, 0.7], "chance": 0.25, "constant": 0.3, "baseline": 0.3}
    return {
        name: {"groups": BENCHMARKS[name].groups, "score": BENCHMARKS[name].metrics[0]}
        | {"metrics": {BENCHMARKS[name].metrics[0]: score}}
        for name in names
    }


def run_group(names: list[str], noncommercial: bool = False) -> tuple[dict, dict]:
    chosen = choose_tasks(names, BENCHMARKS, noncommercial)
    return average_groups(score_tasks(chosen), BENCHMARKS, noncommercial)


@pytest.mark.parametrize(
    ("domain", "whole", "parts"),
    [
        ("legal", {"mmlu_legal"}, {"legalbench (2 of 162)", "mmlu (3 of 57)"}),
        ("finance", {"mmlu_finance"}, {"bloomberg_finance (4 of 5)", "mmlu (7 of 57)"}),
        ("medical", {"mmlu_medical"}, {"mmlu (9 of 57)"}),
    ],
)
def test_a_shipped_recipe_reports_no_part_of_a_suite_under_the_suites_name(domain, whole, parts):
    tasks = load_recipe([RECIPES / domain / "base.yaml"]).evaluation.tasks
    groups, found = run_group(tasks)
    assert (set(groups), set(found)) == (whole, parts)


def test_a_whole_group_has_the_mean_of_its_tasks_and_of_their_baselines():
    groups, parts = run_group(["mmlu"])
    assert set(groups) == {"mmlu", "mmlu_finance", "mmlu_general", "mmlu_legal", "mmlu_medical"} and not parts
    mmlu = groups["mmlu"]
    assert (mmlu["score"], mmlu["num_tasks"], mmlu["num_members"]) == ("acc", 57, 57)
    assert [mmlu[key] for key in ("value", "chance", "constant", "baseline")] == pytest.approx([0.6, 0.25, 0.3, 0.3])
    assert mmlu["interval"] == pytest.approx([0.6 - 0.1 / 57**0.5, 0.6 + 0.1 / 57**0.5])


def test_a_group_of_several_metrics_has_no_score_of_one_metrics_name():
    groups, parts = run_group(["legalbench"], noncommercial=True)
    assert not groups
    metrics = "balanced_acc, citation_match, names_f1, rouge_l_f1, term_match, within_10_percent"
    assert parts["legalbench (162 of 162)"]["score"] == f"mean of {metrics}"
    groups, parts = run_group(["bloomberg_finance"], noncommercial=True)
    assert not groups and parts["bloomberg_finance (5 of 5)"]["score"] == "mean of entity_f1, f1, numeric_match"


def test_a_task_without_chance_leaves_the_group_without_one():
    tasks = score_tasks(["mmlu_jurisprudence", "mmlu_international_law", "mmlu_professional_law"])
    tasks["mmlu_jurisprudence"]["metrics"]["acc"]["chance"] = None
    groups, _ = average_groups(tasks, BENCHMARKS, False)
    assert groups["mmlu_legal"]["chance"] is None and groups["mmlu_legal"]["baseline"] == pytest.approx(0.3)


def test_tasks_of_one_size_have_draws_of_their_own_and_models_share_those_of_a_task():
    """With the same draws for 40 tasks of one order, the interval of their mean would be 6 times too wide."""
    first = {tuple(next(draws(f"task {number}", 200, seed=0))) for number in range(40)}
    assert len(first) == 40
    again = [tuple(draw) for draw in draws("task 7", 200, seed=0)]
    assert again[0] in first and len(again) == len(set(again)) == 1000
    values = np.repeat([1.0, 0.5], 100)
    scores = [measured(Mean(values), f"task {number}", 200, seed=0) for number in range(40)]
    _, (low, high) = combine([score["value"] for score in scores], [score["interval"] for score in scores])
    assert high - low == pytest.approx(2 * 1.96 * 0.25 / (200 * 40) ** 0.5, rel=0.1)
