# SPDX-License-Identifier: Apache-2.0
"""How long a save may take after a signal follows from the saves of the run, not from the estimate at its start."""

import json
import subprocess
import sys

import pytest
from tiny_run import RECIPES

import pretrain


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
