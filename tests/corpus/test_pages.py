# SPDX-License-Identifier: Apache-2.0
"""Pages keep their places in a text that is cleaned."""

from tiny_run import make_text

from corpus.document_files import Place, PlaceWriter, write_places
from corpus.pages import move_starts, page_of


def test_pages_keep_their_first_words_when_text_is_removed_replaced_and_put_before_it():
    pages = [make_text(seed, 12) for seed in range(5)]
    before = "\n\n".join(pages)
    starts = [before.index(page) for page in pages]
    assert move_starts(before, before, starts) == starts
    cleaned = [page.replace("court", "CASE-0000-COURT") for page in pages]
    cleaned[2] = cleaned[2].partition("\n")[2]  # its first line is removed
    after = "A title\n\n" + "\n\n".join(cleaned)
    moved = move_starts(before, after, starts)
    assert moved == sorted(moved)
    for number, page in enumerate(cleaned):
        changed = "CASE-0000-COURT" if number != 2 else pages[2].partition("\n")[0] + "\n"
        assert abs(moved[number] - after.index(page)) <= len(changed), number


def test_a_page_without_words_or_that_is_gone_stays_in_its_place():
    before = "one two three four five six seven\n\n" * 3
    starts = [0, 35, 35, 70, len(before)]
    moved = move_starts(before, "entirely other text", starts)
    assert moved == sorted(moved) and moved[-1] == len("entirely other text")
    assert move_starts(before, "", starts) == [0] * 5


def test_a_place_is_on_the_last_page_that_begins_before_it():
    assert [page_of([0, 10, 10, 25], place) for place in (0, 9, 10, 24, 25, 99)] == [1, 1, 3, 3, 4, 4]
    assert page_of(None, 5) is None and page_of([], 5) is None


def test_titles_and_pages_are_noted_where_they_are_known_and_pages_not_of_a_text_that_lost_passages(tmp_path):
    import pyarrow.parquet as pq

    places = PlaceWriter(tmp_path / "places", 0)
    places.write("a", Place("x.pdf", 0, 1), None, None)
    places.write("b", Place("y.pdf", 1, 1), "Lease", [0, 7])
    places.write("c", Place("z.pdf", 2, 1), None, [0, 7])
    places.close()
    write_places(tmp_path / "places", {"c": "d"}, tmp_path / "places.parquet")
    rows = pq.read_table(tmp_path / "places.parquet").to_pylist()
    assert [(row["id"], row["title"], row["page_starts"]) for row in rows] == [
        ("a", None, None),
        ("b", "Lease", [0, 7]),
        ("d", None, None),
    ]
