# SPDX-License-Identifier: Apache-2.0
"""What each task reads: the whole of a source or a sample of it, whatever the workers and the order of files."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datatrove.data import Document
from tiny_run import RECIPES, TinyRun, make_text

import prepare_data
from atomic_files import read_record
from corpus import document_files
from corpus.document_files import document_id, read_documents, write_documents
from corpus.reading_plan import BYTES_PER_TASK, ReadingPlan, expect, read_units, share_out, write_tasks
from mixture.ledger import describe_documents
from recipe_config import Source
from sources import ranges
from sources.inventory import Inventory
from sources.units import Listing, Unit


MEGABYTE = 10**6
TEXTS = [make_text(seed, 12) for seed in range(300)]


@pytest.fixture
def small_ranges(monkeypatch):
    """Ranges of 4,000 bytes: they are planned in this process, whatever the tasks run in."""
    monkeypatch.setattr(ranges, "RANGE_BYTES", 4000)
    monkeypatch.setattr(ranges, "MIN_RANGE_BYTES", 1000)


def write_lines(path: Path, texts: list[str] = TEXTS) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def prepare(folder: Path, sources: list[dict], *overrides: str) -> dict:
    """Prepare the sources and return stats.json's entry of the first."""
    run = TinyRun(folder, folder)
    prepare_data.main(run.argv(f"--data.sources={json.dumps(sources)}", *overrides))
    return json.loads((folder / "documents" / "stats.json").read_text())["sources"][sources[0]["name"]]


def read_texts(run: Path) -> list[str]:
    files = sorted((run / "documents").glob("*/*/*.parquet"))
    return [text for file in files for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]


def plan_of(units: list[Unit], **settings) -> ReadingPlan:
    source = Source(name="law", path="/texts", **settings)
    return ReadingPlan([source], {"law": Listing(units, Inventory(source))})


@pytest.mark.parametrize("workers", [2, pytest.param(16, marks=pytest.mark.long)])
def test_one_large_file_is_read_by_every_worker_and_any_number_writes_the_same(small_ranges, tmp_path, workers):
    write_lines(tmp_path / "law.jsonl")
    source = [{"name": "law", "path": str(tmp_path / "law.jsonl")}]
    for number in (1, workers):
        prepare(tmp_path / f"by_{number}", source, f"--data.workers={number}")
    records = [read_record(tmp_path / f"by_{number}" / "documents")["files"] for number in (1, workers)]
    assert records[0] == records[1]
    assert len(list((tmp_path / "by_1" / "documents" / "train" / "law").glob("*.parquet"))) == 8
    assert sorted(read_texts(tmp_path / "by_1")) == sorted(TEXTS)


def test_places_name_file_and_row_also_where_a_file_was_divided(small_ranges, tmp_path):
    write_lines(tmp_path / "texts" / "a.jsonl", TEXTS[:150])
    write_lines(tmp_path / "texts" / "b.jsonl", TEXTS[150:])
    with (tmp_path / "texts" / "a.jsonl").open("a") as file:
        file.write("{\n" + json.dumps({"text": "the last line " * 30}) + "\n")
    rows = [{"text": make_text(seed, 12)} for seed in range(400, 500)]
    pq.write_table(document_files.pa.Table.from_pylist(rows), tmp_path / "texts" / "c.parquet", row_group_size=7)
    prepare(tmp_path / "run", [{"name": "law", "path": str(tmp_path / "texts")}])
    texts = [TEXTS[0], TEXTS[149], "the last line " * 29 + "the last line", TEXTS[150], TEXTS[299]]
    texts += [rows[0]["text"], rows[99]["text"]]
    found = describe_documents(tmp_path / "run", map(document_id, texts))
    places = [tuple(place) for text in texts for place in found[document_id(text)]["places"]]
    expected = [("a.jsonl", 1), ("a.jsonl", 150), ("a.jsonl", 152), ("b.jsonl", 1), ("b.jsonl", 150)]
    expected += [("c.parquet", 1), ("c.parquet", 100)]
    assert places == [(f"{tmp_path}/texts/{name}", row) for name, row in expected]


def test_a_limit_takes_a_sample_of_the_whole_source_wherever_it_is(small_ranges, tmp_path):
    write_lines(tmp_path / "law.jsonl")
    shutil.copy(tmp_path / "law.jsonl", tmp_path / "elsewhere.jsonl")
    whole = sum(len(text.encode()) for text in TEXTS)
    limited = {"name": "law", "path": str(tmp_path / "law.jsonl"), "max_bytes": whole // 4}
    entry = prepare(tmp_path / "one", [limited])
    prepare(tmp_path / "two", [limited | {"path": str(tmp_path / "elsewhere.jsonl")}])
    read = read_texts(tmp_path / "one")
    assert sorted(read) == sorted(read_texts(tmp_path / "two"))
    size = sum(len(text.encode()) for text in read)
    assert whole // 4 <= size < whole // 4 + max(len(text.encode()) for text in TEXTS)
    quarters = {TEXTS.index(text) // 75 for text in read}
    assert quarters == {0, 1, 2, 3}, "not the first part of the file alone"
    dropped = entry["dropped"].get("max_bytes", {"bytes": 0})
    assert entry["bytes_in"] == size + dropped["bytes"] < whole // 2, "little more is read than is kept"
    card = (tmp_path / "one" / "documents" / "README.md").read_text()
    assert f"{whole // 4:,} bytes" in card and "chosen by a hash\nof their names" in card


def test_a_limit_that_is_more_than_the_source_takes_all_of_it(small_ranges, tmp_path):
    write_lines(tmp_path / "law.jsonl")
    entry = prepare(tmp_path / "run", [{"name": "law", "path": str(tmp_path / "law.jsonl"), "max_bytes": 10**9}])
    assert entry["documents_in"] == 300 and "max_bytes" not in entry["dropped"]


def test_of_a_file_that_cannot_be_divided_no_more_is_read_than_the_limit(tmp_path):
    write_lines(tmp_path / "law.json", TEXTS)  # small, so one unit
    size = len(TEXTS[0].encode())
    entry = prepare(tmp_path / "run", [{"name": "law", "path": str(tmp_path / "law.json"), "max_bytes": 20 * size}])
    assert 20 <= entry["documents_in"] <= 26


def test_a_copy_of_surplus_text_in_another_source_stays(small_ranges, tmp_path):
    write_lines(tmp_path / "law.jsonl")
    write_lines(tmp_path / "web.jsonl")
    law = {"name": "law", "path": str(tmp_path / "law.jsonl"), "max_bytes": 20_000}
    prepare(tmp_path / "run", [law, {"name": "web", "path": str(tmp_path / "web.jsonl")}])
    assert sorted(read_texts(tmp_path / "run")) == sorted(TEXTS)


def test_the_rounds_of_a_limited_source_end_when_the_text_is_enough_or_all_is_read():
    units = [Unit(f"/texts/{number}.parquet", size_bytes=MEGABYTE) for number in range(1000)]
    for text_per_byte in (3.0, 0.9, 0.05, 0.0):
        plan, read, rounds = plan_of(units, max_bytes=100 * MEGABYTE), 0, 0
        while tasks := plan.next_round({"law": int(read * text_per_byte)}):
            read += sum(unit.size_bytes for task in tasks for unit in task.units)
            rounds += 1
        enough = 100 * MEGABYTE / text_per_byte if text_per_byte else float("inf")
        assert read == min(1000 * MEGABYTE, read) and (read >= enough or read == 1000 * MEGABYTE)
        assert read <= 1.1 * enough and rounds <= 7
    assert plan_of(units).next_round({}) and plan_of([], max_bytes=9).next_round({}) == []


def test_the_tasks_and_bytes_that_are_expected_are_those_that_will_be_read():
    units = [Unit(f"/texts/{number}.parquet", size_bytes=10**9) for number in range(100)]
    assert expect(plan_of(units)) == {"law": (373, 100 * 10**9, 250e9)}
    limited = expect(plan_of(units, max_bytes=5 * 10**9))["law"]
    assert 2e9 <= limited.read_bytes < 2.2e9 and limited.text_bytes == 2.5 * limited.read_bytes


def test_the_order_of_a_listing_and_the_place_of_the_folder_change_no_sample():
    names = [f"{number}.txt" for number in range(200)]
    samples = []
    for folder, seed in (("/texts", 0), ("/texts", 1), ("/mnt/elsewhere", 2)):
        units = [Unit(f"{folder}/{name}", size_bytes=100) for name in random.Random(seed).sample(names, 200)]
        source = Source(name="law", path=folder, max_bytes=8000)
        plan = ReadingPlan([source], {"law": Listing(units, Inventory(source))})
        samples.append([Path(unit.path).name for task in plan.next_round({}) for unit in task.units])
    assert samples[0] == samples[1] == samples[2] and len(samples[0]) == 20


def test_tasks_are_of_like_size_and_at_most_one_a_unit():
    few = [Unit(f"{number}", size_bytes=10) for number in range(3)]
    assert [len(part) for part in share_out(few)] == [1, 1, 1]
    many = [Unit(f"{number:04d}", size_bytes=BYTES_PER_TASK // 64) for number in range(6400)]
    parts = share_out(many)
    assert len(parts) == 100 and {len(part) for part in parts} == {64}
    assert [unit for part in parts for unit in part] == many
    assert share_out([Unit("empty.txt")]) == [[Unit("empty.txt")]]


def test_a_task_reads_its_units_back_whatever_the_bytes_of_their_names(tmp_path):
    units = [Unit("/texts/caf\udce9.txt", size_bytes=3), Unit("a.jsonl", start=5, stop=9, size_bytes=20)]
    plan = plan_of(units)
    tasks = plan.next_round({})
    write_tasks(tmp_path, 7, tasks)
    found = [read_units(tmp_path, number) for number in range(7, 7 + len(tasks))]
    assert [unit for _, part in found for unit in part] == [unit for task in tasks for unit in task.units]


def test_files_roll_at_a_fixed_size_and_each_is_a_task_of_the_next_pass(monkeypatch, tmp_path):
    monkeypatch.setattr(document_files, "ROW_GROUP_BYTES", 1000)
    monkeypatch.setattr(document_files, "FILE_BYTES", 5000)
    rows = [Document(text, document_id(text), metadata={"source": "law", "date": None}) for text in TEXTS[:30]]
    write_documents(rows, 3, 9, tmp_path, first_task=4)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"00007-{number:03d}.parquet" for number in range(len(files))] and len(files) > 3
    found = [list(read_documents(None, rank, 99, tmp_path)) for rank in range(len(files))]
    assert [document.text for part in found for document in part] == TEXTS[:30]
    assert all(5000 <= sum(len(d.text) for d in part) < 7000 for part in found[:-1])
    assert list(read_documents(None, len(files), 99, tmp_path)) == []


def test_a_try_that_was_interrupted_with_other_tasks_is_not_resumed(tmp_path):
    work = prepare_data.resume_work(tmp_path / "work", "one")
    (work / "kept").write_text("")
    assert (prepare_data.resume_work(tmp_path / "work", "one") / "kept").exists()
    assert not (prepare_data.resume_work(tmp_path / "work", "two") / "kept").exists()
    (tmp_path / "work" / "identity").unlink()
    (work / "kept").write_text("")
    assert not (prepare_data.resume_work(tmp_path / "work", "two") / "kept").exists()


FEW_FILES = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import prepare_data
from sources import ranges
ranges.RANGE_BYTES = ranges.MIN_RANGE_BYTES = 3000
from corpus import reading_plan
reading_plan.BYTES_PER_TASK = 3000
prepare_data.main(sys.argv[1:])
"""


def test_many_tasks_need_few_open_files(tmp_path):
    write_lines(tmp_path / "law.jsonl")
    run = TinyRun(tmp_path, tmp_path / "run")
    source = json.dumps([{"name": "law", "path": str(tmp_path / "law.jsonl")}])
    passes = ['--data.near_duplicates={"n_grams": 5}', '--data.repeated_passages={"min_documents": 3}']
    command = [sys.executable, "-c", FEW_FILES, *run.argv(f"--data.sources={source}", *passes)]
    environment = {"PYTHONPATH": str(RECIPES), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((run.output_dir / "documents" / "train" / "law").glob("*.parquet"))) > 64
