# SPDX-License-Identifier: Apache-2.0
"""What a save may take: as long as those of the run did, and as many bytes as are asked of the disk beforehand."""

import json
import subprocess
import sys

import pytest
from tiny_run import RECIPES

import pretrain
from recovery.stored_tensors import load_tensors


def test_a_save_that_takes_longer_than_estimated_raises_the_limit_from_the_next_save_on(tiny_run, monkeypatch, capsys):
    note_saved = pretrain.Pretraining.note_saved

    def slowly(self, step, folder, seconds):
        note_saved(self, step, folder, 100.0 if step == 4 else seconds)

    monkeypatch.setattr(pretrain.Pretraining, "note_saved", slowly)
    pretrain.main(tiny_run.argv("--training.max_tokens=3072"))  # saves at steps 4, 8 and 12
    raised = "note: a checkpoint takes about 100.0 s to write; after a signal, saving may take 200 s"
    assert capsys.readouterr().out.count(raised) == 1
    assert json.loads((tiny_run.output_dir / "status.json").read_text())["save_seconds"] == 200


@pytest.mark.parametrize(("raised_to", "printed", "code"), [(30, "saved", 0), (0.5, "", 75)])
def test_a_limit_that_is_raised_after_the_signal_holds(raised_to, printed, code, tmp_path):
    script = f"""
import os, signal, sys, time
sys.path.insert(0, {str(RECIPES)!r})
from pathlib import Path
from recovery.chronicle import RunStatus
from recovery.preemption import Preemption
with Preemption(RunStatus(Path({str(tmp_path)!r}), True)) as preemption:
    preemption.anything_to_save, preemption.save_seconds = True, 0.5
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    preemption.save_seconds = {raised_to}
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
