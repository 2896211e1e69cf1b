# SPDX-License-Identifier: Apache-2.0
"""Between a model and a checkpoint: collecting weights and optimizer state, loading them, comparing replicas."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from recipe_config import RecipeError
from recovery.stored_tensors import StoredTensors


def check_replicas(model: nn.Module, accelerator: Accelerator) -> None:
    """Make sure that all copies of the weights are the same, bit for bit, before one of them is written down.

    Under DDP each process has a copy, under FSDP2 with replicas each group of processes.

    Raises: RuntimeError: they are not; the gradients were not averaged, or a device computes wrongly.
    """
    parameters = [parameter.detach() for parameter in model.parameters()]
    divided = next((parameter for parameter in parameters if isinstance(parameter, DTensor)), None)
    copies = accelerator.num_processes
    if divided is not None:  # the dimensions of the mesh that hold copies come first
        sizes = zip(divided.device_mesh.shape, divided.placements, strict=True)
        copies = math.prod(size for size, placement in sizes if placement.is_replicate())
    if copies == 1:
        return
    held = [parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in parameters]
    sums = torch.stack([one.view(torch.int32).sum(dtype=torch.int64) for one in held])
    of_processes = accelerator.gather(sums.unsqueeze(0))  # (num_processes, num_parameters)
    checksums = of_processes.view(copies, -1, len(sums)).sum(1)  # of the parts of a copy
    differing = (checksums != checksums[0]).any(dim=1).nonzero().flatten().tolist()
    if differing:
        groups = torch.arange(accelerator.num_processes).view(copies, -1)
        raise RuntimeError(
            f"processes {groups[0].tolist()} and {groups[differing].flatten().tolist()} hold different weights, so "
            "what they train is not one model; nothing was saved at this step. Go on from the last checkpoint, on "
            "other devices if it happens again."
        )


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight of the language model once, by the name it has in the exported model."""
    for name, parameter in model.named_parameters():
        yield plain_name(name).removeprefix("language_model."), parameter


def gather_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, dict[str, Tensor]]:
    """Collect weights, and optimizer state as `<parameter>.<key>`, for Checkpoints.save."""
    take_parts(model)
    moments = {
        f"{plain_name(name)}.{key}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return {"model": dict(named_weights(model)), "optimizer": moments}


def take_parts(model: nn.Module) -> None:
    """Have each process hold its part again where FSDP2 put some weights together.

    A pass without a backward one, as a validation's, leaves the outermost weights whole: they are other tensors then,
    which the optimizer has no state of.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def restore_tensors(checkpoint: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Load weights and optimizer state into a model and its optimizers, on any number of processes.

    Raises: RecipeError: a tensor is missing, has another shape or is not finite.
    """
    take_parts(model)
    with StoredTensors(checkpoint, "model") as stored, torch.no_grad():
        for name, parameter in named_weights(model):
            parameter.copy_(stored.read_like(name, parameter))
    owners = {parameter: o for o in optimizers for group in o.param_groups for parameter in group["params"]}
    with StoredTensors(checkpoint, "optimizer") as stored:
        keys: dict[str, list[str]] = {}
        for name in stored.parts:
            parameter, _, key = name.rpartition(".")
            keys.setdefault(parameter, []).append(key)
        for name, parameter in model.named_parameters():
            if parameter not in owners:  # not trained
                continue
            state = {}
            for key in keys.get(plain_name(name), []):
                stored_name = f"{plain_name(name)}.{key}"
                whole = stored.shape(stored_name) == tuple(parameter.shape)
                like = parameter if whole else torch.empty(stored.shape(stored_name), device=parameter.device)
                state[key] = stored.read_like(stored_name, like)
            if keys and not state:
                raise RecipeError(f"{checkpoint}: optimizer: the state of {plain_name(name)} is missing")
            owners[parameter].state[parameter] = state


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrapping and compiling a model put into it."""
    for added in ("_orig_mod.", "_checkpoint_wrapped_module."):
        name = name.replace(added, "")
    return name.removeprefix("module.")
