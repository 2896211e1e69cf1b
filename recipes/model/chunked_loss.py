# SPDX-License-Identifier: Apache-2.0
"""The output projection and the loss, computed in chunks of rows, so that the logits of a batch are never held.

A vocabulary of 131,072 on 8 sequences of 2,048 tokens is 2.1e9 logits: 4 GB in bf16, with the softmax and its gradient
in fp32 some 20 GB. Here each chunk is projected, scored and turned into its gradient at once, in memory that all
chunks share. Only the gradients of the hidden states and of the weight are kept for the backward pass. Nothing is
projected twice, unlike in a loss that recomputes chunks in the backward pass (Liger's kernel does the same,
https://huggingface.co/papers/2410.10989, section 3.2).

`F.linear_cross_entropy` of torch 2.13 is no replacement: without `options` it is the plain projection, with them it
leaves the compiled graph, and it gives no log-sum-exp.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mixture.labels import IGNORED_LABEL
from model.families import capped
from planning.memory import rows_per_chunk


class SoftTargets(NamedTuple):
    """The mean of other models' distributions, made for a chunk of rows at a time.

    Attributes:
        share: of the nats to minimise that is the cross-entropy with the mean distribution.
        models: of each model, its last hidden states (num_tokens, hidden_size), its projection (vocab_size,
            hidden_size), and its softcap. All have as many rows; the model that learns may have more, of no token.
    """

    share: float
    models: list[tuple[Tensor, Tensor, float | None]]

    def distribution(self, chunk: slice) -> Tensor:
        """Return the mean distribution of some rows: fp32, (rows, vocab_size)."""
        total = None
        for hidden, weight, cap in self.models:
            own = capped(F.linear(hidden[chunk], weight).float(), cap).softmax(-1)
            total = own if total is None else total.add_(own)
            del own  # or it would be there beside the next one
        return total.div_(len(self.models))


def chunked_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    z_loss: float = 0.0,
    compiled: bool = False,
    cap: float | None = None,
    soft: SoftTargets | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of all labels that are not IGNORED_LABEL.

    Args:
        hidden: (num_tokens, hidden_size).
        weight: (vocab_size, hidden_size), of the output projection.
        labels: int64, (num_tokens,).
        z_loss: coefficient of the squared log-sum-exp (PaLM, https://huggingface.co/papers/2204.02311, section 5).
        compiled: run the step from logits to the loss and its gradient through torch.compile.
        cap: of families.softcap.
        soft: distributions to learn beside the labels, where there is a gradient.

    Returns:
        The loss to minimise, nats + z_loss * log-sum-exp squared; and the nats alone. Both fp32, 0-dim. With `soft`,
        a part of the nats to minimise is the cross-entropy with its distributions.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if not torch.is_grad_enabled():
        with torch.autocast(device, enabled=False):
            return project_and_score(hidden.to(dtype), weight.to(dtype), labels, z_loss, compiled, cap, None, None)
    return ChunkedLoss.apply(hidden, weight, labels, z_loss, compiled, cap, dtype, soft)


def token_scores(hidden: Tensor, weight: Tensor, labels: Tensor, cap: float | None = None) -> Tensor:
    """Return each row's nats of its label, 0 for IGNORED_LABEL, and its likeliest token: fp32, (2, num_rows).

    Not for training. fp32 holds token ids exactly up to 2 ** 24.
    """
    scores = []
    rows = rows_per_chunk(len(weight), hidden.device.type)
    for hidden_chunk, labels_chunk in zip(hidden.split(rows), labels.split(rows), strict=True):
        logits = capped(F.linear(hidden_chunk, weight).float(), cap)
        nats = F.cross_entropy(logits, labels_chunk, ignore_index=IGNORED_LABEL, reduction="none")
        scores.append(torch.stack([nats, logits.argmax(-1).float()]))
    return torch.cat(scores, 1)


class ChunkedLoss(torch.autograd.Function):
    """Compute the gradient in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, z_loss, compiled, cap, dtype, soft):
        hidden_gradient = torch.empty_like(hidden, dtype=dtype) if ctx.needs_input_grad[0] else None
        # Accumulated in fp32, whatever the products' precision.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            minimised, nats = project_and_score(
                hidden.to(dtype),
                weight.to(dtype),
                labels,
                z_loss,
                compiled,
                cap,
                hidden_gradient,
                weight_gradient,
                soft,
            )
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(nats)
        return minimised, nats

    @staticmethod
    def backward(ctx, upstream, _):
        gradients = [
            None if gradient is None else scale(gradient, upstream, dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *gradients, None, None, None, None, None, None


def scale(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply a gradient by an fp32 scalar in the wider of two precisions, in place, and return it in `dtype`."""
    wider = gradient.to(dtype) if dtype.itemsize > gradient.dtype.itemsize else gradient
    return wider.mul_(upstream).to(dtype)


def project_and_score(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    z_loss: float,
    compiled: bool,
    cap: float | None,
    hidden_gradient: Tensor | None,
    weight_gradient: Tensor | None,
    soft: SoftTargets | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sums over all chunks of the loss to minimise and of the nats.

    The gradients, where given, are written (`hidden_gradient`) and added to (`weight_gradient`) in place.
    """
    num_rows, vocab_size = len(hidden), len(weight)
    num_chunks = -(-num_rows // rows_per_chunk(vocab_size, hidden.device.type))
    rows = -(-num_rows // num_chunks)  # evenly sized, so that one shape compiles to one graph
    with_gradient = hidden_gradient is not None or weight_gradient is not None
    score = compiled_score() if compiled else score_chunk
    nats = squared_log_sum_exps = soft_nats = torch.zeros((), device=hidden.device)
    share = 0.0 if soft is None else soft.share
    # All chunks share this memory, in which logits become their own gradient: on a CPU, fresh memory for each chunk
    # would cost a tenth of the time in page faults. The products stay outside the graph, which would copy the sum.
    buffer = hidden.new_empty(rows, vocab_size)
    for start in range(0, num_rows, rows):
        chunk = slice(start, start + rows)
        hidden_chunk, labels_chunk = hidden[chunk], labels[chunk]
        logits = torch.mm(hidden_chunk, weight.T, out=buffer[: len(hidden_chunk)])
        target = None if soft is None else soft.distribution(chunk)
        sums, label_slope = score(logits, labels_chunk, z_loss, with_gradient, cap, target, share)
        nats, squared_log_sum_exps = nats + sums[0], squared_log_sum_exps + sums[1]
        soft_nats = soft_nats + sums[2] if soft is not None else nats
        if with_gradient:
            slope = logits.scatter_(1, labels_chunk.clamp(min=0)[:, None], label_slope)
        if hidden_gradient is not None:
            torch.mm(slope, weight, out=hidden_gradient[chunk])
        if weight_gradient is not None and weight_gradient.dtype == slope.dtype:
            weight_gradient.addmm_(slope.T, hidden_chunk)
        elif weight_gradient is not None and adds_in_fp32(hidden.device, slope.dtype):
            torch.addmm(weight_gradient, slope.T, hidden_chunk, out_dtype=weight_gradient.dtype, out=weight_gradient)
        elif weight_gradient is not None:
            weight_gradient.add_(slope.T @ hidden_chunk)
    return nats + share * (soft_nats - nats) + z_loss * squared_log_sum_exps, nats


def score_chunk(
    logits: Tensor,
    labels: Tensor,
    z_loss: float,
    with_gradient: bool,
    cap: float | None = None,
    target: Tensor | None = None,
    share: float = 0.0,
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Return sums over some rows, of nats, squared log-sum-exps and nats of the target, and the labels' slopes.

    With the gradient, each logit is overwritten by its slope, except those of the labels. Their slopes are returned,
    (rows, 1): writing them afterwards is cheaper than testing each logit for being a label's.

    Args: target: distributions to learn over the first entries of the vocabulary, whose cross-entropy is `share` of
        the nats to minimise.
    """
    exact = capped(logits.float(), cap)  # (rows, vocab_size)
    if target is not None and target.shape[1] < exact.shape[1]:
        target = F.pad(target, (0, exact.shape[1] - target.shape[1]))
    log_sum_exp = exact.logsumexp(-1)
    scored = labels != IGNORED_LABEL
    at_label = labels.clamp(min=0)[:, None]
    label_logit = exact.gather(-1, at_label).squeeze(-1)
    nats = torch.where(scored, log_sum_exp - label_logit, 0.0).sum()
    squared_log_sum_exps = torch.where(scored, log_sum_exp.square(), 0.0).sum()
    sums = (nats, squared_log_sum_exps)
    if target is not None:
        sums += (torch.where(scored, log_sum_exp - (target * exact).sum(-1), 0.0).sum(),)
    if not with_gradient:
        return sums, None
    # d nats = softmax - one-hot;  d log_sum_exp ** 2 = 2 log_sum_exp softmax.
    factor = torch.where(scored, 1 + 2 * z_loss * log_sum_exp, 0.0)
    label_slope = (label_logit - log_sum_exp).exp() * factor - scored.float()
    slope = (exact - log_sum_exp[:, None]).exp() * factor[:, None]
    if target is not None:  # the one-hot becomes (1 - share) one-hot + share target
        wanted = share * target * scored[:, None]
        slope = slope - wanted
        label_slope = label_slope + share * scored.float() - wanted.gather(-1, at_label).squeeze(-1)
    if cap is not None:  # d cap tanh(x / cap) / dx = 1 - tanh(x / cap) ** 2
        slope = slope * (1 - (exact / cap).square())
        label_slope = label_slope * (1 - (label_logit / cap).square())
    logits.copy_(slope)
    return sums, label_slope[:, None].to(logits.dtype)


@cache
def adds_in_fp32(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a product of `dtype` is added to an fp32 sum in one kernel, found out by trying once.

    A kernel that writes the product over the sum would lose all chunks but the last.
    """
    if device.type != "cuda":
        return False
    total, factor = torch.ones(16, 16, device=device), torch.ones(16, 16, device=device, dtype=dtype)
    try:
        torch.addmm(total, factor.T, factor, out_dtype=torch.float32, out=total)
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return bool((total == 1 + 16).all())


@cache
def compiled_score() -> Callable:
    """Return score_chunk compiled, the same one each time; the first call loads the compiler, which takes a second."""
    return torch.compile(score_chunk, dynamic=False)
