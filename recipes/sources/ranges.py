# SPDX-License-Identifier: Apache-2.0
"""Divide large files into ranges of bytes, so that many tasks can read one file.

A line of JSON lines, a row group of Parquet or a member of a tar belongs to the range in which it begins. So a file is
divided by its size alone, and is opened only by the tasks that read it. A compressed file, a table of columns, a text
with a separator and a file that only `datasets` can read stay whole.
"""

import os
from dataclasses import replace

from sources.file_kinds import packing, suffix
from sources.packed_files import list_tar
from sources.units import Unit


RANGE_BYTES, MIN_RANGE_BYTES = 64 << 20, 4 << 20
RANGES_OF_LIMIT = 16  # a source with max_bytes is read in at least so many ranges, from all over its files
DIVISIBLE = (".jsonl", ".ndjson", ".json", ".parquet")


def divide(units: list[Unit], max_bytes: int | None) -> list[Unit]:
    """Return the units of a source, the large ones divided into ranges of about RANGE_BYTES.

    Args:
        units: of the source.
        max_bytes: its limit: then ranges are smaller, so that its text comes from many of them.
    """
    limited = RANGE_BYTES if max_bytes is None else max(max_bytes // RANGES_OF_LIMIT, MIN_RANGE_BYTES)
    return [part for unit in units for part in divide_unit(unit, min(limited, RANGE_BYTES))]


def divide_unit(unit: Unit, range_bytes: int) -> list[Unit]:
    whole = unit.by_datasets or unit.member or packing(unit.path) or unit.size_bytes <= range_bytes
    if whole:
        return [unit]
    if suffix(unit.path) in DIVISIBLE:
        starts = list(range(0, unit.size_bytes, range_bytes))
    elif suffix(unit.path) == ".tar" and "://" not in unit.path:
        starts = [0]
        for _, _, offset in list_tar(unit.path, os.stat(unit.path).st_mtime_ns):
            if offset >= starts[-1] + range_bytes:
                starts.append(offset)
    else:
        return [unit]
    stops = [*starts[1:], unit.size_bytes]
    return [replace(unit, start=start, stop=stop) for start, stop in zip(starts, stops, strict=True)]
