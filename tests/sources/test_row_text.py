# SPDX-License-Identifier: Apache-2.0
"""The text of rows: by the name of its field, from columns, and divided at separators; else the fields are named."""

import json
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipe_config import Source
from recipe_loading import load_recipe
from sources import row_checks
from sources.readers import read_unit
from sources.row_checks import Unreadable
from sources.row_text import describe_fields, set_text
from sources.separators import LOOKAHEAD_CHARACTERS, compile_separator, count_markers, split_text
from sources.units import list_units


def row_text(row: dict, **settings) -> str | None:
    """Return the text of a row, or why it has none."""
    found = set_text(row, Source(name="a", path="x", **settings))
    return found["text"] if isinstance(found, dict) else found


def read_all(path: Path, **settings) -> list[str | None]:
    source = Source(name="a", path=str(path), **settings)
    examples = [example for unit in list_units(source) for example in read_unit(source, unit)]
    return [example.reason if isinstance(example, Unreadable) else example["text"] for example in examples]


CHAT = [{"role": "user", "content": "May I sublet?"}, {"role": "assistant", "content": "With consent."}]


@pytest.mark.parametrize(
    ("row", "field", "expected"),
    [
        ({"content": "text"}, "content", "text"),
        ({"text": "old", "content": "new"}, "content", "new"),
        ({"body": {"content": "text"}}, "body.content", "text"),
        ({"body.content": "flat", "body": {"content": "nested"}}, "body.content", "flat"),
        ({"text": ["one", "two", None, ""]}, "text", "one\n\ntwo"),
        ({"pages": [{"text": "one", "n": 1}, {"text": "two", "n": 2}]}, "pages", "one\n\ntwo"),
        ({"pages": [{"body": "one"}, {"body": "two"}]}, "pages.body", "one\n\ntwo"),
        ({"pages": [["one", "two"], ["three"]]}, "pages", "one\n\ntwo\n\nthree"),
        ({"messages": CHAT}, "messages", "user: May I sublet?\n\nassistant: With consent."),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, "conversations", "human: Hi"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image"}]}]},)
        + ("messages", "user: Hi"),
        ({"raw": "für".encode()}, "raw", "für"),
        ({"raw": ("Die Kündigung bedarf der Schriftform. " * 3).encode("cp1252")},)
        + ("raw", "Die Kündigung bedarf der Schriftform. " * 3),
        ({"body": None}, "body", None),
        ({"body": {"other": "text"}}, "body.content", None),
        ({"body": []}, "body", None),
        ({"body": "text"}, "body.content", None),
    ],
)
def test_the_text_is_taken_from_the_field_that_the_source_names(row, field, expected):
    assert row_text(row, text_field=field) == expected


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"other": "b"}, "body.de", "no field body.de; the fields are other (a text); set text_field: other"),
        (
            {"id": 7, "body": "text"},
            "id",
            "field id holds a number; the fields are id (a number), body (a text); set text_field: body",
        ),
        ({"id": True}, "id", "field id holds true or false; the fields are id (true or false)"),
        (
            {"body": {"lang": "de", "content": "a long text"}},
            "body",
            "field body holds a mapping with the fields lang, content; set text_field: body.content",
        ),
        (
            {"ids": [1, 2]},
            "ids",
            "field ids holds a list that holds a number; the fields are ids (a list that holds a number)",
        ),
        (
            {"raw": b"\xff"},
            "raw",
            "field raw holds bytes that are not UTF-8; perhaps cp1251; the fields are raw (bytes)",
        ),
        (
            {"turns": [{"speech": "one"}]},
            "turns",
            "field turns holds a list that holds a mapping; set text_field: turns.speech",
        ),
    ],
)
def test_a_field_that_holds_no_text_is_named_with_what_it_holds_and_a_proposal(row, field, reason):
    assert row_text(row, text_field=field) == reason


def test_columns_are_joined_by_a_template():
    template = "{title}\n\n{body.text} ({year})"
    assert row_text({"title": "A", "body": {"text": "B"}, "year": 2020}, text_template=template) == "A\n\nB (2020)"
    assert row_text({"title": None, "body": {"text": "B"}, "year": 2020}, text_template=template) == "\n\nB (2020)"
    assert row_text({"title": "{body.text}", "body": {"text": "B"}}, text_template=template) == "{body.text}\n\nB ()"
    assert row_text({"other": "A"}, text_template=template) is None
    assert row_text({"title": {"de": "A"}}, text_template=template) == (
        "field title holds a mapping with the fields de; set text_field: title.de"
    )


@pytest.mark.parametrize(
    ("row", "described"),
    [
        ({"path": "x", "content": "a text", "id": 3}, "content (a text), id (a number); set text_field: content"),
        ({"title": "short", "full": "much longer text"}, "title (a text), full (a text); set text_field: full"),
        (
            {"doc": {"meta": {}, "body": "text"}},
            "doc (a mapping with the fields meta, body); set text_field: doc.body",
        ),
        ({"messages": CHAT}, "messages (a conversation or list of paragraphs); set text_field: messages"),
        ({"text": b"bytes"}, "text (bytes); set text_field: text"),
        ({"id": 1, "score": None, "note": ""}, "id (a number)"),
        ({}, "all null"),
    ],
)
def test_the_fields_of_a_row_are_described_with_the_likeliest_one(row, described):
    assert describe_fields(row) == f"the fields are {described}"


def test_rows_of_every_format_have_their_text_where_the_source_says(tmp_path):
    rows = [{"body": {"content": f"text {number}"}} for number in range(3)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("a file has no fields")
    texts = [f"text {number}" for number in range(3)]
    assert read_all(tmp_path, text_field="body.content") == [*texts * 3, "a file has no fields"]


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({"text": "all of it"}, {}),
        ({"body": {"content": "all of it"}}, {"text_field": "body.content"}),
        ({"first": "all", "last": "it"}, {"text_template": "{first} of {last}"}),
    ],
)
def test_a_record_with_a_text_is_one_row_whatever_mappings_it_has_beside_it(tmp_path, row, settings):
    others = {name: {"text": "no row"} for name in ("court", "judge", "meta", "source")}
    (tmp_path / "a.json").write_text(json.dumps(row | others))
    (tmp_path / "b.json").write_text(json.dumps({str(number): row for number in range(3)}))
    assert read_all(tmp_path, **settings) == ["all of it"] * 4


def test_tables_are_read_by_their_columns_whatever_divides_them_and_whatever_encodes_them(tmp_path):
    quoted = 'id,"the text"\r\n1,"one, ""two""\nthree"\r\n\r\n2,four\r\n'
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + quoted.encode())
    (tmp_path / "b.csv").write_bytes(
        "id;the text\n1;Größere Änderungen sind dem Vermieter anzuzeigen, 1\n".encode("cp1252")
    )
    (tmp_path / "c.TSV").write_bytes("id\tthe text\n1\tmit Tabulator, \N{SECTION SIGN} 5\n".encode("utf-16"))
    long = "x" * 200_000  # over what the csv library takes by default
    (tmp_path / "d.csv").write_text(f"id,the text,\n1,{long},\n")
    expected = ['one, "two"\nthree', "four", "Größere Änderungen sind dem Vermieter anzuzeigen, 1"]
    expected += ["mit Tabulator, \N{SECTION SIGN} 5", long]
    assert read_all(tmp_path, text_field="the text") == expected
    assert read_all(tmp_path / "a.csv", text_template="{id}: {the text}")[1] == "2: four"


def test_damaged_rows_of_a_table_are_quarantined_and_the_others_kept(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("id,text\n1,one\n2\n3,a,b\n4,two\n")
    one, short, long, two = read_all(tmp_path, text_field="text")
    assert (one, two) == ("one", "two")
    assert short == "1 values, where the first line names 2 columns" and long.startswith("3 values")
    (tmp_path / "a.csv").write_text("text,text\n1,one\n")
    assert read_all(tmp_path, text_field="text") == ["two columns have one name: text, text"]
    (tmp_path / "a.csv").write_text("")
    assert read_all(tmp_path, text_field="text") == []
    monkeypatch.setattr(row_checks, "MAX_ROW_BYTES", 1000)
    (tmp_path / "a.csv").write_text('id,text\n1,one\n2,"' + "never closed\n" * 1000)
    one, rest = read_all(tmp_path, text_field="text")
    assert one == "one" and rest.startswith("damaged table: field larger than field limit")


@pytest.mark.parametrize("end", ["", "\n", "\n4,four\n\n5,five\n"])
def test_a_quotation_mark_that_is_not_closed_makes_no_document_of_all_the_rows_behind_it(tmp_path, end):
    (tmp_path / "a.csv").write_text('id,text\n1,"one\nand more"\n\n2,two\n3,"three' + end)
    source = Source(name="a", path=str(tmp_path / "a.csv"), text_field="text")
    *before, last = [row for unit in list_units(source) for row in read_unit(source, unit)]
    assert [row["text"] for row in before] == ["one\nand more", "two"]
    assert last.position == f"{tmp_path}/a.csv: line 6" and last.reason.startswith("a quotation mark is not closed")
    (tmp_path / "a.csv").write_text('id,"text\n1,one\n2,two\n')
    (only,) = read_all(tmp_path, text_field="text")
    assert only.startswith("a quotation mark is not closed")
    (tmp_path / "a.csv").write_text('id,text\n1,one\n2,"two"')
    assert read_all(tmp_path, text_field="text") == ["one", "two"]


def test_a_quotation_mark_that_a_later_row_seems_to_close_costs_these_rows_alone(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"one ""and""\nmore"\n2,"two\n3,"three"\n4,"four"\n5,he said "hi"\n')
    source = Source(name="a", path=str(tmp_path / "a.csv"), text_field="text")
    one, joined, four, five = [row for unit in list_units(source) for row in read_unit(source, unit)]
    assert [row["text"] for row in (one, four, five)] == ['one "and"\nmore', "four", 'he said "hi"']
    assert joined.position == f"{tmp_path}/a.csv: lines 4 to 5" and joined.reason.startswith("a quotation mark is not")


def test_a_file_that_is_a_whole_corpus_is_divided_at_its_separator(tmp_path):
    documents = [f"Case No. {number}\nfacts of {number}\n" for number in range(5)]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(documents))
    assert read_all(tmp_path, document_separator="<|endoftext|>") == documents
    (tmp_path / "a.txt").write_bytes("-----\r\n".join(documents).encode("utf-16"))
    assert read_all(tmp_path, document_separator="/^-{3,}$/")[0].strip() == documents[0].strip()
    assert len(read_all(tmp_path, document_separator="/^-{3,}$/")) == 5
    (tmp_path / "a.txt").write_text("".join(documents))
    assert read_all(tmp_path, document_separator=r"/^(?=Case No\. \d+$)/") == documents
    assert len(read_all(tmp_path)) == 1


def test_a_field_is_divided_too_and_its_other_fields_stay(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "<s>one</s><s> two</s>", "date": "2020"}))
    source = Source(name="a", path=str(tmp_path), text_field="body", document_separator="/</?s>/")
    (unit,) = list_units(source)
    found = [(example["text"], example["date"]) for example in read_unit(source, unit)]
    assert found == [("one", "2020"), (" two", "2020")]


@pytest.mark.parametrize("separator", ["\n\n==\n\n", "/\n{3,}/", "/^=+$/", "/^(?=# )/", "/(?<=\\.)\n--\n/"])
def test_a_text_is_divided_alike_in_pieces_of_any_size(separator):
    choose = random.Random(0)
    parts = ["# a heading\n", "words.\n", "\n\n", "==\n\n", ".\n--\n", "====\n", "x" * LOOKAHEAD_CHARACTERS]
    text = "".join(choose.choice(parts) for _ in range(400))
    pattern = compile_separator(separator)
    starts = [0, *(match.end() for match in pattern.finditer(text))]
    ends = [*(match.start() for match in pattern.finditer(text)), len(text)]
    whole = [text[start:end] for start, end in zip(starts, ends, strict=True) if text[start:end].strip()]
    assert len(whole) > 10
    for size in (1 + LOOKAHEAD_CHARACTERS // 7, 3 * LOOKAHEAD_CHARACTERS, len(text)):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert list(split_text(pieces, pattern, 10**9)) == whole


def test_of_a_divided_text_a_document_over_the_bound_is_refused_and_the_others_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(row_checks, "MAX_ROW_BYTES", 5_000_000)
    with (tmp_path / "a.txt").open("w") as file:
        for part in ("first", "x" * 12_000_000, "third", "y" * 4_000_000):
            file.write(f"{part}\n===\n")
    first, refused, third, last = read_all(tmp_path, document_separator="\n===\n")
    assert (first, refused, third, len(last)) == ("first", "longer than 5,000,000 bytes", "third", 4_000_000)
    assert read_all(tmp_path) == ["longer than 5,000,000 bytes, the most of one document; set document_separator"]


def test_markers_are_counted_and_other_text_is_not():
    assert count_markers("a<|endoftext|>b<|endoftext|></s><s>[EOS]") == {
        "<|endoftext|>": 2,
        "</s>": 1,
        "<s>": 1,
        "[EOS]": 1,
    }
    assert count_markers("a < b, [1] and <span> are text, <system> too") == {}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"text_field": "a", "text_template": "{a}"}, "text_template: cannot be set together with text_field"),
        ({"text_template": "body"}, "text_template: names no field in braces"),
        ({"document_separator": "/(/"}, "document_separator: not a regular expression"),
        ({"document_separator": "/x*/"}, "document_separator: matches nothing at all"),
        ({"document_separator": ""}, "document_separator: matches nothing at all"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(settings, problem):
    from tiny_run import RECIPES

    sources = json.dumps([{"name": "a", "path": "x", **settings}])
    with pytest.raises(ValueError, match=re.escape(problem)):
        load_recipe([RECIPES / "custom" / "base.yaml"], [f"--data.sources={sources}"])
