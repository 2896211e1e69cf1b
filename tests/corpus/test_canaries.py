# SPDX-License-Identifier: Apache-2.0
"""Made-up records stand in the training text exactly as often as the recipe says, and nowhere else."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_run import TinyRun, write_tiny_texts

import prepare_data
from corpus.canaries import CANARIES, make_record, record_text
from recipe_config import RecipeError


def rows(run: Path, split: str) -> dict[str, dict]:
    table = pq.read_table(run / "documents" / split, partitioning=None)
    return {row["id"]: row for row in table.to_pylist()}


def test_records_are_planted_exactly_as_often_as_the_recipe_says_and_controls_never(tokenized_run, tmp_path):
    run = TinyRun(tokenized_run.texts, tmp_path / "run")
    prepare_data.main(run.argv('--data.canaries={"repetitions": [1, 40], "per_level": 5}'))
    canaries = json.loads((run.output_dir / "documents" / CANARIES).read_text())["canaries"]
    assert [canary["repetitions"] for canary in canaries] == [0] * 5 + [1] * 5 + [40] * 5
    assert {canary["source"] for canary in canaries} == {"law"}  # web is general
    texts = [record_text(canary) for canary in canaries]
    assert len(set(texts)) == 15
    planted, plain = rows(run.output_dir, "train"), rows(tokenized_run.output_dir, "train")
    whole = "\n".join(row["text"] for row in planted.values())
    assert [whole.count(text) for text in texts] == [canary["repetitions"] for canary in canaries]
    without = {
        document: "\n".join(line for line in row["text"].split("\n") if line not in texts)
        for document, row in planted.items()
    }
    assert without == {document: row["text"] for document, row in plain.items()}
    for split in ("validation", "test"):
        assert rows(run.output_dir, split) == rows(tokenized_run.output_dir, split)
    card = (run.output_dir / "documents" / "README.md").read_text()
    assert "5 for each of these numbers of repetitions: 1, 40." in card
    stats = json.loads((run.output_dir / "documents" / "stats.json").read_text())["sources"]["law"]
    own = [row["text"] for row in planted.values() if row["source"] == "law"]
    assert stats["kept"]["train"]["bytes"] == sum(len(text.encode()) for text in own)


def test_general_text_alone_has_no_place_for_records(tmp_path):
    write_tiny_texts(tmp_path / "texts")
    source = [{"name": "web", "path": str(tmp_path / "texts" / "web"), "domain": "general"}]
    run = TinyRun(tmp_path / "texts", tmp_path / "run")
    with pytest.raises(RecipeError, match="data.canaries: no source of a domain has training documents"):
        prepare_data.main(run.argv(f"--data.sources={json.dumps(source)}", "--data.canaries={}"))


def test_records_have_the_form_of_their_domain_and_are_the_same_each_time():
    medical = make_record("a seed", "medical")
    assert medical == make_record("a seed", "medical") != make_record("another", "medical")
    assert medical["before"].startswith("Patient ") and " mg once a day, record number " in medical["before"]
    assert len(medical["number"]) == 9 and medical["number"].isdigit()
    assert make_record("a seed", "chemistry")["before"].startswith("Customer ")
