# SPDX-License-Identifier: Apache-2.0
"""Ranges of a file's bytes: every row is in one of them, wherever the file is divided."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe_config import Source
from sources.ranges import divide, divide_unit
from sources.readers import read_unit, rows_before
from sources.row_checks import Unreadable
from sources.units import Unit, list_units


LINES = [json.dumps({"text": f"line {number} " * (number % 7 * number % 11)}) for number in range(12)]


def source_of(path: Path, **settings) -> Source:
    return Source(name="law", path=str(path), **settings)


def whole(source: Source) -> Unit:
    (unit,) = list_units(source)
    return unit


def read(source: Source, units: list[Unit]) -> list[str | None]:
    """Return the texts, None for what is unreadable."""
    rows = [row for unit in units for row in read_unit(source, unit)]
    return [None if isinstance(row, Unreadable) else row["text"] for row in rows]


def sizes_to_try(unit: Unit) -> list[int]:
    return [1, 2, 3, 7, 20, 64, unit.size_bytes // 2, unit.size_bytes - 1]


@pytest.mark.parametrize("content", ["\n".join(LINES), "\n\n".join(["", *LINES, ""]), "\n".join([*LINES, "{", ""])])
def test_each_line_is_read_by_the_range_in_which_it_begins(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    source = source_of(tmp_path / "a.jsonl")
    unit, expected = whole(source), read(source, [whole(source)])
    assert len(expected) >= 12
    for range_bytes in sizes_to_try(unit):
        units = divide_unit(unit, range_bytes)
        assert len(units) == -(-unit.size_bytes // range_bytes) and read(source, units) == expected


def test_each_row_group_is_read_by_one_range_that_knows_its_first_row(tmp_path):
    rows = [{"text": f"row {number} " * (number % 40)} for number in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    source = source_of(tmp_path / "a.parquet")
    for range_bytes in sizes_to_try(whole(source))[3:]:
        found = 0
        for unit in divide_unit(whole(source), range_bytes):
            texts = read(source, [unit])
            assert not texts or rows_before(source, unit) == found
            assert texts == [row["text"] for row in rows[found : found + len(texts)]]
            found += len(texts)
        assert found == len(rows)


def test_each_member_of_a_tar_is_read_by_one_range(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(9):
            content = f"text {number} ".encode() * 300 * number
            member = tarfile.TarInfo(f"{'ß' * 60}/{number}.txt")  # its name needs a header of its own
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    source = source_of(tmp_path / "a.tar")
    unit, expected = whole(source), read(source, [whole(source)])
    for range_bytes in (1, 1000, 5000, unit.size_bytes // 2):
        units = divide_unit(unit, range_bytes)
        assert 1 < len(units) <= 9 and read(source, units) == expected


def test_a_file_that_has_no_ranges_is_read_whole_with_the_first(tmp_path):
    rows = [json.loads(line) for line in LINES]
    (tmp_path / "marked.jsonl").write_text("\n".join(LINES), encoding="utf-16")
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "lines.json").write_text("\n".join(LINES))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "damaged.parquet")
    with (tmp_path / "damaged.parquet").open("r+b") as file:
        file.truncate(400)
    for name, expected in [
        ("marked.jsonl", [row["text"] for row in rows]),
        ("list.json", [row["text"] for row in rows]),
        ("lines.json", [row["text"] for row in rows]),
        ("damaged.parquet", [None]),
    ]:
        source = source_of(tmp_path / name)
        assert read(source, divide_unit(whole(source), 100)) == expected, name


def test_a_position_in_a_range_says_where_the_range_begins(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join([*LINES, '{"broken'] * 2))
    source = source_of(tmp_path / "a.jsonl")
    units = divide_unit(whole(source), 200)
    found = [row for unit in units for row in read_unit(source, unit) if isinstance(row, Unreadable)]
    assert [row.reason for row in found] == ["broken JSON"] * 2
    start, line = found[1].position.removeprefix(f"{tmp_path}/a.jsonl from byte ").split(":")
    rest = (tmp_path / "a.jsonl").read_bytes()[int(start) - 1 :].split(b"\n", 1)[1]
    assert rest.split(b"\n")[int(line) - 1] == b'{"broken'


def test_only_what_can_be_divided_is_and_a_limited_source_in_more_ranges():
    large = 1 << 30
    names = ["a.jsonl", "a.parquet", "a.jsonl.gz", "a.csv", "a.txt", "s3://b/a.ndjson"]
    assert [len(divide([Unit(name, size_bytes=large)], None)) for name in names] == [16, 16, 1, 1, 1, 16]
    assert len(divide([Unit("a.zip", "a.jsonl", large)], None)) == 1
    assert len(divide([Unit("a.jsonl", size_bytes=large, by_datasets=True)], None)) == 1
    assert len(divide([Unit("a.jsonl", size_bytes=large)], max_bytes=160 << 20)) == 103
    assert len(divide([Unit("a.jsonl", size_bytes=large)], max_bytes=1000)) == 256
