# SPDX-License-Identifier: Apache-2.0
"""Turn a run folder into figures, a report to read in a browser, and a summary for the terminal.

In:  whatever of documents/stats.json and decontamination.json, tokenizer/report.json, training.json, metrics.jsonl and
     eval/results.json is there; the report says of each missing file which section it would have filled.
Out: figures/*.png, report.html (one file, figures inside), summary.txt (also printed).

    python eval/report.py runs/legal-quickstart

Every number stands in one of those files; nothing is measured here. Text from data or a model is escaped.
"""

import argparse
import base64
import json
import logging
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure  # by itself it draws with Agg, which needs no display
from matplotlib.ticker import FormatStrFormatter


logger = logging.getLogger(__name__)

FILES = {
    "documents": "documents/stats.json",
    "decontamination": "documents/decontamination.json",
    "tokenizer": "tokenizer/report.json",
    "training": "training.json",
    "metrics": "metrics.jsonl",
    "results": "eval/results.json",
}
# Okabe and Ito's colours, which the common kinds of colour blindness leave apart (https://jfly.uni-koeln.de/color).
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
MAX_POINTS = 1500  # drawn of one curve; more only makes the file larger
HATCHES = ["", "//", "..", "xx", "--", "\\\\", "oo"]
FUNNEL_COLORS = [COLORS[index] for index in (0, 4, 1, 2, 3, 5, 6)]  # what was kept in two blues
SHOWN_REASONS = 4  # of those for which text was left out; the figure adds up the others
# The groups of items that results.json tells apart, and what they are for the model.
OVERLAP_GROUPS = {
    "clean": "no run of their words is in the text that was kept",
    "overlapping": "the text that was kept shares runs of words with them",
    "not_checkable": "too short to be told from other text, or only wording that many items share",
    "unchecked": "the text was not checked against them",
}
XZ_NAMES = {
    "xz_documents": "xz -9e of each document alone",
    "xz_stream": "xz -9e of the text as one stream",
    "xz_primed": "xz -9e primed with the training text",
}
SAMPLE_CHARACTERS = 300  # of a sample in summary.txt


def read_run(folder: Path) -> dict:
    """Read the run's files, {name in FILES: content, or None where there is no such file}.

    metrics.jsonl becomes {"training": [lines], "evaluation": [lines]} in the order of steps; where a resumed run wrote
    a step twice the later line counts, and a last line that a kill cut short is left out.

    Raises: ValueError: for a file that is not JSON.
    """
    run = {}
    for name, path in FILES.items():
        if not (folder / path).is_file():
            run[name] = None
            continue
        text = (folder / path).read_text(encoding="utf-8")
        try:
            run[name] = read_metrics(text) if name == "metrics" else json.loads(text)
        except ValueError as error:
            raise ValueError(
                f"{folder / path}: not valid JSON: {error}; run the stage that writes it again"
            ) from error
    return run


def read_metrics(text: str) -> dict[str, list[dict]]:
    lines = text.splitlines()
    by_step: dict[str, dict[int, dict]] = {"training": {}, "evaluation": {}}
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            if number == len(lines) - 1 and not text.endswith("\n"):
                break
            raise
        by_step["training" if "train/loss" in entry else "evaluation"][entry["step"]] = entry
    return {kind: [entries[step] for step in sorted(entries)] for kind, entries in by_step.items()}


# Figures


def thinned(lines: list[dict], key: str, x: str) -> tuple[list[float], list[float]]:
    """Return x and key of the lines that have both, averaged over stretches where there are more than MAX_POINTS."""
    points = [(line[x], line[key]) for line in lines if line.get(key) is not None and line.get(x) is not None]
    size = math.ceil(len(points) / MAX_POINTS) or 1
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    means = [[sum(values) / len(stretch) for values in zip(*stretch, strict=True)] for stretch in stretches]
    return [mean[0] for mean in means], [mean[1] for mean in means]


def byte_unit(largest: float) -> tuple[float, str]:
    """Return the decimal unit in which an axis up to `largest` bytes reads best."""
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= size:
            return size, name
    return 1.0, "bytes"


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
        style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 4}
        axes.plot([value / size for value in x], y, label=f"validation: {plain(source)}", **style)
        drawn += y
    if drawn and min(drawn) > 0 and max(drawn) > 3 * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    axes.set(xlabel=f"text seen in training ({unit})", ylabel=label)
    axes.legend(fontsize="small")
    return figure


def loss_figure(run: dict) -> Figure:
    return curves(run["metrics"], "train/loss", "eval/loss/", "loss (nats per token)")


def bits_per_byte_figure(run: dict) -> Figure:
    return curves(run["metrics"], "train/bits_per_byte", "eval/bits_per_byte/", "bits per byte")


def mixture_figure(run: dict) -> Figure:
    mixture = run["training"]["mixture"]
    figure = Figure(figsize=(7, 1.2 + 0.6 * len(mixture)))
    axes = figure.subplots()
    for offset, key, label, color, hatch in (
        (-0.2, "asked_fraction", "asked for", COLORS[4], ""),
        (0.2, "delivered_fraction", "delivered", COLORS[0], "//"),
    ):
        shares = [100 * entry[key] for entry in mixture.values()]
        positions = [index + offset for index in range(len(mixture))]
        bars = axes.barh(positions, shares, 0.38, label=label, color=color, hatch=hatch, edgecolor="white")
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize="small")
    axes.set_yticks(range(len(mixture)), [plain(name) for name in mixture])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("share of the bytes seen in training (%)")
    axes.legend(fontsize="small")
    return figure


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


def funnel_figure(run: dict) -> Figure:
    sources = run["documents"]["sources"]
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


def shares_figure(run: dict) -> Figure:
    """Draw the delivered share of each source over training, and what was asked as a broken line."""
    lines = [line for line in run["metrics"]["evaluation"] if any(key.startswith("data/share/") for key in line)]
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    size, unit = byte_unit(lines[-1]["train/bytes_seen"])
    sources = sorted(
        {key.removeprefix("data/share/") for line in lines for key in line if key.startswith("data/share/")}
    )
    for index, source in enumerate(sources):
        style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 4}
        x, y = thinned(lines, f"data/share/{source}", "train/bytes_seen")
        axes.plot([value / size for value in x], [100 * share for share in y], label=plain(source), **style)
        x, y = thinned(lines, f"data/asked/{source}", "train/bytes_seen")
        if x:
            asked = {"color": style["color"], "linestyle": "--", "linewidth": 1, "drawstyle": "steps-pre"}
            axes.plot([value / size for value in x], [100 * share for share in y], **asked)
    axes.set(xlabel=f"text seen in training ({unit})", ylabel="share of the bytes seen (%)", ylim=(0, None))
    axes.legend(fontsize="small", title="delivered; broken lines: asked for", title_fontsize="small")
    return figure


def learning_rate_figure(run: dict) -> Figure:
    lines = run["metrics"]["training"]
    figure = Figure(figsize=(7, 5))
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(*thinned(lines, "train/learning_rate", "step"), color=COLORS[0])
    upper.set_ylabel("learning rate")
    upper.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    lower.plot(*thinned(lines, "train/grad_norm", "step"), color=COLORS[5], linewidth=1)
    lower.set(ylabel="gradient norm", xlabel="optimizer step")
    return figure


FIGURES: dict[str, tuple[str, Callable[[dict], Figure]]] = {
    "loss": ("metrics", loss_figure),
    "bits_per_byte": ("metrics", bits_per_byte_figure),
    "funnel": ("documents", funnel_figure),
    "mixture": ("training", mixture_figure),
    "shares": ("metrics", shares_figure),
    "learning_rate": ("metrics", learning_rate_figure),
}


def draw_figures(run: dict, folder: Path) -> dict[str, str]:
    """Write folder/figures/*.png, replacing earlier ones at once; return {name: data URI} of those that have data.

    Images that another script put there stay.
    """
    new, figures = folder / ".figures.tmp", folder / "figures"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    uris = {}
    for name, (needs, draw) in FIGURES.items():
        if not run[needs] or not has_data(name, run):
            continue
        with matplotlib.rc_context(
            {
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.alpha": 0.3,
                "axes.axisbelow": True,
                "text.parse_math": False,
            }
        ):
            figure = draw(run)
            figure.set_layout_engine("constrained" if figure.legends else "tight")
            figure.savefig(new / f"{name}.png", dpi=110)
        data = (new / f"{name}.png").read_bytes()
        uris[name] = "data:image/png;base64," + base64.b64encode(data).decode()
    for path in figures.glob("*.png"):
        if path.stem not in FIGURES:
            shutil.copy2(path, new)
    shutil.rmtree(figures, ignore_errors=True)
    new.rename(figures)
    return uris


def has_data(name: str, run: dict) -> bool:
    """Return whether the file that a figure needs holds what it draws."""
    if name == "funnel":
        return bool(run["documents"]["sources"])
    if name == "mixture":
        return bool(run["training"].get("mixture"))
    if name == "shares":
        return any(key.startswith("data/share/") for line in run["metrics"]["evaluation"] for key in line)
    return bool(run["metrics"]["training"])


# Sentences and numbers


def plain(text: str) -> str:
    """Return text without characters that a terminal or a figure would act on instead of showing."""
    return "".join(character if character.isprintable() else " " for character in text)


def count(value: float | None) -> str:
    return "-" if value is None else f"{round(value):,}"


def decimals(value: float | None, places: int = 3) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def duration(seconds: float) -> str:
    """Return seconds as `1 h 02 min`, `3 min 20 s` or `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def xz_sentence(source: str, entry: dict) -> str | None:
    """Say which of the xz numbers the model is below; None where xz was not run."""
    known = {kind: entry[kind] for kind in XZ_NAMES if entry.get(kind) is not None}
    if not known:
        return None
    better = [f"{XZ_NAMES[kind]} ({value:.3f})" for kind, value in known.items() if entry["bits_per_byte"] < value]
    worse = [f"{XZ_NAMES[kind]} ({value:.3f})" for kind, value in known.items() if entry["bits_per_byte"] >= value]
    parts = ["beats " + " and ".join(better)] if better else []
    parts += [("but not " if better else "does not beat ") + " or ".join(worse)] if worse else []
    return f"{source}: the model ({entry['bits_per_byte']:.3f}) {', '.join(parts)}."


def task_sentence(name: str, metric: str, task: dict) -> str:
    """Compare an accuracy with chance, at two standard errors of guessing."""
    value, stderr = task["metrics"][metric]["value"], task["metrics"][metric]["stderr"]
    chance = task["chance"]
    noise = 2 * math.sqrt(chance * (1 - chance) / task["num_items"])
    measured = f"{name}, {metric}: {value:.3f} (standard error {stderr:.3f}) over {task['num_items']:,} items"
    if abs(value - chance) <= noise:
        return f"{measured} is within noise of chance ({chance:.3f} +- {noise:.3f}): it shows nothing yet."
    return f"{measured} is {'above' if value > chance else 'below'} chance ({chance:.3f} +- {noise:.3f})."


def last_shares(run: dict) -> dict | None:
    """Return the last line of metrics.jsonl that says how the mixture was delivered."""
    lines = run["metrics"]["evaluation"] if run["metrics"] else []
    return next((line for line in reversed(lines) if any(key.startswith("data/share/") for key in line)), None)


def found_kinds(documents: dict | None) -> list[str]:
    """Return the kinds of personal data that were found in any source."""
    sources = documents["sources"].values() if documents else []
    return sorted({kind for entry in sources for kind in entry.get("personal_data", {})})


def accuracies(task: dict) -> list[str]:
    """Return the metrics that chance level applies to."""
    return [metric for metric in task["metrics"] or {} if metric.startswith("acc")]


def table(header: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """Return lines of fixed width, the first `left` columns ranged left and the others right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(header), "  ".join("-" * width for width in widths), *(line(row) for row in rows)]


def shortened(text: str) -> str:
    text = " ".join(plain(text).split())
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS].rsplit(" ", 1)[0] + " ..."


def pieces(tokens: list[str]) -> str:
    return plain("|".join(tokens))


def write_summary(run: dict, folder: Path) -> str:
    """Return the text that a newcomer sees at the end of a run."""
    lines: list[str] = []
    results, tokenizer = run["results"], run["tokenizer"]

    def section(title: str, name: str) -> bool:
        """Begin a section; say which file is missing where there is none for it."""
        lines.extend(["", title, "=" * len(title)])
        if run[name] is None:
            lines.append(f"{FILES[name]} is missing, so there is nothing to show here.")
        return run[name] is not None

    if section("Bits per byte of held-out text (lower is better)", "results"):
        sources = results["bits_per_byte"]["sources"]
        rows = [
            [plain(name), plain(entry["domain"]), count(entry["bytes"]), decimals(entry["bits_per_byte"])]
            + [decimals(entry.get(kind)) for kind in XZ_NAMES]
            for name, entry in sources.items()
        ]
        lines += table(["source", "domain", "bytes", "model", "xz each", "xz stream", "xz primed"], rows, left=2)
        lines.append(
            f"Split: {results['settings']['split']}. xz is xz -9e: each document alone, the text as one stream,"
        )
        lines.append("and the text after the training text.")
        sentences = [xz_sentence(plain(name), entry) for name, entry in sources.items()]
        lines += [""] + [part for sentence in sentences if sentence for part in textwrap.wrap(sentence, 100)]

    if section("Bytes per token (higher is better: shorter sequences)", "tokenizer"):
        measured = tokenizer["bytes_per_token"]
        names = list(measured)
        sources = list(dict.fromkeys(source for values in measured.values() for source in values))
        rows = [[plain(source), *(decimals(measured[name].get(source), 2) for name in names)] for source in sources]
        lines += table(["source", *names], rows)
        terms = tokenizer.get("terms") or {}
        if terms:
            cut = [
                [plain(term), *(pieces(by[name]) if name in by else "-" for name in names)]
                for term, by in terms.items()
            ]
            lines += ["", *table(["term", *names], cut, left=1 + len(names))]

    if section("Benchmark tasks", "results"):
        for name, task in results["tasks"].items():
            for metric in accuracies(task):
                lines += textwrap.wrap(task_sentence(plain(name), metric, task), 100)
        if not results["tasks"]:
            lines.append("No task was run.")

    if section("Samples", "results"):
        for sample in results["samples"][:3]:
            lines += textwrap.wrap(f"[{shortened(sample['prompt'])}] {shortened(sample['text'])}", 100) + [""]
        if not results["samples"]:
            lines.append("No sample was generated.")

    lines += ["", f"report  {folder / 'report.html'}"]
    for name, path in (("model", folder / "model"), ("card", folder / "release" / "README.md")):
        if path.exists():
            lines.append(f"{name:<6}  {path}")
    return "\n".join(lines).strip("\n") + "\n"


def write_html(run: dict, folder: Path, figures: dict[str, str]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "decimals": decimals, "duration": duration}
    return environment.get_template("report.html.jinja").render(
        name=folder.resolve().name,
        files=FILES,
        figures=figures,
        xz_names=XZ_NAMES,
        xz_sentence=xz_sentence,
        task_sentence=task_sentence,
        accuracies=accuracies,
        overlap_groups=OVERLAP_GROUPS,
        present=[name for name in FILES if run[name] is not None],
        delivered=last_shares(run),
        found_kinds=found_kinds(run["documents"]),
        **run,
    )


def replace_text(path: Path, text: str) -> None:
    """Write a file so that it is there in full or as it was before."""
    new = path.with_name(f".{path.name}.tmp")
    with new.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, path)


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("run_folder", type=Path, help="run.output_dir of a recipe")
    folder = parser.parse_args(argv).run_folder
    if not folder.is_dir():
        raise SystemExit(f"{folder}: there is no such folder; give the run.output_dir of a recipe")
    try:
        run = read_run(folder)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    missing = [path for name, path in FILES.items() if run[name] is None]
    if len(missing) == len(FILES):
        raise SystemExit(f"{folder} is not a run folder: it holds none of {', '.join(missing)}")

    figures = draw_figures(run, folder)
    replace_text(folder / "report.html", write_html(run, folder, figures))
    summary = write_summary(run, folder)
    replace_text(folder / "summary.txt", summary)
    print(summary)
    sys.stdout.flush()
    lacking = f", without {', '.join(missing)}" if missing else ""
    logger.info("report: %d figures%s, in %s", len(figures), lacking, folder / "report.html")


if __name__ == "__main__":
    main()
