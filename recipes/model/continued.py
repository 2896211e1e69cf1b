# SPDX-License-Identifier: Apache-2.0
"""Go on from a model that exists: its weights loaded strictly, rows for new entries, adapters, and their merging.

    model:
      from_pretrained: HuggingFaceTB/SmolLM2-135M   # or a folder, such as runs/general/model
      lora: {rank: 16}                              # leave out to train every weight
    tokenizer:
      extend_by: 2_000                              # leave out to keep the old tokenizer

Everything else is as from scratch. The learning rate rises from nothing again, to a peak that a trained model bears
(a third to a tenth of the one it was made with), and a source of general text with a share keeps what it knew.
"""

import json
from pathlib import Path

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from recipe_config import Lora, Model, RecipeError
from vocabulary.tokenizer_extension import extend_embeddings


NEW_ENTRIES = "new_entries.json"  # of the tokenizer folder: number of an entry -> numbers of the pieces that it was


def load_model(
    settings: Model, tokenizer: PreTrainedTokenizerBase, tokenizer_folder: Path, sequence_length: int
) -> LlamaForCausalLM:
    """Load the model to go on from, in fp32, with rows for new entries and with adapters where the recipe has them.

    Args:
        settings: the recipe's model section, whose from_pretrained is set.
        tokenizer: that of the run: the model's own, or extended.
        tokenizer_folder: where it lies, with NEW_ENTRIES where it was extended.
        sequence_length: of training (tokens).

    Raises: RecipeError: not a Llama, weights missing or left over, too short a context, or no such projection.
    """
    where = f"model.from_pretrained={settings.from_pretrained!r}"
    place = {"revision": settings.revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(settings.from_pretrained, **place)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where}: cannot be loaded: {error}") from error
    if config.model_type != "llama":
        raise RecipeError(f"{where} is of type {config.model_type!r}; training knows llama, so choose one of these")
    if config.max_position_embeddings < sequence_length:
        raise RecipeError(
            f"{where} was made for {config.max_position_embeddings} tokens, which is less than "
            f"training.sequence_length={sequence_length}; lower that"
        )
    config.attention_dropout = 0.0
    try:
        model, report = LlamaForCausalLM.from_pretrained(
            settings.from_pretrained,
            config=config,
            dtype="float32",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with all that is wrong
            **place,
        )
    except OSError as error:
        raise RecipeError(f"{where}: cannot be loaded: {error}") from error
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        found = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(names[:3])}" for kind, names in wrong.items())
        raise RecipeError(f"{where} does not fit its config.json: {found}; fetch it anew")

    extended = tokenizer_folder / NEW_ENTRIES
    if extended.exists():
        pieces = json.loads(extended.read_text(encoding="utf-8"))
        extend_embeddings(model, {int(number): numbers for number, numbers in pieces.items()})
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise RecipeError(f"{where} has {rows} rows for {len(tokenizer)} entries of its tokenizer; choose another")
    model.config.bos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = None
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    if settings.lora is not None:
        add_adapters(model, settings.lora)
        if extended.exists():  # new rows begin as the mean of their pieces, and have to become words of their own
            model.get_input_embeddings().weight.requires_grad_(True)
            model.get_output_embeddings().weight.requires_grad_(True)
    return model.train()


def with_shape_of(settings: Model, config: LlamaConfig) -> Model:
    """Return the recipe's model section with the shape of the loaded model, as recipe.yaml of the run shows it."""
    not_of_shape = {"from_pretrained", "revision", "lora", "rope_theta", "scaled_residual_init"}
    names = type(settings).model_fields.keys() - not_of_shape
    shape = {name: getattr(config, name) for name in names}
    return settings.model_copy(update=shape | {"rope_theta": float(config.rope_parameters["rope_theta"])})


def lora_config(settings: Lora) -> LoraConfig:
    alpha = settings.alpha or 2 * settings.rank
    return LoraConfig(r=settings.rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(settings.targets))


def add_adapters(model: LlamaForCausalLM, settings: Lora) -> None:
    """Put adapters beside the targets and freeze everything else. Until they are trained, the model is as it was."""
    present = {name.rpartition(".")[2] for name, _ in model.model.layers.named_modules() if name.endswith("_proj")}
    unknown = sorted(set(settings.targets) - present)
    if unknown:
        raise RecipeError(f"model.lora.targets: no {', '.join(unknown)}; the layers have {', '.join(sorted(present))}")
    inject_adapter_in_model(lora_config(settings), model)


def merge_adapters(model: LlamaForCausalLM) -> None:
    """Add each adapter's product to the weight beside it and take the adapter away; without adapters, do nothing."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
    model.requires_grad_(True)
