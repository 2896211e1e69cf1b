# SPDX-License-Identifier: Apache-2.0
"""What preparation read, dropped and kept of each source: documents/stats.json."""

from matplotlib.figure import Figure

from figure_style import COLORS, HATCHES, WIDTH
from run_files import RunFiles, Section
from wording import plain


FUNNEL_COLORS = [COLORS[index] for index in (0, 4, 1, 2, 3, 5, 6)]  # kept text in two blues
MAX_REASONS = 4  # for dropping text that the figure names; it adds up the others


def build(run: RunFiles) -> Section | None:
    documents = run.json("documents/stats.json")
    if documents is None:
        return None
    text = "What became of the bytes read of each source: training text, held out for evaluation, or dropped"
    figures = {"funnel": (funnel_figure(documents["sources"]), text)} if documents["sources"] else {}
    return Section("Training text", {"documents": documents}, figures)


def funnel_shares(sources: dict) -> dict[str, list[float]]:
    """Return {fate: percent of the bytes of each source}; of the reasons to drop text, the largest by name."""
    dropped: dict[str, float] = {}
    for entry in sources.values():
        for reason, number in entry["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + number["bytes"] / (entry["bytes_in"] or 1)
    named = sorted(dropped, key=lambda reason: (-dropped[reason], reason))[:MAX_REASONS]
    fates = ["kept: train", "kept: held out", *(f"dropped: {reason}" for reason in named), "dropped: other reasons"]
    shares = {fate: [] for fate in fates}
    for entry in sources.values():
        kept, left_out = entry["kept"], entry["dropped"]
        sizes = {"kept: train": kept["train"]["bytes"]}
        sizes["kept: held out"] = sum(number["bytes"] for split, number in kept.items() if split != "train")
        sizes |= {f"dropped: {reason}": left_out.get(reason, {"bytes": 0})["bytes"] for reason in named}
        others = [number["bytes"] for reason, number in left_out.items() if reason not in named]
        sizes["dropped: other reasons"] = sum(others)
        for fate, size in sizes.items():
            shares[fate].append(100 * size / (entry["bytes_in"] or 1))
    return {fate: values for fate, values in shares.items() if any(values)}


def funnel_figure(sources: dict) -> Figure:
    shares = funnel_shares(sources)
    figure = Figure(figsize=(WIDTH, 1.9 + 0.5 * len(sources)))
    axes = figure.subplots()
    left = [0.0] * len(sources)
    for (fate, values), color, hatch in zip(shares.items(), FUNNEL_COLORS, HATCHES, strict=False):
        axes.barh(range(len(sources)), values, 0.6, left=left, label=plain(fate), color=color, hatch=hatch, ec="white")
        left = [before + value for before, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(sources)), [plain(name) for name in sources])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="share of the bytes read (%)", xlim=(0, 100))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure
