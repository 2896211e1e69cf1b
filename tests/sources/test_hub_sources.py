# SPDX-License-Identifier: Apache-2.0
"""Sources on the Hub, read as Hub datasets and as hf:// URLs from the local mock Hub: whole, damaged, cut
off in the middle, and through the whole of prepare."""

import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from mini_hub import ask_hub, hub_environment, start_hub
from tiny_run import TinyRun, make_text

from recipe_config import Source
from sources.readers import read_unit
from sources.row_checks import Unreadable
from sources.units import list_units, load_builder_of


def rows(label: str) -> list[dict]:
    return [{"text": f"{label} {index}", "number": index} for index in range(3)]


def packed_lines(label: str) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows(label)).encode())


def parquet(label: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(label)), buffer)
    return buffer.getvalue()


def table(*texts: bytes, **options: object) -> bytes:
    """Return a Parquet file with a column of strings whose bytes nobody checked."""
    buffer = io.BytesIO()
    column = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), buffer, **options)
    return buffer.getvalue()


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def read_all(**settings: object) -> list[dict] | str:
    """Return every example of a source named `statutes`, or the error that reading it ends with.

    Where a row cannot be read, its position, without the commit, and the reason stand in its place.
    """
    source = Source(name="statutes", **settings)
    try:
        examples = [example for unit in list_units(source) for example in read_unit(source, unit)]
    except Exception as error:  # whatever a library raises is what is looked at
        return f"{type(error).__name__}: {error}"
    return [
        {"position": re.sub("@[0-9a-f]{40}", "", e.position), "reason": e.reason} if isinstance(e, Unreadable) else e
        for e in examples
    ]


def texts(**settings: object) -> list[str] | str:
    """Return the text of every example, where there is none the file and the reason; or the error."""
    found = read_all(**settings)
    if isinstance(found, str):
        return found
    shown = (e["text"] if "text" in e else f"{e['position'].split('/')[-1]}: {e['reason']}" for e in found)
    return list(shown)


DATES = ("2024-01-01", "2024-01-01T00:00:00Z", "2024-02-30")
CARD = """---
configs:
- config_name: default
  data_files: data/*
  {option}
---
"""


def commit(repo_id: str, **files: bytes) -> str:
    """Commit files to a dataset of the double and return the commit's id."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="data", repo_type="dataset").oid


def read_dates() -> dict:
    """Read texts that look like dates from every kind of dataset."""
    csv = "".join(f"{text},{index}\n" for index, text in enumerate(("text", *DATES)))
    commit("me/dates-jsonl", **{"a.jsonl": lines(*DATES), "b.jsonl.zst": zstandard.compress(lines(*DATES))})
    commit("me/dates-json", **{"a.json": json.dumps([{"text": text} for text in DATES]).encode()})
    commit("me/dates-lines", **{"a.json": lines(*DATES)})
    commit("me/dates-parquet", **{"a.parquet": table(*(text.encode() for text in DATES))})
    commit("me/dates-csv", **{"a.csv": csv.encode()})
    commit("me/dates-text", **{"a.txt": "\n".join(DATES).encode()})
    nested = json.dumps({"rows": [{"text": text} for text in DATES[:1]]}).encode()
    commit("me/dates-field", **{"README.md": CARD.format(option="field: rows").encode(), "data/a.json": nested})
    chunked = CARD.format(option="chunksize: 1000000").encode()
    commit("me/dates-chunked", **{"README.md": chunked, "data/a.jsonl": lines(*DATES[:2])})
    kinds = ("jsonl", "json", "lines", "parquet", "csv", "text", "field", "chunked")
    return {kind: texts(path=f"me/dates-{kind}", revision="main") for kind in kinds}


def read_damaged() -> dict:
    """Read datasets whose second of three files is damaged, and one with a bad row of each kind."""
    packed = gzip.compress(lines(*(make_text(seed) for seed in range(30))))
    commit(
        "me/cut-jsonl",
        **{
            "a.jsonl.gz": gzip.compress(lines("a")),
            "b.jsonl.gz": packed[:2000],
            "c.jsonl.gz": gzip.compress(lines("c")),
        },
    )
    commit("me/cut-parquet", **{"a.parquet": table(b"a"), "b.parquet": table(b"b")[:-20], "c.parquet": table(b"c")})
    commit("me/cut-csv", **{"a.csv": b"text\na\n", "b.csv": b'text\n"b\nb\n', "c.csv": b"text\nc\n"})
    commit("me/bad-csv", **{"a.csv": b"text\na\n", "b.csv": b"text\n\xff\n", "c.csv": b"text\nc\n"})
    commit(
        "me/cut-text", **{"a.txt.gz": gzip.compress(b"a"), "b.txt.gz": packed[:2000], "c.txt.gz": gzip.compress(b"c")}
    )
    rows = [
        b'{"text": "caf\xe9"}',
        b'{"text": "\\ud800"}',
        b'{"text": "a\\u0000"}',
        b"{",
        b"null",
        b'{"text": "kept"}',
    ]
    commit("me/rows-jsonl", **{"a.jsonl": b"\n".join(rows)})
    commit("me/rows-parquet", **{"a.parquet": table(b"caf\xe9", b"\xed\xa0\x80", b"a\0", b"kept")})
    commit("me/rows-text", **{"a.txt": b"a\0b\nkept\n"})
    kinds = ("cut-jsonl", "cut-parquet", "cut-csv", "bad-csv", "cut-text", "rows-jsonl", "rows-parquet", "rows-text")
    return {kind: texts(path=f"me/{kind}", revision="main") for kind in kinds}


def read_through_faults() -> dict:
    """Read a dataset from a Hub that fails for a while, and from one that fails for good in the middle."""
    files = {f"{name}.jsonl.gz": gzip.compress(lines(name)) for name in "abc"}
    commit("me/far", **files)
    commit("me/far-csv", **{f"{name}.csv": f"text\n{name}\n".encode() for name in "abc"})
    seen = {}
    for name, fault in {
        "unavailable": {"status": 503, "times": 3},
        "limited": {"status": 429, "times": 3},
        "dropped": {"action": "drop", "times": 3},
        "down": {"status": 503, "times": 1000},
        "cut off": {"action": "drop", "times": 1000},
        "forbidden": {"status": 403, "times": 1000},
    }.items():
        for path in ("me/far", "me/far-csv"):
            ask_hub("/_faults", [{"match": "GET .*resolve/.*/b[.]", **fault}])
            seen[f"{name} {path}"] = texts(path=path, revision="main")
    ask_hub("/_faults", [])
    return seen


def prepare_session(out: str) -> None:
    """Prepare a dataset whole, from a Hub that goes down in the middle, again when it is back, and by two workers."""
    import prepare_data
    from atomic_files import read_record

    folder = Path(out).parent
    pieces = [lines(*(make_text(10 * part + row) for row in range(10))) for part in range(6)]
    old = commit("me/corpus", **{f"{part}.jsonl": piece for part, piece in enumerate(pieces)})
    source = {"name": "statutes", "path": "me/corpus", "revision": "main", "share": 1.0}

    def run(name: str, *overrides: str, **settings: object) -> dict | str:
        run = TinyRun(folder, folder / name)
        try:
            prepare_data.main(run.argv(f"--data.sources={json.dumps([source | settings])}", *overrides))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        files = read_record(run.output_dir / "documents")["files"]
        return {name: entry["sha256"] for name, entry in files.items() if name.endswith((".parquet", ".jsonl"))}

    seen = {"whole": run("whole", revision=old), "two workers": run("two", "--data.workers=2", revision=old)}
    time.sleep = lambda seconds: None
    ask_hub("/_faults", [{"match": "GET .*resolve/.*/4[.]jsonl", "status": 503, "times": 1000}])
    seen["failed"] = run("again")
    seen["left"] = (folder / "again" / "documents").exists()
    ask_hub("/_faults", [])
    commit("me/corpus", **{f"{part}.jsonl": lines(make_text(999)) for part in range(6)})
    load_builder_of.cache_clear()  # as in another process
    seen["again"] = run("again")
    Path(out).write_text(json.dumps(seen))


def read_session(out: str) -> None:
    """Fill the double with datasets and read them, in a process that takes it for the Hub from the start."""
    from huggingface_hub import close_session

    time.sleep = lambda seconds: None  # the clients wait 23 s in all between their tries
    old = commit("me/lines", **{"data/a.jsonl.gz": packed_lines("old a"), "data/b.jsonl.gz": packed_lines("old b")})
    new = commit("me/lines", **{"data/a.jsonl.gz": packed_lines("new a")})
    shown = {"data/train-0.parquet": parquet("shown"), "data/test-0.parquet": parquet("held out")}
    tables = commit("me/tables", **shown)
    url = "hf://datasets/me/lines"
    seen = {
        "commits": {"old": old, "new": new, "tables": tables},
        "head": read_all(path="me/lines", revision="main"),
        "pinned": read_all(path="me/lines", revision=old),
        "one file": read_all(path="me/lines", revision=old, data_files="data/b.*"),
        "tables": read_all(path="me/tables", revision="main"),
        "test split": read_all(path="me/tables", revision="main", split="test"),
        "units": [
            [unit.path, unit.size_bytes] for unit in list_units(Source(name="a", path="me/lines", revision="main"))
        ],
        "url": read_all(path=f"{url}/data/a.jsonl.gz"),
        "pinned url": read_all(path=f"{url}@{old}/data/a.jsonl.gz"),
        "url pattern": read_all(path="hf://datasets/me/tables", data_files=["data/*.parquet"]),
        "missing dataset": read_all(path="me/missing", revision="main"),
        "missing revision": read_all(path="me/lines", revision="0" * 40),
        "missing split": read_all(path="me/tables", revision="main", split="dev"),
        "missing files": read_all(path="me/tables", revision="main", data_files="text/*.parquet"),
        "missing url": read_all(path="hf://datasets/me/missing/a.jsonl"),
        "missing file of a url": read_all(path=f"{url}/data/c.jsonl"),
        "dates": read_dates(),
        "damaged": read_damaged(),
    }
    seen["faults"] = read_through_faults()
    os.kill(int(os.environ["HUB_PID"]), signal.SIGKILL)
    close_session()  # or the broken connection would be met, not the refused one
    seen["no hub"] = read_all(path="me/unseen", revision="main")
    seen["no hub for a url"] = read_all(path="hf://datasets/me/unseen/a.jsonl")
    Path(out).write_text(json.dumps(seen))


def run_session(name: str, folder: Path) -> dict:
    """Run one of the sessions above in a process with a double of its own and return what it saw."""
    with start_hub() as (hub, endpoint):
        environment = hub_environment(endpoint, folder / "home") | {"HUB_PID": str(hub.pid)}
        code = f"import sys, test_hub_sources; test_hub_sources.{name}(sys.argv[1])"
        command = [sys.executable, "-c", code, str(folder / "seen.json")]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "seen.json").read_text())


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What happened in `read_session`."""
    return run_session("read_session", tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> dict:
    """What happened in `prepare_session`."""
    return run_session("prepare_session", tmp_path_factory.mktemp("hub"))


def expected(path: str, *labels: str) -> list[dict]:
    return [{**row, "path": path} for label in labels for row in rows(label)]


def expected_of(seen: dict, dataset: str, commit: str, **files: str) -> list[dict]:
    """Return the rows of files (name without its type -> label) of a commit of a dataset."""
    kind = "parquet" if dataset == "tables" else "jsonl.gz"
    root = f"hf://datasets/me/{dataset}@{seen['commits'][commit]}/data"
    return [row for name, label in files.items() for row in expected(f"{root}/{name}.{kind}", label)]


def test_a_hub_dataset_of_packed_lines_is_read_in_the_order_of_its_files(seen):
    assert seen["head"] == expected_of(seen, "lines", "new", a="new a", b="old b")


def test_each_file_of_a_hub_dataset_is_a_unit_at_its_commit_with_its_size(seen):
    root = f"hf://datasets/me/lines@{seen['commits']['new']}/data"
    sizes = [len(packed_lines(label)) for label in ("new a", "old b")]
    assert [path for path, _ in seen["units"]] == [f"{root}/a.jsonl.gz", f"{root}/b.jsonl.gz"]
    assert [size for _, size in seen["units"]] == pytest.approx(sizes, abs=4), "gzip writes the time"


def test_a_pinned_revision_reads_what_it_held_after_a_newer_commit(seen):
    assert seen["pinned"] == expected_of(seen, "lines", "old", a="old a", b="old b")


def test_data_files_choose_files_of_a_hub_dataset(seen):
    assert seen["one file"] == expected_of(seen, "lines", "old", b="old b")


def test_a_hub_dataset_of_tables_is_read_by_split(seen):
    assert seen["tables"] == expected_of(seen, "tables", "tables", **{"train-0": "shown"})
    assert seen["test split"] == expected_of(seen, "tables", "tables", **{"test-0": "held out"})


@pytest.mark.parametrize("kind", ["jsonl", "json", "lines", "parquet", "csv", "text"])
def test_texts_that_look_like_dates_stay_text_in_a_hub_dataset(seen, kind):
    assert seen["dates"][kind] == [*DATES] * (2 if kind == "jsonl" else 1)


def test_where_the_datasets_library_makes_dates_of_text_the_rows_are_quarantined(seen):
    assert seen["dates"]["field"] == ["2024-01-01"]
    reason = "a text that looks like a date was read as one"
    assert seen["dates"]["chunked"] == [f"a.jsonl: row {row}: {reason}" for row in (1, 2)]


@pytest.mark.parametrize("kind", ["cut-jsonl", "cut-parquet", "cut-csv", "bad-csv", "cut-text"])
def test_damage_in_one_file_of_a_hub_dataset_costs_no_other(seen, kind):
    found = seen["damaged"][kind]
    assert found[0] == "a" and found[-1] == "c", found
    assert re.match(r"b[.].*: row \d+: damaged or cut short", found[-2])
    if kind == "cut-jsonl":
        assert found[1:-2] and found[1:-2] == [make_text(seed) for seed in range(len(found) - 3)]


def test_bad_rows_of_a_hub_dataset_are_quarantined_and_the_others_are_kept(seen):
    assert seen["damaged"]["rows-jsonl"] == [
        "a.jsonl:1: byte 13: not UTF-8",
        "a.jsonl:2: lone surrogate",
        "a.jsonl:3: holds NUL",
        "a.jsonl:4: broken JSON",
        "a.jsonl:5: not a JSON object but null",
        "kept",
    ]
    not_utf_8 = [f"a.parquet: row {row}: not UTF-8" for row in (1, 2)]
    assert seen["damaged"]["rows-parquet"] == [*not_utf_8, "a.parquet: row 3: holds NUL", "kept"]
    assert seen["damaged"]["rows-text"] == ["a.txt: row 1: holds NUL", "kept"]


@pytest.mark.parametrize("path", ["me/far", "me/far-csv"])
@pytest.mark.parametrize("fault", ["unavailable", "limited", "dropped"])
def test_a_hub_that_fails_for_a_while_is_asked_again(seen, path, fault):
    assert seen["faults"][f"{fault} {path}"] == ["a", "b", "c"]


@pytest.mark.parametrize("path", ["me/far", "me/far-csv"])
@pytest.mark.parametrize("fault", ["down", "cut off", "forbidden"])
def test_a_hub_that_fails_for_good_ends_the_run_and_is_not_taken_for_damage(seen, path, fault):
    found = seen["faults"][f"{fault} {path}"]
    assert isinstance(found, str) and found.startswith("RecipeError: data.sources: statutes: "), found


def test_a_hub_that_goes_down_stops_prepare_and_a_rerun_reads_on_at_the_same_commit(prepared):
    assert prepared["failed"].startswith("RecipeError: data.sources: statutes: "), prepared["failed"]
    assert not prepared["left"]
    assert prepared["again"] == prepared["whole"]


def test_two_workers_prepare_one_hub_dataset_to_the_same_bytes(prepared):
    assert prepared["two workers"] == prepared["whole"] and len(prepared["whole"]) > 3


def test_a_file_of_a_hub_dataset_is_read_by_its_url(seen):
    assert seen["url"] == expected("hf://datasets/me/lines/data/a.jsonl.gz", "new a")


def test_a_url_can_name_a_commit(seen):
    assert [example["text"] for example in seen["pinned url"]] == ["old a 0", "old a 1", "old a 2"]


def test_a_url_takes_patterns_in_the_order_of_names(seen):
    paths = [f"hf://datasets/me/tables/data/{split}-0.parquet" for split in ("test", "train")]
    assert seen["url pattern"] == expected(paths[0], "held out") + expected(paths[1], "shown")


ERRORS = {
    "missing dataset": "me/missing",
    "missing revision": "0{40}.*me/lines",
    "missing split": "dev.*train.*test",
    "missing files": "me/tables",
    "missing url": "me/missing",
    "missing file of a url": "me/lines/data/c.jsonl.*no file",
    "no hub": "me/unseen",
    "no hub for a url": "Connection refused",
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_read_is_an_error_that_says_what(seen, case):
    assert isinstance(seen[case], str), seen[case]
    assert re.search(ERRORS[case], seen[case])


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_read_is_an_error_that_names_the_source(seen, case):
    assert re.match("RecipeError: data.sources: statutes: ", seen[case])
