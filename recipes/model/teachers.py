# SPDX-License-Identifier: Apache-2.0
"""Finished models whose mean distribution another learns (https://huggingface.co/papers/1503.02531).

Each process holds them whole, without gradients, and computes their distributions for the rows of a chunk at a time.
They are no part of the model that is trained: Accelerate neither divides them nor saves them.
"""

import json
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from mixture.labels import IGNORED_LABEL
from model.attention import choose_attention
from model.chunked_loss import SoftTargets
from model.continued import key_and_value, load_config, load_weights
from model.families import scale_down, softcap
from model.summed_loss import SummedLoss
from planning.memory import rows_per_chunk
from recipe_config import Model, Recipe, RecipeError, Training
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


class TeacherModel(Model):
    """A model to learn from, which is loaded as one to continue is."""

    key: ClassVar[str] = "training.distillation"


def load_teachers(
    recipe: Recipe,
    training: Training,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    compiled: bool,
    by_layer: bool,
) -> Teachers:
    """Load the models that a run learns from.

    Args: by_layer: as the model that is trained is compiled.

    Raises: RecipeError: see load_teacher_config; or weights do not fit their config.
    """
    rules, models = rules_of(tokenizer, "the tokenizer"), []
    longest = recipe.data.longest_sequence(training.sequence_length)
    for folder in recipe.teacher_folders():
        model = load_weights(*load_teacher_config(recipe, folder, rules))
        choose_attention(model, training, accelerator, longest)
        models.append(SummedLoss(model, compiled, by_layer=by_layer, document_masking=training.document_masking))
    return Teachers(models, training.distillation.weight, count_ids(tokenizer)).to(accelerator.device)


def load_teacher_config(recipe: Recipe, folder: Path, rules: list | None) -> tuple[Model, PreTrainedConfig]:
    """Check a model to learn from by all but its weights, and return what load_weights takes.

    Args: rules: of the tokenizer of the run; None: it is not known yet.

    Raises: RecipeError: there is none, its config is refused as that of a base would be, or its tokenizer has other
        rules.
    """
    settings = TeacherModel(from_pretrained=str(folder))
    where = key_and_value(settings)
    if not (folder / "config.json").exists():
        raise RecipeError(f"{where}: no model there; name the folder of a finished model, such as runs/general/model")
    config = load_config(settings, recipe.training.sequence_length)
    longest = recipe.data.longest_sequence(recipe.training.sequence_length)
    if config.max_position_embeddings < longest:
        raise RecipeError(
            f"{where} was made for {config.max_position_embeddings} tokens, which is less than a sequence of "
            f"data.phases, of {longest}; shorten that, or leave this model out"
        )
    own = load_tokenizer(str(folder), None, where)
    if rules is not None and rules_of(own, f"{where}: its tokenizer") != rules:
        raise RecipeError(f"{where}: its tokenizer is not that of this run, and the same token must mean the same")
    if config.vocab_size < count_ids(own):
        raise RecipeError(
            f"{where} has {config.vocab_size:,} rows for the {count_ids(own):,} tokens of its tokenizer; choose "
            "another model"
        )
    return settings, config


def load_tokenizer(place: str, revision: str | None, where: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where}: its tokenizer cannot be loaded: {error}") from error


def count_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many rows the tokens of a tokenizer need; some numbers may be of none."""
    return 1 + max(tokenizer.get_vocab().values())


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
