# SPDX-License-Identifier: Apache-2.0
"""A model and its optimizers as Accelerate prepared them: what a step and a checkpoint do with them.

One process, DDP and FSDP2 go the same way; DeepSpeed's is in zero_stage3.py.
"""

from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor

from model.summed_loss import SummedLoss
from recovery.weights import check_replicas, gather_tensors, restore_tensors
from training.optimizers import step_where


class PreparedModel:
    """See above.

    Attributes:
        module: the prepared model, to be called.
        in_parts: no process holds whole weights.
    """

    def __init__(self, model: SummedLoss, optimizers: list[torch.optim.Optimizer], accelerator: Accelerator):
        self.accelerator = accelerator
        self.module, *self.optimizers = accelerator.prepare(model, *optimizers)
        self.in_parts = any(isinstance(parameter, DTensor) for parameter in self.module.parameters())

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate

    def add_gradients(self, batch: dict[str, Tensor], factor: float, last: bool) -> Tensor:
        """Add the gradients of a micro-step up, times a factor, and return its nats.

        They are averaged over processes in the last micro-step of a step, once; under FSDP2 in each, as it would
        otherwise keep them whole on every process.
        """
        averaged = last or self.accelerator.distributed_type == DistributedType.FSDP
        with nullcontext() if averaged else self.accelerator.no_sync(self.module):
            minimised, nats = self.module(**batch).unbind()
            self.accelerator.backward(minimised * factor)
        return nats.detach()

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply every gradient by a number that is on the device, without waiting for it."""
        torch._foreach_mul_([one.grad for one in self.module.parameters() if one.grad is not None], factor)

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Scale the gradients to a norm of at most max_norm, and return what it was."""
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def step_where(self, ok: Tensor) -> None:
        """Take the step if `ok`, a bool on the device, and forget the gradients."""
        step_where(self.optimizers, ok)
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def gather(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint holds.

        Raises: RuntimeError: processes that each have the whole model hold different ones.
        """
        check_replicas(self.module, self.accelerator)
        return gather_tensors(self.module, [optimizer.optimizer for optimizer in self.optimizers])

    def restore(self, checkpoint: Path) -> None:
        """Take over what a checkpoint holds; see restore_tensors."""
        restore_tensors(checkpoint, self.module, [optimizer.optimizer for optimizer in self.optimizers])
