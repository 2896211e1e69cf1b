# SPDX-License-Identifier: Apache-2.0
"""The attention function: training.attn_implementation's, or the plain one that returns its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import activate_flash_attention_impl
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_masks_for_generate, packed_sequence_mask_function

from model import document_attention
from model.families import attention_dropout, shortest_window
from planning.memory import takes_plain_attention
from recipe_config import RecipeError, Training


# On a processor varlen is 1.4 to 1.75 times as fast as a mask from this many tokens on, and no faster below
# (tests/benchmarks/README.md).
LONG_ON_CPU = 2048
WITHOUT_MASK = ("varlen", "sdpa_causal")
WIDEST_HEAD = 256  # that FlashAttention 2 and 3 have a kernel for


def choose_attention(
    model: PreTrainedModel, training: Training, accelerator: Accelerator, longest: int | None = None
) -> None:
    """Set the attention function of training.attn_implementation.

    Args:
        model: on any device.
        training: the settings to train with.
        accelerator: of the run.
        longest: sequence length of the longest phase; None: training.sequence_length.

    Raises: RecipeError: it does not run on this machine; the message names one that does.
    """
    wanted, device = training.attn_implementation, accelerator.device.type
    longest = longest or training.sequence_length
    window, cap = shortest_window(model.config), getattr(model.config, "attn_logit_softcapping", None)
    slides = window is not None and window < longest
    problem = why_not_varlen(model.config, accelerator)
    if wanted == "auto":
        long = training.document_masking and training.sequence_length >= LONG_ON_CPU
        plain = cap is not None or takes_plain_attention(device, accelerator.mixed_precision != "no", longest)
        wanted = "varlen" if problem is None and (device == "cuda" or long) else "eager" if plain else "sdpa"
    if wanted == "sdpa" and cap is not None:
        raise RecipeError(
            "training.attn_implementation=sdpa has no soft-capped attention, which this model was trained with; use "
            "auto, which takes transformers' plain attention, or flex_attention on a GPU"
        )
    if wanted == "flex_attention" and device == "cpu":
        raise RecipeError("training.attn_implementation=flex_attention needs a GPU and this is cpu; use auto")
    if wanted == "varlen":
        if problem is not None:
            raise RecipeError(f"training.attn_implementation=varlen {problem}; use auto, which takes another here")
        if device == "cuda":
            use_newest_flash_attention(accelerator.device)
        document_attention.register()
        wanted = document_attention.NAME
    elif wanted == "sdpa" and not training.document_masking and not slides:
        # Under torch.compile transformers builds the mask of document borders even if there are none. For a function
        # that it does not know it builds no mask, and SDPA's causal kernel skips the half above the diagonal.
        AttentionInterface.register("sdpa_causal", sdpa_attention_forward)
        wanted = "sdpa_causal"
    model.set_attn_implementation(wanted)


def why_not_varlen(config: PreTrainedConfig, accelerator: Accelerator) -> str | None:
    """Return why the variable-length kernel cannot train a model on this machine; None if it can."""
    device = accelerator.device
    if dropout := attention_dropout(config):
        return f"has no dropout, and model.attention_dropout is {dropout:g}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "has no soft-capped attention, which this model was trained with"
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.hip:
        return f"needs a CUDA GPU or a processor, and this is {'ROCm' if torch.version.hip else device.type}"
    if accelerator.mixed_precision != "bf16":
        return f"computes in bf16, and mixed_precision is {accelerator.mixed_precision}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"needs an Ampere GPU or a newer one, and this is {torch.cuda.get_device_name(device)}"
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if width > WIDEST_HEAD or width % 8:
        return f"takes heads of a multiple of 8 up to {WIDEST_HEAD}, and the model's are {width} wide"
    return None


def use_newest_flash_attention(device: torch.device) -> None:
    """On a Hopper GPU replace torch's FlashAttention 2 by 3, where its package is installed.

    Raises: RecipeError: torch cannot use that package.
    """
    if torch.cuda.get_device_capability(device)[0] != 9 or find_spec("flash_attn_interface") is None:
        return
    try:
        activate_flash_attention_impl("FA3")
    except (ImportError, RuntimeError, ValueError) as error:
        raise RecipeError(
            f"flash_attn_interface (FlashAttention 3) is installed, but torch cannot use it: {error}; uninstall it, "
            "or set training.attn_implementation: sdpa"
        ) from error


def make_masks(config: PreTrainedConfig, position_ids: Tensor) -> Tensor | BlockMask | dict[str, Tensor | BlockMask]:
    """Return the mask of a batch as a model takes it, by kind of layer where it has several kinds.

    transformers makes the same one itself, but first asks the GPU whether any document begins within a row, and makes
    none if not: the host waits, and layers that are compiled one by one are compiled again.

    Args: position_ids: 0 where a document begins.
    """
    within_documents = packed_sequence_mask_function((position_ids == 0).cumsum(-1))
    hidden = torch.empty(*position_ids.shape, 0, device=position_ids.device)
    return create_masks_for_generate(config, hidden, None, None, and_mask_function=within_documents)


def is_causal(model: PreTrainedModel) -> bool:
    """Return whether the model's attention function skips what lies above the diagonal; with a mask, SDPA does not."""
    return model.config._attn_implementation not in ("sdpa", "eager")


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
