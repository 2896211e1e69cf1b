# SPDX-License-Identifier: Apache-2.0
"""The gradients of this process before they are averaged: afterwards all processes have the same."""

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FSDPModule
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel


class OwnGradients:
    """Sums the squares of the gradients that this process gives to DDP or FSDP2 to average.

    Args: module: prepared; one of another kind, whose gradients are not averaged here, is left as it is.

    Attributes:
        squares: 0-dim, on the device; the caller clears it before a step. Under DDP of the sum of the micro-steps,
            under FSDP2 of each of them; in the order of buckets, which DDP arranges anew after its first.
    """

    def __init__(self, module: nn.Module, accelerator: Accelerator):
        self.squares = torch.zeros((), device=accelerator.device)
        # torch 2.13 renamed it, and warns of the earlier name.
        self.reduce_scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
        if isinstance(module, DistributedDataParallel):
            module.register_comm_hook(None, self.average_bucket)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.set_custom_reduce_scatter(self)

    def add(self, gradients: Tensor) -> None:
        self.squares += torch.linalg.vector_norm(gradients, dtype=torch.float32).square()

    def average_bucket(self, _: None, bucket: distributed.GradBucket) -> Future[Tensor]:
        """Average a bucket of DDP, as it does itself but for the last bit where it divides by no power of two."""
        self.add(bucket.buffer())
        return allreduce_hook(None, bucket)

    def allocate(self, size: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for what FSDP2 sends and receives."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: distributed.ProcessGroup,
        op: distributed.ReduceOp,
        async_op: bool = False,
    ) -> distributed.Work | None:
        """Average the gradients of a layer as FSDP2 does itself; each process receives its part."""
        self.add(input_tensor)
        return self.reduce_scatter(output_tensor, input_tensor, op, group, async_op)
