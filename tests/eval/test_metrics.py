# SPDX-License-Identifier: Apache-2.0
"""The metrics on hand-made answers, and against scikit-learn where it has the same."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from item_scores import METRICS, chance_level, score_items
from metrics.tatqa.tatqa import tatqa_scores


FOLDER = Path(__file__).resolve().parents[2] / "eval" / "metrics"


def choices(golds, chosen, classes=3):
    """Items of which a model prefers the chosen answer."""
    return [
        {"id": str(n), "gold": gold, "nats": [0.1 if k == pick else 2.0 for k in range(classes)]}
        | {"bytes": [4] * classes, "tokens": [1] * classes, "characters": [4] * classes}
        for n, (gold, pick) in enumerate(zip(golds, chosen, strict=True))
    ]


def test_modules_load_with_evaluate_from_their_folder():
    f1 = evaluate.load(str(FOLDER / "entity_f1"))
    assert f1.compute(predictions=["Acme (ORG)"], references=["Acme (ORG), Jane Doe (PER)"])["recall"] == 0.5
    numbers = evaluate.load(str(FOLDER / "numeric_match"))
    assert numbers.compute(predictions=["$ 1,200", "no"], references=["1200.0", "yes"])["numeric_match"] == 0.5
    tatqa = evaluate.load(str(FOLDER / "tatqa"))
    found = tatqa.compute(predictions=["$1,200", "the cloud revenue"], references=["1200.0", "cloud"])
    assert found == {"exact_match": 0.5, "f1": pytest.approx(0.835)}
    bits = evaluate.load(str(FOLDER / "bits_per_byte"))
    assert bits.compute(predictions=[4 * np.log(2)], references=["abcd"])["bits_per_byte"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("prediction", "target", "right"),
    [
        ("(3.2)", "-3.2", True),
        ("12.5 %", "0.125", True),
        ("1,234", "1234.0", True),
        ("0.1259", "0.126", True),
        ("0.12", "0.126", False),
        ("13", "12", False),
        ("Yes.", "yes", True),
        ("", "12", False),
        ("1.2 billion", "1,200,000,000", True),
        ("$(3.2) million", "-3200000", True),
        ("about 12.5 %", "0.125", True),
        ("12.4 percent", "12 %", True),
        ("1.2", "1.2 billion", False),
        ("2019", "2019, 2018", False),
        ("2019 was a bad year", "2019 revenue from cloud services", False),
        ("2019 revenue  from Cloud services.", "2019 revenue from cloud services", True),
        ("12 in 2019", "12", False),
        ("2019", "fiscal 2019", False),
    ],
)
def test_numbers_match_in_any_notation(prediction, target, right):
    item = {"prediction": prediction, "target": target}
    assert METRICS["numeric_match"]([item])(np.array([0])) == right


# Exact match and F1 of the official script, tatqa_metric.py, for these pairs.
TATQA = [
    ("2019 was a bad year", "2019 revenue from cloud services", 0.0, 0.22),
    ("2019", "2019, 2018", 0.0, 0.0),
    ("2018, 2019", "2019, 2018", 0.0, 1.0),
    ("1.2", "1.2 billion", 0.0, 0.0),
    ("1.2 billion", "1200000000", 1.0, 1.0),
    ("$1,496.5", "1496.5", 1.0, 1.0),
    ("1,496.5", "$1,496.5 million", 0.0, 0.0),
    ("(134)", "-134", 1.0, 1.0),
    ("(3.2%)", "-0.032", 0.0, 0.0),
    ("(1,200)", "-1200", 0.0, 0.0),
    ("12.5%", "0.125", 0.0, 0.0),
    ("0.125", "12.5%", 1.0, 1.0),
    ("0.2342", "23.42%", 1.0, 1.0),
    ("23.42", "23.42%", 0.0, 0.0),
    ("23.42%", "23.42 percent", 0.0, 0.0),
    ("0.23", "23.42%", 0.0, 0.0),
    ("12.345", "12.35", 1.0, 1.0),
    ("12.344", "12.35", 0.0, 0.0),
    ("5", "5.0", 1.0, 1.0),
    ("-7", "(7)", 1.0, 1.0),
    ("€12.3", "12.3", 1.0, 1.0),
    ("£ 3", "3", 1.0, 1.0),
    ("The revenue", "revenue", 1.0, 1.0),
    ("revenue", "a revenue", 1.0, 1.0),
    ("revenue from the cloud", "cloud revenue", 0.0, 0.8),
    ("Cloud Services", "cloud services.", 1.0, 1.0),
    ("cloud-services", "cloud services", 0.0, 0.0),
    ("U.S. operations", "US operations", 1.0, 1.0),
    ("", "", 0.0, 0.0),
    ("", "2019", 0.0, 0.0),
    (" ", "2019", 0.0, 0.0),
    ("the", "2019", 0.0, 0.0),
    ("none", "none", 1.0, 1.0),
    ("yes", "Yes.", 1.0, 1.0),
    ("no", "yes", 0.0, 0.0),
    ("5 apples", "5 apples", 1.0, 1.0),
    ("5 apples", "6 apples", 0.0, 0.5),
    ("in 2019", "2019", 0.0, 0.0),
    ("2019;", "2019", 0.0, 0.0),
    ("$5 million", "5000000", 1.0, 1.0),
    ("5 million dollars", "5 million", 1.0, 1.0),
    ("5 thousand", "5,000", 1.0, 1.0),
    ("about 12.5 %", "12.5%", 0.0, 0.0),
    ("12.5 %", "12.5%", 1.0, 1.0),
    ("interest expense, net; other income", "other income; interest expense, net", 0.0, 1.0),
    ("interest expense", "interest expense interest", 0.0, 1.0),
    ("0", "0.00", 1.0, 1.0),
    ("0.004", "0", 1.0, 1.0),
    ("1,234,567", "1234567", 1.0, 1.0),
    ("three", "3", 0.0, 0.0),
    ("10-K", "10-K filing", 0.0, 0.67),
    ("December 31, 2019", "31 December 2019", 0.0, 1.0),
    ("2.5x", "2.5x", 1.0, 1.0),
    ("+3.5", "3.5", 1.0, 1.0),
    ("12 hundred", "1200", 1.0, 1.0),
]


@pytest.mark.parametrize(("prediction", "target", "exact_match", "f1"), TATQA)
def test_tatqa_scores_are_those_of_its_official_script(prediction, target, exact_match, f1):
    assert tatqa_scores(prediction, target) == (exact_match, f1)


@pytest.mark.parametrize(
    ("prediction", "target", "value"),
    [
        ("Acme (ORG), Jane (PER)", "Jane (PER), Acme (ORG)", 1),
        ("Acme (PER)", "Acme (ORG)", 0),
        ("none", "none", 0),
        ("Acme", "Acme (ORG), Jane (PER), X (LOC)", 0),
    ],
)
def test_an_entity_is_found_with_its_type(prediction, target, value):
    assert METRICS["entity_f1"]([{"prediction": prediction, "target": target}])(np.array([0])) == value


def test_class_metrics_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    golds, chosen = generator.integers(3, size=200), generator.integers(3, size=200)
    items, every = choices(golds.tolist(), chosen.tolist()), np.arange(200)
    assert METRICS["f1"](items)(every) == pytest.approx(f1_score(golds, chosen, average="weighted"))
    assert METRICS["balanced_acc"](items)(every) == pytest.approx(balanced_accuracy_score(golds, chosen))


def test_rouge_l_is_the_longest_common_subsequence_of_stemmed_words():
    items = [
        {
            "prediction": "The court denied the motions",
            "target": "the court denies a motion",
        },  # 4 of 5 words, both ways
        {"prediction": "nothing of that", "target": "relief"},
    ]
    assert METRICS["rouge_l_f1"](items[:1])(np.arange(1)) == pytest.approx(0.8)
    assert METRICS["rouge_l_f1"](items)(np.arange(2)) == pytest.approx(0.4)
    assert METRICS["rouge_l_f1"](items)(np.array([1, 1])) == 0


def test_tags_are_scored_one_by_one():
    items = choices([0, 0, 1, 1], [0, 0, 0, 0], classes=2)
    for item, tag in zip(items, ["up", "up", "down", "down"], strict=True):
        item["tag"] = tag
    assert METRICS["f1"](items)(np.arange(4)) == 0.5


def test_calibration_divides_by_what_the_answer_costs_anyway():
    items = choices([1], [0], classes=2)
    items[0]["uncalibrated"] = [0.1, 3.0]  # the first answer is as likely without the question
    assert METRICS["acc"](items)(np.array([0])) == 0
    assert METRICS["acc_calibrated"](items)(np.array([0])) == 1


def test_a_perfect_and_a_guessing_model_score_1_and_chance():
    generator = np.random.default_rng(1)
    golds = generator.integers(3, size=300).tolist()
    perfect = score_items("task", choices(golds, golds), ["acc", "f1"], 0, [])
    assert perfect["metrics"]["f1"]["value"] == 1
    low, high = perfect["metrics"]["acc"]["interval"]  # Wilson's: n / (n + z^2)
    assert (low, high) == (pytest.approx(300 / (300 + 1.959964**2)), pytest.approx(1))
    assert perfect["probability_margin"]["value"] > 0.6
    guessed = score_items("task", choices(golds, generator.integers(3, size=300).tolist()), ["acc", "f1"], 0, [])
    for score in guessed["metrics"].values():
        assert score["interval"][0] < score["chance"] < score["interval"][1]
    assert chance_level("numeric_match", [], 0) is None
