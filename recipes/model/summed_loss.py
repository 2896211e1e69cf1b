# SPDX-License-Identifier: Apache-2.0
"""The module to train: a causal language model and its loss in one forward pass."""

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixture.document_borders import cumulative_lengths as count_lengths
from model import document_attention
from model.attention import WITHOUT_MASK, choose_attention, make_masks
from model.chunked_loss import chunked_loss, token_scores
from model.continued import load_model
from model.dropout import add_dropout
from model.families import layers, scale_down, softcap
from model.llama import build_model
from recipe_config import Recipe, Training
from vocabulary.document_ends import set_document_ends, stops_of


GRAPHS = 64  # that torch.compile may make of the layers


class SummedLoss(nn.Module):
    """A causal language model and its loss in one forward pass.

    Accelerate wraps the module it prepares. Calling parts of a wrapped model skips DDP's gradient average without an
    error and fails under FSDP2, so the loss is computed here.

    Args:
        language_model: the model, with its weights.
        compiled: compile the loss and the layers with torch.compile.
        by_layer: compile each layer on its own: one graph for all, in seconds, and what FSDP2 needs, which fetches
            weights between layers. Else all layers are one graph.
        document_masking: keep attention within a document; position_ids give the borders.
        z_loss: coefficient; see chunked_loss.

    Attributes:
        teachers: where to learn from other models too: (Teachers,), in a tuple that hides them from Accelerate.
    """

    teachers: tuple = ()

    def __init__(
        self,
        language_model: PreTrainedModel,
        compiled: bool,
        *,
        by_layer: bool = False,
        document_masking: bool = True,
        z_loss: float = 0.0,
    ):
        super().__init__()
        self.language_model, self.compiled, self.z_loss = language_model, compiled, z_loss
        self.document_masking = document_masking
        # Elsewhere transformers makes them: a processor waits for none, and rows of one document need none.
        self.makes_masks = by_layer
        if compiled:
            # All layers share one limit. Each kind of layer has graphs for training and evaluation, for each length
            # of a phase and of the list of documents; above torch's limit of 8 they would run uncompiled.
            torch._dynamo.config.recompile_limit = GRAPHS
        if compiled and by_layer:
            # It would divide graphs at DDP's buckets; a layer's gradients are ready with its own graph.
            torch._dynamo.config.optimize_ddp = False
        parts = layers(language_model) if by_layer else [language_model.base_model]
        for module in parts if compiled else []:
            module.compile(dynamic=False)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        by_token: bool = False,
        cumulative_lengths: Tensor | None = None,
    ) -> Tensor:
        """Return two sums over all labels that are not IGNORED_LABEL: the loss to minimise, and its nats.

        Args:
            input_ids: int64, (batch_size, sequence_length), like position_ids and labels.
            position_ids: of document_positions.
            labels: the next token of each position; they are not shifted here.
            by_token: return token_scores of each label instead, (2, batch_size, sequence_length), without a gradient.
                Scoring goes through forward too, since Accelerate wraps no other method.
            cumulative_lengths: of mixture.document_borders, for attention without a mask. None: counted here, for
                which a GPU has to be waited for.
        """
        soft = None
        for teachers in self.teachers if self.training else ():
            soft = teachers.soft_targets(input_ids, position_ids, cumulative_lengths)
        hidden = self.hidden_states(input_ids, position_ids, cumulative_lengths).flatten(0, 1)
        weight, config = self.language_model.get_output_embeddings().weight, self.language_model.config
        hidden, cap = scale_down(hidden, config), softcap(config)
        if by_token:
            return token_scores(hidden, weight, labels.flatten(), cap).view(2, *labels.shape)
        return torch.stack(chunked_loss(hidden, weight, labels.flatten(), self.z_loss, self.compiled, cap, soft))

    def hidden_states(
        self, input_ids: Tensor, position_ids: Tensor, cumulative_lengths: Tensor | None = None
    ) -> Tensor:
        """Return the last hidden states, (batch_size, sequence_length, hidden_size); see forward."""
        borders, config = {}, self.language_model.config
        if config._attn_implementation == document_attention.NAME:
            if not self.document_masking:  # each row is one document
                ends = input_ids.numel() + 1
                cumulative_lengths = torch.arange(
                    0, ends, input_ids.shape[1], dtype=torch.int32, device=input_ids.device
                )
            elif cumulative_lengths is None:
                cumulative_lengths = count_lengths(position_ids.cpu().numpy()).to(input_ids.device)
            borders = {"cumulative_lengths": cumulative_lengths}
        elif self.makes_masks and config._attn_implementation not in WITHOUT_MASK:
            rows = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
            borders = {"attention_mask": make_masks(config, position_ids if self.document_masking else rows)}
        # In a graph transformers reads the borders of documents off position_ids, but only without a cache.
        position_ids = position_ids if self.document_masking else None
        body = self.language_model.base_model
        return body(input_ids=input_ids, position_ids=position_ids, use_cache=False, **borders).last_hidden_state


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
        language_model, stops = build_model(recipe, len(tokenizer)), []
    else:
        language_model = load_model(
            recipe.model, tokenizer, tokenizer_folder, training.sequence_length, recipe.data.phases
        )
        # A base without a template answers no chat, and its end of text may be one that the tokenizer lacks.
        stops = stops_of(language_model) if tokenizer.chat_template else []
    set_document_ends(language_model, tokenizer, stops)
    longest = recipe.data.longest_sequence(training.sequence_length)
    choose_attention(language_model, training, accelerator, longest)
    if training.dropout:
        add_dropout(language_model, training.dropout)
    if training.gradient_checkpointing:
        language_model.gradient_checkpointing_enable({"use_reentrant": False})
    # flex_attention's mask is made in the graph of all layers.
    on_gpu = accelerator.device.type != "cpu" and language_model.config._attn_implementation != "flex_attention"
    by_layer = accelerator.distributed_type == DistributedType.FSDP or on_gpu
    model = SummedLoss(
        language_model,
        compiled,
        by_layer=by_layer,
        document_masking=training.document_masking,
        z_loss=training.z_loss,
    )
    if training.distillation is not None:
        from model.teachers import load_teachers  # only here: teachers are such modules too

        model.teachers = (load_teachers(recipe, training, tokenizer, accelerator, compiled, by_layer),)
    return model
