# SPDX-License-Identifier: Apache-2.0
"""Every task of ours that lm-eval has under the same name renders the same contexts, choices and answers.

A task of each form of row also gets the same scores from both programs, item by item.
"""

import copy
import json
import re
from pathlib import Path

import datasets
import lm_eval.evaluator
import lm_eval.tasks
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing

from benchmark_tasks import TASKS_DIR, available_shots, build_requests, load_items, read_benchmarks
from item_scores import METRICS
from request_scoring import RequestScorer, score_requests
from shared_work import SharedWork


BENCHMARKS = read_benchmarks()
LM_EVAL = Path(lm_eval.tasks.__file__).parent
# Folders of lm-eval with a task of a name of ours; the test below looks for others.
FOLDERS = [
    "arc", "blimp", "hellaswag", "lambada", "legalbench", "medmcqa", "medqa", "mmlu/default", "openbookqa", "piqa",
    "pubmedqa", "super_glue/boolq", "winogrande",
]  # fmt: skip


def namesakes(folder: Path) -> set[str]:
    found = re.findall(
        r"^\s*\"?task\"?:\s*[\"']?([\w.-]+)[\"']?\s*$",
        "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*.yaml")),
        re.MULTILINE,
    )
    return set(found) & BENCHMARKS.keys()


NAMESAKES = sorted(set().union(*(namesakes(LM_EVAL / folder) for folder in FOLDERS)))
# lm-eval asks LegalBench with an instruction for each task and has the answer written; ours chooses among the answers.
DIFFERENT = [name for name in NAMESAKES if name.startswith("legalbench_")]


def made_up_row(name: str, number: int) -> dict:
    """Return a row in the form of the Hub, with spaces and signs that a renderer may lose."""
    topic = BENCHMARKS[name].dataset_name
    letters = {"text": ["ice ", "fire", "sand", f"rain {number}"], "label": ["A", "B", "C", "D"]}
    answer = "ABCD"[number % 4]
    rows = {
        "mmlu": {
            "question": f" Which {number}? ", "choices": ["w ", "x", " y", "z"], "answer": number % 4, "subject": topic
        },
        "blimp": {"sentence_good": f"Cats {number} sleep.", "sentence_bad": f"Cats {number} sleeps.", "UID": topic},
        "arc": {"id": str(number), "question": f"What melts {number}? ", "choices": letters, "answerKey": answer},
        "openbookqa": {"question_stem": f"Ice {number} is", "choices": letters, "answerKey": answer},
        "hellaswag": {
            "activity_label": "Cooking", "ctx_a": f"A man [title] cuts  bread {number}.", "ctx_b": "he",
            "ctx": f"A man [title] cuts  bread {number}. he", "endings": ["eats. [step] Then", "flies.", "a", "b"],
            "label": str(number % 4), "ind": number, "source_id": "x", "split": "val", "split_type": "indomain",
        },
        "piqa": {"goal": f"Open jar {number}", "sol1": "Twist.", "sol2": "Cut.", "label": number % 2},
        "winogrande": {
            "sentence": f"Ann helped Eve {number} times as _ was kind.", "option1": "Ann", "option2": "Eve",
            "answer": str(number % 2 + 1),
        },
        "boolq": {"passage": f"It rains {number}.", "question": "is it wet", "idx": number, "label": number % 2},
        "lambada": {"text": f"The cat number {number} sat on the mat"},
        "medqa": {"id": str(number), "sent1": f"Pain {number}?", "sent2": "", "label": number % 4}
        | {f"ending{index}": f"drug {index}" for index in range(4)},
        "medmcqa": {"question": f"Q {number}?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": number % 4},
        "pubmedqa": {
            "QUESTION": f"Does it {number}?", "CONTEXTS": ["One.", "Two."],
            "final_decision": ["yes", "maybe"][number % 2],
        },
        "legalbench": {"index": str(number), "text": f"Clause {number}.", "answer": ["Yes", "No"][number % 2]},
    }  # fmt: skip
    return rows[BENCHMARKS[name].rows]


@pytest.fixture
def hub(monkeypatch, request):
    """A mock Hub whose splits for examples and for testing have other rows."""
    name = request.getfixturevalue("name")
    examples = Dataset.from_list([made_up_row(name, number) for number in range(8)])
    tested = Dataset.from_list([made_up_row(name, number) for number in range(10, 14)])
    splits = {"train": tested if name.startswith("blimp") else examples, "dev": examples}
    splits |= {"validation": tested, "test": tested}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: DatasetDict(splits))
    return splits


@pytest.fixture(scope="module")
def manager():
    return TaskManager(include_path=[str(LM_EVAL / folder) for folder in FOLDERS], include_defaults=False)


def our_requests(name: str, splits: dict, num_fewshot: int | None, folder: Path) -> tuple[list[dict], int]:
    benchmark = BENCHMARKS[name]
    rows = [row | {"split": "test"} for row in splits[benchmark.scored_split]]
    if benchmark.fewshot_split:
        rows += [row | {"split": benchmark.fewshot_split} for row in splits[benchmark.fewshot_split]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items, shots, _ = load_items(benchmark, folder / "rows.jsonl")
    number = available_shots(benchmark, shots, num_fewshot)
    return build_requests(benchmark, items, shots, number, seed=0), number


def their_requests(manager, name: str, num_fewshot: int) -> tuple[list[list[tuple]], list[int]]:
    task = manager.load([name])["tasks"][name]
    task.set_config("num_fewshot", num_fewshot)
    task.set_fewshot_seed(0)
    task.build_all_requests(rank=0, world_size=1)
    requests: list[list[tuple]] = [[] for _ in task.eval_docs]
    for instance in task.instances:
        requests[instance.doc_id].append(instance.args)
    golds = []
    for doc in task.eval_docs:
        target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        golds.append(target if isinstance(target, int) else list(task.doc_to_choice(doc)).index(target))
    return requests, golds


@pytest.mark.parametrize("examples", ["default", "two"])
@pytest.mark.parametrize("name", [name for name in NAMESAKES if name not in DIFFERENT])
def test_a_task_renders_as_its_namesake_in_lm_eval(hub, manager, name, examples, tmp_path):
    wanted = {"default": None, "two": 2 if BENCHMARKS[name].fewshot_split else 0}[examples]
    ours, number = our_requests(name, hub, wanted, tmp_path)
    assert wanted is None or number == wanted
    if BENCHMARKS[name].kind == "cloze":
        task = manager.load([name])["tasks"][name]
        task.set_config("num_fewshot", number)
        task.build_all_requests(rank=0, world_size=1)
        assert [tuple(pair) for item in ours for pair in item["requests"]] == [each.args for each in task.instances]
        return
    theirs, golds = their_requests(manager, name, number)
    assert [[tuple(pair) for pair in item["requests"]] for item in ours] == theirs
    assert [item["gold"] for item in ours] == golds


FORMS = {BENCHMARKS[name].rows: name for name in NAMESAKES if name not in DIFFERENT}


@pytest.fixture(scope="module")
def lm(model, tokenizer) -> HFLM:
    """lm-eval's model, whose tokenizer puts the start token before each text as those of Llama do."""
    adding = copy.deepcopy(tokenizer)
    start = [(adding.bos_token, adding.bos_token_id)]
    adding.backend_tokenizer.post_processor = TemplateProcessing(single=f"{adding.bos_token} $A", special_tokens=start)
    return HFLM(pretrained=model, backend="causal", tokenizer=adding, batch_size=4, add_bos_token=True)


@pytest.mark.parametrize("name", FORMS.values(), ids=FORMS)
def test_a_task_gets_the_scores_of_lm_eval_item_by_item(hub, manager, name, lm, model, tokenizer, tmp_path):
    task = manager.load([name])["tasks"][name]
    task.set_config("num_fewshot", 0)
    theirs = lm_eval.evaluator.evaluate(lm, {name: task}, bootstrap_iters=0)["samples"][name]
    rendered, _ = our_requests(name, hub, 0, tmp_path)
    scorer = RequestScorer(model, tokenizer, context_length=128, batch_size=4, work=SharedWork())
    items, counts = score_requests(scorer, name, rendered, max_new_tokens=0, calibrated=None)
    assert len(items) == len(theirs) == 4 and not counts["truncated"]
    cloze = BENCHMARKS[name].kind == "cloze"
    for item, sample in zip(items, sorted(theirs, key=lambda each: each["doc_id"]), strict=True):
        costs = [-each[0] for each in sample["filtered_resps"]]
        assert item["nats"] == pytest.approx(costs, abs=1e-4)
        for metric, ours in {"acc": "greedy" if cloze else "acc", "acc_norm": "acc_norm"}.items():
            if metric in sample:
                assert METRICS[ours]([item])(np.array([0])) == sample[metric], metric


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_task_that_differs_from_lm_eval_does_so_on_purpose(hub, name, tmp_path):
    ours, _ = our_requests(name, hub, None, tmp_path)
    assert ours[0]["requests"][0][0] == "Clause 0.\nAnswer: Yes\n\nClause 1.\nAnswer: No\n\nClause 10.\nAnswer:"
    readme = " ".join((TASKS_DIR / "legal" / "README.md").read_text().split())
    assert "lm-eval has 19 of these tasks" in readme and len(DIFFERENT) == 19


def test_the_namesakes_are_those_of_the_installed_lm_eval():
    groups = {name for benchmark in BENCHMARKS.values() for name in benchmark.groups}
    count = {group: sum(group in BENCHMARKS[name].groups for name in NAMESAKES) for group in groups}
    assert (count["mmlu"], count["blimp"], len(NAMESAKES)) == (57, 67, 154)


@pytest.mark.long
def test_no_other_folder_of_lm_eval_has_a_namesake():
    assert namesakes(LM_EVAL) == set(NAMESAKES)
