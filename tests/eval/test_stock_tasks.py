# SPDX-License-Identifier: Apache-2.0
"""Tasks of lm-eval, by name and from a folder: the requests that lm-eval makes, and loaded only when named."""

import json
import subprocess
from pathlib import Path

import datasets
import lm_eval.tasks
import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import constants, get_token
from lm_eval.tasks import TaskManager

from benchmark_tasks import available_shots, build_requests, exported_items, read_benchmarks
from request_scoring import RequestScorer
from run_eval import load_tasks, main, parse_arguments, run_task
from shared_work import SharedWork
from stock_tasks import load_stock_tasks, load_without_tokens


# Made-up rows in the form of the Hub's.
ROWS = {
    "allenai/ai2_arc": [
        {
            "id": str(number),
            "question": f"Which of these is {word}?",
            "choices": {"text": ["ice", word, "sand", "fire"], "label": ["A", "B", "C", "D"]},
            "answerKey": "B",
        }
        for number, word in enumerate(["water", "rain", "snow"])
    ],
    "allenai/winogrande": [
        {
            "sentence": "The cup is in the box since _ is small.",
            "option1": "the cup",
            "option2": "the box",
            "answer": "1",
        }
    ]
    * 3,
    "EleutherAI/lambada_openai": [{"text": "He opened the door and went through the door"}] * 3,
}


@pytest.fixture
def hub(monkeypatch):
    """A mock Hub with ROWS in every split."""

    def load(path, name=None, **_):
        return DatasetDict({split: Dataset.from_list(ROWS[path]) for split in ("train", "validation", "test")})

    monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize(
    ("name", "num_fewshot"), [("arc_easy", 0), ("arc_easy", 2), ("winogrande", 0), ("lambada_openai", 0)]
)
def test_a_stock_task_makes_the_requests_of_lm_eval(hub, name, num_fewshot):
    folder = Path(lm_eval.tasks.__file__).parent / name.partition("_")[0]  # indexing all tasks takes a minute
    ((key, (benchmark, items, shots, origin)),) = load_stock_tasks([name], folder, num_fewshot).items()
    assert key == f"lm_eval-{name}" and origin["path"] in ROWS and origin["revision"] is None
    ours = build_requests(benchmark, items, shots, available_shots(benchmark, shots, num_fewshot), seed=0)
    task = TaskManager(include_path=folder, include_defaults=False).load([name])["tasks"][name]
    task.set_config("num_fewshot", num_fewshot)
    task.set_fewshot_seed(0)
    task.build_all_requests(rank=0, world_size=1)
    assert [tuple(pair) for entry in ours for pair in entry["requests"]] == [each.args for each in task.instances]
    assert all(item["choices"][item["gold"]].strip() for item in exported_items(ours))
    own = read_benchmarks()[name]
    assert (benchmark.metrics[0], benchmark.kind) == (own.metrics[0], own.kind)


def test_a_foreign_folder_is_read_only_if_named_and_is_scored_as_our_own(model, tokenizer, tmp_path):
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"question": "The keys", "right": "are here", "wrong": "is here"}\n' * 4)
    (folder / "choices.py").write_text("def both(row):\n    return [row['wrong'], row['right']]\n")
    (folder / "keys.yaml").write_text(
        "task: keys\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        "doc_to_text: question\ndoc_to_choice: !function choices.both\ndoc_to_target: 1\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\nmetadata: {version: 3.0}\n"
    )
    written = (folder / "keys.yaml").read_text().replace("task: keys", "task: written")
    (folder / "written.yaml").write_text(written.replace("multiple_choice", "generate_until"))
    export = ["--export_requests", str(tmp_path / "requests")]
    with pytest.raises(SystemExit, match="not a task of this repository"):
        main(["--tasks", "keys", *export])
    asked = ["--task_folder", str(folder), "--stock_tasks"]
    with pytest.raises(SystemExit, match="output_type generate_until, which only lm-eval's own command scores"):
        main([*asked, "written", *export])
    main([*asked, "keys", *export])
    assert [path.name for path in (tmp_path / "requests").iterdir()] == ["lm_eval-keys.jsonl"]
    arguments = parse_arguments([*asked, "keys"])
    scorer = RequestScorer(model, tokenizer, context_length=64, batch_size=2, work=SharedWork())
    entry, scored = run_task(scorer, *load_tasks(arguments)["lm_eval-keys"][:3], arguments)
    assert entry["num_items"] == 4 and entry["chance"] == 0.5 and entry["version"] == 3.0
    assert set(entry["metrics"]) == {"acc", "acc_norm"} and len(scored[0]["nats"]) == 2


def test_the_code_of_a_task_sees_no_token_and_the_model_still_does(tmp_path, monkeypatch):
    """A task that looks for tokens in every place where this user keeps some, and writes what it finds as a choice."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "hf_secret")
    token_file = Path(constants.HF_TOKEN_PATH)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("hf_secret")
    (tmp_path / "link").symlink_to(tmp_path / "token")
    (tmp_path / "other_name").hardlink_to(tmp_path / "token")
    (tmp_path / "rows.jsonl").write_text('{"question": "Who?"}\n')
    paths = [str(tmp_path / name) for name in ("token", "link", "other_name")]
    (tmp_path / "spy.py").write_text(f"""
import os, subprocess
from huggingface_hub import get_token

def attempt(read):
    try:
        return read()
    except PermissionError as error:
        return "refused"

def look(row):
    found = [" ".join(os.environ.values()), str(get_token()), os.path.expanduser("~")]
    for path in [*{paths!r}, f"/proc/{{os.getppid()}}/environ"]:
        found.append(attempt(lambda: open(path).read()))
    found.append(attempt(lambda: subprocess.check_output(["cat", {str(tmp_path / "token")!r}], text=True)))
    return ["\\n".join(found), "nothing"]
""")
    (tmp_path / "spy.yaml").write_text(
        "task: spy\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
        "doc_to_text: question\ndoc_to_choice: !function spy.look\ndoc_to_target: 1\n"
    )
    command = ["--task_folder", str(tmp_path), "--stock_tasks", "spy", "--export_requests", str(tmp_path / "requests")]
    main(command)
    (item,) = map(json.loads, (tmp_path / "requests" / "lm_eval-spy.jsonl").read_text().splitlines())
    found = item["choices"][0]
    assert "hf_secret" not in found and found.count("refused") == 5 and "None" in found
    assert str(Path.home()) not in found.splitlines() and token_file.name == "token"
    assert get_token() == "hf_secret", "the model is loaded with it"


def test_tasks_are_loaded_where_there_is_neither_a_home_nor_an_account(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    monkeypatch.setattr(subprocess, "run", lambda *_, input, **__: asked.append(json.loads(input)))
    asked = []
    with pytest.raises(ValueError, match="ended without an answer"):
        load_without_tokens(["spy"], None, None)
    assert asked[0]["token_files"][-1].endswith(".netrc")


@pytest.mark.long
def test_a_stock_task_is_known_by_name_and_those_of_a_folder_are_not(hub):
    assert load_stock_tasks(["lambada_openai"], None, None).keys() == {"lm_eval-lambada_openai"}
    with pytest.raises(ValueError, match="keys: there is no such task in lm-eval"):
        load_stock_tasks(["keys"], None, None)


def test_a_folder_without_names_of_its_tasks_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="--task_folder"):
        main(["--task_folder", str(tmp_path), "--tasks", "legal_sense", "--export_requests", str(tmp_path / "x")])
