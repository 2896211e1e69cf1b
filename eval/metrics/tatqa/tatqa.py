# SPDX-License-Identifier: Apache-2.0
"""TAT-QA's exact match and F1 of written answers, where a number matches in any notation."""

import re
import string

import datasets
import evaluate


_DESCRIPTION = """
Exact match and F1 as TAT-QA scores answers without a separate scale. Both answers become lower-case words without
punctuation and articles; numbers become their values: commas and currency signs are dropped, parentheses mean minus, a
percentage is divided by 100, and scale words are multiplied out. Exact match compares the words in order. F1 compares
the two sets of words and is rounded to two places. An empty prediction scores 0.
Source: https://github.com/NExTplusplus/TAT-QA, tatqa_metric.py.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: what the model wrote (text).
    references: the right answer (text).
Returns:
    exact_match, f1: means over the answers, 0 to 1.
Example:
    >>> metric = evaluate.load("tatqa")
    >>> metric.compute(predictions=["$1,200", "the cloud revenue"], references=["1200.0", "cloud"])["exact_match"]
    0.5
"""
_CITATION = """
@inproceedings{zhu2021tatqa,
    title={TAT-QA: A Question Answering Benchmark on a Hybrid of Tabular and Textual Content in Finance},
    author={Zhu, Fengbin and others},
    booktitle={ACL},
    year={2021}
}
"""
NOT_IN_NUMBERS = str.maketrans("", "", "'\"\\$€£¥%(),[]")
PUNCTUATION = str.maketrans("", "", string.punctuation)
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "percent": 0.01}


def scale_of(text: str) -> float:
    return next((factor for word, factor in SCALES.items() if word in text.lower()), 1)


def is_number(text: str) -> bool:
    """Return whether a text starts with a number, followed at most by a scale word."""
    words = " ".join(word.translate(NOT_IN_NUMBERS) for word in text.split()).split()
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return False
    return value == value and (len(words) == 1 or scale_of(words[1]) != 1)


def to_number(text: str) -> float | None:
    """Return the first number of a text, with its sign, scale and percent sign, to four places; None without digits
    before the decimal point, as in the official script.
    """
    found = re.search(r"([+-]?\d+(?:\.\d+)?)|[+-]?\.\d+", text.translate(NOT_IN_NUMBERS))
    if found is None or found[1] is None:
        return None
    value = float(found[1]) if "." in found[1] else int(found[1])
    scaled = re.search(r"[\d.]+\s?[a-zA-Z]+", text)
    value *= scale_of(scaled[0]) if scaled else 1
    value *= -1 if re.search(r"\([\d.\s%]+\)", text) else 1
    return round(value * (0.01 if re.search(r"[\d.\s]+%", text) else 1), 4)


def normalise(answer: str, places: int = 2) -> list[str]:
    """Return the words of an answer that are compared. A number that is the whole answer is rounded to places."""
    value = to_number(answer) if is_number(answer) else None
    if value is not None:
        answer = f"{value if '%' in answer else round(value, places):.4f}"
    words = []
    for word in answer.lower().split(" "):
        word = word if is_number(word) else word.translate(PUNCTUATION)
        value = to_number(word) if is_number(word) else None
        words += [str(value)] if value is not None else re.sub(r"\b(a|an|the)\b", " ", word).split()
    return words


def tatqa_scores(prediction: str, reference: str) -> tuple[float, float]:
    """Return exact match and F1 of one answer.

    A prediction that is a number counts rounded to two places or to four, so that 0.2342 is 23.42 %.
    """
    if not prediction:
        return 0.0, 0.0
    true, scores = normalise(reference), []
    for predicted in (normalise(prediction), normalise(prediction, places=4)):
        common = len(set(predicted) & set(true))
        precision, recall = (common / len(set(words)) if words else 1.0 for words in (predicted, true))
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        scores.append((float(predicted == true), round(f1, 2)))
    return max(scores)


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class TatQa(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        scores = [tatqa_scores(*pair) for pair in zip(predictions, references, strict=True)]
        exact, f1 = (sum(column) / len(scores) for column in zip(*scores, strict=True))
        return {"exact_match": exact, "f1": f1}
