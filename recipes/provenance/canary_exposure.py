# SPDX-License-Identifier: Apache-2.0
"""How much more a model knows of planted records than of others like them: their exposure, in bits.

The loss of a record is ranked among those of CANDIDATES records that differ in the number alone. The exposure is
log2(CANDIDATES) - log2(rank): 0 for a record that the model finds the least likely, 8 for the likeliest. It is 1.4 on
average where the model knows nothing. Source: Carlini et al. 2019, The Secret Sharer (https://arxiv.org/abs/1802.08232).
"""

import random
from collections.abc import Sequence

import numpy as np
from scipy.stats import mannwhitneyu
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from corpus.canaries import record_text
from provenance.audited_documents import AuditedDocument
from provenance.leak_findings import LEVEL
from provenance.leak_measures import RESAMPLES, read_documents


CANDIDATES = 256


def candidate_texts(canary: dict) -> list[str]:
    """Return the text of a record, and of others with another number, the same each time."""
    choose, numbers = random.Random(canary["sha256"]), [canary["number"]]
    while len(numbers) < CANDIDATES:
        number = "".join(choose.choices("0123456789", k=len(canary["number"])))
        if number not in numbers:
            numbers.append(number)
    return [record_text(canary | {"number": number}) for number in numbers]


def measure_exposures(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    canaries: Sequence[dict],
    bos_token_id: int,
    byte_lengths: np.ndarray,
    batch_size: int,
) -> list[float]:
    """Return the exposure of each record in bits; the arguments are those of read_documents.

    Args:
        model: in evaluation mode.
        tokenizer: of the run.
        canaries: of documents/canaries.json.
        bos_token_id: the token that begins a document in training.
        byte_lengths: UTF-8 bytes of each token.
        batch_size: records read at once.
    """
    texts = [text for canary in canaries for text in candidate_texts(canary)]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    asked = [AuditedDocument("", "", 0, np.array(encoding.ids, np.int64)) for encoding in encoded]
    readings = read_documents(model, asked, bos_token_id, byte_lengths, batch_size, "audit: canaries")
    losses = np.array([reading.nats for reading in readings]).reshape(len(canaries), CANDIDATES)
    ranks = 1 + (losses[:, 1:] < losses[:, :1]).sum(1) + (losses[:, 1:] == losses[:, :1]).sum(1) / 2
    return (np.log2(CANDIDATES) - np.log2(ranks)).tolist()


def summarise_exposures(canaries: Sequence[dict], exposures: Sequence[float], seed: int) -> dict[str, dict]:
    """Return for each number of repetitions the mean exposure, its 95 % bootstrap interval, and a verdict.

    A level is exposed where its records have higher ranks than the controls, which were never planted, by Mann and
    Whitney's one-sided test, corrected for the number of levels.
    """
    levels = sorted({canary["repetitions"] for canary in canaries})
    generator, found = np.random.default_rng(seed), {}
    own = {
        level: np.array([e for c, e in zip(canaries, exposures, strict=True) if c["repetitions"] == level])
        for level in levels
    }
    for level in levels:
        values = own[level]
        means = values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
        p_value = float(mannwhitneyu(values, own[0], alternative="greater").pvalue) if level else None
        found[str(level)] = {
            "records": len(values),
            "mean_exposure_bits": float(values.mean()),
            "interval": np.quantile(means, [0.025, 0.975]).tolist(),
            "first_of_all": int((values == np.log2(CANDIDATES)).sum()),
            "p_value": p_value,
            "exposed": p_value is not None and p_value < LEVEL / (len(levels) - 1),
        }
    return found
