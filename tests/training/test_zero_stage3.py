# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's ZeRO stage 3 on two processes of a CPU: the losses of one process, and the same checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import RECIPES, ROOT
from transformers import AutoModelForCausalLM

import pretrain
from model import summed_loss
from recovery.stored_tensors import list_checkpoints, load_tensors
from training import step as step_module


pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install deepspeed")
SETTINGS = ["--model.intermediate_size=52", "--training.save_total_limit=9"]  # of 20 steps, saved every fourth
TRAIN = f"""
import sys
sys.path[:0] = [{str(RECIPES)!r}, {str(ROOT / "tests")!r}, {str(Path(__file__).parent)!r}]
import pretrain
from divided_models import zero_stage3
from test_zero_stage3 import poison
from training import accelerators

poison(setattr)
accelerators.Accelerator = zero_stage3
pretrain.main()
"""


def poison(set_attribute) -> None:
    """Make the loss of step 5 NaN, so that the step is skipped."""
    plain, seed_step, at = summed_loss.SummedLoss, step_module.seed_step, []

    class Poisoned(plain):
        def forward(self, *batch, **named):
            sums = super().forward(*batch, **named)
            return sums * float("nan") if self.training and at[-1] == 5 else sums

    set_attribute(summed_loss, "SummedLoss", Poisoned)
    set_attribute(
        step_module, "seed_step", lambda seed, step, process: [at.append(step), seed_step(seed, step, process)]
    )


def train_in_two(run, script, *overrides: str) -> subprocess.CompletedProcess:
    script.write_text(TRAIN)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--mixed_precision", "no"]
    command += ["--config_file", str(ROOT / "accelerate_configs" / "deepspeed_zero3.yaml"), str(script)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [*command, *run.argv(*SETTINGS, *overrides)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(autouse=True, scope="module")
def poisoned():
    with pytest.MonkeyPatch.context() as patch:
        poison(patch.setattr)
        yield


@pytest.fixture(scope="module")
def one(tokenized_run, tmp_path_factory, poisoned):
    run = tokenized_run.copy(tmp_path_factory.mktemp("zero") / "one")
    pretrain.main(run.argv(*SETTINGS))
    return run


@pytest.fixture(scope="module")
def two(tokenized_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    run = tokenized_run.copy(folder / "two")
    done = train_in_two(run, folder / "train.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((run.output_dir / "training.json").read_text())["distributed_type"] == "DEEPSPEED"
    return run


def checkpoint(run, step):
    return dict(list_checkpoints(run.output_dir / "checkpoints"))[step]


def test_two_processes_with_a_part_each_give_the_losses_checkpoints_and_model_of_one(one, two):
    assert two.losses() == pytest.approx(one.losses(), abs=1e-4, nan_ok=True)
    assert [run.metrics()[-2]["train/skipped_steps"] for run in (one, two)] == [1, 1]
    for stem in ("model", "optimizer"):
        found, expected = (load_tensors(checkpoint(run, 20), stem) for run in (two, one))
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0.02, atol=2e-4)
    model = AutoModelForCausalLM.from_pretrained(two.output_dir / "model")
    assert torch.equal(model.model.norm.weight.data, load_tensors(checkpoint(two, 20), "model")["model.norm.weight"])
    probes = [{key: value for key, value in run.metrics()[-1].items() if "probe/" in key} for run in (one, two)]
    assert probes[0] and probes[0] == pytest.approx(probes[1], rel=0.02, abs=1e-3)


def test_each_resumes_from_a_checkpoint_of_the_other(one, two, tokenized_run, tmp_path):
    started_by_one, started_by_two = tokenized_run.copy(tmp_path / "a"), tokenized_run.copy(tmp_path / "b")
    done = train_in_two(started_by_one, tmp_path / "train.py", f"--run.resume={checkpoint(one, 8)}")
    assert done.returncode == 0, done.stderr[-3000:]
    pretrain.main(started_by_two.argv(*SETTINGS, f"--run.resume={checkpoint(two, 8)}"))
    expected = {step: loss for step, loss in one.losses().items() if step > 8}
    for run in (started_by_one, started_by_two):
        assert run.losses() == pytest.approx(expected, abs=1e-4)
