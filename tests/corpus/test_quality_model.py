# SPDX-License-Identifier: Apache-2.0
"""The quality model: a source is filtered by good documents, the same way everywhere, and nothing held out decides."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_run import TinyRun, make_text

import prepare_data
import show_documents
from corpus import quality_model
from corpus.quality_model import choose_kept, passages
from recipe_config import RecipeError


SPLITS = ("train", "validation", "test")
MODEL = "--data.quality_model={good: [law], bad: web, keep_fraction: 0.4}"


def cooking(seed: int) -> str:
    choose = random.Random(seed).choice
    words = ["stir", "butter", "oven", "flour", "whisk", "slowly", "salt", "bake", "crust", "until", "golden"]
    return "\n".join(" ".join(choose(words) for _ in range(11)).capitalize() + "." for _ in range(40))


def write_texts(folder: Path, order: int = 0) -> Path:
    """Write 60 documents of law; and of the web 60 about law and 60 about cooking."""
    web = [make_text(seed) for seed in range(200, 260)] + [cooking(seed) for seed in range(60)]
    for name, texts in (("law", [make_text(seed) for seed in range(60)]), ("web", web)):
        random.Random(order).shuffle(texts)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [json.dumps({"text": text}) + "\n" for text in texts]
        for part in range(3 if order else 1):
            (folder / f"{name}-{part}.jsonl").write_text("".join(rows[part :: 3 if order else 1]))
    return folder


def prepare(folder: Path, *overrides: str, texts: Path | None = None) -> TinyRun:
    texts = texts or write_texts(folder / "texts")
    run = TinyRun(texts, folder / "run")
    sources = [{"name": name, "path": str(texts), "data_files": f"{name}-*.jsonl"} for name in ("law", "web")]
    settings = [f"--data.sources={json.dumps(sources)}", "--data.quality=null", "--data.decontamination=null"]
    prepare_data.main(run.argv(*settings, *overrides))
    return run


def documents(run: TinyRun, split: str, source: str) -> dict[str, str]:
    table = pq.read_table(run.output_dir / "documents" / split / source, partitioning=None)
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def stats(run: TinyRun) -> dict:
    return json.loads((run.output_dir / "documents" / "stats.json").read_text())


@pytest.fixture(scope="module")
def unfiltered(tmp_path_factory) -> TinyRun:
    return prepare(tmp_path_factory.mktemp("unfiltered"))


@pytest.fixture(scope="module")
def filtered(tmp_path_factory) -> TinyRun:
    return prepare(tmp_path_factory.mktemp("filtered"), MODEL)


def test_what_it_drops_is_shown_with_its_score(filtered):
    show_documents.main([str(filtered.output_dir), "--dropped", "quality_model", "--grep", "butter"])
    page = (filtered.output_dir / "documents.html").read_text()
    assert len(re.findall(r"score -?\d+\.\d{3}, where at least -?\d+\.\d{3} is kept", page)) == 10


def test_what_reads_like_the_good_documents_is_kept_and_the_rest_is_counted(filtered):
    kept = documents(filtered, "train", "web")
    assert len(kept) > 30 and not any("butter" in text.lower() for text in kept.values())
    entry = stats(filtered)["sources"]["web"]
    trained, dropped = entry["kept"]["train"], entry["dropped"]["quality_model"]
    assert 0.4 <= trained["bytes"] / (trained["bytes"] + dropped["bytes"]) < 0.43
    assert "quality_model" not in stats(filtered)["sources"]["law"]["dropped"]
    scores = pq.read_table(filtered.output_dir / "documents" / "quality_scores.parquet").to_pylist()
    assert {row["id"] for row in scores if row["kept"]} == set(kept)
    assert len(scores) == trained["documents"] + dropped["documents"]
    assert min(row["score"] for row in scores if row["kept"]) > max(row["score"] for row in scores if not row["kept"])


def test_held_out_text_stays_the_same_so_that_filters_can_be_compared_on_it(unfiltered, filtered):
    for split in ("validation", "test"):
        for source in ("law", "web"):
            assert documents(filtered, split, source) == documents(unfiltered, split, source)
    assert documents(filtered, "train", "law") == documents(unfiltered, "train", "law")


def test_nothing_held_out_is_learnt_from(filtered, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(quality_model, "train", lambda *_, sample, **__: seen.update(sample) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(tmp_path, MODEL, texts=filtered.texts)
    good, bad = ({name for name, is_good in seen.items() if is_good is side} for side in (True, False))
    assert good == set(documents(filtered, "train", "law"))
    held_out = {name for split in ("validation", "test") for name in documents(filtered, split, "web")}
    assert bad > set(documents(filtered, "train", "web")) and not bad & held_out


def test_the_scores_do_not_depend_on_workers_order_or_files(filtered, tmp_path):
    other = prepare(tmp_path, MODEL, "--data.workers=2", texts=write_texts(tmp_path / "texts", order=7))
    tables = [pq.read_table(run.output_dir / "documents" / "quality_scores.parquet") for run in (filtered, other)]
    first, second = (sorted(table.to_pylist(), key=lambda row: row["id"]) for table in tables)
    assert first == second
    assert stats(filtered)["quality_model"] == stats(other)["quality_model"]


def test_a_limit_on_training_bytes_counts_what_the_model_kept(filtered, tmp_path):
    kept = documents(filtered, "train", "web")
    limit = sum(len(text.encode()) for text in kept.values()) - 1
    sources = [{"name": name, "path": str(filtered.texts), "data_files": f"{name}-*.jsonl"} for name in ("law", "web")]
    sources[1]["max_training_bytes"] = limit
    run = prepare(tmp_path, MODEL, f"--data.sources={json.dumps(sources)}", texts=filtered.texts)
    fewer = documents(run, "train", "web")
    assert fewer == {name: text for name, text in kept.items() if name != min(kept)}


def test_the_card_says_how_the_model_was_trained_and_how_well_it_tells_documents_apart(filtered):
    model = stats(filtered)["quality_model"]
    assert model["good_documents"] == len(documents(filtered, "train", "law"))
    assert 0.5 < model["held_out_auc"] <= 1
    card = (filtered.output_dir / "documents" / "README.md").read_text().replace("\\", "")
    assert f"learnt from {model['good_documents']} good and {model['bad_documents']} other training documents" in card
    assert "| quality_model.keep_fraction | 0.4 |" in card
    assert "| left out: quality_model |" in card


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            "{good: [laws], bad: web, keep_fraction: 0.5}",
            "data.quality_model.good: no source 'laws'; there are law, web",
        ),
        ("{good: [law], bad: [wep], keep_fraction: 0.5}", "data.quality_model.bad: no source 'wep'"),
        ("{good: [law, web], bad: web, keep_fraction: 0.5}", "data.quality_model.bad: web cannot be good and bad"),
        ("{good: [], bad: web, keep_fraction: 0.5}", "data.quality_model.good"),
        ("{good: [law], bad: web, keep_fraction: 1.0}", "data.quality_model.keep_fraction"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_its_key(filtered, tmp_path, capsys, settings, message):
    with pytest.raises(SystemExit):
        prepare(tmp_path, f"--data.quality_model={settings}", texts=filtered.texts)
    assert message in capsys.readouterr().err


def test_too_few_good_documents_are_refused_with_their_number(filtered, tmp_path, monkeypatch):
    monkeypatch.setattr(quality_model, "MIN_DOCUMENTS", 80)
    with pytest.raises(
        RecipeError, match=r"data.quality_model.good: law leaves 4\d training documents to learn from; 80"
    ):
        prepare(tmp_path, MODEL, texts=filtered.texts)


def test_a_long_text_is_read_in_passages_from_beginning_to_end():
    assert passages("") == [] and passages("short") == ["short"]
    text = "".join(f"{place:06}" for place in range(10_000))
    pieces = passages(text)
    assert len(pieces) == 8 and {len(piece) for piece in pieces} == {2_000}
    assert text.startswith(pieces[0]) and text.endswith(pieces[-1])


def test_equal_scores_are_kept_by_id_and_at_least_one_document_of_each_source():
    scores = np.zeros(5, dtype=quality_model.SCORE)
    scores["id"], scores["source"], scores["num_bytes"] = [b"c", b"a", b"b", b"e", b"d"], [0, 0, 0, 1, 1], 10
    assert choose_kept(scores, 0.34).tolist() == [False, True, True, False, True]
    assert choose_kept(scores, 0.01).tolist() == [False, True, False, False, True]
