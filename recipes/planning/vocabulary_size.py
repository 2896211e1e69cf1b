# SPDX-License-Identifier: Apache-2.0
"""Measure what a vocabulary size costs and gains, describe the choice in sentences, and draw it."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # by itself it draws with Agg, which needs no display
from tokenizers import Tokenizer

from planning.charts import COLORS, save
from planning.model_shape import VOCAB_MULTIPLE, count_parameters, training_flops_per_token
from planning.scaling_laws import optimal_vocab_size
from recipe_config import Model, Recipe
from vocabulary.bulk_encoding import encode_all


MIN_SIZE = 512  # below it there is little but the 256 bytes
LAW_FROM_PARAMETERS = 33e6  # non-vocabulary parameters of the smallest model that the law was fitted on


def round_size(size: float) -> int:
    """Round a size to a multiple of VOCAB_MULTIPLE, at least MIN_SIZE."""
    return max(MIN_SIZE, round(size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE)


def law_optima(model: Model, flops: float) -> dict[str, float]:
    """Return the law's optimal vocabulary size for a model by approach; only the third takes the FLOPs of the run."""
    parameters = count_parameters(model, VOCAB_MULTIPLE)["non_vocabulary"]
    return {
        f"approach_{approach}": optimal_vocab_size(parameters, model.hidden_size, approach, flops)
        for approach in (1, 2, 3)
    }


def measure(tokenizer: Tokenizer, texts: dict[str, list[str]], shares: dict[str, float], recipe: Recipe) -> dict:
    """Measure a tokenizer on held-out text, and what it costs in the planned model.

    Args:
        tokenizer: to measure.
        texts: source -> held-out texts.
        shares: source -> its share of the mixture.
        recipe: with the planned model and sequence_length.

    Returns: vocab_size; bytes_per_token of the mixture, and by domain in domains; uniform_bits_per_byte, with
        log2(vocab_size) bits a token; parameters_fraction and flops_fraction, the vocabulary's part of the planned
        model; flops_per_byte of training on the mixture; context_bytes, the text that sequence_length tokens hold.
    """
    tokens_per_byte, by_domain = {}, {}
    names = [source.name for source in recipe.data.sources]
    _, ends = encode_all([text for name in names for text in texts[name]], tokenizer)
    last = np.cumsum([len(texts[name]) for name in names])
    num_tokens_of = dict(zip(names, np.diff(np.append(0, ends)[last], prepend=0).tolist(), strict=True))
    for source in recipe.data.sources:
        num_tokens = num_tokens_of[source.name]
        num_bytes = sum(len(text.encode()) for text in texts[source.name])
        tokens_per_byte[source.name] = num_tokens / num_bytes
        tokens, total = by_domain.get(source.label, (0, 0))
        by_domain[source.label] = (tokens + num_tokens, total + num_bytes)
    per_byte = sum(shares[name] * rate for name, rate in tokens_per_byte.items()) / sum(shares.values())
    vocab_size, sequence_length = tokenizer.get_vocab_size(), recipe.training.sequence_length
    counts = count_parameters(recipe.model, vocab_size)
    flops = training_flops_per_token(recipe.model, vocab_size, sequence_length)
    without = training_flops_per_token(recipe.model, 0, sequence_length)
    return {
        "vocab_size": vocab_size,
        "bytes_per_token": 1 / per_byte,
        "domains": {domain: num_bytes / tokens for domain, (tokens, num_bytes) in by_domain.items()},
        "uniform_bits_per_byte": math.log2(vocab_size) * per_byte,
        "parameters_fraction": 1 - counts["non_vocabulary"] / counts["total"],
        "flops_fraction": 1 - without / flops,
        "flops_per_byte": flops * per_byte,
        "context_bytes": sequence_length / per_byte,
    }


def describe_choice(found: dict, by_law: int, domains: set[str]) -> Iterator[str]:
    """Yield sentences on vocabulary.json's content: the size and why, the other measures, other tokenizers.

    Args:
        found: vocabulary.json's content, without these sentences.
        by_law: the law's optimum, rounded.
        domains: the labels other than general, which are named first.
    """
    planned, law, small = found["planned"], found["law"], found["small_models"]
    sizes = {row["vocab_size"]: row for row in found["sizes"]}
    size, row = found["recommended"], sizes[found["recommended"]]
    parameters = planned["non_vocabulary_parameters"]
    by_approaches = (
        f"The vocabulary law (approach 3) gives {law['approach_3']:,} for {parameters / 1e6:,.1f} M non-vocabulary "
        f"parameters, width {planned['hidden_size']:,} and {planned['flops']:.2g} FLOPs. Approaches 1 and 2, which "
        f"assume an optimal length of training, give {law['approach_1']:,} and {law['approach_2']:,}."
    )
    if found["by"] == "law":
        yield f"Vocabulary size {size:,}, by the vocabulary law. {by_approaches}"
    else:
        measure = {
            "small models": "that of the small model with the fewest bits per byte",
            "cost": "at which training on a byte of text takes the fewest FLOPs (no small models were compared)",
        }[found["by"]]
        yield (
            f"Vocabulary size {size:,}, {measure}. The law is outside of its range, which begins at "
            f"{LAW_FROM_PARAMETERS / 1e6:.0f} M non-vocabulary parameters, and is not followed. {by_approaches}"
        )
    if found["by"] == "law" and size < by_law:
        yield f"The text is too small for {by_law:,} tokens; measure again with more text."
    yield (
        f"The vocabulary is {row['parameters_fraction']:.1%} of the parameters and {row['flops_fraction']:.1%} of the "
        f"FLOPs; {planned['sequence_length']:,} tokens hold {row['context_bytes']:,.0f} bytes."
    )
    least = min(found["sizes"], key=lambda one: one["uniform_bits_per_byte"])
    edge = " (the end of the range)" if least["vocab_size"] in (min(sizes), max(sizes)) else ""
    yield (
        f"BloombergGPT's measure, log2(size) bits a token, is lowest at {least['vocab_size']:,}{edge}, where the "
        f"vocabulary is {least['parameters_fraction']:.1%} of the parameters."
    )
    cheapest = min(found["sizes"], key=lambda one: one["flops_per_byte"])
    yield (
        f"Of the sizes measured, training on a byte of text is cheapest at {cheapest['vocab_size']:,}: "
        f"{fewer(1 - cheapest['flops_per_byte'] / row['flops_per_byte'])} FLOPs than at {size:,}."
    )
    if len(small["runs"]) > 1:
        best = min(small["runs"], key=lambda run: run["bits_per_byte"])
        scores = ", ".join(f"{run['vocab_size']:,}: {run['bits_per_byte']:.4f}" for run in small["runs"])
        yield (
            f"Small models ({small['non_vocabulary_parameters'] / 1e6:.2f} M non-vocabulary parameters, "
            f"{small['flops']:.2g} FLOPs each, one seed), bits per byte: {scores}. Best is {best['vocab_size']:,}; "
            f"the law gives {small['law']['approach_3']:,} for them."
        )
    for name, other in found["others"].items():
        by_domain = ", ".join(
            f"{fewer(1 - other['domains'][domain] / row['domains'][domain])} tokens on {domain}"
            for domain in sorted(row["domains"], key=lambda domain: domain not in domains)
        )
        flops = fewer(1 - row["flops_per_byte"] / other["flops_per_byte"])
        yield (
            f"Compared with {name} ({other['vocab_size']:,} tokens): {by_domain}; {flops} FLOPs to train the planned "
            "model on the mixture."
        )


def fewer(fraction: float) -> str:
    return f"{abs(fraction):.1%} {'fewer' if fraction >= 0 else 'MORE'}"


def draw_sizes(found: dict, path: Path) -> None:
    """Draw the measures over the vocabulary size, with the recommendation, from vocabulary.json's content."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    (compression, uniform), (cost, trained) = figure.subplots(2, 2)
    sizes = [row["vocab_size"] for row in found["sizes"]]

    def column(name: str) -> list[float]:
        return [row[name] for row in found["sizes"]]

    compression.plot(sizes, column("bytes_per_token"), "o-", color=COLORS[0], label="ours")
    for index, (name, other) in enumerate(found["others"].items()):
        point = other["vocab_size"], other["bytes_per_token"]
        compression.plot(*point, "sD^vPX"[index % 6], color="0.4")
        compression.annotate(name, point, fontsize=6, ha="right", va="top")
    compression.set(
        title=f"recommended (vertical line): {found['recommended']:,}", ylabel="bytes per token of the mixture"
    )
    uniform.plot(sizes, column("uniform_bits_per_byte"), "o-", color=COLORS[0])
    uniform.set(title="BloombergGPT's measure", ylabel="log2(size) bits a token, per byte")
    least = min(column("flops_per_byte"))
    for values, style, color, label in (
        (column("parameters_fraction"), "o-", COLORS[0], "share of the parameters"),
        (column("flops_fraction"), "s--", COLORS[1], "share of a token's FLOPs"),
        (
            [flops / least - 1 for flops in column("flops_per_byte")],
            "^-.",
            COLORS[2],
            "FLOPs of a byte above the least",
        ),
    ):
        cost.plot(sizes, [100 * value for value in values], style, color=color, label=label)
    cost.set(title="cost in the planned model", ylabel="per cent")
    cost.legend(fontsize="small")
    draw_small_models(found["small_models"], trained)
    for axes in (compression, uniform, cost):
        axes.axvline(found["recommended"], color=COLORS[5], linewidth=1)
    for axes in figure.axes:
        axes.set_xscale("log", base=2)
        axes.set_xlabel("vocabulary size")
        axes.grid(alpha=0.3)
    save(figure, path)


def draw_small_models(small: dict, axes: Axes) -> None:
    """Draw bits per byte of the small models over the vocabulary size."""
    runs = small["runs"]
    axes.set_visible(bool(runs))
    if not runs:
        return
    for index, name in enumerate(key for key in runs[0] if key.startswith("bits_per_byte")):
        label = name.removeprefix("bits_per_byte").strip("_") or "all"
        points = sorted((run["vocab_size"], run[name]) for run in runs)
        axes.plot(*zip(*points, strict=True), "os^Dv"[index % 5] + "-", color=COLORS[index % 7], label=label)
    axes.axvline(small["law"]["approach_3"], color="0.5", linestyle=":", label="law's optimum for this model")
    axes.legend(fontsize="small")
    axes.set(title=f"small models at {small['flops']:.2g} FLOPs each", ylabel="bits per byte of held-out text")
