# SPDX-License-Identifier: Apache-2.0
"""Products of query, key and value, and of gate and up, one by one and joined, forward and backward, in bf16.

    python tests/benchmarks/fused_products.py

Processor time of one thread, the best of several rounds. The feed-forward layers are 2.75 times as wide as the model.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor


TOKENS, ROUNDS = 2_048, 15


def best_milliseconds(compute: Callable[[], object]) -> float:
    found = []
    for _ in range(ROUNDS):
        started = time.process_time()
        compute()
        found.append(time.process_time() - started)
    return 1e3 * min(found)


def pass_milliseconds(hidden: Tensor, weights: list[Tensor]) -> float:
    """Time the products of a forward and a backward pass with each weight, whose gradients of the input are summed."""
    gradients = [torch.randn(TOKENS, len(weight)).bfloat16() for weight in weights]
    pairs = list(zip(gradients, weights, strict=True))
    return (
        best_milliseconds(lambda: [hidden @ weight.T for weight in weights])
        + best_milliseconds(lambda: sum(gradient @ weight for gradient, weight in pairs))
        + best_milliseconds(lambda: [gradient.T @ hidden for gradient in gradients])
    )


def main() -> None:
    torch.set_num_threads(1)
    print("width,separate_milliseconds,fused_milliseconds")
    for width in (256, 384, 512):
        hidden = torch.randn(TOKENS, width).bfloat16()
        inner = 11 * width // 4
        parts = [[torch.randn(rows, width).bfloat16()] * count for rows, count in ((width, 3), (inner, 2))]
        separate = sum(pass_milliseconds(hidden, weights) for weights in parts)
        fused = sum(pass_milliseconds(hidden, [torch.cat(weights)]) for weights in parts)
        print(f"{width},{separate:.2f},{fused:.2f}", flush=True)


if __name__ == "__main__":
    main()
