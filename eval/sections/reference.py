# SPDX-License-Identifier: Apache-2.0
"""The curve of the run beside that of an earlier one: metrics.jsonl and the file of `report.py --reference`.

A curve is a CSV of step, tokens, train_bits_per_byte and eval_bits_per_byte, one line for each in metrics.jsonl.
Curves are compared where both have seen as many tokens.
"""

import csv
import io

import numpy as np
from matplotlib.figure import Figure

from figure_style import COLORS, WIDTH
from run_files import RunFiles, Section
from wording import count, decimals, heading


COLUMNS = ("train_bits_per_byte", "eval_bits_per_byte")
SAME_LENGTH_FRACTION = 0.01  # where lengths differ by more, learning rates do too


def curve_of(run: RunFiles) -> list[dict]:
    """Return the curve of a run, one entry a step that was logged."""
    by_step: dict[int, dict] = {}
    for line in [line for lines in run.metrics().values() for line in lines]:
        entry = by_step.setdefault(line["step"], {"step": line["step"], "tokens": line["train/tokens_seen"]})
        for column in COLUMNS:
            kind = column.partition("_")[0]
            if f"{kind}/bits_per_byte" in line:
                entry[column] = line[f"{kind}/bits_per_byte"]
    return [by_step[step] for step in sorted(by_step)]


def format_curve(curve: list[dict]) -> str:
    """Return a curve as CSV.  Raises: ValueError: it has no validation."""
    if not any("eval_bits_per_byte" in entry for entry in curve):
        raise ValueError(
            "metrics.jsonl holds no validation, so it cannot be a reference; train with training.eval_steps"
        )
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["step", "tokens", *COLUMNS], lineterminator="\n")
    writer.writeheader()
    for entry in curve:
        writer.writerow(entry | {column: f"{entry[column]:.5f}" for column in COLUMNS if column in entry})
    return stream.getvalue()


def parse_curve(text: str) -> list[dict]:
    """Read what format_curve wrote.  Raises: ValueError: it is something else."""
    reader = csv.DictReader(io.StringIO(text))
    if list(reader.fieldnames or []) != ["step", "tokens", *COLUMNS]:
        raise ValueError(f"not a curve: its first line is not step,tokens,{','.join(COLUMNS)}; see report.py --help")
    return [
        {"step": int(row["step"]), "tokens": int(row["tokens"])}
        | {column: float(row[column]) for column in COLUMNS if row[column]}
        for row in reader
    ]


def points_of(curve: list[dict], column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the steps, tokens and bits per byte of a curve where it has them."""
    rows = [(entry["step"], entry["tokens"], entry[column]) for entry in curve if column in entry]
    return tuple(np.array(rows, dtype=float).reshape(-1, 3).T)


def compare_curves(curve: list[dict], reference: list[dict], column: str) -> list[dict]:
    """Return {"step", "bits_per_byte", "reference", "above_fraction"} of each step within the reference's tokens."""
    _, known_tokens, known = points_of(reference, column)
    compared = []
    for step, tokens, bits in zip(*points_of(curve, column), strict=True):
        if len(known) and known_tokens[0] <= tokens <= known_tokens[-1]:
            expected = float(np.interp(tokens, known_tokens, known))
            entry = {"step": int(step), "bits_per_byte": float(bits), "reference": expected}
            compared.append(entry | {"above_fraction": float(bits) / expected - 1})
    return compared


def describe(entry: dict) -> str:
    percent = round(100 * entry["above_fraction"], 1)
    return (
        f"{abs(percent)} % {'below' if percent < 0 else 'above'} the reference at step {count(entry['step'])} "
        f"({decimals(entry['bits_per_byte'])}, reference {decimals(entry['reference'])})"
    )


def describe_comparison(curve: list[dict], reference: list[dict]) -> list[str]:
    sentences = []
    for column, name in zip(COLUMNS, ("Training", "Validation"), strict=True):
        compared = compare_curves(curve, reference, column)
        if not compared:
            sentences.append(f"{name}: no step of this run is within the tokens of the reference.")
            continue
        furthest = max(compared, key=lambda entry: abs(entry["above_fraction"]))
        text = f"{name}: {describe(compared[-1])}"
        sentences.append(f"{text}; furthest {describe(furthest)}." if furthest is not compared[-1] else f"{text}.")
    ends = [lines[-1]["tokens"] for lines in (curve, reference)]
    if abs(ends[0] / ends[1] - 1) > SAME_LENGTH_FRACTION:
        sentences.append(
            f"This run saw {count(ends[0])} tokens and the reference {count(ends[1])}, so their learning rates decay "
            "at different steps."
        )
    return sentences


def build(run: RunFiles) -> Section | None:
    curve = curve_of(run)
    if run.reference is None or not curve:
        return None
    reference = parse_curve(run.reference.read_text(encoding="utf-8"))
    sentences = describe_comparison(curve, reference)
    figure = Figure(figsize=(WIDTH, 3.5))
    axes = figure.subplots()
    for index, (name, lines) in enumerate((("this run", curve), ("reference", reference))):
        _, tokens, bits = points_of(lines, "eval_bits_per_byte")
        axes.plot(tokens, bits, color=COLORS[index], marker="os"[index], markersize=4, label=name)
    axes.set(xlabel="tokens seen in training", ylabel="validation bits per byte")
    axes.legend()
    figures = {"reference": (figure, "Validation bits per byte of this run and of the reference")}
    title = "Comparison with the reference curve"
    values = {"sentences": sentences, "reference": run.reference.name}
    return Section(title, values, figures, [*heading(title), *sentences])
