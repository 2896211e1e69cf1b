# SPDX-License-Identifier: Apache-2.0
"""What a save may take: as long as those and the steps of the run did, and the bytes asked of the disk beforehand."""

import json
import subprocess
import sys
import time

import pytest
import torch
from accelerate import Accelerator
from tiny_run import RECIPES

import pretrain
from recovery.checkpoints import Checkpoints
from recovery.chronicle import RunStatus
from recovery.preemption import Preemption
from recovery.stored_tensors import Part, load_tensors


def test_a_save_that_takes_longer_than_estimated_raises_the_limit_from_the_next_save_on(tiny_run, monkeypatch, capsys):
    note_saved = pretrain.Pretraining.note_saved

    def slowly(self, step, folder, seconds):
        note_saved(self, step, folder, 100.0 if step == 4 else seconds)

    monkeypatch.setattr(pretrain.Pretraining, "note_saved", slowly)
    pretrain.main(tiny_run.argv("--training.max_tokens=3072"))  # saves at steps 4, 8 and 12
    raised = "s are allowed: 200 s for a save of about 100.0 s after one that is running, and 3 steps of up to 0."
    assert capsys.readouterr().out.count(raised) == 1
    assert json.loads((tiny_run.output_dir / "status.json").read_text())["save_seconds"] == pytest.approx(200, abs=3)


def test_the_limit_follows_the_slowest_of_the_last_steps_but_not_the_first_which_compiles(tmp_path):
    preemption = Preemption(RunStatus(tmp_path, True))
    assert "20 s are allowed" in preemption.allow(5.0) and "and 3 steps once they are measured" in preemption.allow(
        5.0
    )
    limits = []
    for seconds in (100.0, 23.0, *[1.0] * 9, 1.0):
        preemption.note_step(seconds)
        preemption.anything_to_save = True
        limits.append(json.loads((tmp_path / "status.json").read_text())["save_seconds"])
    assert limits == [20.0, *[20.0 + 3 * 23.0] * 10, 20.0 + 3 * 1.0] and preemption.save_seconds == limits[-1]
    preemption.note_step(23.0)
    text = preemption.allow(15.0)
    assert text.startswith(
        "after a signal, 99 s are allowed: 30 s for a save of about 15.0 s after one that is running"
    )
    assert "and 3 steps of up to 23.0 s; but only 30 s where the launcher gets it" in text


def test_a_save_is_timed_with_its_copy_to_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(Part, "copy", lambda part: time.sleep(0.5) or part.local.clone())
    saved = []
    saves = Checkpoints(tmp_path, 2, None, {}, Accelerator(), lambda step, folder, seconds: saved.append(seconds))
    saves.save(1, {"model": {"weight": torch.ones(2)}}, {})
    saves.finish()
    assert 0.5 < saved[0] < 5


@pytest.mark.parametrize(("raised_to", "printed", "code"), [(30, "saved", 0), (0.5, "", 75)])
def test_a_limit_that_is_raised_after_the_signal_holds(raised_to, printed, code, tmp_path):
    script = f"""
import os, signal, sys, time
sys.path.insert(0, {str(RECIPES)!r})
from pathlib import Path
from recovery.chronicle import RunStatus
from recovery import preemption
from recovery.preemption import Preemption
preemption.SAVE_SECONDS = 0
with Preemption(RunStatus(Path({str(tmp_path)!r}), True)) as preemption:
    preemption.anything_to_save, preemption.slowest_save = True, 0.25
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    preemption.slowest_save = {raised_to} / 2
    time.sleep(1.5)
    print("saved")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.stdout.strip(), ended.returncode) == (printed, code), ended.stderr


@pytest.mark.parametrize(
    "overrides",
    [
        ["--training.optimizer=adamw"],
        ["--training.optimizer=muon"],
        ["--training.optimizer=muon", "--training.average={ema: 0.9}"],
    ],
    ids=["adamw", "muon", "muon, averaged"],
)
def test_the_disk_is_asked_for_what_a_checkpoint_takes(overrides, tiny_run, monkeypatch):
    refuse_full_disk, asked = pretrain.refuse_full_disk, []

    def ask(*arguments, **named):
        asked.append(refuse_full_disk(*arguments, **named))
        return asked[0]

    monkeypatch.setattr(pretrain, "refuse_full_disk", ask)
    pretrain.main(tiny_run.argv("--training.max_tokens=1024", *overrides))
    checkpoint = tiny_run.output_dir / "checkpoints" / "step_00000004"
    stems = [path.stem for path in checkpoint.glob("*.safetensors")]
    stored = [tensor for stem in stems for tensor in load_tensors(checkpoint, stem).values()]
    assert asked == [sum(tensor.nbytes for tensor in stored if tensor.ndim)]  # the others are AdamW's counts of steps
