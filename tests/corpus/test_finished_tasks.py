# SPDX-License-Identifier: Apache-2.0
"""Damage to what an interrupted stage left half-made: the next try makes it again, and says so."""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_run import TinyRun, make_text

import prepare_data
import tokenize_corpus
import train_tokenizer
from atomic_files import read_record
from corpus import reading
from corpus.finished_tasks import drop_damaged
from recipe_config import Data, Source
from stages import STAGES


EVERY_PASS = [
    "--data.near_duplicates={}",
    '--data.repeated_passages={"min_words": 5, "min_documents": 20}',
    '--data.quality_model={"good": ["law"], "bad": ["web"], "keep_fraction": 0.9}',
    '--data.canaries={"repetitions": [1, 2], "per_level": 5}',
]
STAGES_OF_PASSES = ("prepare", "tokenize")
MODULES = {"prepare": prepare_data, "tokenizer": train_tokenizer, "tokenize": tokenize_corpus}


def leave_half_made(stage: str, run: TinyRun, monkeypatch, overrides: list[str]) -> Path:
    """Run a stage up to where it would delete its work; return the hidden folder that it leaves."""

    def be_interrupted(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MODULES[stage], "discard", be_interrupted)
        MODULES[stage].main(run.argv(*overrides))
    [left] = run.output_dir.glob(f".{STAGES[stage].output}.*.tmp")
    return left


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = random.Random(path.name).randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.fixture
def half_made(request, tokenized_run, tmp_path, monkeypatch) -> tuple[TinyRun, Path, str, str]:
    """A run whose stage was interrupted, the hidden folder, the stage, and the hash of its output undisturbed."""
    stage, run = request.param, TinyRun(tokenized_run.texts, tmp_path / "run")
    if stage == "tokenize":
        run = tokenized_run.copy(run.output_dir)
        prepare_data.main(run.argv(*EVERY_PASS, "--overwrite"))
        shutil.rmtree(run.output_dir / "tokens")
        train_tokenizer.main(run.argv(*EVERY_PASS, "--overwrite"))
    left = leave_half_made(stage, run, monkeypatch, EVERY_PASS)
    whole = run.copy(tmp_path / "whole")
    MODULES[stage].main(whole.argv(*EVERY_PASS))
    return run, left, stage, read_record(whole.output_dir / STAGES[stage].output)["sha256"]


@pytest.mark.parametrize("half_made", STAGES_OF_PASSES, indirect=True)
def test_what_was_damaged_since_a_stage_was_interrupted_is_made_again(half_made, capfd):
    run, left, stage, expected = half_made
    damaged = [path for path in left.rglob("*") if path.is_file() and path.stat().st_size]
    damaged = [path for path in damaged if path.name != "identity"]  # or all is made again
    marks = [path for path in damaged if path.parent.name == "completions"]
    with_files = [mark for mark in marks if json.loads(mark.read_text())]
    for path in damaged:
        if path not in marks[2:]:  # two marks are damaged themselves
            flip_a_bit(path)
    capfd.readouterr()
    MODULES[stage].main(run.argv(*EVERY_PASS))
    lines = [line for line in capfd.readouterr().err.splitlines() if "is not as it was written" in line]
    assert len(lines) >= len(with_files) > len(marks) / 2 > 3
    assert read_record(run.output_dir / STAGES[stage].output)["sha256"] == expected


@pytest.mark.parametrize("ending", [".jsonl", ".npy"])
def test_text_that_was_copied_for_a_tokenizer_and_damaged_since_is_copied_again(
    ending, tokenized_run, tmp_path, monkeypatch, capfd
):
    run = tokenized_run.copy(tmp_path / "run")
    expected = (run.output_dir / "tokenizer" / "tokenizer.json").read_bytes()
    shutil.rmtree(run.output_dir / "tokenizer")
    for path in leave_half_made("tokenizer", run, monkeypatch, []).glob(f"sample/copies/*/*{ending}"):
        flip_a_bit(path)
    capfd.readouterr()
    train_tokenizer.main(run.argv())
    assert f"{ending} is not as it was written" in capfd.readouterr().err
    assert (run.output_dir / "tokenizer" / "tokenizer.json").read_bytes() == expected


def test_a_task_of_an_earlier_version_whose_mark_is_empty_does_not_run_again(tmp_path, capfd):
    mark = tmp_path / "completions" / "00000"
    mark.parent.mkdir()
    mark.touch()
    drop_damaged([mark], "prepare: read", 1)
    assert mark.exists() and not capfd.readouterr().err


def test_a_limited_source_that_was_being_read_is_read_in_the_same_rounds_after_a_stop(tmp_path, monkeypatch):
    texts, read_task, calls = tmp_path / "web", reading.read_task, []
    texts.mkdir()
    for number in range(80):
        (texts / f"{number:02d}.txt").write_text(make_text(number, 20))
    sources = f'--data.sources=[{{"name": "web", "path": "{texts}", "max_bytes": 40000, "share": 1.0}}]'

    def stop_in_round_2(*arguments, **settings):
        calls.append(settings["first_task"])
        if calls.count(max(calls)) == 4 and max(calls):
            raise KeyboardInterrupt
        return read_task(*arguments, **settings)

    whole, run = TinyRun(tmp_path, tmp_path / "whole"), TinyRun(tmp_path, tmp_path / "run")
    prepare_data.main(whole.argv(sources))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(reading, "read_task", stop_in_round_2)
        prepare_data.main(run.argv(sources))
    prepare_data.main(run.argv(sources))
    ended = [read_record(one.output_dir / "documents")["files"] for one in (whole, run)]
    assert ended[0] == ended[1]


def test_a_damaged_note_of_commits_is_asked_for_again(tmp_path, monkeypatch, capfd):
    data = Data(sources=[Source(name="law", path="me/lines", revision="main")])
    answers = iter(["a" * 40, "b" * 40, "c" * 40])
    monkeypatch.setattr(reading.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha=next(answers)))
    note = tmp_path / "commits.json"
    for _ in range(2):
        assert reading.pin_revisions(data, note).sources[0].revision == "a" * 40
    for damage, commit in ((note.read_text().replace("aaa", "aba"), "b"), ("{", "c")):
        note.write_text(damage)
        assert reading.pin_revisions(data, note).sources[0].revision == commit * 40
        assert "is not as it was written" in capfd.readouterr().err
    note.write_text('{"me/lines@main": "' + "d" * 40 + '"}')  # as an earlier version wrote it
    assert reading.pin_revisions(data, note).sources[0].revision == "d" * 40
