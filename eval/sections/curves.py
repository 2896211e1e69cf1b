# SPDX-License-Identifier: Apache-2.0
"""Training curves, with what happened marked, and the speed: metrics.jsonl, chronicle.jsonl."""

from collections import Counter
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from figure_style import COLORS, byte_unit, line_style, thinned
from run_files import RunFiles, Shown
from wording import plain


# What is marked on a curve, and how: told apart by line and colour.
MARKS = {"skip": (COLORS[5], ":"), "rollback": (COLORS[3], "-."), "resume": (COLORS[2], "--")}
MAX_MARKS = 60  # of a kind; more would hide the curve


def show(run: RunFiles) -> Shown | None:
    metrics = run.metrics()
    if not metrics["training"]:
        return None
    events = [entry for entry in run.lines("chronicle.jsonl") if entry["event"] in MARKS]
    figures = {
        "bits_per_byte": (
            curves(metrics, "train/bits_per_byte", "eval/bits_per_byte/", "bits per byte", events),
            "Bits per byte over the text seen in training",
        ),
        "loss": (
            curves(metrics, "train/loss", "eval/loss/", "loss (nats per token)", events),
            "Loss over the text seen in training",
        ),
        "learning_rate": (
            learning_rate_figure(metrics["training"], events),
            "Learning rate and gradient norm over the optimizer steps",
        ),
    }
    if any(line.get("train/tokens_per_second") for line in metrics["training"]):
        figures["speed"] = (speed_figure(metrics["training"], events), "Speed over the optimizer steps")
    return Shown("Training curves", {"counts": Counter(entry["event"] for entry in events)}, figures)


def mark(axes: Axes, events: list[dict], x_of_step: Callable[[int], float]) -> None:
    """Draw a line where a step was skipped, rolled back to, or resumed from."""
    for kind, (color, style) in MARKS.items():
        steps = [entry["step"] for entry in events if entry["event"] == kind]
        for number, step in enumerate(steps[:MAX_MARKS]):
            axes.axvline(x_of_step(step), color=color, linestyle=style, lw=1, label=None if number else kind)


def curves(metrics: dict, training_key: str, evaluation_key: str, label: str, events: list[dict]) -> Figure:
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
    seen = [(line["step"], line["train/bytes_seen"]) for line in metrics["training"]]
    mark(axes, events, lambda step: max((read for at, read in seen if at <= step), default=0) / size)
    axes.set(xlabel=f"text seen in training ({unit})", ylabel=label)
    axes.legend(fontsize="small")
    return figure


def speed_figure(lines: list[dict], events: list[dict]) -> Figure:
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    axes.plot(*thinned(lines, "train/tokens_per_second", "step"), color=COLORS[0], linewidth=1)
    mark(axes, events, lambda step: step)
    axes.set(xlabel="optimizer step", ylabel="tokens per second", ylim=(0, None))
    return figure


def learning_rate_figure(lines: list[dict], events: list[dict]) -> Figure:
    figure = Figure(figsize=(7, 5))
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(*thinned(lines, "train/learning_rate", "step"), color=COLORS[0])
    upper.set_ylabel("learning rate")
    upper.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    lower.plot(*thinned(lines, "train/grad_norm", "step"), color=COLORS[5], linewidth=1)
    lower.set(ylabel="gradient norm", xlabel="optimizer step")
    mark(lower, events, lambda step: step)
    if events:
        lower.legend(fontsize="small")
    return figure
