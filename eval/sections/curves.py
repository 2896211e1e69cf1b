# SPDX-License-Identifier: Apache-2.0
"""Training curves with events marked, tasks scored in training, and use of the machine.

metrics.jsonl, chronicle.jsonl.
"""

from collections import Counter
from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from figure_style import COLORS, WIDTH, byte_unit, line_style, thinned
from run_files import RunFiles, Section
from wording import plain


# Events marked on a curve; each has a colour and a line of its own.
MARKS = {"skip": (COLORS[5], ":"), "rollback": (COLORS[3], "-."), "resume": (COLORS[2], "--")}
MAX_MARKS = 60  # per event; more would hide the curve


def build(run: RunFiles) -> Section | None:
    metrics = run.metrics()
    if not metrics["training"]:
        return None
    events = [entry for entry in run.lines("chronicle.jsonl") if entry["event"] in MARKS]
    figures = {
        "bits_per_byte": (
            curves(metrics, "train/bits_per_byte", "eval/bits_per_byte/", "bits per byte", events),
            "Bits per byte of training text (grey) and of validation text, over the text seen. Lower is better",
        ),
        "loss": (
            curves(metrics, "train/loss", "eval/loss/", "loss (nats per token)", events),
            "The same as loss per token, which depends on the tokenizer",
        ),
        "learning_rate": (
            learning_rate_figure(metrics["training"], events),
            "Learning rate and gradient norm at each optimizer step",
        ),
    }
    if tasks := scored_tasks(metrics["evaluation"]):
        figures["tasks"] = (
            tasks_figure(metrics["evaluation"], tasks),
            "Tasks scored in training, without examples. Dotted: the better of guessing and the best constant answer. "
            "A score in the band is within noise of it",
        )
    panels = {key: drawn for key, drawn in MACHINE.items() if any(line.get(key) for line in metrics["training"])}
    if panels:
        figures["speed"] = (
            machine_figure(metrics["training"], panels, events),
            "Speed, share of the device's peak, and peak memory of the first process",
        )
    return Section("Training curves", {"counts": Counter(entry["event"] for entry in events)}, figures)


def mark(axes: Axes, events: list[dict], x_of_step: Callable[[int], float]) -> None:
    """Draw a line where a step was skipped, rolled back to, or resumed from."""
    for kind, (color, style) in MARKS.items():
        steps = [entry["step"] for entry in events if entry["event"] == kind]
        for number, step in enumerate(steps[:MAX_MARKS]):
            axes.axvline(x_of_step(step), color=color, linestyle=style, lw=1, label=None if number else kind)


def curves(metrics: dict, training_key: str, evaluation_key: str, label: str, events: list[dict]) -> Figure:
    """Draw a training curve and the validation curve of each source over the bytes seen."""
    figure = Figure(figsize=(WIDTH, 3.6))
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
    axes.legend()
    return figure


def scored_tasks(lines: list[dict]) -> list[str]:
    """Return the tasks that were scored in training."""
    keys = {key for line in lines for key in line if key.startswith("eval/") and key.endswith("/accuracy")}
    return sorted(key.removeprefix("eval/").removesuffix("/accuracy") for key in keys)


def tasks_figure(lines: list[dict], tasks: list[str]) -> Figure:
    """Draw accuracy and gold-answer bits per byte over the bytes seen.

    In the band around a task's baseline, the 95 % interval of an accuracy, Wilson's, contains the baseline.
    """
    figure = Figure(figsize=(WIDTH, 4.2))
    upper, lower = figure.subplots(2, 1, sharex=True)
    size, unit = byte_unit(lines[-1]["train/bytes_seen"])
    for index, name in enumerate(tasks):
        style = line_style(index)
        for axes, key in ((upper, "accuracy"), (lower, "gold_bits_per_byte")):
            x, y = thinned(lines, f"eval/{name}/{key}", "train/bytes_seen")
            axes.plot([value / size for value in x], y, label=plain(name), **style)
        last = next(line for line in reversed(lines) if f"eval/{name}/accuracy" in line)
        baseline = last.get(f"eval/{name}/baseline", last[f"eval/{name}/chance"])  # earlier runs know chance alone
        if baseline:
            spread = 1.96 * (baseline * (1 - baseline) / last[f"eval/{name}/num_items"]) ** 0.5
            upper.axhspan(baseline - spread, baseline + spread, color=style["color"], alpha=0.12, lw=0)
            upper.axhline(baseline, color=style["color"], linestyle=":", lw=1)
    upper.set_ylabel("accuracy\n(dotted: baseline)")
    lower.set(ylabel="bits per byte of\nthe right answers", xlabel=f"text seen in training ({unit})")
    upper.legend()
    return figure


# Key of metrics.jsonl: (name, divisor, label of its panel).
MACHINE = {
    "train/tokens_per_second": ("", 1.0, "tokens\nper second"),
    "train/mfu_fraction": ("MFU", 0.01, "% of the peak"),
    "train/utilisation_hardware_fraction": ("all computed", 0.01, "% of the peak"),
    "train/utilisation_6nd_fraction": ("6 N a token", 0.01, "% of the peak"),
    "train/peak_memory_bytes": ("", 1e9, "peak memory\n(GB)"),
}


def machine_figure(lines: list[dict], panels: dict[str, tuple], events: list[dict]) -> Figure:
    labels = list(dict.fromkeys(label for _, _, label in panels.values()))
    figure = Figure(figsize=(WIDTH, 0.7 + 1.25 * len(labels)))
    axes = dict(zip(labels, figure.subplots(len(labels), 1, sharex=True, squeeze=False)[:, 0], strict=True))
    for index, (key, (name, unit, label)) in enumerate(panels.items()):
        x, y = thinned(lines, key, "step")
        dashes = "--" if key.endswith("6nd_fraction") else "-"
        axes[label].plot(x, [value / unit for value in y], dashes, color=COLORS[index], lw=1.2, label=name or None)
    for label, each in axes.items():
        mark(each, [event for event in events if label == labels[0]], lambda step: step)
        each.set(ylabel=label, ylim=(0, 1.05 * each.dataLim.ymax))
        if each.get_legend_handles_labels()[1]:
            each.legend()
    axes[labels[-1]].set_xlabel("optimizer step")
    return figure


def learning_rate_figure(lines: list[dict], events: list[dict]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.6))
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(*thinned(lines, "train/learning_rate", "step"), color=COLORS[0])
    upper.set_ylabel("learning rate")
    upper.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    lower.plot(*thinned(lines, "train/grad_norm", "step"), color=COLORS[5], linewidth=1)
    lower.set(ylabel="gradient norm", xlabel="optimizer step")
    mark(lower, events, lambda step: step)
    if events:
        lower.legend()
    return figure
