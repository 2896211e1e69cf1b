# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is whole or it counts for nothing; the newest that is whole wins."""

import json
import os

import pytest
import torch

from checkpointing import (
    NoValidCheckpointError,
    find_damage,
    list_checkpoints,
    load_state,
    load_tensors,
    newest_checkpoint,
    save_checkpoint,
)


def save(folder, step, keep=5):
    tensors = {"model": {"w": torch.full((4,), float(step))}, "optimizer": {"w.exp_avg": torch.zeros(4)}}
    return save_checkpoint(folder, step, tensors, {"step": step}, keep)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def test_what_was_saved_is_read_back(tmp_path):
    checkpoint = save(tmp_path, 7)
    assert newest_checkpoint(tmp_path) == (checkpoint, [])
    assert load_state(checkpoint) == {"step": 7}
    assert torch.equal(load_tensors(checkpoint, "model")["w"], torch.full((4,), 7.0))


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
        (lambda c: (c / "manifest.json").write_text('{"format": 1, '), "manifest.json cannot be read"),
        (lambda c: (c / "manifest.json").write_text("[]"), "manifest.json cannot be read"),
        (lambda c: (c / "manifest.json").write_text('{"format": 99}'), "format 99, this version reads 1"),
        (lambda c: os.truncate(c / "model.safetensors", 10), "model.safetensors: 10 bytes"),
        (lambda c: ((c / "state.json").unlink(), (c / "state.json").symlink_to("/dev/null")), "state.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, harm, reason):
    before, newest = save(tmp_path, 1), save(tmp_path, 2)
    harm(newest)
    taken, passed_over = newest_checkpoint(tmp_path)
    assert taken == before
    assert len(passed_over) == 1 and str(newest) in passed_over[0] and reason in passed_over[0]


def test_when_none_is_whole_nothing_starts_again_in_silence(tmp_path):
    flip(save(tmp_path, 1) / "model.safetensors")
    with pytest.raises(NoValidCheckpointError, match="step_00000001: model.safetensors.*move .* away"):
        newest_checkpoint(tmp_path)


def test_steps_are_ordered_by_number_and_strangers_are_not_checkpoints(tmp_path):
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

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("checkpointing.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 3, keep=2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, 1]
    assert all(find_damage(path) is None for _, path in list_checkpoints(tmp_path))


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    flip(save(tmp_path, 1) / "model.safetensors")
    assert find_damage(save(tmp_path, 1)) is None


def test_the_manifest_names_every_file(tmp_path):
    checkpoint = save(tmp_path, 1)
    listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert set(listed) | {"manifest.json"} == {path.name for path in checkpoint.iterdir()}
