# SPDX-License-Identifier: Apache-2.0
"""The fraction of a device's peak that training uses, under three conventions that must not be mixed.

| key | FLOPs counted per token | used for |
|---|---|---|
| `train/mfu_fraction` | 6 N + 12 L H Q T: attention as full squares, nothing recomputed | comparison with others |
| `train/utilisation_6nd_fraction` | 6 N, N without the input embedding | scaling laws |
| `train/utilisation_hardware_fraction` | every FLOP that is computed | tuning a step |

The first is the MFU of PaLM (appendix B). The last counts half of each square where the attention function skips what
the causal mask hides, a second forward pass where activations are recomputed, and those of the models that the run
learns from. The peak is the dense bf16 figure of planning/devices.py, whatever the precision of the run. On a CPU it
is measured at the start, with the threads of the process: bf16 or fp32, whichever is faster.
"""

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from planning.devices import DEVICES, measure_cpu
from planning.model_shape import count_parameters, training_flops_per_token
from recipe_config import Model


# Part of torch.cuda.get_device_name -> key of DEVICES; the first match counts.
CUDA_NAMES = (
    ("A100-SXM4-40GB", "a100-40gb"),
    ("A100-PCIE-40GB", "a100-40gb"),
    ("A100", "a100-80gb"),
    ("H100 PCIe", "h100-pcie"),
    ("H100 NVL", "h100-nvl"),
    ("H100", "h100-sxm"),
    ("H200", "h200-sxm"),
    ("B200", "b200-sxm"),
    ("L40S", "l40s"),
    ("RTX 4090", "rtx-4090"),
    ("MI300X", "mi300x"),
)


def peak_flops(device: torch.device) -> float | None:
    """Return a device's peak FLOP/s, of a CPU as measured now (about a second); None if unknown."""
    if device.type == "cpu":
        return measure_cpu().peak_flops
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((DEVICES[key].peak_flops for part, key in CUDA_NAMES if part in name), None)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: of its tensors on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Utilisation:
    """FLOPs of a token and the peak to compare them with.

    Attributes:
        flops_mfu: 6 N + 12 L H Q T.
        flops_6nd: 6 N.
        flops_hardware: all that are computed.
        peak_flops: FLOP/s of all devices together; None if unknown.
    """

    flops_mfu: float
    flops_6nd: float
    flops_hardware: float
    peak_flops: float | None

    def record(self, tokens_per_second: float) -> dict[str, float]:
        """Return the fractions by their keys in metrics.jsonl; none if the peak is unknown."""
        if self.peak_flops is None:
            return {}
        return {
            "train/mfu_fraction": self.flops_mfu * tokens_per_second / self.peak_flops,
            "train/utilisation_6nd_fraction": self.flops_6nd * tokens_per_second / self.peak_flops,
            "train/utilisation_hardware_fraction": self.flops_hardware * tokens_per_second / self.peak_flops,
        }


def measure_utilisation(
    model: Model,
    vocab_size: int,
    sequence_length: int,
    peak: float | None,
    num_processes: int,
    *,
    recomputed: bool = False,
    causal: bool = False,
    teachers: Sequence[Model] = (),
) -> Utilisation:
    """Count a token's FLOPs. `peak` is that of one process's device, `recomputed` training.gradient_checkpointing.

    `causal`: the attention function computes no more than the half of a square that the causal mask leaves.
    `teachers`: the shapes of the models that the run learns from, by a forward pass of each.
    """

    def count(shape: Model) -> tuple[float, float, float]:
        flops = training_flops_per_token(shape, vocab_size, sequence_length)
        counts = count_parameters(shape, vocab_size)
        flops_6nd = 6.0 * (counts["multiplying"] - counts["norms"])
        return flops, flops_6nd, (flops + flops_6nd) / 2 if causal else flops

    flops, flops_6nd, computed = count(model)
    return Utilisation(
        flops_mfu=flops,
        flops_6nd=flops_6nd,
        flops_hardware=computed * (4 / 3 if recomputed else 1) + sum(count(shape)[2] for shape in teachers) / 3,
        peak_flops=peak and peak * num_processes,
    )
