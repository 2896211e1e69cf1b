# SPDX-License-Identifier: Apache-2.0
"""The optimizers, and steps that are taken only if a flag on the device says so.

A step that stability.py rejects leaves weights and optimizer state as they were, without the host waiting for the
device to read the flag.
"""

import torch
from torch import Tensor

from model.families import layers
from model.summed_loss import SummedLoss
from recipe_config import Training
from training.muon import ShardedMuon


def build_optimizers(model: SummedLoss, training: Training) -> list[torch.optim.Optimizer]:
    """Build AdamW, or Muon for the layers' matrices and AdamW for the rest."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    inside = {id(parameter) for parameter in layers(model.language_model).parameters()}
    in_layers = {name for name, parameter in named.items() if id(parameter) in inside and parameter.ndim == 2}
    muon = in_layers if training.optimizer == "muon" else set()
    decayed = [parameter for name, parameter in named.items() if name not in muon and parameter.ndim == 2]
    gains = [parameter for name, parameter in named.items() if parameter.ndim < 2]
    gain_decay = training.weight_decay if training.decay_gains else 0.0
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay}, {"params": gains, "weight_decay": gain_decay}],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )
    if not muon:
        return [adamw]
    matrices = [parameter for name, parameter in named.items() if name in muon]
    return [ShardedMuon(matrices, training.learning_rate, training.weight_decay), adamw]


def count_in_muon(optimizers: list[torch.optim.Optimizer]) -> int:
    """Return how many elements Muon steps: it keeps one moment of each, where AdamW keeps two."""
    muons = [one for one in optimizers if isinstance(getattr(one, "optimizer", one), ShardedMuon)]
    return sum(matrix.numel() for muon in muons for group in muon.param_groups for matrix in group["params"])


def step_where(optimizers: list[torch.optim.Optimizer], ok: Tensor) -> None:
    """Step the optimizers of build_optimizers if `ok`, a bool on their device, without waiting for it."""
    for optimizer in optimizers:
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        # Both skip a step where found_inf, which torch's gradient scaler sets at an overflow.
        inner.grad_scale, inner.found_inf = None, (~ok).float()
        optimizer.step()
