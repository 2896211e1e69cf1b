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
from vocabulary.document_ends import settle_document_ends
from vocabulary.taken_tokenizer import exact_tokenizer, parts


class Teachers(nn.Module):
    """The models, on the device of a run; called like SummedLoss, they give the loss of their mean distribution.

    Args:
        models: in SummedLoss, which knows the borders of documents.
        share: see SoftTargets.
        num_tokens: of the tokenizer, whose rows alone are used: real models have more. None: as many as rows.
    """

    def __init__(self, models: list[SummedLoss], share: float, num_tokens: int | None = None):
        super().__init__()
        self.models, self.share = nn.ModuleList(models).requires_grad_(False), share
        self.num_tokens = num_tokens
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
            config = model.language_model.config
            weight = model.language_model.get_output_embeddings().weight[: self.num_tokens]
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
        rows = rows_per_chunk(len(soft.models[0][1]), input_ids.device.type)
        nats = torch.zeros((), device=input_ids.device)
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
    training: Training,
    accelerator: Accelerator,
    compiled: bool,
    by_layer: bool,
) -> Teachers:
    """Load the models that a run learns from.

    Args: by_layer: as the model that is trained is compiled.

    Raises: RecipeError: a folder has no model, or one with another tokenizer.
    """
    rules, num_tokens, models = rules_of(tokenizer, "the tokenizer"), 1 + max(tokenizer.get_vocab().values()), []
    for folder in folders:
        where = f"training.distillation: {folder}"
        if not (folder / "config.json").exists():
            raise RecipeError(f"{where}: no model there; run_recipe.py trains members, and teachers are model folders")
        own = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if rules_of(own, f"{where}: its tokenizer") != rules:
            raise RecipeError(f"{where}: its tokenizer is not that of this run, and the same token must mean the same")
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        if (rows := len(model.get_output_embeddings().weight)) < num_tokens:
            raise RecipeError(f"{where}: it has {rows:,} rows for the {num_tokens:,} tokens of its tokenizer")
        choose_attention(model, training, accelerator, training.sequence_length)
        models.append(SummedLoss(model, compiled, by_layer=by_layer, document_masking=training.document_masking))
    return Teachers(models, share, num_tokens).to(accelerator.device)


def rules_of(tokenizer: PreTrainedTokenizerBase, where: str) -> list:
    """Return what decides which tokens a text becomes, once a run has taken a tokenizer.

    Raises: RecipeError: a run cannot take it.
    """
    exact, _ = exact_tokenizer(tokenizer, where)
    settle_document_ends(tokenizer, where)
    content = json.loads(exact.to_str())
    # The class of a family writes "" or false where a file leaves a setting out.
    model = {name: value for name, value in content["model"].items() if value}
    steps = [parts(content["normalizer"], "normalizers"), parts(content["pre_tokenizer"], "pretokenizers")]
    return [model, *steps, content["added_tokens"], tokenizer.bos_token_id, tokenizer.eos_token_id]
