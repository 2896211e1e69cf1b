# SPDX-License-Identifier: Apache-2.0
"""The mixture of sources, target and actual: training.json, metrics.jsonl."""

from matplotlib.figure import Figure

from figure_style import COLORS, WIDTH, byte_unit, line_style, thinned
from run_files import RunFiles, Section
from wording import plain


def build(run: RunFiles) -> Section | None:
    training = run.json("training.json")
    mixture = training and training.get("mixture")
    if not mixture:
        return None
    lines = [line for line in run.metrics()["evaluation"] if any(key.startswith("data/share/") for key in line)]
    figures = {
        "mixture": (
            mixture_figure(mixture),
            "Share of each source in the bytes seen in training, target and actual",
        )
    }
    if lines:
        figures["shares"] = (
            shares_figure(lines),
            "Actual share of each source over training; broken lines are targets",
        )
    return Section("Mixture", {"mixture": mixture, "last": lines[-1] if lines else None}, figures)


def mixture_figure(mixture: dict) -> Figure:
    figure = Figure(figsize=(WIDTH, 1.2 + 0.6 * len(mixture)))
    axes = figure.subplots()
    for offset, key, label, color, hatch in (
        (-0.2, "asked_fraction", "target", COLORS[4], ""),
        (0.2, "delivered_fraction", "actual", COLORS[0], "//"),
    ):
        shares = [100 * entry[key] for entry in mixture.values()]
        positions = [index + offset for index in range(len(mixture))]
        bars = axes.barh(positions, shares, 0.38, label=label, color=color, hatch=hatch, edgecolor="white")
        axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks(range(len(mixture)), [plain(name) for name in mixture])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("share of the bytes seen in training (%)")
    axes.grid(axis="y", visible=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def shares_figure(lines: list[dict]) -> Figure:
    """Draw the actual share of each source over training, and its target as a broken line."""
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.subplots()
    size, unit = byte_unit(lines[-1]["train/bytes_seen"])
    sources = sorted(
        {key.removeprefix("data/share/") for line in lines for key in line if key.startswith("data/share/")}
    )
    for index, source in enumerate(sources):
        style = line_style(index)
        x, y = thinned(lines, f"data/share/{source}", "train/bytes_seen")
        axes.plot([value / size for value in x], [100 * share for share in y], label=plain(source), **style)
        x, y = thinned(lines, f"data/asked/{source}", "train/bytes_seen")
        if x:
            asked = {"color": style["color"], "linestyle": "--", "linewidth": 1, "drawstyle": "steps-pre"}
            axes.plot([value / size for value in x], [100 * share for share in y], **asked)
    axes.set(xlabel=f"text seen in training ({unit})", ylabel="share of the bytes seen (%)", ylim=(0, None))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
