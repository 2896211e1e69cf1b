# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is whole or not used at all; training resumes from the newest whole one."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections import namedtuple

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialise

from recipe_config import RecipeError
from recovery import checkpoints as checkpointing
from recovery import stored_tensors
from recovery.checkpoints import Checkpoints, DiskFullError, clean_up
from recovery.chronicle import RunStatus
from recovery.preemption import Preemption
from recovery.stored_tensors import (
    NoValidCheckpointError,
    StoredTensors,
    find_damage,
    list_checkpoints,
    load_state,
    load_tensors,
    newest_checkpoint,
)
from recovery.tensor_files import write_tensors


def open_checkpoints(folder, keep=5, **options) -> Checkpoints:
    return Checkpoints(
        folder, keep, options.pop("keep_every_steps", None), {"num_processes": 1}, Accelerator(), **options
    )


def start_saving(checkpoints, step) -> None:
    tensors = {"model": {"w": torch.full((4,), float(step))}, "optimizer": {"w.exp_avg": torch.zeros(4)}}
    checkpoints.save(step, tensors, {"step": step})


def save(folder, step, keep=5, **options):
    checkpoints = open_checkpoints(folder, keep, **options)
    start_saving(checkpoints, step)
    checkpoints.finish()
    return folder / f"step_{step:08d}"


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def edit(checkpoint, key=None, entries=None, **values):
    """Change the manifest; the entries of a key are added to those it has."""
    manifest = json.loads((checkpoint / "manifest.json").read_text()) | values
    if key:
        manifest[key] |= entries
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def swap(one, other):
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1])
    other.write_bytes(content[0])


def test_what_was_saved_is_read_back(tmp_path):
    checkpoint = save(tmp_path, 7)
    assert newest_checkpoint(tmp_path) == (checkpoint, [])
    assert load_state(checkpoint) == {"step": 7}
    assert torch.equal(load_tensors(checkpoint, "model")["w"], torch.full((4,), 7.0))


def test_what_a_kill_in_the_last_save_left_is_deleted_when_nothing_more_is_saved(tmp_path):
    save(tmp_path, 7)
    for name in (".trash.step_00000003", ".step_00000008.tmp"):
        (tmp_path / name).mkdir()
    open_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000007"]


def test_without_checkpoints_there_is_none(tmp_path):
    assert newest_checkpoint(tmp_path / "nothing") == (None, [])


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda c: flip(c / "model.safetensors"), "model.safetensors: its sha256"),
        (lambda c: flip(c / "optimizer.safetensors"), "optimizer.safetensors: its sha256"),
        (lambda c: (c / "state.json").write_text("{}"), "state.json: 2 bytes"),
        (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda c: (c / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda c: (c / "manifest.json").write_text('{"format": 2, '), "manifest.json cannot be read"),
        (lambda c: (c / "manifest.json").write_text("[" * 100_000), "manifest.json cannot be read"),
        (lambda c: (c / "manifest.json").write_bytes(b"\x80\x04\x95"), "manifest.json cannot be read"),
        (lambda c: (c / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
        (lambda c: (c / "manifest.json").write_text('{"format": 99}'), "format 99, this version reads 2"),
        (lambda c: edit(c, program="trainer.py"), "manifest.json: of another program, trainer.py"),
        (lambda c: edit(c, step=3), "manifest.json: of step 3"),
        (lambda c: edit(c, files={}), "manifest.json: names no state.json"),
        (lambda c: edit(c, "files", {"../../secret": {}}), "'../../secret' is not the name of a file"),
        (lambda c: edit(c, "files", {"/etc/passwd": {}}), "'/etc/passwd' is not the name of a file"),
        (lambda c: swap(c / "model.safetensors", c / "optimizer.safetensors"), "model.safetensors: "),
        (lambda c: shutil.copy(c.parent / "step_00000001/model.safetensors", c), "model.safetensors: its sha256"),
        (lambda c: os.chmod(c, 0), "cannot be read: Permission denied"),
        (
            lambda c: (c.rename(c.parent / "elsewhere"), c.symlink_to("elsewhere")),
            "is a link, and checkpoints are not",
        ),
        (lambda c: os.truncate(c / "model.safetensors", 10), "model.safetensors: 10 bytes"),
        (lambda c: ((c / "state.json").unlink(), (c / "state.json").symlink_to("/dev/null")), "state.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, harm, reason):
    before, newest = save(tmp_path, 1), save(tmp_path, 2)
    if reason.endswith("denied") and os.geteuid() == 0:
        pytest.skip("root reads everything")
    harm(newest)
    taken, skipped = newest_checkpoint(tmp_path)
    assert taken == before
    assert any(f"{newest}: " in line and reason in line for line in skipped), skipped


def test_when_none_is_whole_nothing_starts_again_in_silence(tmp_path):
    flip(save(tmp_path, 1) / "model.safetensors")
    with pytest.raises(NoValidCheckpointError, match="step_00000001: model.safetensors.*move .* away"):
        newest_checkpoint(tmp_path)


def test_steps_are_ordered_by_number_and_foreign_folders_are_no_checkpoints(tmp_path):
    for step in (9, 10, 2):
        save(tmp_path, step)
    os.utime(tmp_path / "step_00000002")
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "step_00000011x").mkdir()
    (tmp_path / ".step_00000012.tmp").mkdir()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [10, 9, 2]


def test_older_ones_go_only_when_the_new_one_is_there(tmp_path):
    for step in range(1, 5):
        save(tmp_path, step, keep=2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [4, 3]


def test_a_failing_disk_leaves_the_older_checkpoints_as_they_were(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recovery.checkpoints.write_tensors", full)
    with pytest.raises(DiskFullError, match=r"No space left.*bytes are free.*newest checkpoint is .*step_00000002"):
        save(tmp_path, 3, keep=2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, 1]
    assert all(find_damage(path) is None for _, path in list_checkpoints(tmp_path))
    assert not list(tmp_path.glob(".*"))


def test_a_save_that_has_no_room_is_not_started(tmp_path, monkeypatch):
    save(tmp_path, 1)
    usage = namedtuple("usage", "total used free")(100, 99, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match=r"step 2 needs 32 bytes and .* has 1 free.*step_00000001"):
        save(tmp_path, 2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1]


def test_a_failing_write_stops_the_run_at_its_next_check(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("recovery.checkpoints.write_tensors", broken)
    checkpoints = open_checkpoints(tmp_path)
    start_saving(checkpoints, 1)
    checkpoints.thread.join()
    with pytest.raises(RecipeError, match="Input/output error.*there is no checkpoint yet"):
        checkpoints.check()


def test_a_file_is_the_one_that_safetensors_writes_and_its_hash_is_taken_from_memory(tmp_path):
    tensors = {"b": torch.randn(3, 5), "a": torch.zeros(()), "empty": torch.empty(0, 4), "c": torch.arange(7)}
    tensors |= {"half": torch.randn(3).bfloat16(), "flag": torch.tensor([True, False])}
    entry = write_tensors(tmp_path / "x", tensors, {"format": "pt"})
    content = (tmp_path / "x").read_bytes()
    assert content == serialise(tensors, {"format": "pt"})
    assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    loaded = load_file(tmp_path / "x")
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in tensors.items())
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "x", tensors, {})


def test_a_checkpoint_is_not_read_back(tmp_path, monkeypatch):
    """At 1 GB/s that took as long as writing it, of the seconds that a stop leaves."""
    opened = []
    for module in (checkpointing, stored_tensors):
        monkeypatch.setattr(module, "file_sha256", lambda path: opened.append(path.name) or "0" * 64)
    manifest = json.loads((save(tmp_path, 1) / "manifest.json").read_text())
    assert opened == ["state.json"] and set(manifest["files"]) == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    }


def test_the_time_allowed_at_a_stop_follows_from_how_fast_the_disk_takes_a_file(tmp_path, monkeypatch):
    real = checkpointing.write_hashed

    def slow(path, buffers):
        time.sleep(0.05)
        return real(path, buffers)

    monkeypatch.setattr(checkpointing, "write_hashed", slow)
    monkeypatch.setattr(checkpointing, "PROBE_BYTES", 1000)
    seconds = checkpointing.estimate_save_seconds(tmp_path, 1_000_000, Accelerator())
    assert 50 < seconds < 500 and not list(tmp_path.iterdir())
    preemption = Preemption(RunStatus(tmp_path, True))
    assert "a signal, 20 s are allowed: 20 s for a save of about 9.0 s after one that" in preemption.allow(9.0)
    text = preemption.allow(seconds)
    assert preemption.save_seconds == 2 * seconds and "only 30 s where the launcher gets it" in text
    assert json.loads((tmp_path / "status.json").read_text())["save_seconds"] == 2 * seconds, "run_recipe.py waits"


def test_training_waits_only_for_the_copy_and_its_later_changes_are_not_saved(tmp_path, monkeypatch):
    may_write = threading.Event()
    real = checkpointing.write_tensors

    def slow(*args, **kwargs):
        may_write.wait(30)
        return real(*args, **kwargs)

    monkeypatch.setattr("recovery.checkpoints.write_tensors", slow)
    checkpoints, weight, state = open_checkpoints(tmp_path), torch.ones(4), {"step": 1, "seen": [1]}
    checkpoints.save(1, {"model": {"w": weight}}, state)
    weight.zero_()  # the next steps
    state["seen"].append(2)
    assert not list_checkpoints(tmp_path), "nothing is written yet, and training continues"
    may_write.set()
    checkpoints.finish()
    assert load_tensors(tmp_path / "step_00000001", "model")["w"].tolist() == [1, 1, 1, 1]
    assert load_state(tmp_path / "step_00000001") == {"step": 1, "seen": [1]}


def test_a_tensor_that_is_not_finite_is_neither_saved_nor_loaded(tmp_path):
    checkpoints = open_checkpoints(tmp_path)
    with pytest.raises(FloatingPointError, match="step 2: w is not finite"):
        checkpoints.save(2, {"model": {"w": torch.tensor([1.0, float("nan")])}}, {})
    assert not list_checkpoints(tmp_path)
    checkpoint = save(tmp_path, 1)
    real = {"w": torch.tensor([1.0, float("inf")])}
    save_file(real, checkpoint / "model.safetensors")
    with StoredTensors(checkpoint, "model") as stored, pytest.raises(RecipeError, match="w holds NaN or infinity"):
        stored.read_like("w", torch.empty(2))


def test_checkpoints_of_every_so_many_steps_are_kept_for_good(tmp_path):
    for step in range(1, 8):
        save(tmp_path, step, keep=2, keep_every_steps=3)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [7, 6, 3]


def test_what_killed_saves_and_deletions_left_is_cleared_away(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step_00000002.tmp").mkdir()
    (tmp_path / ".trash.step_00000000" / "x").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / ".step_00000003.tmp").symlink_to(outside)
    clean_up(tmp_path)
    assert not list(tmp_path.glob(".*")) and outside.is_dir()


def test_folders_of_other_programs_are_named_and_left_alone(tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "step_00000001.replaced").mkdir()
    assert newest_checkpoint(tmp_path) == (None, [f"{tmp_path}/checkpoint-500: not a checkpoint of this program"])
    checkpoint = save(tmp_path, 1)
    assert newest_checkpoint(tmp_path)[0] == checkpoint and (tmp_path / "checkpoint-500").is_dir()


# --- parts of tensors, written and read by several processes


def write_parts(folder, cuts) -> None:
    """Write arange(24) of shape (6, 4) in files of the given rows, as processes that hold a part each do."""
    whole = torch.arange(24.0).reshape(6, 4)
    for number, (first, last) in enumerate(cuts, start=1):
        places = json.dumps({"w": [[first, 0], [6, 4]]})
        path = folder / f"model-{number:05d}-of-{len(cuts):05d}.safetensors"
        save_file({"w": whole[first:last].contiguous()}, path, metadata={"places": places})


@pytest.mark.parametrize("cuts", [[(0, 6)], [(0, 3), (3, 6)], [(0, 2), (2, 4), (4, 6)], [(0, 4), (4, 6)]])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_any_number_of_processes_reads_what_any_number_wrote(tmp_path, cuts, parts):
    write_parts(tmp_path, cuts)
    with StoredTensors(tmp_path, "model") as stored:
        read = [
            stored.read("w", (rows[0], 0), (len(rows), 4))
            for rows in torch.arange(6).chunk(parts)
            for rows in [rows.tolist()]
        ]
    assert torch.equal(torch.cat(read), torch.arange(24.0).reshape(6, 4))


def test_a_part_that_no_file_holds_is_refused_with_the_number_of_values(tmp_path):
    write_parts(tmp_path, [(0, 2), (4, 6)])
    with StoredTensors(tmp_path, "model") as stored:
        assert stored.read("w", (0, 0), (2, 4)).shape == (2, 4)
        with pytest.raises(RecipeError, match="w: 16 of 24 values are there"):
            stored.read("w", (0, 0), (6, 4))
        with pytest.raises(RecipeError, match=r"w has shape \(6, 4\), the model's is \(6, 5\)"):
            stored.read_like("w", torch.empty(6, 5))
        with pytest.raises(RecipeError, match="v is missing"):
            stored.read_like("v", torch.empty(6, 4))


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    flip(save(tmp_path, 1) / "model.safetensors")
    assert find_damage(save(tmp_path, 1)) is None


def test_the_manifest_names_every_file_and_what_it_belongs_to(tmp_path):
    checkpoint = save(tmp_path, 1)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["num_processes"] == 1 and manifest["step"] == 1
    listed = manifest["files"]
    assert set(listed) | {"manifest.json"} == {path.name for path in checkpoint.iterdir()}


@pytest.mark.parametrize(("trained", "checkpoint"), [(7_000_000_000, 84e9), (40_000_000, 0.48e9)])
def test_the_disk_is_asked_for_what_is_trained_only(trained, checkpoint, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(checkpointing, "require_space", lambda folder, num_bytes, what: asked.append(num_bytes))
    checkpointing.refuse_full_disk(tmp_path, 2, {"total": 7_000_000_000, "trained": trained}, Accelerator())
    assert asked == [3 * checkpoint + 28e9]
