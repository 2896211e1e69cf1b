# SPDX-License-Identifier: Apache-2.0
"""Bits per byte of held-out text, beside xz: eval/results.json."""

import textwrap

from matplotlib.figure import Figure

from figure_style import COLORS, WIDTH
from run_files import RunFiles, Section
from sections.benchmarks import read_baselines
from wording import count, decimals, heading, plain, table


XZ_NAMES = {
    "xz_documents": "xz -9e of each document alone",
    "xz_stream": "xz -9e of the text as one stream",
    "xz_primed": "xz -9e primed with the training text",
}


def build(run: RunFiles) -> Section | None:
    results = run.json("eval/results.json")
    if results is None or not results["bits_per_byte"]["sources"]:
        return None
    values = {"results": results, "xz_names": XZ_NAMES, "xz_sentence": xz_sentence, "baselines": read_baselines(run)}
    months = results["bits_per_byte"].get("months", {})
    figures = (
        {
            "months": (
                months_figure(months),
                "Bits per byte of text later than all training text, by month; the line is the 95 % interval",
            )
        }
        if months
        else {}
    )
    if lengths := results["bits_per_byte"].get("context_lengths", {}):
        figures["context_lengths"] = (
            context_figure(lengths),
            "Bits per byte of long documents by context length. A curve that falls uses the longer context",
        )
    return Section("Held-out text", values, figures, summarise(results))


def months_figure(months: dict[str, dict]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3))
    axes = figure.subplots()
    axes.plot(range(len(months)), [entry["bits_per_byte"] for entry in months.values()], color=COLORS[0], marker="o")
    for place, entry in enumerate(months.values()):
        if entry["confidence_interval"]:
            axes.plot([place, place], entry["confidence_interval"], color=COLORS[0], linewidth=1)
    step = -(-len(months) // 12)
    axes.set_xticks(range(0, len(months), step), list(months)[::step])
    axes.set(xlabel="month of the text", ylabel="bits per byte")
    return figure


def context_figure(lengths: dict[str, dict]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3))
    axes = figure.subplots()
    tokens = [int(length) for length in lengths]
    axes.plot(tokens, [entry["bits_per_byte"] for entry in lengths.values()], color=COLORS[0], marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks(tokens, list(lengths))
    axes.set(xlabel="context (tokens)", ylabel="bits per byte")
    return figure


def xz_sentence(source: str, entry: dict) -> str | None:
    """Name the xz scores that the model beats and those it does not; None where xz was not run."""
    known = {kind: entry[kind] for kind in XZ_NAMES if entry.get(kind) is not None}
    if not known:
        return None
    better = [f"{XZ_NAMES[kind]} ({value:.3f})" for kind, value in known.items() if entry["bits_per_byte"] < value]
    worse = [f"{XZ_NAMES[kind]} ({value:.3f})" for kind, value in known.items() if entry["bits_per_byte"] >= value]
    parts = ["beats " + " and ".join(better)] if better else []
    parts += [("but not " if better else "does not beat ") + " or ".join(worse)] if worse else []
    return f"{source}: the model ({entry['bits_per_byte']:.3f}) {', '.join(parts)}."


def summarise(results: dict) -> list[str]:
    sources = results["bits_per_byte"]["sources"]
    rows = [
        [plain(name), plain(entry["domain"]), count(entry["bytes"]), decimals(entry["bits_per_byte"])]
        + [decimals(entry.get(kind)) for kind in XZ_NAMES]
        for name, entry in sources.items()
    ]
    lines = heading("Bits per byte of held-out text (lower is better)")
    lines += table(["source", "domain", "bytes", "model", "xz each", "xz stream", "xz primed"], rows, left=2)
    lines.append(f"Split: {results['settings']['split']}. xz is xz -9e: each document alone, the text as one stream,")
    lines.append("and the text after the training text.")
    if lengths := results["bits_per_byte"].get("context_lengths", {}):
        read = ", ".join(f"{decimals(entry['bits_per_byte'])} with {count(int(n))}" for n, entry in lengths.items())
        lines += ["", *textwrap.wrap(f"Documents longer than the context, by the tokens read at once: {read}.", 100)]
    sentences = [xz_sentence(plain(name), entry) for name, entry in sources.items()]
    return lines + [""] + [part for sentence in sentences if sentence for part in textwrap.wrap(sentence, 100)]
