# SPDX-License-Identifier: Apache-2.0
"""Causal attention within each document, without a mask: torch's variable-length kernel on GPUs, and one for CPUs.

A mask of document borders is a square of the sequence length, all of which is computed. Here the documents of a batch
are one list of tokens, and cumulative lengths give their borders, so nothing is computed that they hide.

transformers makes no mask for an attention function that it does not know, and hands `cumulative_lengths` from the
model's arguments on to it.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface


NAME = "varlen"


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
        sliding_window: int | None = None,
        **_,
    ) -> tuple[Tensor, None]:
        """Attend within documents, to the last `sliding_window` tokens with a token's own, or to all before it.

        Query, key and value are (batch_size, heads, sequence_length, head_dim); query may have more heads. The result
        is (batch_size, sequence_length, heads, head_dim), without weights.
        """
        batch_size, heads, length, width = query.shape
        window = sliding_window if sliding_window and sliding_window < length else length
        # After the rotation query and key are fp32 under autocast, which does not cast for these operators.
        packed = [tensor.to(value.dtype).transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]
        if query.device.type == "cpu":
            attended, _ = on_cpu(*packed, cumulative_lengths, window, scaling)
        else:
            before = window - 1 if window < length else -1  # of tokens; -1: all
            options = {"scale": scaling, "window_size": (before, 0), **(grouped if key.shape[1] < heads else {})}
            attended = varlen_attn(*packed, cumulative_lengths, cumulative_lengths, length, length, **options)
        return attended.view(batch_size, length, heads, width), None

    AttentionInterface.register(NAME, attend)


@cache
def cpu_operator() -> Callable:
    """Define and return the operator for CPUs, which attends in one document after the other.

    A longer document than the window is attended to in tiles, each with the keys that its queries see. It is opaque to
    torch.compile, since its loop follows the data.
    """

    @torch.library.custom_op("recipes::attend_in_documents", mutates_args=())
    def attend(
        query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, window: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        attended = torch.empty_like(query, memory_format=torch.contiguous_format)
        log_sum_exps = query.new_empty(query.shape[:2], dtype=torch.float32)
        for queries, keys in tiles(lengths, window):
            parts, options = as_batch(queries, keys, query, key, value), mask_options(queries, keys, window, query)
            own, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *parts, 0.0, not options, scale=scale, **options
            )
            attended[queries] = own[0].transpose(0, 1)
            log_sum_exps[queries] = log_sum_exp[0].transpose(0, 1)
        return attended, log_sum_exps

    @attend.register_fake
    def _(query, key, value, lengths, window, scale):
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
        window: int,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors = (query, key, value)
        gradients = tuple(torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors)
        for queries, keys in tiles(lengths, window):
            upstream, own = (tensor[queries].transpose(0, 1)[None] for tensor in (gradient, attended))
            options = mask_options(queries, keys, window, query)
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                upstream,
                *as_batch(queries, keys, *tensors),
                own,
                log_sum_exps[queries].transpose(0, 1)[None],
                0.0,
                not options,
                scale=scale,
                **options,
            )
            for whole, part, tokens in zip(gradients, found, (queries, keys, keys), strict=True):
                # A key and value head has the gradients of all query heads that use it.
                per_head = (
                    part[0].unflatten(0, (whole.shape[1], -1)).sum(1) if part.shape[1] > whole.shape[1] else part[0]
                )
                whole[tokens] += per_head.transpose(0, 1)  # a key may be in two tiles
        return gradients

    @attend_backward.register_fake
    def _(gradient, query, key, value, attended, log_sum_exps, lengths, window, scale):
        return tuple(torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (query, key, value))

    def keep(ctx, inputs, output) -> None:
        *tensors, lengths, ctx.window, ctx.scale = inputs
        ctx.save_for_backward(*tensors, *output, lengths)

    def differentiate(ctx, gradient, _):
        return *attend_backward(gradient, *ctx.saved_tensors, ctx.window, ctx.scale), None, None, None

    attend.register_autograd(differentiate, setup_context=keep)
    return attend


def tiles(lengths: Tensor, window: int) -> Iterator[tuple[slice, slice]]:
    """Yield the queries and the keys to attend to, of each document and there of each `window` tokens."""
    borders = lengths.tolist()
    for start, end in zip(borders, borders[1:], strict=False):
        for first in range(start, end, window):
            last = min(first + window, end)
            yield slice(first, last), slice(max(start, first - window + 1), last)


def mask_options(queries: slice, keys: slice, window: int, like: Tensor) -> dict[str, Tensor]:
    """Return the mask of a tile with keys before its queries; none where only what comes later is hidden."""
    if queries == keys:
        return {}
    distance = torch.arange(queries.start, queries.stop)[:, None] - torch.arange(keys.start, keys.stop)
    hidden = (distance < 0) | (distance >= window)
    return {"attn_mask": torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, -torch.inf)}


def as_batch(queries: slice, keys: slice, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Return a tile's part of each tensor as (1, heads, tokens, head_dim), with as many heads in each."""
    groups = query.shape[1] // key.shape[1]
    parts = [tensor[tokens].transpose(0, 1)[None] for tensor, tokens in ((query, queries), (key, keys), (value, keys))]
    return parts if groups == 1 else [parts[0], *(part.repeat_interleave(groups, 1) for part in parts[1:])]
