# SPDX-License-Identifier: Apache-2.0
"""The output projection and the loss, some rows at a time, so that the logits of a batch are never held.

A vocabulary of 131,072 on 8 sequences of 2,048 tokens is 2.1e9 logits: 4 GB in bf16, with the softmax and its gradient
in fp32 some 20 GB. Here a chunk of rows is projected, scored and turned into its gradient at once, in memory that all
chunks share; what is kept for the backward pass is the gradient with respect to the hidden states and the weight. So
nothing is projected twice, as it is where chunks are recomputed in the backward pass (Liger's kernel does the same,
https://huggingface.co/papers/2410.10989, section 3.2).

`F.linear_cross_entropy` of torch 2.13 is no replacement: without `options` it is the plain projection, with them it
leaves the compiled graph, and it gives no log-sum-exp.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mixture.labels import IGNORED_LABEL


LOGITS_PER_CHUNK = 1 << 25  # 64 MiB in bf16
LEAST_ROWS = 512  # with fewer, adding up the weight's gradient costs more than the products


def chunked_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float = 0.0, compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of all labels that are not IGNORED_LABEL.

    Args:
        hidden: (num_tokens, hidden_size).
        weight: (vocab_size, hidden_size), of the output projection.
        labels: int64, (num_tokens,).
        z_loss: coefficient of the squared log-sum-exp (PaLM, https://huggingface.co/papers/2204.02311, section 5).
        compiled: by torch.compile, what turns logits into the loss and its gradient.

    Returns:
        What is differentiated, nats + z_loss * log-sum-exp squared; and the nats alone. Both fp32, 0-dim.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if not torch.is_grad_enabled():
        with torch.autocast(device, enabled=False):
            nats, squares = over_chunks(hidden.to(dtype), weight.to(dtype), labels, z_loss, compiled, None, None)
        return nats + z_loss * squares, nats
    return ChunkedLoss.apply(hidden, weight, labels, z_loss, compiled, dtype)


def token_scores(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return of each row the nats of its label, 0 for IGNORED_LABEL, and the likeliest token: fp32, (2, num_rows).

    Not for training. Token ids are whole in fp32 up to 2 ** 24.
    """
    scores = []
    rows = max(LEAST_ROWS, LOGITS_PER_CHUNK // len(weight))
    for part, own in zip(hidden.split(rows), labels.split(rows), strict=True):
        logits = F.linear(part, weight).float()
        nats = F.cross_entropy(logits, own, ignore_index=IGNORED_LABEL, reduction="none")
        scores.append(torch.stack([nats, logits.argmax(-1).float()]))
    return torch.cat(scores, 1)


class ChunkedLoss(torch.autograd.Function):
    """The gradient is made in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, z_loss, compiled, dtype):
        hidden_gradient = torch.empty_like(hidden, dtype=dtype) if ctx.needs_input_grad[0] else None
        # Added up in fp32 whatever the products are in.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            nats, squares = over_chunks(
                hidden.to(dtype), weight.to(dtype), labels, z_loss, compiled, hidden_gradient, weight_gradient
            )
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(nats)
        return nats + z_loss * squares, nats

    @staticmethod
    def backward(ctx, upstream, _):
        gradients = [
            None if gradient is None else (gradient.to(dtype) * upstream.to(dtype))
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *gradients, None, None, None, None


def over_chunks(hidden, weight, labels, z_loss, compiled, hidden_gradient, weight_gradient) -> tuple[Tensor, Tensor]:
    """Return the sums of nats and of squared log-sum-exps; write the gradient of `hidden` and add that of `weight`."""
    num_rows, vocab_size = len(hidden), len(weight)
    num_chunks = -(-num_rows // max(LEAST_ROWS, LOGITS_PER_CHUNK // vocab_size))
    rows = -(-num_rows // num_chunks)  # as even as can be: one shape, one graph
    with_gradient = hidden_gradient is not None or weight_gradient is not None
    function = compiled_score() if compiled else score_chunk
    nats = squares = torch.zeros((), device=hidden.device)
    # All chunks share these logits, which become their own gradient in place: on a processor, fresh memory for each
    # would cost a tenth of the time in page faults. The products are outside the graph, which would copy the sum.
    buffer = hidden.new_empty(rows, vocab_size)
    for start in range(0, num_rows, rows):
        part = slice(start, start + rows)
        of_part, labels_of_part = hidden[part], labels[part]
        logits = torch.mm(of_part, weight.T, out=buffer[: len(of_part)])
        more_nats, more_squares, label_slope = function(logits, labels_of_part, z_loss, with_gradient)
        nats, squares = nats + more_nats, squares + more_squares
        if with_gradient:
            slope = logits.scatter_(1, labels_of_part.clamp(min=0)[:, None], label_slope)
        if hidden_gradient is not None:
            torch.mm(slope, weight, out=hidden_gradient[part])
        if weight_gradient is not None and weight_gradient.dtype == slope.dtype:
            weight_gradient.addmm_(slope.T, of_part)
        elif weight_gradient is not None:
            weight_gradient.add_(slope.T @ of_part)
    return nats, squares


def score_chunk(
    logits: Tensor, labels: Tensor, z_loss: float, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return sums of nats and squared log-sum-exps of some rows.

    With the gradient, each logit becomes its slope in place, but for those of the labels: their slopes are returned,
    (rows, 1), as writing them afterwards is cheaper than asking of each logit whether it is one.
    """
    exact = logits.float()  # (rows, vocab_size)
    log_sum_exp = exact.logsumexp(-1)
    scored = labels != IGNORED_LABEL
    of_label = exact.gather(-1, labels.clamp(min=0)[:, None]).squeeze(-1)
    nats = torch.where(scored, log_sum_exp - of_label, 0.0).sum()
    squares = torch.where(scored, log_sum_exp.square(), 0.0).sum()
    if not with_gradient:
        return nats, squares, None
    # d nats = softmax - one-hot;  d log_sum_exp ** 2 = 2 log_sum_exp softmax.
    factor = torch.where(scored, 1 + 2 * z_loss * log_sum_exp, 0.0)
    label_slope = (of_label - log_sum_exp).exp() * factor - scored.float()
    logits.copy_((exact - log_sum_exp[:, None]).exp() * factor[:, None])
    return nats, squares, label_slope[:, None].to(logits.dtype)


@cache
def compiled_score() -> Callable:
    """Return score_chunk compiled, the same each time; the first loads the compiler, which takes a second."""
    return torch.compile(score_chunk, dynamic=False)
