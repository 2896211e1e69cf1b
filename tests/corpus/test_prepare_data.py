# SPDX-License-Identifier: Apache-2.0
"""From sources to splits: nothing lost without a reason, nothing in two splits, the same bytes every time."""

import gzip
import json
from datetime import date
from itertools import permutations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_run import TinyRun, make_text, write_tiny_texts

import prepare_data
from corpus.document_families import find_families
from intervals import family_sums
from recipe_config import RecipeError
from sources import ranges


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
        ("law", "not a JSON object but a number"),
        (
            "law",
            "extract_text gives list, not text; the fields are text (a list that holds a text); set text_field: text",
        ),
    ]
    assert found[0]["position"].endswith("law.jsonl:41: byte 10")
    assert found[4]["source"] == "web" and "cut.jsonl.gz: row" in found[4]["position"]
    assert found[4]["reason"].startswith("damaged or cut short") and len(found) == 5
    assert stats(run, "web")["documents_in"] > 31, "what came before the cut is read"


def test_a_large_parquet_file_that_is_cut_short_is_quarantined_once_and_the_rest_is_kept(run, monkeypatch):
    path = run.texts / "web" / "cut.parquet"
    pq.write_table(pa.table({"text": [make_text(seed) for seed in range(200, 230)]}), path, row_group_size=3)
    path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(ranges, "RANGE_BYTES", path.stat().st_size // 3)
    prepare_data.main(run.argv())
    lines = (run.output_dir / "documents" / "quarantine.jsonl").read_text().splitlines()
    (found,) = [json.loads(line) for line in lines]
    assert "cut.parquet" in found["position"] and found["reason"].startswith("damaged or cut short")
    assert stats(run, "web")["documents_in"] == 31


def test_what_is_not_read_is_in_the_table_before_work_starts_and_in_stats_and_data_card(run, capsys):
    web = run.texts / "web"
    (web / "old.WPD").write_bytes(bytes(50))
    (web / ".hidden.txt").write_text(make_text(1))
    (web / "windows.txt").write_bytes(
        ("Größere Änderungen sind dem Vermieter schriftlich anzuzeigen. " * 9).encode("cp1252")
    )
    (web / "mac.txt").write_bytes(
        ("Größere Änderungen sind dem Vermieter schriftlich anzuzeigen. " * 9).encode("mac-roman")
    )
    prepare_data.main(run.argv("--dry_run"))
    table = capsys.readouterr().out
    assert not run.output_dir.exists(), "a dry run writes nothing"
    assert "NOT READ: no reader; save it as .docx, such as" in table and "NOT READ: hidden or temporary" in table
    prepare_data.main(run.argv())
    printed = capsys.readouterr().out
    listed, _, estimated = table.partition("prepare: law: 1 tasks read ")
    assert printed.startswith(listed) and "about 0.00 GB of text" in estimated and "GB of disk" in estimated
    assert "prepare: web: dropped of 32 documents: 1 unreadable\n" in printed
    assert "prepare: web:   1: not UTF-8; perhaps mac-roman: convert it with iconv -t utf-8 -f mac-roman" in printed
    assert f"({web}/mac.txt: byte 2)" in printed
    assert "note: 1 documents were converted from windows-1252" in printed
    found = stats(run, "web")
    assert {(row["ending"], row["files"], row["not_read"]) for row in found["files"]} == {
        (".txt", 32, None),
        (".wpd", 1, "no reader; save it as .docx"),
        ("", 1, "hidden or temporary"),
    }
    assert found["converted"] == {"windows-1252": 1} and sum(n["documents"] for n in found["reasons"].values()) == 1
    card = (run.output_dir / "documents" / "README.md").read_text()
    assert "| .wpd | 1 | 50 | not read: no reader; save it as .docx |" in card
    assert (
        "1 documents were converted to UTF-8 from windows-1252." in card
        and "- 1: not UTF-8; perhaps mac-roman" in card
    )
    assert str(run.texts) not in card and "old.WPD" not in (run.output_dir / "documents" / "stats.json").read_text()


def test_a_run_that_would_leave_out_more_than_it_reads_stops_before_anything_is_written(run):
    (run.texts / "web" / "case.wpd").write_bytes(bytes(1_000_000))
    with pytest.raises(RecipeError, match=r"web: .* 1,000,000 bytes would be left out.*ignore: \[\".wpd\"\]"):
        prepare_data.main(run.argv())
    assert not list(run.output_dir.glob("*"))
    source = {"name": "web", "path": str(run.texts / "web"), "ignore": [".wpd"]}
    prepare_data.main(run.argv(f"--data.sources={json.dumps([source])}"))
    assert stats(run, "web")["files"][1]["not_read"] == "named in ignore"
    del source["ignore"]
    prepare_data.main(run.argv(f"--data.sources={json.dumps([source])}"))  # what is read is the same: nothing to do


def test_stats_quote_nothing_of_a_document_that_could_not_be_read(run):
    dates = ["the day of Acme v Beta", "Acme's day", 'Acme\'s "day"', '"Acme" day']
    append_rows(run, *(row(make_text(70 + n), date=date) for n, date in enumerate(dates)), b'"Acme"')
    prepare_data.main(only_law(run, "--data.splits.future_from='2030-01-01'"))
    assert {reason: n["documents"] for reason, n in stats(run, "law")["reasons"].items()} == {
        "date: '...' is not a day, month or year such as 2023-05-31, 2023-05 or 2023": 4,
        'not a JSON object but a text; write it as {"text": ...}': 1,
    }
    assert "Acme" in (run.output_dir / "documents" / "quarantine.jsonl").read_text()


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


REDACT = """
def extract_text(example, source):
    return example["text"]


def redact(text, source):
    if "Ann Secret" in text:
        raise LookupError("no model for 'Ann Secret'")
    if "Bob Odd" in text:
        return ["no text"]
    if "Cy Gone" in text:
        return None
    return text.replace("Dora Pell", f"[NAME {source}]")
"""


def test_the_recipes_redact_changes_what_the_patterns_leave_and_its_failures_are_quarantined(run, tmp_path):
    (tmp_path / "data.py").write_text(REDACT)
    names = ("Ann Secret", "Bob Odd", "Cy Gone", "Dora Pell")
    append_rows(run, *(row(f"{name}, name@firm.org. {make_text(500 + place)}") for place, name in enumerate(names)))
    append_rows(run, row("Dora Pell, too short"), row("Ann Secret, too short"))
    overrides = [f"--data.extract_text={tmp_path / 'data.py'}", "--data.personal_data={profile: general}"]
    prepare_data.main(only_law(run, *overrides))
    texts = [document["text"] for split in SPLITS for document in documents(run, split)]
    changed = [text for text in texts if "[NAME law], email@example.com." in text]
    assert len(changed) == 1 and len(texts) == 41
    assert not any(name in text for text in texts for name in names)
    found = stats(run, "law")
    assert found["redacted"] == 1
    assert {reason: count["documents"] for reason, count in found["dropped"].items()} == {
        "redact": 1,
        "too_short": 2,
        "unreadable": 2,
    }
    samples = (run.output_dir / "dropped_samples.jsonl").read_text()
    assert samples.count("[NAME law], too short") == 1 and samples.count('"kept"') == 41
    assert not any(name in samples for name in (*names, "name@firm.org"))
    quarantined = (run.output_dir / "documents" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in quarantined] == [
        "redact raises LookupError: no model for 'Ann Secret'",
        "redact gives list, not text",
    ]
    assert "Ann Secret" not in json.dumps(found), "statistics may be published"
    card = (run.output_dir / "documents" / "README.md").read_text()
    assert "`redact` of the recipe's `data.py` then changed 1 documents of law." in card
    (tmp_path / "data.py").write_text(REDACT.replace("[NAME", "[PERSON"))
    with pytest.raises(RecipeError, match="out of date: extract_text_sha256 was"):
        prepare_data.main(only_law(run, *overrides))


def test_a_redact_that_is_no_function_is_refused_before_work_starts(run, tmp_path):
    (tmp_path / "data.py").write_text("def extract_text(example, source):\n    return ''\n\n\nredact = 'names'\n")
    with pytest.raises(RecipeError, match=r"redact in .*data\.py is no function; write redact\(text, source\)"):
        prepare_data.main(only_law(run, f"--data.extract_text={tmp_path / 'data.py'}"))


def test_a_row_that_extract_text_cannot_take_is_quarantined_and_a_source_of_such_rows_stops_the_run(run, tmp_path):
    (tmp_path / "data.py").write_text("def extract_text(example, source):\n    return example['body']\n")
    with pytest.raises(RecipeError, match=r"law: no document is left \(40 unreadable\)"):
        prepare_data.main(only_law(run, f"--data.extract_text={tmp_path / 'data.py'}"))
    append_rows(run, *(json.dumps({"body": make_text(seed)}).encode() for seed in range(200, 220)))
    prepare_data.main(only_law(run, f"--data.extract_text={tmp_path / 'data.py'}"))
    lines = (run.output_dir / "documents" / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == 40 and json.loads(lines[0])["reason"] == "extract_text raises KeyError: 'body'"


def test_data_py_may_import_modules_beside_it_which_decide_the_documents_and_define_dataclasses(run, tmp_path):
    (tmp_path / "own_cleaning.py").write_text("from own_words import WORD\n\n\ndef tidy(t):\n    return t + WORD\n")
    (tmp_path / "own_words.py").write_text("WORD = ' tenant'\n")
    (tmp_path / "data.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom own_cleaning import tidy\n\n\n"
        "@dataclass\nclass Row:\n    text: str\n\n\n"
        "def extract_text(example, source):\n    return Row(tidy(example['text'])).text\n"
    )
    argv = only_law(run, f"--data.extract_text={tmp_path / 'data.py'}")
    prepare_data.main(argv)
    for name in ("own_words", "own_cleaning"):
        helper = tmp_path / f"{name}.py"
        before = helper.read_text()
        helper.write_text(before + "# edited\n")
        with pytest.raises(RecipeError, match=rf"documents is out of date: extract_text_helpers.{name}.py was"):
            prepare_data.main(argv)
        helper.write_text(before)
    prepare_data.main(argv)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("def extract(example, source):\n    return ''\n", r"data.py has no function extract_text\(example, source\)"),
        ("extract_text = 'text'\n", "has no function extract_text"),
        ("import no_such_module_here\n", "data.py cannot be imported: ModuleNotFoundError: No module named 'no_such"),
        ("1 / 0\n", "data.py cannot be imported: ZeroDivisionError"),
        ("def extract_text(:\n", "data.extract_text: .*data.py cannot be imported: SyntaxError: invalid syntax"),
    ],
)
def test_a_data_py_that_cannot_work_is_refused_by_its_name_before_anything_is_read(content, reason, run, tmp_path):
    (tmp_path / "data.py").write_text(content)
    with pytest.raises(RecipeError, match=reason):
        prepare_data.main(only_law(run, f"--data.extract_text={tmp_path / 'data.py'}"))
    assert not list(run.output_dir.glob(".documents*"))


def test_text_is_normalised_and_refused_for_its_language_and_quality_as_the_recipe_says(run):
    french = "Le tribunal rejette la demande du locataire, qui devra payer les loyers et les frais de l'instance. " * 5
    append_rows(run, row(french), row("buy now! " * 200), row("A\u200bB \u00a0 " + make_text(300)))
    prepare_data.main(only_law(run, "--data.languages={keep: [en]}", "--data.quality={profile: professional}"))
    dropped = stats(run, "law")["dropped"]
    assert dropped.pop("language_fr")["documents"] == 1
    assert len(dropped) == 1 and sum(count["documents"] for count in dropped.values()) == 1, dropped
    everything = [document["text"] for split in SPLITS for document in documents(run, split)]
    assert any(text.startswith("AB ") for text in everything)


def test_lines_that_the_quality_rules_remove_are_not_counted_also_where_personal_data_is_left(run):
    append_rows(run, *(row(f"Read our cookie policy here.\n{make_text(seed)}") for seed in range(500, 505)))
    rules = "--data.quality={profile: professional, overrides: {c4_cut_policy_lines: true}}"
    prepare_data.main(only_law(run, rules, "--data.personal_data=null"))
    texts = [document["text"] for split in SPLITS for document in documents(run, split)]
    assert len(texts) == 45 and not any("cookie" in text for text in texts)
    assert stats(run, "law")["bytes_in"] == sum(len(text.encode()) for text in texts)


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


def test_text_that_is_all_of_repeated_passages_stops_the_run_with_the_key_to_change(run):
    passages = [make_text(seed, sentences=10) for seed in range(3)]
    rows = [row("\n\n".join(order)) for order in permutations(passages)]
    (run.texts / "law.jsonl").write_bytes(b"\n".join(rows))
    with pytest.raises(RecipeError, match="data.repeated_passages: no document is left: .* 2 documents share"):
        prepare_data.main(only_law(run, "--data.repeated_passages={min_documents: 2}"))


def test_documents_of_the_future_are_a_split_of_their_own_in_whatever_form_their_date_is(run, capsys):
    dated = [row(make_text(seed), date=f"{2015 + seed % 10}-06-30") for seed in range(200, 240)]
    dated += [row(make_text(240), date="20240105"), row(make_text(241), date=2023), row(make_text(242), date=None)]
    undated = [row(make_text(243), date="31/05/2024"), row(make_text(244), date="2023-02-30")]
    (run.texts / "law.jsonl").write_bytes(b"\n".join([*dated, *undated]))
    days = pa.array([date(2024, 3, 1), date(2014, 3, 1)])
    pq.write_table(pa.table({"text": [make_text(250), make_text(251)], "date": days}), run.texts / "days.parquet")
    both = [{"name": "law", "path": str(run.texts), "data_files": ["law.jsonl", "days.parquet"]}]
    arguments = run.argv(f"--data.sources={json.dumps(both)}")
    prepare_data.main([*arguments, "--data.splits.future_from='2023-01-01'"])
    assert "note: law: 1 of 45 documents have no date; of these, later ones than" in capsys.readouterr().out
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


def test_held_out_documents_name_their_family_for_the_intervals_of_evaluation(run):
    texts = [make_text(seed, sentences=30) for seed in range(700, 730)]
    append_rows(run, *(row(f"{text}\nversion {version}") for text in texts for version in range(3)))
    prepare_data.main(only_law(run, "--data.family_containment=0.3"))
    columns = ["id", "source", "text", "date"]
    assert all(list(document) == columns for document in documents(run, "train"))
    for split in ("validation", "test"):
        found = documents(run, split)
        assert all(list(document) == [*columns, "family"] for document in found)
        versions = [document for document in found if "\nversion " in document["text"]]
        beginnings = {document["text"].partition("\nversion ")[0] for document in versions}
        assert beginnings and len({document["family"] for document in versions}) == len(beginnings) < len(versions)
    scored = [{"family": document["family"], "bytes": len(document["text"])} for document in found]
    assert len(family_sums(scored, "bytes")) < len(scored)


def test_without_families_held_out_documents_have_the_columns_of_the_others(run):
    prepare_data.main(only_law(run))
    assert all("family" not in document for split in SPLITS for document in documents(run, split))


def test_families_are_closed_under_containment():
    a, b, c = (make_text(seed, sentences=30) for seed in (1, 2, 3))
    labels = find_families([a, f"{a}\n{b}", b, c, "too few words"], containment=0.3)
    assert labels[0] == labels[1] == labels[2]
    assert len({labels[0], labels[3], labels[4]}) == 3


def test_a_finished_stage_is_skipped_refused_when_its_source_changed_and_made_anew_when_asked(run, capsys):
    prepare_data.main(run.argv())
    prepare_data.main(run.argv("--data.workers=2", "--data.dropped_samples_bytes=0"))
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
    with pytest.raises(RecipeError, match="empty: path .* no file to read .the folder is empty"):
        prepare_data.main(run.argv(f"--data.sources={json.dumps(empty)}"))
    with pytest.raises(RecipeError, match=r"law: no document is left \(40 too_short\)"):
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


def test_rows_with_another_field_are_named_with_it_and_read_by_it(run, capsys):
    (run.texts / "law.jsonl").write_bytes(
        b"".join(json.dumps({"body": make_text(n)}).encode() + b"\n" for n in range(30))
    )
    with pytest.raises(
        RecipeError, match=r"\(30 no_text\); 30: .* the fields are body .a text.; set text_field: body"
    ):
        prepare_data.main(only_law(run))
    source = {"name": "law", "path": str(run.texts / "law.jsonl"), "text_field": "body"}
    prepare_data.main(run.argv(f"--data.sources={json.dumps([source])}"))
    assert {d["text"] for split in SPLITS for d in documents(run, split)} == {make_text(n) for n in range(30)}
    append_rows(run, row(make_text(40)), json.dumps({"body": {"de": "x"}}).encode())
    capsys.readouterr()
    prepare_data.main(run.argv(f"--data.sources={json.dumps([source])}", "--overwrite"))
    found = stats(run, "law")["reasons"]
    assert set(found) == {
        "no field body; the fields are text (a text); set text_field: text",
        "field body holds a mapping with the fields de; set text_field: body.de",
    }
    assert "prepare: law: dropped of 32 documents: 2 unreadable" in capsys.readouterr().out


def test_markers_in_the_text_are_counted_with_a_note_and_gone_where_the_source_divides_there(run, capsys):
    texts = [make_text(n) for n in range(30)]
    (run.texts / "law.txt").write_text("\n<|endoftext|>\n".join(texts))
    source = {"name": "law", "path": str(run.texts / "law.txt")}
    message = r"1 distinct documents are left .*A text file is one document.*set document_separator"
    with pytest.raises(RecipeError, match=message):
        prepare_data.main(run.argv(f"--data.sources={json.dumps([source])}"))
    (run.texts / "web" / "marked.txt").write_text(f"{texts[0]}</s>{texts[1]}</s>")
    prepare_data.main(run.argv())
    assert stats(run, "web")["markers"] == {"</s>": {"documents": 1, "occurrences": 2}}
    assert "web: note: 1 documents have </s> in their text, 2 times" in capsys.readouterr().out
    source["document_separator"] = "<|endoftext|>"
    prepare_data.main(run.argv(f"--data.sources={json.dumps([source])}", "--overwrite"))
    assert {d["text"] for split in SPLITS for d in documents(run, split)} == set(texts)
    assert stats(run, "law")["markers"] == {}
