# SPDX-License-Identifier: Apache-2.0
"""Numbers and names as the report, the summary and the comparison write them."""


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


def heading(title: str) -> list[str]:
    """Return the lines that begin a part of summary.txt."""
    return [title, "=" * len(title)]


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
