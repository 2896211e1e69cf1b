# SPDX-License-Identifier: Apache-2.0
"""Every benchmark's rows become items: small examples of each form, and real files if they are available."""

import json
from dataclasses import replace

import pytest

from benchmark_rows import READERS
from benchmark_tasks import available_shots, build_requests, choose_tasks, exported_items, load_items, read_benchmarks


BENCHMARKS = read_benchmarks()
TABLE = {"pre_text": ["In 2019 sales rose."], "post_text": [], "table": [["year", "sales"], ["2019", "$ 12"]]}
# A made-up row of each form, and part of the item that it becomes.
ROWS = {
    "arc_easy": (
        {"question": "What melts?", "choices": {"text": ["ice", "fire"], "label": ["1", "2"]}, "answerKey": "1"},
        {"context": "Question: What melts?\nAnswer:", "choices": ["ice", "fire"], "gold": 0},
    ),
    "openbookqa": (
        {"question_stem": "Ice is", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]}, "answerKey": "B"},
        {"context": "Ice is", "gold": 1},
    ),
    "hellaswag": (
        {
            "activity_label": "Cooking",
            "ctx_a": "A man [title] cuts  bread.",
            "ctx_b": "he",
            "endings": ["eats it. [step] Then", "flies."],
            "label": "0",
        },
        {"context": "Cooking: A man. cuts bread. He", "choices": ["eats it. Then", "flies."], "gold": 0},
    ),
    "piqa": ({"goal": "Open a jar", "sol1": "Twist.", "sol2": "Cut.", "label": 0}, {"gold": 0}),
    "winogrande": (
        {"sentence": "Ann helped Eve as _ was kind.", "option1": "Ann", "option2": "Eve", "answer": "1"},
        {"contexts": ["Ann helped Eve as Ann", "Ann helped Eve as Eve"], "continuation": "was kind.", "gold": 0},
    ),
    "boolq": ({"passage": "It rains.", "question": "is it wet", "label": 1}, {"choices": ["no", "yes"], "gold": 1}),
    "lambada_openai": ({"text": "The cat sat on the mat"}, {"context": "The cat sat on the", "continuation": "mat"}),
    "blimp_anaphor_number_agreement": ({"sentence_good": "A.", "sentence_bad": "B."}, {"gold": 0}),
    "mmlu_anatomy": (
        {"question": "Which?", "choices": ["w", "x", "y", "z"], "answer": 2},
        {"context": "Which?\nA. w\nB. x\nC. y\nD. z\nAnswer:", "choices": ["A", "B", "C", "D"], "gold": 2},
    ),
    "casehold": ({"context": "See (<HOLDING>)", "endings": list("abcde"), "label": 4}, {"gold": 4}),
    "medqa_4options": (
        {"question": "Q?", "options": dict(zip("ABCD", "wxyz", strict=True)), "answer_idx": "D"},
        {"context": "Question: Q?\nA. w\nB. x\nC. y\nD. z\nAnswer:", "gold": 3},
    ),
    "medmcqa": ({"question": "Q?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 1}, {"gold": 1}),
    "pubmedqa": (
        {"QUESTION": "Q?", "CONTEXTS": ["One.", "Two."], "final_decision": "maybe"},
        {"context": "Abstract: One.\nTwo.\nQuestion: Q?\nAnswer:", "choices": ["yes", "no", "maybe"], "gold": 2},
    ),
    "fpb": ({"text": "Profit rose to EUR 2 mn@home .@positive"}, {"gold": 2}),
    "fiqa_sa": ({"sentence": "Down.", "target": "Acme", "score": -0.4}, {"gold": 0}),
    "headline": ({"query": "Up?", "choices": ["No", "Yes"], "gold": 1, "label_type": "up"}, {"label_type": "up"}),
    "ner": (
        {"text": "Jane Doe runs Acme", "label": ["B-PER", "I-PER", "O", "B-ORG"]},
        {"context": "Jane Doe runs Acme\nExtract named entities:", "answer": "Jane Doe (PER), Acme (ORG)"},
    ),
    "convfinqa": ({"query": "What was it?", "answer": "12.5"}, {"context": "What was it?", "answer": "12.5"}),
    "tatqa": ({"query": "What was it?", "answer": "$12"}, {"answer": "$12"}),
    "finqa": (
        TABLE | {"qa": {"question": "How much?", "exe_ans": 12.0}},
        {"context": "In 2019 sales rose.\nyear | sales\n2019 | $ 12\nQuestion: How much?\nAnswer:", "answer": "12.0"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_row_as_it_is_published_becomes_an_item_and_a_request(tmp_path, name):
    row, expected = ROWS[name]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    benchmark = replace(BENCHMARKS[name], holdout=None)
    items, shots, origin = load_items(benchmark, tmp_path / "rows.jsonl")
    assert len(items) == 2 and not shots and origin["path"] == "rows.jsonl"
    for key, value in expected.items():
        assert items[0][key] == value
    (first, _) = build_requests(benchmark, items, shots, 0, seed=0)
    (exported, _) = exported_items([first, first])
    assert set(exported) == {"id", "context", "choices", "gold"} and exported["choices"][exported["gold"]].strip()


@pytest.mark.parametrize(
    ("name", "query", "context"),
    [
        ("arc_easy", "Question: What melts?", "Question: What melts?\nAnswer:"),
        ("piqa", "Question: Open a jar\n", "Question: Open a jar\nAnswer:"),
        ("piqa", "Question: Open a jar\nAnswer:", "Question: Open a jar\nAnswer:"),
        ("openbookqa", "Ice is", "Ice is"),
        ("hellaswag", "Cooking: He", "Cooking: He"),
    ],
)
def test_a_row_in_the_form_of_llm_foundry_makes_the_prompt_of_the_published_row(tmp_path, name, query, context):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": query, "choices": ["ice", "fire"], "gold": 0}) + "\n")
    items, _, _ = load_items(BENCHMARKS[name], tmp_path / "rows.jsonl")
    ((first, second),) = [each["requests"] for each in build_requests(BENCHMARKS[name], items, [], 0, seed=0)]
    assert (first, second) == ([context, " ice"], [context, " fire"])


def test_entities_of_no_type_and_sentences_without_others_are_left_out(tmp_path):
    rows = [{"text": "Jane Doe signs", "label": ["B-PER", "I-PER", "O"]}, {"text": "It rained", "label": ["O", "O"]}]
    rows += [{"text": "Nasdaq fell", "label": ["B-MISC", "O"]}]
    rows += [{"text": "Nasdaq lists Acme", "label": ["B-MISC", "O", "B-ORG"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items, _, _ = load_items(BENCHMARKS["ner"], tmp_path / "rows.jsonl")
    assert [(item["id"], item["answer"]) for item in items] == [
        ("ner-00000", "Jane Doe (PER)"),
        ("ner-00003", "Acme (ORG)"),
    ]


def test_every_reader_has_an_example():
    assert {BENCHMARKS[name].rows for name in ROWS} | {"items", "legalbench"} == set(READERS)


def test_legalbench_is_162_tasks_of_which_30_are_off_unless_asked_for():
    tasks = [name for name, benchmark in BENCHMARKS.items() if "legalbench" in benchmark.groups]
    assert len(tasks) == 162
    assert len(choose_tasks(["legalbench"], BENCHMARKS, noncommercial=False)) == 132
    assert choose_tasks(["legalbench"], BENCHMARKS, noncommercial=True) == tasks
    with pytest.raises(ValueError, match="CC BY-NC-SA 3.0.* forbids commercial use"):
        choose_tasks(["fpb"], BENCHMARKS, noncommercial=False)
    assert len(choose_tasks(["mmlu"], BENCHMARKS, noncommercial=False)) == 57
    assert len(choose_tasks(["blimp"], BENCHMARKS, noncommercial=False)) == 67


def test_legalbench_choices_are_the_answers_of_the_task_and_examples_come_from_its_train_split(tmp_path):
    rows = [{"split": "train", "text": f"Clause {n}.", "answer": answer} for n, answer in enumerate(["Yes", "No"])]
    rows += [{"text": "Clause 9.", "answer": "No", "slice": "hidden", "index": 3}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = BENCHMARKS["legalbench_hearsay"]
    items, shots, _ = load_items(benchmark, tmp_path / "rows.jsonl")
    (request,) = build_requests(benchmark, items, shots, available_shots(benchmark, shots, None), seed=0)
    context = "Clause 0.\nAnswer: Yes\n\nClause 1.\nAnswer: No\n\nClause 9.\nAnswer:"
    assert request["requests"] == [[context, " No"], [context, " Yes"]] and request["gold"] == 0


def test_a_text_that_looks_like_a_template_is_not_filled_in(tmp_path):
    row = {"context": "{{ cycler.__init__ }} is", "choices": ["{% x %}", "b"], "gold": 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    items, shots, _ = load_items(BENCHMARKS["legal_sense"], tmp_path / "rows.jsonl")
    (request,) = build_requests(BENCHMARKS["legal_sense"], items, shots, 0, seed=0)
    assert request["requests"][0] == ["{{ cycler.__init__ }} is", " {% x %}"]


def test_examples_that_have_no_split_are_drawn_by_their_own_text(tmp_path):
    lines = [json.dumps({"text": f"Sentence number {n}.@neutral"}) for n in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    items, shots, _ = load_items(BENCHMARKS["fpb"], tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:100]))
    fewer, _, _ = load_items(BENCHMARKS["fpb"], tmp_path / "rows.jsonl")
    assert 20 <= len(items) <= 60 and len(items) + len(shots) == 200
    assert {item["context"] for item in fewer} < {item["context"] for item in items}


def test_row_of_another_form_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"sentence": "no goal"}\n')
    with pytest.raises(
        ValueError, match="piqa: .*/rows.jsonl: row 0 .* form that benchmark_rows.piqa reads: .*fields are sentence"
    ):
        load_items(BENCHMARKS["piqa"], tmp_path / "rows.jsonl")


GOOD = {"id": "nda-1", "context": "The term is", "choices": ["two years.", "ten goats."], "gold": 0}


@pytest.mark.parametrize(
    ("kind", "changes", "complaint"),
    [
        ("choice", {"gold": "0"}, "gold: '0' must be a number from 0 to 1, that of the right one of choices"),
        ("choice", {"gold": 2}, "gold: 2 must be a number from 0 to 1"),
        ("choice", {"gold": -1}, "gold: -1 must be a number from 0 to 1"),
        ("choice", {"gold": True}, "gold: True must be a number from 0 to 1"),
        ("choice", {"gold": None}, "gold: None must be a number from 0 to 1"),
        ("choice", {"choices": []}, r"choices: \[\] must be a list of texts"),
        ("choice", {"choices": [1, 2]}, r"choices: \[1, 2\] must be a list of texts"),
        ("choice", {"context": 5}, "context: 5 must be a text"),
        ("choice", {"choices": None, "answer": "two years."}, "set kind: answer in the task's YAML, or add choices"),
        ("choice", {"choices": None, "label": 1}, "label: 1 must be a text"),
        ("choice", {"contexts": ["a", "b"], "continuation": "c", "gold": 2}, "the right one of contexts"),
        (
            "choice",
            {"contexts": ["a", "b"], "continuation": "c"},
            "contexts and a single context are two forms of an item",
        ),
        ("choice", {"id": "nda-1"}, "id: 'nda-1' is that of row 0 too; give each item its own"),
        ("answer", {"choices": None}, "answer: None must be a text, in a task of kind: answer"),
        ("cloze", {"choices": None}, "continuation: None must be a text, in a task of kind: cloze"),
    ],
)
def test_an_item_that_cannot_be_scored_is_refused_by_file_and_row(tmp_path, kind, changes, complaint):
    benchmark = replace(BENCHMARKS["legal_sense"], kind=kind)
    good = {
        "choice": GOOD,
        "answer": {"id": "nda-1", "context": "The term is", "answer": "two years."},
        "cloze": {"id": "nda-1", "context": "The term is two", "continuation": "years."},
    }[kind]
    changed = {key: value for key, value in (GOOD | {"id": "nda-2"} | changes).items() if value is not None}
    path = tmp_path / "nda_terms.jsonl"
    path.write_text(json.dumps(good) + "\n")
    assert len(load_items(benchmark, path)[0]) == 1
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, changed)))
    with pytest.raises(ValueError, match=f"legal_sense: {path}: row 1 of the test split: .*{complaint}"):
        load_items(benchmark, path)
