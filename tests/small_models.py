# SPDX-License-Identifier: Apache-2.0
"""A small model of each family, with random weights and its real config class."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": None,
}
ONE_HEAD_EACH = {key: value for key, value in SHAPE.items() if key not in ("num_key_value_heads", "head_dim")}
SLIDES = {"sliding_window": 5}
ALTERNATES = SLIDES | {"layer_types": ["sliding_attention", "full_attention"]}
# What is peculiar to a family is set to values that no other family computes by chance.
FAMILY_CONFIGS = {
    "llama": SHAPE,
    "mistral": SHAPE | SLIDES,
    "qwen2": SHAPE | {"tie_word_embeddings": True},
    "qwen3": SHAPE | {"tie_word_embeddings": True},
    "smollm3": SHAPE | {"no_rope_layers": [1, 0]},
    "olmo2": SHAPE,
    "olmo3": SHAPE | ALTERNATES,
    "gemma2": SHAPE | ALTERNATES | {"final_logit_softcapping": 0.5, "attn_logit_softcapping": 2.0},
    "gemma3_text": SHAPE | ALTERNATES,
    "phi3": SHAPE,
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
    | {"eos_token_id": 0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "gpt_neox": ONE_HEAD_EACH | {"rotary_pct": 0.5},
    "granite": SHAPE
    | {"logits_scaling": 3.0, "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2},
}


def small_model(family: str, **changes) -> PreTrainedModel:
    """Return a model of a family with random weights; biases are random too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILY_CONFIGS[family] | changes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2 if parameter.ndim > 1 else 0.1).add_(1.0 if is_gain(name, family) else 0.0)
    return model


def is_gain(name: str, family: str) -> bool:
    return name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")) and "gemma" not in family
