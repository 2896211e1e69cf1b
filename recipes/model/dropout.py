# SPDX-License-Identifier: Apache-2.0
"""Dropout where LlamaConfig has none: on the embeddings, and on what each layer adds to the residual stream.

Hooks do it, so the exported model has no trace of it. They drop nothing while the model is evaluated.
"""

from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from model.families import attention, feed_forward, layers


def add_dropout(model: PreTrainedModel, fraction: float) -> None:
    """Have a model drop a fraction of its embeddings and of the outputs of attention and feed-forward in training."""

    def drop(module: nn.Module, _, output):
        if not module.training:
            return output
        if isinstance(output, tuple):  # attention returns its weights too
            return F.dropout(output[0], fraction), *output[1:]
        return F.dropout(output, fraction)

    parts = [part for layer in layers(model) for part in (attention(layer), feed_forward(layer))]
    for part in (model.get_input_embeddings(), *parts):
        part.register_forward_hook(drop)
