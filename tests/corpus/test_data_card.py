# SPDX-License-Identifier: Apache-2.0
"""The data card: what it says of licences, losses, personal data and benchmarks, and that no text breaks out of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from datatrove.data import Document
from huggingface_hub import metadata_load
from ruamel.yaml import YAML
from tiny_run import RECIPES

from corpus.data_card import LICENCE_KINDS, SAMPLE_CHARACTERS, choose_samples, licence_kind, write_data_card
from corpus.document_files import write_documents
from recipe_config import Recipe
from recipe_loading import load_recipe


HOSTILE = (
    "---\nlicense: mit\n---\n# heading\n<script>alert(1)</script><!-- | a | b |\n|---|---| {{ recipe }} {% raw %} "
    "```\n``` `code` ~~~ [a](javascript:x) ![i](http://evil.example/x.png) www.evil.example \u202egnp.exe\u2066 "
    "\x1b[31m\0 &lt;b&gt; $x$"
)
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def load(folder: Path, licences: dict[str, str | None], *overrides: str) -> Recipe:
    sources = [
        {"name": name, "path": str(folder / f"{name}.jsonl"), "domain": "legal", "license": licence}
        for name, licence in licences.items()
    ]
    settings = [f"--data.sources={json.dumps(sources)}", *overrides]
    return load_recipe([RECIPES / "custom" / "base.yaml"], settings)


def counted(documents: int) -> dict:
    return {"documents": documents, "bytes": 100 * documents}


def stats_of(recipe: Recipe, **entry: object) -> dict:
    plain = {"revision": None, "documents_in": 50, "bytes_in": 5000, "families": None, "personal_data": {}}
    plain |= {"dropped": {"too_short": counted(8)}, "kept": {split: counted(14) for split in SPLITS}, **entry}
    return {
        "sources": {source.name: plain for source in recipe.data.sources},
        "unchecked": "evaluation.tasks names none",
    }


def report(**tasks: int) -> dict:
    """Return a decontamination.json in which so many items of each task still overlap."""
    removed = {"cases": counted(3)}
    return {
        "settings": {"min_overlap_fraction": 0.5, "ngram_words": 13, "sha256": dict.fromkeys(tasks, "0" * 64)},
        "removed": removed,
        "tasks": {
            name: {"items": 118, "checkable": 110, "removed": removed, "overlapping_items": left + 2}
            | {"not_checkable": {"too_short": ["a"] * 5, "template": ["b"] * 3}}
            | {"overlapping_items_after_removal": left}
            for name, left in tasks.items()
        },
    }


def write_split(folder: Path, source: str, texts: list[str], split: str = "train") -> None:
    rows = [Document(text=text, id=f"{index:032x}", metadata={"source": source}) for index, text in enumerate(texts)]
    (folder / split / source).mkdir(parents=True)
    write_documents(rows, 0, 1, folder / split / source)


def card_of(folder: Path, recipe: Recipe, stats: dict | None = None, decontamination: dict | None = None) -> str:
    folder.mkdir(exist_ok=True)
    write_data_card(recipe, folder, stats or stats_of(recipe), decontamination)
    return (folder / "README.md").read_text()


# --- licences


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        (None, "unknown"),
        ("", "unknown"),
        ("see the website", "unknown"),
        ("CC BY 4.0 for the collection; each text is its author's, read from the package", "unknown"),
        ("MIT, and the companies hold the copyright", "unknown"),
        ("not public domain", "unknown"),
        ("by article", "unknown"),
        ("CC BY 4.0, MIT or our own, by article", "unknown"),
        ("public domain in the world", "unknown"),
        ("CC BY-NC-ND 4.0", "no derivatives"),
        ("CC BY-ND 3.0", "no derivatives"),
        ("cc-by-nc-sa-4.0", "non-commercial"),
        ("Creative Commons Attribution-NonCommercial 4.0 International", "non-commercial"),
        ("CC BY-SA", "share-alike"),
        ("GPL-2.0-or-later", "share-alike"),
        ("ODbL 1.0", "share-alike"),
        ("CC BY 4.0", "attribution"),
        ("ODC-By 1.0", "attribution"),
        ("Apache License, Version 2.0", "attribution"),
        ("BSD-3-Clause", "attribution"),
        ("MIT", "attribution"),
        ("Public Domain", "public domain"),
        ("public domain in the US", "public domain"),
        ("Public domain in the United States", "public domain"),
        ("US Public Domain", "public domain"),
        ("CC0 1.0", "public domain"),
        ("CC0-1.0 or CC BY-SA 4.0", "share-alike"),
        ("CC BY, CC BY-SA, CC0 or Public Domain, by article", "share-alike"),  # of medical/base.yaml
        ("CC BY 4.0 and a licence of our own", "unknown"),
    ],
)
def test_a_licence_is_of_the_strictest_kind_it_names_and_unknown_where_it_says_more(statement, kind):
    assert licence_kind(statement) == kind


def test_the_strictest_licence_of_the_sources_is_that_of_the_whole(tmp_path):
    licences = {"cases": "Public Domain", "web": "ODC-By 1.0", "wiki": "CC BY-SA 4.0"}
    for index, (kind, license) in enumerate(
        (("public domain", "other"), ("attribution", "odc-by"), ("share-alike", "cc-by-sa-4.0"))
    ):
        chosen = dict(list(licences.items())[: index + 1])
        card = card_of(tmp_path / "card", load(tmp_path, chosen))
        assert f"is **{kind}** ({list(chosen)[-1]})" in card
        assert metadata_load(tmp_path / "card" / "README.md")["license"] == license
    card = card_of(tmp_path / "card", load(tmp_path, licences | {"mine": "ask me"}))
    assert "is **unknown** (mine)" in card and "This is not legal advice" in card
    assert metadata_load(tmp_path / "card" / "README.md")["license_name"] == "unknown"


# --- what it shows


def test_every_loss_is_shown_under_its_reason_with_what_it_was_of_the_text(tmp_path):
    dropped = {
        "language:fr": counted(4),
        "near_duplicate": counted(3),
        "repeated_passage": {"documents": 0, "bytes": 250},
    }
    recipe = load(tmp_path, {"cases": "Public Domain"})
    card = card_of(tmp_path / "card", recipe, stats_of(recipe, dropped=dropped, families=31))
    for line in (
        "| read | 50 | 5,000 | 100.0 % |",
        "| left out: language:fr | 4 | 400 | 8.0 % |",
        "| left out: near\\_duplicate | 3 | 300 | 6.0 % |",
        "| removed from documents that are kept: repeated\\_passage | 0 | 250 | 5.0 % |",
        "| kept: train | 14 | 1,400 | 28.0 % |",
        "31 families",
        "| min\\_document\\_bytes | 200 |",
        "| quality | off |",
    ):
        assert line in card
    assert str(tmp_path) not in card and "data.py" not in card


def test_a_split_of_later_text_and_the_dates_of_a_source_are_shown(tmp_path):
    recipe = load(tmp_path, {"cases": "Public Domain", "web": None})
    stats = stats_of(recipe)
    dated = {"dated_documents": 1234, "first_date": "1999-01", "last_date": "2024-02-29"}
    stats["sources"]["cases"] = stats["sources"]["cases"] | dated
    stats["sources"]["cases"]["kept"] = stats["sources"]["cases"]["kept"] | {"future": counted(5)}
    card = card_of(tmp_path / "card", recipe, stats)
    assert "| future | 5 | 500 | scored at the end; later than all other text |" in card
    assert "| 1999-01 to 2024-02-29 (1,234 documents) |" in card and "| not known |" in card
    splits = [entry["split"] for entry in metadata_load(tmp_path / "card" / "README.md")["configs"][0]["data_files"]]
    assert splits == ["train", "validation", "test", "future"]


def test_families_that_later_documents_divide_are_shown(tmp_path):
    recipe = load(tmp_path, {"cases": "Public Domain"})
    kept = {split: counted(10) for split in (*SPLITS, "future")}
    card = card_of(tmp_path, recipe, stats_of(recipe, kept=kept, families=31, families_in_train_and_future=4))
    assert "31 families that share passages; each family is in one split, but for its documents in `future`" in card
    assert "4 families have some there and some in `train`." in card


def test_personal_data_is_shown_by_kind_with_what_was_done(tmp_path):
    chosen = "--data.personal_data={profile: general, actions: {card: drop, docket: leave}}"
    recipe = load(tmp_path, {"cases": "Public Domain"}, chosen)
    card = card_of(tmp_path / "card", recipe, stats_of(recipe, personal_data={"email": 1234, "docket": 7}))
    for line in ("| email | replace | 1,234 |", "| card | drop | 0 |", "| docket | leave | 7 |"):
        assert line in card
    assert "Personal data was not searched for" in card_of(
        tmp_path / "card", load(tmp_path, {"cases": None}, "--data.personal_data=null")
    )


def test_benchmarks_are_shown_with_what_is_left_and_otherwise_said_to_be_unchecked(tmp_path):
    recipe = load(tmp_path, {"cases": "Public Domain"})
    card = card_of(tmp_path / "card", recipe, decontamination=report(legal_sense=4))
    assert "3 of cases (300 bytes)" in card and "50.0 %" in card
    assert "| legal\\_sense | 118 | 110 | 5 | 3 | 6 | 3 | 4 |" in card
    card = card_of(tmp_path / "card", recipe)
    assert "not checked against any benchmark: evaluation.tasks names none" in card


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("common-pile/usgpo", "Hub dataset common-pile/usgpo, train"),
        ("https://me:secret@example.org/a.jsonl", "https\\://example.org/a.jsonl"),
    ],
)
def test_the_origin_of_a_source_shows_no_folder_and_no_password(tmp_path, path, shown):
    recipe = load(tmp_path, {"cases": None})
    recipe.data.sources[0] = recipe.data.sources[0].model_copy(update={"path": path, "revision": "main"})
    card = card_of(tmp_path / "card", recipe)
    assert shown in card and "secret" not in card
    assert "local file or folder web.jsonl" in card_of(tmp_path / "card", load(tmp_path, {"web": None}))


@pytest.mark.parametrize(
    ("documents", "category"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (3 * 10**9, "1B<n<10B"), (10**13, "n>1T")],
)
def test_the_size_is_in_the_words_of_the_hub(tmp_path, documents, category):
    recipe = load(tmp_path, {"cases": None})
    card_of(tmp_path / "card", recipe, stats_of(recipe, kept={"train": counted(documents), "test": counted(0)}))
    data = metadata_load(tmp_path / "card" / "README.md")
    assert data["size_categories"] == [category]
    assert [entry["split"] for entry in data["configs"][0]["data_files"]] == ["train"], "an empty split has no files"


# --- samples


def test_samples_are_of_sources_that_anyone_may_share_alone(tmp_path):
    licences = {"open": "CC0 1.0", "closed": "all rights reserved", "research": "CC BY-NC 4.0"}
    for name in licences:
        write_split(tmp_path / "card", name, [f"The {name} text."])
    card = card_of(tmp_path / "card", load(tmp_path, licences))
    assert "> The open text.\n" in card
    assert "The closed text" not in card and "The research text" not in card
    assert 'a licence of the kind "non-commercial" does not let anyone share the text' in card


def test_the_same_few_samples_are_chosen_whatever_file_or_row_group_they_are_in(tmp_path, monkeypatch):
    texts = [f"Text number {number}. " * 50 for number in range(40)]
    write_split(tmp_path / "one", "cases", texts)
    monkeypatch.setattr("corpus.document_files.ROW_GROUP_BYTES", 3000)
    write_split(tmp_path / "two", "cases", texts)
    rows = [Document(text=text, id=f"{index:032x}", metadata={"source": "cases"}) for index, text in enumerate(texts)]
    (tmp_path / "three").mkdir()
    for rank in range(3):
        write_documents(rows[::-1][rank::3], rank, 3, tmp_path / "three")
    chosen = [
        choose_samples(folder)
        for folder in (tmp_path / "one/train/cases", tmp_path / "two/train/cases", tmp_path / "three")
    ]
    assert chosen[0] == chosen[1] == chosen[2]
    assert [sample[:14] for sample in chosen[0]] == ["Text number 0.", "Text number 1.", "Text number 2."]
    assert all(len(sample) == SAMPLE_CHARACTERS + 4 and sample.endswith(" ...") for sample in chosen[0])
    assert choose_samples(tmp_path / "absent") == []


def test_hostile_text_stays_text(tmp_path):
    texts = [HOSTILE, "\u202e\u200b\0", "1. one\n\n    two", "- a\n- b"]
    write_split(tmp_path / "card", "cases", texts)
    recipe = load(tmp_path, {"cases": "CC0 1.0"})
    recipe.data.sources[0].url = "javascript:alert(1)"
    stats = stats_of(recipe, dropped={HOSTILE: counted(8)})
    card = card_of(tmp_path / "card", recipe, stats, report(**{HOSTILE: 1}))
    assert card.splitlines().count("---") == 2 and card.startswith("---\n")
    assert metadata_load(tmp_path / "card" / "README.md")["license"] == "cc0-1.0"
    for piece in ("<script", "<!--", "```", "[a]", "![i]", "http:/", "www.", "\u202e", "\u2066", "\x1b", "\0"):
        assert piece not in card, piece
    assert "alert(1)" in card and "{{ recipe }}" in card, "it is shown, as text"
    assert "> (no printable text)\n" in card and "> 1\\. one two\n" in card
    assert not [line for line in card.splitlines() if line.startswith("# heading")]
    for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


# --- the folder as a dataset


def test_the_card_reads_the_same_everywhere_and_the_folder_loads_as_a_dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "card"
    for split, number in (("train", 5), ("validation", 2), ("test", 1)):
        write_split(folder, "cases", [f"{split} {index}" for index in range(number)], split)
    (folder / "stats.json").write_text("{}")
    (folder / "quarantine.jsonl").write_text('{"source": "cases", "position": "x", "reason": "y"}\n')
    card = card_of(folder, load(tmp_path, {"cases": "CC0 1.0"}, "--hub.language=[no, en]"))
    data = metadata_load(folder / "README.md")
    assert data == YAML(typ="safe", pure=True).load(card.split("\n---\n")[0])
    assert data["language"] == ["no", "en"] and data["tags"] == ["pretraining", "legal"]
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 5, "validation": 2, "test": 1}
    assert loaded["train"][0]["text"] == "train 0"


def test_another_process_elsewhere_writes_the_same_bytes(tmp_path):
    write_split(tmp_path / "card", "cases", [HOSTILE, "A text."])
    recipe = load(tmp_path, {"cases": "CC0 1.0"}, "--data.personal_data={profile: legal}", "--run.output_dir=runs/one")
    stats = stats_of(recipe, personal_data={"email": 3})
    card = card_of(tmp_path / "card", recipe, stats, report(legal_sense=1))
    data = [f"--data.{key}={json.dumps(value)}" for key, value in recipe.data.model_dump().items()]
    (tmp_path / "inputs.json").write_text(json.dumps([data, stats, report(legal_sense=1)]))
    code = (
        "import json, sys; from pathlib import Path; from corpus.data_card import write_data_card; "
        "from recipe_loading import load_recipe; folder, base = map(Path, sys.argv[1:]); "
        "data, stats, report = json.loads((folder / 'inputs.json').read_text()); "
        "recipe = load_recipe([base], [*data, '--run.output_dir=/elsewhere/two']); "
    )
    code += "write_data_card(recipe, folder / 'card', stats, report)"
    (tmp_path / "card" / "README.md").unlink()
    environment = os.environ | {"PYTHONPATH": str(RECIPES), "PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0"}
    base = RECIPES / "custom" / "base.yaml"
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(base)], check=True, cwd="/", env=environment)
    assert (tmp_path / "card" / "README.md").read_text(encoding="utf-8") == card


def test_every_kind_of_licence_says_what_it_asks():
    assert all(meaning for meaning, _ in LICENCE_KINDS.values())
    assert list(LICENCE_KINDS)[0] == "unknown" and list(LICENCE_KINDS)[-1] == "public domain"
