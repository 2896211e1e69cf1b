# SPDX-License-Identifier: Apache-2.0
"""Each metric on 50 made-up cases gives what its reference gives: a package, or values by the official script's rules.

TAT-QA's cases are in test_metrics.py.
"""

import math
import re
import string
from pathlib import Path

import evaluate
import lm_eval.api.metrics
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from nltk.stem.porter import PorterStemmer
from sklearn.metrics import balanced_accuracy_score, f1_score

from benchmark_tasks import read_benchmarks
from item_scores import METRICS
from metrics.entity_f1.entity_f1 import count_entities


FOLDER = Path(__file__).resolve().parents[2] / "eval" / "metrics"


# Choices, against lm-eval

CHOICES = [
    ["yes", "no"],
    ["no", "yes", "maybe"],
    ["A", "B", "C", "D"],
    ["a motion", "a will of two pages", "a lien", "an order of the court"],
    ["negative", "neutral", "positive"],
    ["§ 12", "Gebühr", "naïve", "€ 5"],
    ["one", "two", "three", "four", "five"],
    ["The buyer pays.", "The seller, who knew of the defect, pays."],
    ["x", "xx", "xxx", "xxxx"],
    ["consideration", "res judicata", "mens rea", "estoppel"],
]
# For each of the choices above: five rows of (nats of each choice, nats without the question, index of the right one).
NATS = [
    [([1, 2], [1, 1], 0), ([2, 1], [3, 1], 0), ([2, 2], [1, 2], 1), ([0, 9], [0, 20], 1), ([3.1, 3], [3, 2.8], 0)],
    [([3, 2, 1], [1, 1, 1], 2), ([3, 2, 1], [4, 3, 0], 1), ([1, 1, 5], [1, 2, 6], 0), ([2, 4, 3], [2, 3, 1], 1)]
    + [([5, 4.9, 5.1], [5, 5, 5], 1)],
    [([4, 3, 2, 1], [0, 0, 0, 0], 3), ([1, 1, 1, 1], [1, 2, 3, 4], 0), ([2, 1, 2, 2], [2, 1, 3, 2], 2)]
    + [([9, 8, 9, 9], [1, 1, 1, 1], 0), ([0.5, 0.4, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4], 3)],
    [([6, 14, 5, 15], [5, 13, 5, 15], 2), ([8, 15, 6, 20], [8, 18, 6, 16], 1), ([8, 9, 10, 11], [2, 4, 6, 8], 3)]
    + [([1, 2, 3, 4], [4, 3, 2, 1], 0), ([7, 19, 6, 22], [7, 19, 6, 30], 3)],
    [([8, 7, 8], [8, 7, 8], 1), ([6, 7, 8], [3, 7, 9], 2), ([8, 7, 7.9], [9, 9, 9], 1), ([3, 2, 1], [1, 2, 3], 2)]
    + [([2.4, 2.1, 2.3], [2, 2, 2], 0)],
    [([4, 6, 5, 3], [4, 7, 5, 3], 1), ([3, 5, 4, 2], [1, 2, 3, 4], 3), ([4, 6.5, 5, 3], [2, 2, 2, 2], 0)]
    + [([2, 2, 2, 2], [2, 2, 3, 2], 2), ([9, 6, 5, 9], [1, 9, 1, 9], 1)],
    [
        ([3, 3, 5, 4, 4], [1, 1, 1, 1, 1], 0),
        ([5, 4, 3, 2, 1], [5, 4, 3, 2, 9], 4),
        ([3, 3, 5, 4, 4], [3, 3, 9, 4, 4], 2),
    ]
    + [([2, 2, 3.2, 2.8, 3], [2, 2, 2, 2, 2], 3), ([1, 2, 3, 4, 5], [9, 9, 9, 9, 20], 4)],
    [([10, 20], [10, 21], 1), ([15, 41], [15, 41], 0), ([15, 40], [12, 40], 1), ([9, 45], [9, 45], 0)]
    + [([20, 30], [5, 30], 1)],
    [([1, 2, 3, 4], [1, 1, 1, 1], 0), ([2, 3, 4, 5], [2, 3, 4, 9], 3), ([1, 1.9, 3, 4], [1, 1, 1, 1], 1)]
    + [([4, 4, 4, 4], [4, 4, 5, 4], 3), ([0.9, 2, 3, 3.7], [0, 0, 0, 0], 2)],
    [([13, 12, 8, 8], [13, 12, 9, 8], 2), ([12, 12, 9, 9], [14, 12, 9, 9], 0), ([10, 13, 9, 7], [10, 13, 9, 7], 3)]
    + [([11, 10, 8, 8], [12, 15, 8, 8], 1), ([6, 7, 8, 9], [1, 2, 3, 9], 3)],
]


def as_items(choices, rows):
    """Items as `score_requests` returns them."""
    return [
        {"id": str(number), "gold": gold, "nats": nats, "uncalibrated": prior}
        | {"characters": [len(choice) for choice in choices], "tokens": [len(choice.split()) for choice in choices]}
        | {"bytes": [len(choice.encode()) for choice in choices]}
        for number, (nats, prior, gold) in enumerate(rows)
    ]


def lm_eval_scores(choices, rows):
    """What lm-eval makes of the same likelihoods: a dictionary of its metrics for each row."""
    docs = Dataset.from_list([{"choices": choices, "gold": gold} for *_, gold in rows])
    names = ("acc", "acc_norm", "acc_mutual_info")
    task = ConfigurableTask(
        config={
            "task": "made_up",
            "custom_dataset": lambda **_: DatasetDict({"test": docs}),
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": lambda doc: "",
            "doc_to_choice": lambda doc: doc["choices"],
            "doc_to_target": lambda doc: doc["gold"],
            "metric_list": [{"metric": name} for name in names],
        }
    )
    return [
        task.process_results(doc, [(-cost, False) for cost in [*nats, *prior]])
        for doc, (nats, prior, _) in zip(docs, rows, strict=True)
    ]


@pytest.mark.parametrize(("choices", "rows"), zip(CHOICES, NATS, strict=True), ids=["/".join(c) for c in CHOICES])
def test_the_accuracies_are_those_of_lm_eval(choices, rows):
    items, expected = as_items(choices, rows), lm_eval_scores(choices, rows)
    names = {"acc": "acc", "acc_norm": "acc_norm", "acc_calibrated": "acc_mutual_info"}
    for name, theirs in names.items():
        for number, scores in enumerate(expected):
            assert METRICS[name](items)(np.array([number])) == scores[theirs], (name, rows[number])


def test_the_cases_tell_the_accuracies_apart():
    items = [item for choices, rows in zip(CHOICES, NATS, strict=True) for item in as_items(choices, rows)]
    assert len(items) == 50
    right = {
        name: tuple(METRICS[name](items[number : number + 1])(np.array([0])) for number in range(50))
        for name in ("acc", "acc_norm", "acc_per_token", "acc_calibrated")
    }
    assert len(set(right.values())) == 4 and all(10 < sum(values) < 45 for values in right.values())
    per_token = [
        min(range(len(item["nats"])), key=lambda k, item=item: item["nats"][k] / item["tokens"][k]) == item["gold"]
        for item in items
    ]
    assert right["acc_per_token"] == tuple(per_token)


def test_greedy_is_lm_evals_accuracy_of_a_cloze():
    task = ConfigurableTask(
        config={
            "task": "made_up",
            "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list([{"text": "a"}])}),
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "acc"}],
        }
    )
    written = [bool(number % 3) for number in range(50)]
    theirs = [task.process_results({"text": "a"}, [(-1.0, greedy)])["acc"] for greedy in written]
    items = [{"greedy": greedy} for greedy in written]
    assert METRICS["greedy"](items)(np.arange(50)) == np.mean(theirs) == 33 / 50


# Classes, against scikit-learn: right classes and chosen ones, a digit an item

CLASSES = """
0 0; 0 1; 1 1; 01 01; 01 10; 00 01; 001 000; 011 111; 012 012; 012 021; 012 111; 0012 0000; 0012 0021; 1122 2211;
000111 000000; 000111 111111; 000111 010101; 000001 000000; 000001 100001; 0123 0123; 0123 3210; 0123 0000; 00112233
01122330; 00000000 00000001; 02020202 00220022; 222 000; 222 222; 2200 0022; 0101010101 0101010100; 11111 11110; 0122
0120; 01222 22222; 3 3; 3 0; 33 30; 0033 0303; 012301230123 012301230120; 012301230123 000011112222; 001122 112200;
10 10; 10 00; 100 110; 1000 1110; 10000 00000; 21 12; 210 210; 2100 2111; 21000 01000; 444 440; 404040 040404
"""


@pytest.mark.parametrize("case", CLASSES.replace("\n", " ").strip().split(";"))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_class_metrics_are_those_of_scikit_learn(case):
    gold, chosen = ([int(digit) for digit in digits] for digits in case.split())
    nats = [[0.1 if k == pick else 2.0 for k in range(5)] for pick in chosen]
    sizes = {"tokens": [1] * 5, "characters": [1] * 5, "uncalibrated": [1.0] * 5}
    items = [{"gold": true, "nats": row} | sizes for true, row in zip(gold, nats, strict=True)]
    every = np.arange(len(items))
    expected = f1_score(gold, chosen, average="weighted", zero_division=0)
    for name in ("f1", "f1_per_token", "f1_calibrated"):
        assert METRICS[name](items)(every) == pytest.approx(expected)
    assert METRICS["balanced_acc"](items)(every) == pytest.approx(balanced_accuracy_score(gold, chosen))


def test_there_are_50_cases_of_classes():
    assert len(CLASSES.replace("\n", " ").strip().split(";")) == 50


# Written answers: lower case, one space between words, no full stop at the end

SAME = [
    ("yes", "Yes"), ("YES.", "yes"), (" yes ", "yes"), ("yes\n", "yes"), ("Acme  Corp", "acme corp"), ("12", "12"),
    ("12.", "12"), ("a\tb", "a b"), ("No...", "no"), ("", ""), (" ", ""), (".", ""), ("Émile", "émile"),
    ("1.5", "1.5"),
    ("the plaintiff", "The Plaintiff."), ("U.S.", "u.s"), ("U.S", "U.S."), ("smith v. jones", "Smith v. Jones"),
    ("ORG", "org"), ("no ", "No"), ("maybe", "Maybe"), ("$5", "$5"), ("5 %", "5 %"), ("ÜBER", "über"),
    ("a, b", "A, B"),
]  # fmt: skip
DIFFERENT = [
    ("yes", "no"), ("yes!", "yes"), ("the plaintiff", "plaintiff"), ("12", "12.0"), ("1,200", "1200"), ("a b", "ab"),
    ("yes.", "yes!"), ("", "yes"), ("yes", ""), ("Acme", "Acme Corp"), ("Acme Corp", "Acme"), ("5%", "5 %"),
    ("a-b", "a b"),
    ("naive", "naïve"), ("smith v jones", "smith v. jones"), ("(a)", "a"), ('"yes"', "yes"), ("yes, sir", "yes"),
    ("none", ""), ("0", ""), ("true", "yes"), ("b, a", "a, b"), ("12 13", "12"), ("colour", "color"), ("I", "1"),
]  # fmt: skip


@pytest.mark.parametrize("pairs", [SAME, DIFFERENT])
def test_exact_match_is_lm_evals_without_case_spaces_and_a_full_stop_at_the_end(pairs):
    assert len(pairs) == 25
    for prediction, target in pairs:
        texts = [re.sub(r"\s+", " ", text).strip() for text in (prediction, target)]
        theirs = lm_eval.api.metrics.exact_match_hf_evaluate(
            [texts[0]], [texts[1]], regexes_to_ignore=[r"\.+$"], ignore_case=True
        )["exact_match"]
        ours = METRICS["exact_match"]([{"prediction": prediction, "target": target}])(np.array([0]))
        assert ours == theirs == (pairs is SAME), (prediction, target)


# LegalBench's written answers, by the rules of its scripts

CASE_NAMES = ["Phillips v. AWH Corp.", "Jones v. Robinson Prop. Grp., L.P.", "In re Smith", "Roe", "U.S. v. O'Brien"]
CITATIONS = [
    "Phillips v. AWH Corp.", "phillips v awh corp", "See Phillips v. AWH Corp., 415 F.3d 1303 (Fed. Cir. 2005).",
    "Jones v. Robinson Prop. Grp., L.P., 427 F.3d 987", "Jones v. Robinson Property Group", "in re  Smith",
    "IN RE SMITH", "Roe v. Wade", "US v OBrien", "",
]  # fmt: skip
TERMS = ["authorize", "land", "hawkers and peddlers", "banking,bank", "Traffic"]
WRITTEN_TERMS = [
    "authorized", "“authorize”", "Lands.", "the land", "hawkers and peddler", "peddlers", "banks", "bill, banking",
    "trafficking", "",
]  # fmt: skip
AMOUNTS = ["$1000", "$0", "$28864", "$1", "12345"]
WRITTEN_AMOUNTS = [
    "$1,000", "The tax is $1,090.", "1100", "909", "$28,864.00", "section 1 gives 1000", "26000", "none", "-12345",
    "0",
]  # fmt: skip
NAMES = ["Juniper Networks, Inc.", "Kelly", "Ann Roe,Bob Poe", "Ann Roe, Bob Poe, Cy Low", "Roe"]
WRITTEN_NAMES = [
    "Juniper Networks, Inc.", "Juniper Networks Inc", "juniper networks", "Ryan Kelly", "Ann Roe, Bob Poe, Cy Low",
    "bob poe,ann roe", "Ann Roe and Bob Poe", "Roe, Roe", "Kelly, Jones, Smith", "",
]  # fmt: skip


def without_punctuation(text: str) -> str:
    return re.sub(f"[{re.escape(string.punctuation)}]", "", text).strip().lower()


def any_of_the_terms(prediction: str, target: str) -> bool:
    written, true = (
        [PorterStemmer().stem(without_punctuation(term)) for term in text.split(",")] for text in (prediction, target)
    )
    return any(term in true for term in written)


def first_number_within_a_tenth(prediction: str, target: str) -> bool:
    digits = re.findall("[0-9]+", re.sub("[,.]", "", prediction))
    number, true = int(digits[0]) if digits else 0, int(target.lstrip("$")) + 0.1
    return 0.9 < number / true < 1.1


def right_false_and_missing_names(prediction: str, target: str) -> tuple[int, int, int]:
    written = [without_punctuation(name) for name in prediction.split(",")]
    right = missing = 0
    for name in map(without_punctuation, target.split(",")):
        holders = [other for other in written if name in other]
        if holders:
            written.remove(holders[0])
            right += 1
        else:
            missing += 1
    return right, len(written), missing


OF_LEGALBENCH = {
    "citation_match": (
        CASE_NAMES, CITATIONS,
        lambda prediction, target: without_punctuation(target) in without_punctuation(prediction),
    ),
    "term_match": (TERMS, WRITTEN_TERMS, any_of_the_terms),
    "within_10_percent": (AMOUNTS, WRITTEN_AMOUNTS, first_number_within_a_tenth),
}  # fmt: skip


@pytest.mark.parametrize("metric", OF_LEGALBENCH)
def test_an_answer_is_right_by_legalbenchs_rule(metric):
    targets, predictions, rule = OF_LEGALBENCH[metric]
    cases = [(prediction, target) for target in targets for prediction in predictions]
    expected = [rule(*case) for case in cases]
    assert len(cases) == 50 and 5 <= sum(expected) <= 20
    for (prediction, target), right in zip(cases, expected, strict=True):
        found = METRICS[metric]([{"prediction": prediction, "target": target}])(np.array([0]))
        assert found == right, (prediction, target)


@pytest.mark.parametrize(
    ("metric", "prediction", "target", "score"),
    [
        ("citation_match", "see Phillips v AWH Corp (2005)", "Phillips v. AWH Corp.", 1),
        ("citation_match", "Phillips", "Phillips v. AWH Corp.", 0),
        ("term_match", "authorized", "authorize", 1),
        ("term_match", "authority", "authorize", 1),  # Porter stems both to "author"
        ("term_match", "permit", "authorize", 0),
        ("term_match", "bill, banks", "banking,bank", 1),
        ("within_10_percent", "The tax is $1,099.", "$1000", 1),
        ("within_10_percent", "$1,101", "$1000", 0),
        ("within_10_percent", "$1,000.50", "$1000", 0),
        ("within_10_percent", "nothing", "$1000", 0),
        ("names_f1", "Ann Roe, Bob Poe, Cy Low", "Ann Roe, Bob Poe, Cy Low", 1),
        ("names_f1", "Ann Roe", "Ann Roe,Bob Poe", 2 / 3),
        ("names_f1", "Ann Roe, Bob Poe", "Roe", 2 / 3),
        ("names_f1", "", "Roe", 0),
    ],
)
def test_legalbenchs_rules_on_known_cases(metric, prediction, target, score):
    assert METRICS[metric]([{"prediction": prediction, "target": target}])(np.array([0])) == pytest.approx(score)


def test_names_have_the_f1_of_legalbenchs_leaderboard():
    cases = [(prediction, target) for target in NAMES for prediction in WRITTEN_NAMES]
    counts = np.array([right_false_and_missing_names(*case) for case in cases])
    items = [{"prediction": prediction, "target": target} for prediction, target in cases]
    assert len(cases) == 50 and (counts.sum(0) > 20).all()
    f1 = METRICS["names_f1"](items)
    for draw in [*np.arange(50)[:, None], np.arange(50), np.array([4, 4, 17])]:
        right, false, missing = counts[draw].sum(0)
        assert f1(draw) == pytest.approx(2 * right / (2 * right + false + missing)), [cases[number] for number in draw]
    module = evaluate.load(str(FOLDER / "legalbench"), "ssla")
    scores = module.compute(predictions=[case[0] for case in cases], references=[case[1] for case in cases])
    assert scores == {"f1": f1(np.arange(50))}


def test_the_module_of_legalbench_has_a_configuration_for_each_rule():
    module = evaluate.load(str(FOLDER / "legalbench"), "sara_numeric")
    assert module.compute(predictions=["about $1,090", "12"], references=["$1000", "$1000"]) == {"accuracy": 0.5}
    with pytest.raises(ValueError, match="must be one of citation_prediction_open"):
        evaluate.load(str(FOLDER / "legalbench"))


def test_legalbenchs_tasks_with_written_answers_are_scored_by_its_rules():
    names = ["ssla_company_defendants", "ssla_individual_defendants", "ssla_plaintiff"]
    expected = {"citation_prediction_open": "citation_match", "definition_extraction": "term_match"}
    expected |= {"sara_numeric": "within_10_percent", "rule_qa": "rouge_l_f1"} | dict.fromkeys(names, "names_f1")
    tasks = [task for name, task in read_benchmarks().items() if name.startswith("legalbench_")]
    assert {task.dataset_name: task.metrics[0] for task in tasks if task.kind == "answer"} == expected
    assert {task.metrics[0] for task in tasks if task.kind == "choice"} == {"balanced_acc"}


# Numbers: FinQA's official script reads 1,200 and 12.5%, rounds results to five places and compares them

OFFICIAL = [
    ("5", "5"), ("5", "5.0"), ("5.0", "5"), ("6", "5"), ("-5", "5"), ("-5", "-5"), ("1,200", "1200"),
    ("1200", "1,200"),
    ("1,234,567", "1234567"), ("1,200", "1201"), ("0.125", "0.125"), ("12.5%", "0.125"), ("0.125", "12.5%"),
    ("125%", "1.25"), ("-12.5%", "-0.125"), ("12.5%", "12.5"), ("12.5", "12.5%"), ("0.12345", "0.12345"),
    ("0.123451", "0.12345"), ("0.12346", "0.12345"), ("-0.03846", "-0.03846"), ("-0.03846", "0.03846"), ("0", "0"),
    ("0.0", "0"), ("0", "1"), ("100%", "1"), ("1%", "0.01"), ("0.01", "0.02"), ("3.0", "3"), ("380.0", "380"),
    ("yes", "yes"), ("no", "no"), ("yes", "no"), ("", "5"), ("n/a", "5"), ("five", "5"), ("5", "yes"), ("yes", "1"),
    ("99999", "99999"), ("99999", "99998"),
]  # fmt: skip
# In these the script, made for the results of programs, reads no number or another one. A written answer is read as a
# person would, and may be rounded as the reference is.
READ_AS_WRITTEN = [
    ("$5", "5", True), ("€ 5", "5", True), ("(3.2)", "-3.2", True), ("1.2 billion", "1,200,000,000", True),
    ("about 5", "5", True), ("0.1259", "0.126", True), ("0.12", "0.126", False), ("5 or 6", "5", False),
    ("12.5 percent", "0.125", True), ("\u22123.2", "-3.2", True),
]  # fmt: skip


def finqa_number(text: str) -> float | None:
    try:
        return float(text.replace(",", "").removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def test_numbers_match_as_in_finqas_script_and_where_it_reads_none_as_written():
    cases = []
    for prediction, target in OFFICIAL:
        numbers = [finqa_number(text) for text in (prediction, target)]
        known = [prediction, target] if None in numbers else [round(number, 5) for number in numbers]
        cases.append((prediction, target, known[0] == known[1]))
    assert {right for *_, right in cases} == {True, False} and len(cases + READ_AS_WRITTEN) == 50
    for prediction, target, right in cases + READ_AS_WRITTEN:
        item = {"prediction": prediction, "target": target}
        assert METRICS["numeric_match"]([item])(np.array([0])) == right, (prediction, target)


# Entities: prediction, reference, and how many are right, predicted and in the reference

ENTITIES = [
    ("Acme (ORG)", "Acme (ORG)", 1, 1, 1),
    ("acme (org)", "Acme (ORG)", 1, 1, 1),
    ("Acme  (ORG)", "Acme (ORG)", 1, 1, 1),
    ("Acme(ORG)", "Acme (ORG)", 1, 1, 1),
    ("Acme (ORG).", "Acme (ORG)", 1, 1, 1),
    (" Acme (ORG) ", "Acme (ORG)", 1, 1, 1),
    ("Acme (PER)", "Acme (ORG)", 0, 1, 1),
    ("Acme Corp (ORG)", "Acme (ORG)", 0, 1, 1),
    ("Acme", "Acme (ORG)", 0, 1, 1),
    ("(ORG)", "Acme (ORG)", 0, 1, 1),
    ("", "Acme (ORG)", 0, 0, 1),
    ("none", "Acme (ORG)", 0, 0, 1),
    ("None.", "Acme (ORG)", 0, 0, 1),
    ("none", "none", 0, 0, 0),
    ("", "none", 0, 0, 0),
    ("Acme (ORG)", "none", 0, 1, 0),
    ("nothing", "none", 0, 1, 0),
    ("Acme (ORG), Jane (PER)", "Acme (ORG), Jane (PER)", 2, 2, 2),
    ("Jane (PER), Acme (ORG)", "Acme (ORG), Jane (PER)", 2, 2, 2),
    ("Jane (PER),Acme (ORG)", "Acme (ORG), Jane (PER)", 2, 2, 2),
    ("Jane (PER) , Acme (ORG)", "Acme (ORG), Jane (PER)", 2, 2, 2),
    ("Jane (PER)", "Acme (ORG), Jane (PER)", 1, 1, 2),
    ("Jane (ORG), Acme (PER)", "Acme (ORG), Jane (PER)", 0, 2, 2),
    ("Acme (ORG), Acme (ORG)", "Acme (ORG)", 1, 2, 1),
    ("Acme (ORG)", "Acme (ORG), Acme (ORG)", 1, 1, 2),
    ("Acme (ORG), Acme (ORG)", "Acme (ORG), Acme (ORG)", 2, 2, 2),
    ("Acme (ORG), Acme (ORG), Acme (ORG)", "Acme (ORG), Acme (ORG)", 2, 3, 2),
    ("Acme (ORG), Acme (LOC)", "Acme (ORG)", 1, 2, 1),
    ("Smith, Jones & Co (ORG)", "Smith, Jones & Co (ORG)", 1, 1, 1),
    ("Smith (ORG), Jones & Co (ORG)", "Smith, Jones & Co (ORG)", 0, 2, 1),
    ("Bank (of) England (ORG)", "Bank (of) England (ORG)", 1, 1, 1),
    ("New York (LOC), Paris (LOC)", "Paris (LOC), London (LOC)", 1, 2, 2),
    ("New York (LOC)\n", "New York (LOC)", 1, 1, 1),
    ("New\tYork (LOC)", "new york (loc)", 1, 1, 1),
    ("U.S. (LOC)", "U.S. (LOC)", 1, 1, 1),
    ("US (LOC)", "U.S. (LOC)", 0, 1, 1),
    ("Zürich (LOC)", "ZÜRICH (LOC)", 1, 1, 1),
    ("Zurich (LOC)", "Zürich (LOC)", 0, 1, 1),
    ("Acme (ORG); Jane (PER)", "Acme (ORG), Jane (PER)", 0, 1, 2),
    ("Acme (ORG), and Jane (PER)", "Acme (ORG), Jane (PER)", 1, 2, 2),
    ("Acme (ORG) Jane (PER)", "Acme (ORG), Jane (PER)", 0, 1, 2),
    ("The entities: Acme (ORG)", "Acme (ORG)", 0, 1, 1),
    ("Acme (ORG), none", "Acme (ORG)", 1, 2, 1),
    ("Acme (ORG),", "Acme (ORG)", 1, 1, 1),
    ("Acme (ORG), , Jane (PER)", "Acme (ORG), Jane (PER)", 1, 2, 2),
    ("A (ORG), B (ORG), C (ORG)", "C (ORG), D (ORG)", 1, 3, 2),
    ("A (ORG), B (PER), C (LOC)", "A (ORG), B (PER), C (LOC)", 3, 3, 3),
    ("A (ORG), B (PER), C (LOC)", "A (PER), B (LOC), C (ORG)", 0, 3, 3),
    ("3M (ORG)", "3M (ORG)", 1, 1, 1),
    ("A (B-ORG)", "A (ORG)", 0, 1, 1),
]


def test_entities_count_if_name_and_type_are_right_at_most_as_often_as_in_the_reference():
    assert len(ENTITIES) == 50
    for prediction, reference, *counts in ENTITIES:
        assert list(count_entities(prediction, reference)) == counts, (prediction, reference)
    right, predicted, true = (sum(case[place] for case in ENTITIES) for place in (2, 3, 4))
    items = [{"prediction": case[0], "target": case[1]} for case in ENTITIES]
    found = METRICS["entity_f1"](items)(np.arange(50))
    assert found == pytest.approx(2 / (predicted / right + true / right)), "the harmonic mean of precision and recall"
    module = evaluate.load(str(FOLDER / "entity_f1"))
    scores = module.compute(predictions=[case[0] for case in ENTITIES], references=[case[1] for case in ENTITIES])
    assert scores == {"f1": found, "precision": right / predicted, "recall": right / true}


# ROUGE-L, against its definition: the longest common subsequence of stemmed words

SENTENCES = [
    "The court denied the motion to dismiss.", "The court denies all motions.", "the court", "Motion denied", "",
    "The tenant shall repair the roof within thirty days.", "Within thirty days the tenants repaired the roofs",
    "No party may assign this agreement.", "This agreement may not be assigned by any party.", "42 U.S.C. § 1983",
]  # fmt: skip


def rouge_l(prediction: str, reference: str) -> float:
    def words(text: str) -> list[str]:
        found = re.findall(r"[a-z0-9]+", text.lower())
        return [PorterStemmer().stem(word) if len(word) > 3 else word for word in found]

    a, b = words(prediction), words(reference)
    longest = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, first in enumerate(a):
        for j, second in enumerate(b):
            longest[i + 1, j + 1] = max(longest[i, j] + (first == second), longest[i, j + 1], longest[i + 1, j])
    common = longest[-1, -1]
    return 2 * common / (len(a) + len(b)) if common else 0.0


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    pairs = [(a, b) for a in SENTENCES for b in SENTENCES][::2]
    assert len(pairs) == 50
    items = [{"prediction": a, "target": b} for a, b in pairs]
    expected = [rouge_l(a, b) for a, b in pairs]
    score = METRICS["rouge_l_f1"](items)
    assert [score(np.array([number])) for number in range(50)] == pytest.approx(expected)
    assert score(np.arange(50)) == pytest.approx(np.mean(expected)) and sum(0 < one < 1 for one in expected) > 5


# Bits per byte, against lm-eval

TEXTS = ["a", "ab", "The court.", "Zürich", "§ 12", "東京", "🙂", "\n", " ", "a\u0301"]
COSTS = [0.0, 0.5, math.log(2), 7.25, 1e4]


def test_bits_per_byte_are_those_of_lm_eval():
    module, cases = evaluate.load(str(FOLDER / "bits_per_byte")), [(text, cost) for text in TEXTS for cost in COSTS]
    assert len(cases) == 50
    for text, cost in cases:
        theirs = lm_eval.api.metrics.bits_per_byte([(-cost, len(text.encode("utf-8")))])
        assert module.compute(predictions=[cost], references=[text])["bits_per_byte"] == pytest.approx(theirs)
    theirs = lm_eval.api.metrics.bits_per_byte([(-cost, len(text.encode("utf-8"))) for text, cost in cases])
    texts, costs = zip(*cases, strict=True)
    together = module.compute(predictions=list(costs), references=list(texts))
    assert together == {"bits_per_byte": pytest.approx(theirs), "total_bytes": 5 * sum(len(t.encode()) for t in TEXTS)}
