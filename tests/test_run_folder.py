# SPDX-License-Identifier: Apache-2.0
"""Which changes make an output out of date, and how damage to it is named."""

import json
import os
import pickle
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import RECIPES, ROOT

import file_hashes
import stages
from atomic_files import StaleStageError, discard, file_sha256, read_json_lines, read_record
from recipe_config import Recipe
from recipe_loading import load_recipe
from run_folder import differences, is_finished, new_output, record_stage, require, write_record
from stages import STAGES, exported_tasks, output_folder, unexported_tasks, why_unchecked


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(folder: Path, one: str, other: str) -> None:
    (folder / one).rename(folder / "held")
    (folder / other).rename(folder / one)
    (folder / "held").rename(folder / other)


def swap_in_record(tokens: Path) -> None:
    """Swap two shards, and their entries in the record."""
    one, other = "web/train-00000.ds", "web/train-00001.ds"
    swap(tokens, one, other)
    record = json.loads((tokens / "stage.json").read_text())
    files = record["files"]
    files[one], files[other] = files[other], files[one]
    (tokens / "stage.json").write_text(json.dumps(record))


def record_again(documents: Path) -> None:
    """Replace the documents by others that are whole and recorded."""
    (documents / "stats.json").write_text("{}")
    record = read_record(documents)
    write_record(documents, "prepare", {key: record[key] for key in ("settings", "inputs", "once")})


class Killed(Exception):
    """Ends a stage half-way."""


@pytest.fixture
def texts(tmp_path) -> Path:
    (tmp_path / "law.txt").write_text("The parties agree.")
    return tmp_path / "law.txt"


def load(texts: Path, *overrides: str) -> Recipe:
    settings = {
        "run.output_dir": str(texts.parent / "run"),
        "data.sources": [{"name": "law", "path": str(texts)}],
        "data.decontamination": {},
        "evaluation.tasks": ["legal_sense"],
    }
    argv = [f"--{key}={json.dumps(value)}" for key, value in settings.items()]
    return load_recipe([RECIPES / "custom" / "base.yaml"], [*argv, *overrides])


def export(recipe: Recipe, **items: str) -> None:
    """Write the benchmarks folder of a run, as the stage `requests` does."""
    with new_output(recipe, "requests") as folder:
        for task, text in items.items():
            (folder / f"{task}.jsonl").write_text(text)


def prepare(recipe: Recipe) -> None:
    with new_output(recipe, "prepare") as folder:
        (folder / "stats.json").write_text("{}")


def partial_folder(recipe: Recipe) -> Path:
    """Return the hidden folder that a killed stage left."""
    with suppress(Killed), new_output(recipe, "prepare") as folder:
        raise Killed
    return folder


def test_what_could_not_be_deleted_is_no_part_of_an_output(texts, monkeypatch):
    """As where too few files may be open, or on a file system that keeps a file which another has open."""
    recipe = load(texts)
    with new_output(recipe, "prepare") as folder:
        (folder / "work").mkdir()
        (folder / "work" / "copy.txt").write_text("text")
        with monkeypatch.context() as context:
            context.setattr(shutil, "rmtree", lambda *_, **__: None)
            discard(folder / "work")
        assert (folder / ".trash.work" / "copy.txt").exists()
        (folder / "stats.json").write_text("{}")
    output = output_folder(recipe, "prepare")
    assert sorted(path.name for path in output.rglob("*")) == ["stage.json", "stats.json"]
    assert list(read_record(output)["files"]) == ["stats.json"]


# --- benchmarks


@pytest.mark.parametrize("change", ["a task more", "other items", "a task less"])
def test_benchmarks_that_change_after_the_documents_were_made_leave_them_as_they_are(texts, change):
    export(load(texts), legal_sense="first")
    prepare(load(texts))
    made = read_record(output_folder(load(texts), "prepare"))
    tasks = ["legal_sense", "general_agreement"] if change == "a task more" else ["legal_sense"]
    later = load(texts, f"--evaluation.tasks={json.dumps(tasks if change != 'a task less' else [])}")
    if change != "a task less":
        export(later, **dict.fromkeys(tasks, "second" if change == "other items" else "first"))
    assert is_finished(later, "prepare")
    assert require(later, "prepare") == output_folder(later, "prepare")
    assert read_record(output_folder(later, "prepare")) == made
    assert made["once"]["benchmarks"].keys() == {"legal_sense"}


def test_overwrite_prepares_the_documents_again_with_the_present_benchmarks(texts):
    export(load(texts), legal_sense="first")
    prepare(load(texts))
    assert is_finished(load(texts), "prepare", overwrite=True), "nothing changed"
    later = load(texts, "--evaluation.tasks=[legal_sense, general_agreement]")
    assert not is_finished(later, "prepare", overwrite=True), "one is not even exported"
    export(later, legal_sense="first", general_agreement="new")
    assert differences(later, "prepare", once=True)[0].startswith("benchmarks.general_agreement was null, is ")
    assert not is_finished(later, "prepare", overwrite=True)
    prepare(later)
    assert is_finished(later, "prepare", overwrite=True)


def test_a_killed_try_with_other_benchmarks_is_not_continued(texts):
    export(load(texts), legal_sense="first")
    first = partial_folder(load(texts))
    assert partial_folder(load(texts)) == first
    export(load(texts), legal_sense="second")
    assert partial_folder(load(texts)) != first


def test_a_folder_that_the_recipe_names_counts_by_its_content(texts, tmp_path):
    for name in ("mine", "moved", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task.jsonl").write_text("items" if name != "other" else "other items")
    recipes = {
        name: load(texts, f"--data.decontamination.benchmarks={tmp_path / name}")
        for name in ("mine", "moved", "other")
    }
    prepare(recipes["mine"])
    assert is_finished(recipes["moved"], "prepare")
    assert is_finished(recipes["moved"], "prepare", overwrite=True), "what the run exports is not read then"
    with pytest.raises(StaleStageError, match="decontamination.benchmarks.task was"):
        is_finished(recipes["other"], "prepare")
    with pytest.raises(StaleStageError, match="decontamination.benchmarks was"):
        is_finished(load(texts), "prepare")


def test_a_group_of_tasks_is_exported_if_the_record_of_the_export_names_it(texts):
    recipe = load(texts, "--evaluation.tasks=[mmlu_legal, legal_sense]", "--training.eval_tasks=[legal_sense, fpb]")
    assert exported_tasks(recipe) == ["mmlu_legal", "legal_sense", "fpb"] == unexported_tasks(recipe)
    export(recipe, mmlu_international_law="a", mmlu_jurisprudence="b", legal_sense="c", fpb="d")
    assert unexported_tasks(recipe) == []
    assert unexported_tasks(load(texts, "--evaluation.tasks=[mmlu_medical]")) == ["mmlu_medical"]
    once = read_record(output_folder(recipe, "requests"))["files"].keys()
    prepare(recipe)
    made = read_record(output_folder(recipe, "prepare"))["once"]["benchmarks"]
    assert made.keys() == {name.removesuffix(".jsonl") for name in once} and "not exported" not in made.values()


def test_to_turn_the_check_on_or_off_or_to_another_threshold_makes_documents_out_of_date(texts):
    export(load(texts), legal_sense="first")
    prepare(load(texts))
    for change in ("--data.decontamination=null", "--data.decontamination.min_overlap_fraction=0.8"):
        with pytest.raises(StaleStageError, match="decontamination"):
            is_finished(load(texts, change), "prepare")


def test_the_reason_for_not_checking_is_known_before_work_starts(texts, monkeypatch, tmp_path):
    assert why_unchecked(load(texts)) is None
    assert why_unchecked(load(texts, "--data.decontamination=null")) == "data.decontamination is not set"
    assert why_unchecked(load(texts, "--evaluation.tasks=[]")) == "evaluation.tasks names no benchmark"
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    assert "no eval/ folder" in why_unchecked(load(texts))
    assert why_unchecked(load(texts, "--data.decontamination.benchmarks=mine")) is None


def test_documents_made_without_eval_stay_when_it_is_copied_there_later(texts, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(stages, "ROOT", tmp_path)
        prepare(load(texts))
        assert is_finished(load(texts), "prepare", overwrite=True)
    assert is_finished(load(texts), "prepare")
    assert not is_finished(load(texts), "prepare", overwrite=True)


def test_exported_benchmarks_are_exported_again_when_a_task_changes(texts, monkeypatch, tmp_path):
    shutil.copytree(ROOT / "eval", tmp_path / "eval", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    recipe = load(texts)
    export(recipe, legal_sense="first")
    (tmp_path / "eval/tasks/legal/README.md").write_text("What a page says changes no item.")
    assert is_finished(recipe, "requests")
    with (tmp_path / "eval/tasks/legal/legal_sense.jsonl").open("a") as file:
        file.write("\n")
    assert not is_finished(recipe, "requests")
    assert differences(load(texts, "--evaluation.tasks=[]"), "requests")[0].startswith("tasks was")


def test_an_evaluation_is_out_of_date_when_the_items_are(texts):
    recipe = load(texts)
    export(recipe, legal_sense="first")
    output_folder(recipe, "evaluate").mkdir()
    record_stage(recipe, "evaluate")
    assert is_finished(recipe, "evaluate")
    export(recipe, legal_sense="second")
    assert differences(recipe, "evaluate") == ["the output of requests changed"]


# --- the other settings of data


@pytest.mark.parametrize(
    "change",
    [
        "--data.workers=7",
        "--data.max_repetitions=9",
        "--data.min_shares={law: 0.4}",
        "--data.phases=[{start_fraction: 0.5, shares: {law: 1.0}}]",
        "--data.skip={steps: [[1, 2]], documents: [abc]}",
        "--data.slurm={partition: cpu}",
        "--data.executor=ray",
        "--data.fit_to_corpus=false",
    ],
)
def test_the_mixture_and_the_machine_do_not_decide_the_documents(texts, change):
    export(load(texts), legal_sense="first")
    prepare(load(texts))
    assert is_finished(load(texts, change), "prepare")


@pytest.mark.parametrize(
    "change",
    [
        "--data.normalise_text=false",
        "--data.languages={keep: [en]}",
        "--data.quality={profile: web}",
        "--data.repeated_passages={min_documents: 9}",
        "--data.personal_data={profile: legal}",
        "--data.splits.future_from='2024-01-01'",
        "--data.near_duplicates=null",
    ],
)
def test_every_step_of_the_cleaning_decides_them(texts, change):
    export(load(texts), legal_sense="first")
    prepare(load(texts))
    with pytest.raises(StaleStageError, match=r"is out of date: .* was .*--overwrite"):
        is_finished(load(texts, change), "prepare")


def test_a_share_or_licence_of_a_source_does_not_decide_them_but_its_text_does(texts):
    prepare(load(texts))
    described = {"name": "law", "path": str(texts), "share": 1.0, "license": "MIT", "url": "https://example.org"}
    assert is_finished(load(texts, f"--data.sources={json.dumps([described | {'max_repetitions': 3}])}"), "prepare")
    texts.write_text("The parties do not agree.")
    with pytest.raises(StaleStageError, match="sources.0.fingerprint was"):
        is_finished(load(texts), "prepare")


def test_an_earlier_corpus_counts_by_its_content(texts, tmp_path):
    earlier = load(texts, f"--run.output_dir={tmp_path / 'earlier'}")
    prepare(earlier)
    against = [f"--data.near_duplicates.against=[{tmp_path / 'earlier' / 'documents'}]"]
    prepare(load(texts, *against))
    (tmp_path / "earlier").rename(tmp_path / "moved")
    against = [f"--data.near_duplicates.against=[{tmp_path / 'moved' / 'documents'}]"]
    assert is_finished(load(texts, *against), "prepare")
    with new_output(load(texts, f"--run.output_dir={tmp_path / 'moved'}"), "prepare") as folder:
        (folder / "stats.json").write_text("other")
    with pytest.raises(StaleStageError, match="near_duplicates.against.0 was"):
        is_finished(load(texts, *against), "prepare")


# --- damage


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja"])
def test_a_base_counts_by_the_content_of_its_files_also_of_the_same_size_and_behind_a_record(name, recorded, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for file in ("model.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja"):
        (base / file).write_text(f"weights of {file}")
    if recorded:
        write_record(base, "pretrain", {"settings": {}, "inputs": {}, "once": {}})
    before = stages.base_content(str(base), None, tmp_path)
    assert stages.base_content(str(base), None, tmp_path) == before
    assert (before["content"] == read_record(base)["sha256"]) if recorded else len(before["content"]) == 4
    stat = (base / name).stat()
    flip(base / name)
    os.utime(base / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as rsync --times leaves it
    assert stages.base_content(str(base), None, tmp_path) != before


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the files that are hashed; a file is remembered even if it was written in this moment."""
    names = []
    monkeypatch.setattr(file_hashes, "CLOCK_TICK_NS", -(10**12))
    monkeypatch.setattr(file_hashes, "file_sha256", lambda path: names.append(path.name) or file_sha256(path))
    return names


def write_sparse(path: Path) -> int:
    """Write a text of more than 64 MiB with a word at its start, which takes no room on disk; return its middle."""
    path.write_text("The parties agree.")
    os.truncate(path, 65 << 20)
    return 32 << 20


def change_byte(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(b"x")


def test_a_byte_in_the_middle_of_a_large_file_is_noticed_and_a_second_look_reads_nothing(texts, reads):
    middle = write_sparse(texts)
    prepare(load(texts))
    assert reads.count("law.txt") == 1
    reads.clear()
    assert is_finished(load(texts), "prepare") and require(load(texts), "prepare")
    assert reads == ["stats.json"], "the output is verified once"
    reads.clear()
    assert is_finished(load(texts), "prepare") and require(load(texts), "prepare")
    assert reads == []
    stat = texts.stat()
    change_byte(texts, middle)
    os.utime(texts, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as rsync --times leaves it
    with pytest.raises(StaleStageError, match="sources.0.fingerprint was"):
        is_finished(load(texts), "prepare")


def test_a_record_of_an_earlier_version_which_read_both_ends_of_large_files_stays_valid(texts, monkeypatch):
    middle = write_sparse(texts)
    with monkeypatch.context() as patched:
        earlier = replace(STAGES["prepare"], settings=STAGES["prepare"].earlier_settings)
        patched.setitem(STAGES, "prepare", earlier)
        prepare(load(texts))
    before = read_record(output_folder(load(texts), "prepare"))["settings"]["sources"][0]["fingerprint"]
    assert is_finished(load(texts), "prepare")
    assert STAGES["prepare"].settings(load(texts))["sources"][0]["fingerprint"] != before
    change_byte(texts, middle)
    assert is_finished(load(texts), "prepare"), "the middle was never recorded"
    change_byte(texts, 3)
    with pytest.raises(StaleStageError, match="fingerprint was"):
        is_finished(load(texts), "prepare")


def test_stages_share_what_was_hashed_also_where_runs_share_documents_by_a_link(texts, reads, tmp_path):
    prepare(load(texts))
    require(load(texts), "prepare")
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm" / "documents").symlink_to(tmp_path / "run" / "documents")
    reads.clear()
    for run in ("run", "arm"):
        require(load(texts, f"--run.output_dir={tmp_path / run}"), "prepare")
        differences(load(texts, f"--run.output_dir={tmp_path / run}"), "tokenizer")
    assert reads == [] and not (tmp_path / "arm" / file_hashes.MEMORY).exists()


def hash_of(path: Path, folder: Path) -> str:
    with file_hashes.remembered_hashes(folder) as sha256:
        return sha256(path)


@pytest.mark.parametrize("harm", ["flipped", "truncated", "empty", "nested", "of the version before", "bytes"])
def test_a_damaged_memory_is_thrown_away(tmp_path, reads, harm):
    (tmp_path / "weights").write_text("weights")
    right, memory = hash_of(tmp_path / "weights", tmp_path), tmp_path / file_hashes.MEMORY
    if harm == "flipped":
        flip(memory)
    elif harm == "truncated":
        os.truncate(memory, memory.stat().st_size - 9)
    else:
        other = {
            "empty": b"",
            "nested": b"[" * 100_000,
            "of the version before": b'{"a": [1, "b"]}',
            "bytes": b"\xff\n",
        }
        memory.write_bytes(other[harm])
    assert [hash_of(tmp_path / "weights", tmp_path) for _ in range(2)] == [right] * 2 and len(reads) == 2


def test_a_memory_that_was_copied_from_another_machine_with_its_files_is_not_believed(tmp_path, reads):
    here = tmp_path / "here"
    here.mkdir()
    (here / "weights").write_text("weights")
    hash_of(here / "weights", here)
    here.rename(tmp_path / "there")
    shutil.copytree(tmp_path / "there", here)  # as rsync --archive: the same path, size and time
    assert (here / "weights").stat().st_mtime_ns == (tmp_path / "there" / "weights").stat().st_mtime_ns
    stat = (here / "weights").stat()
    flip(here / "weights")
    os.utime(here / "weights", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_of(here / "weights", here) == file_sha256(here / "weights") and len(reads) == 2


def test_a_file_that_was_just_written_may_change_again_and_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(file_hashes, "CLOCK_TICK_NS", 10**12)
    (tmp_path / "weights").write_text("weights")
    hash_of(tmp_path / "weights", tmp_path)
    assert not (tmp_path / file_hashes.MEMORY).exists()


def test_what_several_processes_read_is_remembered_together(tmp_path, reads):
    for name in "ab":
        (tmp_path / name).write_text(name)
    with file_hashes.remembered_hashes(tmp_path) as one, file_hashes.remembered_hashes(tmp_path) as other:
        one(tmp_path / "a"), other(tmp_path / "b")
    assert (hash_of(tmp_path / "a", tmp_path), hash_of(tmp_path / "b", tmp_path)) and len(reads) == 2
    hash_of(tmp_path / "a", tmp_path / "none")
    assert not (tmp_path / "none").exists(), "a dry run makes no folder"


def test_json_lines_end_only_at_newlines_and_a_truncated_one_is_left_out(tmp_path):
    entries = [{"text": f"one\u2028two\x85three{end}"} for end in ("\u2029", "\x1c", "")]
    lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
    (tmp_path / "lines.jsonl").write_text("".join(lines) + '{"text": "cut', encoding="utf-8")
    assert read_json_lines(tmp_path / "lines.jsonl") == entries
    assert read_json_lines(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"[" * 100_000, pickle.dumps({"files": {}})])
def test_a_file_that_is_no_record_is_refused_by_name(texts, content):
    prepare(load(texts))
    record = output_folder(load(texts), "prepare") / "stage.json"
    record.write_bytes(content)
    with pytest.raises(StaleStageError, match=rf"{record} cannot be read. Restore it"):
        require(load(texts), "prepare")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda run: flip(run / "tokenizer" / "tokenizer.json"), "tokenizer.json: its sha256 is not"),
        (lambda run: flip(run / "tokenizer" / "tokenizer_config.json"), "tokenizer_config.json: its sha256 is not"),
        (lambda run: os.truncate(run / "tokenizer" / "tokenizer.json", 100), "tokenizer.json: 100 bytes, .* when it"),
        (lambda run: (run / "tokenizer" / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda run: flip(run / "tokens" / "manifest.json"), "manifest.json: its sha256 is not"),
        (lambda run: flip(run / "tokens" / "law" / "train-00000.index"), "law/train-00000.index: its sha256 is not"),
        (lambda run: swap(run / "tokens", "law/train-00000.ds", "web/train-00000.ds"), "law/train-00000.ds: .* bytes"),
        (lambda run: swap(run / "tokens", "web/train-00000.ds", "web/train-00001.ds"), "web/train-0000[01].ds: "),
        (lambda run: swap_in_record(run / "tokens"), "stage.json: the list of files is not the one"),
        (lambda run: record_again(run / "documents"), "tokenizer is out of date: the output of prepare changed"),
    ],
)
def test_what_training_reads_is_refused_by_name_when_damaged_swapped_or_stale(tiny_run, harm, reason):
    harm(tiny_run.output_dir)
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], tiny_run.argv()[2:])
    with pytest.raises(StaleStageError, match=reason):
        require(recipe, "tokenizer")
        require(recipe, "tokenize")
