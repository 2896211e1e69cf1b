# SPDX-License-Identifier: Apache-2.0
"""The module that is trained: a causal language model and its loss in one forward pass."""

import os
import shutil
import sysconfig
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from model.attention import choose_attention
from model.chunked_loss import chunked_loss, token_scores
from model.continued import load_model, with_shape_of
from model.llama import build_model
from recipe_config import Recipe, Training


class SummedLoss(nn.Module):
    """The module that is trained: a causal language model and its loss in one forward pass.

    Accelerate wraps the module it prepares; calling parts of a wrapped model skips DDP's gradient average without an
    error and fails under FSDP2, so the loss is computed in here.

    Args:
        language_model: with weights.
        compiled: by torch.compile: the layers in one graph, or with `by_layer` in one each, as FSDP2 needs it, which
            fetches weights between them; and the loss.
        document_masking: documents do not see each other; their borders are read off position_ids.
        z_loss: see chunked_loss.
    """

    def __init__(
        self,
        language_model: LlamaForCausalLM,
        compiled: bool,
        *,
        by_layer: bool = False,
        document_masking: bool = True,
        z_loss: float = 0.0,
    ):
        super().__init__()
        self.language_model, self.compiled, self.z_loss = language_model, compiled, z_loss
        self.document_masking = document_masking
        body = language_model.model
        for module in (body.layers if by_layer else [body]) if compiled else []:
            module.compile(dynamic=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor, by_token: bool = False) -> Tensor:
        """Return two sums over all labels that are not IGNORED_LABEL: what is minimised, and its nats.

        Args:
            input_ids: int64, (batch_size, sequence_length), as the other two.
            position_ids: see document_positions.
            labels: the tokens that follow, not shifted again.
            by_token: return what token_scores does of each label instead, (2, batch_size, sequence_length); this is
                not differentiated, but as much a forward pass of the module that Accelerate wraps.
        """
        if self.document_masking and self.language_model.config._attn_implementation == "flash_attention_2":
            # It finds the borders of documents in one row only. Each row begins at position 0, so rows stay apart.
            input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
        # Without a cache and without an attention mask, transformers reads the borders of the documents off
        # position_ids; with either, documents would see each other.
        hidden = self.language_model.model(
            input_ids=input_ids, position_ids=position_ids if self.document_masking else None, use_cache=False
        ).last_hidden_state  # (batch_size, sequence_length, hidden_size)
        weight = self.language_model.lm_head.weight
        if by_token:
            return token_scores(hidden.flatten(0, 1), weight, labels.flatten()).view(2, *labels.shape)
        return torch.stack(chunked_loss(hidden.flatten(0, 1), weight, labels.flatten(), self.z_loss, self.compiled))


def build_summed_loss(
    recipe: Recipe,
    training: Training,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_folder: Path,
    accelerator: Accelerator,
    compiled: bool,
) -> SummedLoss:
    """Build what is trained, as the recipe says; of a model that is gone on from, recipe.model gets the shape."""
    if recipe.model.from_pretrained is None:
        language_model = build_model(recipe, len(tokenizer), tokenizer.eos_token_id)
    else:
        language_model = load_model(recipe.model, tokenizer, tokenizer_folder, training.sequence_length)
        recipe.model = with_shape_of(recipe.model, language_model.config)
    choose_attention(language_model, training, accelerator)
    if training.gradient_checkpointing:
        language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return SummedLoss(
        language_model,
        compiled,
        by_layer=accelerator.distributed_type == DistributedType.FSDP,
        document_masking=training.document_masking,
        z_loss=training.z_loss,
    )


def find_missing_compiler() -> str | None:
    """Return what torch.compile lacks on this machine, with the package that brings it, or None."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "no C++ compiler (g++) is on the PATH; install it with: apt-get install g++"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"{header} is missing; install it with: apt-get install python3-dev"
    return None
