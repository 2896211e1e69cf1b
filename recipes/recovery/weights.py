# SPDX-License-Identifier: Apache-2.0
"""Weights and optimizer state on their way to and from checkpoints: gathered, restored, compared between replicas."""

import hashlib
import json
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
    """Refuse to save replicas of the weights that differ in any bit.

    Under DDP each process holds a replica; under FSDP2 with replicas each group of processes does.

    Raises: RuntimeError: the gradients were not averaged, or a device computes wrongly.
    """
    parameters = [parameter.detach() for parameter in model.parameters()]
    sharded = next((parameter for parameter in parameters if isinstance(parameter, DTensor)), None)
    replicas = accelerator.num_processes
    if sharded is not None:  # the dimensions of the mesh that hold replicas come first
        sizes = zip(sharded.device_mesh.shape, sharded.placements, strict=True)
        replicas = math.prod(size for size, placement in sizes if placement.is_replicate())
    if replicas == 1:
        return
    local = [parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in parameters]
    sums = torch.stack([tensor.view(torch.int32).sum(dtype=torch.int64) for tensor in local])
    sums_by_process = accelerator.gather(sums.unsqueeze(0))  # (num_processes, num_parameters)
    checksums = sums_by_process.view(replicas, -1, len(sums)).sum(1)  # (replicas, num_parameters)
    differing = (checksums != checksums[0]).any(dim=1).nonzero().flatten().tolist()
    if differing:
        groups = torch.arange(accelerator.num_processes).view(replicas, -1)
        raise RuntimeError(
            f"processes {groups[0].tolist()} and {groups[differing].flatten().tolist()} hold different weights, so "
            "they do not train one model; nothing was saved at this step. Resume from the last checkpoint, on other "
            "devices if it happens again."
        )


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight of the language model once, under its name in the exported model."""
    for name, parameter in model.named_parameters():
        yield plain_name(name).removeprefix("language_model."), parameter


def gather_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors for Checkpoints.save: `model` by name, and `optimizer` as `<parameter>.<key>`.

    Weights that are not trained, those of the base under adapters, are left out; see checksum_frozen.
    """
    reshard(model)
    moments = {
        f"{plain_name(name)}.{key}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    trained = {name: parameter for name, parameter in named_weights(model) if parameter.requires_grad}
    return {"model": trained, "optimizer": moments}


def checksum_frozen(model: nn.Module) -> str | None:
    """Return a checksum of the weights that are not trained and that no checkpoint holds; None without any."""
    sums = {
        name: parameter.detach().view(torch.int32).sum(dtype=torch.int64).item()
        for name, parameter in named_weights(model)
        if not parameter.requires_grad
    }
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest() if sums else None


def reshard(model: nn.Module) -> None:
    """Free the weights that FSDP2 has gathered, so that each process holds its shards again.

    A forward pass without a backward pass, as in validation, leaves the root module's weights gathered. Those are
    other tensors, for which the optimizer has no state.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def restore_tensors(checkpoint: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Load weights and optimizer state from a checkpoint that any number of processes wrote.

    Raises: RecipeError: a tensor is missing, has another shape or is not finite.
    """
    reshard(model)
    with StoredTensors(checkpoint, "model") as stored:
        held = set(stored.parts)  # of adapters alone; earlier versions kept the weights that are not trained too
    weights = {name: weight for name, weight in named_weights(model) if weight.requires_grad or name in held}
    restore_weights(checkpoint, "model", weights)
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


def restore_weights(checkpoint: Path, stem: str, weights: dict[str, Tensor]) -> None:
    """Load weights, in place, from a checkpoint's files of a stem.

    Raises: RecipeError: a tensor is missing, has another shape or is not finite.
    """
    with StoredTensors(checkpoint, stem) as stored, torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(stored.read_like(name, weight))


def plain_name(name: str) -> str:
    """Return a parameter's name without the prefixes of DDP, torch.compile and activation checkpointing."""
    for added in ("_orig_mod.", "_checkpoint_wrapped_module."):
        name = name.replace(added, "")
    return name.removeprefix("module.")
