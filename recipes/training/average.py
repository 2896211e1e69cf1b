# SPDX-License-Identifier: Apache-2.0
"""The average of a model's weights over steps, as training.average describes it.

It is held as the weights are: whole on each process, or in parts under FSDP2. How much the weights of a step count
follows from the step and from what a checkpoint holds, so a run that resumes has the same average.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from recipe_config import Average
from recovery.weights import named_weights, reshard


class WeightAverage:
    """An average of weights.

    Args:
        module: the prepared model.
        settings: which average.

    Attributes:
        values: name -> the average of this weight; the weights' own shapes and parts.
    """

    def __init__(self, module: nn.Module, settings: Average):
        self.module, self.settings = module, settings
        self.weights = {name: weight for name, weight in named_weights(module) if weight.requires_grad}
        self.values = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in self.weights.items()}

    @torch.no_grad()
    def add(self, step: int, state: dict) -> None:
        """Add the weights after an optimizer step to the average.

        Args: state: of the run, which is saved with the weights. It gets `averaged`: the first step that the planned
            length asks for, and the first that was added. Where the first that is asked for changes with the length,
            a mean begins anew.
        """
        first, max_steps = 1, state["max_steps"]
        if self.settings.last_fraction is not None:
            first = max_steps - max(1, round(self.settings.last_fraction * max_steps)) + 1
        if step < first:
            return
        before = state.get("averaged", {"planned": first, "from": first})  # checkpoints of earlier versions lack it
        if before is None or before["planned"] != first:
            before = {"planned": first, "from": step}
        state["averaged"] = before
        part = 1 / (step - state["averaged"]["from"] + 1)  # of a plain mean
        if self.settings.ema is not None:
            part = max(part, 1 - self.settings.ema)
        torch._foreach_lerp_(own_parts(self.values), own_parts(self.weights), part)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the model compute with the average, until the block ends."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        reshard(self.module)
        for average, weight in zip(own_parts(self.values), own_parts(self.weights), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        reshard(self.module)


def own_parts(tensors: dict[str, Tensor]) -> list[Tensor]:
    """Return what this process holds of tensors."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach() for tensor in tensors.values()]
