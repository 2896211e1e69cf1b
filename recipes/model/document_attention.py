# SPDX-License-Identifier: Apache-2.0
"""Causal attention within each document, without a mask: torch's variable-length kernel on GPUs, and one for CPUs.

A mask of document borders is a square of the sequence length, all of which is computed. Here the documents of a batch
are one list of tokens, and cumulative lengths give their borders, so nothing is computed that they hide.

transformers makes no mask for an attention function that it does not know, and hands `cumulative_lengths` from the
model's arguments on to it.
"""

import inspect
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface


NAME = "varlen"
CAUSAL = (-1, 0)  # window_size: all tokens before, none after


def register() -> None:
    """Make the function known to transformers as NAME."""
    on_cpu = cpu_operator()  # defined now: not while torch.compile traces
    # From torch 2.12 on, fewer key and value heads have to be asked for; before, the kernel just takes them.
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        *,
        scaling: float,
        cumulative_lengths: Tensor,
        **_,
    ) -> tuple[Tensor, None]:
        """Attend within documents.

        Query, key and value are (batch_size, heads, sequence_length, head_dim); query may have more heads. The result
        is (batch_size, sequence_length, heads, head_dim), without weights.
        """
        batch_size, heads, length, width = query.shape
        # After the rotation query and key are fp32 under autocast, which does not cast for these operators.
        packed = [tensor.to(value.dtype).transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]
        if query.device.type == "cpu":
            attended, _ = on_cpu(*packed, cumulative_lengths, scaling)
        else:
            options = {"scale": scaling, "window_size": CAUSAL, **(grouped if key.shape[1] < heads else {})}
            attended = varlen_attn(*packed, cumulative_lengths, cumulative_lengths, length, length, **options)
        return attended.view(batch_size, length, heads, width), None

    AttentionInterface.register(NAME, attend)


@cache
def cpu_operator() -> Callable:
    """Define and return the operator for CPUs, which attends in one document after the other.

    It is opaque to torch.compile, since its loop follows the data.
    """

    @torch.library.custom_op("recipes::attend_in_documents", mutates_args=())
    def attend(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        log_sum_exps = query.new_empty(query.shape[:2], dtype=torch.float32)
        for document in documents(lengths):
            parts = as_batch(document, query, key, value)
            own, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *parts, 0.0, True, scale=scale
            )
            attended[document] = own[0].transpose(0, 1)
            log_sum_exps[document] = log_sum_exp[0].transpose(0, 1)
        return attended, log_sum_exps

    @attend.register_fake
    def _(query, key, value, lengths, scale):
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        return attended, query.new_empty(query.shape[:2], dtype=torch.float32)

    @torch.library.custom_op("recipes::attend_in_documents_backward", mutates_args=())
    def attend_backward(
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attended: Tensor,
        log_sum_exps: Tensor,
        lengths: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors = (query, key, value)
        gradients = tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors)
        for document in documents(lengths):
            upstream, own = (tensor[document].transpose(0, 1)[None] for tensor in (gradient, attended))
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                upstream,
                *as_batch(document, *tensors),
                own,
                log_sum_exps[document].transpose(0, 1)[None],
                0.0,
                True,
                scale=scale,
            )
            for whole, part in zip(gradients, found, strict=True):
                # A key and value head has the gradients of all query heads that use it.
                per_head = (
                    part[0].unflatten(0, (whole.shape[1], -1)).sum(1) if part.shape[1] > whole.shape[1] else part[0]
                )
                whole[document] = per_head.transpose(0, 1)
        return gradients

    @attend_backward.register_fake
    def _(gradient, query, key, value, attended, log_sum_exps, lengths, scale):
        return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value))

    def keep(ctx, inputs, output) -> None:
        *tensors, lengths, ctx.scale = inputs
        ctx.save_for_backward(*tensors, *output, lengths)

    def differentiate(ctx, gradient, _):
        return *attend_backward(gradient, *ctx.saved_tensors, ctx.scale), None, None

    attend.register_autograd(differentiate, setup_context=keep)
    return attend


def documents(lengths: Tensor) -> list[slice]:
    """Return the tokens of each document that has any."""
    borders = lengths.tolist()
    return [slice(start, end) for start, end in zip(borders, borders[1:], strict=False) if start < end]


def as_batch(document: slice, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Return a document's part of each tensor as (1, heads, tokens, head_dim), with as many heads in each."""
    groups = query.shape[1] // key.shape[1]
    parts = [tensor[document].transpose(0, 1)[None] for tensor in (query, key, value)]
    return parts if groups == 1 else [parts[0], *(part.repeat_interleave(groups, 1) for part in parts[1:])]
