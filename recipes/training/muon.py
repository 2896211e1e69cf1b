# SPDX-License-Identifier: Apache-2.0
"""Muon with its matrices divided among the processes: one process orthogonalises a matrix, and all get the result.

torch.optim.Muon steps one matrix after the other: under DDP every process repeats the work of all, and under FSDP2
each of the 15 products of a matrix sends messages. Here a process receives its matrices whole, multiplies those of one
shape together, and sends the updates back, in bf16 and in at most three exchanges a step. Every replica adds the same
bits. Options and state are torch's, and so are checkpoints.
"""

import heapq
import math
from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard


# Elements that are multiplied together: on a processor a few matrices, since more leave its caches.
LARGEST_BATCH = {"cpu": 1 << 21, "cuda": 1 << 26}


class ShardedMuon(torch.optim.Muon):
    """torch.optim.Muon with updates the size of AdamW's, so that one learning rate serves both.

    The size is that of Moonlight (https://huggingface.co/papers/2502.16982, section 2.2).

    Attributes:
        found_inf: as fused AdamW has it: where this 0-dim tensor is not 0, a step changes neither weights nor state.
    """

    found_inf: Tensor | None = None

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float):
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
            weights = [local_part(parameter) for parameter in parameters]
            gradients = [local_part(parameter.grad) for parameter in parameters]
            momenta = [local_part(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
            found = torch.zeros((), device=weights[0].device) if self.found_inf is None else self.found_inf
            taken = found == 0
            for gradient, momentum in zip(gradients, momenta, strict=True):
                torch.where(taken, gradient, momentum, out=gradient)  # if equal, the momentum stays as it is
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            torch._foreach_lerp_(gradients, momenta, group["momentum"])  # Nesterov's look ahead
            updates = orthogonalise(parameters, gradients, group, taken)
            torch._foreach_mul_(weights, torch.where(taken, 1 - group["lr"] * group["weight_decay"], 1.0))
            for weight, update, parameter in zip(weights, updates, parameters, strict=True):
                weight.add_(update, alpha=-group["lr"] * (0.2 * math.sqrt(max(parameter.shape))))


def orthogonalise(parameters: list[Tensor], gradients: list[Tensor], options: dict, taken: Tensor) -> list[Tensor]:
    """Return the orthogonalised gradients in bf16, each divided as its parameter is; zeros where not `taken`.

    Args:
        parameters: the same on all processes; only their shapes and how they are divided matter.
        gradients: this process's parts of them; under DDP the same on all processes.
        options: Muon's, of the parameters' group.
        taken: a bool on the device.
    """
    replicas, shards = process_groups(parameters[0])
    num_replicas, replica = size_and_rank(replicas)
    num_shards, shard = size_and_rank(shards)
    shapes = [tuple(parameter.shape) for parameter in parameters]
    owned = divide(shapes, num_replicas * num_shards)

    def sizes(matrices: list[int], shard: int) -> list[int]:
        """Return how many elements of each matrix one of the shards holds."""
        return [Shard.local_shard_size_and_offset(shapes[k][0], num_shards, shard)[0] * shapes[k][1] for k in matrices]

    # In memory: the matrices of the first owner among the shards, those of the second, and so on.
    owners = [owned[r * num_shards : (r + 1) * num_shards] for r in range(num_replicas)]
    order = [[k for matrices in each for k in matrices] for each in owners]
    length = max(sum(sizes(matrices, shard)) for matrices in order)
    updates = torch.zeros(length, dtype=torch.bfloat16, device=gradients[0].device)
    split = sizes(order[replica], shard)
    to_send = updates[: sum(split)]
    torch._foreach_copy_(to_send.split(split), [gradients[k].reshape(-1) for k in order[replica]])

    own, sent = owners[replica][shard], [sum(sizes(matrices, shard)) for matrices in owners[replica]]
    received, whole = [sum(sizes(own, other)) for other in range(num_shards)], to_send
    if num_shards > 1:
        whole = torch.empty(sum(received), dtype=updates.dtype, device=updates.device)
        distributed.all_to_all_single(whole, to_send, received, sent, group=shards)
    by_shard = whole.split(received)
    for first, last in equal_shapes(
        [shapes[k] for k in own], LARGEST_BATCH["cpu" if whole.device.type == "cpu" else "cuda"]
    ):
        columns, parts = shapes[own[first]][1], []
        for other, values in enumerate(by_shard):
            start, size = sum(sizes(own[:first], other)), sizes(own[first : first + 1], other)[0]
            part = values[start : start + (last - first) * size]
            parts.append(part.view(last - first, size // columns, columns))
        results = newton_schulz(torch.cat(parts, 1), options) * taken
        torch._foreach_copy_(parts, results.split([part.shape[1] for part in parts], 1))
    if num_shards > 1:
        distributed.all_to_all_single(to_send, whole, sent, received, group=shards)

    gathered = [updates]
    if num_replicas > 1:
        gathered = list(torch.empty(num_replicas, length, dtype=updates.dtype, device=updates.device).unbind())
        distributed.all_gather(gathered, updates, group=replicas)
    by_matrix = {}
    for matrices, values in zip(order, gathered, strict=True):
        split = sizes(matrices, shard)
        by_matrix |= zip(matrices, values[: sum(split)].split(split), strict=True)
    return [by_matrix[k].view_as(gradient) for k, gradient in enumerate(gradients)]


def newton_schulz(matrices: Tensor, options: dict) -> Tensor:
    """Return a batch of bf16 matrices, orthogonalised by torch.optim.Muon's iteration; its bits are one matrix's.

    Exceptions are matrices of a few rows, for which torch has other kernels in a batch.
    """
    a, b, c = options["ns_coefficients"]
    tall = matrices.shape[1] > matrices.shape[2]
    result = matrices.mT if tall else matrices
    norms = torch.stack(torch._foreach_norm(result.unbind()))
    result = result / norms.clamp(min=options["eps"])[:, None, None]
    for _ in range(options["ns_steps"]):
        gram = result @ result.mT
        result = torch.baddbmm(result, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.mT if tall else result


def divide(shapes: list[tuple[int, int]], num_processes: int) -> list[list[int]]:
    """Return the matrices of each process, equal shapes next to each other: the largest first, to whom has least."""
    costs = [min(shape) ** 2 * (2 * max(shape) + min(shape)) for shape in shapes]
    owned: list[list[int]] = [[] for _ in range(num_processes)]
    loads = [(0, process) for process in range(num_processes)]
    for matrix in sorted(range(len(shapes)), key=lambda k: (-costs[k], shapes[k], k)):
        load, process = loads[0]
        owned[process].append(matrix)
        heapq.heapreplace(loads, (load + costs[matrix], process))
    return owned


def equal_shapes(shapes: list[tuple[int, int]], largest: int) -> Iterator[tuple[int, int]]:
    """Yield the first and one past the last of neighbours of one shape, of at most `largest` elements together."""
    first = 0
    for shape, same in groupby(shapes):
        end = first + len(list(same))
        step = max(1, largest // math.prod(shape))
        yield from ((start, min(start + step, end)) for start in range(first, end, step))
        first = end


def process_groups(parameter: Tensor) -> tuple[ProcessGroup | None, ProcessGroup | None]:
    """Return the processes that hold the same values as this one, and those that hold the rest of a parameter."""
    if not isinstance(parameter, DTensor):
        return (distributed.group.WORLD if distributed.is_initialized() else None), None
    groups: dict[bool, ProcessGroup] = {}
    for dimension, placement in enumerate(parameter.placements):
        groups[placement.is_shard()] = parameter.device_mesh.get_group(dimension)
    return groups.get(False), groups.get(True)


def size_and_rank(group: ProcessGroup | None) -> tuple[int, int]:
    return (1, 0) if group is None else (distributed.get_world_size(group), distributed.get_rank(group))


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, as a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
