# SPDX-License-Identifier: Apache-2.0
"""Numbers and names as the report, the summary and the comparison write them."""

import re
from pathlib import Path

from markupsafe import Markup, escape


def plain(text: str) -> str:
    """Replace each character that a terminal or a figure would act on by a space."""
    return "".join(character if character.isprintable() else " " for character in text)


def model_name(place: str) -> str:
    """Return a model's Hub id, or of a folder the last component: the others may name clients and users."""
    is_hub_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place) and not Path(place).exists()
    return place if is_hub_id else f"the local model {Path(place).absolute().name}"


def count(value: float | None) -> str:
    return "-" if value is None else f"{round(value):,}"


def decimals(value: float | None, places: int = 3) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def rounded(value: float) -> str:
    """Return a number for reading: `842`, `204,800`, `5.31 million`, `1.2 billion`."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return count(value)


def marked(text: str) -> Markup:
    """Return escaped text in which words between backticks are set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def duration(seconds: float) -> str:
    """Return seconds as `1 h 02 min`, `3 min 20 s` or `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def heading(title: str) -> list[str]:
    """Return the lines of a heading in summary.txt."""
    return [title, "=" * len(title)]


def table(header: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """Return lines of fixed width: the first `left` columns aligned left, the others right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(header), "  ".join("-" * width for width in widths), *(line(row) for row in rows)]
