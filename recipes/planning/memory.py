# SPDX-License-Identifier: Apache-2.0
"""Estimate a device's memory in a step of pretrain.py, by part, and the largest batch that fits.

Weights, gradients and optimizer state are fp32, matrix products bf16 (autocast). Activations are counted from what the
backward pass of transformers' Llama keeps, tensor by tensor (compare Korthikanti et al. 2022, arXiv 2205.05198, who
count a GPT with everything in 16 bits: 34 bytes a token, layer and unit of width).
"""

from planning.model_shape import count_parameters, head_dim
from recipe_config import Model, Training


FP32, BF16 = 4, 2
# In bf16 64 MiB, which stays near a processor's caches, and 512 MiB, which fills a GPU: with fewer rows a product has
# too few tiles for it, and the weight's gradient is read and written once a chunk.
LOGITS_PER_CHUNK = {"cpu": 1 << 25, "cuda": 1 << 28}
LEAST_ROWS = 512  # with fewer, adding up the weight's gradient costs more than the products
SHORT_ON_CPU = 256  # tokens; tests/benchmarks/README.md
FREE_FRACTION = 0.1  # of a device's memory, for the allocator's fragments, the context and communication buffers
STRATEGIES = {
    # accelerate_configs/ file: what is divided over the devices
    "single_gpu.yaml": frozenset(),
    "ddp.yaml": frozenset(),
    "fsdp2.yaml": frozenset({"parameters", "gradients", "optimizer"}),
    "deepspeed_zero3.yaml": frozenset({"parameters", "gradients", "optimizer"}),
}


def rows_per_chunk(vocab_size: int, device_type: str) -> int:
    """Return how many rows of logits model/chunked_loss.py computes at a time on a device of torch's type."""
    logits = LOGITS_PER_CHUNK["cpu" if device_type == "cpu" else "cuda"]
    return max(LEAST_ROWS, logits // vocab_size)


def takes_plain_attention(device_type: str, in_bf16: bool, sequence_length: int) -> bool:
    """Return whether training.attn_implementation: auto keeps the scores of attention, as a square a head.

    In bf16 a processor's matrix products are faster on short sequences than its flash kernel.
    """
    return device_type == "cpu" and in_bf16 and sequence_length <= SHORT_ON_CPU


def count_teachers(training: Training) -> int:
    """Return how many models a run with training.distillation holds beside its own."""
    distillation = training.distillation
    return 0 if distillation is None else distillation.members + len(distillation.teachers)


def activation_bytes_per_token(model: Model, compiled: bool, compute_bytes: int = BF16) -> float:
    """Return the bytes that one layer keeps of one token for its backward pass.

    Args:
        model: the shape.
        compiled: by torch.compile, which keeps the inputs of matrix products and recomputes the rest.
        compute_bytes: of a number in matrix products: 2 under autocast, 4 without.
    """
    hidden, feed_forward = model.hidden_size, model.intermediate_size
    query = model.num_attention_heads * head_dim(model)
    key_value = (model.num_key_value_heads or model.num_attention_heads) * head_dim(model)
    # Query, key and value after the rotation, the output of attention, and its log-sum-exp in fp32.
    attention = compute_bytes * (2 * query + 2 * key_value) + FP32 * model.num_attention_heads
    # Each of the two norms: its input in fp32, the root mean square, and what the matrix products take.
    norms = 2 * (hidden * (FP32 + compute_bytes) + FP32)
    mlp = compute_bytes * 2 * feed_forward  # gate and up
    if not compiled:
        norms += 2 * hidden * FP32  # the normalised input, before the gain
        if compute_bytes < FP32:  # autocast casts it again for each of the five products that take one
            norms += 3 * hidden * compute_bytes
        mlp += compute_bytes * 2 * feed_forward  # silu(gate), and its product with up
    return attention + norms + mlp


def memory_by_part(
    model: Model,
    vocab_size: int,
    sequence_length: int,
    batch_size: int,
    *,
    strategy: str = "single_gpu.yaml",
    num_devices: int = 1,
    checkpointing: bool = False,
    compiled: bool = True,
    muon: bool = False,
    average: bool = False,
    num_teachers: int = 0,
    compute_bytes: int = BF16,
    device_type: str = "cuda",
    plain_attention: bool | None = None,
) -> dict[str, float]:
    """Return the bytes that each part of a step takes on one device at the peak.

    `batch_size`: sequences in one forward pass on one device. `strategy`: file of accelerate_configs/, which divides
    over num_devices. `checkpointing`: activations of a layer are recomputed in the backward pass. `muon`: one state,
    not two, for the matrices of the layers. `average`: training.average keeps one of the weights, divided as they are.
    `num_teachers`: of training.distillation, taken to have this shape; each device holds them whole. `compiled` and
    `compute_bytes` as in activation_bytes_per_token; `device_type` as in rows_per_chunk. `plain_attention`: the
    scores are kept, as soft-capped ones are on any device; None: as takes_plain_attention says of auto.

    Returns: parameters, working_weights, gradients, optimizer, average, teachers, activations, logits.
    """
    counts = count_parameters(model, vocab_size)
    matrices = counts["attention"] + counts["feed_forward"]
    tokens = batch_size * sequence_length
    sharded = STRATEGIES[strategy]
    shares = {name: num_devices if name in sharded else 1 for name in ("parameters", "gradients", "optimizer")}
    states = 2 * counts["total"] - (matrices if muon else 0)
    layer = matrices / model.num_hidden_layers
    table = vocab_size * model.hidden_size
    if sharded:  # the layer at work and the one that is fetched ahead, the table beside them, and gradients likewise
        working = compute_bytes * (2 * layer + table) + FP32 * (layer + table)
    elif compute_bytes < FP32:  # autocast's copies live from the forward to the backward pass
        working = compute_bytes * (matrices + table)
    else:
        working = 0.0
    per_token = activation_bytes_per_token(model, compiled, compute_bytes)
    if plain_attention is None:
        plain_attention = takes_plain_attention(device_type, compute_bytes < FP32, sequence_length)
    if plain_attention:
        per_token += model.num_attention_heads * sequence_length * (FP32 + 2 * compute_bytes)
    if checkpointing:  # the input of each layer, and one layer as a whole
        activations = tokens * (model.num_hidden_layers * model.hidden_size * FP32 + per_token)
    else:
        activations = tokens * model.num_hidden_layers * per_token
    ends = tokens * model.hidden_size * (3 * FP32 + compute_bytes)  # last norm, its input's and the loss's gradient
    # Of a chunk: the logits, which become their slope in place; uncompiled, two or three tensors in fp32 beside them.
    rows = min(tokens, rows_per_chunk(vocab_size, device_type))
    in_fp32 = 0 if compiled else 2 * FP32 + (FP32 if compute_bytes < FP32 else 0)
    chunk = rows * vocab_size * (compute_bytes + in_fp32)
    # The weights, and of a batch the last hidden states; of one teacher the distribution of a chunk beside the mean.
    projection = compute_bytes * table if compute_bytes < FP32 else 0
    teachers = num_teachers * (FP32 * counts["total"] + projection + compute_bytes * tokens * model.hidden_size)
    if num_teachers:
        teachers += rows * vocab_size * FP32 * (3 if compiled and num_teachers > 1 else 2)
    return {
        "parameters": FP32 * counts["total"] / shares["parameters"],
        "working_weights": working,
        "gradients": FP32 * counts["total"] / shares["gradients"],
        "optimizer": FP32 * states / shares["optimizer"],
        "average": average * FP32 * counts["total"] / shares["parameters"],
        "teachers": teachers,
        "activations": activations + ends,
        "logits": chunk + FP32 * table,  # and the gradient of the projection, until the backward pass takes it
    }


def largest_batch(memory_bytes: float, model: Model, vocab_size: int, sequence_length: int, **options) -> int:
    """Return how many sequences fit at once beside FREE_FRACTION of the memory; 0 where not one does."""
    budget = memory_bytes * (1 - FREE_FRACTION)

    def fits(batch_size: int) -> bool:
        return sum(memory_by_part(model, vocab_size, sequence_length, batch_size, **options).values()) <= budget

    if not fits(1):
        return 0
    batch_size = 1
    while batch_size < 1 << 16 and fits(2 * batch_size):
        batch_size *= 2
    return batch_size
