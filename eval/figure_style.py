# SPDX-License-Identifier: Apache-2.0
"""One look for the figures of the report and of the comparison: size, type, colours, axes."""

import base64
import math
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure  # by itself it draws with Agg, which needs no display


# Okabe and Ito's colours, distinct under the common kinds of colour blindness (https://jfly.uni-koeln.de/color).
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
HATCHES = ["", "//", "..", "xx", "--", "\\\\", "oo"]
SIGNATURE = "eval/report.py"
MAX_POINTS = 1500  # drawn of one curve; more only makes the file larger
WIDTH = 5.2  # inches of every figure: two stand side by side on a desktop, and one is legible on a telephone
DPI = 160
INK, LINES = "#3d444d", "#8c959f"


def style() -> "matplotlib.RcParams":
    """Return the context in which every figure is drawn."""
    return matplotlib.rc_context(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": LINES,
            "axes.labelcolor": INK,
            "axes.titlesize": 10,
            "axes.grid": True,
            "axes.axisbelow": True,
            "font.size": 10,
            "grid.color": "#d1d9e0",
            "grid.linewidth": 0.7,
            "hatch.linewidth": 0.8,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "lines.linewidth": 1.5,
            "xtick.color": LINES,
            "xtick.labelcolor": INK,
            "ytick.color": LINES,
            "ytick.labelcolor": INK,
            "text.parse_math": False,
        }
    )


def line_style(index: int) -> dict:
    """Return colour and marker of the index-th curve of a figure: each alone tells it from the others."""
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 4}


def thinned(lines: list[dict], key: str, x: str) -> tuple[list[float], list[float]]:
    """Return x and key of the lines that have both, averaged over stretches where there are more than MAX_POINTS."""
    points = [(line[x], line[key]) for line in lines if line.get(key) is not None and line.get(x) is not None]
    size = math.ceil(len(points) / MAX_POINTS) or 1
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    means = [[sum(values) / len(stretch) for values in zip(*stretch, strict=True)] for stretch in stretches]
    return [mean[0] for mean in means], [mean[1] for mean in means]


def byte_unit(largest: float) -> tuple[float, str]:
    """Return size and name of the decimal unit for an axis up to `largest` bytes."""
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= size:
            return size, name
    return 1.0, "bytes"


def save_figure(figure: Figure, path: Path) -> str:
    """Write a figure as PNG, signed so that `is_drawn_here` recognises it; return it as a data URI."""
    figure.set_layout_engine("constrained" if figure.legends else "tight")
    figure.savefig(path, dpi=DPI, metadata={"Software": SIGNATURE})
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def is_drawn_here(path: Path) -> bool:
    """Return whether a PNG file is one of the report's own figures, so that an outdated one is deleted."""
    with path.open("rb") as stream:
        return f"Software\0{SIGNATURE}".encode() in stream.read(256)
