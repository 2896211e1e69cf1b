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
from pathlib import Path

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from recipe_config import Lora, Model, RecipeError, refuse_missing_folder
from vocabulary.tokenizer_extension import extend_embeddings


NEW_TOKENS = "new_entries.json"  # in the tokenizer folder: id of a new token -> ids of the old tokens that it joins


def load_model(
    settings: Model, tokenizer: PreTrainedTokenizerBase, tokenizer_folder: Path, sequence_length: int
) -> LlamaForCausalLM:
    """Load the model to continue from, in fp32, with rows for new tokens and with the recipe's adapters.

    Args:
        settings: the recipe's model section, with from_pretrained.
        tokenizer: of the run: the model's own, or extended.
        tokenizer_folder: its folder, with NEW_TOKENS if it was extended.
        sequence_length: of training (tokens).

    Raises: RecipeError: not a Llama, weights missing or left over, too short a context, or no such projection.
    """
    model = load_weights(settings, load_config(settings, sequence_length))
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


def load_config(settings: Model, sequence_length: int) -> LlamaConfig:
    """Load the config of the model to continue from.

    Raises: RecipeError: it cannot be loaded, is not a Llama's, or allows fewer tokens than a sequence has.
    """
    where = key_and_value(settings)
    refuse_missing_folder("model.from_pretrained", settings.from_pretrained)
    try:
        config = AutoConfig.from_pretrained(settings.from_pretrained, **pinned(settings))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where}: cannot be loaded: {error}") from error
    if config.model_type != "llama":
        raise RecipeError(f"{where} is of type {config.model_type!r}; only llama can be trained: choose a Llama model")
    if config.max_position_embeddings < sequence_length:
        raise RecipeError(
            f"{where} was made for {config.max_position_embeddings} tokens, which is less than "
            f"training.sequence_length={sequence_length}; lower that"
        )
    config.attention_dropout = 0.0
    return config


def load_weights(settings: Model, config: LlamaConfig) -> LlamaForCausalLM:
    """Load the weights of the model to continue from, in fp32.

    Raises: RecipeError: they cannot be loaded, or are not exactly the tensors of the config.
    """
    where = key_and_value(settings)
    try:
        model, report = LlamaForCausalLM.from_pretrained(
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
    return model


def refuse_missing_rows(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, settings: Model) -> None:
    """Refuse a model with fewer rows than its tokenizer has tokens."""
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise RecipeError(
            f"{key_and_value(settings)} has {rows} rows for the {len(tokenizer)} tokens of its tokenizer; choose "
            "another model"
        )


def key_and_value(settings: Model) -> str:
    return f"model.from_pretrained={settings.from_pretrained!r}"


def pinned(settings: Model) -> dict:
    return {"revision": settings.revision, "trust_remote_code": False}


def with_shape_of(settings: Model, config: LlamaConfig) -> Model:
    """Return the recipe's model section with the shape of the model that was loaded, if one was.

    recipe.yaml of the run shows this shape.
    """
    if settings.from_pretrained is None:
        return settings
    not_of_shape = {"from_pretrained", "revision", "lora", "rope_theta", "scaled_residual_init"}
    names = type(settings).model_fields.keys() - not_of_shape
    shape = {name: getattr(config, name) for name in names}
    return settings.model_copy(update=shape | {"rope_theta": float(config.rope_parameters["rope_theta"])})


def lora_config(settings: Lora) -> LoraConfig:
    alpha = settings.alpha or 2 * settings.rank
    return LoraConfig(r=settings.rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(settings.targets))


def add_adapters(model: LlamaForCausalLM, settings: Lora) -> None:
    """Add adapters to the targets and freeze everything else. Until they are trained, the model computes the same.

    Raises: RecipeError: the layers have no such projection.
    """
    present = {name.rpartition(".")[2] for name, _ in model.model.layers.named_modules() if name.endswith("_proj")}
    unknown = sorted(set(settings.targets) - present)
    if unknown:
        raise RecipeError(f"model.lora.targets: no {', '.join(unknown)}; the layers have {', '.join(sorted(present))}")
    inject_adapter_in_model(lora_config(settings), model)


def merge_adapters(model: LlamaForCausalLM) -> None:
    """Add each adapter's product to its weight and remove the adapter; without adapters, only unfreeze the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
    model.requires_grad_(True)
