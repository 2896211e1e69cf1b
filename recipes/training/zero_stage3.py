# SPDX-License-Identifier: Apache-2.0
"""Training where DeepSpeed holds the weights in parts (ZeRO stage 3, https://huggingface.co/papers/1910.02054).

Each process holds a flat piece of every weight, of its average gradient and of the optimizer's state, in fp32. A step
is judged and clipped on the pieces, before the engine takes it. The checkpoints have the form of any other run's, so
a run resumes from them with or without DeepSpeed. To write them, process 0 needs memory for the whole weights and
moments: 12 bytes a parameter.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from model.summed_loss import SummedLoss
from recovery.stored_tensors import StoredTensors
from recovery.weights import named_weights, plain_name
from training.prepared import PreparedModel


MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's; Accelerate prepares a single optimizer for DeepSpeed


class ZeroStage3Model(PreparedModel):
    """A PreparedModel whose `module` is DeepSpeed's engine.

    Args:
        model, optimizers, accelerator: see PreparedModel.
        batch_size: sequences of a micro-batch on one process.
    """

    def __init__(
        self, model: SummedLoss, optimizers: list[torch.optim.Optimizer], accelerator: Accelerator, batch_size: int
    ):
        # DeepSpeed would read the batch size from a data loader; the loop itself accumulates and clips gradients.
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config |= {"train_micro_batch_size_per_gpu": batch_size, "gradient_accumulation_steps": 1}
        config |= {"gradient_clipping": 0.0}
        # Its own bf16 would also round hidden states, norms, and the gradients that micro-steps add up. Under autocast
        # it rounds as one process does, and beside that what it sends of linear layers: weights and gradients.
        bf16 = config["bf16"]  # where Accelerate looks up the run's precision
        config |= {"bf16": {"enabled": False}, "torch_autocast": {"enabled": bf16["enabled"], "dtype": "bfloat16"}}
        super().__init__(model, optimizers, accelerator)
        config["bf16"] = bf16
        self.in_parts = True

    def add_gradients(self, batch: dict[str, Tensor], factor: float, last: bool) -> Tensor:
        self.module.set_gradient_accumulation_boundary(last)
        minimised, nats = self.module(**batch).unbind()
        self.module.backward(minimised * factor)  # Accelerate's backward would take the step too
        return nats.detach()

    def gradients(self) -> list[Tensor]:
        """Return this process's pieces of the average gradients; to change a piece changes the gradient."""
        return [piece for group in self.module.optimizer.averaged_gradients.values() for piece in group]

    def scale_gradients(self, factor: Tensor) -> None:
        torch._foreach_mul_(self.gradients(), factor.to(self.gradients()[0].dtype))

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        own = torch.stack([piece.float().square().sum() for piece in self.gradients()]).sum()
        norm = self.accelerator.reduce(own).sqrt()
        self.scale_gradients((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def step(self, ok: Tensor) -> None:
        if ok:  # the host waits here, since the engine's step takes no flag on the device
            self.module.step()
        else:
            self.clear_gradients()

    def clear_gradients(self) -> None:
        self.module.optimizer.zero_grad()

    def gather(self) -> dict[str, dict[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        def keep(whole: Tensor, parameter: Tensor) -> Tensor:
            """Return the tensor on process 0, which writes it; elsewhere one of its shape that takes no memory."""
            if self.accelerator.is_main_process:
                return whole.view(parameter.ds_shape).cpu()
            return torch.zeros(()).expand(parameter.ds_shape)

        weights, moments = {}, {}
        for name, parameter in named_weights(self.module):
            weights[name] = keep(safe_get_full_fp32_param(parameter), parameter)
        steps = [state["step"] for state in self.module.optimizer.optimizer.state.values()]
        for name, parameter in self.module.named_parameters() if steps else []:
            for key in MOMENTS:
                whole = safe_get_full_optimizer_state(parameter, key)
                moments[f"{plain_name(name)}.{key}"] = keep(whole, parameter)
            moments[f"{plain_name(name)}.step"] = steps[0].clone()
        return {"model": weights, "optimizer": moments}

    def restore(self, checkpoint: Path) -> None:
        from deepspeed import zero
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        def read(stored: StoredTensors, name: str, parameter: Tensor) -> Tensor:
            """Return a whole stored tensor, of the parameter's shape, on the device."""
            return stored.read_like(name, torch.empty(parameter.ds_shape, device=self.accelerator.device))

        def piece(whole: Tensor, parameter: Tensor) -> Tensor:
            """Return this process's flat piece of a tensor."""
            size = parameter.ds_tensor.numel()  # the same on all processes: the last piece is padded
            flat = F.pad(whole.flatten(), (0, size * self.accelerator.num_processes - whole.numel()))
            return flat.narrow(0, size * self.accelerator.process_index, size)

        with StoredTensors(checkpoint, "model") as stored, torch.no_grad():
            for name, parameter in named_weights(self.module):
                whole = read(stored, name, parameter)
                with zero.GatheredParameters([parameter], modifier_rank=0):
                    parameter.copy_(whole)
                safe_set_local_fp32_param(parameter, piece(whole, parameter))
        optimizer = self.module.optimizer
        optimizer.optimizer.state.clear()  # before its first step AdamW has no state
        with StoredTensors(checkpoint, "optimizer") as stored:
            steps = [stored.read(name, (), ()) for name in stored.parts if name.endswith(".step")]
            for flat in optimizer.fp32_partitioned_groups_flat if steps else []:
                optimizer.optimizer.state[flat] = {key: torch.zeros_like(flat) for key in MOMENTS}
                optimizer.optimizer.state[flat]["step"] = steps[0].to(
                    flat.device, copy=True
                )  # each tensor counts its own steps
            for name, parameter in self.module.named_parameters() if steps else []:
                for key in MOMENTS:
                    whole = read(stored, f"{plain_name(name)}.{key}", parameter)
                    safe_set_local_optimizer_state(parameter, piece(whole, parameter), key)
