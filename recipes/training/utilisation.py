# SPDX-License-Identifier: Apache-2.0
"""How much of a device's peak training uses, under two conventions that must not be mixed.

| key | what is counted per token | who uses it |
|---|---|---|
| `train/utilisation_6nd_fraction` | 6 N: the matrices that multiply, all but the input embedding | scaling laws |
| `train/utilisation_hardware_fraction` | what is computed: 6 N, the attention scores as full squares (PaLM, appendix \
B), and the forward pass once more where activations are recomputed | whoever tunes a step |

The peak is the dense bf16 figure of planning/devices.py, whatever the precision of the run; on a processor that of
bf16 or fp32, whichever is the faster there, measured at the start with the threads of the process. Beside it stands
`train/peak_memory_bytes`, of the first process.
"""

import resource
import sys
from dataclasses import dataclass

import torch

from planning.devices import DEVICES, measure_cpu
from planning.model_shape import count_parameters, training_flops_per_token
from recipe_config import Model


# What torch.cuda.get_device_name holds -> DEVICES; the first that fits.
CUDA_NAMES = (
    ("A100-SXM4-40GB", "a100-40gb"),
    ("A100-PCIE-40GB", "a100-40gb"),
    ("A100", "a100-80gb"),
    ("H100 PCIe", "h100-pcie"),
    ("H100", "h100-sxm"),
    ("H200", "h200-sxm"),
    ("B200", "b200-sxm"),
    ("L40S", "l40s"),
    ("RTX 4090", "rtx-4090"),
    ("MI300X", "mi300x"),
)


def peak_flops(device: torch.device) -> float | None:
    """Return a device's peak FLOP/s, on a processor as measured now (about a second); None where it is not known."""
    if device.type == "cpu":
        return measure_cpu().peak_flops
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((DEVICES[key].peak_flops for part, key in CUDA_NAMES if part in name), None)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most that this process has held at once: on a GPU in tensors, on a processor resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Utilisation:
    """What a token costs.

    Attributes:
        flops_6nd: FLOPs of a token, 6 N.
        flops_hardware: FLOPs of a token that are computed.
        peak_flops: FLOP/s of all devices together; None where it is not known.
    """

    flops_6nd: float
    flops_hardware: float
    peak_flops: float | None

    def record(self, tokens_per_second: float) -> dict[str, float]:
        """Return the lines of the table above."""
        if self.peak_flops is None:
            return {}
        return {
            "train/utilisation_6nd_fraction": self.flops_6nd * tokens_per_second / self.peak_flops,
            "train/utilisation_hardware_fraction": self.flops_hardware * tokens_per_second / self.peak_flops,
        }


def measure_utilisation(
    model: Model, vocab_size: int, sequence_length: int, recomputed: bool, peak: float | None, num_processes: int
) -> Utilisation:
    """Count a token's FLOPs. `recomputed`: training.gradient_checkpointing. `peak`: of one process's device."""
    flops = training_flops_per_token(model, vocab_size, sequence_length)
    counts = count_parameters(model, vocab_size)
    return Utilisation(
        flops_6nd=6.0 * (counts["multiplying"] - counts["norms"]),
        flops_hardware=flops * (4 / 3 if recomputed else 1),
        peak_flops=peak and peak * num_processes,
    )
