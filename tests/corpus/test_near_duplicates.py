# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates: found as often as the formula says, and the better copy stays, however the work is divided."""

import json
import random
import tracemalloc
from collections import deque
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.data import Document

from corpus import near_duplicates
from corpus.accounting import sum_counts
from corpus.near_duplicates import MinHash, connect, find_near_duplicates, list_earlier_documents
from recipe_config import NearDuplicates, RecipeError


SYLLABLES = ["ba", "co", "di", "fi", "gu", "ka", "lo", "mi", "nu", "pe", "ro", "sa", "te", "vu", "za"]
SOURCES = ["law", "web"]


def made_up(seed: int, count: int = 200) -> str:
    """Return words that no two seeds share in the same order."""
    choose = random.Random(seed)
    return " ".join("".join(choose.choices(SYLLABLES, k=3)) for _ in range(count))


def document(text: str, source: str = "law") -> Document:
    return Document(text=text, id=sha256(text.encode()).hexdigest()[:32], metadata={"source": source})


def give(documents, rank: int, world_size: int, parts: list[list[Document]]):
    yield from parts[rank]


def keep(folder: Path, *parts: list[Document], earlier=()) -> list[tuple[str, str]]:
    """Run everything on the documents of each task; return (text, source) of those that are left."""

    def run(name: str, pipeline: list, tasks: int = len(parts), total_bytes: int | None = None) -> None:
        for rank in range(tasks):
            passed_on = None
            for step in pipeline:
                passed_on = step(passed_on, rank, tasks)
            deque(passed_on or (), maxlen=0)

    settings, left = NearDuplicates(), []
    documents = [partial(give, parts=parts)]
    steps = find_near_duplicates(run, documents, folder / "work", folder / "counts", settings, SOURCES, list(earlier))
    run("keep", [*documents, *steps, lambda documents, rank, tasks: left.extend(documents)])
    return [(one.text, one.metadata["source"]) for one in left]


def dropped(folder: Path) -> dict[str, int]:
    """Return `<source>/dropped:<reason>` -> documents."""
    return {label: int(documents) for label, (documents, _) in sum_counts(folder / "counts", "*").items()}


def write_earlier(folder: Path, **splits: list[str]) -> Path:
    """Write a documents/ folder with the texts of each split."""
    for split, texts in splits.items():
        (folder / split / "old").mkdir(parents=True)
        rows = [{"id": one.id, "source": "old", "text": one.text, "date": None} for one in map(document, texts)]
        pq.write_table(pa.Table.from_pylist(rows), folder / split / "old" / "00000.parquet")
    write_stage(folder, "prepare")
    return folder


def write_stage(folder: Path, stage: str) -> None:
    files = {path.relative_to(folder).as_posix(): {} for path in folder.rglob("*.parquet")}
    record = {"stage": stage, "settings": {}, "inputs": {}, "sha256": "", "files": files}
    (folder / "stage.json").write_text(json.dumps(record))


def test_what_is_no_whole_documents_folder_is_refused_by_name(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "tokens").mkdir()
    write_stage(tmp_path / "tokens", "tokenize")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "stage.json").write_text("{")
    cut = write_earlier(tmp_path / "cut", train=[made_up(1)], test=[made_up(2)])
    (cut / "test" / "old" / "00000.parquet").unlink()
    good = write_earlier(tmp_path / "good", train=[made_up(1)])
    names = ["gone", "empty", "file", "tokens", "broken", "cut"]
    with pytest.raises(RecipeError) as error:
        list_earlier_documents([str(good), *(str(tmp_path / name) for name in names)])
    assert len(error.value.problems) == len(names)
    for number, (name, problem) in enumerate(zip(names, error.value.problems, strict=True), start=1):
        assert problem.startswith(f"data.near_duplicates.against.{number}: {tmp_path / name}")
    assert "lacks 1 of its files, such as" in error.value.problems[-1]


def test_exact_duplicates_are_refused_rather_than_all_dropped(tmp_path):
    with pytest.raises(ValueError, match="drop exact duplicates before"):
        keep(tmp_path, [document(made_up(1))], [document(made_up(1), "web")])


def test_different_documents_all_stay_and_so_do_those_without_words(tmp_path):
    texts = ["", "§ § §", "***", "too few words", "too few", "too", *(made_up(seed) for seed in range(20))]
    left = keep(tmp_path, [document(text) for text in texts], [])
    assert [text for text, _ in left] == texts


def test_case_accents_and_punctuation_make_no_difference_to_texts_of_any_length(tmp_path):
    pairs = [("Fee: 12", "fee -- 12!"), (f"Café {made_up(1)} 7", f"CAFE\u0301, {made_up(1)}; (7)"), ("§", "§ ")]
    left = keep(tmp_path, [document(text) for pair in pairs for text in pair])
    assert [text for text, _ in left] == ["fee -- 12!", pairs[1][1], "§", "§ "]


def test_forms_that_were_filled_in_with_other_numbers_are_different_documents(tmp_path):
    choose = random.Random(0).randrange
    forms = [". ".join(f"{made_up(row, 4)}: {choose(10**6):,}" for row in range(50)) for _ in range(5)]
    assert len(keep(tmp_path, [document(form) for form in forms])) == 5


def test_the_source_named_first_wins_then_the_longest_then_the_lowest_id(tmp_path):
    text = made_up(1)
    law, longer = document(f"{text} 1"), [document(f"{text} {number}") for number in range(100, 140)]
    web = document(f"{text} 1 and more", "web")
    assert keep(tmp_path / "a", [web, law]) == [(law.text, "law")]
    best = min(longer, key=lambda one: one.id)
    assert keep(tmp_path / "b", [law, *longer, web]) == [(best.text, "law")]


def test_length_is_measured_in_bytes(tmp_path):
    plain, accented = f"{made_up(1)} cafeteria", f"{made_up(1)} caféteria"
    assert keep(tmp_path, [document(plain), document(accented)]) == [(accented, "law")]


def test_tasks_and_order_do_not_change_what_stays(tmp_path):
    shuffled = random.Random(0)
    documents = [document(made_up(seed), shuffled.choice(["law", "web"])) for seed in range(40)]
    for seed in range(30):
        words = made_up(seed).split()
        for copy in range(3):
            words[shuffled.randrange(200)] = f"changed{copy}"
            documents.append(document(" ".join(words), shuffled.choice(["law", "web"])))
    one = keep(tmp_path / "1", documents)
    assert 40 <= len(one) < 60
    shuffled.shuffle(documents)
    many = keep(tmp_path / "5", *(documents[task::5] for task in range(5)))
    assert sorted(one) == sorted(many)


def test_what_is_near_to_an_earlier_document_is_dropped_under_its_own_reason(tmp_path):
    folders = [
        write_earlier(tmp_path / "first", train=[made_up(1), "Short § 1"], test=[made_up(2)]),
        write_earlier(tmp_path / "second", validation=[made_up(3), made_up(9)]),
    ]
    earlier = list_earlier_documents([str(folder) for folder in folders])
    near = [made_up(1), f"{made_up(2)} with more", made_up(3).upper(), "short 1!"]
    new = [made_up(4), f"{made_up(4)} with more", made_up(5)]
    left = keep(tmp_path, [document(text) for text in near], [document(text, "web") for text in new], earlier=earlier)
    assert left == [(text, "web") for text in new[1:]]
    assert dropped(tmp_path) == {"law/dropped:near_duplicate_of_earlier": 4, "web/dropped:near_duplicate": 1}


def test_earlier_documents_without_text_in_common_change_nothing(tmp_path):
    earlier = list_earlier_documents([str(write_earlier(tmp_path / "first", train=[], test=[made_up(1)]))])
    assert len(keep(tmp_path / "work", [document(made_up(2))], [], earlier=earlier)) == 1


def test_of_ten_thousand_copies_one_stays(tmp_path):
    text = made_up(1, count=30)
    copies = [document(f"{text} {number}") for number in range(10_000)]
    left = keep(tmp_path, copies[::2], [*copies[1::2], document(made_up(2))])
    best = min((one for one in copies if len(one.text) == len(text) + 5), key=lambda one: one.id)
    assert sorted(left) == sorted([(best.text, "law"), (made_up(2), "law")])


def test_clusters_are_joined_across_buckets(tmp_path):
    for bucket, pairs in enumerate([[(1, 2), (8, 9)], [], [(5, 2), (7, 6)], [(9, 10)]]):
        np.save(tmp_path / f"{bucket:03d}.npy", np.array(pairs, dtype=np.int64).reshape(-1, 2))
    documents, clusters = connect(sorted(tmp_path.iterdir()))
    assert documents.tolist() == [1, 2, 5, 6, 7, 8, 9, 10]
    assert clusters.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_an_enormous_document_takes_little_memory_and_its_near_copy_is_found(monkeypatch):
    monkeypatch.setattr(near_duplicates, "BLOCK_CHARACTERS", 1 << 14)
    text = made_up(1, count=100_000)
    minhash = MinHash(NearDuplicates())
    expected = minhash.signature(text)
    tracemalloc.start()
    moved = minhash.signature(f"one more {text}")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(text) > 600_000 and peak_bytes < 5_000_000
    assert (moved == expected).mean() > 0.8


@pytest.mark.parametrize(("similarity", "expected"), [(0.5, 0.053), (0.72, 0.65), (0.8, 0.923), (0.9, 0.9996)])
def test_pairs_are_found_with_the_probability_that_the_formula_gives(similarity, expected):
    settings, num_ngrams, num_pairs = NearDuplicates(), 300, 400
    power = similarity**settings.hashes_per_bucket
    assert 1 - (1 - power) ** settings.num_buckets == pytest.approx(expected, abs=1e-3)
    minhash, found = MinHash(settings), 0
    shared = round(2 * num_ngrams * similarity / (1 + similarity)) + settings.n_grams - 1
    for seed in range(num_pairs):
        words = made_up(seed, num_ngrams + settings.n_grams - 1).split()
        others = made_up(10_000 + seed, len(words) - shared).split()
        signatures = [minhash.signature(" ".join(text)) for text in (words, words[:shared] + others)]
        found += bool((signatures[0] == signatures[1]).any())
    deviation = (expected * (1 - expected) / num_pairs) ** 0.5
    assert found / num_pairs == pytest.approx(expected, abs=3 * deviation + 0.005)
