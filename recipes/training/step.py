# SPDX-License-Identifier: Apache-2.0
"""The gradient of a step, and a second computation of one that was skipped: is its data to blame, or a device?"""

import platform
from collections.abc import Iterator
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from recipe_config import Recipe, RecipeError
from training.prepared import PreparedModel
from training.progress import Progress
from training.schedule import seed_step
from training.stability import Verdict, is_same
from training.text import TrainingText


class ComputedStep(NamedTuple):
    """What a step's gradient was computed from: on this process `seen` and `own`, else on all of them.

    `sums` are its nats, bytes and tokens, `loss` the nats per token, `grad_norm` the gradient's before clipping. `own`
    are the nats, the squares of the gradients before the processes averaged them, and the norm afterwards.
    """

    seen: Tensor
    own: Tensor
    sums: Tensor
    loss: Tensor
    grad_norm: Tensor


class StepGradient:
    """Computes the gradient of a step on all processes."""

    def __init__(
        self, recipe: Recipe, text: TrainingText, prepared: PreparedModel, accelerator: Accelerator, progress: Progress
    ):
        self.seed, self.text, self.training = recipe.run.seed, text, text.training
        self.prepared, self.accelerator, self.progress = prepared, accelerator, progress

    def compute(self, step: int, batches: Iterator[dict[str, Tensor]]) -> ComputedStep:
        """Add the gradients of a step's micro-batches, and clip the sum."""
        accelerator, progress, tokens_per_step = self.accelerator, self.progress, self.training.tokens_per_step
        seen, scored = torch.zeros_like(progress.seen), torch.zeros_like(progress.seen[0])
        step_nats = torch.zeros_like(progress.sums[0])
        seed_step(self.seed, step, accelerator.process_index)
        # Every token that counts has the same weight. Gradients are averaged over processes, hence num_processes.
        factor = accelerator.num_processes / tokens_per_step
        progress.own_seconds.start_step()
        for micro_step in range(self.text.micro_steps):
            batch = next(batches)
            seen += batch.pop("seen").to(accelerator.device, non_blocking=True)
            scored += batch.pop("scored").to(accelerator.device, non_blocking=True)
            batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            step_nats += self.prepared.add_gradients(batch, factor, last=micro_step == self.text.micro_steps - 1)
        progress.own_seconds.end_step()
        sums = accelerator.reduce(torch.stack([step_nats, *scored]))  # nats, bytes and tokens that count
        num_targets = sums[2].clamp(min=1)
        if self.text.skipped_documents.ranges or self.training.goldfish:
            self.prepared.scale_gradients(tokens_per_step / num_targets)
        norm = self.prepared.clip_grad_norm(self.training.max_grad_norm)
        own = torch.stack([step_nats, self.prepared.own.squares, norm])
        # The mean, since all judge alike: a device may have averaged wrongly, or damaged the average.
        return ComputedStep(seen, own, sums, sums[0] / num_targets, accelerator.reduce(norm, "mean"))

    def compute_again(self, verdict: Verdict, own: Tensor, batches: Iterator[dict[str, Tensor]]) -> None:
        """Compute a skipped step a second time, from the same weights and data, and drop its gradient.

        Args: own: ComputedStep.own of the first time.

        Raises: RecipeError: the result is another one, so a device is faulty; it is named.
        """
        self.prepared.clear_gradients()
        again = self.compute(verdict.step, batches)
        self.prepared.clear_gradients()
        device = self.accelerator.device
        exact = device.type == "cpu"
        pairs = ((verdict.loss, again.loss.item()), (verdict.grad_norm, again.grad_norm.item()))
        if all(is_same(first, second, exact) for first, second in pairs):
            return
        nats, squares, norms = zip(own.tolist(), again.own.tolist(), strict=True)
        differs = not (is_same(*nats, exact) and is_same(*squares, exact=False))
        place = f"{device} of process {self.accelerator.process_index} on {platform.node()}"
        places = gather_object([(place, differs, not is_same(*norms, exact))])
        # One's gradient changes the norm of all. DeepSpeed shows no gradient before it averages; a sum over the
        # processes may be wrong where nothing of theirs is.
        by_own, by_norm = ([place for place, *differs in places if differs[way]] for way in range(2))
        devices = " or ".join(by_own or by_norm or [place for place, *_ in places])
        (loss, second_loss), (norm, second_norm) = pairs
        raise RecipeError(
            f"step {verdict.step} had loss {loss:.4g} and gradient norm {norm:.4g}; computed a second time from the "
            f"same weights and data, {second_loss:.4g} and {second_norm:.4g}: a device computes wrongly, {devices}. "
            "The step was not taken. Replace the device or leave it out; the same command then resumes from the "
            "newest checkpoint"
        )
