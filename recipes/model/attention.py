# SPDX-License-Identifier: Apache-2.0
"""The attention function: training.attn_implementation's, or the plain one that returns its weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from transformers import AttentionInterface, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import is_flash_attn_2_available

from recipe_config import RecipeError, Training


def choose_attention(model: LlamaForCausalLM, training: Training, accelerator: Accelerator) -> None:
    """Set the attention function of training.attn_implementation.

    Raises: RecipeError: it does not run on this machine; the message names one that does.
    """
    wanted, device = training.attn_implementation, accelerator.device.type
    if wanted != "sdpa" and device == "cpu":
        raise RecipeError(f"training.attn_implementation={wanted} needs a GPU and this is {device}; use sdpa")
    if wanted == "flash_attention_2" and not is_flash_attn_2_available():
        raise RecipeError("training.attn_implementation=flash_attention_2 needs: pip install flash-attn; or use sdpa")
    if wanted == "sdpa" and not training.document_masking:
        # Under torch.compile transformers builds the mask of document borders even if there are none. For a function
        # that it does not know it builds no mask, and SDPA's causal kernel skips the half above the diagonal.
        AttentionInterface.register("sdpa_causal", sdpa_attention_forward)
        wanted = "sdpa_causal"
    model.set_attn_implementation(wanted)


@contextmanager
def eager(language_model: nn.Module) -> Iterator[None]:
    """Run a model uncompiled and with plain attention, whose weights can be read."""
    config = language_model.config
    attention = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        config._attn_implementation = attention
