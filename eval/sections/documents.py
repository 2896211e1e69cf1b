# SPDX-License-Identifier: Apache-2.0
"""From the sources to the documents: what came in, what was dropped and why, what was kept. documents/stats.json."""

from matplotlib.figure import Figure

from figure_style import COLORS, HATCHES
from run_files import RunFiles, Shown
from wording import plain


FUNNEL_COLORS = [COLORS[index] for index in (0, 4, 1, 2, 3, 5, 6)]  # what was kept in two blues
SHOWN_REASONS = 4  # of those for which text was left out; the figure adds up the others


def show(run: RunFiles) -> Shown | None:
    documents = run.json("documents/stats.json")
    if documents is None:
        return None
    text = "What became of the bytes that were read of each source"
    figures = {"funnel": (funnel_figure(documents["sources"]), text)} if documents["sources"] else {}
    return Shown("From the sources to the documents", {"documents": documents}, figures)


def funnel_shares(sources: dict) -> dict[str, list[float]]:
    """Return what became of the bytes read of each source: {fate: percent of each source}, largest reasons by name."""
    dropped: dict[str, float] = {}
    for entry in sources.values():
        for reason, number in entry["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + number["bytes"] / (entry["bytes_in"] or 1)
    named = sorted(dropped, key=lambda reason: (-dropped[reason], reason))[:SHOWN_REASONS]
    fates = ["kept: train", "kept: held out", *(f"left out: {reason}" for reason in named), "left out: other reasons"]
    shares = {fate: [] for fate in fates}
    for entry in sources.values():
        kept, left_out = entry["kept"], entry["dropped"]
        sizes = {"kept: train": kept["train"]["bytes"]}
        sizes["kept: held out"] = sum(number["bytes"] for split, number in kept.items() if split != "train")
        sizes |= {f"left out: {reason}": left_out.get(reason, {"bytes": 0})["bytes"] for reason in named}
        others = [number["bytes"] for reason, number in left_out.items() if reason not in named]
        sizes["left out: other reasons"] = sum(others)
        for fate, size in sizes.items():
            shares[fate].append(100 * size / (entry["bytes_in"] or 1))
    return {fate: values for fate, values in shares.items() if any(values)}


def funnel_figure(sources: dict) -> Figure:
    shares = funnel_shares(sources)
    figure = Figure(figsize=(7, 1.9 + 0.5 * len(sources)))
    axes = figure.subplots()
    left = [0.0] * len(sources)
    for (fate, values), color, hatch in zip(shares.items(), FUNNEL_COLORS, HATCHES, strict=False):
        axes.barh(range(len(sources)), values, 0.6, left=left, label=plain(fate), color=color, hatch=hatch, ec="white")
        left = [before + value for before, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(sources)), [plain(name) for name in sources])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="share of the bytes read (%)", xlim=(0, 100))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", fontsize="small", ncols=2)
    return figure
