# SPDX-License-Identifier: Apache-2.0
"""The Llama model, or Qwen 3's where queries and keys are normalised: initial weights, context window, counts."""

import math
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from planning.model_shape import head_dim
from recipe_config import Model, Recipe, Training


def llama_config(settings: Model, vocab_size: int, sequence_length: int) -> LlamaConfig | Qwen3Config:
    """Return the config of a model that is made from scratch, in fp32."""
    shape = settings.model_dump(exclude={"rope_theta", "scaled_residual_init", "qk_norm"})
    if settings.qk_norm:  # what LlamaConfig derives, Qwen3Config sets to numbers of its own
        shape["head_dim"] = head_dim(settings)
        shape["num_key_value_heads"] = settings.num_key_value_heads or settings.num_attention_heads
    return (Qwen3Config if settings.qk_norm else LlamaConfig)(
        **{name: value for name, value in shape.items() if value is not None},
        vocab_size=vocab_size,
        max_position_embeddings=sequence_length,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        pad_token_id=None,
        dtype="float32",
    )


def build_model(recipe: Recipe, vocab_size: int) -> LlamaForCausalLM | Qwen3ForCausalLM:
    """Build the model with its initial weights, in fp32."""
    config = llama_config(recipe.model, vocab_size, recipe.training.sequence_length)
    model = (Qwen3ForCausalLM if recipe.model.qk_norm else LlamaForCausalLM)(config)
    # Each layer adds to the residual stream twice. This scale keeps the stream's variance from growing with depth
    # (GPT-2, section 2.3); transformers leaves it out for Llama.
    with torch.no_grad():
        for name, parameter in model.named_parameters() if recipe.model.scaled_residual_init else ():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return model


@dataclass(frozen=True)
class ContextWindow:
    """How many tokens a model sees and how RoPE numbers them, both of which a phase may change.

    Attributes:
        sequence_length: tokens of a training sequence.
        max_position_embeddings, rope_parameters: the config's fields; the latter is empty where positions are learned.
    """

    sequence_length: int
    max_position_embeddings: int
    rope_parameters: dict

    @staticmethod
    def of(model: PreTrainedModel, training: Training) -> "ContextWindow":
        """Return the context window of a model before the first phase."""
        config = model.config
        rope_parameters = dict(getattr(config, "rope_parameters", None) or {})
        return ContextWindow(training.sequence_length, config.max_position_embeddings, rope_parameters)

    def in_phase(self, phase: dict) -> "ContextWindow":
        """Return the context window of a phase, an item of mixture.phases.schedule_phases."""
        length = phase.get("sequence_length", self.sequence_length)
        rope_parameters = phase.get("rope_parameters", self.rope_parameters)
        if rotated := self.rope_parameters.get("partial_rotary_factor"):  # part of the shape, unlike the others
            rope_parameters = rope_parameters | {"partial_rotary_factor": rotated}
        return ContextWindow(length, max(length, self.max_position_embeddings), rope_parameters)

    def apply(self, model: PreTrainedModel) -> None:
        """Set this window in a model and in its config, which the export carries."""
        config = model.config
        config.max_position_embeddings = self.max_position_embeddings
        if self.rope_parameters and config.rope_parameters != self.rope_parameters:
            config.rope_parameters = dict(self.rope_parameters)
            rotary = model.base_model.rotary_emb
            model.base_model.rotary_emb = type(rotary)(config).to(rotary.inv_freq.device)


def count_module_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Count the parameters of a built model, adapters included.

    planning.model_shape.count_parameters counts those of a shape, by part.

    Returns: total; embedding, which is the projection too when tied; non_embedding, the rest; trained; adapters.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight.numel()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    adapters = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)
    counts = {"total": total, "embedding": embedding, "non_embedding": total - embedding}
    return counts | {"trained": trained, "adapters": adapters}
