# SPDX-License-Identifier: Apache-2.0
"""Reading sources: every kind of bad row in every format, damaged files, bounds on memory, dates, and order."""

import gzip
import importlib
import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tiny_run import RECIPES, TinyRun, make_text

from atomic_files import read_record
from recipe_config import RecipeError, Source
from sources import units
from sources.dates import document_date
from sources.readers import WholeFile, read_unit
from sources.row_checks import MAX_ROW_BYTES, MAX_ROW_VALUES, Unreadable
from sources.units import list_units, source_fingerprint


def read_all(path: object, **settings: object) -> list[dict | Unreadable]:
    source = Source(name="a", path=str(path), **settings)
    return [example for unit in list_units(source) for example in read_unit(source, unit)]


@pytest.fixture
def hub_questions(monkeypatch) -> list[str]:
    """Return the paths that the Hub is asked for, which has none of them."""
    asked = []

    def ask(path: str, *_) -> None:
        asked.append(path)
        raise ValueError("no such dataset")

    monkeypatch.setattr(units, "load_builder_of", ask)
    return asked


@pytest.mark.parametrize(
    "path", ["clients/acme", "texts/acme.jsonl", "./clients", "../clients/acme", "~/clients", "a/b/c"]
)
def test_a_missing_local_path_is_refused_at_once_and_the_hub_never_hears_its_name(path, hub_questions):
    with pytest.raises(RecipeError, match=f"path '{path}': no such file or folder in {Path.cwd()}") as error:
        list_units(Source(name="acme", path=path))
    assert hub_questions == []
    two_readings = path in ("clients/acme", "texts/acme.jsonl")
    assert ("add its commit or branch, such as revision: main" in str(error.value)) == two_readings


@pytest.mark.parametrize("stated", [{"revision": "main"}, {"config": "sample-10BT"}])
def test_a_revision_or_a_config_makes_a_path_a_dataset_of_the_hub_unless_there_is_such_a_folder(
    stated, hub_questions, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no such dataset"):
        list_units(Source(name="web", path="org/web", **stated))
    assert hub_questions == ["org/web"]
    (tmp_path / "org" / "web").mkdir(parents=True)
    (tmp_path / "org" / "web" / "a.txt").write_text("text")
    assert [unit.path for unit in list_units(Source(name="web", path="org/web", **stated))] == ["org/web/a.txt"]
    assert hub_questions == ["org/web"]


def shown(examples: list[dict | Unreadable]) -> list[str]:
    """Return the text of each example, or the reason why there is none."""
    return [example.reason if isinstance(example, Unreadable) else example["text"] for example in examples]


def row(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


# A date must come out as it was written, whatever else is in its file.
FIRST, DATE, LAST = "first", "2024-01-01", "l\N{LATIN SMALL LETTER A WITH DIAERESIS}st"

BAD_LINES = {  # what stands in a line -> the reason it is quarantined for
    b'{"text": "caf\xe9"}': "not UTF-8",
    b'{"text": "\xed\xa0\x80"}': "not UTF-8",
    b'{"text": "\\ud800"}': "lone surrogate",
    b'{"text": "fine", "by": ["\\udfff"]}': "lone surrogate",
    b'{"text": "fine", "\\udfff": 1}': "lone surrogate",
    b'{"text": "a\\u0000b"}': "holds NUL",
    b'{"text": "a\x00b"}': "holds NUL",
    b'{"text": "cut': "broken JSON",
    b'{"text": "two"} {"text": "rows"}': "broken JSON",
    b"[" * 100_000: "broken JSON",
    b'["a list"]': "not a JSON object but a list that holds a text",
    b'"a string"': 'not a JSON object but a text; write it as {"text": ...}',
    b"null": "not a JSON object but null",
    b"3": "not a JSON object but a number",
}


def write_zip(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def write_url(path: str, content: bytes) -> str:
    with fsspec.open(path, "wb") as file:
        file.write(content)
    return path


def write_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


CONTAINERS: dict[str, Callable[[Path, bytes], object]] = {  # where JSON lines may be -> writer that returns the path
    "plain": lambda folder, lines: write_file(folder / "a.jsonl", lines),
    "gz": lambda folder, lines: write_file(folder / "a.jsonl.gz", gzip.compress(lines)),
    "zst": lambda folder, lines: write_file(folder / "a.jsonl.zst", zstandard.compress(lines)),
    "lines called JSON": lambda folder, lines: write_file(folder / "a.json", lines),
    "wheel": lambda folder, lines: write_zip(folder / "a.whl", "p/a.jsonl", lines),
    "gz in a wheel": lambda folder, lines: write_zip(folder / "a.whl", "p/a.jsonl.gz", gzip.compress(lines)),
    "memory URL": lambda folder, lines: write_url(f"memory://{folder}/a.jsonl", lines),
    "zst at a file URL": lambda folder, lines: write_url(f"file://{folder}/a.jsonl.zst", zstandard.compress(lines)),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_each_kind_of_bad_line_is_quarantined_with_its_place_and_the_other_lines_are_kept(tmp_path, container):
    kept = [row(FIRST), row(DATE), b"", row("literally \\u0000 and \\ud800"), row(LAST)]
    for bad, reason in BAD_LINES.items():
        path = CONTAINERS[container](tmp_path, b"\r\n".join([kept[0], bad, *kept[1:]]) + b"\n")
        examples = read_all(path)
        assert shown(examples) == [FIRST, reason, DATE, "literally \\u0000 and \\ud800", LAST], bad[:40]
        assert examples[1].position.partition(": byte")[0].endswith((".jsonl:2", ".json:2", ".gz:2", ".zst:2"))
        assert examples[1].size_bytes == len(bad) + 2


def test_a_byte_that_is_not_utf_8_is_named_by_its_place_in_the_line(tmp_path):
    write_file(tmp_path / "a.jsonl", row(FIRST) + b'\n{"text": "caf\xe9"}\n')
    assert read_all(tmp_path)[1].position == f"{tmp_path}/a.jsonl:2: byte 13"


def test_byte_order_marks_and_line_separators_of_unicode_leave_rows_as_they_are(tmp_path):
    text = "one\N{LINE SEPARATOR}two\N{NEXT LINE}three"
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode()] * 2
    write_file(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + b"\n\xef\xbb\xbf".join(lines))
    write_file(tmp_path / "b.json", b"\xef\xbb\xbf" + b"\n".join(lines))
    assert shown(read_all(tmp_path)) == [text] * 4


@pytest.mark.parametrize("as_object", [False, True])
def test_bad_rows_of_a_json_document_are_quarantined_and_the_other_rows_are_kept(tmp_path, as_object):
    rows = [{"text": FIRST}, {"text": "\ud800"}, {"text": "a\0b"}, ["a list"], None, {"text": DATE}]
    content = {str(number): value for number, value in enumerate(rows)} if as_object else rows
    path = write_file(tmp_path / "a.json", json.dumps(content, indent=1).encode())
    examples = read_all(path)
    assert shown(examples) == [
        FIRST,
        "lone surrogate",
        "holds NUL",
        "not a JSON object but a list that holds a text",
        "not a JSON object but null",
        DATE,
    ]
    assert examples[1].position == f"{path}: row 2" and examples[1].size_bytes > 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "broken JSON"),
        (b"[{", "broken JSON"),
        (b"3", "not a JSON object but a number"),
        (b'["\xff"]', "not UTF-8"),
    ],
)
def test_a_json_document_that_is_none_is_one_quarantined_file(tmp_path, content, reason):
    write_file(tmp_path / "a.json", content)
    write_file(tmp_path / "b.json", b'{"text": "one row", "meta": {}}')
    assert shown(read_all(tmp_path)) == [reason, "one row"]


def as_column(texts: list[bytes]) -> pa.Array:
    """Return a column of strings whose bytes nobody checked, as a careless writer leaves them."""
    return pa.array(texts, pa.binary()).view(pa.string())


def test_bad_rows_of_a_parquet_file_are_quarantined_and_the_other_rows_are_kept(tmp_path):
    texts = [b"first", b"caf\xe9", b"\xed\xa0\x80", b"a\0b", b"2024-01-01", b"last"]
    far = pa.array([0, 0, 0, 0, 0, 2**62], pa.int64()).cast(pa.timestamp("us"))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": as_column(texts), "when": far}), path)
    examples = read_all(path)
    out_of_range = shown(examples)[5]
    assert shown(examples) == ["first", "not UTF-8", "not UTF-8", "holds NUL", "2024-01-01", out_of_range]
    assert out_of_range.startswith("holds a value out of range")
    assert [e.position for e in examples if isinstance(e, Unreadable)] == [f"{path}: row {n}" for n in (2, 3, 4, 6)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"fine\xff", "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b"a\0b", "holds NUL"),
    ],
)
def test_a_file_of_a_folder_that_is_not_text_is_quarantined_and_the_others_are_kept(tmp_path, content, reason):
    write_file(tmp_path / "a.txt", FIRST.encode())
    write_file(tmp_path / "b.md", content)
    write_file(tmp_path / "c.txt", DATE.encode())
    write_zip(tmp_path / "inner.whl", "p/a.txt", b"a wheel in a folder is not looked into")
    examples = read_all(tmp_path, ignore=[".whl"])
    first, refused, last = shown(examples)
    assert (first, refused.partition(";")[0], last) == (FIRST, reason, DATE)
    assert examples[1].position.startswith(f"{tmp_path}/b.md")


def test_an_archive_inside_an_archive_is_refused_and_not_unpacked(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", "a.txt", bytes(1 << 20)).read_bytes()
    path = write_zip(tmp_path / "outer.zip", "inner.zip", inner)
    with pytest.raises(RecipeError, match=r"no file can be read: 1 .zip .*an archive"):
        read_all(path)


def test_a_file_whose_name_is_not_utf_8_is_read_under_a_name_that_can_be_written(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_bytes(b"fine")
    (example,) = read_all(tmp_path)
    assert example == {"text": "fine", "path": f"{tmp_path}/caf\\xe9.txt"}
    assert source_fingerprint(Source(name="a", path=str(tmp_path)))


LINES = b"".join(row(make_text(seed)) + b"\n" for seed in range(20))


@pytest.mark.parametrize("container", ["gz", "zst", "gz in a wheel", "zst at a file URL"])
def test_of_a_file_that_is_cut_short_what_comes_before_is_kept(tmp_path, container):
    path = Path(str(CONTAINERS[container](tmp_path, LINES)).removeprefix("file://"))
    if container == "gz in a wheel":
        packed = gzip.compress(LINES)
        write_zip(path, "p/a.jsonl.gz", packed[: len(packed) * 2 // 3])
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 2 // 3])
    examples = read_all(path)
    kept = examples[:-1]
    assert shown(kept) == [make_text(seed) for seed in range(len(kept))]
    assert examples[-1].reason.startswith("damaged or cut short"), examples[-1]
    if "zst" not in container:  # whose only block is lost with its end
        assert kept


def test_a_wheel_that_is_cut_short_is_an_error_that_names_the_source(tmp_path):
    path = write_zip(tmp_path / "a.whl", "p/a.jsonl", LINES)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RecipeError, match="data.sources: a: path .*a.whl.*damaged or cut short"):
        read_all(path)


def test_a_damaged_or_locked_member_of_a_wheel_is_quarantined_and_the_others_are_kept(tmp_path):
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
            archive.writestr(name, f"the text of {name}")
    content = bytearray(path.read_bytes())
    content[content.index(b"the text of b.txt")] ^= 1  # its checksum no longer holds
    locked = content.rindex(b"c.txt") - 46  # the entry of the index, whose flags say encrypted
    content[locked + 8] |= 1
    path.write_bytes(content)
    reasons = shown(read_all(path))
    assert reasons[0] == "the text of a.txt" and reasons[3] == "the text of d.txt"
    assert "Bad CRC-32" in reasons[1] and "encrypted" in reasons[2]


def test_damage_in_a_row_group_of_a_parquet_file_leaves_the_other_groups(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"text": make_text(seed)} for seed in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10, compression="zstd")
    offset = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[offset + 30 : offset + 60] = bytes(30)
    path.write_bytes(content)
    examples = read_all(path)
    assert shown(examples[:10] + examples[-10:]) == [row["text"] for row in rows[:10] + rows[20:]]
    assert len(examples) == 21 and examples[10].position == f"{path}: rows 11 to 20"


def test_no_damage_to_a_parquet_file_ends_the_run(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"text": f"row {number}", "date": DATE} for number in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10, write_page_checksum=True)
    content = path.read_bytes()
    choose = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        examples = read_all(path)
        lost = sum(isinstance(example, Unreadable) for example in examples)
        assert len(examples) == 40 or lost, "what is missing is said"
    path.write_bytes(content[: len(content) // 2])
    (example,) = read_all(path)
    assert "damaged or cut short" in example.reason


class BrokenConnection(io.BytesIO):
    """A remote file of 100 bytes whose connection ends after 60, as its client reports it."""

    def __init__(self, error: Exception | None):
        super().__init__(bytes(60))
        self.error = error

    def read(self, size: int = -1) -> bytes:
        content = super().read(size)
        if not content and self.error:
            raise self.error
        return content


@pytest.mark.parametrize("error", [None, KeyError("of a client"), EOFError("of a client")])
def test_a_connection_that_ends_early_is_no_damage(error):
    with pytest.raises(ConnectionError, match="60 of 100" if error is None else "of a client"):
        io.BufferedReader(WholeFile(BrokenConnection(error), 100)).read()


BOUNDS = """
import sys
from pathlib import Path
from sources.readers import read_unit
from sources.row_checks import Unreadable
from sources.units import list_units
from recipe_config import Source

source, kept, reason = Source(name="a", path=sys.argv[1]), 0, None
for unit in list_units(source):
    for example in read_unit(source, unit):
        if isinstance(example, Unreadable):
            reason = example.reason
        else:
            kept += len(example["text"])
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(kept, int(peak.split()[1]) >> 10, reason, sep="\\t")
"""


def measure_reading(path: Path) -> tuple[int, int, str]:
    """Read a file in a process of its own; return characters kept, peak memory in MiB, last reason."""
    environment = os.environ | {"PYTHONPATH": str(RECIPES)}
    command = [sys.executable, "-c", BOUNDS, str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kept, peak, reason = result.stdout.strip().split("\t")
    return int(kept), int(peak), reason


SENTENCE = b"The tenant shall keep the premises in good repair at its own cost and expense. "
NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")


def write_long_document(path: Path, text: bytes) -> None:
    """Write a document as the one row of a file of the kind that its name says."""
    line = b'{"text": "' + text + b'"}\n'
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": [text.decode()]}), path, compression="zstd")
    elif path.suffix == ".whl":
        write_zip(path, "a.txt", text)
    elif path.suffix == ".gz":
        write_file(path, gzip.compress(text, compresslevel=1))
    else:
        write_file(path, zstandard.compress(line, level=1) if path.suffix == ".zst" else line)


PACKED = [pytest.param(f"a{end}", marks=pytest.mark.long) for end in (".txt.gz", ".jsonl.zst", ".whl", ".parquet")]


@NEEDS_PROC
@pytest.mark.parametrize("name", ["a.jsonl", *PACKED])
def test_a_document_of_100_mb_in_one_line_is_read_within_five_times_the_bound(tmp_path, name):
    text = SENTENCE * (100_000_000 // len(SENTENCE))
    write_long_document(tmp_path / name, text)
    kept, peak_mib, _ = measure_reading(tmp_path / name)
    assert kept == len(text)
    assert peak_mib < 5 * MAX_ROW_BYTES >> 20


@NEEDS_PROC
@pytest.mark.long
def test_a_document_of_wide_characters_is_read_within_ten_times_the_bound(tmp_path):
    text = SENTENCE * (100_000_000 // len(SENTENCE)) + "\N{PERSONAL COMPUTER}".encode()
    write_file(tmp_path / "wide.jsonl", b'{"text": "' + text + b'"}\n')
    kept, peak_mib, _ = measure_reading(tmp_path / "wide.jsonl")
    assert kept == len(text) - 3
    assert peak_mib < 10 * MAX_ROW_BYTES >> 20


def write_bomb(path: Path, bound_bytes: int, most_values: int) -> None:
    """Write a file of the kind that its name says that unpacks to more than the bounds; a row or file after it."""
    chunk, after = bytes(bound_bytes // 16).replace(b"\0", b"x"), b"\n" + row(FIRST) + b"\n"
    long = "x" * (bound_bytes // 128)
    if path.name == "many.json":
        write_file(path, b"[" + b"[]," * (most_values + 1) + b"1]")
    elif path.name == "pages.parquet":
        pages = [f"{long}{number}" for number in range(140)]
        pq.write_table(pa.table({"text": pages}), path, compression="zstd", use_dictionary=False)
    elif path.name == "dictionary.parquet":
        pq.write_table(pa.table({"text": [long] * 500}), path, compression="zstd")
    elif path.suffix == ".whl":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("a.txt", "w") as member:
                for _ in range(17):
                    member.write(chunk)
            archive.writestr("b.txt", FIRST)
    else:
        compress = zstandard.compress if path.suffix == ".zst" else gzip.compress
        write_file(path, compress(chunk) * 17 + (compress(after) if ".jsonl" in path.suffixes else b""))


# Name -> characters of the documents that are kept all the same, by the bound, and the reason to refuse the others.
BOMBS = {
    "bomb.jsonl.zst": (lambda bound: len(FIRST), "longer than {bound:,} bytes"),
    "bomb.jsonl.gz": (lambda bound: len(FIRST), "longer than {bound:,} bytes"),
    "bomb.txt.gz": (lambda bound: 0, "longer than {bound:,} bytes"),
    "bomb.whl": (lambda bound: len(FIRST), "longer than {bound:,} bytes"),
    "dictionary.parquet": (lambda bound: 500 * (bound // 128), "None"),
    "many.json": (lambda bound: 0, "more than {values:,} commas"),
    "pages.parquet": (lambda bound: 0, "unpacks to pages of 1"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_and_what_follows_is_read(tmp_path, monkeypatch, name):
    bound, values = 1 << 20, 1000
    monkeypatch.setattr("sources.row_checks.MAX_ROW_BYTES", bound)
    monkeypatch.setattr("sources.row_checks.MAX_ROW_VALUES", values)
    write_bomb(tmp_path / name, bound, values)
    rows = read_all(tmp_path / name)
    kept, reason = BOMBS[name]
    assert sum(len(row["text"]) for row in rows if isinstance(row, dict)) == kept(bound)
    refused = [row.reason for row in rows if isinstance(row, Unreadable)] or ["None"]
    assert [found.startswith(reason.format(bound=bound, values=values)) for found in refused] == [True]


@NEEDS_PROC
@pytest.mark.parametrize("name", ["bomb.jsonl.zst", *(pytest.param(n, marks=pytest.mark.long) for n in [*BOMBS][1:])])
def test_a_decompression_bomb_is_met_within_five_times_the_bound(tmp_path, name):
    write_bomb(tmp_path / name, MAX_ROW_BYTES, MAX_ROW_VALUES)
    kept, peak_mib, reason = measure_reading(tmp_path / name)
    assert kept == BOMBS[name][0](MAX_ROW_BYTES)
    assert reason.startswith(BOMBS[name][1].format(bound=MAX_ROW_BYTES, values=MAX_ROW_VALUES))
    assert peak_mib < 5 * MAX_ROW_BYTES >> 20


def test_a_row_longer_than_the_bound_is_refused_and_reading_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("sources.row_checks.MAX_ROW_BYTES", 100)
    rows = [row("first"), row("x" * 1000), row("last")]
    write_file(tmp_path / "a.jsonl", b"\n".join(rows))
    write_file(tmp_path / "b.jsonl.zst", zstandard.compress(b"\n".join(rows)))
    write_file(tmp_path / "c.txt", b"x" * 101)
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in rows]), tmp_path / "d.parquet")
    write_file(tmp_path / "e.jsonl", row("x" * 1000))
    too_long = "longer than 100 bytes"
    one_document = f"{too_long}, the most of one document; set document_separator"
    expected = ["first", too_long, "last"]
    assert shown(read_all(tmp_path)) == [*expected, *expected, one_document, *expected, too_long]


SHORT_OF_WEST = timezone(timedelta(hours=-8))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("  ", None),
        ("2023-05-31", "2023-05-31"),
        (" 20230531\n", "2023-05-31"),
        ("2023-05", "2023-05"),
        ("2023", "2023"),
        (2023, "2023"),
        ("2023-05-31T23:30:00-08:00", "2023-05-31"),
        ("2023-05-31 23:30:00.123 UTC", "2023-05-31"),
        ("20230531T233000Z", "2023-05-31"),
        (date(2023, 5, 31), "2023-05-31"),
        (datetime(2023, 5, 31, 23, 30, tzinfo=SHORT_OF_WEST), "2023-05-31"),
    ],
)
def test_a_date_is_as_precise_as_it_is_given_and_a_time_is_cut_to_its_day(value, expected):
    assert document_date({"filed": value, "date": "1999"}, "filed") == expected
    assert document_date({}, "filed") is None


@pytest.mark.parametrize(
    "value",
    ["31/05/2023", "May 31, 2023", "2023-02-30", "2023-13", "0000", "202305", "2023-5-1", "2023-0531", "20230531 and"]
    + ["2023-05-31 12 monkeys", "\N{ARABIC-INDIC DIGIT TWO}023", "n/a", 1685491200, 12.5, True, ["2023"]],
)
def test_what_is_no_date_for_sure_is_an_error_that_shows_it(value):
    with pytest.raises(ValueError, match=r"filed: .* is not a day, month or year"):
        document_date({"filed": value}, "filed")


def test_dates_of_parquet_become_days_in_their_own_zone(tmp_path):
    moment = datetime(2023, 5, 31, 23, 30, tzinfo=SHORT_OF_WEST)
    nanoseconds = pa.array([moment], pa.timestamp("us", "-08:00")).cast(pa.timestamp("ns", "-08:00"))
    columns = {"day": pa.array([date(2023, 5, 31)]), "zoned": [moment], "fine": nanoseconds}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (example,) = read_all(tmp_path)
    assert {name: document_date(example, name) for name in columns} == dict.fromkeys(columns, "2023-05-31")


def test_every_format_gives_the_same_rows_and_texts_that_look_like_dates_or_numbers_stay_text(tmp_path):
    rows = [{"text": text, "n": 1} for text in (DATE, "2024-01-01T00:00:00Z", "007", "1e5", "null", "true")]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    write_file(tmp_path / "a.jsonl", lines)
    write_file(tmp_path / "b.jsonl.gz", gzip.compress(lines))
    frames = [zstandard.compress(line + b"\n") for line in lines.splitlines()]
    write_file(tmp_path / "c.jsonl.zst", b"".join(frames))
    write_file(tmp_path / "d.json", json.dumps(rows).encode())
    write_file(tmp_path / "e.json", json.dumps(dict(enumerate(rows))).encode())
    write_file(tmp_path / "f.json", lines)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "g.parquet")
    source = Source(name="a", path=str(tmp_path))
    units = list_units(source)
    assert len(units) == 7
    for unit in units:
        assert list(read_unit(source, unit)) == [{**row, "path": unit.name} for row in rows], unit


def test_files_inside_a_wheel_are_read_without_unpacking_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as archive:
        archive.writestr("p/texts/b.LICENSE", "second \N{SECTION SIGN}")
        archive.writestr("p/texts/a.LICENSE", "first")
        archive.writestr("p/code.py", "no text")
    assert read_all(tmp_path / "some.whl", data_files="p/texts/*.LICENSE") == [
        {"text": "first", "path": "p/texts/a.LICENSE"},
        {"text": "second \N{SECTION SIGN}", "path": "p/texts/b.LICENSE"},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.whl"]


def test_urls_take_folders_patterns_and_single_files(tmp_path):
    root = f"memory://{tmp_path}"
    for name in ("b.txt", "sub/a.txt", "c.py"):
        write_url(f"{root}/{name}", name.encode())
    assert shown(read_all(root)) == ["b.txt", "sub/a.txt"]
    assert shown(read_all(root, data_files=["*.py", "sub/*"])) == ["c.py", "sub/a.txt"]
    assert shown(read_all(f"{root}/b.txt")) == ["b.txt"]
    with pytest.raises(RecipeError, match="no file"):
        read_all(f"{root}/missing.txt")


def test_units_come_in_the_order_of_their_names_whatever_order_the_file_system_lists(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_file(tmp_path / name, name.encode())
    as_listed, orders = os.scandir, []
    for order in (list, lambda entries: list(entries)[::-1], lambda entries: sorted(entries, key=lambda e: e.name)):
        monkeypatch.setattr(os, "scandir", lambda path, order=order: nullcontext(order(as_listed(path))))
        source = Source(name="a", path=str(tmp_path))
        orders.append((list_units(source), source_fingerprint(source)))
    assert orders[0] == orders[1] == orders[2]
    assert [Path(unit.path).name for unit in orders[0][0]] == ["a.txt", "b.txt", "c.txt"]


def test_a_fingerprint_follows_content_not_time_or_place(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    write_file(folder / "a.jsonl", LINES)
    write_file(folder / "b.txt", b"text")
    before = source_fingerprint(Source(name="a", path=str(folder)))
    os.utime(folder / "a.jsonl", (1, 1))
    assert source_fingerprint(Source(name="a", path=str(folder))) == before
    folder.rename(tmp_path / "b")
    assert source_fingerprint(Source(name="a", path=str(tmp_path / "b"))) == before
    write_file(tmp_path / "b" / "b.txt", b"test")
    assert source_fingerprint(Source(name="a", path=str(tmp_path / "b"))) != before


STAGES = ("prepare_data", "train_tokenizer", "tokenize_corpus")
IN_ANOTHER_WORLD = """
import contextlib, importlib, locale, os, sys
from pathlib import Path

forward, scandir = Path.glob, os.scandir
Path.glob = lambda self, pattern: iter(sorted(forward(self, pattern), reverse=True))
in_reverse = lambda *path: sorted(scandir(*path), key=lambda entry: entry.name, reverse=True)
os.scandir = lambda *path: contextlib.nullcontext(in_reverse(*path))
listdir = os.listdir
os.listdir = lambda *path: sorted(listdir(*path), reverse=True)
assert locale.getencoding() == "ANSI_X3.4-1968"
for stage in sys.argv[1].split():
    importlib.import_module(stage).main(sys.argv[2:])
"""


def test_documents_tokenizer_and_tokens_do_not_depend_on_listing_order_locale_time_zone_hash_seed_or_workers(tmp_path):
    texts = tmp_path / "texts"
    (texts / "web").mkdir(parents=True)
    lines = [json.dumps({"text": make_text(seed) + " \N{SECTION SIGN} 12"}, ensure_ascii=False) for seed in range(40)]
    (texts / "law.jsonl").write_text("\n".join([*lines, "{"]), encoding="utf-8")
    for seed, letter in enumerate("z\N{LATIN SMALL LETTER E WITH ACUTE}aZ\N{CJK UNIFIED IDEOGRAPH-6CD5}_0~"):
        (texts / "web" / f"{letter}.txt").write_text(make_text(100 + seed), encoding="utf-8")
    options = ["--data.near_duplicates={}", "--tokenizer.vocab_size=300"]
    here, there = TinyRun(texts, tmp_path / "here"), TinyRun(texts, tmp_path / "there")
    for stage in STAGES:
        importlib.import_module(stage).main(here.argv(*options))
    environment = os.environ | {"PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment |= {"TZ": "Asia/Kathmandu", "PYTHONPATH": str(RECIPES), "TOKENIZERS_PARALLELISM": "false"}
    arguments = there.argv(*options, "--data.workers=2")
    command = [sys.executable, "-c", IN_ANOTHER_WORLD, " ".join(STAGES), *arguments]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for output in ("documents", "tokenizer", "tokens"):
        files = [read_record(run.output_dir / output)["files"] for run in (here, there)]
        for named in files:
            named.pop("speed.json", None)  # of the tokenizer, which is measured
        assert files[0] == files[1], output


THROUGH_PREPARE = """
import sys
from pathlib import Path
import prepare_data

prepare_data.main(sys.argv[1:])
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1])
"""


@NEEDS_PROC
@pytest.mark.long
def test_a_document_of_100_mb_goes_through_the_whole_of_prepare_within_twelve_times_the_bound(tmp_path):
    sentences = "".join(f"Clause {number}: the tenant shall keep it in good repair. " for number in range(1_800_000))
    lines = [sentences, *map(make_text, range(10))]
    (tmp_path / "law.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    sources = json.dumps([{"name": "law", "path": str(tmp_path / "law.jsonl")}])
    run = TinyRun(tmp_path, tmp_path / "run")
    command = [
        sys.executable,
        "-c",
        THROUGH_PREPARE,
        *run.argv(f"--data.sources={sources}", "--data.near_duplicates={}"),
    ]
    environment = os.environ | {"PYTHONPATH": str(RECIPES)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kept = json.loads((run.output_dir / "documents" / "stats.json").read_text())["sources"]["law"]["kept"]
    assert sum(split["documents"] for split in kept.values()) == 11 and len(sentences) > 99e6
    assert int(result.stdout.splitlines()[-1]) << 10 < 12 * MAX_ROW_BYTES
