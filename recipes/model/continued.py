# SPDX-License-Identifier: Apache-2.0
"""Continue from a model that exists: load its weights strictly, add rows for new tokens, add and merge adapters.

    model:
      from_pretrained: HuggingFaceTB/SmolLM2-135M   # or a folder, such as runs/general/model
      lora: {rank: 16}                              # leave out to train every weight
    tokenizer:
      extend_by: 2_000                              # leave out to keep the old tokenizer

Everything else is as from scratch. The learning rate warms up again, to a peak of a third to a tenth of the one that
the model was trained with. A source of general text with a share keeps the model's general knowledge.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NoReturn

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from model.families import PLAIN_FEED_FORWARD, refuse_other_families, set_dropouts
from recipe_config import Lora, Model, Phase, RecipeError, refuse_missing_folder
from vocabulary.tokenizer_extension import extend_embeddings


NEW_TOKENS = "new_entries.json"  # in the tokenizer folder: id of a new token -> ids of the old tokens that it joins


def load_model(
    settings: Model,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_folder: Path,
    sequence_length: int,
    phases: Sequence[Phase] = (),
) -> PreTrainedModel:
    """Load the model to continue from, in fp32, with rows for new tokens and with the recipe's adapters.

    Args:
        settings: the recipe's model section, with from_pretrained.
        tokenizer: of the run: the model's own, or extended.
        tokenizer_folder: its folder, with NEW_TOKENS if it was extended.
        sequence_length: of training (tokens).
        phases: of the recipe, which may have longer sequences.

    Raises: RecipeError: see load_config and load_weights; or the layers lack a projection of model.lora.targets.
    """
    model = load_weights(settings, load_config(settings, sequence_length, phases))
    extended = tokenizer_folder / NEW_TOKENS
    if extended.exists():
        pieces = json.loads(extended.read_text(encoding="utf-8"))
        extend_embeddings(model, {int(number): numbers for number, numbers in pieces.items()})
    refuse_missing_rows(model, tokenizer, settings)
    if settings.lora is not None:
        add_adapters(model, settings.lora)
        if extended.exists():  # new rows begin as the mean of their pieces and have to be trained
            model.get_input_embeddings().weight.requires_grad_(True)
            model.get_output_embeddings().weight.requires_grad_(True)
    return model.train()


def load_config(settings: Model, sequence_length: int, phases: Sequence[Phase] = ()) -> PreTrainedConfig:
    """Load the config of the model to continue from.

    Raises: RecipeError: it cannot be loaded, is of no known family, or allows fewer tokens than a sequence has.
    """
    where = key_and_value(settings)
    refuse_missing_folder(settings.key, settings.from_pretrained)
    try:
        config = AutoConfig.from_pretrained(settings.from_pretrained, **pinned(settings))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where}: cannot be loaded: {error}{advice(settings, error)}") from error
    refuse_other_families(config, where)
    if config.max_position_embeddings < sequence_length:
        raise RecipeError(
            f"{where} was made for {config.max_position_embeddings} tokens, which is less than "
            f"training.sequence_length={sequence_length}; lower that"
        )
    if not has_plain_rotation(config):
        for phase in phases:
            if phase.rope_parameters is not None or (phase.sequence_length or 0) > config.max_position_embeddings:
                raise RecipeError(
                    f"{where}, of type {config.model_type}, has positions that no phase can stretch beyond "
                    f"{config.max_position_embeddings} tokens; leave rope_parameters of data.phases out and shorten "
                    "its sequences, or choose another model"
                )
    set_dropouts(config, settings.attention_dropout)
    if hasattr(config, "auto_map"):  # of code that is neither run nor published
        del config.auto_map
    return config


def has_plain_rotation(config: PreTrainedConfig) -> bool:
    """Return whether positions are rotations of one kind: not learned (GPT-2), nor different between layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return "rope_theta" in parameters


def advice(settings: Model, error: Exception) -> str:
    """Return what to do about an error of the Hub."""
    if isinstance(error.__cause__, GatedRepoError):
        place = f"https://huggingface.co/{settings.from_pretrained}"
        return f"; accept its terms on {place}, then run `hf auth login` or set HF_TOKEN"
    return ""


def load_weights(settings: Model, config: PreTrainedConfig) -> PreTrainedModel:
    """Load the weights of the model to continue from, in fp32.

    Raises: RecipeError: they cannot be loaded, or are not exactly the tensors of the config.
    """
    where = key_and_value(settings)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            settings.from_pretrained,
            config=config,
            dtype="float32",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with everything else that is wrong
            **pinned(settings),
        )
    except OSError as error:
        raise RecipeError(f"{where}: cannot be loaded: {error}") from error
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        found = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(names[:3])}" for kind, names in wrong.items())
        raise RecipeError(f"{where} does not fit its config.json: {found}; download it again")
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    if config.tie_word_embeddings and not tied:
        refuse_untied(where)
    return model


def refuse_untied(where: str) -> NoReturn:
    raise RecipeError(
        f"{where}: its config.json says tie_word_embeddings: true, and its files have an output projection of their "
        "own; set it to false in a copy of the folder"
    )


def refuse_missing_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Model) -> None:
    """Refuse a model with fewer rows than its tokenizer has tokens."""
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise RecipeError(
            f"{key_and_value(settings)} has {rows} rows for the {len(tokenizer)} tokens of its tokenizer; choose "
            "another model"
        )


def loaded_commit(settings: Model) -> str | None:
    """Return the commit of a base that was loaded from the Hub: the name of its folder in the cache. Else None."""
    if settings.from_pretrained is None or Path(settings.from_pretrained).exists():
        return None
    config = try_to_load_from_cache(settings.from_pretrained, "config.json", revision=settings.revision)
    return Path(config).parent.name if isinstance(config, str) else None


def key_and_value(settings: Model) -> str:
    return f"{settings.key}={settings.from_pretrained!r}"


def pinned(settings: Model) -> dict:
    return {"revision": settings.revision, "trust_remote_code": False}


class PlainModel(Model):
    """The shape of a model with plain feed-forward layers."""

    plain: ClassVar[bool] = True


def with_shape_of(settings: Model, config: PreTrainedConfig) -> Model:
    """Return the recipe's model section with the shape of the model that was loaded, if one was.

    recipe.yaml of the run shows this shape.
    """
    if settings.from_pretrained is None:
        return settings
    not_of_shape = {"from_pretrained", "revision", "lora", "rope_theta", "scaled_residual_init"}
    names = type(settings).model_fields.keys() - not_of_shape
    shape = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    shape.setdefault("intermediate_size", 4 * config.hidden_size)  # GPT-2's config leaves it out
    shape["qk_norm"] = config.model_type == "qwen3"
    if has_plain_rotation(config):
        shape["rope_theta"] = float(config.rope_parameters["rope_theta"])
    kind = PlainModel if config.model_type in PLAIN_FEED_FORWARD else type(settings)
    return kind.model_construct(**dict(settings) | shape)


def lora_config(settings: Lora, model: PreTrainedModel, where: str) -> LoraConfig:
    """Return peft's settings. The default targets, which are Llama's names, stand for every projection of a family.

    Raises: RecipeError: the model has no projection of a name.
    """
    parts = [(name, part) for name, part in model.named_modules() if part is not model.get_output_embeddings()]
    present = {name.rpartition(".")[2] for name, part in parts if isinstance(part, nn.Linear | Conv1D)}
    targets: list[str] | str = list(settings.targets)
    if targets == Lora.model_fields["targets"].default:
        targets = "all-linear"
    elif unknown := sorted(set(targets) - present):
        raise RecipeError(f"{where}.targets: no {', '.join(unknown)}; the layers have {', '.join(sorted(present))}")
    alpha = settings.alpha or 2 * settings.rank
    return LoraConfig(r=settings.rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)


def add_adapters(model: PreTrainedModel, settings: Lora) -> None:
    """Add adapters to the targets and freeze everything else. Until they are trained, the model computes the same.

    Raises: RecipeError: the layers have no such projection.
    """
    inject_adapter_in_model(lora_config(settings, model, "model.lora"), model)


def merge_adapters(model: PreTrainedModel) -> None:
    """Add each adapter's product to its weight and remove the adapter; without adapters, only unfreeze the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
    model.requires_grad_(True)
