# SPDX-License-Identifier: Apache-2.0
"""How many parameters and FLOPs a model of a shape has, and which shape fits a number of parameters."""

import math

from planning.scaling_laws import optimal_vocab_size
from recipe_config import Model


MATMUL_FLOPS = 2  # a multiplication and an addition for each weight and token
BACKWARD_FACTOR = 3  # the backward pass multiplies twice for each time the forward pass does
VOCAB_MULTIPLE = 128  # rows of the projection that GPUs multiply at full speed, whatever it is sharded by
SMALL_MODEL_PARAMETERS = 1e9
# Width over depth. Losses differ little between 30 and 200 (Kaplan et al. 2020, figure 5). Published families have
# about 64 below a billion parameters (GPT-2 64, Pythia 160M 64, 410M 43) and 102 to 128 above (LLaMA 7B 128, 65B 102).
SMALL_ASPECT, LARGE_ASPECT = 64, 128
TIED_FRACTION = 0.1  # above this share of all parameters the projection and the embedding are one matrix
GROUPED_QUERY_WIDTH = 4096  # from this width on the key-value cache limits how many users a GPU serves (LLaMA 2 and 3)
GROUPED_QUERY_HEADS = 8


def count_parameters(model: Model, vocab_size: int) -> dict[str, int]:
    """Count a model's parameters by part and under each convention of scaling_laws.py.

    Returns: embedding, projection (0 where it is the embedding), attention, feed_forward, norms; and total,
        non_embedding, multiplying, non_vocabulary.
    """
    return count_decoder_parameters(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        query_width=model.num_attention_heads * head_dim(model),
        key_value_width=(model.num_key_value_heads or model.num_attention_heads) * head_dim(model),
        vocab_size=vocab_size,
        tied=model.tie_word_embeddings,
        gated=not model.plain,
        biased=model.plain,
        head_norm=head_dim(model) if model.qk_norm else 0,
    )


def head_dim(model: Model) -> int:
    return model.head_dim or model.hidden_size // model.num_attention_heads


def count_decoder_parameters(
    *,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    query_width: int,
    key_value_width: int,
    vocab_size: int,
    tied: bool,
    gated: bool = True,
    biased: bool = False,
    positions: int = 0,
    embedding_norm: bool = False,
    head_norm: int = 0,
) -> dict[str, int]:
    """Count the parameters of a decoder of any of the usual kinds; as `count_parameters`.

    Widths are LlamaConfig's; query_width and key_value_width are heads times head_dim. `tied`: the projection is the
    embedding. `gated`: three matrices in the feed-forward layer (SwiGLU), not two. `biased`: in every linear layer and
    norm (GPT-2, BLOOM, BloombergGPT). `positions`: learned ones (GPT-2). `embedding_norm`: a norm after the embedding
    (BLOOM, BloombergGPT). `head_norm`: the width of the norms of a layer's queries and keys (Qwen 3).
    """
    attention = hidden_size * (2 * query_width + 2 * key_value_width)
    feed_forward = (3 if gated else 2) * hidden_size * intermediate_size
    if biased:
        attention += query_width + 2 * key_value_width + hidden_size
        feed_forward += (2 if gated else 1) * intermediate_size + hidden_size
    norms = (2 * num_hidden_layers + 1 + embedding_norm) * hidden_size * (2 if biased else 1)
    norms += 2 * num_hidden_layers * head_norm
    table = vocab_size * hidden_size
    parts = {
        "embedding": table + positions * hidden_size,
        "projection": 0 if tied else table,
        "attention": num_hidden_layers * attention,
        "feed_forward": num_hidden_layers * feed_forward,
        "norms": norms,
    }
    total = sum(parts.values())
    non_vocabulary = total - parts["embedding"] - parts["projection"]
    return parts | {
        "total": total,
        "non_embedding": total - parts["embedding"],
        "multiplying": non_vocabulary + table,
        "non_vocabulary": non_vocabulary,
    }


def training_flops_per_token(model: Model, vocab_size: int, sequence_length: int) -> float:
    """Return the FLOPs of forward and backward pass for a token: every matrix product, nothing recomputed.

    6 N for the matrices plus 12 L H Q T for the attention scores (PaLM, arXiv 2204.02311, appendix B), counted as full
    squares although half of each is masked. Norms, softmax and the embedding look-up, under 1 %, are left out.
    """
    counts = count_parameters(model, vocab_size)
    matrices = counts["multiplying"] - counts["norms"]
    scores = 2 * model.num_hidden_layers * model.num_attention_heads * head_dim(model) * sequence_length
    return BACKWARD_FACTOR * MATMUL_FLOPS * (matrices + scores)


def choose_vocab_size(parameters: float, hidden_size: int) -> int:
    """Return the vocabulary that Tao et al. 2024 (approach 3) find best, rounded for GPUs.

    Args: parameters: those that are not of the vocabulary.
    """
    return max(1, round(optimal_vocab_size(parameters, hidden_size) / VOCAB_MULTIPLE)) * VOCAB_MULTIPLE


def choose_shape(parameters: float, counts: str, vocab_size: int | None) -> tuple[Model, int]:
    """Find the shape of about `parameters` parameters.

    Widths are multiples of 128 (of 32 below 256, of 1,024 from 4,096 on), so that heads of 128 (64 below a width of
    2,048, 32 below 256) divide them, matrices fill a GPU's tiles and 8 GPUs can share the heads of a large model. The
    feed-forward layer is 8/3 as wide, rounded up to a multiple of 128 (32). Among the shapes within 4 % of the size
    the one whose width over depth is nearest to the families' is chosen.

    Args:
        parameters: how many, under the convention `counts` of scaling_laws.py.
        counts: the convention.
        vocab_size: None: by the vocabulary law.

    Returns: the shape and the vocabulary's size.
    """
    aspect = SMALL_ASPECT if parameters < SMALL_MODEL_PARAMETERS else LARGE_ASPECT
    best = None
    for hidden_size in [
        *range(32, 256, 32),
        *range(256, 2048, 128),
        *range(2048, 4096, 256),
        *range(4096, 65536, 1024),
    ]:
        size = vocab_size or choose_vocab_size(parameters, hidden_size)
        if best and hidden_size * size > 4 * parameters:
            break
        for tied in (True, False):
            one_layer = count_parameters(shape_of(hidden_size, 1, tied), size)
            layer = count_parameters(shape_of(hidden_size, 2, tied), size)["total"] - one_layer["total"]
            exact = 1 + (parameters - one_layer[counts]) / layer
            for layers in {max(1, math.floor(exact)), max(1, math.ceil(exact))}:
                counted = one_layer[counts] + (layers - 1) * layer
                total = one_layer["total"] + (layers - 1) * layer
                if tied != (hidden_size * size > TIED_FRACTION * (total - one_layer["projection"])):
                    continue
                off = abs(math.log(counted / parameters))
                distance = abs(math.log(hidden_size / layers / aspect)) + 25 * max(0.0, off - 0.04)
                if best is None or distance < best[0]:
                    best = (distance, shape_of(hidden_size, layers, tied), size)
    return best[1], best[2]


def shape_of(hidden_size: int, num_hidden_layers: int, tied: bool) -> Model:
    """Return the shape of a width and depth under the rules of `choose_shape`."""
    width = 128 if hidden_size >= 2048 else 64 if hidden_size >= 256 else 32
    multiple = 128 if hidden_size >= 256 else 32
    heads = hidden_size // width
    grouped = hidden_size >= GROUPED_QUERY_WIDTH
    return Model(
        hidden_size=hidden_size,
        intermediate_size=math.ceil(8 * hidden_size / 3 / multiple) * multiple,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=math.gcd(heads, GROUPED_QUERY_HEADS) if grouped else None,
        tie_word_embeddings=tied,
    )
