# SPDX-License-Identifier: Apache-2.0
"""One process, two, and two with a part of the model each: the same gradients, the same checkpoints.

All runs of two processes share one launch, one after the other, since starting processes takes most of the time.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_run import RECIPES, ROOT, TinyRun

import pretrain
from document_ledger import open_ledger
from recipe_config import RecipeError
from recovery.chronicle import read_chronicle
from recovery.stored_tensors import find_damage, list_checkpoints, load_tensors


# A document and the tokens that goldfish loss leaves out make the targets of the micro-batches uneven; nothing is
# clipped.
UNEVEN = ["--training.max_grad_norm=1e9", "--training.max_tokens=512", "--training.warmup_steps=0"]
UNEVEN += ["--training.save_steps=1", "--training.learning_rate=1e-3", "--training.goldfish={k: 3, context: 4}"]
WRONG = ("wrong", "sharded wrong", "averaged wrong")
# The steps are of 8 sequences: (processes, accumulation) -> sequences of a micro-batch.
LAYOUTS = {(1, 1): 8, (1, 4): 2, (2, 1): 4, (2, 4): 1}


def main(plan: str) -> None:
    """Train one run after the other as one process of several; `plan` lists [name, arguments] of each.

    Runs named `sharded...` have FSDP2, on CPUs by means of divided_models.py. The run named `poisoned` has NaN in the
    loss of process 1 at step 3, in the one named `slow` that process waits in each forward pass. Where the name
    ends in `wrong`, its gradient of step 3 is damaged when it is first computed, in `averaged wrong` the average. What
    a process of such a run ends with is in reason-RANK.txt.
    """
    sys.path.insert(0, str(RECIPES))
    from divided_models import fsdp2

    import pretrain
    from model import summed_loss
    from training import accelerators
    from training import step as step_module
    from training.prepared import PreparedModel

    # It would end the process group, which the next run needs.
    accelerators.Accelerator.end_training = lambda self: None
    real, plain, seed_step = accelerators.Accelerator, summed_loss.SummedLoss, step_module.seed_step

    class Poisoned(plain):
        def forward(self, *batch, **named):
            harmed = os.environ["RANK"] == "1" and Poisoned.step == 3 and self.training
            return super().forward(*batch, **named) * (float("nan") if harmed else 1.0)

    class Slow(plain):
        def forward(self, *batch, **named):
            time.sleep(0.15 if self.training and os.environ["RANK"] == "1" else 0)
            return super().forward(*batch, **named)

    class Overflow(torch.autograd.Function):
        """Passes the loss on, and makes its gradient too large."""

        @staticmethod
        def forward(_, loss):
            return loss.clone()

        @staticmethod
        def backward(_, gradient):
            return gradient * 2.0**100

    class Wrong(plain):
        def forward(self, *batch, **named):
            loss = super().forward(*batch, **named)
            harmed = os.environ["RANK"] == "1" and visits == [1, 2, 3] and self.training
            return Overflow.apply(loss) if harmed else loss

    def clip_wrongly(prepared, max_norm):
        if os.environ["RANK"] == "1" and visits == [1, 2, 3]:
            next(prepared.module.parameters()).grad.flatten()[3] = float("inf")
        return clip(prepared, max_norm)

    def note_step(seed, step, process):
        Poisoned.step = step
        visits.append(step)
        seed_step(seed, step, process)

    clip = PreparedModel.clip_grad_norm
    for name, argv in json.loads(Path(plan).read_text()):
        visits: list[int] = []
        accelerators.Accelerator = fsdp2 if name.startswith("sharded") else real
        losses = {"poisoned": Poisoned, "slow": Slow, "wrong": Wrong, "sharded wrong": Wrong}
        summed_loss.SummedLoss = losses.get(name, plain)
        step_module.seed_step = note_step if name == "poisoned" or name.endswith("wrong") else seed_step
        PreparedModel.clip_grad_norm = clip_wrongly if name == "averaged wrong" else clip
        try:
            pretrain.main(argv)
        except RecipeError as error:
            if not name.endswith("wrong"):
                raise
            (Path(plan).parent / name / f"reason-{os.environ['RANK']}.txt").write_text(str(error))


def gradients(run: TinyRun) -> dict[str, torch.Tensor]:
    """Return the gradients of step 1, as the first moments of AdamW hold them."""
    stored = load_tensors(run.output_dir / "checkpoints" / "step_00000001", "optimizer")
    return {name: value / (1 - 0.9) for name, value in stored.items() if name.endswith("exp_avg")}


@pytest.fixture(scope="module")
def runs(tokenized_run, tmp_path_factory) -> dict[str, TinyRun]:
    """Return all runs of this file, trained."""
    folder = tmp_path_factory.mktemp("processes")
    runs: dict[str, TinyRun] = {}

    def add(name: str, source: TinyRun = tokenized_run) -> TinyRun:
        runs[name] = source.copy(folder / name)
        return runs[name]

    pretrain.main(add("alone").argv())
    document = min(piece["document"] for piece in open_ledger(runs["alone"].output_dir).documents_of(1))
    uneven = [*UNEVEN, f"--data.skip.documents=[{document}]"]
    plan = []
    for (processes, accumulation), batch_size in LAYOUTS.items():
        run = add(f"{processes}x{accumulation}")
        argv = run.argv(*uneven, f"--training.per_device_train_batch_size={batch_size}")
        if processes == 1:
            pretrain.main(argv)
        else:
            plan.append([run.output_dir.name, argv])

    def half(name: str, source: TinyRun, keep: int = 8) -> TinyRun:
        """Copy a run, without its model and its checkpoints after a step."""
        run = add(name, source)
        shutil.rmtree(run.output_dir / "model")
        for step, path in list_checkpoints(run.output_dir / "checkpoints"):
            if step > keep:
                shutil.rmtree(path)
        return run

    kept = ["--training.keep_every_steps=4"]
    pretrain.main(add("kept").argv(*kept))
    plan.append(["poisoned", add("poisoned").argv()])
    plan += [[name, add(name).argv()] for name in ("wrong", "averaged wrong")]
    plan.append(["slow", add("slow").argv("--training.max_tokens=1280", "--training.warmup_steps=1")])
    plan.append(["1 to 2", half("1 to 2", runs["kept"]).argv(*kept)])
    plan.append(["sharded", add("sharded").argv(*kept)])
    plan.append(["sharded 1 to 2", half("sharded 1 to 2", runs["kept"]).argv(*kept)])
    plan.append(["sharded wrong", add("sharded wrong").argv()])  # the last: Accelerate stays as it was for it
    (folder / "plan.json").write_text(json.dumps(plan))
    paths = [str(RECIPES), str(ROOT / "tests"), str(Path(__file__).parent)]
    code = f"import sys\nsys.path[:0] = {paths!r}\n"
    (folder / "session.py").write_text(f"{code}import test_processes\ntest_processes.main(sys.argv[1])\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with (folder / "log.txt").open("w") as log:
        status = subprocess.run(
            [*command, folder / "session.py", folder / "plan.json"], stdout=log, stderr=log, timeout=300
        ).returncode
    assert status == 0, (folder / "log.txt").read_text()[-5000:]
    for name in ("sharded", "1 to 2"):
        pretrain.main(half(f"{name}, then 1", runs[name]).argv(*kept))
    return runs


@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_the_gradient_of_uneven_documents_is_that_of_one_process_and_one_micro_batch(runs, layout):
    expected, found = gradients(runs["1x1"]), gradients(runs["{}x{}".format(*layout)])
    largest = max(value.abs().max() for value in expected.values())
    assert largest > 1e-3
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-6 * largest, name
    assert found.keys() == expected.keys()


@pytest.mark.parametrize("name", ["alone", "sharded 1 to 2"])
def test_the_learning_rate_follows_the_optimizer_steps_on_any_number_of_processes(runs, name):
    """A scheduler that Accelerate prepares would step once for each process."""
    rates = [line["train/learning_rate"] for line in runs[name].metrics() if "train/loss" in line]
    warmup, decay = [1 / 3, 2 / 3, 1], [0.75, 0.5, 0.25]
    assert rates == pytest.approx([1e-2 * height for height in [*warmup, *[1] * 14, *decay]])


@pytest.mark.parametrize("name", ["1 to 2", "1 to 2, then 1", "sharded", "sharded 1 to 2", "sharded, then 1"])
def test_a_checkpoint_resumes_on_another_number_of_processes_and_with_the_model_in_parts(runs, name):
    one, other = runs["alone"].losses(), runs[name].losses()
    assert list(one) == list(other)
    assert max(abs(one[step] - other[step]) for step in one) < 1e-5
    if name != "sharded":
        resumed = [entry for entry in read_chronicle(runs[name].output_dir) if entry["event"] == "resume"]
        assert resumed and "step_00000008" in resumed[-1]["text"]
    seen = [
        [(line["step"], line["train/bytes_seen"]) for line in run.metrics() if "train/bytes_seen" in line]
        for run in (runs["alone"], runs[name])
    ]
    assert seen[0] == seen[1], "sample for sample"


def test_each_process_writes_its_part_and_the_parts_are_the_whole(runs):
    checkpoint = runs["sharded"].output_dir / "checkpoints" / "step_00000020"
    assert find_damage(checkpoint) is None
    names = sorted(path.name for path in checkpoint.glob("model-*"))
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    sizes = [(checkpoint / name).stat().st_size for name in names]
    assert max(sizes) < 1.2 * min(sizes), "each about a half"
    moments = [
        load_tensors(runs[name].output_dir / "checkpoints" / "step_00000020", "optimizer")
        for name in ("alone", "sharded")
    ]
    assert moments[0].keys() == moments[1].keys(), "after a validation too"
    alone = load_tensors(runs["alone"].output_dir / "checkpoints" / "step_00000020", "model")
    for name, tensor in load_tensors(checkpoint, "model").items():
        assert torch.allclose(tensor, alone[name], atol=1e-4), name
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert manifest["num_processes"] == 2 and manifest["tokenize_sha256"] and manifest["versions"]["torch"]


def test_each_process_has_its_own_seconds_in_the_metrics_and_a_slow_one_gives_a_warning(runs):
    """Process 1 of the run named slow waits in each forward pass of training."""
    run = runs["slow"]
    lines = [line["train/own_seconds"] for line in run.metrics() if "train/loss" in line]
    assert len(lines) == 5 and all(len(line) == 2 and line[1] > 0.3 > line[0] for line in lines)
    warnings = [entry["text"] for entry in read_chronicle(run.output_dir) if entry["event"] == "warning"]
    assert len(warnings) == 1 and warnings[0].startswith(f"process 1 on {platform.node()} computes for "), warnings


def test_nan_on_one_process_makes_all_skip_the_same_step(runs):
    run = runs["poisoned"]
    assert [entry["step"] for entry in read_chronicle(run.output_dir) if entry["event"] == "skip"] == [3]
    checkpoint = run.output_dir / "checkpoints" / "step_00000020"
    assert all(tensor.isfinite().all() for tensor in load_tensors(checkpoint, "model").values())
    assert set(run.losses()) == set(range(1, 21)) - {3}


@pytest.mark.parametrize("name", WRONG)
def test_of_several_processes_the_one_that_computed_a_gradient_wrongly_is_named_by_all(runs, name):
    """Its loss is right, and the average of the gradients is the same on all, but in the last case."""
    for rank in range(2):
        reason = (runs[name].output_dir / f"reason-{rank}.txt").read_text()
        assert (
            "step 3 had loss" in reason
            and f"a device computes wrongly, cpu:0 of process 1 on {platform.node()}." in reason
        )


def test_a_process_that_loses_another_says_so_and_what_to_do(monkeypatch, tiny_run):
    def lose(_) -> None:
        raise RuntimeError("[/third_party/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1\nx")

    monkeypatch.setattr(pretrain, "make_accelerator", lose)
    with pytest.raises(RecipeError, match=r"another process ended .*Connection closed by peer.*same command resumes"):
        pretrain.main(tiny_run.argv())
