# SPDX-License-Identifier: Apache-2.0
"""Bits per byte of texts, from a model's summed token losses. It is comparable across tokenizers."""

import math

import datasets
import evaluate


_DESCRIPTION = """
Bits per UTF-8 byte: total cost in nats / ln 2 / total bytes. Unlike the loss per token and perplexity, it does not
depend on the tokenizer's vocabulary.
Source: Gao et al., The Pile, section 3.1, https://huggingface.co/papers/2101.00027
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: the cost of each text in nats, summed over all tokens of the text (a float).
    references: the texts.
Returns:
    bits_per_byte: of all texts together.
    total_bytes: of all texts.
Example:
    >>> metric = evaluate.load("bits_per_byte")
    >>> metric.compute(predictions=[2.7726], references=["abcd"])["bits_per_byte"]  # 4 ln 2 nats over 4 bytes
    1.0
"""
_CITATION = """
@article{gao2020pile,
    title={The Pile: An 800GB Dataset of Diverse Text for Language Modeling},
    author={Gao, Leo and others},
    journal={arXiv:2101.00027},
    year={2020}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class BitsPerByte(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        total_bytes = sum(len(text.encode()) for text in references)
        if not total_bytes:
            raise ValueError("bits per byte needs text of at least one byte")
        return {"bits_per_byte": sum(predictions) / math.log(2) / total_bytes, "total_bytes": total_bytes}
