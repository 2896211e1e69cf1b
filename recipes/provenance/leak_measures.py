# SPDX-License-Identifier: Apache-2.0
"""What a model gives away of documents that it was trained on, against documents that it never saw.

Three measures come from one reading of each document: how far greedy decoding continues it word for word from its
first tokens, how far SAMPLES random continuations would, and whether its loss is lower than that of unseen documents.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest, fisher_exact, rankdata
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel

from provenance.audited_documents import AuditedDocument


# The literature prompts with 50 tokens (Carlini et al. 2023, https://arxiv.org/abs/2202.07646), so figures compare: it
# is enough to name one document among many.
PROMPT_TOKENS = 50
LENGTHS = (20, 50, 100)  # tokens of a continuation; 20 is a sentence, 50 the length that the literature counts
MOST_TOKENS = 512  # of a document that its loss is taken of: more tokens hardly sharpen the mean, and cost time
TIMES = (1, 2, 4, 16, 64)  # where groups of documents by the times that they were trained on begin
LOGITS_AT_ONCE = 1 << 27  # half a GiB in float32
SAMPLES = 100  # random continuations of a prompt, at temperature 1
# The chance that one of SAMPLES continuations is the document's is 1 - (1 - likelihood) ** SAMPLES: one half at this
# likelihood. No text has to be generated (Hayes et al. 2024, https://arxiv.org/abs/2410.19482).
LEAST_LIKELIHOOD = 1 - 0.5 ** (1 / SAMPLES)
RESAMPLES = 1000  # of the bootstrap, and permutations


class Reading(NamedTuple):
    """What a model made of a document.

    Attributes:
        continued_tokens: that greedy decoding writes as the document has them, after its first PROMPT_TOKENS.
        sampled_tokens: likewise, that one of SAMPLES random continuations more likely has than not.
        nats: summed loss of its first tokens.
        tokens: how many these are.
        bytes: of their text.
    """

    continued_tokens: int
    sampled_tokens: int
    nats: float
    tokens: int
    bytes: int


@torch.inference_mode()
def read_documents(
    model: PreTrainedModel,
    documents: Sequence[AuditedDocument],
    bos_token_id: int,
    byte_lengths: np.ndarray,
    batch_size: int,
    description: str = "audit: documents",
) -> list[Reading]:
    """Read each document once; the readings are in the order of the documents.

    Greedy decoding repeats a document as long as the likeliest next token is the document's, so no text is generated.

    Args:
        model: in evaluation mode.
        documents: their first tokens; nothing counts as continued of one with PROMPT_TOKENS or less.
        bos_token_id: the token that begins a document in training.
        byte_lengths: UTF-8 bytes of each token.
        batch_size: documents read at once; fewer where their logits would be large.
        description: label of the progress bar.
    """
    order = sorted(range(len(documents)), key=lambda number: -len(documents[number].tokens))
    readings: dict[int, Reading] = {}
    with tqdm(total=len(order), unit=" documents", desc=description) as progress:
        while order:
            longest = len(documents[order[0]].tokens)
            rows = max(1, min(batch_size, LOGITS_AT_ONCE // (longest * model.config.vocab_size)))
            batch, order = order[:rows], order[rows:]
            inputs = torch.full((len(batch), longest), bos_token_id)
            targets = torch.full((len(batch), longest), -100)
            for row, number in enumerate(batch):
                tokens = torch.from_numpy(documents[number].tokens)
                inputs[row, 1 : len(tokens)], targets[row, : len(tokens)] = tokens[:-1], tokens
            logits = model(input_ids=inputs.to(model.device), use_cache=False).logits.float()
            likeliest = logits.argmax(-1).cpu()
            losses = F.cross_entropy(logits.transpose(1, 2), targets.to(model.device), reduction="none")
            losses = losses.double().cpu()
            nats = losses.sum(1).tolist()
            for row, number in enumerate(batch):
                tokens = documents[number].tokens
                right = (likeliest[row, : len(tokens)] == targets[row, : len(tokens)])[PROMPT_TOKENS:].tolist()
                continued = right.index(False) if False in right else len(right)
                likelihoods = losses[row, PROMPT_TOKENS : len(tokens)].cumsum(0).neg().exp()
                sampled = int((likelihoods >= LEAST_LIKELIHOOD).sum())
                readings[number] = Reading(continued, sampled, nats[row], len(tokens), int(byte_lengths[tokens].sum()))
            progress.update(len(batch))
    return [readings[number] for number in range(len(documents))]


def count_continued(continued_tokens: Sequence[int], lengths: Sequence[int]) -> dict:
    """Return how many documents are continued for each length, with Clopper and Pearson's 95 % intervals.

    Returns: documents, and continued: length -> documents, fraction, interval; the last two are None of no documents.
    """
    total, found = len(continued_tokens), {}
    for length in lengths:
        number = sum(tokens >= length for tokens in continued_tokens)
        interval = binomtest(number, total).proportion_ci(method="exact") if total else None
        found[str(length)] = {
            "documents": number,
            "fraction": number / total if total else None,
            "interval": [float(interval.low), float(interval.high)] if interval else None,
        }
    return {"documents": total, "continued": found}


def compare_continued(trained: dict, held_out: dict) -> dict[str, float]:
    """Return for each length the p-value of Fisher's exact test, one-sided: trained documents are continued as often.

    Args: trained, held_out: of count_continued.
    """
    p_values = {}
    for length in trained["continued"]:
        numbers = [side["continued"][length]["documents"] for side in (trained, held_out)]
        table = [
            [number, side["documents"] - number] for number, side in zip(numbers, (trained, held_out), strict=True)
        ]
        p_values[length] = float(fisher_exact(table, alternative="greater").pvalue)
    return p_values


def times_group(times: int) -> str:
    """Return the name of the group of a document by the times that it was trained on."""
    place = sum(times >= begin for begin in TIMES) - 1
    begin, end = TIMES[place], TIMES[place + 1] - 1 if place + 1 < len(TIMES) else None
    return f"{begin} or more" if end is None else f"{begin} to {end}" if end > begin else str(begin)


def separate(values: dict[str, tuple[Sequence[float], Sequence[float]]], seed: int) -> dict | None:
    """Measure how well a value, such as the loss, tells documents that were trained on from others of their source.

    Args:
        values: source -> the value of each of its trained documents, and of each held-out one.
        seed: of the bootstrap and the permutations.

    Returns: auc, the probability that the trained one of two documents of a source has the lower value (0.5: chance),
        its 95 % interval by the bootstrap over documents, and the one-sided p-value of chance, by permutations within
        each source; None where no source has both.
    """
    both = [pair for pair in values.values() if all(map(len, pair))]
    if not both:
        return None
    pairs = [(np.asarray(trained), np.asarray(held_out)) for trained, held_out in both]
    lower = [(own[:, None] < other) + (own[:, None] == other) / 2 for own, other in pairs]  # (trained, held out)
    total, generator = sum(table.size for table in lower), np.random.default_rng(seed)

    def draw(table: np.ndarray) -> float:
        rows, columns = (generator.integers(size, size=size) for size in table.shape)
        return table[np.ix_(rows, columns)].sum()

    def shuffle(own: np.ndarray, other: np.ndarray) -> float:
        """Return how many pairs are won where the values of a source are dealt out at random (Mann and Whitney)."""
        ranks = generator.permutation(rankdata(np.concatenate([own, other])))[: len(own)]
        return len(own) * len(other) - float(ranks.sum()) + len(own) * (len(own) + 1) / 2

    auc = float(sum(table.sum() for table in lower) / total)
    resampled = [sum(map(draw, lower)) / total for _ in range(RESAMPLES)]
    by_chance = [sum(shuffle(*pair) for pair in pairs) / total for _ in range(RESAMPLES)]
    return {
        "auc": auc,
        "interval": np.quantile(resampled, [0.025, 0.975]).tolist(),
        "p_value": (1 + sum(one >= auc for one in by_chance)) / (1 + RESAMPLES),
    }
