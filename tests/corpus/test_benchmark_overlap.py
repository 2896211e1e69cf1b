# SPDX-License-Identifier: Apache-2.0
"""Decontamination: copies of benchmark items are found however written, and what only resembles them stays."""

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
from datatrove.data import Document
from tiny_run import RECIPES

from corpus.benchmark_overlap import BenchmarkIndex, drop_overlapping, find_question, normalised_words, write_report


SYLLABLES = ["ba", "co", "di", "fi", "gu", "ka", "lo", "mi", "nu", "pe", "ro", "sa", "te", "vu", "za"]
QUESTION = (
    'The tenant\'s final office lease, signed in 1998, "flowed" from an official offer; which of the parties must '
    "fix the leaking roof, and who may first file suit? Answer:"
)
ANSWER = " The landlord, by the implied warranty of fitness."
INSTRUCTION = "Read the clause with care and say whether it lets one side end the agreement at any time without cause."


def made_up_words(seed: int, count: int) -> list[str]:
    """Return words that no two seeds share in the same order."""
    choose = random.Random(seed)
    return ["".join(choose.choices(SYLLABLES, k=3)) for _ in range(count)]


def made_up(seed: int, count: int) -> str:
    return " ".join(made_up_words(seed, count))


def inside(text: str, seed: int = 1000) -> str:
    """Return a longer document with a text in its middle."""
    return f"{made_up(seed, 200)}. {text} {made_up(seed + 1, 200)}."


def item(item_id: str | int, context: str, gold: str = "", wrong: str = " none of these") -> dict:
    return {"id": item_id, "context": context, "choices": [wrong, gold], "gold": 1}


def write_tasks(folder: Path, **tasks: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for task, items in tasks.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in items))
    return folder


def index_of(folder: Path, ngram_words: int = 13, **tasks: list[dict]) -> BenchmarkIndex:
    return BenchmarkIndex(write_tasks(folder, **tasks), ngram_words)


def documents(source: str, *texts: str) -> list[Document]:
    return [Document(text=text, id=f"{source}-{i}", metadata={"source": source}) for i, text in enumerate(texts)]


def kept_ids(found: list[Document], index: BenchmarkIndex, fraction: float, folder: Path, rank: int = 0) -> list[str]:
    return [document.id for document in drop_overlapping(found, rank, 2, index, fraction, folder)]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    others = [item(f"other-{seed}", made_up(seed, 30)) for seed in range(20)]
    return write_tasks(tmp_path_factory.mktemp("benchmarks"), lease=[item("lease-0", QUESTION, ANSWER), *others])


@pytest.fixture(scope="module")
def index(benchmarks) -> BenchmarkIndex:
    return BenchmarkIndex(benchmarks)


# --- copies


FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
VARIANTS = {
    "exact": lambda text: text,
    "upper case": str.upper,
    "lower case without punctuation": lambda text: " ".join(normalised_words(text)),
    "one word a line": lambda text: "\r\n".join(text.split()),
    "tabs and many spaces": lambda text: "\t   ".join(text.split()),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "full-width letters": lambda text: text.translate(FULL_WIDTH),
    "curly quotes": lambda text: text.replace("'", "\u2019").replace(' "', " \u201c").replace('"', "\u201d"),
    "ligatures": lambda text: text.replace("ffi", "\ufb03").replace("fi", "\ufb01").replace("fl", "\ufb02"),
    "soft hyphens": lambda text: text.replace("ea", "e\u00ada"),
    "zero-width spaces": lambda text: "\u200b".join(text),
    "byte order mark and joiner": lambda text: "\ufeff" + text.replace("ll", "l\u2060l"),
    "bold letters of mathematics": lambda text: "".join(
        chr(0x1D41A + ord(c) - 97) if "a" <= c <= "z" else c for c in text
    ),
    "emphasis and a list": lambda text: "- _" + text.replace(" the ", " *the* ").replace("; ", ";\n- ") + "_",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_copy_is_found_however_it_is_written(index, variant):
    copy = VARIANTS[variant](QUESTION + ANSWER)
    assert variant == "exact" or copy != QUESTION + ANSWER
    assert index.overlaps(inside(copy)) == {("lease", "lease-0"): 1.0}
    assert index.overlaps(copy) == {("lease", "lease-0"): 1.0}, "a document that is nothing else"


def test_composed_and_decomposed_accents_and_text_without_spaces_are_found(tmp_path):
    accents = (
        "Le b\u00e9n\u00e9fice du d\u00e9biteur \u00e9choit au cr\u00e9ancier d\u00e8s la mise en demeure pr\u00e9vue"
    )
    japanese = "\u6cd5\u5f8b\u884c\u70ba\u306e\u8981\u7d20\u306b\u932f\u8aa4\u304c\u3042\u3063\u305f\u3068\u304d"
    index = index_of(tmp_path, mixed=[item(0, accents), item(1, japanese)])
    assert index.overlaps(inside(accents.replace("\u00e9", "e\u0301"))) == {("mixed", 0): 1.0}
    assert index.overlaps("\u524d\u6587" + japanese + "\u672b\u5c3e") == {("mixed", 1): 1.0}


def test_the_right_choice_belongs_to_the_item_and_the_wrong_ones_do_not(tmp_path):
    right, wrong = made_up(1, 20), made_up(2, 20)
    index = index_of(tmp_path, task=[item("a", "", right, wrong), item("b", made_up(3, 20), " yes")])
    assert index.overlaps(inside(right)) == {("task", "a"): 1.0}
    assert index.overlaps(inside(wrong)) == {}


def test_an_item_of_8_to_12_words_is_found_as_a_whole_only(tmp_path):
    words = made_up_words(5, 12)
    index = index_of(tmp_path, task=[item("a", " ".join(words)), item("b", " ".join(words[:8]))])
    assert index.overlaps(inside(" ".join(words))) == {("task", "a"): 1.0, ("task", "b"): 1.0}
    assert index.overlaps(inside(" ".join(words[:11]))) == {("task", "b"): 1.0}
    assert index.overlaps(inside(" ".join(words[1:]))) == {}


def test_the_fraction_counts_the_words_in_shared_runs(tmp_path):
    words = made_up_words(6, 30)
    index = index_of(tmp_path, task=[item("a", " ".join(words))])
    assert index.overlaps(inside(" ".join([*words[:15], "otherwise", *words[16:]]))) == {("task", "a"): 29 / 30}
    assert index.overlaps(inside(" ".join(words[:15]))) == {("task", "a"): 0.5}
    apart = inside(" ".join(words[17:])) + inside(" ".join(words[:13]), 2000)
    assert index.overlaps(apart) == {("task", "a"): 26 / 30}


def test_an_item_that_two_tasks_ask_is_found_in_both(tmp_path):
    text = made_up(7, 25)
    index = index_of(tmp_path, first=[item("a", text)], second=[item(9, made_up(8, 25)), item("b", text.upper())])
    assert index.overlaps(inside(text)) == {("first", "a"): 1.0, ("second", "b"): 1.0}


def listed(seed: int, question_words: int, option_words: int, mark: str = "Question: ", end: str = "") -> dict:
    """An item whose prompt lists its choices by letter, as MMLU's."""
    options = [f"{letter}. {made_up(10 * seed + place, option_words)}" for place, letter in enumerate("ABCD", 1)]
    context = "\n".join([f"{mark}{made_up(10 * seed, question_words)}{end}", *options, "Answer:"])
    return {"id": f"{seed}", "context": context, "choices": [" A", " B", " C", " D"], "gold": 2}


@pytest.mark.parametrize("question_words", [8, 12, 13, 20])
@pytest.mark.parametrize(("mark", "end"), [("", ""), ("Question: ", ""), ("Question: ", "\nChoices:")])
def test_the_question_is_found_without_the_choices_that_the_prompt_lists(tmp_path, question_words, mark, end):
    index = index_of(tmp_path, task=[listed(seed, question_words, 12, mark, end) for seed in range(1, 4)])
    question = made_up(20, question_words)
    assert index.overlaps(inside(question)) == {("task", "2"): 1.0}
    assert index.overlaps(inside(listed(2, question_words, 12)["context"]))["task", "2"] > 0.95
    half = inside(" ".join(question.split()[: question_words // 2]))
    assert index.overlaps(half) == {}, "fewer than 13 words"
    assert kept_ids(documents("law", inside(question), half), index, 1.0, tmp_path / "notes") == ["law-1"]


def test_choices_without_the_question_count_as_part_of_the_item(tmp_path):
    index = index_of(tmp_path, task=[listed(seed, 20, 20) for seed in range(1, 4)])
    words = len(normalised_words(listed(2, 20, 20)["context"])) + 1
    assert index.overlaps(inside(made_up(21, 20))) == {("task", "2"): 20 / words}


def test_the_question_counts_without_an_answer_in_full_text_and_a_short_one_does_not(tmp_path):
    asked, right = made_up(1, 15), made_up(2, 60)
    tasks = [item("long", f"Question: {asked}\nAnswer:", f" {right}"), item("short", "Who pays what?", made_up(3, 30))]
    index = index_of(tmp_path, task=tasks)
    assert index.overlaps(inside(asked)) == {("task", "long"): 1.0}
    assert index.overlaps(inside(f"Who pays what? {made_up(3, 13)}"))["task", "short"] == 16 / 33


def test_a_document_that_holds_the_page_an_item_asks_about_is_reported_apart_from_one_that_holds_the_question(
    tmp_path,
):
    page, asked = made_up(1, 200), made_up(2, 15)
    filings = [
        item(place, f"{page}\nQuestion: {made_up(10 + place, 15) if place else asked}\nAnswer:", " 12")
        for place in range(3)
    ]
    index = index_of(tmp_path / "tasks", finqa=filings, other=[item("a", made_up(90, 20))])
    assert index.overlaps(inside(asked)) == {("finqa", 0): 1.0}, "the question without its page"
    texts = [inside(page), inside(page, 2000), inside(f"{page} Question: {asked}", 3000), inside(asked, 4000)]
    assert kept_ids(documents("sec", *texts), index, 0.5, tmp_path / "notes") == []
    report = write_report(tmp_path / "report.json", index, 0.5, tmp_path / "notes")
    task = report["tasks"]["finqa"]
    assert task["removed"]["sec"]["documents"] == 4
    assert task["removed_for_passages"]["sec"]["documents"] == 2
    assert report["tasks"]["other"]["removed_for_passages"] == {}


def test_a_question_that_all_items_share_is_none_so_a_copied_sentence_counts_as_the_item(tmp_path):
    task = [
        item(seed, f"{made_up(seed, 20)}\nQuestion: what is the sentiment?\nAnswer:", " positive")
        for seed in range(30)
    ]
    index = index_of(tmp_path / "tasks", fpb=task)
    assert kept_ids(documents("news", inside(made_up(3, 20))), index, 0.5, tmp_path / "notes") == []
    report = write_report(tmp_path / "report.json", index, 0.5, tmp_path / "notes")
    assert report["tasks"]["fpb"]["removed"]["news"]["documents"] == 1
    assert report["tasks"]["fpb"]["removed_for_passages"] == {}


def test_letters_that_are_no_list_of_choices_belong_to_the_question(tmp_path):
    text = f"{made_up(1, 10)}\nA. {made_up(2, 20)}"
    index = index_of(tmp_path, task=[item("clause", text, " yes"), item("other", made_up(3, 20))])
    assert index.overlaps(inside(made_up(2, 20))) == {("task", "clause"): 20 / 31}
    assert find_question("", ["a sentence."]) == (0, 0)


# --- what resembles an item


def test_text_on_the_same_subject_and_altered_copies_stay(index):
    words = normalised_words(QUESTION + ANSWER)
    altered = ["altered" if place % 6 == 5 else word for place, word in enumerate(words)]
    near_misses = [
        "Who must repair a leaking roof? The tenant's lease was signed in 1998, and the landlord by implied warranty "
        "of fitness has to fix what leaks; either of the parties may file suit.",
        " ".join(words[4:12]),
        " ".join(words[:12]) + " but " + " ".join(words[13:25]),
        " ".join(altered),
        " ".join(reversed(words)),
        " ".join(sorted(words)),
        "",
        "lease",
    ]
    for text in near_misses:
        assert index.overlaps(inside(text)) == index.overlaps(text) == {}, text


def test_fewer_words_to_a_run_find_shorter_copies(tmp_path):
    words = made_up_words(9, 24)
    tasks = {"task": [item("a", " ".join(words))]}
    eight = inside(" ".join(words[4:12]))
    assert index_of(tmp_path / "13", 13, **tasks).overlaps(eight) == {}
    assert index_of(tmp_path / "8", 8, **tasks).overlaps(eight) == {("task", "a"): 8 / 24}


# --- templates


def templated(number: int) -> list[dict]:
    clauses = [made_up(100 + seed, 20) for seed in range(number)]
    return [item(seed, f"{INSTRUCTION}\nClause: {clause}\nAnswer:", " yes") for seed, clause in enumerate(clauses)]


def test_the_wording_that_many_items_share_identifies_none(tmp_path):
    index = index_of(tmp_path, clauses=templated(10))
    assert index.overlaps(inside(INSTRUCTION + " Clause:")) == {}
    assert index.template_ngrams["clauses"] == len(normalised_words(INSTRUCTION + " Clause:")) - 13 + 1
    assert index.not_checkable["clauses"] == {"too_short": [], "template": []}
    clause = made_up(104, 20)
    assert index.overlaps(inside(clause)) == {("clauses", 4): 1.0}, "all of the question"
    assert index.overlaps(inside(" ".join(clause.split()[:13]))) == {("clauses", 4): 13 / 20}
    assert index.overlaps(inside(f"{INSTRUCTION}\nClause: {clause}\nAnswer: yes")) == {("clauses", 4): 1.0}


def test_passages_on_both_sides_of_a_template_are_looked_for_each_by_itself(tmp_path):
    before, after = made_up(1, 9), made_up(2, 20)
    items = [item(seed, f"{made_up(10 + seed, 9)} {INSTRUCTION} {made_up(30 + seed, 20)}") for seed in range(12)]
    index = index_of(tmp_path, task=[*items, item("a", f"{before} {INSTRUCTION} {after}")])
    assert index.overlaps(inside(before)) == {("task", "a"): 9 / 29}
    assert index.overlaps(inside(after)) == {("task", "a"): 20 / 29}
    assert index.overlaps(inside(f"{before} {INSTRUCTION} {after}")) == {("task", "a"): 1.0}
    assert index.overlaps(inside(f"{before} {after[:5]}")) == {("task", "a"): 9 / 29}


def test_wording_that_nine_items_share_is_still_theirs(tmp_path):
    assert len(index_of(tmp_path, clauses=templated(9)).overlaps(inside(INSTRUCTION))) == 9


def test_ten_items_that_share_a_text_in_a_large_task_still_own_it(tmp_path):
    others = [item(f"other-{seed}", made_up(seed, 15)) for seed in range(190)]
    index = index_of(tmp_path, clauses=[*templated(10), *others])
    assert len(index.overlaps(inside(INSTRUCTION))) == 10, "10 of 200 are not more than 5 %"


def test_items_that_cannot_be_checked_are_listed_with_the_reason(tmp_path):
    short = item("short", "Which court?", " The court of appeal below.")
    question = item("only-template", INSTRUCTION, " Clause: it may end.")
    index = index_of(tmp_path, clauses=[*templated(20), short, question])
    assert index.not_checkable["clauses"] == {"too_short": ["short"], "template": ["only-template"]}
    assert len(index.items) == 20
    assert index.overlaps(inside("Which court? The court of appeal below.")) == {}


# --- the index


def test_the_index_does_not_depend_on_the_order_of_files_or_lines(tmp_path, monkeypatch):
    tasks = {"a": [item(seed, made_up(seed, 30)) for seed in range(5)], "b": [item(9, made_up(9, 30))]}
    folder = write_tasks(tmp_path / "one", **tasks)
    listed = sorted(folder.glob("*.jsonl"))
    pickles = []
    for order in (listed, listed[::-1]):
        monkeypatch.setattr(Path, "glob", lambda path, pattern, order=order: iter(order))
        pickles.append(pickle.dumps(BenchmarkIndex(folder)))
    monkeypatch.undo()
    assert pickles[0] == pickles[1]
    shuffled = BenchmarkIndex(write_tasks(tmp_path / "two", **{name: items[::-1] for name, items in tasks.items()}))
    ordered = BenchmarkIndex(folder)
    assert shuffled.sha256 != ordered.sha256
    shuffled.sha256 = ordered.sha256
    assert pickle.dumps(shuffled) == pickle.dumps(ordered)


def test_another_process_builds_the_same_index_and_finds_the_same_with_a_pickled_one(benchmarks, index):
    text = inside(QUESTION + ANSWER)
    code = (
        "import pathlib, pickle, sys; from corpus.benchmark_overlap import BenchmarkIndex; "
        "index, text = pickle.load(sys.stdin.buffer); built = BenchmarkIndex(pathlib.Path(sys.argv[1])); "
        "sys.stdout.buffer.write(pickle.dumps((index.overlaps(text), list(built.word_hashes.items()), built.ngrams)))"
    )
    environment = {"PYTHONPATH": str(RECIPES), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(benchmarks)]
    answer = subprocess.run(
        command, input=pickle.dumps((index, text)), capture_output=True, check=True, env=environment
    )
    overlaps, word_hashes, ngrams = pickle.loads(answer.stdout)
    assert overlaps == {("lease", "lease-0"): 1.0}
    assert word_hashes == list(index.word_hashes.items()) and (ngrams == index.ngrams).all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "task.jsonl:2: JSONDecodeError"),
        ('{"id": 1, "context": "a", "choices": ["b"]}', "task.jsonl:2: KeyError('gold')"),
        ('{"id": 1, "context": "a", "choices": ["b"], "gold": 1}', "task.jsonl:2: IndexError"),
        ('{"id": 1, "context": null, "choices": ["b"], "gold": 0}', "task.jsonl:2: TypeError"),
        ('{"id": 0, "context": "a", "choices": ["b"], "gold": 0}', "task.jsonl:2: the id 0 is not unique"),
    ],
)
def test_a_line_that_is_no_item_is_refused_with_its_place(tmp_path, line, message):
    write_tasks(tmp_path, task=[item(0, made_up(0, 20))])
    with (tmp_path / "task.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError) as error:
        BenchmarkIndex(tmp_path)
    assert message in str(error.value)


def test_too_few_words_to_a_run_and_nothing_to_check_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ngram_words=7 is too few"):
        index_of(tmp_path / "a", 7, task=[item(0, made_up(0, 20))])
    with pytest.raises(ValueError, match="--export_requests"):
        BenchmarkIndex(tmp_path / "absent")
    with pytest.raises(ValueError, match="no item of at least 8 words"):
        index_of(tmp_path / "short", task=[item(0, "Who pays?", " The buyer.")])


# --- dropping and accounting


@pytest.fixture
def corpus() -> dict[str, list[Document]]:
    words = normalised_words(QUESTION + ANSWER)
    law = documents("law", inside(QUESTION + ANSWER), made_up(50, 100), inside(" ".join(words[:14])))
    web = documents("web", inside((QUESTION + ANSWER).upper() + made_up(3, 30)), inside(made_up(4, 13)))
    return {"law": law, "web": web}


def test_documents_that_hold_enough_of_an_item_are_dropped_and_everything_is_accounted_for(index, corpus, tmp_path):
    notes = tmp_path / "notes"
    assert kept_ids(corpus["law"], index, 0.5, notes, rank=0) == ["law-1", "law-2"]
    assert kept_ids(corpus["web"], index, 0.5, notes, rank=1) == ["web-1"]
    report = write_report(tmp_path / "decontamination.json", index, 0.5, notes)
    assert json.loads((tmp_path / "decontamination.json").read_text()) == report

    sizes = {document.id: len(document.text) for source in corpus.values() for document in source}
    removed = {name: {"documents": 1, "bytes": sizes[f"{name}-0"]} for name in ("law", "web")}
    lease = report["tasks"]["lease"]
    assert report["removed"] == lease["removed"] == removed
    assert report["settings"]["ngram_words"] == 13 and report["settings"]["min_overlap_fraction"] == 0.5
    assert report["settings"]["sha256"] == index.sha256 and report["settings"]["question_apart"]
    assert (lease["items"], lease["checkable"], lease["overlapping_items"]) == (21, 21, 3)
    assert lease["overlapping_items_after_removal"] == 2
    partly = 14 / len(normalised_words(QUESTION.removesuffix("Answer:")))
    first = lease["overlaps"][0]
    assert {key: first[key] for key in first if key != "largest"} == {
        "id": "lease-0",
        "documents": 3,
        "fraction": 1.0,
        "fraction_after_removal": partly,
    }
    assert first["largest"] == [
        {"source": "law", "document": "law-0", "fraction": 1.0, "dropped": True},
        {"source": "web", "document": "web-0", "fraction": 1.0, "dropped": True},
        {"source": "law", "document": "law-2", "fraction": partly, "dropped": False},
    ]
    assert [(entry["id"], entry["fraction_after_removal"]) for entry in lease["overlaps"][1:]] == [
        ("other-3", 0.0),
        ("other-4", 13 / 30),
    ]


def test_a_document_at_the_threshold_is_dropped_and_one_below_it_is_kept(tmp_path):
    words = made_up_words(6, 30)
    index = index_of(tmp_path, task=[item("a", " ".join(words))])
    halves = documents("law", inside(" ".join(words[:15])), inside(" ".join(words[:14])))
    assert kept_ids(halves, index, 0.5, tmp_path / "half") == ["law-1"]
    assert kept_ids(halves, index, 0.51, tmp_path / "more") == ["law-0", "law-1"]


def test_the_report_does_not_depend_on_how_documents_are_divided_into_tasks(index, corpus, tmp_path):
    kept_ids(corpus["law"] + corpus["web"], index, 0.5, tmp_path / "one")
    kept_ids(corpus["web"][::-1], index, 0.5, tmp_path / "two", rank=0)
    kept_ids(corpus["law"], index, 0.5, tmp_path / "two", rank=1)
    for name in ("one", "two"):
        write_report(tmp_path / f"{name}.json", index, 0.5, tmp_path / name)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_a_document_that_holds_items_of_two_tasks_counts_once_in_all_and_once_in_each(tmp_path):
    first, second, third = (made_up(seed, 30) for seed in range(3))
    index = index_of(tmp_path, one=[item("a", first)], two=[item("b", second)], three=[item("c", third)])
    partly = " ".join(third.split()[:14])
    kept_ids(documents("law", inside(f"{first} {second} {partly}")), index, 0.5, tmp_path / "notes")
    report = write_report(tmp_path / "decontamination.json", index, 0.5, tmp_path / "notes")
    counts = [report["removed"], report["tasks"]["one"]["removed"], report["tasks"]["two"]["removed"]]
    assert [count["law"]["documents"] for count in counts] == [1, 1, 1]
    third = report["tasks"]["three"]
    assert (third["removed"], third["overlapping_items"], third["overlapping_items_after_removal"]) == ({}, 1, 0)
