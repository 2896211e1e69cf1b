# SPDX-License-Identifier: Apache-2.0
"""The figures of the planner and of a scaling law of one's own."""

from pathlib import Path

import numpy as np
from adjustText import adjust_text
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # by itself it draws with Agg, which needs no display
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from planning.known_models import KNOWN_MODELS
from planning.law_fits import Parabola, Runs
from planning.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN, LAWS, Law


# Okabe and Ito's colours, which the common kinds of colour blindness leave apart (https://jfly.uni-koeln.de/color).
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
HALO = withStroke(linewidth=2, foreground="white")  # keeps a label legible where a line passes under it
LABEL_ITERATIONS = 1000  # a limit in seconds would place labels differently on each machine


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})


def place_labels(axes: Axes, labels: list[Text], obstacles: list[Artist]) -> None:
    """Move labels off each other, off all points and off `obstacles`; a thin line leads to a label that moved far.

    Call it last: the places depend on the limits and scales of the axes.
    """
    points = np.concatenate([line.get_xydata() for line in axes.lines if line.get_linestyle() == "None"])
    adjust_text(
        labels,
        *points.T,
        objects=obstacles,
        ax=axes,
        prevent_crossings=False,  # it swaps labels in the last iteration, and they overlap again
        force_text=(0.5, 0.8),
        force_static=(0.5, 0.8),
        expand=(1.1, 1.3),
        iter_lim=LABEL_ITERATIONS,
        arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.6},
    )


def draw_isoflop(runs: Runs, found: dict, path: Path) -> None:
    """Draw each budget's losses over N, with the parabola through them and its minimum, from fit.json's content."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for index, (budget, fitted) in enumerate(zip(np.unique(runs.budget), found["parabolas"], strict=True)):
        of_budget = runs.budget == budget
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        sizes = runs.parameters[of_budget]
        parabola = Parabola(fitted["flops"], tuple(fitted["coefficients"]), fitted["inside"])
        line = np.geomspace(sizes.min(), sizes.max(), 100)
        axes.plot(line, parabola(line), color=color, linewidth=1)
        axes.plot(sizes, runs.loss[of_budget], marker, color=color, markersize=5, label=f"{budget:.2g} FLOPs")
        if parabola.inside:
            axes.plot(parabola.parameters, parabola(parabola.parameters), "*", color=color, markersize=13)
    axes.plot([], [], "*", color="0.3", markersize=11, label="minimum of the parabola")
    axes.set_xscale("log")
    axes.set(xlabel="parameters that a token is multiplied by", ylabel="bits per byte of held-out text")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3, which="both")
    save(figure, path)


def draw_frontier(found: dict, path: Path) -> None:
    """Draw optimal parameters and tokens over compute: the minima, the three fits, and Chinchilla's law."""
    figure = Figure(figsize=(10, 4.2))
    minima = [p for p in found["parabolas"] if p["inside"]]
    tested = found["held_out"]
    budgets = [p["flops"] for p in found["parabolas"]]
    compute = np.geomspace(min(budgets) / 2, max([*budgets, *(one["flops"] for one in tested)]) * 2, 50)
    law = {key: found["law"][key] for key in ("source", "counts", "E", "A", "B", "alpha", "beta")}
    for axes, what in zip(figure.subplots(1, 2), ("parameters", "tokens"), strict=True):

        def shown(parameters, flops=compute, what=what):
            return parameters if what == "parameters" else flops / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters)

        for index, name in enumerate(("approach_1", "approach_2")):
            one = found["exponents"].get(name)
            if one is None:
                continue
            axes.plot(
                compute,
                shown(one["coefficient"] * compute ** one["a"]),
                color=COLORS[index],
                label=f"approach {name[-1]}: N ~ C^{one['a']:.2f}",
            )
        a = found["exponents"]["approach_3"]["a"]
        ratio = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / (law["alpha"] + law["beta"]))
        optimum = ratio * (compute / FLOPS_PER_PARAMETER_AND_TOKEN) ** a
        axes.plot(compute, shown(optimum), color=COLORS[2], label=f"approach 3: N ~ C^{a:.2f}")
        chinchilla = np.array([LAWS["chinchilla_1"].optimum(flops)[0] for flops in compute])
        axes.plot(compute, shown(chinchilla), "--", color="0.5", label="Chinchilla 1, carried down here")
        for point in minima:
            size = np.array([point["parameters"]])
            axes.plot([point["flops"]], shown(size, point["flops"]), "*", color=COLORS[1], markersize=12)
        for one in tested:
            axes.plot(
                [one["flops"]], [one[what]], "X", color=COLORS[6], markersize=8, label="run left out of the fits"
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(xlabel="compute, 6 N D (FLOPs)", ylabel=f"optimal {what}")
        axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="x-small")
    save(figure, path)


def describe_law(name: str, law: Law) -> str:
    """Return a law's authors and year, and which of their approaches it is."""
    approach = f", approach {name[-1]}" if name[-1].isdigit() else ""
    return law.source.partition(",")[0] + approach


def draw_plan(plan: dict, training: dict | None, folder: Path) -> None:
    """Draw size and tokens over compute: the laws' lines, the known models, and this run, planned and as trained.

    Args:
        plan: plan.json's content.
        training: training.json's content, where the run is finished.
        folder: for size.png and tokens.png.
    """
    ours = [("this run, planned", plan["parameters"]["total"], plan["tokens"], "*")]
    if training:
        ours.append(("this run, as trained", training["parameters"]["total"], training["tokens_seen"], "P"))
    flops = [model.flops for model in KNOWN_MODELS] + [6 * n * d for _, n, d, _ in ours]
    compute = np.geomspace(min(flops) / 4, max(flops) * 4, 60)
    for what, index in (("parameters", 0), ("tokens", 1)):
        figure = Figure(figsize=(8, 5.5))
        axes = figure.subplots()
        for number, (name, law) in enumerate(LAWS.items()):
            line = [law.optimum(c)[index] for c in compute]
            style = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))][number]
            axes.plot(
                compute, line, linestyle=style, color=COLORS[number], linewidth=1.2, label=describe_law(name, law)
            )
        names = []
        for model in KNOWN_MODELS:
            bold, point = model.name == "BloombergGPT", (model.flops, getattr(model, what))
            axes.plot(*point, "o", color="black" if bold else "0.45", markersize=6 if bold else 4)
            weight = "bold" if bold else "normal"
            names.append(axes.text(*point, model.name, fontsize=8, fontweight=weight, path_effects=[HALO]))
        for name, parameters, tokens, marker in ours:
            y = (parameters, tokens)[index]
            axes.plot(6 * parameters * tokens, y, marker, color=COLORS[5], markersize=13, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(
            xlabel="training compute, 6 N D (FLOPs, nothing recomputed)",
            ylabel=f"{'parameters, in all' if index == 0 else 'training tokens, repetitions included'}",
        )
        axes.grid(alpha=0.3)
        place_labels(axes, names, [axes.legend(fontsize="small")])
        save(figure, folder / ("size.png" if index == 0 else "tokens.png"))
