# SPDX-License-Identifier: Apache-2.0
"""From sources to splits: nothing lost without a reason, nothing in two splits, the same bytes every time."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tiny_run import RECIPES, TinyRun, make_text, write_tiny_texts

import prepare_data
from corpus.document_families import find_families
from corpus.source_readers import Unreadable, list_units, read_unit, source_fingerprint
from recipe_config import RecipeError, Source
from run_folder import read_record


SPLITS = ("train", "validation", "test")


@pytest.fixture
def run(tmp_path) -> TinyRun:
    """A run that has nothing but its sources."""
    write_tiny_texts(tmp_path / "texts")
    return TinyRun(tmp_path / "texts", tmp_path / "run")


def only_law(run: TinyRun, *overrides: str) -> list[str]:
    source = [{"name": "law", "path": str(run.texts / "law.jsonl")}]
    return run.argv(f"--data.sources={json.dumps(source)}", *overrides)


def documents(run: TinyRun, split: str) -> list[dict]:
    return pq.read_table(run.output_dir / "documents" / split, partitioning=None).to_pylist()


def stats(run: TinyRun, source: str) -> dict:
    return json.loads((run.output_dir / "documents" / "stats.json").read_text())["sources"][source]


def append_rows(run: TinyRun, *lines: bytes) -> None:
    with (run.texts / "law.jsonl").open("ab") as file:
        file.writelines(line + b"\n" for line in lines)


def row(text: str, **fields) -> bytes:
    return json.dumps({"text": text, **fields}).encode()


def test_no_document_is_in_two_splits_and_none_is_lost(tokenized_run):
    ids = {split: [document["id"] for document in documents(tokenized_run, split)] for split in SPLITS}
    everything = [name for split in SPLITS for name in ids[split]]
    assert len(everything) == len(set(everything)) == 70
    assert all(ids[split] for split in SPLITS)
    texts = {document["text"] for split in SPLITS for document in documents(tokenized_run, split)}
    assert texts == {make_text(seed) for seed in range(40)} | {make_text(seed, 25) for seed in range(100, 130)}


def test_every_document_is_kept_or_dropped_under_one_reason(run):
    kept = make_text(0)
    append_rows(
        run,
        row("too short"),
        row(kept),
        row(kept),
        b'{"text": "\xff\xfe"}',
        b'{"text": "\\ud800' + b"x" * 300 + b'"}',
        b'{"text": ',
        b'["a list"]',
        b'{"body": "no text"}',
        row("   "),
        b'{"text": 5}',
        b'{"text": "nul \\u0000' + b"x" * 300 + b'"}',
    )
    prepare_data.main(only_law(run))
    found = stats(run, "law")
    assert {reason: count["documents"] for reason, count in found["dropped"].items()} == {
        "exact_duplicate": 2,
        "no_text": 2,
        "too_short": 1,
        "unreadable": 6,
    }
    assert found["documents_in"] == 51 == 11 + sum(kept["documents"] for kept in found["kept"].values())
    parts = [*found["dropped"].values(), *found["kept"].values()]
    assert found["bytes_in"] == sum(part["bytes"] for part in parts)


def test_what_cannot_be_read_is_quarantined_with_its_place_and_reason_and_the_rest_is_kept(run):
    append_rows(run, b'{"text": "\xff"}', b"{", b"3", b'{"text": ["a"]}')
    packed = gzip.compress((run.texts / "law.jsonl").read_bytes())
    (run.texts / "web" / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    prepare_data.main(run.argv())
    lines = (run.output_dir / "documents" / "quarantine.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [(entry["source"], entry["reason"]) for entry in found[:4]] == [
        ("law", "not UTF-8"),
        ("law", "broken JSON"),
        ("law", "not a JSON object"),
        ("law", "extract_text gives list, not text"),
    ]
    assert found[0]["position"].endswith("law.jsonl:41: byte 10")
    assert found[4]["source"] == "web" and "cut.jsonl.gz: row" in found[4]["position"]
    assert found[4]["reason"].startswith("damaged or cut short") and len(found) == 5
    assert stats(run, "web")["documents_in"] > 31, "what came before the cut is read"


def test_a_row_longer_than_the_bound_is_refused_and_reading_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("corpus.source_readers.MAX_ROW_BYTES", 100)
    rows = [row("first"), row("x" * 1000), row("last")]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(rows))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(b"\n".join(rows)))
    (tmp_path / "c.txt").write_bytes(b"x" * 101)
    source = Source(name="a", path=str(tmp_path))
    found = [example for unit in list_units(source) for example in read_unit(source, unit)]
    shown = [example.reason if isinstance(example, Unreadable) else example["text"] for example in found]
    too_long = "longer than 100 bytes"
    assert shown == ["first", too_long, "last", "first", too_long, "last", too_long]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "b.jsonl.zst", "c.parquet", "d.zip"])
def test_a_truncated_file_is_unreadable_and_not_the_end_of_the_run(tmp_path, name):
    lines = b"".join(row(make_text(seed)) + b"\n" for seed in range(20))
    path = tmp_path / name
    if name == "c.parquet":
        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines.splitlines()]), path)
    elif name == "d.zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("rows.jsonl", lines)
    else:
        path.write_bytes(gzip.compress(lines) if name.endswith("gz") else zstandard.compress(lines))
    content = bytearray(path.read_bytes())
    if name == "d.zip":  # the index stands at the end: damage what it points at
        content[200:220] = bytes(20)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) * 2 // 3])
    source = Source(name="a", path=str(path))
    found = list(read_unit(source, list_units(source)[0]))
    assert isinstance(found[-1], Unreadable) and "damaged or cut short" in found[-1].reason


def test_near_duplicates_are_dropped_and_different_documents_are_not(run):
    long = make_text(1, sentences=80)
    longer = long.replace("court", "tribunal", 1)
    append_rows(run, row(long), row(longer))
    append_rows(run, *(row(make_text(seed, sentences=80)) for seed in (2, 3, 4)))
    prepare_data.main(only_law(run, "--data.near_duplicates={}", "--data.min_document_bytes=3000"))
    assert stats(run, "law")["dropped"]["near_duplicate"]["documents"] == 1
    found = [d["text"] for split in SPLITS for d in documents(run, split)]
    assert longer in found and long not in found, "the better copy stays"
    assert any(text == make_text(2, sentences=80) for text in found)


def test_personal_data_is_replaced_counted_and_dropped_as_the_recipe_says(run):
    mail, number = "clerk@courts.state.tx.us", "123-45-6789"
    append_rows(run, row(f"{make_text(60)}\nWrite to {mail}."), row(f"{make_text(61)}\nHer SSN is {number}."))
    prepare_data.main(only_law(run, "--data.personal_data={profile: legal, actions: {ssn: drop}}"))
    texts = [d["text"] for split in SPLITS for d in documents(run, split)]
    assert not any(mail in text or number in text for text in texts)
    assert stats(run, "law")["personal_data"] == {"email": 1, "ssn": 1}
    assert stats(run, "law")["dropped"]["personal_data"]["documents"] == 1
    assert sum("Write to " in text for text in texts) == 1


def test_a_row_that_extract_text_cannot_take_is_quarantined_and_a_source_of_such_rows_stops_the_run(run, tmp_path):
    (tmp_path / "data.py").write_text("def extract_text(example, source):\n    return example['body']\n")
    with pytest.raises(RecipeError, match=r"law: no document is left of it \(40 unreadable\)"):
        prepare_data.main(only_law(run, f"--data.extract_text={tmp_path / 'data.py'}"))
    append_rows(run, *(json.dumps({"body": make_text(seed)}).encode() for seed in range(200, 220)))
    prepare_data.main(only_law(run, f"--data.extract_text={tmp_path / 'data.py'}"))
    lines = (run.output_dir / "documents" / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == 40 and json.loads(lines[0])["reason"] == "extract_text raises KeyError: 'body'"


def test_text_is_normalised_and_refused_for_its_language_and_quality_as_the_recipe_says(run):
    french = "Le tribunal rejette la demande du locataire, qui devra payer les loyers et les frais de l'instance. " * 5
    append_rows(run, row(french), row("buy now! " * 200), row("A\u200bB \u00a0 " + make_text(300)))
    prepare_data.main(only_law(run, "--data.languages={keep: [en]}", "--data.quality={profile: professional}"))
    dropped = stats(run, "law")["dropped"]
    assert dropped.pop("language_fr")["documents"] == 1
    assert len(dropped) == 1 and sum(count["documents"] for count in dropped.values()) == 1, dropped
    everything = [document["text"] for split in SPLITS for document in documents(run, split)]
    assert any(text.startswith("AB ") for text in everything)


def test_repeated_passages_are_cut_and_what_becomes_equal_by_that_is_kept_once(run):
    notice = "This notice is printed at the top of every page of the reporter, whatever the case may be."
    bodies = [make_text(seed) for seed in range(200, 230)]
    rows = [row(f"{notice}\n\n{body}") for body in bodies] + [row(bodies[0])]
    (run.texts / "law.jsonl").write_bytes(b"\n".join(rows))
    prepare_data.main(only_law(run, "--data.repeated_passages={min_documents: 20}"))
    found = stats(run, "law")
    assert found["cut"] == {"documents": 30, "bytes": 30 * len(f"{notice}\n\n")}
    assert found["dropped"] == {"exact_duplicate": {"documents": 1, "bytes": len(bodies[0])}}
    assert {document["text"] for split in SPLITS for document in documents(run, split)} == set(bodies)
    listed = json.loads((run.output_dir / "documents" / "repeated_passages.json").read_text())
    assert listed["most_frequent"] == [{"documents": 30, "text": notice}]


def test_documents_of_the_future_are_a_split_of_their_own_in_whatever_form_their_date_is(run):
    dated = [row(make_text(seed), date=f"{2015 + seed % 10}-06-30") for seed in range(200, 240)]
    dated += [row(make_text(240), date="20240105"), row(make_text(241), date=2023), row(make_text(242), date=None)]
    undated = [row(make_text(243), date="31/05/2024"), row(make_text(244), date="2023-02-30")]
    (run.texts / "law.jsonl").write_bytes(b"\n".join([*dated, *undated]))
    days = pa.array([date(2024, 3, 1), date(2014, 3, 1)])
    pq.write_table(pa.table({"text": [make_text(250), make_text(251)], "date": days}), run.texts / "days.parquet")
    both = [{"name": "law", "path": str(run.texts), "data_files": ["law.jsonl", "days.parquet"]}]
    arguments = run.argv(f"--data.sources={json.dumps(both)}")
    prepare_data.main([*arguments, "--data.splits.future_from='2023-01-01'"])
    future = {document["date"] for document in documents(run, "future")}
    assert future == {"2023-06-30", "2024-06-30", "2024-01-05", "2023", "2024-03-01"}
    assert all((document["date"] or "") < "2023" for split in SPLITS for document in documents(run, split))
    found = stats(run, "law")
    assert found["kept"]["future"]["documents"] == 11 and found["dated_documents"] == 44
    assert (found["first_date"], found["last_date"]) == ("2014-03-01", "2024-06-30")
    refused = (run.output_dir / "documents" / "quarantine.jsonl").read_text().splitlines()
    assert found["dropped"]["unreadable"]["documents"] == len(refused) == 2
    assert "'31/05/2024' is not a day, month or year" in refused[0] and "'2023-02-30'" in refused[1]
    prepare_data.main([*arguments, "--overwrite"])
    assert stats(run, "law")["dropped"] == {}, "without a future a date matters to nobody"


def test_documents_near_to_those_of_an_earlier_run_are_dropped(run, tmp_path):
    prepare_data.main(only_law(run))
    rows = [row(make_text(seed)) for seed in (*range(35, 40), *range(200, 230))]
    (run.texts / "law.jsonl").write_bytes(b"\n".join(rows))
    earlier = f"--data.near_duplicates={{against: [{run.output_dir / 'documents'}]}}"
    later = TinyRun(run.texts, tmp_path / "later")
    prepare_data.main(only_law(later, earlier))
    assert stats(later, "law")["dropped"]["near_duplicate_of_earlier"]["documents"] >= 5
    texts = {document["text"] for split in SPLITS for document in documents(later, split)}
    assert not texts & {make_text(seed) for seed in range(35, 40)}


def test_documents_that_hold_a_benchmark_item_are_dropped_and_the_rest_of_the_overlap_is_reported(run, tmp_path):
    words = "whether the tenant who paid nothing for nine years may still call the barn his own is an open question"
    (tmp_path / "benchmarks").mkdir()
    item = {"id": "b-1", "context": "", "choices": [f"{words}.", "no"], "gold": 0}
    other = {
        "id": "b-2",
        "context": "",
        "choices": ["a wholly different sentence of more than eight words", "no"],
        "gold": 0,
    }
    lines = json.dumps(item) + "\n" + json.dumps(other) + "\n"
    (tmp_path / "benchmarks" / "barns.jsonl").write_text(lines)
    append_rows(run, row(f"{make_text(50)}\n{words.upper().replace(' ', '  ')}!"))
    decontaminated = only_law(run, f"--data.decontamination.benchmarks={tmp_path / 'benchmarks'}")
    prepare_data.main(decontaminated)
    assert stats(run, "law")["dropped"]["benchmark_overlap"]["documents"] == 1
    assert not any("NINE" in d["text"] for split in SPLITS for d in documents(run, split))
    report = json.loads((run.output_dir / "documents" / "decontamination.json").read_text())
    assert "b-1" in json.dumps(report) and report != {}
    (tmp_path / "benchmarks" / "barns.jsonl").write_text(json.dumps(other) + "\n")
    with pytest.raises(RecipeError, match="decontamination.benchmarks.barns was"):
        prepare_data.main(decontaminated)
    with pytest.raises(RecipeError, match="data.decontamination: nowhere: no item"):
        prepare_data.main(only_law(run, "--data.decontamination.benchmarks=nowhere", "--overwrite"))


def test_of_equal_documents_the_one_of_the_source_named_first_stays(run):
    (run.texts / "web" / "aaa.txt").write_text(make_text(3))
    prepare_data.main(run.argv())
    assert stats(run, "web")["dropped"]["exact_duplicate"]["documents"] == 1
    assert "exact_duplicate" not in stats(run, "law")["dropped"]


def test_families_stay_together(run):
    shared = make_text(500, sentences=30)
    append_rows(run, *(row(f"{shared}\n{make_text(seed, sentences=12)}") for seed in range(600, 612)))
    prepare_data.main(only_law(run, "--data.family_containment=0.3"))
    splits = [split for split in SPLITS for d in documents(run, split) if d["text"].startswith(shared[:100])]
    assert len(splits) == 12 and len(set(splits)) == 1
    assert stats(run, "law")["families"] <= 41


def test_families_are_closed_under_containment():
    a, b, c = (make_text(seed, sentences=30) for seed in (1, 2, 3))
    labels = find_families([a, f"{a}\n{b}", b, c, "too few words"], containment=0.3)
    assert labels[0] == labels[1] == labels[2]
    assert len({labels[0], labels[3], labels[4]}) == 3


def test_one_worker_and_two_write_the_same_bytes_in_any_directory_and_hash_seed(run, tmp_path, monkeypatch):
    prepare_data.main(run.argv("--data.near_duplicates={}"))
    other = TinyRun(run.texts, tmp_path / "other")
    arguments = other.argv("--data.near_duplicates={}", "--data.workers=2")
    subprocess.run(
        [sys.executable, RECIPES / "prepare_data.py", *arguments],
        env=os.environ | {"PYTHONHASHSEED": "7", "LC_ALL": "C"},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    records = [read_record(r.output_dir / "documents") for r in (run, other)]
    assert records[0]["files"] == records[1]["files"] and len(records[0]["files"]) > 6


def test_a_killed_preparation_goes_on_and_gives_the_same_bytes(run, tmp_path):
    prepare_data.main(run.argv("--data.near_duplicates={}"))
    other = TinyRun(run.texts, tmp_path / "other")
    arguments = other.argv("--data.near_duplicates={}")
    command = [sys.executable, RECIPES / "prepare_data.py", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(other.output_dir.glob(".documents.*/work/near/new")):
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (other.output_dir / "documents").exists()
    prepare_data.main(arguments)
    assert read_record(other.output_dir / "documents")["files"] == read_record(run.output_dir / "documents")["files"]
    assert [path.name for path in other.output_dir.iterdir()] == ["documents"]


def test_a_finished_stage_is_skipped_refused_when_its_source_changed_and_made_anew_when_asked(run, capsys):
    prepare_data.main(run.argv())
    prepare_data.main(run.argv("--data.workers=2"))
    assert "nothing to do" in capsys.readouterr().out
    append_rows(run, row(make_text(77)))
    with pytest.raises(RecipeError, match=r"documents is out of date: sources.0.fingerprint was .* --overwrite"):
        prepare_data.main(run.argv())
    with pytest.raises(RecipeError, match="min_document_bytes was 200, is 100"):
        prepare_data.main(run.argv("--data.min_document_bytes=100"))
    prepare_data.main(run.argv("--overwrite"))
    assert stats(run, "law")["documents_in"] == 41


def test_a_source_that_is_not_there_or_too_small_stops_the_run_by_name(run):
    missing = [{"name": "gone", "path": str(run.texts / "gone")}, {"name": "none", "path": str(run.texts)}]
    with pytest.raises(RecipeError) as error:
        prepare_data.main(run.argv(f"--data.sources={json.dumps([s | {'share': 0.5} for s in missing])}"))
    assert "gone: path" in str(error.value) and "no such file or folder" in str(error.value)
    (run.texts / "empty").mkdir()
    empty = [{"name": "empty", "path": str(run.texts / "empty")}]
    with pytest.raises(RecipeError, match="empty: path .* no file of type"):
        prepare_data.main(run.argv(f"--data.sources={json.dumps(empty)}"))
    with pytest.raises(RecipeError, match=r"law: no document is left of it \(40 too_short\)"):
        prepare_data.main(only_law(run, "--data.min_document_bytes=1_000_000"))
    (run.texts / "law.jsonl").write_bytes(row(make_text(0)) + b"\n" + row(make_text(1)))
    with pytest.raises(RecipeError, match="law: 2 distinct documents are left after cleaning"):
        prepare_data.main(only_law(run))


def test_a_limit_on_a_source_stops_reading_at_the_document_that_reaches_it(run):
    limited = [{"name": "law", "path": str(run.texts / "law.jsonl"), "max_bytes": 10_000}]
    prepare_data.main(run.argv(f"--data.sources={json.dumps(limited)}"))
    sizes = [len(make_text(seed).encode()) for seed in range(40)]
    expected = next(k for k in range(40) if sum(sizes[:k]) >= 10_000)
    assert stats(run, "law")["documents_in"] == expected


def write_each_kind(folder) -> dict[str, bytes]:
    """Write the same two rows in each format that is read; return format -> name."""
    folder.mkdir()
    rows = [{"text": "first", "n": 1}, {"text": "2024-01-01", "n": 2}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    frames = [zstandard.compress(line + b"\n") for line in lines.splitlines()]
    (folder / "c.jsonl.zst").write_bytes(b"".join(frames))
    (folder / "d.json").write_text(json.dumps(rows))
    (folder / "e.json").write_text(json.dumps({"one": rows[0], "two": rows[1]}))
    pq.write_table(pa.Table.from_pylist(rows), folder / "f.parquet")
    return folder


def test_every_format_gives_the_same_rows_and_dates_stay_text(tmp_path):
    source = Source(name="a", path=str(write_each_kind(tmp_path / "kinds")))
    units = list_units(source)
    assert len(units) == 6
    for unit in units:
        rows = list(read_unit(source, unit))
        assert [(row["text"], row["n"]) for row in rows] == [("first", 1), ("2024-01-01", 2)], unit


def test_files_inside_a_wheel_are_read_without_unpacking_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as archive:
        archive.writestr("p/texts/b.LICENSE", "second \N{SECTION SIGN}")
        archive.writestr("p/texts/a.LICENSE", "first")
        archive.writestr("p/code.py", "no text")
    source = Source(name="a", path=str(tmp_path / "some.whl"), data_files="p/texts/*.LICENSE")
    rows = [row for unit in list_units(source) for row in read_unit(source, unit)]
    assert rows == [
        {"text": "first", "path": "p/texts/a.LICENSE"},
        {"text": "second \N{SECTION SIGN}", "path": "p/texts/b.LICENSE"},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.whl"]


def test_a_file_that_is_not_text_is_unreadable_with_its_position(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"fine\xff")
    (tmp_path / "bad.json").write_bytes(b"{")
    source = Source(name="a", path=str(tmp_path))
    found = [row for unit in list_units(source) for row in read_unit(source, unit)]
    assert [(type(row), row.reason) for row in found] == [(Unreadable, "broken JSON"), (Unreadable, "not UTF-8")]
    assert found[1].position.endswith("bad.txt: byte 4")


def test_a_fingerprint_follows_content_not_time_or_place(tmp_path):
    folder = tmp_path / "a"
    write_each_kind(folder)
    before = source_fingerprint(Source(name="a", path=str(folder)))
    os.utime(folder / "a.jsonl", (1, 1))
    assert source_fingerprint(Source(name="a", path=str(folder))) == before
    shutil.move(folder, tmp_path / "b")
    assert source_fingerprint(Source(name="a", path=str(tmp_path / "b"))) == before
    (tmp_path / "b" / "a.jsonl").write_text('{"text": "other"}\n')
    assert source_fingerprint(Source(name="a", path=str(tmp_path / "b"))) != before
