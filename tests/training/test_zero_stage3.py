# SPDX-License-Identifier: Apache-2.0
"""DeepSpeed's ZeRO stage 3 on processes of a CPU: the losses of one process, and the same checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_run import RECIPES, ROOT
from transformers import AutoModelForCausalLM

import pretrain
import tokenize_corpus
import train_tokenizer
from model import summed_loss
from recovery.stored_tensors import list_checkpoints, load_tensors
from training import step as step_module


pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install deepspeed")
# Of 20 steps, saved every fourth. An embedding that is the projection too would be sent in bf16, as that is.
SETTINGS = ["--model.intermediate_size=52", "--model.tie_word_embeddings=false", "--training.save_total_limit=9"]
PHASE = {"start_fraction": 0.5, "shares": {"law": 0.6, "web": 0.4}, "sequence_length": 64}
PHASES = [f"--data.phases={json.dumps([PHASE])}", "--training.attn_implementation=varlen"]
BF16 = ["--training.learning_rate=3e-3", "--training.max_tokens=2048"]
# name -> (precision, largest difference of a loss, overrides)
FORMS = {
    "fp32": ("no", 1e-5, []),
    "fp32, longer": ("no", 1e-5, [*PHASES, "--training.gradient_checkpointing=true"]),
    # As DDP's, in test_compiled_forms.py.
    "bf16": ("bf16", 1.2e-3, BF16),
    "bf16, longer": ("bf16", 1.2e-3, [*BF16, *PHASES, "--training.gradient_checkpointing=true"]),
}
TRAIN = f"""
import json, os, sys
sys.path[:0] = [{str(RECIPES)!r}, {str(ROOT / "tests")!r}, {str(Path(__file__).parent)!r}]
import divided_models, pretrain
from test_zero_stage3 import poison
from training import accelerators

poison(setattr)
accelerators.Accelerator.end_training = lambda self: None  # the next run needs the process group
accelerators.Accelerator = divided_models.zero_stage3
for precision, argv in json.loads(open(sys.argv[1]).read()):
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    divided_models.AcceleratorState._reset_state(reset_partial_state=True)
    pretrain.main(argv)
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


def train_together(folder: Path, processes: int, plan: list[tuple[str, list[str]]]) -> None:
    """Train runs, each given by its precision and arguments, one after the other on several processes."""
    (folder / "train.py").write_text(TRAIN)
    (folder / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--config_file", str(ROOT / "accelerate_configs" / "deepspeed_zero3.yaml")]
    command += [str(folder / "train.py"), str(folder / "plan.json")]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def arguments(run, name: str, *overrides: str) -> list[str]:
    return run.argv(*SETTINGS, *FORMS[name][2], *overrides)


@pytest.fixture(scope="module")
def sources(tokenized_run, tmp_path_factory):
    """The tokenized run that each form trains from: phases decide the tokenizer's sample too."""
    longer = tokenized_run.copy(tmp_path_factory.mktemp("zero") / "longer")
    for stage in (train_tokenizer, tokenize_corpus):
        stage.main(longer.argv(*PHASES, "--overwrite"))
    return {name: longer if "longer" in name else tokenized_run for name in FORMS}


@pytest.fixture(scope="module")
def alone(sources, tmp_path_factory):
    """The runs of one process, by form."""
    folder, runs = tmp_path_factory.mktemp("alone"), {}
    with pytest.MonkeyPatch.context() as patch:
        poison(patch.setattr)
        for name, (precision, _, _) in FORMS.items():
            patch.setenv("ACCELERATE_MIXED_PRECISION", precision)
            AcceleratorState._reset_state(reset_partial_state=True)
            runs[name] = sources[name].copy(folder / name)
            pretrain.main(arguments(runs[name], name))
        AcceleratorState._reset_state(reset_partial_state=True)
        yield runs


@pytest.fixture(scope="module")
def two(alone, sources, tmp_path_factory):
    """The runs of two processes, by form, and one that they resumed from a checkpoint of one process."""
    folder = tmp_path_factory.mktemp("two")
    runs = {name: sources[name].copy(folder / name) for name in FORMS}
    plan = [(FORMS[name][0], arguments(run, name)) for name, run in runs.items()]
    resumed = runs["resumed"] = sources["fp32"].copy(folder / "resumed")
    plan.append(("no", arguments(resumed, "fp32", f"--run.resume={checkpoint(alone['fp32'], 8)}")))
    train_together(folder, 2, plan)
    assert json.loads((resumed.output_dir / "training.json").read_text())["distributed_type"] == "DEEPSPEED"
    return runs


@pytest.fixture(scope="module")
def four(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    runs = {name: sources[name].copy(folder / name) for name in FORMS}
    train_together(folder, 4, [(FORMS[name][0], arguments(run, name)) for name, run in runs.items()])
    return runs


def checkpoint(run, step):
    return dict(list_checkpoints(run.output_dir / "checkpoints"))[step]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("processes", ["two", pytest.param("four", marks=pytest.mark.long)])
def test_processes_with_a_part_each_give_the_losses_of_one(processes, name, alone, request):
    precision, within, _ = FORMS[name]
    found, expected = request.getfixturevalue(processes)[name], alone[name]
    one, other = expected.losses(), found.losses()
    assert list(one) == list(other) and one[max(one)] < one[1] - 0.3
    assert abs(one[1] - other[1]) < 1e-6, "the same weights, rounded where those of one process are"
    assert other == pytest.approx(one, rel=0, abs=within)
    assert [run.metrics()[-2]["train/skipped_steps"] for run in (expected, found)] == [1, 1]
    computing = json.loads((found.output_dir / "training.json").read_text())["computing"]
    assert [used["mixed_precision"] for used in computing] == [precision]


def test_two_processes_with_a_part_each_give_the_checkpoints_and_model_of_one(alone, two):
    one, two = alone["fp32"], two["fp32"]
    for stem in ("model", "optimizer"):
        found, expected = (load_tensors(checkpoint(run, 20), stem) for run in (two, one))
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0.02, atol=2e-4)
    model = AutoModelForCausalLM.from_pretrained(two.output_dir / "model")
    assert torch.equal(model.model.norm.weight.data, load_tensors(checkpoint(two, 20), "model")["model.norm.weight"])
    probes = [{key: value for key, value in run.metrics()[-1].items() if "probe/" in key} for run in (one, two)]
    assert probes[0] and probes[0] == pytest.approx(probes[1], rel=0.02, abs=1e-3)


def test_each_resumes_from_a_checkpoint_of_the_other(alone, two, sources, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # the last run of `alone` was in bf16
    AcceleratorState._reset_state(reset_partial_state=True)
    back = sources["fp32"].copy(tmp_path / "back")
    pretrain.main(arguments(back, "fp32", f"--run.resume={checkpoint(two['fp32'], 8)}"))
    expected = {step: loss for step, loss in alone["fp32"].losses().items() if step > 8}
    for run in (two["resumed"], back):
        assert run.losses() == pytest.approx(expected, abs=1e-4)
