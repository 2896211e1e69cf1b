# SPDX-License-Identifier: Apache-2.0
"""Exact match of numbers in any notation: `$1,234.50`, `(3.2)`, `12.5 %`."""

import re

import datasets
import evaluate


_DESCRIPTION = """
Exact match of numeric answers, as in FinQA, ConvFinQA and TAT-QA. Currency signs, thousands separators and units are
ignored, parentheses mean minus, and a percentage is divided by 100. Two numbers match if they agree to the decimal
places of the reference. Answers without a number match as text, ignoring case and spaces.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: what the model wrote (text).
    references: the right answer (text).
Returns:
    numeric_match: fraction of the answers that match, 0 to 1.
Example:
    >>> metric = evaluate.load("numeric_match")
    >>> metric.compute(predictions=["$ 1,200", "no"], references=["1200.0", "yes"])["numeric_match"]
    0.5
"""
NUMBER = re.compile(r"(?P<open>\()?\s*(?P<minus>[-\u2212])?\s*[$\u20ac\u00a3]?\s*(?P<minus2>[-\u2212])?"
                    r"(?P<digits>\d[\d,]*\.?\d*|\.\d+)\s*(?P<close>\))?\s*(?P<percent>%|percent\b)?")  # fmt: skip


def read_number(text: str) -> tuple[float, int] | None:
    """Return the first number of a text and its decimal places; None if there is no number."""
    match = NUMBER.search(text)
    if match is None:
        return None
    digits = match["digits"].replace(",", "").rstrip(".")
    places = len(digits.partition(".")[2])
    value = float(digits)
    if match["minus"] or match["minus2"] or (match["open"] and match["close"]):
        value = -value
    return (value / 100, places + 2) if match["percent"] else (value, places)


def numbers_match(prediction: str, reference: str) -> bool:
    predicted, true = read_number(prediction), read_number(reference)
    if predicted is None or true is None:
        return " ".join(prediction.lower().split()).rstrip(".") == " ".join(reference.lower().split()).rstrip(".")
    places = min(true[1], 5)  # FinQA's executed answers have five; more is rounding
    return abs(predicted[0] - true[0]) <= 0.5 * 10**-places * (1 + 1e-9) if places else predicted[0] == true[0]


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class NumericMatch(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        matches = [numbers_match(*pair) for pair in zip(predictions, references, strict=True)]
        return {"numeric_match": sum(matches) / len(matches)}
