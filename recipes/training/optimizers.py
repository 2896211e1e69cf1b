# SPDX-License-Identifier: Apache-2.0
"""The optimizers, and steps that are taken only if a flag on the device says so.

A step that stability.py rejects leaves weights and optimizer state as they were, without the host waiting for the
device to read the flag.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from model.families import layers
from model.summed_loss import SummedLoss
from recipe_config import Training


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
    # match_rms_adamw gives an update the size of AdamW's, so that one learning rate serves both (Moonlight,
    # https://huggingface.co/papers/2502.16982, section 2.2).
    matrices = [parameter for name, parameter in named.items() if name in muon]
    options = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    return [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **options), adamw]


def step_where(optimizers: list[torch.optim.Optimizer], ok: Tensor) -> None:
    """Step the optimizers of build_optimizers if `ok`, a bool on their device, without waiting for it."""
    for optimizer in optimizers:
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        if isinstance(inner, torch.optim.Muon):
            step_muon_where(inner, ok)
        else:  # fused AdamW skips a step where found_inf, which torch's gradient scaler sets at an overflow
            inner.grad_scale, inner.found_inf = None, (~ok).float()
            optimizer.step()


@torch.no_grad()
def step_muon_where(optimizer: torch.optim.Muon, ok: Tensor) -> None:
    """Step Muon and undo the step where not `ok`. Matrices are stepped one by one, so only one is held twice.

    A gradient that equals the momentum leaves the momentum as it is, so only the weight has to be restored.
    """
    groups = optimizer.param_groups
    try:
        for group in groups:
            for parameter in (parameter for parameter in group["params"] if parameter.grad is not None):
                momentum = optimizer.state[parameter].get("momentum_buffer")
                weight, gradient = local_part(parameter), local_part(parameter.grad)
                before = weight.clone()
                gradient.copy_(torch.where(ok, gradient, 0.0 if momentum is None else local_part(momentum)))
                optimizer.param_groups = [group | {"params": [parameter]}]
                optimizer.step()
                weight.copy_(torch.where(ok, weight, before))
    finally:
        optimizer.param_groups = groups


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, as a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
