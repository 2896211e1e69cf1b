# SPDX-License-Identifier: Apache-2.0
"""pretrain.py --dry_run: its checks pass on what is right and fail on what is planted; utilisation and trackers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import ParallelismConfig
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from tiny_run import RECIPES
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaModel

import pretrain
from mixture.batches import MicroBatches
from model import summed_loss
from planning.memory import memory_by_part
from recipe_config import RecipeError
from run_folder import write_record
from training import accelerators, inputs, preflight, record
from training.utilisation import measure_utilisation


def results(run) -> dict[str, dict]:
    written = json.loads((run.output_dir / "preflight.json").read_text())
    return {check["name"]: check for check in written["checks"]}


def test_a_dry_run_prints_the_plan_passes_its_checks_and_trains_nothing(tiny_run, capsys):
    notes = {".hashes", ".hashes.lock", "run_files.json"}  # hashes of files
    before = {path: path.stat().st_mtime_ns for path in tiny_run.output_dir.rglob("*") if path.name not in notes}
    pretrain.main([*tiny_run.argv(), "--dry_run"])
    printed = capsys.readouterr().out
    assert "32,928 parameters" in printed and "20 steps of 256 = 4 micro-steps" in printed and "FAILED" not in printed
    after = {path: path.stat().st_mtime_ns for path in tiny_run.output_dir.rglob("*") if path.name not in notes}
    assert [path.name for path in after.keys() - before.keys()] == ["preflight.json"]
    assert all(after[path] == time for path, time in before.items() if path.is_file())
    plan = json.loads((tiny_run.output_dir / "preflight.json").read_text())["plan"]
    assert plan["parameters"]["total"] == 32_928 and plan["tokens_per_parameter"] == pytest.approx(5120 / 32_928)
    assert (
        plan["attention"] == "sdpa"
        and len(plan["learning_rates"]) == 10
        and set(results(tiny_run)) >= {"first loss", "documents apart"}
    )


@pytest.mark.parametrize("known_before", [True, False])
def test_a_dry_run_of_a_model_that_no_device_holds_whole_is_refused_with_what_to_do(
    known_before, tiny_run, monkeypatch
):
    def run_checks(setup):
        assert not known_before
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of")

    monkeypatch.setattr(preflight, "run_checks", run_checks)
    needed = 5 * 4 * 32_928  # weights twice, gradients, AdamW's two moments
    monkeypatch.setattr(preflight, "memory_available", lambda device: needed - known_before)
    reason = "0.0 GB on each device, of 0.0" if known_before else r"more than there is \(CUDA out of memory\)"
    with pytest.raises(RecipeError, match=f"not divide the model, and needs {reason}: run it with fewer layers"):
        pretrain.main([*tiny_run.argv(), "--dry_run"])
    assert not (tiny_run.output_dir / "preflight.json").exists()


def test_a_dry_run_needs_no_members_and_plans_for_them(tiny_run, capsys):
    plans = {}
    for members in (0, 3):
        distillation = {"members": members} if members else None
        pretrain.main([*tiny_run.argv(f"--training.distillation={json.dumps(distillation)}"), "--dry_run"])
        plans[members] = json.loads((tiny_run.output_dir / "preflight.json").read_text())["plan"]
    assert "note: the checks are without members: not all of them are there" in capsys.readouterr().out
    assert plans[3]["parameters"] == plans[0]["parameters"]
    assert plans[3]["flops"] == pytest.approx(2 * plans[0]["flops"])  # a forward pass is a third of a step
    assert sum(plans[3]["memory_bytes"].values()) > sum(plans[0]["memory_bytes"].values())


def test_a_dry_run_refuses_members_of_another_recipe_as_training_does(tiny_run):
    for number in (0, 1):
        folder = tiny_run.output_dir / "members" / str(number) / "model"
        folder.mkdir(parents=True)
        record = {"settings": {}, "inputs": {}, "once": {}}
        write_record(folder, "pretrain", record)
    with pytest.raises(RecipeError, match="0/model is out of date"):
        pretrain.main([*tiny_run.argv("--training.distillation.members=2"), "--dry_run"])


@pytest.mark.parametrize("planted", preflight.CHECKS)
def test_a_planted_mistake_fails_the_check_that_is_for_it(planted, tiny_run, monkeypatch, capsys):
    read = MicroBatches.__getitem__

    def misread(self, k):
        item = read(self, k)
        if planted == "label shift":
            item["labels"] = item["input_ids"].clone()
        if planted == "document borders":
            item["position_ids"] = torch.arange(item["input_ids"].shape[1]).expand_as(item["input_ids"]).contiguous()
        if planted == "token ids":
            item["input_ids"][0, 5] = 384
        return item

    class Wrong(summed_loss.SummedLoss):
        def forward(self, input_ids, position_ids, labels):
            sums = super().forward(input_ids, position_ids, labels)
            if planted == "one batch is learned":
                return torch.stack([-sums[0], sums[1]])
            return sums / len(input_ids) if planted == "accumulation" else sums

    build_model, build_optimizers = summed_loss.build_model, preflight.build_optimizers
    rate = preflight.learning_rate_at

    def misbuilt(*args):
        model = build_model(*args)
        if planted == "first loss":
            torch.nn.init.normal_(model.lm_head.weight, std=2.0)
        return model

    def misgrouped(*args):
        optimizers = build_optimizers(*args)
        if planted == "decay groups":
            optimizers[0].param_groups[1]["weight_decay"] = 0.1
        return optimizers

    load = AutoTokenizer.from_pretrained

    def adding(folder):
        tokenizer = load(folder)
        if planted == "special tokens":
            end = (tokenizer.eos_token, tokenizer.eos_token_id)
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"$A {end[0]}", special_tokens=[end]
            )
        return tokenizer

    monkeypatch.setattr(MicroBatches, "__getitem__", misread)
    monkeypatch.setattr(summed_loss, "SummedLoss", Wrong)
    monkeypatch.setattr(summed_loss, "build_model", misbuilt)
    monkeypatch.setattr(preflight, "build_optimizers", misgrouped)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", adding)
    if planted == "special tokens":
        monkeypatch.setattr(inputs, "settle_document_ends", lambda *args: None)  # it refuses before preflight
    if planted == "documents apart":
        positions = preflight.document_positions
        monkeypatch.setattr(preflight, "document_positions", lambda t, bos: positions(t, -1))
    if planted == "learning rate":
        monkeypatch.setattr(preflight, "learning_rate_at", lambda *args: 2 * rate(*args))
    with pytest.raises(RecipeError) as refused:
        pretrain.main([*tiny_run.argv(), "--dry_run"])
    assert any(problem.startswith(f"{planted}: ") for problem in refused.value.problems)
    assert not results(tiny_run)[planted]["passed"] and f"FAILED {planted}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["wide", "bf16", "unmasked", "cosine", "short"])
def test_a_dry_run_passes_a_right_setup(kind, tiny_run, monkeypatch):
    overrides = {
        # The logits of new weights vary so much that the first loss is 0.8 nats above that of uniform guesses.
        "wide": ["--model.hidden_size=4096", "--model.head_dim=16", "--model.tie_word_embeddings=false"],
        "bf16": [],
        "unmasked": ["--training.document_masking=false"],
        "cosine": ["--training.lr_scheduler_type=cosine", "--training.min_learning_rate_fraction=0.1"],
        "short": ["--training.max_tokens=768", "--training.warmup_steps=0"],
    }[kind]
    if kind == "bf16":
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        AcceleratorState._reset_state(True)
    autocast, forward = [], LlamaModel.forward
    monkeypatch.setattr(
        LlamaModel, "forward", lambda *a, **k: autocast.append(torch.is_autocast_enabled("cpu")) or forward(*a, **k)
    )
    try:
        pretrain.main([*tiny_run.argv(*overrides), "--dry_run"])
    finally:
        AcceleratorState._reset_state(True)
    assert all(check["passed"] for check in results(tiny_run).values()) and len(results(tiny_run)) == 10
    assert set(autocast) == {kind == "bf16"}, "the checks compute in the precision of training"


def test_a_learning_rate_that_ends_at_its_peak_fails(tiny_run, monkeypatch):
    rate = preflight.learning_rate_at
    monkeypatch.setattr(preflight, "learning_rate_at", lambda step, *args: rate(min(step, 4), *args))
    with pytest.raises(RecipeError, match="learning rate: .*below it at the end"):
        pretrain.main([*tiny_run.argv(), "--dry_run"])


@pytest.mark.parametrize(
    ("kind", "num_processes", "parallelism", "strategy"),
    [
        (DistributedType.NO, 1, None, ("single_gpu.yaml", 1)),
        (DistributedType.MULTI_CPU, 2, None, ("ddp.yaml", 2)),
        (DistributedType.MULTI_GPU, 8, None, ("ddp.yaml", 8)),
        (DistributedType.FSDP, 8, None, ("fsdp2.yaml", 8)),
        (DistributedType.FSDP, 16, ParallelismConfig(dp_replicate_size=2, dp_shard_size=8), ("fsdp2.yaml", 8)),
        (DistributedType.DEEPSPEED, 8, None, ("deepspeed_zero3.yaml", 8)),
    ],
)
def test_the_plan_of_a_dry_run_divides_memory_as_the_launch_does(kind, num_processes, parallelism, strategy, tiny_run):
    recipe = pretrain.parse_command_line("", tiny_run.argv())[0]
    accelerator = SimpleNamespace(
        distributed_type=kind,
        num_processes=num_processes,
        parallelism_config=parallelism,
        device=torch.device("cpu"),
        mixed_precision="bf16",
    )
    phases = [{"after_step": 0}]
    plan = preflight.describe_plan(recipe, recipe.training, phases, 384, 1, "sdpa", accelerator)
    options = {"strategy": strategy[0], "num_devices": strategy[1], "compiled": False, "device_type": "cpu"}
    assert plan["memory_bytes"] == memory_by_part(recipe.model, 384, 32, 2, plain_attention=False, **options)


def test_the_plan_of_a_dry_run_is_of_the_attention_function_that_this_gpu_trains_with(tiny_run, monkeypatch):
    monkeypatch.setattr(preflight, "memory_available", lambda device: 80e9)
    monkeypatch.setattr(preflight, "peak_flops", lambda device: 1e15)
    recipe = pretrain.parse_command_line("", tiny_run.argv())[0]
    assert recipe.training.attn_implementation == "auto", "which is sdpa before Ampere and eager with soft caps"
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.NO,
        num_processes=1,
        parallelism_config=None,
        device=torch.device("cuda"),
        mixed_precision="bf16",
    )
    plans = {
        attention: preflight.describe_plan(
            recipe, recipe.training, [{"after_step": 0}], 384, 1, attention, accelerator
        )
        for attention in ("varlen", "sdpa", "sdpa_causal", "flex_attention", "eager")
    }
    assert [plan["seconds_assume_utilisation_fraction"] for plan in plans.values()] == [0.4, 0.2, 0.4, 0.3, 0.2]
    assert plans["sdpa"]["seconds"] == 2 * plans["varlen"]["seconds"]
    activations = {name: plan["memory_bytes"]["activations"] for name, plan in plans.items()}
    squares = 2 * (2 * 2 * 32 * 32) * (4 + 2 + 2)  # layers, sequences and heads; fp32 and twice bf16
    assert activations["eager"] - activations["sdpa"] == squares and activations["varlen"] == activations["sdpa"]


def test_utilisation_states_three_conventions(tiny_run):
    recipe = pretrain.parse_command_line("", tiny_run.argv())[0]
    plain = measure_utilisation(recipe.model, 384, 32, 1e9, 2)
    # 2 layers of 4 * 32 * 32 + 3 * 32 * 64, and the projection; 12 L H Q T for the scores.
    matrices, scores = 6 * (2 * (4 * 32 * 32 + 3 * 32 * 64) + 384 * 32), 12 * 2 * 32 * 32
    assert plain.flops_6nd == matrices and plain.flops_mfu == plain.flops_hardware == matrices + scores
    recomputed = measure_utilisation(recipe.model, 384, 32, 1e9, 2, recomputed=True, causal=True)
    assert recomputed.flops_mfu == plain.flops_mfu
    assert recomputed.flops_hardware == (matrices + scores / 2) * 4 / 3
    taught = measure_utilisation(recipe.model, 384, 32, 1e9, 2, causal=True, teachers=[recipe.model] * 2)
    assert taught.flops_hardware == pytest.approx((matrices + scores / 2) * (1 + 2 / 3))
    assert (taught.flops_mfu, taught.flops_6nd) == (plain.flops_mfu, plain.flops_6nd), "of the model that learns"
    recorded = plain.record(1000.0)
    assert recorded["train/utilisation_6nd_fraction"] == pytest.approx(matrices * 1000 / 2e9)
    assert recorded["train/mfu_fraction"] == pytest.approx((matrices + scores) * 1000 / 2e9)
    assert measure_utilisation(recipe.model, 384, 32, None, 2).record(1000.0) == {}


def test_the_half_above_the_diagonal_counts_only_where_it_is_computed(tokenized_run, tmp_path):
    ratios = {}
    for name, masked in (("sdpa", "true"), ("sdpa", "false"), ("varlen", "true")):
        run = tokenized_run.copy(tmp_path / f"{name}-{masked}")
        overrides = [f"--training.attn_implementation={name}", f"--training.document_masking={masked}"]
        pretrain.main(run.argv(*overrides, "--training.max_tokens=1024"))
        line = run.metrics()[0]
        ratios[name, masked] = line["train/utilisation_hardware_fraction"] / line["train/mfu_fraction"]
    matrices, scores = 6 * (2 * (4 * 32 * 32 + 3 * 32 * 64) + 384 * 32), 12 * 2 * 32 * 32
    half = (matrices + scores / 2) / (matrices + scores)
    assert list(ratios.values()) == [pytest.approx(1), pytest.approx(half), pytest.approx(half)]


def test_the_numbers_of_metrics_jsonl_reach_tensorboard(tiny_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain.main(tiny_run.argv("--training.report_to=['tensorboard']", "--training.max_tokens=1280"))
    lines = [line for line in tiny_run.metrics() if "train/loss" in line]
    assert 0 < lines[-1]["train/utilisation_6nd_fraction"] < lines[-1]["train/utilisation_hardware_fraction"]
    events = next(Path(tiny_run.output_dir).rglob("events.out.tfevents.*"))
    accumulated = EventAccumulator(str(events.parent))
    accumulated.Reload()
    logged = {event.step: event.value for event in accumulated.Scalars("train/loss")}
    assert logged == pytest.approx({line["step"]: line["train/loss"] for line in lines})


def test_the_numbers_of_metrics_jsonl_reach_trackio(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="Trackio is a package of its own: pip install trackio")
    from trackio.sqlite_storage import SQLiteStorage

    pretrain.main(tiny_run.argv("--training.report_to=['trackio']", "--training.max_tokens=1280"))
    lines = [line for line in tiny_run.metrics() if "train/loss" in line]
    (project,) = SQLiteStorage.get_projects()
    (run,) = SQLiteStorage.get_run_records(project)
    kept = SQLiteStorage.get_logs(project, run["name"], run_id=run["id"])
    logged = {line["step"]: line["train/loss"] for line in kept if "train/loss" in line}
    assert logged == pytest.approx({line["step"]: line["train/loss"] for line in lines})


def test_a_tracker_that_is_not_installed_is_refused(tiny_run, monkeypatch):
    monkeypatch.setattr(accelerators, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(RecipeError, match="not installed: trackio"):
        pretrain.main(tiny_run.argv("--training.report_to=['trackio']"))


STEPS_OF_MEMORY = """
import ctypes, resource, sys, torch
from training.accelerators import keep_freed_memory

def faults_of_steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(16 << 20).add_(1)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults_of_steps()
keep_freed_memory()
faults_of_steps()
print(first, faults_of_steps(), hasattr(ctypes.CDLL(None), "mallopt"))
"""


def test_on_a_processor_the_memory_of_a_step_is_used_by_the_next_without_being_cleared_again():
    command = [sys.executable, "-c", STEPS_OF_MEMORY]
    printed = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(RECIPES)}, check=True, capture_output=True)
    returned, kept, with_glibc = printed.stdout.split()
    if with_glibc != b"True":
        pytest.skip("this C library has no mallopt")
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    assert int(returned) > 0.9 * 5 * (64 << 20) / page_bytes  # where pages are not huge
    assert int(kept) < 100


def test_a_record_names_any_device_and_one_without_a_name_by_its_type(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"an NVIDIA GPU, {device}")
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: f"an Intel GPU, {device}")
    expected = {"cuda:1": "an NVIDIA GPU, cuda:1", "xpu:0": "an Intel GPU, xpu:0", "mps": "mps"}
    described = {"num_processes": 2, "distributed_type": DistributedType.NO, "mixed_precision": "bf16"}
    for name, product in expected.items():
        accelerator = SimpleNamespace(device=torch.device(name), **described)
        training = SimpleNamespace(per_device_train_batch_size=4)
        assert record.describe_device(accelerator)["device"] == product
        assert record.describe_computing(accelerator, training, True, "sdpa")["device"] == product
