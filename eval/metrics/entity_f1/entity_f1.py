# SPDX-License-Identifier: Apache-2.0
"""F1 of named entities that a model wrote as `name (TYPE), name (TYPE)`, or `none`."""

import re
from collections import Counter

import datasets
import evaluate


_DESCRIPTION = """
Entity-level F1, micro-averaged: an entity is found if its name and type are both right, ignoring case, at most as
often as the reference has it. Predictions are text such as "Acme Corp (ORG), Jane Doe (PER)"; "none" means that there
are no entities. Text of another form counts as a wrong entity.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: what the model wrote (text).
    references: the right answer in the same form.
Returns:
    f1, precision, recall: 0 to 1.
Example:
    >>> metric = evaluate.load("entity_f1")
    >>> metric.compute(predictions=["Acme (ORG)"], references=["Acme (ORG), Jane Doe (PER)"])["recall"]
    0.5
"""


def parse_entities(text: str) -> Counter:
    """Return the number of occurrences of each entity (name, type) in an answer."""
    parts = [part.strip() for part in re.split(r"(?<=\))\s*,", text.strip()) if part.strip()]
    if [part.lower().rstrip(".") for part in parts] in ([], ["none"]):
        return Counter()
    found = Counter()
    for part in parts:
        match = re.fullmatch(r"(.+?)\s*\((\w+)\)[.,;]?", part)
        name, kind = (match[1], match[2]) if match else (part, "")
        found[" ".join(name.lower().split()), kind.upper()] += 1
    return found


def count_entities(prediction: str, reference: str) -> tuple[int, int, int]:
    """Return the number of right, of predicted and of reference entities."""
    predicted, true = parse_entities(prediction), parse_entities(reference)
    return (predicted & true).total(), predicted.total(), true.total()


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class EntityF1(evaluate.Metric):
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
        counts = [count_entities(*pair) for pair in zip(predictions, references, strict=True)]
        right, predicted, true = (sum(column) for column in zip(*counts, strict=True))
        return {
            "f1": 2 * right / max(1, predicted + true),
            "precision": right / max(1, predicted),
            "recall": right / max(1, true),
        }
