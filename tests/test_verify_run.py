# SPDX-License-Identifier: Apache-2.0
"""A flipped bit in any file of a published run is named: members, evaluation, report, audit, plan, releases."""

import errno
import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_run import TinyRun

import audit_leaks
import plan_run
import push_to_hub
import report
import run_recipe
import verify_run
from atomic_files import file_sha256, with_checksum, write_json
from publishing.hub_transfer import Job, TransferError, read_record, write_record
from recipe_loading import load_recipe
from recorded_files import OF_REPORT, OF_TRAINING, record_run_files
from recovery.tuning_checkpoints import HASHES, write_precision
from run_folder import REPLACED, record_stage


BUDGET = ["--plan.device=cpu", "--plan.hours=0.1"]
# Nothing is made from these but pages that stay here; a damaged memory of hashes is thrown away.
HARMLESS = {".hashes", ".hashes.lock", "trace"}


@pytest.fixture(scope="module")
def published(evaluated_run, tmp_path_factory) -> TinyRun:
    """A run with everything that a run folder can hold, but for a fine-tuned model and a choice of vocabulary."""
    run = evaluated_run.copy(tmp_path_factory.mktemp("published") / "run")
    folder = run.output_dir
    hub = {"license": "mit", "repo_id": "me/tiny", "tokenizer_repo_id": "me/words", "dataset_repo_id": "me/text"}
    longer = ["--training.sequence_length=128", *(f"--hub.{key}={value}" for key, value in hub.items())]
    argv = run.argv(*longer)
    recipe = load_recipe([argv[1]], argv[2:])
    for stage in ("requests", "prepare", "tokenizer", "tokenize", "pretrain", "evaluate"):  # made by hand in part
        record_stage(recipe, stage)
    audit_leaks.main([str(folder), "--documents", "12"])
    plan_run.main([*argv, *BUDGET])
    member = folder / "members" / "0"
    member.mkdir(parents=True)
    for name in ("documents", "tokenizer", "tokens"):
        run_recipe.link(member, folder, name)
    for name in ("model", "checkpoints"):
        shutil.copytree(folder / name, member / name)
    for name in ("metrics.jsonl", "chronicle.jsonl", "training.json", "status.json", "samples.jsonl"):
        shutil.copyfile(folder / name, member / name)
    record_run_files(member, OF_TRAINING)
    report.main([str(folder)])
    record_stage(recipe, "report")
    record_run_files(folder, OF_REPORT)
    push_to_hub.build(recipe, list(push_to_hub.PARTS))
    shutil.copytree(folder / "release_tokenizer", folder / "revisions" / "step-0000004")
    job = Job(str(folder / "release"), "me/tiny", str(folder / "publish.json"))
    write_record(job, {"commit": "0" * 40, "known": [{"config.json": {"bytes": 3, "sha256": "1" * 64}}]})
    shutil.copyfile(folder / "publish.json", folder / "revisions.json")
    checkpoint = folder / "finetune_checkpoints" / "0123" / "checkpoint-8"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"step": 8}))
    write_json(checkpoint / HASHES, {path.name: file_sha256(path) for path in checkpoint.iterdir()})
    write_precision(checkpoint.parent, "no")
    write_json(folder / REPLACED, with_checksum({"sha256": "0" * 64}))
    return run


def verify(run: Path, capsys) -> tuple[bool, list[str]]:
    """Return whether everything is in order, and the lines of what is not."""
    try:
        verify_run.main([str(run)])
        in_order = True
    except SystemExit:
        in_order = False
    output = capsys.readouterr().out.splitlines()
    return in_order, [line for line in output if "! " in line]


def test_a_published_run_is_in_order_and_every_file_of_it_is_recorded(published, capsys):
    verify_run.main([str(published.output_dir)])
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "! " in line]
    for name in ("audit.json", "plan.json", "publish.json", "report.html"):
        assert any(line.startswith("run folder") and "ok, " in line and name in line for line in lines), name
    for name in ("release_tokenizer", "release_dataset", "revisions/step-0000004", "fine-tuning checkpoint-8"):
        assert any(line.startswith(f"{name} ") and "  ok" in line for line in lines), (name, lines)
    assert any(line.startswith("members/0: pretrain ") and "  ok" in line for line in lines)
    assert not any(line.startswith("members/0: prepare ") for line in lines)
    unknown = [line for line in lines if line.startswith("run folder ") and "not recorded" in line]
    assert [line.split("recorded: ")[1] for line in unknown] == ["trace"]


@pytest.mark.parametrize("flips", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_a_flipped_bit_in_any_file_of_a_published_run_is_named(published, tmp_path, capsys, flips):
    run, draw = tmp_path / "run", random.Random(flips)
    shutil.copytree(published.output_dir, run, symlinks=True)
    paths = [path for path in sorted(run.rglob("*")) if path.is_file() and path.stat().st_size]
    paths = [path for path in paths if not HARMLESS & {*path.relative_to(run).parts} and "lock" not in path.name]
    kinds: dict[str, list[Path]] = {}
    for path in paths:  # a draw of a folder first, since some have many files
        kinds.setdefault(path.relative_to(run).parts[0], []).append(path)
    unseen = []
    for number in range(flips):
        path = draw.choice(kinds[sorted(kinds)[number % len(kinds)]])
        content = path.read_bytes()
        changed, bit = bytearray(content), draw.randrange(8 * len(content))
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        in_order, lines = verify(run, capsys)
        path.write_bytes(content)
        if in_order or not any(path.name in line for line in lines):
            unseen.append((path.relative_to(run).as_posix(), bit, lines))
    assert not unseen, unseen
    assert verify(run, capsys) == (True, [])


@pytest.mark.parametrize(
    "name",
    [
        *("metrics.jsonl", "run_files.json", "publish.json", "status.json", "documents/stage.json"),
        *("model/config.json", "checkpoints/step_*/manifest.json", "checkpoints/step_*/state.json"),
        *("release_tokenizer/manifest.json", "release_tokenizer/README.md", "checkpoints/replaces.json"),
        *("finetune_checkpoints/*/*/sha256.json", "finetune_checkpoints/*/*/trainer_state.json"),
        "finetune_checkpoints/*/precision.json",
    ],
)
def test_a_file_that_cannot_be_read_has_a_line_and_the_others_follow(published, monkeypatch, capsys, name):
    names = [line.split("  ")[0] for line in report_of(published.output_dir, capsys)]
    path = sorted(published.output_dir.glob(name))[0]
    whole = Path.open

    def open_or_fail(file, *arguments, **options):
        if file == path:
            raise OSError(errno.EIO, "Input/output error")
        return whole(file, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_or_fail)
    lines = report_of(published.output_dir, capsys)
    assert any("! " in line and path.name in line and "cannot be read" in line for line in lines), lines
    assert {*names} <= {line.split("  ")[0] for line in lines}


def report_of(run: Path, capsys) -> list[str]:
    with suppress(SystemExit):
        verify_run.main([str(run)])
    return capsys.readouterr().out.splitlines()


def test_a_damaged_record_of_what_was_published_is_named_and_not_relied_on(published, tmp_path):
    record = tmp_path / "publish.json"
    shutil.copyfile(published.output_dir / "publish.json", record)
    job = Job(str(published.output_dir / "release"), "me/tiny", str(record))
    assert read_record(job)["commit"] == "0" * 40
    whole = record.read_text()
    for damaged in (whole.replace("0000", "0001", 1), whole.replace("record_", "rekord_"), whole[1:]):
        record.write_text(damaged)
        with pytest.raises(TransferError, match=r"publish.json is not as it was written; restore it from a copy"):
            read_record(job)
    record.write_text(json.dumps({key: value for key, value in json.loads(whole).items() if key == "model"}))
    assert read_record(job)["commit"] == "0" * 40  # of an earlier version
