# SPDX-License-Identifier: Apache-2.0
"""Decide which units of the sources are read, by which task, and in which round.

Everything here follows from the names and sizes of the files, and from how much text earlier rounds found: the number
of workers and the order in which a folder lists its files change nothing.

A source with max_bytes is read in the order of a hash of its units' names, so that its text is a sample of all its
files. How much text a file holds is known only once it is read: the first round reads few units, and each later one as
many as the text found so far promises to be enough. What is too much is dropped by the documents' hashes
(reading.find_surplus).
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from recipe_config import Source
from sources.file_kinds import packing, suffix
from sources.ranges import RANGE_BYTES, divide
from sources.units import Listing, Unit


# A source is read by one task for each BYTES_PER_TASK but at least this many, and at most one a unit.
MIN_TASKS_PER_SOURCE = 8
BYTES_PER_TASK = 256 << 20
FIRST_ROUND = 0.25  # of max_bytes: compressed files hold several times their size in text
MARGIN = 1.05  # of a later round, so that a last one for very little text is rare
# Of the files that the passes of prepare exchange: a try that was interrupted with another format starts anew.
FORMAT = 3
# About how much text a byte of a file holds.
TEXT_OF_BYTE = {".parquet": 2.5, ".gz": 3, ".zst": 3.5, ".xz": 4, ".bz2": 4, ".tgz": 3, ".pdf": 0.1, ".docx": 0.2}


class Task(NamedTuple):
    """The units of a source that one task reads."""

    source: str
    units: list[Unit]


class ReadingPlan:
    """The units of all sources, in the order in which they are read.

    Args:
        sources: of the recipe.
        listings: source -> its units.
    """

    def __init__(self, sources: list[Source], listings: dict[str, Listing]):
        self.sources = sources
        self.units = {source.name: order_units(source, listings[source.name].units) for source in sources}
        self.taken = dict.fromkeys(self.units, 0)

    def identity(self) -> str:
        """Return a hash of what the tasks are made of."""
        digest = hashlib.sha256(repr([FORMAT, [[s.name, s.max_bytes] for s in self.sources]]).encode())
        for units in self.units.values():
            for unit in units:
                digest.update(repr(unit).encode(errors="surrogatepass"))
        return digest.hexdigest()

    def next_round(self, text_read: dict[str, int]) -> list[Task]:
        """Return the tasks of the next round; none if all sources are read.

        Args: text_read: source -> bytes of text that earlier rounds found.
        """
        tasks = []
        for source in self.sources:
            units, taken = self.units[source.name], self.taken[source.name]
            wanted = raw_bytes_wanted(source, units[:taken], text_read.get(source.name, 0))
            while self.taken[source.name] < len(units) and wanted > 0:
                wanted -= weight(units[self.taken[source.name]])
                self.taken[source.name] += 1
            chosen = sorted(units[taken : self.taken[source.name]], key=lambda unit: (unit.sort_key, unit.start))
            tasks += [Task(source.name, part) for part in share_out(chosen)]
        return tasks


class Expected(NamedTuple):
    """What the tasks of a source are expected to read: how many they are, bytes of files, bytes of text."""

    tasks: int
    read_bytes: int
    text_bytes: float


def expect(plan: ReadingPlan) -> dict[str, Expected]:
    """Return source -> what all rounds together are expected to read, by TEXT_OF_BYTE; uses the plan up."""
    expected = {source.name: Expected(0, 0, 0.0) for source in plan.sources}
    while tasks := plan.next_round({name: int(own.text_bytes) for name, own in expected.items()}):
        for source, units in tasks:
            before = expected[source]
            text_bytes = sum(
                weight(unit) * TEXT_OF_BYTE.get(packing(unit.name) or suffix(unit.name), 1) for unit in units
            )
            own = (1, sum(map(weight, units)), text_bytes)
            expected[source] = Expected(*(a + b for a, b in zip(before, own, strict=True)))
    return expected


def order_units(source: Source, units: list[Unit]) -> list[Unit]:
    """Return the units of a source in the order of reading: by name or, with max_bytes, by a hash of their names."""

    def drawn(unit: Unit) -> bytes:
        name = unit.sort_key.removeprefix(source.path.encode(errors="surrogateescape"))  # wherever the folder is
        return hashlib.sha256(name + b"\0%d" % unit.start).digest()

    divided = divide(units, source.max_bytes)
    return divided if source.max_bytes is None else sorted(divided, key=drawn)


def weight(unit: Unit) -> int:
    """Return the bytes that a unit counts as; one of unknown size as a range."""
    return unit.range_bytes if unit.is_sized else RANGE_BYTES


def raw_bytes_wanted(source: Source, read: list[Unit], text_bytes: int) -> float:
    """Return how many bytes of files the next round reads."""
    if source.max_bytes is None:
        return 0 if read else float("inf")
    if not read:
        return FIRST_ROUND * source.max_bytes
    raw_bytes = max(sum(map(weight, read)), 1)
    missing = max(source.max_bytes - text_bytes, 0)
    return MARGIN * missing * raw_bytes / text_bytes if text_bytes else raw_bytes


def share_out(units: list[Unit]) -> list[list[Unit]]:
    """Divide units into tasks of about the same size, each of neighbours."""
    total = max(sum(map(weight, units)), 1)
    number = min(len(units), max(MIN_TASKS_PER_SOURCE, -(-total // BYTES_PER_TASK)))
    parts: list[list[Unit]] = [[] for _ in range(number)]
    before = 0
    for unit in units:
        parts[min(before * number // total, number - 1)].append(unit)
        before += weight(unit)
    return [part for part in parts if part]


def write_tasks(folder: Path, first_task: int, tasks: list[Task]) -> None:
    """Write the units of each task to folder/<task>.json, which the task alone reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, task in enumerate(tasks, start=first_task):
        units = [dataclasses.astuple(unit) for unit in task.units]
        (folder / f"{number:05d}.json").write_text(json.dumps([task.source, units]))


def read_units(folder: Path, task: int) -> tuple[str, list[Unit]]:
    """Return the source and the units of a task."""
    source, units = json.loads((folder / f"{task:05d}.json").read_text())
    return source, [Unit(*fields) for fields in units]
