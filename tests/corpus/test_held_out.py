# SPDX-License-Identifier: Apache-2.0
"""Held-out text: chosen by content, by family and by date, whatever the order, in bounded memory."""

import random
import tracemalloc
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from datatrove.data import Document
from tiny_run import make_text

from corpus import held_out
from corpus.document_families import find_families, word_ngrams
from corpus.document_files import document_id, write_documents
from corpus.held_out import NOTE, choose_held_out, describe_dates, is_future, lowest_training_ids, note_documents
from recipe_config import Data, RecipeError, Splits


def make_data(**keys) -> Data:
    sources = [{"name": "law", "path": "a"}, {"name": "web", "path": "b"}]
    splits = {"validation_fraction": 0.05, "test_fraction": 0.1} | keys.pop("splits", {})
    return Data.model_validate({"sources": sources, "splits": splits, **keys})


def make_document(text: str, source: str = "law", date: str | None = None) -> Document:
    return Document(text=text, id=document_id(text), metadata={"source": source, "date": date})


def plan(folder, data: Data, parts: list[list[Document]]):
    for rank, part in enumerate(parts):
        names = [source.name for source in data.sources]
        noted = note_documents(part, rank, len(parts), folder / "notes", names)
        write_documents(noted, rank, len(parts), folder / "documents")
    return choose_held_out(folder / "notes", folder / "documents", data)


@pytest.fixture
def documents() -> list[Document]:
    return [make_document(make_text(seed, 3 + seed % 9), "law" if seed % 3 else "web") for seed in range(300)]


def test_a_source_that_is_too_small_for_three_splits_is_refused_by_name(tmp_path):
    few = [make_document(make_text(seed), "law") for seed in range(2)]
    enough = [make_document(make_text(seed), "web") for seed in range(10, 15)]
    with pytest.raises(RecipeError, match="data.sources: law: 2 distinct documents are left"):
        plan(tmp_path, make_data(), [few, enough])


def test_each_split_has_its_share_of_each_source_bytes(tmp_path, documents):
    chosen, families, counted, divided = plan(tmp_path, make_data(), [documents])
    assert families is None and counted is None and divided is None
    for source in ("law", "web"):
        sizes = {split: 0 for split in ("train", "validation", "test")}
        for document in documents:
            if document.metadata["source"] == source:
                sizes[chosen.get(document.id, "train")] += len(document.text.encode())
        total = sum(sizes.values())
        assert sizes["test"] / total == pytest.approx(0.1, abs=0.02) and sizes["test"] <= 0.1 * total
        assert sizes["validation"] / total == pytest.approx(0.05, abs=0.02)


def test_the_choice_does_not_depend_on_order_or_parts_nor_on_a_bounded_number_of_candidates(
    tmp_path, documents, monkeypatch
):
    whole = plan(tmp_path / "whole", make_data(), [documents])
    shuffled = random.Random(0).sample(documents, len(documents))
    monkeypatch.setattr(held_out, "MIN_CANDIDATES", 3)
    parts = [shuffled[start::7] for start in range(7)]
    assert plan(tmp_path / "parts", make_data(), parts) == whole
    candidates, total_bytes = held_out.read_candidates(sorted((tmp_path / "parts" / "notes").iterdir()), make_data())
    assert len(candidates) < 0.4 * len(documents), "only what the shares can need is held"
    assert total_bytes.sum() == sum(len(document.text.encode()) for document in documents)


def test_a_document_stays_held_out_when_others_are_added(tmp_path, documents):
    few = plan(tmp_path / "few", make_data(), [documents[:200]]).splits
    more = plan(tmp_path / "more", make_data(), [documents]).splits
    assert sum(more.get(name) == split for name, split in few.items()) > 0.5 * len(few)


def test_less_text_to_train_on_is_part_of_more_and_the_same_is_held_out(tmp_path, documents):
    def train(max_training_bytes):
        data = make_data()
        data.sources[0].max_training_bytes = max_training_bytes
        chosen = plan(tmp_path, data, [documents]).splits
        lowest = lowest_training_ids(tmp_path / "notes", chosen, np.zeros(0, dtype="S32"), data).get("law", "")
        trained = [one for one in documents if one.id not in chosen and one.id >= lowest]
        return chosen, {one.id: len(one.text.encode()) for one in trained if one.metadata["source"] == "law"}

    found = [train(most) for most in (None, 10**9, 8_000, 4_000)]
    assert all(chosen == found[0][0] for chosen, _ in found), "held out"
    kept = [set(sizes) for _, sizes in found]
    assert kept[0] == kept[1] > kept[2] > kept[3]
    for most, (_, sizes) in zip((8_000, 4_000), found[2:], strict=True):
        assert 0.7 * most < sum(sizes.values()) <= most
    with pytest.raises(RecipeError, match="law: max_training_bytes=10 is less than the"):
        train(10)


def test_a_document_larger_than_the_share_stays_in_training(tmp_path, documents):
    giant = make_document(make_text(1000, 5000))
    chosen = plan(tmp_path, make_data(), [[*documents, giant]]).splits
    assert giant.id not in chosen and Counter(chosen.values()).keys() == {"validation", "test"}


def test_a_large_document_beside_a_few_small_ones_leaves_each_split_one(tmp_path):
    sizes = [(make_text(1000, 5000), "law"), (make_text(1, 20), "law"), (make_text(2, 40), "law")]
    others = [make_document(make_text(seed), "web") for seed in range(10, 20)]
    splits = plan(tmp_path, make_data(), [[*(make_document(*one) for one in sizes), *others]]).splits
    found = [splits.get(document_id(text), "train") for text, _ in sizes]
    assert found[0] == "train" and sorted(found) == ["test", "train", "validation"]


def test_a_family_of_two_sources_leaves_each_of_them_one_in_each_split(tmp_path):
    def shared(seed: int) -> list[Document]:
        text = make_text(seed, 30)
        return [make_document(text, "law"), make_document(f"{text}\nagain", "web")]

    everything = [one for seed in range(3) for one in shared(seed)]
    everything += [make_document(make_text(seed, 3000), "law") for seed in range(10, 13)]
    chosen = plan(tmp_path / "few", make_data(family_containment=0.5), [everything]).splits
    for source in ("law", "web"):
        own = [chosen.get(one.id, "train") for one in everything if one.metadata["source"] == source]
        assert set(own) == {"test", "train", "validation"}, source


def test_families_are_held_out_whole_and_counted(tmp_path):
    families = [[make_text(seed, 30) + f"\nversion {version}" for version in range(3)] for seed in range(30)]
    everything = [make_document(text) for family in families for text in family]
    everything += [make_document(make_text(seed, 30), "web") for seed in range(100, 120)]
    chosen, named, counted, divided = plan(tmp_path / "ordered", make_data(family_containment=0.5), [everything])
    for family in families:
        ids = [document_id(text) for text in family]
        assert len({chosen.get(one, "train") for one in ids}) == 1
        if ids[0] in chosen:
            assert {named[one] for one in ids} == {min(ids)}
    assert counted["law"] < 90
    assert named.keys() == chosen.keys(), "the families of training documents are not kept"
    shuffled = random.Random(0).sample(everything, len(everything))
    parts = [shuffled[start::5] for start in range(5)]
    assert plan(tmp_path / "shuffled", make_data(family_containment=0.5), parts) == (chosen, named, counted, divided)
    assert divided == {"law": 0, "web": 0}


def test_documents_of_the_future_keep_their_family(tmp_path, documents):
    text = make_text(1000, 30)
    later = [make_document(f"{text}\nversion {version}", date="2024-02-02") for version in range(3)]
    data = make_data(family_containment=0.5, splits={"future_from": "2024-01-01"})
    chosen, named, _, divided = plan(tmp_path, data, [[*documents, *later]])
    assert divided == {"law": 0, "web": 0}
    ids = [document.id for document in later]
    assert {named.get(one) for one in ids} == {min(ids)} and not chosen.keys() & set(ids)


def test_families_that_are_in_train_and_in_the_future_are_counted(tmp_path, documents):
    pairs = [
        make_document(f"{make_text(seed, 30)}\nversion {version}", source, date)
        for seed, source in ((1000, "law"), (1001, "law"), (1002, "web"))
        for version, date in enumerate(("2020-01-01", "2024-02-02"))
    ]
    data = make_data(family_containment=0.5, splits={"future_from": "2024-01-01"})
    chosen, _, _, divided = plan(tmp_path, data, [[*documents, *pairs]])
    in_train = Counter(one.metadata["source"] for one in pairs[::2] if one.id not in chosen)
    assert in_train and divided == {name: in_train[name] for name in ("law", "web")}


@pytest.mark.parametrize(
    ("date", "future"),
    [
        ("2024-07-01", True),
        ("2024-06-30", False),
        ("2024-07", True),
        ("2024-06", False),
        ("2024", True),  # some day of that year, so it may be: never trained on
        ("2023", False),
        (None, False),
        ("", False),
    ],
)
def test_what_may_be_of_the_future_is_never_trained_on(date, future):
    assert is_future(date, Splits(future_from="2024-07-01")) == future
    assert not is_future(date, Splits())


def test_documents_of_the_future_are_in_no_other_split(tmp_path, documents):
    for number, document in enumerate(documents):
        document.metadata["date"] = f"{2020 + number % 5}-03-01"
    chosen = plan(tmp_path, make_data(splits={"future_from": "2024-01-01"}), [documents]).splits
    future = {document.id for document in documents if document.metadata["date"] >= "2024"}
    assert len(future) == 60 and chosen and not future & chosen.keys()


def test_dates_are_described_by_source(tmp_path, documents):
    documents[1].metadata["date"], documents[2].metadata["date"] = "2019-05", "2001-01-31"
    plan(tmp_path, make_data(), [documents[:150], documents[150:]])
    found = describe_dates(tmp_path / "notes", ["law", "web"])
    assert found["law"] == {"dated_documents": 2, "first_date": "2001-01-31", "last_date": "2019-05"}
    assert found["web"] == {"dated_documents": 0, "first_date": None, "last_date": None}


def test_a_task_without_documents_notes_nothing(tmp_path):
    assert list(note_documents([], 0, 1, tmp_path, ["law"])) == []
    assert np.load(tmp_path / "00000.npy").dtype == NOTE


def related_texts(choose: random.Random, count: int, shared: list[str]) -> list[str]:
    """Return texts of made-up words that all hold the same sentence."""
    own = [[f"w{choose.getrandbits(40):x}" for _ in range(60)] for _ in range(count)]
    return [" ".join(words[:30] + shared + words[30:]) for words in own]


def test_families_are_the_components_of_all_related_pairs():
    choose = random.Random(0)
    texts = related_texts(choose, 60, [f"common{number}" for number in range(20)])
    for number in range(0, 60, 3):  # versions of one another: each begins with the first half of the one before
        texts.append(" ".join(texts[number].split()[:40] + texts[-1].split()[:45]))
    ngrams = [set(word_ngrams(text).tolist()) for text in texts]
    expected = list(range(len(texts)))
    for first, second in combinations(range(len(texts)), 2):
        smaller = min(len(ngrams[first]), len(ngrams[second]))
        if len(ngrams[first] & ngrams[second]) >= 0.3 * smaller:
            old, new = expected[second], expected[first]
            expected = [new if label == old else label for label in expected]
    found = find_families(texts, 0.3).tolist()
    assert len(set(zip(found, expected, strict=True))) == len(set(found)) == len(set(expected)) < 70


def test_documents_that_share_one_sentence_take_memory_in_proportion_to_their_number():
    peaks = []
    for count in (500, 2000):
        texts = related_texts(random.Random(1), count, [f"common{number}" for number in range(20)])
        tracemalloc.start()
        assert len(set(find_families(texts, 0.3).tolist())) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6 * peaks[0], "four times the documents took more than six times the memory"
