# SPDX-License-Identifier: Apache-2.0
"""What the files of a source are: by ending, what is read, what is not and why, with files and bytes.

A run that would leave out more bytes than it reads is refused, unless the recipe names their endings in
data.sources[].ignore. Hidden and temporary files, and files that data_files does not name, are counted but do not
count against the bytes that are read.
"""

import os
from dataclasses import dataclass, field

from recipe_config import RecipeError, Source
from sources.file_kinds import (
    CHOSEN,
    COLUMNS,
    DOCUMENTS,
    HIDDEN,
    NEEDS_LIBRARY,
    TABLES,
    TEXTS,
    UNNAMED,
    suffix,
    whole_ending,
)


INSTALL = "pip install -r recipes/requirements-documents.txt"
FIRST_NAMES, SHOWN_ROWS = 3, 20


@dataclass
class FileCount:
    """Files of one ending that share a fate.

    Attributes:
        ending: in small letters, such as .jsonl.gz; empty for all endings.
        reason: why they are not read; None if they are.
        names: of the first ones.
    """

    ending: str
    reason: str | None
    files: int = 0
    num_bytes: int = 0
    names: list[str] = field(default_factory=list)

    @property
    def is_chosen(self) -> bool:
        """Return whether the recipe or the system leaves them out, rather than the want of a reader."""
        return self.reason in CHOSEN


class Inventory:
    """The counts of a source's files."""

    def __init__(self, source: Source):
        self.source = source
        self.counts: dict[tuple[str, str | None], FileCount] = {}

    def add(self, name: str, size_bytes: int, reason: str | None) -> None:
        """Count a file.

        Args:
            name: path or name; shown on the terminal only, since it may name a client.
            size_bytes: its size, 0 if unknown.
            reason: why it is not read; None if it is.
        """
        ending = "" if reason in (HIDDEN, UNNAMED) else whole_ending(name)
        count = self.counts.setdefault((ending, reason), FileCount(ending, reason))
        count.files += 1
        count.num_bytes += size_bytes
        count.names = sorted([*count.names, name])[:FIRST_NAMES]

    def rows(self) -> list[FileCount]:
        """Return the counts: what is read, then what is not, the most bytes first."""
        return sorted(self.counts.values(), key=lambda c: (c.reason is not None, c.is_chosen, -c.num_bytes, c.ending))

    def left_out(self) -> list[FileCount]:
        """Return what is not read although nobody chose so."""
        return [count for count in self.rows() if count.reason is not None and not count.is_chosen]

    def check(self) -> None:
        """Raise a RecipeError where nothing is read, or less than is left out."""
        where = f"data.sources: {self.source.name}: path {self.source.path!r}"
        read, left_out = [count for count in self.rows() if count.reason is None], self.left_out()
        if not read and not left_out:
            raise RecipeError(f"{where}: {self.why_nothing()}")
        if wanting := [count for count in left_out if count.reason == NEEDS_LIBRARY]:
            found = ", ".join(f"{count.files:,} {count.ending}" for count in wanting)
            endings = ", ".join(f'"{count.ending}"' for count in wanting)
            raise RecipeError(
                f"{where}: {found} need libraries that are not installed; install them, or leave these files out by "
                f"ignore: [{endings}] in the source:\n{INSTALL}"
            )
        lost, kept = (sum(count.num_bytes for count in counts) for counts in (left_out, read))
        if read and lost <= kept:
            return
        found = "; ".join(
            f"{count.files:,} {count.ending} ({count.num_bytes:,} bytes: {explain(count)})" for count in left_out[:8]
        ) + (f"; and {len(left_out) - 8} more kinds" if len(left_out) > 8 else "")
        endings = ", ".join(f'"{ending}"' for ending in dict.fromkeys(count.ending for count in left_out))
        if not read:
            raise RecipeError(f"{where}: no file can be read: {found}; {KNOWN}")
        raise RecipeError(
            f"{where}: {lost:,} bytes would be left out and {kept:,} read: {found}; convert these files, or name in "
            f"data.sources what to leave out: ignore: [{endings}]"
        )

    def why_nothing(self) -> str:
        """Return why there is no file to read, where none lacks a reader."""
        if self.source.data_files:
            return f"no file that matches data_files={self.source.data_files!r}"
        others = ", ".join(f"{count.files:,} {count.ending or 'files'} {count.reason}" for count in self.rows())
        return f"no file to read ({others or 'the folder is empty'}); {KNOWN}"

    def describe(self) -> str:
        """Return the table for the terminal."""
        rows = self.rows()
        width = max([len(count.ending) for count in rows[:SHOWN_ROWS]] + [6])
        lines = [f"{self.source.name}: {self.source.path}"]
        for count in rows[:SHOWN_ROWS]:
            fate = "read" if count.reason is None else f"NOT READ: {explain(count)}"
            names = f", such as {count.names[0]}" if count.reason is not None else ""
            size = f"{count.num_bytes:,}" if count.num_bytes else "-"
            lines.append(f"  {count.ending or 'any':{width}} {count.files:>9,} files {size:>15} bytes  {fate}{names}")
        if len(rows) > SHOWN_ROWS:
            rest = rows[SHOWN_ROWS:]
            total, size = sum(count.files for count in rest), sum(count.num_bytes for count in rest)
            lines.append(f"  and {len(rest)} more kinds, {total:,} files, {size:,} bytes: see files in stats.json")
        return "\n".join(lines)

    def as_stats(self) -> list[dict]:
        """Return the table for stats.json, without names."""
        return [
            {"ending": count.ending, "files": count.files, "bytes": count.num_bytes, "not_read": count.reason}
            for count in self.rows()
        ]


KNOWN = (
    f"a folder's {', '.join([*TEXTS, *TABLES, *DOCUMENTS])} are read, packed too, and {' and '.join(COLUMNS)} with "
    "text_field; convert the others to text"
)


def explain(count: FileCount) -> str:
    """Return why files are not read; for tables with the columns of the first one."""
    columns = suffix(count.names[0]) in COLUMNS and read_header(count.names[0])
    return f"{count.reason}; columns: {columns}" if columns else count.reason


def read_header(path: str) -> str:
    """Return the first line of a table that is a local file, without its compression; empty for any other."""
    if not os.path.isfile(path) or suffix(path) != os.path.splitext(path)[1].lower():
        return ""
    with open(path, "rb") as file:
        return " ".join(file.readline(1000).decode("utf-8-sig", errors="replace").split())
