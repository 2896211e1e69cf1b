# SPDX-License-Identifier: Apache-2.0
"""The results of compare_arms.py: a figure of its rows, their means over the seeds, and what text an arm is worth."""

import csv
from itertools import pairwise
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure  # by itself it draws with Agg, which needs no display


BITS, ACCURACY = "_bits_per_byte", "_accuracy"  # columns: <label>_bits_per_byte, <task>_gold_bits_per_byte, ...
TEACHERS = "_of_teachers"  # column: <label>_of_teachers, the bits per byte of an ensemble


def labels_of(rows: list[dict]) -> list[str]:
    """Return the labels of text that the rows have bits per byte of."""
    return [name.removesuffix(BITS) for name in rows[0] if name.endswith(BITS) and not name.endswith("_gold" + BITS)]


def tasks_of(rows: list[dict]) -> list[str]:
    """Return the tasks that the rows have the accuracy of."""
    return [name.removesuffix(ACCURACY) for name in rows[0] if name.endswith(ACCURACY)]


def draw(rows: list[dict], x: str, path: Path, usual_arm: str | None = None) -> None:
    """Draw bits per byte of each label, and accuracy of each task, over the column `x` of the rows.

    A line joins the means over the seeds, and each seed is a point. Where x is a budget or an amount of text, each arm
    has a line; else the arms are the points of one line, as shares are. With x = "arm", each arm is a row of points.
    With a usual arm it alone has a line; see draw_worth.
    """
    if usual_arm is not None:
        figure = draw_worth(rows, usual_arm)
    else:
        figure = draw_arms(rows) if x == "arm" else draw_lines(rows, x)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def draw_arms(rows: list[dict]) -> Figure:
    """Draw a row of points an arm, one panel for each size and label."""
    labels, arms = labels_of(rows), list(dict.fromkeys(row["arm"] for row in rows))
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    figure = Figure(figsize=(5 * len(labels), (1 + 0.3 * len(arms)) * len(sizes)))
    panels = figure.subplots(len(sizes), len(labels), squeeze=False)
    for size, of_size in zip(sizes, panels, strict=True):
        chosen = [row for row in rows if row["size"] == size]
        for label, axes in zip(labels, of_size, strict=True):
            bits = [float(row[label + BITS]) for row in chosen]
            axes.plot(bits, [arms.index(row["arm"]) for row in chosen], "o", alpha=0.7)
            axes.set_yticks(range(len(arms)), arms, fontsize="small")
            axes.set(xlabel=f"bits per byte of held-out text, {label}", title=size, ylim=(len(arms) - 0.5, -0.5))
            axes.grid(axis="y", linewidth=0.3)
    return figure


def draw_lines(rows: list[dict], x: str) -> Figure:
    """Draw lines over the column x, one panel for each measure."""
    measures = {label + BITS: f"bits per byte of held-out text, {label}" for label in labels_of(rows)}
    measures |= {task + ACCURACY: f"accuracy, {task}" for task in tasks_of(rows)}
    by_arm = x in ("budget_flops", "domain_bytes")
    # Over an amount of text, a row of panels for each budget: it shows where one arm overtakes another.
    budgets = sorted({float(row["budget_flops"]) for row in rows}) if x == "domain_bytes" else [None]
    colors = {arm: f"C{number}" for number, arm in enumerate(dict.fromkeys(row["arm"] for row in rows))}
    explained: set[str] = set()  # arms that a legend lists
    figure = Figure(figsize=(4.6 * len(measures), 3.8 * len(budgets)))
    panels = figure.subplots(len(budgets), len(measures), squeeze=False)
    for budget, of_budget in zip(budgets, panels, strict=True):
        chosen = [row for row in rows if budget in (None, float(row["budget_flops"]))]
        arms = dict.fromkeys(row["arm"] for row in chosen) if by_arm else [None]
        for (column, title), axes in zip(measures.items(), of_budget, strict=True):
            for arm in arms:
                seeds: dict[float, list[float]] = {}
                for row in chosen:
                    if arm in (None, row["arm"]):
                        seeds.setdefault(float(row[x]), []).append(float(row[column]))
                places = sorted(seeds)
                color = colors.get(arm, "C0")  # an arm's own in every panel
                axes.plot(places, [mean(seeds[place]) for place in places], color=color, label=arm)
                points = [(place, value) for place in places for value in seeds[place]]
                axes.plot(*zip(*points, strict=True), "o", color=color, alpha=0.6)
            axes.set(xlabel=x, ylabel=title, title="" if budget is None else f"{budget:.3g} FLOPs")
            if by_arm:
                axes.set_xscale("log")
        if by_arm and not explained.issuperset(arms):
            of_budget[0].legend(fontsize="small")
            explained.update(arms)
    return figure


def draw_worth(rows: list[dict], usual_arm: str) -> Figure:
    """Draw what write_factors tells, one panel for each label.

    A line joins the usual arm's best of all budgets for each amount of text. Each other arm, and each ensemble, is a
    point at its best budget, with a bar from its best seed to its worst.
    """
    labels = labels_of(rows)
    figure = Figure(figsize=(7 * len(labels), 4.5))
    for label, axes in zip(labels, figure.subplots(1, len(labels), squeeze=False)[0], strict=True):
        best: dict[float, dict[str, list[float]]] = {}  # amount of text -> arm -> bits per byte of its seeds
        for (arm, _, text), seeds in bits_by_place(rows, label).items():
            arms = best.setdefault(float(text), {})
            arms[arm] = min(arms.get(arm, seeds), seeds, key=mean)
        usual = sorted((text, mean(arms[usual_arm])) for text, arms in best.items() if usual_arm in arms)
        axes.plot(*zip(*usual, strict=True), "o-", color="black", label=f"{usual_arm}, its best of all budgets")
        means = [mean(seeds) for arms in best.values() for seeds in arms.values()]
        line_height = 0.05 * (max(means) - min(means))
        colors: dict[str, str] = {}
        for text, arms in best.items():
            height = float("inf")
            for arm in sorted(arms.keys() - {usual_arm}, key=lambda arm: -mean(arms[arm])):
                color = colors.setdefault(arm, f"C{len(colors)}")
                low, middle, high = min(arms[arm]), mean(arms[arm]), max(arms[arm])
                spread = [[middle - low], [high - middle]] if high > low else None
                axes.errorbar(text, middle, spread, fmt="o", markersize=4, capsize=5, color=color)
                height = min(middle, height - line_height)  # below the name of the arm above it
                style = {"color": color, "va": "center", "bbox": {"color": "white", "alpha": 0.7, "pad": 0}}
                axes.annotate(arm, (text, height), (10, 0), textcoords="offset points", **style)
        axes.set(xlabel="text, MB", ylabel=f"bits per byte of held-out text, {label}", xscale="log")
        axes.set_xticks(sorted(best), [f"{text / 1e6:g}" for text in sorted(best)])
        axes.minorticks_off()
        axes.legend()
    return figure


def write_means(rows: list[dict], path: Path) -> None:
    """Write means.csv: each arm's mean over its seeds, and how far the highest is above the lowest."""
    place = ("arm", "size", "budget_flops", "domain_bytes", "parameters", "tokens")
    measures = [label + BITS for label in labels_of(rows)] + [task + ACCURACY for task in tasks_of(rows)]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in place), []).append(row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*place, "seeds", *(name + part for name in measures for part in ("", "_range"))])
        for values, group in groups.items():
            cells = [*values, len(group)]
            for column in measures:
                of_seeds = [float(row[column]) for row in group]
                spread = f"{max(of_seeds) - min(of_seeds):.3f}" if len(group) > 1 else ""
                cells += [f"{mean(of_seeds):.3f}", spread]
            writer.writerow(cells)


def bits_by_place(rows: list[dict], label: str) -> dict[tuple, list[float]]:
    """Return (arm, budget, amount of text) -> bits per byte of its seeds; an ensemble is the teachers of a student."""
    found: dict[tuple, list[float]] = {}
    for row in rows:
        place = row["budget_flops"], row["domain_bytes"]
        found.setdefault((row["arm"], *place), []).append(float(row[label + BITS]))
        if ensemble := row.get(label + TEACHERS):
            found.setdefault((f"teachers of {row['arm']}", *place), []).append(float(ensemble))
    return found


def write_factors(rows: list[dict], usual_arm: str, path: Path) -> None:
    """Write factors.csv: how many times the text the usual arm would need for the bits per byte of each other arm.

    The usual arm counts at its best of all budgets for each amount of text, the others at each budget, both by their
    mean over the seeds; `lowest` is that of the worst seed beside the usual arm's best, `highest` the other way round.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["label", "arm", "budget_flops", "domain_bytes", "bits_per_byte", "factor", "lowest", "highest"]
        )
        for label in labels_of(rows):
            found = bits_by_place(rows, label)
            usual: dict[float, list[float]] = {}
            for (arm, _, text), seeds in found.items():
                if arm == usual_arm:
                    usual[float(text)] = min(seeds, usual.get(float(text), seeds), key=mean)
            for (arm, budget, text), seeds in found.items():
                factors = [
                    text_factor({size: own(bits) for size, bits in usual.items()}, float(text), other(seeds))
                    for own, other in ((mean, mean), (min, max), (max, min))
                ]
                writer.writerow([label, arm, budget, text, f"{mean(seeds):.3f}", *factors])


def text_factor(usual: dict[float, float], text: float, bits: float) -> str:
    """Return how many times `text` the usual arm needs for so many bits per byte, with a < or > beyond its curve.

    Args: usual: bytes of text -> its bits per byte; between two amounts they fall evenly with the log of the text.
    """
    curve = sorted((size, min(b for other, b in usual.items() if other <= size)) for size in usual)
    for (less, more_bits), (more, less_bits) in pairwise(curve):
        if less_bits <= bits <= more_bits:
            part = (more_bits - bits) / (more_bits - less_bits) if more_bits > less_bits else 0
            return f"{less / text * (more / less) ** part:.2f}"
    return f"<{curve[0][0] / text:g}" if bits > curve[0][1] else f">{curve[-1][0] / text:g}"
