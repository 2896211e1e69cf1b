# SPDX-License-Identifier: Apache-2.0
"""Exact match of numbers in any notation: `$1,234.50`, `(3.2)`, `12.5 %`."""

import re

import datasets
import evaluate


_DESCRIPTION = """
Exact match of numeric answers, as in FinQA and ConvFinQA. Currency signs and thousands separators are ignored,
parentheses mean minus, a percentage is divided by 100, and scale words (million) are multiplied out. The prediction
must have exactly one number, which matches if it agrees with the reference to the reference's decimal places. If the
reference is more than a number, both must match as text, ignoring case and spaces.
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
NUMBER = re.compile(
    r"(?P<open>\()?\s*(?P<minus>[-\u2212])?\s*[$\u20ac\u00a3]?\s*(?P<minus2>[-\u2212])?"
    r"(?P<digits>\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)\s*(?P<close>\))?"
    r"\s*(?:(?P<percent>%|percent\b)|(?P<scale>(?:thousand|million|billion)\b))?\s*(?P<close2>\))?",
    re.IGNORECASE,
)
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def read_number(match: re.Match) -> tuple[float, float]:
    """Return a number and how far another may be from it to round to the same decimal places."""
    digits = match["digits"].replace(",", "")
    places = len(digits.partition(".")[2])
    factor = SCALES.get((match["scale"] or "").lower(), 1) / (100 if match["percent"] else 1)
    value = float(digits) * factor
    if match["minus"] or match["minus2"] or (match["open"] and (match["close"] or match["close2"])):
        value = -value
    if not places and not match["percent"]:
        return value, 0.0
    return value, 0.5 * max(10.0**-places * factor, 1e-5)  # FinQA rounds executed answers to five places


def numbers_match(prediction: str, reference: str) -> bool:
    true, predicted = NUMBER.fullmatch(reference.strip().rstrip(".")), list(NUMBER.finditer(prediction))
    if true is None:
        return " ".join(prediction.lower().split()).rstrip(".") == " ".join(reference.lower().split()).rstrip(".")
    if len(predicted) != 1:
        return False
    (value, tolerance), (found, _) = read_number(true), read_number(predicted[0])
    return abs(found - value) <= tolerance * (1 + 1e-9)


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
