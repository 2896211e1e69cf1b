# SPDX-License-Identifier: Apache-2.0
"""The families of models that can be continued, and where each keeps what training and the probe look at.

All are dense decoders that transformers builds from its own code. What differs between them is asked of the model and
its config, so that a family is a line in FAMILIES.
"""

import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recipe_config import RecipeError


FAMILIES = {  # model_type of config.json: name
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "phi3": "Phi-3",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX and Pythia",
    "granite": "Granite",
}
PLAIN_FEED_FORWARD = ("gpt2", "gpt_neox")  # two matrices and biases, where the others have three and none
ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop")  # as configs call it; each family has one of them
OTHER_DROPOUTS = ("embd_pdrop", "hidden_dropout", "resid_pdrop")


def refuse_other_families(config: PreTrainedConfig, where: str) -> None:
    """Refuse a model of another family, or one that the code in its repository may build differently.

    Raises: RecipeError: it lists the families.
    """
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES.values())
        raise RecipeError(f"{where} is of type {config.model_type!r}; choose a model of one of: {known}")
    refuse_own_code(config, where)


def refuse_own_code(config: PreTrainedConfig, where: str) -> None:
    """Refuse a model whose config names a class that transformers lacks: it would build its own in that one's place.

    Models that came to transformers later, such as Phi-3, name the class that it has too.

    Raises: RecipeError: it names the class.
    """
    mapped = (getattr(config, "auto_map", None) or {}).values()
    named = [name.rpartition(".")[2] for name in mapped if isinstance(name, str)] + (config.architectures or [])
    own = [name for name in named if not hasattr(transformers, name)]
    if own:
        raise RecipeError(
            f"{where}: its config.json names code of its own, {own[0]}, in auto_map or architectures, and no such "
            "code is run; choose a model that transformers builds itself"
        )


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a model."""
    return next(child for child in model.base_model.children() if isinstance(child, nn.ModuleList))


def projections(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear modules of the layers by their names within them."""
    return {name: part for name, part in layers(model).named_modules() if isinstance(part, nn.Linear | Conv1D)}


def attention(layer: nn.Module) -> nn.Module:
    """Return a layer's attention."""
    return next(child for child in layer.children() if type(child).__name__.endswith("Attention"))


def first_norm(layer: nn.Module) -> nn.Module:
    """Return a layer's first norm: before its attention, or after it in OLMo 2 and 3."""
    return next(child for child in layer.children() if type(child).__name__.endswith("Norm"))


def feed_forward(layer: nn.Module) -> nn.Module:
    """Return a layer's feed-forward part."""
    return next(child for child in layer.children() if type(child).__name__.endswith("MLP"))


def down_projection(layer: nn.Module) -> nn.Module:
    """Return the last matrix of a layer's feed-forward part, which takes its units."""
    return [child for child in feed_forward(layer).children() if getattr(child, "weight", None) is not None][-1]


def shortest_window(config: PreTrainedConfig) -> int | None:
    """Return the tokens that a layer with a sliding window sees; None where every layer sees all before it."""
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) if slides else None


def set_dropouts(config: PreTrainedConfig, attention: float) -> None:
    """Set the dropout of the attention weights, and every other one to 0."""
    for name in (*ATTENTION_DROPOUTS, *OTHER_DROPOUTS):
        if hasattr(config, name):
            setattr(config, name, attention if name in ATTENTION_DROPOUTS else 0.0)


def attention_dropout(config: PreTrainedConfig) -> float:
    """Return the fraction of the attention weights that training sets to zero."""
    return max(getattr(config, name, None) or 0.0 for name in ATTENTION_DROPOUTS)


def scale_down(hidden: Tensor, config: PreTrainedConfig) -> Tensor:
    """Divide the last hidden states by the number that the model divides its logits by, as Granite does."""
    scaling = getattr(config, "logits_scaling", 1.0)
    return hidden if scaling == 1.0 else hidden / scaling


def softcap(config: PreTrainedConfig) -> float | None:
    """Return c where a logit x becomes c tanh(x / c), as in Gemma 2; else None."""
    return getattr(config, "final_logit_softcapping", None)


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Return the logits of the last hidden states as the model itself computes them."""
    weight = model.get_output_embeddings().weight.to(hidden.dtype)
    return capped(F.linear(scale_down(hidden, model.config), weight), softcap(model.config))


def capped(scores: Tensor, cap: float | None) -> Tensor:
    return scores if cap is None else cap * (scores / cap).tanh()
