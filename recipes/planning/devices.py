# SPDX-License-Identifier: Apache-2.0
"""The devices' peak FLOP/s, memory and power, from which hours, cost and energy are planned.

Peaks are dense bf16 products with fp32 sums, as the makers' data sheets give them (half of what they print for sparse
matrices), checked against stas00/ml-engineering (compute/accelerator/README.md), karpathy/nanochat (common.py) and
pytorch/torchtitan (tools/utils.py). Powers are the sheets' thermal design powers.
"""

import os
import time
from dataclasses import dataclass

from recipe_config import Training


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        peak_flops: dense bf16 FLOP/s.
        memory_bytes: 1 GB is 1e9 bytes.
        watts: thermal design power.
        source: where the figures are from.
        dollars_per_hour: list price of one, rented by the hour; None: none is known. See PRICE_SOURCES.
    """

    peak_flops: float
    memory_bytes: float
    watts: float | None
    source: str
    dollars_per_hour: float | None = None


DEVICES = {
    "a100-40gb": Device(312e12, 40e9, 400, "NVIDIA A100 data sheet, SXM4", 1.99),
    "a100-80gb": Device(312e12, 80e9, 400, "NVIDIA A100 data sheet, SXM4", 1.79),
    "h100-sxm": Device(989e12, 80e9, 700, "NVIDIA H100 data sheet; 1,979 there is with sparsity", 3.99),
    "h100-pcie": Device(756e12, 80e9, 350, "NVIDIA H100 data sheet; 1,513 there is with sparsity", 2.89),
    "h100-nvl": Device(835e12, 94e9, 400, "NVIDIA H100 data sheet; 1,671 there is with sparsity"),
    "h200-sxm": Device(989e12, 141e9, 700, "NVIDIA H200 data sheet; the H100's compute", 4.59),
    "b200-sxm": Device(2250e12, 180e9, 1000, "NVIDIA HGX B200 data sheet; 4,500 there is with sparsity", 6.79),
    "l40s": Device(362e12, 48e9, 350, "NVIDIA L40S data sheet; 733 there is with sparsity"),
    "rtx-4090": Device(165.2e12, 24e9, 450, "NVIDIA Ada white paper; 330 there is with fp16 sums", 0.69),
    "mi300x": Device(1307.4e12, 192e9, 750, "AMD MI300X data sheet", 2.59),
}
# Prices of the pages named here, which change from month to month: device -> provider, and the day the page was read.
# One provider's price is up to five times another's. plan.price_per_device_hour states yours.
PRICE_SOURCES = {
    "a100-40gb": "Lambda, 1x A100 SXM, https://lambda.com/service/gpu-cloud, 2026-11-09",
    "a100-80gb": "RunPod Secure Cloud, https://www.runpod.io/pricing, 2026-11-09",
    "h100-sxm": "RunPod Secure Cloud, https://www.runpod.io/pricing, 2026-11-09",
    "h100-pcie": "RunPod Secure Cloud, https://www.runpod.io/pricing, 2026-11-09",
    "h200-sxm": "RunPod, https://www.runpod.io/pricing, 2026-10-07",
    "b200-sxm": "RunPod, https://www.runpod.io/pricing, 2026-10-07",
    "rtx-4090": "RunPod, https://www.runpod.io/pricing, 2026-05-27",
    "mi300x": "DigitalOcean, list price of gpu-mi300x1-192gb, 2026-10-08",
}
# Share of the peak that training reaches (MFU: 6 N + 12 L H Q T FLOPs a token, PaLM, appendix B), and from where to
# where, on a processor and by attention function on a GPU. BloombergGPT's 102 TFLOP/s of an A100 are 0.33; published
# runs with FlashAttention reach 0.3 to 0.5. A mask of document borders has no such kernel: half of a step is then
# attention, by arithmetic for an H100 at 125 million to a billion parameters. The first steps of a run show yours.
UTILISATION_FRACTION = 0.4
UTILISATION_INTERVAL = (0.3, 0.5)
UTILISATION_BY_ATTENTION = {
    "varlen": (UTILISATION_FRACTION, UTILISATION_INTERVAL),
    "flex_attention": (0.3, (0.2, 0.4)),
    "sdpa": (0.2, (0.15, 0.3)),
    "sdpa_causal": (UTILISATION_FRACTION, UTILISATION_INTERVAL),  # without a mask, by a causal kernel
    "eager": (0.2, (0.15, 0.3)),  # at most sdpa's
}
WITHOUT_VARLEN = ("mi300x",)  # training.attn_implementation: auto is sdpa there


def planned_attention(device: str, training: Training) -> str:
    """Return the attention function of training.attn_implementation on a device of DEVICES, as it trains in bf16."""
    attention = training.attn_implementation
    if attention == "auto":
        attention = "sdpa" if device in WITHOUT_VARLEN else "varlen"
    return "sdpa_causal" if attention == "sdpa" and not training.document_masking else attention


def stated_utilisation(device: str, attention: str) -> tuple[str, float, tuple[float, float]]:
    """Return what a device's utilisation depends on, in words, and the share of the peak with its interval."""
    if device == "cpu":
        return "a processor", UTILISATION_FRACTION, UTILISATION_INTERVAL
    words = "sdpa without document masking" if attention == "sdpa_causal" else f"{attention} attention"
    return words, *UTILISATION_BY_ATTENTION[attention]


def find_device(name: str) -> Device:
    """Return the device of a name in DEVICES, or, for `cpu`, this machine as measured now (about a second).

    Raises: KeyError: no such device.
    """
    return measure_cpu() if name == "cpu" else DEVICES[name]


def measure_products() -> dict[str, float]:
    """Measure matrix products of all cores together: precision ("bf16", "fp32") -> FLOP/s."""
    import torch  # only here: importing it takes seconds

    rates = {}
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        matrix = torch.randn(1024, 1024, dtype=dtype)
        best = float("inf")
        for _ in range(8):  # the first ones warm up
            started = time.perf_counter()
            matrix @ matrix
            best = min(best, time.perf_counter() - started)
        rates[precision] = 2 * 1024**3 / best
    return rates


def machine_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_cpu() -> Device:
    """Measure matrix products in the precision that is the faster here, and read the machine's memory."""
    rates = measure_products()
    precision = max(rates, key=rates.get)
    source = f"measured now: {precision} product of 1,024 with all threads"
    return Device(rates[precision], machine_memory_bytes(), None, source)
