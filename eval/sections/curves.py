# SPDX-License-Identifier: Apache-2.0
"""Training curves: metrics.jsonl."""

from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from figure_style import COLORS, byte_unit, line_style, thinned
from run_files import RunFiles, Shown
from wording import plain


def show(run: RunFiles) -> Shown | None:
    metrics = run.metrics()
    if not metrics["training"]:
        return None
    figures = {
        "bits_per_byte": (
            curves(metrics, "train/bits_per_byte", "eval/bits_per_byte/", "bits per byte"),
            "Bits per byte over the text seen in training",
        ),
        "loss": (
            curves(metrics, "train/loss", "eval/loss/", "loss (nats per token)"),
            "Loss over the text seen in training",
        ),
        "learning_rate": (
            learning_rate_figure(metrics["training"]),
            "Learning rate and gradient norm over the optimizer steps",
        ),
    }
    return Shown("Training curves", figures=figures)


def curves(metrics: dict, training_key: str, evaluation_key: str, label: str) -> Figure:
    """Draw a training curve and the validation curve of each source over the bytes seen."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    last = [lines[-1]["train/bytes_seen"] for lines in metrics.values() if lines]
    size, unit = byte_unit(max(last))
    drawn = []
    x, y = thinned(metrics["training"], training_key, "train/bytes_seen")
    if x:
        axes.plot([value / size for value in x], y, color="0.6", linewidth=1, label="training")
        drawn += y
    sources = sorted(
        {
            key.removeprefix(evaluation_key)
            for line in metrics["evaluation"]
            for key in line
            if key.startswith(evaluation_key)
        }
    )
    for index, source in enumerate(sources):
        x, y = thinned(metrics["evaluation"], evaluation_key + source, "train/bytes_seen")
        axes.plot([value / size for value in x], y, label=f"validation: {plain(source)}", **line_style(index))
        drawn += y
    if drawn and min(drawn) > 0 and max(drawn) > 3 * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    axes.set(xlabel=f"text seen in training ({unit})", ylabel=label)
    axes.legend(fontsize="small")
    return figure


def learning_rate_figure(lines: list[dict]) -> Figure:
    figure = Figure(figsize=(7, 5))
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(*thinned(lines, "train/learning_rate", "step"), color=COLORS[0])
    upper.set_ylabel("learning rate")
    upper.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    lower.plot(*thinned(lines, "train/grad_norm", "step"), color=COLORS[5], linewidth=1)
    lower.set(ylabel="gradient norm", xlabel="optimizer step")
    return figure
