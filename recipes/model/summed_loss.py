# SPDX-License-Identifier: Apache-2.0
"""The module to train: a causal language model and its loss in one forward pass."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from model.attention import choose_attention
from model.chunked_loss import chunked_loss, token_scores
from model.continued import load_model
from model.llama import build_model
from recipe_config import Recipe, Training
from vocabulary.document_ends import set_document_ends


class SummedLoss(nn.Module):
    """A causal language model and its loss in one forward pass.

    Accelerate wraps the module it prepares. Calling parts of a wrapped model skips DDP's gradient average without an
    error and fails under FSDP2, so the loss is computed here.

    Args:
        language_model: the model, with its weights.
        compiled: compile the loss and the layers with torch.compile.
        by_layer: compile each layer on its own, as FSDP2 needs it, which fetches weights between layers; else all
            layers are one graph.
        document_masking: keep attention within a document; position_ids give the borders.
        z_loss: coefficient; see chunked_loss.
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
        """Return two sums over all labels that are not IGNORED_LABEL: the loss to minimise, and its nats.

        Args:
            input_ids: int64, (batch_size, sequence_length), like position_ids and labels.
            position_ids: of document_positions.
            labels: the next token of each position; they are not shifted here.
            by_token: return token_scores of each label instead, (2, batch_size, sequence_length), without a gradient.
                Scoring goes through forward too, since Accelerate wraps no other method.
        """
        if self.document_masking and self.language_model.config._attn_implementation == "flash_attention_2":
            # It finds the borders of documents in one row only. Each row begins at position 0, so rows stay apart.
            input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
        # transformers reads the borders of documents off position_ids only without a cache and without an attention
        # mask; with either, documents would see each other.
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
    """Build the module that the recipe describes, with new weights or with those of model.from_pretrained."""
    if recipe.model.from_pretrained is None:
        language_model = build_model(recipe, len(tokenizer))
    else:
        language_model = load_model(recipe.model, tokenizer, tokenizer_folder, training.sequence_length)
    set_document_ends(language_model, tokenizer)
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
