# SPDX-License-Identifier: Apache-2.0
"""Finished models whose mean distribution another learns (https://huggingface.co/papers/1503.02531).

Each process holds them whole, without gradients, and computes their distributions for the rows of a chunk at a time.
They are no part of the model that is trained: Accelerate neither divides them nor saves them.
"""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from mixture.labels import IGNORED_LABEL
from model.attention import choose_attention
from model.chunked_loss import SoftTargets
from model.families import scale_down, softcap
from model.summed_loss import SummedLoss
from planning.memory import rows_per_chunk
from recipe_config import RecipeError, Training


class Teachers(nn.Module):
    """The models, on the device of a run; called like SummedLoss, they give the loss of their mean distribution.

    Args:
        models: in SummedLoss, which knows the borders of documents.
        share: see SoftTargets.
    """

    def __init__(self, models: list[SummedLoss], share: float):
        super().__init__()
        self.models, self.share = nn.ModuleList(models).requires_grad_(False), share
        self.train()

    def train(self, mode: bool = True) -> "Teachers":
        """Leave the models as they are evaluated, without dropout."""
        return super().train(False)

    @torch.no_grad()
    def soft_targets(
        self, input_ids: Tensor, position_ids: Tensor, cumulative_lengths: Tensor | None = None
    ) -> SoftTargets:
        """Return the distributions of all tokens of a batch, for chunked_loss to make in chunks."""
        device, models = input_ids.device.type, []
        for model in self.models:
            weight, config = model.language_model.get_output_embeddings().weight, model.language_model.config
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
            hidden = model.hidden_states(input_ids, position_ids, cumulative_lengths).flatten(0, 1)
            models.append((scale_down(hidden, config).to(dtype), weight.to(dtype), softcap(config)))
        return SoftTargets(self.share, models)

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, position_ids: Tensor, labels: Tensor, cumulative_lengths: Tensor | None = None
    ) -> Tensor:
        """Return the nats of all labels that are not IGNORED_LABEL by the mean distribution, twice, as SummedLoss."""
        soft, labels = self.soft_targets(input_ids, position_ids, cumulative_lengths), labels.flatten()
        vocab_size = len(soft.models[0][1])
        rows, nats = rows_per_chunk(vocab_size, input_ids.device.type), torch.zeros((), device=input_ids.device)
        with torch.autocast(input_ids.device.type, enabled=False):
            for start in range(0, len(labels), rows):
                chunk = slice(start, start + rows)
                logs = soft.distribution(chunk).log()
                nats += F.nll_loss(logs, labels[chunk], ignore_index=IGNORED_LABEL, reduction="sum")
        return torch.stack([nats, nats])


def load_teachers(
    folders: list[Path],
    share: float,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    training: Training,
    accelerator: Accelerator,
    compiled: bool,
    by_layer: bool,
) -> Teachers:
    """Load the models that a run learns from.

    Args: vocab_size: rows of the projection of the model that is trained.  by_layer: as it is compiled.

    Raises: RecipeError: a folder has no model, or one with another tokenizer or vocabulary.
    """
    models = []
    for folder in folders:
        where = f"training.distillation: {folder}"
        if not (folder / "config.json").exists():
            raise RecipeError(f"{where}: no model there; run_recipe.py trains members, and teachers are model folders")
        own = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if rules_of(own) != rules_of(tokenizer):
            raise RecipeError(f"{where}: its tokenizer is not that of this run, and the same token must mean the same")
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        if (rows := len(model.get_output_embeddings().weight)) != vocab_size:
            raise RecipeError(f"{where}: its vocabulary is {rows:,}, not {vocab_size:,} as of the model that learns")
        choose_attention(model, training, accelerator, training.sequence_length)
        models.append(SummedLoss(model, compiled, by_layer=by_layer, document_masking=training.document_masking))
    return Teachers(models, share).to(accelerator.device)


def rules_of(tokenizer: PreTrainedTokenizerBase) -> list:
    """Return what decides which tokens a text becomes."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = [content[part] for part in ("model", "pre_tokenizer", "normalizer", "added_tokens")]
    return [*rules, tokenizer.bos_token_id, tokenizer.eos_token_id]
