# SPDX-License-Identifier: Apache-2.0
"""LegalBench's own scores of written answers."""

import re
import string

import datasets
import evaluate


_DESCRIPTION = """
Scores of written answers by LegalBench's rules, one for each configuration. Texts are compared without punctuation,
case and spaces at the ends.
    citation_prediction_open: whether the answer contains the case's name.
    definition_extraction: whether one of the terms, separated by commas, has the stem of a reference term.
    sara_numeric: whether the first whole number is within 10 % of the reference; commas and full stops are dropped.
    ssla: F1 of the names, separated by commas and counted over all answers. A name is found if it contains a reference
        name; each finds one.
Source: https://github.com/HazyResearch/legalbench, evaluation.py and, for ssla, leaderboard/scorer. There, other names
count as wrong once; in evaluation.py, once for each reference name, so that all of three names score 0.67.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: what the model wrote (text).
    references: the right answer (text).
Returns:
    accuracy, or f1 for ssla: 0 to 1.
Example:
    >>> metric = evaluate.load("legalbench", "sara_numeric")
    >>> metric.compute(predictions=["about $1,090", "12"], references=["$1000", "$1000"])["accuracy"]
    0.5
"""
_CITATION = """
@inproceedings{guha2023legalbench,
    title={LegalBench: A Collaboratively Built Benchmark for Measuring Legal Reasoning in Large Language Models},
    author={Guha, Neel and others},
    booktitle={NeurIPS Datasets and Benchmarks},
    year={2023}
}
"""
PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    return text.translate(PUNCTUATION).strip().lower()


def stems(text: str) -> set[str]:
    """Return the stem of each term; of several words, only the last one's ending is removed."""
    from nltk.stem.porter import PorterStemmer  # slow to import, and for one task

    stemmer = PorterStemmer()
    return {stemmer.stem(plain(term)) for term in text.split(",")}


def cites(prediction: str, reference: str) -> bool:
    return plain(reference) in plain(prediction)


def names_term(prediction: str, reference: str) -> bool:
    return not stems(prediction).isdisjoint(stems(reference))


def is_near(prediction: str, reference: str) -> bool:
    """Compare amounts; a prediction without a number is 0."""
    found = re.search(r"\d+", prediction.replace(",", "").replace(".", ""))
    amount = float(reference.replace("$", "").replace(",", ""))
    return abs((int(found[0]) if found else 0) / (amount + 0.1) - 1) < 0.1


def count_names(prediction: str, reference: str) -> tuple[int, int, int]:
    """Return the number of right, of predicted and of reference names."""
    predicted, true = ([plain(name) for name in text.split(",")] for text in (prediction, reference))
    left = list(predicted)
    for name in true:
        found = next((place for place, other in enumerate(left) if name in other), None)
        if found is not None:
            del left[found]
    return len(predicted) - len(left), len(predicted), len(true)


RULES = {"citation_prediction_open": cites, "definition_extraction": names_term, "sara_numeric": is_near}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class LegalBench(evaluate.Metric):
    def _info(self):
        if self.config_name not in [*RULES, "ssla"]:
            raise ValueError(f"config_name={self.config_name!r} must be one of {', '.join(RULES)}, ssla")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references, strict=True))
        if self.config_name == "ssla":
            right, predicted, true = (
                sum(column) for column in zip(*(count_names(*pair) for pair in pairs), strict=True)
            )
            return {"f1": 2 * right / (predicted + true)}
        return {"accuracy": sum(RULES[self.config_name](*pair) for pair in pairs) / len(pairs)}
