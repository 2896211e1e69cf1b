# SPDX-License-Identifier: Apache-2.0
"""A look at the documents of a run: what was dropped under each reason, what was marked, and nothing that leaks."""

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest
from tiny_run import TinyRun, make_text, write_tiny_texts

import prepare_data
import show_documents
from corpus.document_page import view_pair, view_text
from corpus.dropped_samples import SAMPLES, Samples, write_samples
from corpus.rule_marks import mark
from corpus.text_quality import RULES
from recipe_config import RecipeError


HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">&amp;</pre>'
MAIL, NUMBER = "clerk@courts.state.tx.us", "123-45-6789"
GERMAN = "Die Mieter haben die Wohnung am Ende des Monats zu räumen und dem Vermieter die Schlüssel zu geben. " * 8
NOTICE = "This notice stands below every page of the site and says nothing of the case."
QUESTION = "Which of the old keepers of the harbour light wrote down the names of all ships in the year of the flood"


def rows() -> list[str]:
    long = make_text(7, 80)
    return [
        *(make_text(seed) for seed in range(40)),
        *(f"{make_text(seed)}\n\n{NOTICE}" for seed in range(50, 56)),
        make_text(0),
        long,
        long.replace("court", "tribunal", 1),
        "short",
        f"{make_text(60)} {HOSTILE}",
        f"{make_text(71)}\u200b\u00a0Write to {MAIL}.",
        f"{make_text(62)} Her SSN is {NUMBER}. {HOSTILE}",
        GERMAN,
        f"{HOSTILE} # # # # # # # " + make_text(63).replace("the", "# #"),
        f"{make_text(64)} {QUESTION}?",
    ]


def prepare(folder, *overrides: str) -> TinyRun:
    """Prepare a run that drops documents for most reasons."""
    write_tiny_texts(folder / "texts")
    run = TinyRun(folder / "texts", folder / "run")
    (run.texts / "law.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows()) + "{broken\n")
    item = {"id": 1, "context": f"{QUESTION}?", "choices": ["none of them did so", "all did"], "gold": 0}
    (folder / "items").mkdir()
    (folder / "items" / "mine.jsonl").write_text(json.dumps(item) + "\n")
    settings = {
        "near_duplicates": {"num_buckets": 3, "hashes_per_bucket": 6},
        "languages": {"keep": ["en"]},
        "quality": {"overrides": {"gopher_max_repeated_10_grams": False}},
        "repeated_passages": {"min_documents": 5},
        "personal_data": {"profile": "legal", "actions": {"ssn": "drop"}},
        "decontamination": {"benchmarks": str(folder / "items")},
    }
    settings["sources"] = [{"name": "law", "path": str(run.texts / "law.jsonl")}]
    prepare_data.main(run.argv(*(f"--data.{key}={json.dumps(value)}" for key, value in settings.items()), *overrides))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> TinyRun:
    return prepare(tmp_path_factory.mktemp("look"))


def samples(run: TinyRun) -> dict[str, list[dict]]:
    """Return reason -> samples."""
    found: dict[str, list[dict]] = {}
    for line in (run.output_dir / SAMPLES).read_text().splitlines():
        sample = json.loads(line)
        found.setdefault(sample["reason"], []).append(sample)
    return found


def marked(sample: dict) -> list[tuple[str, str]]:
    return [(sample["text"][start:end], label) for start, end, label in sample["marks"]]


def page(run: TinyRun, *arguments: str) -> str:
    show_documents.main([str(run.output_dir), *arguments])
    return (run.output_dir / "documents.html").read_text()


class Reader(HTMLParser):
    """Collect what a browser sees in a page: its elements, and the text of sections and marks."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.sections: dict[str, str] = {}
        self.marks: dict[str, list[str]] = {}
        self.section, self.open_mark = "", None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "section":
            self.section = dict(attributes)["id"]
        if tag == "mark":
            self.open_mark = dict(attributes)["class"]

    def handle_endtag(self, tag):
        self.open_mark = None if tag == "mark" else self.open_mark

    def handle_data(self, data):
        self.sections[self.section] = self.sections.get(self.section, "") + data
        if self.open_mark:
            self.marks.setdefault(self.section, []).append(data)


def test_every_reason_has_samples_with_what_made_it_fire_marked(run):
    found = samples(run)
    dropped = json.loads((run.output_dir / "documents" / "stats.json").read_text())["sources"]["law"]["dropped"]
    assert {reason: len(own) for reason, own in found.items() if reason in dropped} == {
        reason: count["documents"] for reason, count in dropped.items() if reason != "unreadable"
    }
    assert len(found["kept"]) == 50 and len(found["passages_removed"]) == 6
    (hashes,) = found["gopher_max_hashes"]
    assert set(marked(hashes)) == {("#", "gopher_max_hashes")} and len(hashes["marks"]) > 20
    assert re.fullmatch(r"#: 0\.\d+ per word, where the profile allows at most 0\.1", hashes["note"])
    assert found["language_de"][0]["note"].startswith("likeliest languages: de 1.00, ")
    assert found["too_short"][0]["note"] == "5 bytes, where at least 200 are needed"
    assert all(marked(sample) == [(NOTICE, "repeated")] for sample in found["passages_removed"])
    (overlap,) = found["benchmark_overlap"]
    assert marked(overlap) == [(QUESTION, "mine")] and overlap["note"] == "shares 100 % of item 1 of mine"
    assert marked(found["personal_data"][0]) == [("•••-••-••••", "ssn")]
    (near,) = found["near_duplicate"]
    assert "tribunal" not in near["text"] and near["near"] != near["id"]
    assert all(sample["place"].startswith(f"{run.texts}/law.jsonl:") for sample in found["kept"])


def test_a_sample_holds_no_value_of_personal_data_and_its_form_remains(run):
    written = (run.output_dir / SAMPLES).read_text() + page(run, "--most", "50")
    assert MAIL not in written and NUMBER not in written
    (sample,) = [sample for sample in samples(run)["kept"] if "Write to" in sample["text"]]
    assert sample["text"].endswith("Write to email@example.com.")
    assert sample["before"].endswith("\u200b\u00a0Write to •••••@••••••.•••••.••.••.")


def test_the_page_shows_documents_before_and_after_beside_each_other_and_with_their_marks(run):
    reader = Reader(page(run, "--most", "50"))
    assert {"train", "gopher_max_hashes", "near_duplicate", "passages_removed", "unreadable"} <= set(reader.sections)
    assert reader.marks["near_duplicate"] == ["court ", "tribunal "]
    assert {"U+200B", "U+00A0", "email@example.com."} <= set(reader.marks["train"])
    assert reader.marks["personal_data"] == ["•••-••-••••", "ssn"] and set(reader.marks["gopher_max_hashes"]) == {"#"}
    assert (
        f"{run.texts}/law.jsonl:57" in reader.sections["unreadable"] and "broken JSON" in reader.sections["unreadable"]
    )
    assert f"{run.texts}/law.jsonl:1, {run.texts}/law.jsonl:47" in reader.sections["exact_duplicate"]


def test_hostile_text_is_shown_and_runs_nothing(run):
    reader = Reader(page(run, "--most", "50"))
    assert HOSTILE in reader.sections["gopher_max_hashes"] and HOSTILE in reader.sections["personal_data"]
    assert not {"script", "img", "iframe", "object", "link"} & {tag for tag, _ in reader.elements}
    assert not any(name.startswith("on") or name == "style" for _, own in reader.elements for name in own)
    (policy,) = [own["content"] for tag, own in reader.elements if "http-equiv" in own]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_a_look_is_limited_to_a_source_a_reason_a_split_or_words(run, tmp_path):
    assert set(Reader(page(run, "--dropped", "quality")).sections) == {"", "top", "gopher_max_hashes"}
    assert set(Reader(page(run, "--split", "test")).sections) == {"", "top", "test"}
    both = Reader(page(run, "--grep", "write  ?to", "--split", "train", "--dropped", "language_de"))
    assert both.sections["train"].count("Write to") in (1, 2) and "Here: 0." in both.sections["language_de"]
    assert "Write to" in both.marks["train"] or "U+200B" in both.marks["train"]
    show_documents.main([str(run.output_dir), "--source", "law", "--output", str(tmp_path / "mine.html")])
    assert (tmp_path / "mine.html").exists()
    for arguments, problem in (
        (["--source", "laws"], "no such source; there are law"),
        (["--dropped", "repetition"], "--dropped repetition: no document; there are unreadable, too_short, quality, "),
        (["--grep", "("], "not a regular expression"),
    ):
        with pytest.raises(RecipeError, match=re.escape(problem)):
            show_documents.main([str(run.output_dir), *arguments])
    with pytest.raises(RecipeError, match="no documents yet; run recipes/prepare_data.py first"):
        show_documents.main([str(tmp_path)])


def test_a_run_without_samples_shows_what_it_kept_and_says_why_no_more(run, tmp_path):
    shutil.copytree(run.output_dir / "documents", tmp_path / "documents")
    show_documents.main([str(tmp_path)])
    reader = Reader((tmp_path / "documents.html").read_text())
    assert "dropped_samples.jsonl is not there" in reader.sections["top"] and "Here: 10." in reader.sections["train"]


def test_the_samples_are_the_same_for_any_number_of_workers(tmp_path):
    written = []
    for workers in (1, 2):
        write_tiny_texts(tmp_path / str(workers) / "texts")
        run = TinyRun(tmp_path / str(workers) / "texts", tmp_path / str(workers) / "run")
        prepare_data.main(run.argv("--data.min_document_bytes=1450", f"--data.workers={workers}"))
        written.append((run.output_dir / SAMPLES).read_text().replace(f"{tmp_path}/{workers}", ""))
    assert written[0] == written[1] and '"too_short"' in written[0]


def test_samples_are_limited_in_bytes_and_every_reason_has_its_part(tmp_path):
    for rank in range(3):
        task = Samples(tmp_path / "tasks", 1, "read", rank)
        for number in range(200):
            for reason, length in (("too_short", 50), ("language_de", 5000)):
                task.add("law", reason, f"{rank}-{number}-{reason}", "x" * length)
        task.write()
    write_samples(tmp_path / "tasks", tmp_path / "all", 100_000, {}, [])
    found = [json.loads(line) for line in (tmp_path / "all").read_text().splitlines()]
    assert 90_000 < (tmp_path / "all").stat().st_size <= 100_000
    numbers = Counter(sample["reason"] for sample in found)
    assert abs(numbers["too_short"] - numbers["language_de"]) <= 1 and len({sample["id"] for sample in found}) > 30
    write_samples(tmp_path / "tasks", tmp_path / "all", 0, {}, [])
    assert not (tmp_path / "all").exists()


def test_a_long_document_is_sampled_from_a_little_before_its_first_mark(tmp_path):
    task = Samples(tmp_path, 1, "read", 0)
    text = "x" * 50_000 + "# here" + "y" * 50_000
    task.add("law", "gopher_max_hashes", "1", text, [(50_000, 50_001, "a"), (90_000, 90_001, "b")], before=text)
    task.write()
    (sample,) = map(json.loads, (tmp_path / "read.00000.jsonl").read_text().splitlines())
    assert marked(sample) == [("#", "a")] and sample["start"] > 49_000 and sample["characters"] == len(text)
    assert sample["before"] == sample["text"] and len(sample["text"]) < 10_000


# Rule -> a text, and what is marked in it.
MARKED = {
    "gopher_max_repeated_paragraphs": ("one a\n\ntwo\n\none a", ["one a"]),
    "gopher_max_repeated_line_chars": ("same\nother\nsame\nsame", ["same", "same"]),
    "gopher_max_top_2_gram": ("a b c a b d", ["a b", "a b"]),
    "gopher_max_repeated_5_grams": ("a b c d e f. a b c d e", ["a b c d e"]),
    "gopher_max_mean_word_length": ("an extraordinarily word", ["extraordinarily"]),
    "gopher_max_hashes": ("# a ## b", ["#", "##"]),
    "gopher_max_ellipses": ("a ... b…", ["...", "…"]),
    "gopher_max_bullet_lines": ("text\n• item\n - item", ["• item", " - item"]),
    "gopher_max_ellipsis_lines": ("more ...\nno", ["more ..."]),
    "gopher_min_alphabetic_words": ("a 12 b7", ["12"]),
    "gopher_min_stop_words": ("The cat and dog", ["The", "and"]),
    "c4_max_lorem_ipsum": ("Lorem ipsum dolor", ["Lorem ipsum"]),
    "c4_max_curly_brackets": ("f(){", ["{"]),
    "fineweb_min_punctuated_lines": ("Ends.\ndoes not", ["Ends."]),
    "fineweb_max_short_lines": ("short\n" + "long " * 10, ["short"]),
    "fineweb_max_repeated_line_chars": ("same\nsame", ["same"]),
    "domain_max_policy_phrases": ("our Privacy Policy", ["Privacy Policy"]),
    "domain_min_common_words": ("the 12 cats", ["the", "12"]),
}


@pytest.mark.parametrize("rule", MARKED)
def test_what_a_rule_counts_is_marked(rule):
    text, expected = MARKED[rule]
    assert rule in RULES and [text[start:end] for start, end in mark(rule, text)] == expected


def test_overlapping_marks_and_invisible_characters_are_shown_once():
    view = view_text("", "a\u200bbcd", [(0, 3, "rule"), (2, 4, "email")])
    assert [piece for piece, _, _ in view.pieces] == ["a", "U+200B", "b", "cd"]
    before, after = view_pair(("", ""), ("one two  three", "one three"), (0, 20))
    assert [piece for piece in before.pieces if piece[1]] == [("two  ", "gone", "only here")]
    assert all(not kind for _, kind, _ in after.pieces) and after.more == "characters 1 to 9 of 20"
