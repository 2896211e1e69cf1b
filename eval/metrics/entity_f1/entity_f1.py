# SPDX-License-Identifier: Apache-2.0
"""F1 of named entities that a model wrote down as `name (TYPE), name (TYPE)`, or `none`."""

import re
from collections import Counter

import datasets
import evaluate


_DESCRIPTION = """
Entity-level F1, micro-averaged: an entity counts as found when its name and its type are both right, case aside, each
as often as it stands in the reference. Predictions are text such as "Acme Corp (ORG), Jane Doe (PER)"; "none" is the
answer without entities. What does not have this form counts as an entity that is wrong.
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
    """Return the entities of an answer, (name, type) with how often each stands there."""
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
    """Return the number of entities that are right, of those predicted, and of those in the reference."""
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
