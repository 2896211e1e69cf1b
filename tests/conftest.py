# SPDX-License-Identifier: Apache-2.0
"""One tiny run, prepared once and shared by all tests."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import TinyRun, write_tiny_texts


# Processes that share two cores must not each take both, and nothing here needs a GPU or the network.
os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}


def pytest_configure() -> None:
    """Take SIGINT as usual where it was ignored, as in a shell's background job: processes inherit that it is ignored,
    and those that tests interrupt would never end."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked `long` too: the whole enumerations")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long; --all runs it"))


@pytest.fixture(scope="session")
def tokenized_run(tmp_path_factory) -> TinyRun:
    """Prepare, train a tokenizer and tokenize, once for all tests."""
    import prepare_data
    import tokenize_corpus
    import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_texts(folder / "texts")
    run = TinyRun(folder / "texts", folder / "run")
    for stage in (prepare_data, train_tokenizer, tokenize_corpus):
        stage.main(run.argv())
    return run


@pytest.fixture(scope="session")
def evaluated_run(tokenized_run, tmp_path_factory) -> TinyRun:
    """Train the run, check its text against benchmarks and evaluate it, once for all tests."""
    from datatrove.data import Document

    import pretrain
    import run_eval
    from corpus.benchmark_overlap import BenchmarkIndex, drop_overlapping, write_report

    run = tokenized_run.copy(tmp_path_factory.mktemp("evaluated") / "run")
    folder = run.output_dir
    longer = "--training.sequence_length=128"  # than a sentence of the benchmarks
    questions = [
        {"question": f"Whose claim is number {number}?", "choices": ["a", "b", "c", "d"], "answer": number % 4}
        | {"subject": "international_law", "split": "test"}
        for number in range(12)
    ]
    rows = folder.parent / "questions.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in questions))
    tasks = ["--tasks", "general_agreement,mmlu_international_law", "--task_data", f"mmlu_international_law={rows}"]
    run_eval.main([*tasks, "--export_requests", str(folder / "benchmarks")])
    scored = ["--training.eval_tasks=[general_agreement]", "--training.max_eval_items=10"]
    pretrain.main(run.argv(longer, *scored, "--dry_run"))
    pretrain.main(run.argv(longer, *scored))
    index, notes = BenchmarkIndex(folder / "benchmarks"), folder.parent / "notes"
    sentence = "The keys to the old cabinet are on the kitchen table."  # the first item's
    list(drop_overlapping([Document(sentence, "0" * 32, metadata={"source": "law"})], 0, 1, index, 0.5, notes))
    write_report(folder / "documents" / "decontamination.json", index, 0.5, notes)
    evaluation = ["--model", str(folder / "model"), "--documents", str(folder / "documents"), "--xz"]
    evaluation += ["--decontamination", str(folder / "documents" / "decontamination.json"), "--prompts", "The court"]
    run_eval.main([*evaluation, *tasks, "--output", str(folder / "eval"), "--baselines", str(folder / "model")])
    return run


@pytest.fixture
def tiny_run(tokenized_run, tmp_path) -> TinyRun:
    """A tokenized run that a test may change."""
    return tokenized_run.copy(tmp_path / "run")


@pytest.fixture(scope="session")
def crash_shim(tmp_path_factory) -> Path:
    """The library of crash_shim.c."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler, cc, for the shim that kills")
    library = tmp_path_factory.mktemp("shim") / "crash_shim.so"
    source = Path(__file__).with_name("crash_shim.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library
