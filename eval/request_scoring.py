# SPDX-License-Identifier: Apache-2.0
"""Score a task's requests with a model: the cost of each continuation, and the answers that the model writes.

Every request starts with the token that starts a document, as in training. lm-eval itself would differ: for a
tokenizer that adds no special tokens, it adds that token only to requests without a context; for one that appends an
end-of-text token, it scores the continuation one token off. Here text is encoded without special tokens.
"""

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bits_per_byte import start_token_id
from limits import NotScored
from shared_work import SharedWork


@dataclass
class Encoded:
    """A context and its continuation as tokens; `bytes` counts the text of the continuation's tokens."""

    context: list[int]
    continuation: list[int]
    bytes: int


class RequestScorer:
    """Scores requests with lm-eval's HFLM.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        context_length: tokens that the model reads at most, including the start token.
        batch_size: requests read at once.
        work: shares the work among processes and keeps finished pieces.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context_length: int,
        batch_size: int,
        work: SharedWork,
    ):
        from lm_eval.models.huggingface import HFLM

        self.tokenizer, self.work = tokenizer, work
        self.context_length, self.batch_size = context_length, batch_size
        self.start = start_token_id(tokenizer)
        self.lm = HFLM(
            pretrained=model,
            backend="causal",
            tokenizer=tokenizer,
            max_length=context_length,
            batch_size=batch_size,
            prefix_token_id=self.start,
        )

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def encode_item(self, requests: list[list[str]]) -> tuple[list[Encoded], bool]:
        """Encode the requests of one item.

        A tokenizer may tokenize the end of a context differently when a continuation follows. The tokens that differ
        then belong to the continuation, for every choice alike, with their bytes: the likelihoods of whole texts are
        still what is compared.

        Returns: the encoded requests, and whether any context was tokenized differently.
        """
        encoded, kept = [], []
        for context, continuation in requests:
            stripped = context.rstrip()  # a final space belongs to the next word's token
            alone, whole = self.encode(stripped), self.encode(context + continuation)
            same = next((i for i, pair in enumerate(zip(alone, whole, strict=False)) if pair[0] != pair[1]), None)
            kept.append((len(alone), min(len(alone), len(whole) - 1) if same is None else min(same, len(whole) - 1)))
            encoded.append(whole)
        common_context = len({context for context, _ in requests}) == 1
        shared = min(length for _, length in kept)
        parts = []
        for (context, continuation), whole, (_, own) in zip(requests, encoded, kept, strict=True):
            boundary = shared if common_context else own
            parts.append(
                Encoded(
                    [self.start, *whole[:boundary]],
                    whole[boundary:],
                    self.continuation_bytes(context, continuation, whole, boundary),
                )
            )
        return parts, any(own < length for length, own in kept)

    def continuation_bytes(self, context: str, continuation: str, whole: list[int], boundary: int) -> int:
        """Return the UTF-8 bytes of the tokens from `boundary` on."""
        text = context + continuation
        before = self.tokenizer.decode(whole[:boundary], clean_up_tokenization_spaces=False)
        if text.startswith(before):
            return len(text.encode()) - len(before.encode())
        return len(continuation.encode())  # the tokenizer changes the text, or a token ends inside a character

    def likelihoods(self, requests: list[Encoded], description: str) -> list[tuple[float, bool]]:
        """Return, for each request, the cost of its continuation in nats, and whether each token was the likeliest.

        Requests of similar length form batches, which depend on the requests alone.

        Raises: NotScored: a cost is not finite; as the least of a question's costs it would choose an answer.
        """
        order = sorted(
            range(len(requests)), key=lambda i: (-len(requests[i].context) - len(requests[i].continuation), i)
        )
        size = 16 * self.batch_size
        pieces = [
            [[requests[i].context, requests[i].continuation] for i in order[start : start + size]]
            for start in range(0, len(order), size)
        ]

        def score(piece: list) -> list:
            texts = [(("", ""), context, continuation) for context, continuation in piece]
            costs = [[-float(cost), bool(greedy)] for cost, greedy in self.lm._loglikelihood_tokens(texts, True)]
            if wrong := [cost for cost, _ in costs if not math.isfinite(cost)]:
                raise NotScored.of_numbers(f"{description}: a continuation costs {wrong[0]}", self.lm.model.dtype)
            return costs

        scored = [pair for part in self.work.map("likelihood", pieces, score, description) for pair in part]
        results: list = [None] * len(requests)
        for position, index in enumerate(order):
            results[index] = tuple(scored[position])
        return results

    def written(self, contexts: list[str], max_new_tokens: int, description: str) -> list[str]:
        """Return the model's greedy continuation of each context, up to the end of the line.

        Contexts are read one at a time, so that neither padding nor other contexts change a word.
        """
        size = self.batch_size
        pieces = [[max_new_tokens, contexts[start : start + size]] for start in range(0, len(contexts), size)]
        parts = self.work.map(
            "written", pieces, lambda piece: [self.continue_line(text, piece[0]) for text in piece[1]], description
        )
        return [text for part in parts for text in part]

    @torch.inference_mode()
    def continue_line(self, context: str, max_new_tokens: int) -> str:
        new_tokens = min(max_new_tokens, self.context_length // 2)
        ids = self.encode(context.rstrip())[-(self.context_length - 1 - new_tokens) :]
        input_ids = torch.tensor([[self.start, *ids]], device=self.lm.model.device)
        output = self.lm.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=self.start,
            eos_token_id=self.tokenizer.eos_token_id,
            stop_strings=["\n"],
            tokenizer=self.tokenizer,
        )
        text = self.tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True)
        return text.lstrip().partition("\n")[0].strip()


def score_requests(
    scorer: RequestScorer, name: str, rendered: list[dict], *, max_new_tokens: int, calibrated: str | None
) -> tuple[list[dict], dict[str, int]]:
    """Score a task's rendered items.

    Returns: the scored items, as item_scores.py describes them, and counts: "left_out", items that are not scored
        since a continuation alone does not fit the context; "boundary_mismatches", items whose context is tokenized
        differently before a continuation; "truncated", requests longer than the context, which lost their start.
    Raises: NotScored: no item fits, or a cost is not finite.
    """
    counts = {"left_out": 0, "boundary_mismatches": 0, "truncated": 0}
    generated = all(continuation == "" for entry in rendered for _, continuation in entry["requests"])
    kept: list[tuple[dict, list, list[Encoded]]] = []
    for entry in rendered:
        requests = [[entry["requests"][0][0], " " + entry["target"]]] if generated else entry["requests"]
        encoded, mismatch = scorer.encode_item(requests)
        if max(len(each.continuation) for each in encoded) > scorer.context_length:
            counts["left_out"] += 1
            continue
        kept.append((entry, requests, encoded))
        counts["boundary_mismatches"] += mismatch
        too_long = [len(e.context) + len(e.continuation) - 1 > scorer.context_length for e in encoded]
        counts["truncated"] += 0 if generated else sum(too_long)
    if not kept:
        raise NotScored(
            f"{name}: no item fits context_length={scorer.context_length}, since each has a continuation with more "
            "tokens; leave the task out, or use a model with a longer context"
        )
    texts: list[str | None] = [None] * len(kept)
    if generated:
        contexts = [requests[0][0] for _, requests, _ in kept]
        limit = scorer.context_length - min(max_new_tokens, scorer.context_length // 2)
        counts["truncated"] = sum(len(scorer.encode(context)) >= limit for context in contexts)
        texts = list(scorer.written(contexts, max_new_tokens, name))
    results = iter(scorer.likelihoods([each for _, _, encoded in kept for each in encoded], name))
    asked = [requests for _, requests, _ in kept]
    priors = prior_costs(scorer, name, asked, calibrated) if calibrated is not None else {}
    scored = []
    for (entry, requests, encoded), text in zip(kept, texts, strict=True):
        nats = [next(results) for _ in requests]
        item = {
            "id": entry["id"],
            "gold": entry["gold"],
            "nats": [cost for cost, _ in nats],
            "greedy": nats[0][1],
            "bytes": [each.bytes for each in encoded],
            "tokens": [len(each.continuation) for each in encoded],
            "characters": [len(continuation.lstrip()) for _, continuation in requests],
        }
        if calibrated is not None:
            item["uncalibrated"] = [priors[continuation] for _, continuation in requests]
        if text is not None:
            item |= {"prediction": text, "target": entry["target"]}
        if entry.get("tag") is not None:
            item["tag"] = entry["tag"]
        scored.append(item)
    return scored, counts


def prior_costs(scorer: RequestScorer, name: str, requests: list, context: str) -> dict[str, float]:
    """Return the cost of each continuation after a context without content."""
    continuations = sorted({continuation for item in requests for _, continuation in item})
    encoded = [scorer.encode_item([[context, continuation]])[0][0] for continuation in continuations]
    costs = scorer.likelihoods(encoded, f"{name}, calibration")
    return {continuation: cost for continuation, (cost, _) in zip(continuations, costs, strict=True)}
