# SPDX-License-Identifier: Apache-2.0
"""The index finds every place of every passage, as a search of all the text would."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_run import make_text

from atomic_files import write_json
from corpus.document_files import DOCUMENT_SCHEMA, document_id
from provenance import text_index
from provenance.text_index import STRIDE, build_index


def write_documents(run, texts: dict[str, list[str]]) -> None:
    """Write a stage's output as far as the index reads it."""
    files = {}
    for source, documents in texts.items():
        path = run / "documents" / "train" / source / "00000.parquet"
        path.parent.mkdir(parents=True)
        rows = [{"id": document_id(text), "source": source, "text": text, "date": None} for text in documents]
        pq.write_table(pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA), path)
        files[path.relative_to(run / "documents").as_posix()] = {"bytes": path.stat().st_size, "sha256": ""}
    write_json(
        run / "documents" / "stage.json",
        {"format": 1, "settings": {}, "inputs": {}, "sha256": json.dumps(texts), "files": files},
    )


def every_place(texts: dict[str, list[str]], passage: bytes) -> list[tuple[str, str, int]]:
    found = []
    for source, documents in texts.items():
        for text in documents:
            data = text.encode()
            found += [
                (document_id(text), source, start) for start in range(len(data)) if data.startswith(passage, start)
            ]
    return sorted(found)


def longest_spans(texts: dict[str, list[str]], text: bytes, least: int) -> list[tuple[int, int]]:
    """Return the spans by trying every passage."""
    data = [document.encode() for documents in texts.values() for document in documents]
    found, last = [], 0
    for begin in range(len(text)):
        end = begin
        while end < len(text) and any(text[begin : end + 1] in document for document in data):
            end += 1
        if end - begin >= least and end > last:
            found.append((begin, end))
            last = end
    return found


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(text_index, "SHARD_BYTES", 700)


def test_every_place_of_random_passages_is_found_in_all_shards(tmp_path, small_shards):
    choose = random.Random(1)
    texts = {
        source: ["".join(choose.choices("ab \u00fc\uac00", k=choose.randint(1, 300))) for _ in range(12)]
        for source in ("law", "web")
    }
    write_documents(tmp_path, texts)
    index = build_index(tmp_path)
    assert len(index.shards) > 3
    for _ in range(200):
        document = choose.choice(texts[choose.choice(("law", "web"))]).encode()
        start = choose.randrange(len(document))
        passage = document[start : start + choose.randint(STRIDE, 40)]
        if len(passage) >= STRIDE:
            places = every_place(texts, passage)
            assert index.count(passage) == len(places)
            assert sorted(index.find(passage, 10**6)) == places
    assert not index.holds(b"x" * STRIDE)


def test_spans_are_the_longest_passages_that_stand_in_a_document(tmp_path, small_shards):
    choose = random.Random(2)
    texts = {"law": ["".join(choose.choices("ab", k=choose.randint(20, 120))) for _ in range(10)]}
    write_documents(tmp_path, texts)
    index = build_index(tmp_path)
    for least in (STRIDE, 12):
        for _ in range(20):
            text = "".join(choose.choices("ab", k=90)).encode() + texts["law"][3][5:70].encode()
            assert index.spans(text, least) == longest_spans(texts, text, least)


def test_a_span_longer_than_what_is_looked_up_first_is_found_whole(tmp_path):
    text = make_text(1)
    write_documents(tmp_path, {"law": [make_text(2), text]})
    assert len(text) > 2 * text_index.WINDOW
    assert build_index(tmp_path).spans(f"@{text}@".encode(), STRIDE) == [(1, 1 + len(text))]


def test_no_passage_runs_from_one_document_into_the_next(tmp_path):
    write_documents(tmp_path, {"law": ["the first document ends", "the second one begins"]})
    index = build_index(tmp_path)
    assert index.spans(b"the first document endsthe second one begins", STRIDE) == [(0, 23), (23, 44)]


def test_a_stopped_index_continues_and_one_of_other_documents_is_rebuilt(tmp_path, small_shards, monkeypatch):
    texts = {"law": [make_text(seed, sentences=8) for seed in range(6)]}
    write_documents(tmp_path, texts)
    sort, sorted_shards = text_index.divsufsort, []

    def stop_at_third(text):
        sorted_shards.append(text)
        if len(sorted_shards) == 3:
            raise KeyboardInterrupt
        return sort(text)

    monkeypatch.setattr(text_index, "divsufsort", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path)
    index = build_index(tmp_path)
    assert len(sorted_shards) == len(index.shards) + 1  # the third one twice
    assert index.count(texts["law"][5].encode()) == 1
    build_index(tmp_path)
    assert len(sorted_shards) == len(index.shards) + 1

    (tmp_path / "documents" / "train" / "law" / "00000.parquet").unlink()
    (tmp_path / "documents" / "train" / "law").rmdir()
    write_documents(tmp_path, {"law": ["another text of the same run folder"]})
    assert build_index(tmp_path).holds(b"another text")
    assert not build_index(tmp_path).holds(texts["law"][5].encode())


def test_the_index_takes_at_most_8_bytes_a_token(tmp_path):
    texts = {"law": [make_text(seed) for seed in range(50)]}
    write_documents(tmp_path, texts)
    build_index(tmp_path)
    size = sum(path.stat().st_size for path in (tmp_path / "trace" / "index").rglob("*.bin"))
    num_bytes = sum(len(text.encode()) for text in texts["law"])
    assert size < 1.55 * num_bytes  # a token of English has 4 to 5 bytes
