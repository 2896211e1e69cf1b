# SPDX-License-Identifier: Apache-2.0
"""A model and its optimizers as Accelerate prepared them, on one process or with DDP or FSDP2.

zero_stage3.py has the same for DeepSpeed.
"""

from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from atomic_files import new_folder
from model.continued import merge_adapters
from model.summed_loss import SummedLoss
from recipe_config import Average
from recovery.stored_tensors import load_tensors
from recovery.weights import check_replicas, gather_tensors, restore_tensors, restore_weights
from training.average import WeightAverage
from training.optimizers import step_where
from training.own_gradients import OwnGradients


class PreparedModel:
    """What a training step and a checkpoint do with the model and its optimizers.

    Args:
        model: with its initial weights.
        optimizers: of that model.
        accelerator: of the run.
        average: training.average.

    Attributes:
        module: the prepared model, to be called.
        average: of its weights; None: they are not averaged.
        own: the gradients that this process computed.
        in_parts: no process holds whole weights.
    """

    def __init__(
        self,
        model: SummedLoss,
        optimizers: list[torch.optim.Optimizer],
        accelerator: Accelerator,
        average: Average | None = None,
    ):
        self.accelerator = accelerator
        self.module, *self.optimizers = accelerator.prepare(model, *optimizers)
        self.in_parts = any(isinstance(parameter, DTensor) for parameter in self.module.parameters())
        self.average = average and WeightAverage(self.module, average)
        self.own = OwnGradients(self.module, accelerator)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of every optimizer."""
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate

    def add_gradients(self, batch: dict[str, Tensor], factor: float, last: bool) -> Tensor:
        """Add the gradients of a micro-step, times a factor, to those of the step; return its nats.

        The processes average them once, in the last micro-step. FSDP2 averages in each micro-step, since it would
        otherwise keep whole gradients on every process.
        """
        averaged = last or self.accelerator.distributed_type == DistributedType.FSDP
        with nullcontext() if averaged else self.accelerator.no_sync(self.module):
            minimised, nats = self.module(**batch).unbind()
            self.accelerator.backward(minimised * factor)
        return nats.detach()

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply every gradient by a 0-dim tensor on the device, without waiting for the device."""
        torch._foreach_mul_([one.grad for one in self.module.parameters() if one.grad is not None], factor)

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Scale the gradients to a norm of at most max_norm, and return their norm before."""
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def step(self, ok: Tensor) -> None:
        """Step the optimizers if `ok`, a bool on the device, and clear the gradients."""
        step_where(self.optimizers, ok)
        self.clear_gradients()

    def clear_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.own.squares.zero_()

    def add_to_average(self, step: int, state: dict) -> None:
        """Add the weights after an optimizer step to their average, if there is one; see WeightAverage.add."""
        if self.average:
            self.average.add(step, state)

    def gather(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a checkpoint: file stem -> name -> tensor.

        Raises: RuntimeError: the processes of DDP hold different weights.
        """
        check_replicas(self.module, self.accelerator)
        tensors = gather_tensors(self.module, [optimizer.optimizer for optimizer in self.optimizers])
        return tensors | ({"average": self.average.values} if self.average else {})

    def export(self, folder: Path, checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the model as transformers loads it, adapters merged; on one process.

        With averaged weights, those of the last step are written to model_final/ beside the folder.

        Args:
            folder: to write into.
            checkpoint: of the same weights, from which they are read where no process holds them whole.
            tokenizer: to write beside them.
        """
        model = self.accelerator.unwrap_model(self.module).language_model
        merge_adapters(model)

        def write(folder: Path, stem: str) -> None:
            model.save_pretrained(folder, state_dict=load_tensors(checkpoint, stem) if self.in_parts else None)
            tokenizer.save_pretrained(folder)

        if not self.average:
            write(folder, "model")
            return
        with new_folder(folder.with_name("model_final")) as last:
            write(last, "model")
        with nullcontext() if self.in_parts else self.average.applied():
            write(folder, "average")

    def restore(self, checkpoint: Path) -> None:
        """Load the tensors of a checkpoint into the model, the average and the optimizers."""
        restore_tensors(checkpoint, self.module, [optimizer.optimizer for optimizer in self.optimizers])
        if self.average:
            restore_weights(checkpoint, "average", self.average.values)
