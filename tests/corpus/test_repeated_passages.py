# SPDX-License-Identifier: Apache-2.0
"""Repeated passages: what many documents share goes out of all of them, and nothing else changes by a byte."""

import json
import random
from collections import deque
from functools import partial
from pathlib import Path

import pytest
from datatrove.data import Document

from corpus import repeated_passages
from corpus.accounting import sum_counts
from corpus.document_files import document_id
from corpus.repeated_passages import find_repeated_passages, split_passages, summarise
from recipe_config import RepeatedPassages


NOTICE = "This filing is for information only; it is no offer to sell, and no offer to buy, a security."
HEADER = "Filed with the Commission on the date that stands above, and printed on paper."


def own(number: int) -> str:
    """Return a passage that no other number has."""
    choose = random.Random(number).choice
    return (
        f"Section {number}. " + " ".join(choose(["tenant", "roof", "rent", "court", "pays"]) for _ in range(30)) + "."
    )


def document(text: str, source: str = "filings") -> Document:
    return Document(text=text, id=document_id(text), metadata={"source": source, "date": "2020"})


def give(documents, rank: int, world_size: int, parts: list[list[tuple[str, str]]]):
    yield from (document(*one) for one in parts[rank])


def cut(
    folder: Path, texts: list[str | tuple[str, str]], tasks: int = 2, min_bytes: int = 0, **settings
) -> tuple[list[Document], dict[str, tuple[int, int]], dict]:
    """Return the documents that are left in the order of their ids, the counts, and the summary."""
    parts = [
        [(one, "filings") if isinstance(one, str) else one for one in texts[task::tasks]] for task in range(tasks)
    ]

    def run(name: str, pipeline: list, tasks: int = tasks, total_bytes: int | None = None) -> None:
        for rank in range(tasks):
            passed_on = None
            for step in pipeline:
                passed_on = step(passed_on, rank, tasks)
            deque(passed_on or (), maxlen=0)

    left: list[Document] = []
    chosen = RepeatedPassages(**{"min_documents": 5, **settings})
    documents = [partial(give, parts=parts)]
    step = find_repeated_passages(run, documents, folder / "work", folder / "counts", chosen, min_bytes)
    run("cut", [*documents, step, lambda documents, rank, tasks: left.extend(documents)])
    counts = {label: (int(n), int(size)) for label, (n, size) in sum_counts(folder / "counts", "*").items()}
    return sorted(left, key=lambda one: one.id), counts, summarise(folder / "work")


def cut_texts(folder: Path, texts: list, **settings) -> set[str]:
    return {one.text for one in cut(folder, texts, **settings)[0]}


def test_without_documents_nothing_is_repeated(tmp_path):
    assert cut(tmp_path, []) == ([], {}, {"repeated_passages": 0, "most_frequent": []})


@pytest.mark.parametrize(
    "shared",
    [
        "Only seven words stand in this one.",
        "In 2019 {number} tenants paid the rent of the year before.",
        "The roof of house h{number} shall be kept dry by whoever owns it.",
    ],
)
def test_passages_that_are_too_short_or_differ_in_a_word_or_number_stay(tmp_path, shared):
    texts = [f"{own(number)}\n\n{shared.format(number=number)}" for number in range(20)]
    assert cut_texts(tmp_path, texts) == set(texts)


def test_what_fewer_documents_share_stays_however_often_one_repeats_it(tmp_path):
    texts = [f"{own(number)}\n\n{NOTICE}\n\n{NOTICE}\n\n{NOTICE}" for number in range(4)]
    assert cut_texts(tmp_path, [*texts, own(4)]) == {*texts, own(4)}


def test_a_part_of_a_passage_is_not_cut(tmp_path):
    texts = [NOTICE + f" {own(number)}" for number in range(9)] + [
        own(number) + f"\n{NOTICE}\n\nx" for number in range(9)
    ]
    assert cut_texts(tmp_path, texts) == set(texts)


def test_untouched_documents_keep_their_bytes_and_ids(tmp_path):
    odd = "a\n \t\n\n  b\u2028c\n\n\n\n d" + own(1)
    left, counts, _ = cut(tmp_path, [odd, *(f"{own(number)}\n\n{NOTICE}" for number in range(2, 9))])
    same = next(one for one in left if one.text == odd)
    assert same.id == document_id(odd)
    assert counts["filings/cut"][0] == 7


def test_what_many_share_is_cut_wherever_it_stands_and_neighbours_are_not_glued(tmp_path):
    texts = [
        f"{HEADER}\n\n{own(number)}\n \n{NOTICE}\n\n  {own(number + 100)}\n\n\n{NOTICE.upper()}" for number in range(5)
    ]
    left, counts, summary = cut(tmp_path, texts)
    assert {one.text for one in left} == {f"{own(number)}\n\n  {own(number + 100)}" for number in range(5)}
    assert all(one.id == document_id(one.text) and one.metadata["date"] == "2020" for one in left)
    gone = sum(len(text) for text in texts) - sum(len(one.text) for one in left)
    assert counts == {"filings/cut": (5, gone), "filings/cut_passages": (15, 0)}
    found = [(passage["documents"], passage["text"]) for passage in summary["most_frequent"]]
    assert summary["repeated_passages"] == 2 and sorted(found) == [(5, HEADER), (5, NOTICE.upper())]


def test_wrapping_spacing_punctuation_and_case_hide_nothing(tmp_path):
    words = NOTICE.split()
    shapes = [NOTICE, NOTICE.upper(), "\n".join(words), "  ".join(words), " ".join(words).replace(";", " --")]
    assert cut_texts(tmp_path, [f"{shape}\n\n{own(place)}" for place, shape in enumerate(shapes)]) == set(
        map(own, range(5))
    )


def test_in_a_text_without_blank_lines_each_line_is_a_passage(tmp_path):
    texts = [f"{own(number)}\n{NOTICE}\n{own(number + 100)}" for number in range(5)]
    assert cut_texts(tmp_path, texts) == {f"{own(number)}\n{own(number + 100)}" for number in range(5)}


def test_only_the_named_sources_are_looked_at(tmp_path):
    licenses = [(f"{own(number)}\n\n{NOTICE}", "licenses") for number in range(9)]
    filings = [f"{own(number)}\n\n{NOTICE}" for number in range(20, 24)]
    assert cut_texts(tmp_path / "4", [*licenses, *filings], sources=["filings"]) == {
        text for text, _ in licenses
    } | set(filings)
    left = cut_texts(tmp_path / "5", [*licenses, *filings, NOTICE], sources=["filings"])
    assert left == {text for text, _ in licenses} | set(map(own, range(20, 24)))


def test_a_document_of_which_too_little_is_left_is_dropped_with_all_its_bytes(tmp_path):
    kept, short, empty = f"{own(1)}\n\n{NOTICE}", f"{NOTICE}\n\nShort.", f"{NOTICE}\n\n{HEADER}"
    others = [(f"{HEADER}\n\n{NOTICE}\n\n{own(number)}", "others") for number in range(2, 7)]
    left, counts, _ = cut(tmp_path, [kept, short, empty, *others], min_bytes=100)
    assert {one.text for one in left} == {own(number) for number in range(1, 7)}
    assert counts["filings/dropped:repeated_passages"] == (2, len(short) + len(empty))
    assert counts["filings/cut"] == (1, len(kept) - len(own(1)))
    assert cut_texts(tmp_path / "0", [empty] * 5) == set(), "an empty text is no document, whatever the least length"


def test_tasks_order_and_how_much_fits_into_memory_change_nothing(tmp_path, monkeypatch):
    choose = random.Random(1)
    pool = [own(1000 + number) for number in range(30)]
    texts = ["\n\n".join([own(number), *choose.sample(pool, 6), own(500 + number)]) for number in range(60)]
    expected = cut(tmp_path / "a", texts, min_documents=12)
    assert 0 < expected[2]["repeated_passages"] < 30
    choose.shuffle(texts)
    monkeypatch.setattr(repeated_passages, "HASHES_IN_MEMORY", 16)
    found = cut(tmp_path / "b", texts, tasks=7, min_documents=12)
    assert len(list((tmp_path / "b" / "work" / "runs").iterdir())) > 14, "more than one run a task"
    assert [one.text for one in found[0]] == [one.text for one in expected[0]] and found[1:] == expected[1:]


def test_a_passage_longer_than_the_bound_is_left_and_none_is_lost_in_splitting(tmp_path, monkeypatch):
    monkeypatch.setattr(repeated_passages, "MAX_PASSAGE_CHARACTERS", len(NOTICE) - 1)
    texts = [f"{own(number)}\n\n{NOTICE}" for number in range(9)]
    assert cut_texts(tmp_path, texts) == set(texts)
    for text in ["", "a", "a\nb", "a\n\nb", "a\n \n\t\n  b\n\nc", "\n\na\n\n", "a\r\n\r\nb"]:
        assert "".join(split_passages(text)) == text


def test_fifty_copies_of_one_document_would_empty_each_other(tmp_path):
    """Why duplicates are dropped before passages are counted."""
    copies = [f"{own(1)}\n\n{own(2)}\n\nCopy {number}." for number in range(50)]
    assert cut_texts(tmp_path, copies, min_documents=50) == {f"Copy {number}." for number in range(50)}


def test_the_summary_is_plain_json(tmp_path):
    texts = [f"<b>{NOTICE}</b>\n\n{own(number)}" for number in range(5)]
    summary = cut(tmp_path, texts)[2]
    assert json.loads(json.dumps(summary)) == summary
    assert summary["most_frequent"] == [{"documents": 5, "text": f"<b>{NOTICE}</b>"}]
