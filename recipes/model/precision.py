# SPDX-License-Identifier: Apache-2.0
"""The precision in which a processor trains a recipe's model faster, by measuring steps of its shape.

Only torch is imported, since this is asked at each first start, where every second counts.
"""

import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipe_config import Model


TOKENS = 256  # of a sequence, at most
LAYERS = 2  # at most; the others are alike
ROUNDS = 4  # the first one warms up; the best counts


class Layer(nn.Module):
    """The products and the attention of a decoder's layer."""

    def __init__(self, settings: Model):
        super().__init__()
        width, inner, self.heads = settings.hidden_size, settings.intermediate_size, settings.num_attention_heads
        head_dim = settings.head_dim or width // self.heads
        self.key_value_heads = settings.num_key_value_heads or self.heads
        self.query = nn.Linear(width, self.heads * head_dim, bias=False)
        self.key, self.value = (nn.Linear(width, self.key_value_heads * head_dim, bias=False) for _ in range(2))
        self.output = nn.Linear(self.heads * head_dim, width, bias=False)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        query = self.query(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (
            project(hidden).unflatten(-1, (self.key_value_heads, -1)).transpose(1, 2)
            for project in (self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        hidden = hidden + self.output(mixed.transpose(1, 2).flatten(2))
        return hidden + self.down(F.silu(self.gate(hidden)) * self.up(hidden))


def is_faster_in_bf16(settings: str, vocab_size: int, sequence_length: int) -> bool:
    """Return whether forward and backward of a sequence take less time in bf16 than in fp32, on all threads.

    Args: settings: the recipe's `model` as JSON.
    """
    model = Model.model_validate_json(settings)
    if model.from_pretrained:
        from model.continued import load_config, with_shape_of  # only here: importing it takes seconds

        config = load_config(model, sequence_length)
        model, vocab_size = with_shape_of(model, config), config.vocab_size
    width, length = model.hidden_size, min(sequence_length, TOKENS)
    layers = nn.Sequential(*(Layer(model) for _ in range(min(model.num_hidden_layers, LAYERS))))
    module = nn.Sequential(layers, nn.Linear(width, vocab_size, bias=False))
    hidden, targets = torch.randn(1, length, width), torch.arange(length) % vocab_size
    seconds = {True: float("inf"), False: float("inf")}
    for _ in range(ROUNDS):
        for in_bf16 in seconds:
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
                F.cross_entropy(module(hidden)[0], targets).backward()
            seconds[in_bf16] = min(seconds[in_bf16], time.perf_counter() - started)
            module.zero_grad()
    return seconds[True] < seconds[False]
