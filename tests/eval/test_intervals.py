# SPDX-License-Identifier: Apache-2.0
"""Intervals of nominally 95 % cover the truth in 93 to 97 %, p-values are corrected, constant models are not above."""

import numpy as np
import pytest
from scipy.stats import binom

import held_out_scores
import intervals
from intervals import Mean, combine, holm, measured, paired
from item_scores import METRICS, score_items


TRIALS = 500


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 200)


def wilson(right: int, size: int) -> list[float]:
    values = np.zeros(size)
    values[:right] = 1
    return measured(Mean(values), "task", size, seed=0)["interval"]


def choices(gold, chosen, classes=3):
    return [
        {"gold": int(true), "nats": [0.1 if k == pick else 2.0 for k in range(classes)], "bytes": [4] * classes}
        for true, pick in zip(gold, chosen, strict=True)
    ]


@pytest.mark.parametrize("size", [48, 118])
def test_the_interval_of_a_proportion_covers_it(size):
    """Exactly, by the binomial distribution, averaged over true proportions of 0.2 to 0.8."""
    bounds = np.array([wilson(right, size) for right in range(size + 1)])
    covered = [
        binom.pmf(np.arange(size + 1), size, share)[(bounds[:, 0] <= share) & (share <= bounds[:, 1])].sum()
        for share in np.linspace(0.2, 0.8, 121)
    ]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_all_right_is_not_certain():
    assert wilson(48, 48) == pytest.approx([0.9259, 1.0], abs=1e-4)
    assert wilson(0, 48) == pytest.approx([0.0, 0.0741], abs=1e-4)
    gold = np.repeat([0, 1, 2], 16)
    low, high = measured(METRICS["balanced_acc"](choices(gold, gold)), "task", 48, seed=0)["interval"]
    assert low == pytest.approx(1 - (1 - 16 / (16 + 1.959964**2)) / 3**0.5) and high == pytest.approx(1)


def test_the_interval_of_a_group_covers_its_mean():
    generator, covered = np.random.default_rng(0), 0
    shares = generator.uniform(0.2, 0.9, size=12)
    bounds = np.array([wilson(right, 60) for right in range(61)])
    for _ in range(2000):
        right = generator.binomial(60, shares)
        low, high = combine(right / 60, bounds[right])[1]
        covered += low <= shares.mean() <= high
    assert 0.93 <= covered / 2000 <= 0.97


@pytest.mark.parametrize("families", [30, 100])
def test_the_interval_of_bits_per_byte_covers_them_where_documents_come_in_families(families, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 500)
    generator, covered = np.random.default_rng(0), 0
    for trial in range(TRIALS):
        documents = []
        for family, bits in enumerate(generator.normal(2.0, 0.4, size=families)):
            for size in generator.lognormal(7, 0.8, size=1 + generator.poisson(1.5)).astype(int):
                cost = (bits + generator.normal(0, 0.1)) * np.log(2) * size
                documents.append({"family": family, "nats": cost, "bytes": int(size), "tokens": 1, "restored": True})
        low, high = held_out_scores.summed(f"trial {trial}", documents, {}, seed=0)["confidence_interval"]
        covered += low <= 2.0 <= high
    assert 0.93 <= covered / TRIALS <= 0.97


@pytest.mark.parametrize("metric", ["f1", "balanced_acc"])
def test_the_interval_of_a_class_metric_covers_it(metric):
    confusion, shares = np.array([[0.7, 0.2, 0.1], [0.15, 0.7, 0.15], [0.2, 0.2, 0.6]]), np.array([0.5, 0.3, 0.2])
    joint = confusion * shares[:, None]
    recall, precision = np.diag(confusion), np.diag(joint) / joint.sum(0)
    truth = {"f1": (2 * recall * precision / (recall + precision) * shares).sum(), "balanced_acc": recall.mean()}
    generator, covered = np.random.default_rng(0), 0
    for trial in range(TRIALS):
        gold, chosen = np.divmod(generator.choice(9, size=150, p=joint.ravel()), 3)
        score = METRICS[metric](choices(gold, chosen))
        low, high = measured(score, f"trial {trial}", 150, seed=0)["interval"]
        covered += low <= truth[metric] <= high
    assert 0.93 <= covered / TRIALS <= 0.97


def test_the_interval_of_a_paired_difference_covers_it():
    generator, covered, found = np.random.default_rng(0), 0, 0
    for trial in range(TRIALS):
        easy = generator.random(200)
        right = [(generator.random(200) < 0.2 + 0.6 * easy + gain).astype(float) for gain in (0, 0.1, 0)]
        first, other, same = map(Mean, right)
        low, high = paired(first, other, f"trial {trial}", 200, seed=0)["interval"]
        covered += low <= 0.1 <= high
        found += paired(first, same, f"trial {trial}", 200, seed=0)["p_value"] < 0.05
    assert 0.93 <= covered / TRIALS <= 0.97
    assert found / TRIALS <= 0.07


def test_holms_correction_bounds_the_chance_of_any_false_difference():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # by hand
    generator = np.random.default_rng(0)
    tables = generator.random((2000, 60))
    assert np.mean([min(table) < 0.05 for table in tables]) > 0.9, "uncorrected"
    assert 0.03 <= np.mean([min(holm(table.tolist())) < 0.05 for table in tables]) <= 0.07


LABELS = ["no", "maybe", "yes"]


@pytest.mark.parametrize("metric", ["acc", "f1", "balanced_acc"])
@pytest.mark.parametrize("answer", range(3))
def test_a_model_that_always_gives_one_answer_is_never_above_its_baseline(metric, answer):
    generator = np.random.default_rng(answer)
    for trial in range(10):
        gold = generator.choice(3, size=100, p=[0.15, 0.25, 0.6])
        entry = score_items(f"trial {trial}", choices(gold, [answer] * 100), [metric], 0, LABELS)["metrics"][metric]
        assert entry["baseline"] == max(entry["chance"], entry["constant"])
        assert entry["interval"][0] <= entry["baseline"] and entry["value"] <= entry["constant"] + 1e-12
    assert entry["constant_answer"] == "yes" or metric == "balanced_acc"


def test_written_answers_are_compared_with_the_most_frequent_one_and_choices_in_full_text_with_none():
    written = [{"prediction": "7", "target": target} for target in ["yes", "Yes.", "no", "12"]]
    entry = score_items("task", written, ["exact_match"], 0, [])["metrics"]["exact_match"]
    assert (entry["chance"], entry["constant"], entry["constant_answer"], entry["baseline"]) == (None, 0.5, "yes", 0.5)
    entry = score_items("task", choices([0, 0, 0], [0, 0, 0]), ["acc"], 0, [None, None, None])["metrics"]["acc"]
    assert (entry["constant"], entry["constant_answer"]) == (None, None)
    assert entry["baseline"] == entry["chance"] == pytest.approx(1 / 3)
