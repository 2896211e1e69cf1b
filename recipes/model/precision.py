# SPDX-License-Identifier: Apache-2.0
"""The precision in which a processor trains a recipe's model faster, by measuring steps of it."""

import time

import torch
from transformers import AutoModelForCausalLM

from model.continued import load_config
from model.llama import llama_config
from recipe_config import Model


LAYERS = 4  # of the model that is measured; more are alike
TOKENS = 2048  # of a longer sequence
ROUNDS = 4  # the first one warms up; the best counts


def is_faster_in_bf16(settings: str, vocab_size: int, sequence_length: int) -> bool:
    """Return whether forward and backward of a sequence take less time in bf16 than in fp32, on all threads.

    Args: settings: the recipe's `model` as JSON; vocab_size: of a model that is made from scratch.
    """
    model = Model.model_validate_json(settings)
    if model.from_pretrained:
        config = load_config(model, sequence_length)
    else:
        config = llama_config(model, vocab_size, sequence_length)
    config.num_hidden_layers = min(config.num_hidden_layers, LAYERS)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    token_ids = torch.arange(min(sequence_length, TOKENS))[None] % config.vocab_size
    seconds = {True: float("inf"), False: float("inf")}
    for _ in range(ROUNDS):
        for in_bf16 in seconds:
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
                module(token_ids, labels=token_ids).loss.backward()
            seconds[in_bf16] = min(seconds[in_bf16], time.perf_counter() - started)
            module.zero_grad()
    return seconds[True] < seconds[False]
