# SPDX-License-Identifier: Apache-2.0
"""Training that is killed, preempted, hung or started twice loses nothing, and status.json says what happened."""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import pickle
import platform
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import namedtuple
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from slurm_stand_in import install
from tiny_run import RECIPES, ROOT, TinyRun, write_tiny_texts
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import audit_leaks
import child_processes
import choose_vocabulary
import finetune
import plan_run
import prepare_data
import pretrain
import push_to_hub
import run_recipe
import tokenize_corpus
import train_tokenizer
import verify_run
from atomic_files import read_record
from publishing import revision_queue
from recipe_config import RecipeError, Rollback, Stability
from recipe_loading import load_recipe
from recorded_files import (
    OF_REPORT,
    OF_TRAINING,
    RUN_FILES,
    find_damaged_run_files,
    record_run_files,
    recorded_run_files,
)
from recovery import checkpoints as checkpointing
from recovery import run_lock as run_locks
from recovery.chronicle import Chronicle, RunStatus, read_chronicle
from recovery.preemption import EXIT_STOPPED
from recovery.resuming import follow_computing
from recovery.run_lock import RunLockedError, is_held, run_lock
from recovery.stored_tensors import find_damage, list_checkpoints
from run_folder import REPLACED, write_record
from sweeps.runs import claimed, locked, run_logged
from training import step as step_module
from training.stability import Decision, rolled_back


# Long enough to be interrupted anywhere, with dropout, goldfish loss, a phase of longer sequences after step 16, and a
# second epoch of a source from step 17 on.
STEP_TOKENS = 2048
TRAINING = ["--model.attention_dropout=0.2", "--training.save_steps=3", f"--training.max_tokens={24 * STEP_TOKENS}"]
TRAINING += [f"--training.tokens_per_step={STEP_TOKENS}", "--training.per_device_train_batch_size=16"]
PHASE = {"start_fraction": 0.66, "shares": {"law": 0.1, "web": 0.9}, "sequence_length": 64}
PHASE |= {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
TRAINING += [f"--data.phases={json.dumps([PHASE])}", "--training.eval_steps=5"]
TRAINING += ["--training.goldfish={k: 4, context: 5}"]


def read_status(run: TinyRun) -> dict:
    try:
        return json.loads((run.output_dir / "status.json").read_text())
    except FileNotFoundError:
        return {}


def events(run: TinyRun) -> list[str]:
    return [entry["event"] for entry in read_chronicle(run.output_dir)]


def start(
    run: TinyRun, *overrides: str, script: Path = RECIPES / "pretrain.py", folder: Path = ROOT, **environment
) -> subprocess.Popen:
    """Start training in another process, in a working directory, without waiting for it."""
    command = [sys.executable, str(script), *run.argv(*overrides)]
    log = (folder / run.output_dir / "log.txt").open("ab")
    environment = os.environ | environment
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, preexec_fn=heed_hang_up)


def heed_hang_up() -> None:
    """Take SIGHUP as usual where nohup started the tests."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_for_step(run: TinyRun, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not (run.output_dir / "metrics.jsonl").exists() or all(line["step"] < step for line in run.metrics()):
        assert process.poll() is None and time.monotonic() < deadline, (run.output_dir / "log.txt").read_text()[-3000:]
        time.sleep(0.005)


def read_log(run: TinyRun) -> str:
    return (run.output_dir / "log.txt").read_text()[-3000:]


def wait_for_event(run: TinyRun, event: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    while event not in events(run):
        assert process.poll() is None and time.monotonic() < deadline, read_log(run)
        time.sleep(0.02)


def wait_until(process: subprocess.Popen, *statuses: str) -> None:
    """Wait until a process has one of psutil's statuses; a kill takes a while to end one with many threads."""
    deadline = time.monotonic() + 200
    while psutil.Process(process.pid).status() not in statuses:
        assert time.monotonic() < deadline, psutil.Process(process.pid).status()
        time.sleep(0.02)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def trained_weights(run: TinyRun) -> dict[str, torch.Tensor]:
    return load_file(run.output_dir / "model" / "model.safetensors")


def assert_same(run: TinyRun, uninterrupted: TinyRun) -> None:
    """Check that two runs have the same logged losses, validation scores and weights, bit for bit."""
    assert run.losses() == uninterrupted.losses()
    scores = [
        {line["step"]: line["eval/bits_per_byte"] for line in r.metrics() if "eval/bits_per_byte" in line}
        for r in (run, uninterrupted)
    ]
    assert scores[0] == scores[1]
    for name, tensor in trained_weights(uninterrupted).items():
        assert torch.equal(tensor, trained_weights(run)[name]), name


def slow(run: TinyRun, folder: Path, seconds: float = 0.15) -> Path:
    """Write a script that trains with a pause in each forward pass, so that a signal arrives in one."""
    script = folder / "slow.py"
    script.write_text(
        f"import sys, time\nsys.path.insert(0, {str(RECIPES)!r})\nimport pretrain\nfrom model import summed_loss\n"
        "class Slow(summed_loss.SummedLoss):\n"
        "    def forward(self, *batch, **named):\n"
        f"        time.sleep({seconds} / 4)\n"
        "        return super().forward(*batch, **named)\n"
        "summed_loss.SummedLoss = Slow\n"
        "pretrain.run_command(pretrain.main)\n"
    )
    return script


@pytest.fixture(scope="module")
def uninterrupted(tokenized_run, tmp_path_factory) -> TinyRun:
    run = tokenized_run.copy(tmp_path_factory.mktemp("uninterrupted") / "run")
    for stage in (train_tokenizer, tokenize_corpus):  # the phases decide the tokenizer's sample
        stage.main(run.argv(*TRAINING, "--overwrite"))
    run.copy(run.output_dir.parent / "fresh")
    pretrain.main(run.argv(*TRAINING))
    return run


@pytest.fixture
def run(uninterrupted, tmp_path) -> TinyRun:
    """The same run before training."""
    return TinyRun(uninterrupted.texts, uninterrupted.output_dir.parent / "fresh").copy(tmp_path / "run")


# --- resuming


def test_dropout_is_on_and_the_run_crosses_a_phase_and_an_epoch(uninterrupted):
    training = json.loads((uninterrupted.output_dir / "training.json").read_text())
    assert [phase["after_step"] for phase in training["phases"]] == [0, 16]
    config = json.loads((uninterrupted.output_dir / "model" / "config.json").read_text())
    assert config["attention_dropout"] == 0.2
    lines = {line["step"]: line for line in uninterrupted.metrics() if "eval/bits_per_byte" in line}
    repetitions = {step: line["data/repetitions/web"] for step, line in lines.items()}
    assert repetitions[15] < 1 < repetitions[20], repetitions


def test_a_phase_of_longer_sequences_keeps_the_tokens_per_step_and_is_in_the_exported_config(uninterrupted):
    lines = [line for line in uninterrupted.metrics() if "train/loss" in line]
    assert [line["train/tokens_seen"] for line in lines] == [STEP_TOKENS * line["step"] for line in lines]
    training = json.loads((uninterrupted.output_dir / "training.json").read_text())
    assert training["phases"][1]["sequence_length"] == 64
    model = AutoModelForCausalLM.from_pretrained(uninterrupted.output_dir / "model")
    assert model.config.max_position_embeddings == 64
    assert model.config.rope_parameters == PHASE["rope_parameters"]
    unstretched = LlamaRotaryEmbedding(LlamaConfig(hidden_size=32, num_attention_heads=2))
    assert torch.equal(2 * model.model.rotary_emb.inv_freq, unstretched.inv_freq)


@pytest.mark.parametrize(
    "ends",
    [
        [(10, signal.SIGKILL)],
        [(5, signal.SIGKILL), (10, signal.SIGKILL), (17, signal.SIGTERM)],
    ],
)
def test_a_run_that_is_killed_once_or_twice_and_preempted_ends_as_an_uninterrupted_one(
    uninterrupted, run, tmp_path, ends
):
    """Evaluated every 5 steps; killed before the ends of the epoch and the phase, which the resumed run crosses."""
    script = slow(run, tmp_path, 0.05)
    for step, number in ends:
        process = start(run, *TRAINING, script=script)
        wait_for_step(run, step, process)
        process.send_signal(number)
        code = process.wait(60)
        assert code == (EXIT_STOPPED if number == signal.SIGTERM else -signal.SIGKILL)
        assert read_status(run)["status"] == ("preempted" if number == signal.SIGTERM else "running")
        assert not is_held(run.output_dir)
    pretrain.main(run.argv(*TRAINING))
    assert_same(run, uninterrupted)
    assert read_status(run)["status"] == "finished" and events(run).count("resume") == len(ends)
    assert ("preemption" in events(run)) == (len(ends) == 3) and events(run)[-1] == "finish"
    assert (run.output_dir / "chronicle.md").read_text().count("**resume**") == len(ends)


def test_the_line_after_a_signal_is_of_the_steps_before_it_too(tiny_run, tmp_path, monkeypatch):
    more = ["--training.max_tokens=2048", "--training.logging_steps=4", "--training.save_steps=8"]
    whole, asked = tiny_run.copy(tmp_path / "whole"), []
    pretrain.main(whole.argv(*more))

    def in_step_7(preemption) -> bool:
        asked.append(preemption)
        return len(asked) == 7

    with monkeypatch.context() as patched, pytest.raises(SystemExit, match=str(EXIT_STOPPED)):
        patched.setattr(pretrain.Preemption, "requested", in_step_7)
        pretrain.main(tiny_run.argv(*more))
    pretrain.main(tiny_run.argv(*more))
    assert tiny_run.losses().keys() == {1, 4, 8} and "resume" in events(tiny_run)
    assert_same(tiny_run, whole)


def test_a_run_that_was_moved_resumes(uninterrupted, run, tmp_path):
    pretrain.main(run.argv(*TRAINING))
    shutil.rmtree(run.output_dir / "model")
    shutil.rmtree(run.output_dir / "checkpoints" / "step_00000024")
    moved = TinyRun(run.texts, tmp_path / "über uns")
    run.output_dir.rename(moved.output_dir)
    for path in (moved.output_dir / "checkpoints").rglob("*"):  # their order is that of the steps, not of time
        os.utime(path, (0, 0))
    pretrain.main(moved.argv(*TRAINING))
    assert_same(moved, uninterrupted)


def test_a_resumed_run_may_become_longer_which_is_recorded_but_not_shorter(tiny_run):
    pretrain.main(tiny_run.argv())
    shutil.rmtree(tiny_run.output_dir / "model")
    with pytest.raises(RecipeError, match="training.max_tokens was 5120, is 2560"):
        pretrain.main(tiny_run.argv("--training.max_tokens=2560"))
    assert read_status(tiny_run)["status"] == "failed" and "max_tokens was 5120" in read_status(tiny_run)["reason"]
    pretrain.main(tiny_run.argv("--training.max_tokens=7680", "--training.per_device_train_batch_size=4"))
    assert max(tiny_run.losses()) == 30
    changes = [entry["text"] for entry in read_chronicle(tiny_run.output_dir) if entry["event"] == "config_change"]
    assert "training.max_tokens was 5,120, is 7,680 after step 20: 30 steps, not 20" in changes[0]
    assert changes[1:] == [
        "per_device_train_batch_size was 2, is 4 after step 20; this can change the order of sums, and with it the "
        "last digits of the losses"
    ]
    trained = json.loads((tiny_run.output_dir / "training.json").read_text())["computing"]
    sizes = [(period["after_step"], period["per_device_train_batch_size"]) for period in trained]
    assert sizes == [(0, 2), (20, 4)] and trained[0]["attention"] and trained[0]["threads"] >= 1
    environment = json.loads((tiny_run.output_dir / "environment.json").read_text())
    assert environment["computed"] == trained[1]


def test_another_precision_is_recorded_as_one_that_changes_the_losses_and_a_rollback_keeps_the_present_one():
    state = {"step": 0}
    assert follow_computing(state, {"mixed_precision": "bf16", "compiled": True}) == []
    state["step"] = 10
    assert follow_computing(state, {"mixed_precision": "bf16", "compiled": True}) == []
    (change,) = follow_computing(state, {"mixed_precision": "no", "compiled": True})
    assert "mixed_precision was bf16, is no after step 10; this rounds otherwise" in change
    state |= {"step": 12, "settings": {}, "rollbacks": [], "learning_rate_factor": 1.0}
    settings = Stability(rollback=Rollback())
    back = rolled_back(state, {"step": 8}, Decision("rollback", "", (9,), 9, 9), settings)["computing"]
    assert [(period["after_step"], period["mixed_precision"]) for period in back] == [(0, "bf16"), (8, "no")]
    (begun,) = follow_computing(state, {"mixed_precision": "no", "environment": {"TORCHDYNAMO_DISABLE": "1"}})[1:]
    assert "environment was None, is {'TORCHDYNAMO_DISABLE': '1'} after step 12" in begun
    (ended,) = follow_computing(state, {"mixed_precision": "no"})
    assert "environment was {'TORCHDYNAMO_DISABLE': '1'}, is None" in ended
    old = {"step": 7}
    assert "how steps 1 to 7 were computed is not recorded" in follow_computing(old, {"compiled": True})[0]
    assert old["computing"] == [{"after_step": 7, "compiled": True}]


def test_training_that_replaces_a_model_goes_on_after_a_stop_and_a_third_recipe_is_refused(
    uninterrupted, tmp_path, monkeypatch
):
    run = uninterrupted.copy(tmp_path / "run")

    class Killed(BaseException):
        pass

    save = pretrain.Pretraining.save

    def die_later(training):
        if training.state["step"] > 6:
            raise Killed
        save(training)

    command = run.argv(*TRAINING, "--training.learning_rate=2e-2", "--overwrite")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(pretrain.Pretraining, "save", die_later)
        pretrain.main(command)
    third = run.argv(*TRAINING, "--training.learning_rate=3e-2", "--overwrite")
    with pytest.raises(RecipeError, match=f"is of another experiment.* move {run.output_dir}/checkpoints away"):
        pretrain.main(third)
    replaced = run.output_dir / REPLACED
    whole = replaced.read_bytes()
    for place, bit in ((whole.index(b"sha256") + 12, 1), (whole.index(b"sha256"), 1), (0, 4)):
        replaced.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(RecipeError, match=r"replaces.json is not as it was written, .* Restore it from a copy"):
            pretrain.main(command)
    replaced.write_bytes(whole)
    pretrain.main(command)
    starts = [entry for entry in read_chronicle(run.output_dir) if entry["event"] in ("start", "resume")]
    assert [(entry["event"], entry["step"]) for entry in starts] == [("start", 0), ("start", 0), ("resume", 6)]
    assert read_record(run.output_dir / "model")["settings"]["training"]["learning_rate"] == 2e-2


def test_a_start_with_overwrite_that_is_refused_keeps_what_the_finished_model_has(uninterrupted, tmp_path):
    run = uninterrupted.copy(tmp_path / "run")
    kept = {path: path.read_bytes() for path in run.output_dir.glob("checkpoints/*/*")}
    kept |= {
        run.output_dir / name: (run.output_dir / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl")
    }
    for refused in ('--training.distillation.teachers=["typo"]', "--training.max_tokens=1e9"):
        with pytest.raises(RecipeError, match="no model there|would repeat"):
            pretrain.main(run.argv(*TRAINING, refused, "--overwrite"))
        assert {path: path.read_bytes() for path in kept if path.exists()} == kept


def test_overwrite_starts_at_step_0_although_a_longer_run_of_the_model_was_stopped(tiny_run, monkeypatch):
    pretrain.main(tiny_run.argv("--training.max_tokens=2048", "--training.save_steps=4"))
    longer = tiny_run.argv("--training.max_tokens=4096", "--training.save_steps=4", "--overwrite")
    save = pretrain.Pretraining.save

    def stop_later(training):
        if training.state["step"] > 12:
            raise InterruptedError
        save(training)

    newest = tiny_run.output_dir / "checkpoints" / "step_00000008"
    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr(pretrain.Pretraining, "save", stop_later)
        pretrain.main([*longer, f"--run.resume={newest}"])
    pretrain.main(longer)
    starts = [entry for entry in read_chronicle(tiny_run.output_dir) if entry["event"] in ("start", "resume")]
    assert [(entry["event"], entry["step"]) for entry in starts] == [("start", 0), ("resume", 8), ("start", 0)]


@pytest.fixture
def in_bf16(monkeypatch):
    """Return a function that has this process train in bf16 from then on, as its launcher would; undone at the end."""

    def switch() -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        AcceleratorState._reset_state()

    yield switch
    AcceleratorState._reset_state()


def test_another_precision_is_refused_on_resume_unless_the_checkpoint_is_named_and_then_recorded(tiny_run, in_bf16):
    short = ["--training.max_tokens=2048", "--training.save_steps=4"]
    pretrain.main(tiny_run.argv(*short))
    shutil.rmtree(tiny_run.output_dir / "model")
    newest = tiny_run.output_dir / "checkpoints" / "step_00000008"
    longer = ["--training.max_tokens=3072", *short[1:]]
    (tiny_run.output_dir / "environment.json").unlink()
    in_bf16()
    moved = (tiny_run.output_dir / "metrics.jsonl").rename(tiny_run.output_dir / "metrics.copy")
    message = rf"{newest} was computed with mixed_precision: no, and this launch sets bf16.* add --run.resume={newest}"
    with pytest.raises(RecipeError, match=message):
        pretrain.main(tiny_run.argv(*longer))
    moved.rename(tiny_run.output_dir / "metrics.jsonl")

    pretrain.main(tiny_run.argv(*longer, f"--run.resume={newest}"))
    assert sorted(tiny_run.losses()) == list(range(1, 13)), "a start that was refused forgot nothing"
    changes = [entry["text"] for entry in read_chronicle(tiny_run.output_dir) if entry["event"] == "config_change"]
    assert any("mixed_precision was no, is bf16 after step 8" in change for change in changes), changes
    computed = json.loads((tiny_run.output_dir / "training.json").read_text())["computing"]
    assert [(period["after_step"], period["mixed_precision"]) for period in computed] == [(0, "no"), (8, "bf16")]


def test_a_checkpoint_that_is_named_but_damaged_or_none_is_refused(run):
    for path, reason in (
        ("/nowhere", "manifest.json is missing"),
        ("https://example.org/x", "manifest.json is missing"),
    ):
        with pytest.raises(RecipeError, match=f"run.resume={path}: {reason}; name the folder of a whole checkpoint"):
            pretrain.main(run.argv(*TRAINING, f"--run.resume={path}"))


# --- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_before_the_first_step_there_is_nothing_to_save_and_training_exits_at_once(run, tmp_path, number):
    process = start(run, *TRAINING, script=slow(run, tmp_path, 60))
    wait_for_event(run, "start", process)
    sent = time.monotonic()
    process.send_signal(number)
    assert process.wait(40) == EXIT_STOPPED
    assert time.monotonic() - sent < 15
    status = read_status(run)
    assert status["status"] == "preempted" and status["exit_code"] == EXIT_STOPPED
    assert "before the first step" in status["reason"] and number.name in status["reason"]
    assert not list_checkpoints(run.output_dir / "checkpoints")


@pytest.mark.long
def test_a_signal_in_the_compiler_ends_training_at_once(run, tmp_path):
    process = start(run, *TRAINING, "--training.torch_compile=true", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cache/**/*.cpp")):  # which g++ is about to compile
        assert process.poll() is None and time.monotonic() < deadline, read_log(run)
        time.sleep(0.02)
    assert not (run.output_dir / "metrics.jsonl").exists()
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == EXIT_STOPPED, read_log(run)
    assert time.monotonic() - sent < 30
    status = read_status(run)
    assert status["status"] == "preempted" and "before the first step" in status["reason"]


def test_a_signal_interrupts_an_evaluation_which_the_resumed_run_repeats(uninterrupted, run, tmp_path):
    script = tmp_path / "slow_evaluation.py"
    script.write_text(slow(run, tmp_path).read_text().replace("time.sleep", "self.training or time.sleep"))
    process = start(run, *TRAINING, script=script)
    wait_for_step(run, 5, process)  # logged before the evaluation of step 5
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == EXIT_STOPPED
    assert not any("eval/bits_per_byte" in line for line in run.metrics())
    ((step, checkpoint), *_) = list_checkpoints(run.output_dir / "checkpoints")
    assert step == 5 and find_damage(checkpoint) is None
    pretrain.main(run.argv(*TRAINING))
    assert_same(run, uninterrupted)


def test_what_cannot_be_saved_in_time_is_left_unsaved(run, tmp_path):
    script = tmp_path / "stuck.py"
    script.write_text(
        slow(run, tmp_path, 0.05)
        .read_text()
        .replace(
            "pretrain.run_command",
            "from recovery import checkpoints, preemption\n"
            "preemption.SAVE_SECONDS = 1\n"
            "checkpoints.commit = lambda *_: time.sleep(600)\n"
            "pretrain.run_command",
        )
    )
    process = start(run, *TRAINING, script=script)
    wait_for_step(run, 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == EXIT_STOPPED
    assert re.search(r"saving took longer than \d s", read_status(run)["reason"])
    assert not list_checkpoints(run.output_dir / "checkpoints")


def test_a_signal_in_a_step_that_takes_longer_than_a_save_may_is_saved_after_it(run, tmp_path):
    script = slow(run, tmp_path, 2.5)
    of_saves = "from recovery import preemption\npreemption.SAVE_SECONDS = 1\npretrain.run_command"
    script.write_text(script.read_text().replace("pretrain.run_command", of_saves))
    process = start(run, *TRAINING, script=script)
    wait_for_step(run, 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == EXIT_STOPPED
    assert read_status(run)["reason"] == "SIGTERM; saved at step 3"
    assert list_checkpoints(run.output_dir / "checkpoints")[0][0] == 3
    printed = (run.output_dir / "log.txt").read_text()
    assert "and 3 steps once they are measured" in printed and "and 3 steps of up to" in printed


def test_after_slurms_warning_both_processes_save_and_the_job_is_requeued(uninterrupted, run, tmp_path):
    """The Slurm script under a mock Slurm, warned with USR1 and then started again."""
    commands = install(tmp_path / "slurm")
    environment = os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PROCESSES_PER_NODE": "2",
        "SLURM_JOB_ID": "417",
        "SLURM_CPUS_ON_NODE": "6",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "MASTER_PORT": str(20_000 + os.getpid() % 10_000),
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_CONFIG": str(tmp_path / "ddp.yaml"),
    }
    machine = (ROOT / "accelerate_configs" / "ddp.yaml").read_text().replace("bf16", '"no"')
    (tmp_path / "ddp.yaml").write_text(machine)
    command = ["bash", str(ROOT / "accelerate_configs" / "slurm.sh"), *run.argv(*TRAINING)]
    log = (run.output_dir / "log.txt").open("ab")
    job = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    wait_for_step(run, 4, job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 0, (run.output_dir / "log.txt").read_text()[-3000:]
    status = read_status(run)
    assert status["status"] == "preempted", status
    assert status["reason"] == f"the file leave; saved at step {status['step']}", "not the launcher's 30 s"
    assert list_checkpoints(run.output_dir / "checkpoints")[0][0] == status["step"] >= 4
    assert not (run.output_dir / "leave").exists()
    assert (commands / "requeued").read_text() == "417\n"
    assert "--cpus-per-task=6" in (commands / "srun_options").read_text().split(), "all cores of the node"
    assert subprocess.run(command, env=environment, stdout=log, stderr=log).returncode == 0
    assert read_status(run)["status"] == "finished" and (commands / "requeued").read_text() == "417\n"
    assert list(run.losses()) == list(uninterrupted.losses()), "every step was trained, once"


def test_run_recipe_passes_a_signal_on_and_prints_where_training_stopped_and_the_command_that_resumes(tmp_path):
    (tmp_path / "status.json").write_text('{"status": "preempted", "reason": "an earlier end"}')
    status = '{"status": "preempted", "reason": "SIGTERM; saved at step 7", "started": "later"}'
    code = (
        "import pathlib, signal, sys, time\n"
        f"def leave(*_):\n    pathlib.Path({str(tmp_path / 'status.json')!r}).write_text({status!r})\n"
        "    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, leave)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    parent = (
        f"import pathlib, sys; sys.path.insert(0, {str(RECIPES)!r}); import run_recipe; "
        f"run_recipe.run_script('pretrain', [sys.executable, '-c', {code!r}], pathlib.Path({str(tmp_path)!r}))"
    )
    command = [sys.executable, "-c", parent]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    _, error = process.communicate(timeout=20)
    assert process.returncode == EXIT_STOPPED
    assert "pretrain stopped on SIGUSR1: SIGTERM; saved at step 7; start again with: " in error
    assert shlex.split(error.partition("start again with: ")[2]) == command


@pytest.mark.parametrize("status", ["running", "preempted"])
def test_a_command_that_another_run_in_the_folder_refuses_is_not_taken_for_that_run(tmp_path, capsys, status):
    path, first = tmp_path / "status.json", {"pid": 7, "host": "a", "started": "2026-01-01T00:00:00Z"}
    path.write_text(json.dumps(first | {"status": "running", "step": 3}))
    changed = json.dumps(first | {"status": status, "step": 4, "reason": "SIGTERM; saved at step 4"})
    refused = [sys.executable, "-c", f"open({str(path)!r}, 'w').write({changed!r}); raise SystemExit('is in use')"]
    with pytest.raises(SystemExit) as ended:
        run_recipe.run_script("pretrain", refused, tmp_path)
    shown = capsys.readouterr().err
    assert ended.value.code == 1 and "killed" not in shown and "saved at step" not in shown
    with pytest.raises(SystemExit, match="one arm stopped with status 1"):
        path.write_text(json.dumps(first | {"status": "running", "step": 3}))
        run_logged(refused, tmp_path / "log.txt", "one arm")


@pytest.mark.parametrize(("save_seconds", "saved"), [(20, True), (0, False)])
def test_a_process_that_lost_its_launcher_has_the_time_to_save_that_its_run_measured(
    save_seconds, saved, tmp_path, monkeypatch
):
    monkeypatch.setattr(child_processes, "LEAVE_SECONDS", 0.5)
    training = (
        "import pathlib, signal, sys, time\n"
        f"def save(*_):\n    time.sleep(3)\n    pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n    sys.exit()\n"
        f"signal.signal(signal.SIGTERM, save)\npathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(60)"
    )
    launcher = (
        "import pathlib, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {training!r}])\n"
        f"while not pathlib.Path({str(tmp_path / 'ready')!r}).exists(): time.sleep(0.01)\n"
        f"pathlib.Path({str(tmp_path / 'status.json')!r}).write_text('{{\"save_seconds\": {save_seconds}}}')\n"
        "sys.exit(9)"
    )
    with pytest.raises(SystemExit):
        run_recipe.run_script("pretrain", [sys.executable, "-c", launcher], tmp_path)
    assert (tmp_path / "saved").exists() is saved


def run_whole(run: TinyRun, *overrides: str, **settings) -> subprocess.Popen:
    """Start run_recipe.py on a tokenized run, with more to train than a test waits for."""
    command = [sys.executable, str(RECIPES / "run_recipe.py"), *run.argv("--training.max_tokens=2560000", *overrides)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, preexec_fn=heed_hang_up, **pipes, **settings)


def processes_on(run: TinyRun) -> list[psutil.Process]:
    """Return the running processes that were started on a run folder."""
    named = f"--run.output_dir={json.dumps(str(run.output_dir))}"
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if named in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


TWO = ("--accelerate_config", str(ROOT / "accelerate_configs" / "ddp.yaml"), "--num_processes", "2")


@pytest.mark.parametrize(
    ("number", "launch"),
    [(signal.SIGINT, ()), pytest.param(signal.SIGHUP, (), marks=pytest.mark.long), (signal.SIGTERM, TWO)],
    ids=["Ctrl-C", "terminal closed", "two processes"],
)
def test_a_stopped_recipe_waits_for_the_save_and_leaves_no_process_behind(tiny_run, number, launch):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}
    process = run_whole(tiny_run, *launch, env=environment)
    wait_for_step(tiny_run, 4, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, error
    status = read_status(tiny_run)
    assert status["status"] == "preempted" and f"saved at step {status['step']}" in status["reason"]
    assert f"run_recipe: pretrain stopped on {number.name}: {status['reason']}; start again with: " in error
    assert list_checkpoints(tiny_run.output_dir / "checkpoints")[0][0] == status["step"] >= 4
    assert not processes_on(tiny_run)


def test_training_saves_and_ends_when_the_recipe_is_killed(tiny_run):
    process = run_whole(tiny_run)
    wait_for_step(tiny_run, 4, process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while processes_on(tiny_run):
        assert time.monotonic() < deadline, processes_on(tiny_run)
        time.sleep(0.1)
    status = read_status(tiny_run)
    assert status["status"] == "preempted" and "saved at step" in status["reason"]


def test_a_recipe_that_is_process_1_of_a_container_saves_when_it_is_stopped(tiny_run):
    unshare = ["unshare", "--fork", "--pid", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this machine gives tests no process namespace of their own")
    command = [*unshare, sys.executable, str(RECIPES / "run_recipe.py")]
    command += tiny_run.argv("--training.max_tokens=2560000")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_step(tiny_run, 4, process)
    (first,) = psutil.Process(process.pid).children()
    first.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, error
    assert "saved at step" in read_status(tiny_run)["reason"] and not processes_on(tiny_run)


@pytest.mark.parametrize("script", ["pretrain.py", "run_recipe.py"])
def test_a_hang_up_that_nohup_ignores_stops_nothing(tiny_run, script):
    command = [sys.executable, str(RECIPES / script), *tiny_run.argv()]
    ignore = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=ignore
    )
    wait_for_step(tiny_run, 2, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0 and read_status(tiny_run)["status"] == "finished"


# --- several processes


def start_pair(
    run: TinyRun, script: Path, *others: list[str], folders: tuple[Path, Path] = (ROOT, ROOT), **environment: str
) -> list[subprocess.Popen]:
    """Start two processes that train together, without a launcher, which would end both when one ends.

    `others` are the overrides of each, `folders` their working directories.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(run, *TRAINING, *more, script=script, folder=folder, RANK=rank, LOCAL_RANK=rank, **world, **environment)
        for rank, more, folder in zip("01", others or ([], []), folders, strict=True)
    ]


@pytest.mark.long
def test_a_run_of_four_processes_resumes_bit_for_bit(tiny_run, tmp_path):
    """The gradients of more than two are added in an order that follows from how DDP divides them into buckets."""
    run, whole = tiny_run, tiny_run.copy(tmp_path / "whole")
    more = ["--training.max_tokens=2560", "--training.save_steps=2", "--training.save_total_limit=9"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "4", "--standalone"]
    launch += [str(RECIPES / "pretrain.py")]
    subprocess.run([*launch, *whole.argv(*more)], cwd=ROOT, check=True, capture_output=True)
    shutil.copytree(whole.output_dir, run.output_dir, dirs_exist_ok=True)
    shutil.rmtree(run.output_dir / "model")
    for later in ("04", "06", "08", "10"):
        shutil.rmtree(run.output_dir / "checkpoints" / f"step_000000{later}")
    subprocess.run([*launch, *run.argv(*more)], cwd=ROOT, check=True, capture_output=True)
    assert events(run).count("resume") == 1
    assert_same(run, whole)


def test_a_file_that_one_of_two_processes_checks_is_read_by_none_before(run):
    """The other would end in a traceback, if it read the damaged tokenizer first."""
    record = json.loads((run.output_dir / "tokenizer" / "stage.json").read_text())
    checks = sorted(record["files"]).index("tokenizer.json") % 2
    path = run.output_dir / "tokenizer" / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace("{", "[", 1))
    slow_hash = "import time, run_folder; real = run_folder.require\n"
    slow_hash += "def require(*arguments):\n    time.sleep(2)\n    return real(*arguments)\n"
    script = run.output_dir.with_name("slow_check.py")
    script.write_text(
        f"import os, sys; sys.path.insert(0, {str(RECIPES)!r})\n{slow_hash}"
        f"if os.environ['RANK'] == '{checks}':\n    run_folder.require = require\n"
        "import pretrain\nfrom recipe_loading import run_command\nrun_command(pretrain.main)\n"
    )
    pair = start_pair(run, script)
    assert [process.wait(120) for process in pair] == [1, 1]
    log = (run.output_dir / "log.txt").read_text()
    assert log.count("tokenizer.json: its sha256 is not") == 2 and "Traceback" not in log, log[-3000:]


@pytest.mark.parametrize("harm", ["SIGKILL", "SIGSTOP"])
def test_a_process_that_dies_or_hangs_ends_the_others_in_time_and_the_last_checkpoint_is_whole(run, tmp_path, harm):
    script = tmp_path / "harmed.py"
    text = slow(run, tmp_path, 0).read_text()
    fall = (
        "self.calls == 20 and os.environ['RANK'] == '1' and os.kill(os.getpid(), getattr(signal, os.environ['HARM']))"
    )
    text = text.replace("time.sleep(0 / 4)", f"self.calls = getattr(self, 'calls', 0) + 1\n        {fall}")
    script.write_text("import os, signal\n" + text)
    limit = ["--run.timeout_seconds=4"]
    survivor, harmed = start_pair(run, script, limit, limit, HARM=harm)
    try:
        wait_until(harmed, psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
        fell = time.time()
        assert survivor.wait(200) == 1, (run.output_dir / "log.txt").read_text()[-3000:]
        ended = datetime.fromisoformat(read_status(run)["updated"]).timestamp()
        assert ended - fell < 4 + 5, "run.timeout_seconds, and five"
    finally:
        harmed.kill()
        harmed.wait()
    status, log = read_status(run), (run.output_dir / "log.txt").read_text()
    named = rf"process 1 on {platform.node()} \(pid {harmed.pid}, step \d\) "
    stood = r"(is dead or stopped; |did not move for )run\.timeout_seconds=4"
    named += stood if harm == "SIGSTOP" else rf"({stood}|died, as when memory runs out)"
    assert status["status"] == "failed" and re.match(named, status["reason"]), status
    assert re.search(named, log) and "Traceback" not in log, log[-3000:]
    assert events(run)[-1] == "failure"
    ((step, checkpoint), *_) = list_checkpoints(run.output_dir / "checkpoints")
    assert step == 3 and find_damage(checkpoint) is None, "of 24 steps of four calls, the fifth was under way"


@pytest.mark.parametrize(("moment", "killed"), [("before the first step", 1), ("in a step", 0)])
def test_a_process_that_the_kernel_kills_fails_the_run_although_its_launcher_sends_a_signal(run, moment, killed):
    pair = start_pair(run, RECIPES / "pretrain.py")
    if moment == "in a step":
        wait_for_step(run, 4, pair[0])
    else:
        wait_for_event(run, "start", pair[0])
    pair[killed].kill()
    wait_until(pair[killed], psutil.STATUS_ZOMBIE)  # a launcher sends the signal when it has seen the death
    pair[1 - killed].terminate()
    # The signal may come when it has recorded the death and is about to end.
    assert pair[1 - killed].wait(60) in (1, -signal.SIGTERM), read_log(run)
    pair[killed].wait()
    status = read_status(run)
    named = rf"process {killed} on .* died, .* \(then set training.per_device_train_batch_size lower"
    assert status["status"] == "failed" and status["exit_code"] == 1 and re.match(named, status["reason"]), status
    assert re.search(named, read_log(run)) and "Traceback" not in read_log(run)


def test_training_goes_on_after_the_shell_that_started_it(run, tmp_path):
    """As under nohup, when a user logs out."""
    command = [sys.executable, str(slow(run, tmp_path)), *run.argv(*TRAINING)]
    shell = subprocess.Popen(
        ["sh", "-c", f"{shlex.join(command)} > {tmp_path}/log 2>&1 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    )
    training = psutil.Process(int(shell.stdout.readline()))
    while not (run.output_dir / "metrics.jsonl").exists():
        assert training.is_running(), (tmp_path / "log").read_text()[-2000:]
        time.sleep(0.05)
    shell.kill()
    shell.wait()
    psutil.wait_procs([training], timeout=100)
    assert read_status(run)["status"] == "finished", (tmp_path / "log").read_text()[-2000:]


def test_an_error_of_one_process_fails_the_run_although_its_launcher_sends_the_others_a_signal(run, tmp_path):
    script = tmp_path / "broken.py"
    fall = """import itertools, os, time
calls = itertools.count(1)
def fall():
    if next(calls) == 20:
        if os.environ["RANK"] == "1":
            raise ValueError("it broke")
        time.sleep(8)
"""
    script.write_text(fall + slow(run, tmp_path, 0).read_text().replace("time.sleep(0 / 4)", "fall()"))
    pair = start_pair(run, script)
    assert pair[1].wait(200) == 1, read_log(run)
    pair[0].terminate()
    assert pair[0].wait(60) == 1, read_log(run)
    status = read_status(run)
    assert (status["status"], status["exit_code"]) == ("failed", 1), status
    assert status["reason"] == "process 1: ValueError: it broke", "not preempted: that would start it again for ever"


def test_the_end_that_another_process_recorded_outlasts_a_save(tmp_path):
    main, other = RunStatus(tmp_path, True), RunStatus(tmp_path, False)
    main.begin()
    other.begin()
    other.end("failed", 1, "process 1: it broke", alone=True)
    main.update(checkpoint="step_00000003")
    main.end("preempted", 75, "SIGTERM", alone=True)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["exit_code"], status["reason"]) == ("failed", 1, "process 1: it broke")
    assert status["checkpoint"] == "step_00000003"
    main.begin()
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["status"] == "running" and "reason" not in status, "of the next launch"


def test_a_run_that_is_killed_when_its_model_is_there_has_recorded_its_files(tiny_run, monkeypatch):
    real = pretrain.new_output

    @contextmanager
    def killed_after(recipe, name):
        with real(recipe, name) as folder:
            yield folder
        raise SystemExit("killed")

    monkeypatch.setattr(pretrain, "new_output", killed_after)
    with pytest.raises(SystemExit, match="killed"):
        pretrain.main(tiny_run.argv())
    assert (tiny_run.output_dir / "model").exists()
    recorded = recorded_run_files(tiny_run.output_dir)
    there = {name for name in OF_TRAINING if (tiny_run.output_dir / name).exists()}
    assert there - recorded.keys() == {"status.json"} and "training.json" in there
    assert not find_damaged_run_files(tiny_run.output_dir)
    flip(tiny_run.output_dir / "training.json")
    assert "training.json" in find_damaged_run_files(tiny_run.output_dir)


def test_a_line_of_the_chronicle_that_changed_after_the_newest_checkpoint_is_refused(tmp_path, capsys):
    chronicle = Chronicle(tmp_path, True)
    for step, text in enumerate(["100 parameters", "data.skip was 1 to 3", "step_00000003"]):
        chronicle.note("note", step, text)
    whole = (tmp_path / "chronicle.jsonl").read_text()
    Chronicle(tmp_path, True).note("resume", 3, "from there")
    assert [entry["text"] for entry in read_chronicle(tmp_path)][-1] == "from there"
    assert (tmp_path / "chronicle.jsonl").read_text().startswith(whole)
    (tmp_path / "chronicle.jsonl").write_text(whole.replace("1 to 3", "1 to 2"))
    with pytest.raises(RecipeError, match=r"chronicle\.jsonl:2 or a line before it is not as it was written"):
        Chronicle(tmp_path, True)
    with pytest.raises(SystemExit):
        verify_run.main([str(tmp_path)])
    assert re.search(r"chronicle\.jsonl +! damaged: a line is not as it was written", capsys.readouterr().out)
    unchained = [{key: entry[key] for key in entry if key != "chain"} for entry in map(json.loads, whole.splitlines())]
    (tmp_path / "chronicle.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in unchained))
    Chronicle(tmp_path, True).note("resume", 3, "of a run of an earlier version")
    assert len(read_chronicle(tmp_path)) == 4


def test_an_event_for_which_the_disk_has_no_room_leaves_the_chronicle_whole(tmp_path):
    chronicle = Chronicle(tmp_path, True)
    chronicle.note("start", 0, "100 parameters")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "chronicle.jsonl").stat().st_size + 20, before[1]))
    try:
        with pytest.raises(OSError):
            chronicle.note("save", 3, "step_00000003")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    chronicle.note("save", 6, "step_00000006")
    assert [entry["step"] for entry in read_chronicle(tmp_path)] == [0, 6]


def test_processes_with_different_data_are_refused_by_name(run, tmp_path):
    """Both have the same recipe, but the relative folder in it holds other tokens for each."""
    places = [tmp_path / "0" / "run", tmp_path / "1" / "run"]
    for place in places:
        run.copy(place)
    tokens = places[1] / "tokens"
    flip(next(tokens.glob("law/train-*.ds")))
    record = read_record(tokens)
    write_record(tokens, "tokenize", {key: record[key] for key in ("settings", "inputs", "once")})
    pair = start_pair(
        TinyRun(run.texts, Path("run")), RECIPES / "pretrain.py", folders=(tmp_path / "0", tmp_path / "1")
    )
    assert [process.wait(200) for process in pair] == [1, 1]
    for place in places:
        output = (place / "log.txt").read_text()
        assert "process 1 differs from process 0: inputs.tokenize was " in output, output[-3000:]
        assert not (place / "checkpoints").exists()


def test_processes_with_different_recipes_are_refused_by_name(run):
    pair = start_pair(run, RECIPES / "pretrain.py", ["--training.learning_rate=0.5"], ["--run.seed=3"])
    assert [process.wait(200) for process in pair] == [1, 1]
    output = (run.output_dir / "log.txt").read_text()
    assert "process 1 differs from process 0: recipe.run.seed was 0, is 3" in output
    assert "recipe.training.learning_rate was 0.5, is 0.01" in output
    assert not (run.output_dir / "checkpoints").exists()


@pytest.mark.parametrize("moment", ["in a step", "before the first"])
def test_after_a_signal_to_one_process_all_exit_in_time_with_the_documented_code(run, tmp_path, moment):
    pair = start_pair(run, slow(run, tmp_path, 0.1 if moment == "in a step" else 30))
    if moment == "in a step":
        wait_for_step(run, 4, pair[0])
    else:
        wait_for_event(run, "start", pair[0])
    sent = time.monotonic()
    pair[1].send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in pair] == [EXIT_STOPPED, EXIT_STOPPED], read_log(run)
    assert time.monotonic() - sent < 20
    status = read_status(run)
    assert status["status"] == "preempted" and status["exit_code"] == EXIT_STOPPED
    checkpoints = list_checkpoints(run.output_dir / "checkpoints")
    if moment == "in a step":
        assert status["reason"] == f"a signal to another process; saved at step {status['step']}"
        assert checkpoints[0][0] == status["step"] >= 4 and find_damage(checkpoints[0][1]) is None
    else:
        assert status["reason"].startswith("SIGTERM before the first step") and not checkpoints


# --- one run at a time


def test_a_second_run_on_a_folder_is_refused_naming_the_first_and_the_lock_of_a_killed_run_is_taken_over(run, capsys):
    with run_lock(run.output_dir, "prepare") as left:
        assert left is None and is_held(run.output_dir)
        process = start(run, *TRAINING)
        assert process.wait(120) == 1
        assert f"is in use by process {os.getpid()} on " in (run.output_dir / "log.txt").read_text()
    assert not (run.output_dir / ".lock").exists() and not is_held(run.output_dir)
    dead = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys, pathlib; sys.path.insert(0, sys.argv[1]); from recovery import run_lock\n"
            "with run_lock.run_lock(pathlib.Path(sys.argv[2]), 'tokenize'): os.kill(os.getpid(), 9)",
            str(RECIPES),
            str(run.output_dir),
        ],
        check=False,
    )
    assert dead.returncode == -signal.SIGKILL and (run.output_dir / ".lock").exists()
    with run_lock(run.output_dir, "publish") as left, pytest.raises(RunLockedError, match=r"process .* \(publish, "):
        assert left.startswith("process ") and "(tokenize, " in left
        with run_lock(run.output_dir, "publish"):
            pass


def test_every_stage_is_refused_while_another_works_in_the_folder(tiny_run):
    run = tiny_run.output_dir
    texts = json.dumps({"name": "cases", "path": str(tiny_run.texts / "law.jsonl")})
    tuned = [f"--finetune.train={texts}", f"--finetune.test={texts}", f"--finetune.model={tiny_run.texts}"]
    tuned += ["--hub.license=other"]
    planned = ["--plan.flops=1e13", "--plan.device=rtx-4090", "--plan.domain_bytes=1e9", "--plan.general_bytes=1e9"]
    by_hand = [(pretrain, ["--dry_run"]), (plan_run, planned), (finetune, tuned)]
    by_hand += [(choose_vocabulary, ["--vocabulary.sizes=[320, 384]"])]
    stages = [(pretrain, "model"), (tokenize_corpus, "tokens"), (train_tokenizer, "tokenizer")]
    stages += [(prepare_data, "documents"), (push_to_hub, "release")]
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], tiny_run.argv()[2:])
    (run / "recipe.yaml").write_text(recipe.dump_yaml())
    before = hash_all(run)
    refused = pytest.raises(RunLockedError, match=r"is in use by process .* \(pretrain, ")
    with run_lock(run, "pretrain"):
        for stage, more in by_hand:
            with refused:
                stage.main(tiny_run.argv(*more))
        with refused:
            audit_leaks.main([str(run)])
        assert hash_all(run) == before
        for stage, output in stages:
            shutil.rmtree(run / output, ignore_errors=True)
            with refused:
                stage.main(tiny_run.argv())
            assert not (run / output).exists()
        options = SimpleNamespace(config=[], overrides=[], overwrite=False)
        for name in ("requests", "evaluate", "report"):  # whose scripts read no recipe
            with refused:
                run_recipe.run_stage(recipe, name, options, ["--cpu", "--num_processes", "1"])


def hash_all(run: Path) -> dict[str, str]:
    """Return the hash of each file of a run folder that is not hidden."""
    paths = [path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


HOLD = """import os, socket, sys, pathlib, platform, time
sys.path.insert(0, sys.argv[1])
if sys.argv[3]:
    socket.gethostname = platform.node = lambda: sys.argv[3]
import errno, fcntl
from recovery import run_lock
run_lock.BEAT_SECONDS, run_lock.STALE_SECONDS = 0.2, 1.0
def no_flock(*_):
    raise OSError(int(sys.argv[4]), os.strerror(int(sys.argv[4])))
if sys.argv[4] != "0":
    fcntl.flock = no_flock
with run_lock.run_lock(pathlib.Path(sys.argv[2]), "prepare"):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(run: Path, host: str, error: int) -> subprocess.Popen:
    """Lock a folder in another process, of a machine of that name if one is given, where flock fails with an error."""
    command = [sys.executable, "-c", HOLD, str(RECIPES), str(run), host, str(error)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_a_file_system_has_no_locks_the_heartbeat_of_the_holder_decides(tmp_path, monkeypatch, error):
    def no_flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", no_flock)
    monkeypatch.setattr(run_locks, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(run_locks, "STALE_SECONDS", 1.0)
    for host in ("", "elsewhere"):
        holder = hold(tmp_path, host, error)
        place = host or platform.node()
        refusal = rf"in use by process {holder.pid} on {place} \(prepare, "
        with pytest.raises(RunLockedError, match=refusal), run_lock(tmp_path, "tokenizer"):
            pass
        assert is_held(tmp_path)
        holder.kill()
        holder.wait()
        with run_lock(tmp_path, "tokenizer") as left:
            assert left.startswith(f"process {holder.pid} on {place}"), "it was killed"
        assert not is_held(tmp_path) and not list(tmp_path.iterdir())


CLAIM = """
import fcntl, os, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from sweeps import runs
def no_flock(*_):
    raise OSError(int(sys.argv[3]), os.strerror(int(sys.argv[3])))
fcntl.flock = no_flock
with runs.claimed(pathlib.Path(sys.argv[2])) as ours:
    print(ours, flush=True)
    time.sleep(60)
"""


def test_experiments_share_their_runs_and_revisions_are_sent_where_a_file_system_has_no_locks(tmp_path, monkeypatch):
    def no_flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    command = [sys.executable, "-c", CLAIM, str(RECIPES), str(tmp_path / ".claim"), str(errno.ENOSYS)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "True\n"
    monkeypatch.setattr(fcntl, "flock", no_flock)
    with claimed(tmp_path / ".claim") as ours:
        assert not ours
    other.kill()
    other.wait()
    with claimed(tmp_path / ".claim") as ours, locked(tmp_path / ".rows.lock"):
        assert ours
    with locked(tmp_path / ".rows.lock"):  # it was released
        pass

    (tmp_path / "revisions").mkdir()
    started = []
    monkeypatch.setattr(revision_queue.subprocess, "Popen", lambda command, **settings: started.append(settings))
    revision_queue.start_sending(tmp_path)
    assert revision_queue.HELD_LOCK not in started[0]["env"], "the sender takes the lease itself"
    with revision_queue.lock(tmp_path, wait=False) as is_free:
        assert is_free


def test_a_lock_that_does_not_reach_another_machine_is_taken_over_only_after_its_heartbeat_stopped(
    tmp_path, monkeypatch, capfd
):
    """A mount on which each machine has locks of its own: the kernel grants both."""
    monkeypatch.setattr(run_locks, "STALE_SECONDS", 1.0)
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "now", "command": "pretrain.py"}))
    alive = threading.Event()

    def beat():
        while not alive.wait(0.1):
            lock.touch()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunLockedError, match="in use by process 7 on elsewhere"), run_lock(tmp_path, "prepare"):
            pass
    finally:
        alive.set()
        thread.join()
    with run_lock(tmp_path, "prepare") as left:
        assert left == "process 7 on elsewhere (pretrain.py, since now)"
    assert "waiting 1 s for a sign of life" in capfd.readouterr().err


# --- killed, or out of room, at every change of a save


def test_a_run_that_fails_keeps_its_folder_until_the_checkpoint_before_is_written(tiny_run, monkeypatch):
    real_commit, real_seed = checkpointing.commit, step_module.seed_step

    def commit_slowly(*arguments):
        time.sleep(1)
        return real_commit(*arguments)

    def break_down(seed, step, process):
        if step == 4:
            raise ValueError("step 4 breaks down")
        real_seed(seed, step, process)

    monkeypatch.setattr(checkpointing, "commit", commit_slowly)
    monkeypatch.setattr(step_module, "seed_step", break_down)
    with pytest.raises(ValueError, match="step 4 breaks down"):
        pretrain.main(tiny_run.argv("--training.save_steps=3"))
    status = json.loads((tiny_run.output_dir / "status.json").read_text())
    assert (status["status"], status["checkpoint_step"]) == ("failed", 3), "the save does not undo the failure"
    assert [step for step, _ in checkpointing.list_checkpoints(tiny_run.output_dir / "checkpoints")] == [3]
    assert events(tiny_run)[-2:] == ["failure", "save"], "whose lines are of one chain"
    monkeypatch.setattr(step_module, "seed_step", real_seed)
    pretrain.main(tiny_run.argv("--training.save_steps=3"))
    assert read_status(tiny_run)["status"] == "finished"


@dataclass(frozen=True)
class Harm:
    """What the shim does to a process.

    Attributes:
        before: number of the change before which it is killed; 0: never.
        error: errno with which this change and all later ones fail instead; 0: killed.
        trace: a file to write the changes to.
    """

    before: int = 0
    error: int = 0
    trace: str = ""


def save_as(process: int, folder: Path, step: int, processes: int, rendezvous: str) -> None:
    """Save a checkpoint of `step` as one of several processes, each of which holds a part of each tensor."""
    from accelerate import Accelerator

    from recovery import checkpoints as checkpointing

    placed = []
    if processes > 1:
        os.environ |= {"RANK": str(process), "LOCAL_RANK": str(process), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # required, not used: they meet in a file
        store = torch.distributed.FileStore(rendezvous, processes)
        limit = timedelta(seconds=20)
        torch.distributed.init_process_group("gloo", store=store, rank=process, world_size=processes, timeout=limit)
        mesh = init_device_mesh("cpu", (processes,))
        placed = [mesh, [Shard(0)]]
    tensors = {}
    for stem in ("model", "optimizer"):
        part = torch.full((2048 // processes,), float(step))
        tensors[stem] = {"w": DTensor.from_local(part, *placed) if processes > 1 else part}
    # The first waits 2 s for the files of a process that was killed.
    identity = {"num_processes": processes}
    checkpoints = checkpointing.Checkpoints(folder, 2, None, identity, Accelerator(), timeout_seconds=2)
    checkpoints.save(step, tensors, {"step": step})
    checkpoints.finish()


def save_in_children(folder: Path, step: int, processes: int, harmed: int, harm: Harm) -> list[tuple[int, str]]:
    """Save in children, one of which is harmed at its n-th change; return each one's exit code and output."""
    folder.parent.joinpath("store").unlink(missing_ok=True)
    children = []
    for process in range(processes):
        output = folder.parent / f"output-{process}"
        child = os.fork()
        if child:
            children.append((child, output))
            continue
        ended = 1
        try:
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            if process == harmed:
                shim = ctypes.CDLL(None)
                shim.crash_shim_refuse(harm.error)
                shim.crash_shim_watch(os.fsencode(folder), ctypes.c_long(harm.before), os.fsencode(harm.trace))
            save_as(process, folder, step, processes, str(folder.parent / "store"))
            ended = 0
        except BaseException:
            traceback.print_exc()
        os._exit(ended)
    return [(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output.read_text()) for child, output in children]


def save_session(root: str, stride: str, processes: str, error: str) -> None:
    """Save over two checkpoints, harmed at one change after the other in each process; write results.json."""
    if processes == "1":
        from accelerate import Accelerator

        Accelerator()
    from recovery.stored_tensors import load_state, load_tensors, newest_checkpoint

    number, base, copy = int(processes), Path(root) / "base", Path(root) / "checkpoints"
    changes, results = {}, []
    for step in (1, 2):
        assert all(code == 0 for code, _ in save_in_children(base, step, number, 0, Harm()))
    for harmed in range(number):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(base, copy)
        assert save_in_children(copy, 3, number, harmed, Harm(trace=f"{root}/trace"))[harmed][0] == 0
        changes[harmed] = Path(root, "trace").read_text().splitlines()
        for before in range(1, len(changes[harmed]) + 1, int(stride)):
            shutil.rmtree(copy)
            shutil.copytree(base, copy)
            ended = save_in_children(copy, 3, number, harmed, Harm(before, int(error)))
            newest, skipped = newest_checkpoint(copy)
            result = {"process": harmed, "before": changes[harmed][before - 1], "ended": ended}
            result |= {"newest": load_state(newest)["step"], "skipped": skipped}
            result["values"] = load_tensors(newest, "model")["w"].unique().tolist()
            again = save_in_children(copy, 3, number, harmed, Harm())
            result["again"] = [code for code, _ in again]
            result["left"] = sorted(path.name for path in copy.iterdir())
            results.append(result)
    counts = [len(found) for found in changes.values()]
    Path(root, "results.json").write_text(json.dumps({"changes": counts, "results": results}))


def enumerate_harms(crash_shim: Path, root: Path, stride: int, processes: int, error: int = 0) -> dict:
    """Run save_session under the shim; return the number of changes of each process, and the result of each harm."""
    paths = os.pathsep.join([str(RECIPES), str(ROOT / "tests"), str(Path(__file__).parent)])
    code = "import sys, test_interrupted_training; test_interrupted_training.save_session(*sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": paths, "LD_PRELOAD": str(crash_shim)}
    with (root / "log.txt").open("w") as log:
        command = [sys.executable, "-c", code, str(root), str(stride), str(processes), str(error)]
        status = subprocess.run(command, env=environment, stdout=log, stderr=log).returncode
    assert status == 0, (root / "log.txt").read_text()[-3000:]
    found = json.loads((root / "results.json").read_text())
    for result in found["results"]:
        assert result["newest"] in (2, 3) and result["values"] == [result["newest"]], result
        assert result["skipped"] == [], "a torn one never has the name of a checkpoint"
        assert set(result["again"]) == {0} and result["left"] == ["step_00000002", "step_00000003"], result
    assert {result["newest"] for result in found["results"]} == {2, 3}
    print(f"{len(found['results'])} of {found['changes']} changes, none with a loss")  # noqa: T201
    return found


def test_a_save_that_is_killed_at_any_change_leaves_the_checkpoint_before_or_the_whole_new_one(
    crash_shim, tmp_path, request
):
    found = enumerate_harms(crash_shim, tmp_path, 1 if request.config.getoption("--all") else 4, processes=1)
    assert found["changes"][0] > 20
    assert all(result["ended"][0][0] == -signal.SIGKILL for result in found["results"])
    newest = [result["newest"] for result in found["results"]]
    assert newest == sorted(newest)


@pytest.mark.long
def test_a_save_of_two_processes_is_whole_or_absent_whichever_is_killed_at_any_change(crash_shim, tmp_path):
    found = enumerate_harms(crash_shim, tmp_path, 1, processes=2)
    assert len(found["results"]) == sum(found["changes"]) and min(found["changes"]) > 5
    assert all(result["ended"][result["process"]][0] == -signal.SIGKILL for result in found["results"])


def test_a_disk_that_is_full_from_any_change_on_leaves_the_last_checkpoint_and_an_error_names_it(
    crash_shim, tmp_path, request
):
    stride = 1 if request.config.getoption("--all") else 5
    found = enumerate_harms(crash_shim, tmp_path, stride, processes=1, error=errno.ENOSPC)
    for result in found["results"]:
        code, output = result["ended"][0]
        needs_room = result["before"].split()[0] not in ("rename", "unlink", "rmdir")
        assert code == 1 or (code == 0 and not needs_room and result["newest"] == 3), result
        if code:
            assert "DiskFullError: a checkpoint could not be written" in output and "bytes are free in" in output, (
                result
            )
            assert f"the newest checkpoint is {tmp_path}/checkpoints/step_0000000{result['newest']}" in output, result


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB; mounting it needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_in_training_leaves_the_last_checkpoint_and_an_error(uninterrupted, small_disk, tmp_path):
    fresh = TinyRun(uninterrupted.texts, uninterrupted.output_dir.parent / "fresh")
    run = fresh.copy(small_disk / "run")
    command = [sys.executable, str(slow(run, tmp_path)), *run.argv(*TRAINING)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    wait_for_step(run, 7, process)
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    _, output = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "No space left on device" in output or "are free in" in output, output[-3000:]
    steps = [step for step, path in list_checkpoints(run.output_dir / "checkpoints") if not find_damage(path)]
    assert steps and steps == [step for step, _ in list_checkpoints(run.output_dir / "checkpoints")]
    (small_disk / "filler").unlink()
    pretrain.main(run.argv(*TRAINING))
    assert_same(run, uninterrupted)


# --- verify_run


def test_verify_run_names_what_is_damaged_stale_or_killed(uninterrupted, run, tmp_path, capsys):
    whole = uninterrupted.copy(tmp_path / "whole").output_dir
    verify_run.main([str(whole)])
    output = capsys.readouterr().out
    assert "finished at step 24 of 24" in output
    assert output.count("  ok") >= 6 and "! " not in output
    shard = next((whole / "tokens").rglob("*.ds"))
    flip(shard)
    os.truncate(whole / "model" / "model.safetensors", 9)
    (whole / "checkpoints" / "step_00000024" / "optimizer.safetensors").unlink()
    with pytest.raises(SystemExit) as ended:
        verify_run.main([str(whole)])
    output = capsys.readouterr().out
    assert ended.value.code == 1
    for problem in (f"{shard.name}: its sha256", "model.safetensors: 9 bytes", "optimizer.safetensors is missing"):
        assert problem in output, output
    shutil.rmtree(whole / "model")
    with pytest.raises(RecipeError, match=rf"tokens is damaged: .*{shard.name}: its sha256 is not"):
        pretrain.main(TinyRun(run.texts, whole).argv(*TRAINING))


# The memory of hashes has a checksum of its own, and a damaged one is thrown away; a lock's content is not read.
HARMLESS = {".hashes", ".hashes.lock", "lock", "log.txt"}


@pytest.mark.parametrize("flips", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_a_flipped_bit_in_any_file_of_a_finished_run_is_named(uninterrupted, tmp_path, capsys, flips):
    run, draw = uninterrupted.copy(tmp_path / "run").output_dir, random.Random(flips)
    record_run_files(run, ("report.html",))
    paths = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)
    records = [path for path in paths if path.parent == run or path.name in ("stage.json", "manifest.json")]
    unseen = []
    for number in range(flips):
        path = draw.choice(paths if number % 2 else records)  # the others are few kinds of large files
        if path.name in HARMLESS:
            continue
        content = path.read_bytes()
        changed, bit = bytearray(content), draw.randrange(8 * len(content))
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            verify_run.main([str(run)])
            unseen.append((str(path.relative_to(run)), bit))
        except SystemExit:
            lines = [line for line in capsys.readouterr().out.splitlines() if "! " in line]
            assert any(path.name in line for line in lines), (path, bit, lines)
        path.write_bytes(content)
    assert not unseen, unseen
    verify_run.main([str(run)])


def test_each_damaged_file_has_a_line_also_after_a_record_that_cannot_be_read(uninterrupted, tmp_path, capsys):
    run = uninterrupted.copy(tmp_path / "run").output_dir
    (run / "documents" / "stage.json").write_text('{"settings": {}, "inputs": {}, "sha256": "", "files": {"a": {}}}')
    (run / "tokenizer" / "stage.json").write_text("[")
    damaged = ["metrics.jsonl", "training.json", "chronicle.jsonl", "recipe.yaml", "status.json"]
    ((_, checkpoint), *_) = list_checkpoints(run / "checkpoints")
    in_checkpoint = ["model.safetensors", "state.json"]
    of_folders = [*sorted((run / "tokens").rglob("*.ds"))[:2], *(checkpoint / name for name in in_checkpoint)]
    for path in (*(run / name for name in damaged), *of_folders):
        flip(path)
    (run / "environment.json").unlink()
    with pytest.raises(SystemExit):
        verify_run.main([str(run)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "! " in line]
    for name in (*damaged, "environment.json", *(path.name for path in of_folders)):
        assert any(name in line for line in lines), (name, lines)
    assert sum("stage.json cannot be read" in line for line in lines) == 2


def test_a_damaged_record_of_a_finished_run_is_neither_replaced_nor_done_without(uninterrupted, tmp_path, capsys):
    run = uninterrupted.copy(tmp_path / "run")
    record, training = run.output_dir / RUN_FILES, run.output_dir / "training.json"
    for path in (record, training):
        flip(path)
    damaged, whole = record.read_bytes(), training.read_bytes()
    (run.output_dir / "report.html").write_text("made after the damage")
    with pytest.raises(RecipeError, match=rf"{RUN_FILES} cannot be read. Restore {RUN_FILES} from a copy, or move"):
        record_run_files(run.output_dir, OF_REPORT)
    assert record.read_bytes() == damaged
    record.unlink()
    record_run_files(run.output_dir, OF_REPORT)
    with pytest.raises(SystemExit):
        verify_run.main([str(run.output_dir)])
    assert re.search(rf"{RUN_FILES} +! damaged: lacks the files of training", capsys.readouterr().out)

    record.unlink()  # as the message says
    shutil.rmtree(run.output_dir / "model")
    pretrain.main(run.argv(*TRAINING))
    verify_run.main([str(run.output_dir)])
    assert training.read_bytes() != whole
    assert_same(run, uninterrupted)


def test_training_does_not_start_on_a_damaged_record(uninterrupted, run):
    (run.output_dir / RUN_FILES).write_text("{")
    with pytest.raises(RecipeError, match=f"{RUN_FILES} cannot be read"):
        pretrain.main(run.argv(*TRAINING))
    assert not (run.output_dir / "status.json").exists()


def test_metrics_that_change_while_a_run_is_unfinished_are_seen_by_its_checkpoints(uninterrupted, tmp_path, capsys):
    run = uninterrupted.copy(tmp_path / "run").output_dir
    (run / RUN_FILES).unlink()  # as before the end of training
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"status": "running"}))
    verify_run.main([str(run)])
    assert "not recorded: metrics.jsonl, samples.jsonl, chronicle.jsonl" in capsys.readouterr().out
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99}\n')  # it grows
    verify_run.main([str(run)])
    flip(run / "metrics.jsonl")
    with pytest.raises(SystemExit):
        verify_run.main([str(run)])
    assert "metrics.jsonl up to here: its sha256 is not the recorded one" in capsys.readouterr().out
    for path in (run / "checkpoints").glob("*/manifest.json"):  # of an earlier version
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({key: manifest[key] for key in manifest.keys() - {"records", "record_sha256"}}))
    verify_run.main([str(run)])


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "chronicle.jsonl"])
def test_a_run_whose_records_are_damaged_is_not_resumed_until_they_are_restored_or_moved_away(
    uninterrupted, tmp_path, name
):
    run = uninterrupted.copy(tmp_path / "run")
    shutil.rmtree(run.output_dir / "model")
    path = run.output_dir / name
    whole = path.read_bytes()
    flip(path)
    with pytest.raises(RecipeError, match=rf"{name} is damaged: up to step_00000024, its sha256 .* move it away"):
        pretrain.main(run.argv(*TRAINING))
    assert read_status(run)["status"] == "failed" and path.read_bytes() != whole
    if name == "metrics.jsonl":
        path.unlink()
        pretrain.main(run.argv(*TRAINING))
        notes = [entry["text"] for entry in read_chronicle(run.output_dir) if entry["event"] == "note"]
        assert any("metrics.jsonl is missing, so it starts again" in note for note in notes)
    else:
        path.write_bytes(whole)
        pretrain.main(run.argv(*TRAINING))
        assert_same(run, uninterrupted)


@pytest.mark.parametrize("name", ["metrics.jsonl", "chronicle.jsonl"])
def test_after_a_record_was_moved_away_a_kill_before_the_next_save_asks_for_nothing_more(
    uninterrupted, tmp_path, monkeypatch, capsys, name
):
    run = uninterrupted.copy(tmp_path / "run")
    shutil.rmtree(run.output_dir / "model")
    ((_, newest), *_) = list_checkpoints(run.output_dir / "checkpoints")
    shutil.rmtree(newest)
    (run.output_dir / name).unlink()

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(pretrain.Pretraining, "save", die)
        pretrain.main(run.argv(*TRAINING))
    assert (run.output_dir / name).stat().st_size
    pretrain.main(run.argv(*TRAINING))
    for file, tensor in trained_weights(uninterrupted).items():
        assert torch.equal(tensor, trained_weights(run)[file]), file
    assert min(run.losses()) == (22 if name == "metrics.jsonl" else 1)
    capsys.readouterr()
    verify_run.main([str(run.output_dir)])
    assert "! " not in capsys.readouterr().out


# --- planted files


class Planted:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_nothing_a_recipe_or_a_run_folder_holds_is_executed(uninterrupted, tmp_path):
    marker = tmp_path / "executed"
    crafted = pickle.dumps(Planted(marker))
    for name in ("manifest.json", "state.json", "model.safetensors", "optimizer.safetensors"):
        run = uninterrupted.copy(tmp_path / name)
        shutil.rmtree(run.output_dir / "model")
        for _, checkpoint in list_checkpoints(run.output_dir / "checkpoints"):
            (checkpoint / name).write_bytes(crafted)
            if name != "manifest.json":  # by someone who can write manifests too
                manifest = json.loads((checkpoint / "manifest.json").read_text())
                manifest["files"][name] = {"bytes": len(crafted), "sha256": hashlib.sha256(crafted).hexdigest()}
                (checkpoint / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises((RecipeError, ValueError)) as refused:
            pretrain.main(run.argv(*TRAINING))
        assert re.search(
            "manifest.json cannot be read|can't decode byte 0x80|no safetensors file", str(refused.value)
        ), name
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"run: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(RecipeError, match="could not determine a constructor"):
        load_recipe([recipe])
    assert not marker.exists()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_in_the_run_folder_lead_no_writing_out_of_it(tiny_run, tmp_path, link):
    names = [
        "metrics.jsonl",
        "samples.jsonl",
        "chronicle.jsonl",
        "chronicle.md",
        "status.json",
        "recipe.yaml",
        "training.json",
    ]
    for name in [*names, *(f".{name}.tmp" for name in names)]:
        (tmp_path / name).write_text("mine")
        link(tmp_path / name, tiny_run.output_dir / name)
    pretrain.main(
        tiny_run.argv("--training.max_tokens=512", "--training.warmup_steps=0", "--training.decay_fraction=0.5")
    )
    for name in names:
        assert (tmp_path / name).read_text() == (tmp_path / f".{name}.tmp").read_text() == "mine", name
        assert "mine" not in (tiny_run.output_dir / name).read_text()


def test_a_disk_without_room_is_refused_before_step_0(run, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        RecipeError, match=r"training \(3 checkpoints of [\d,]+ bytes, and the model\) needs .* 1,000 free"
    ):
        pretrain.main(run.argv(*TRAINING))
    assert not (run.output_dir / "metrics.jsonl").exists()


# --- process 1 of a container, and signals to a whole group


def start_apart(run: TinyRun, processes: int, contained: bool, *overrides: str) -> subprocess.Popen:
    """Start run_recipe.py as process 1 of a container, or as the first of a process group of its own."""
    unshare = ["unshare", "--fork", "--pid", "--mount-proc"] if contained else []
    if contained and (shutil.which("unshare") is None or subprocess.run([*unshare, "true"]).returncode):
        pytest.skip("this machine gives tests no process namespace of their own")
    launch = ["--accelerate_config", str(ROOT / "accelerate_configs" / "ddp.yaml"), "--num_processes", str(processes)]
    command = [*unshare, sys.executable, str(RECIPES / "run_recipe.py"), *(launch if processes > 1 else [])]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    settings = {"cwd": ROOT, "env": environment, "preexec_fn": heed_hang_up, "start_new_session": True}
    return subprocess.Popen([*command, *run.argv(*overrides)], **pipes, **settings)


def stop_apart(process: subprocess.Popen, contained: bool) -> str:
    """Signal process 1 or the whole group; return what the command printed when it had ended as documented."""
    if contained:
        (first,) = psutil.Process(process.pid).children()
        first.terminate()
    else:
        os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=100)
    assert process.returncode == EXIT_STOPPED and "start again with: " in error, error
    return error


def assert_none_left(run: TinyRun) -> None:
    left = [
        one for one in psutil.process_iter(["cmdline"]) if str(run.output_dir) in " ".join(one.info["cmdline"] or [])
    ]
    assert not [one for one in left if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("processes", "contained"),
    [
        (1, False),
        (2, True),
        pytest.param(2, False, marks=pytest.mark.long),
        pytest.param(4, True, marks=pytest.mark.long),
        pytest.param(4, False, marks=pytest.mark.long),
    ],
)
def test_training_saves_when_process_1_of_a_container_or_the_whole_group_is_stopped(tiny_run, processes, contained):
    process = start_apart(tiny_run, processes, contained, "--training.max_tokens=2560000")
    wait_for_step(tiny_run, 4, process)
    stop_apart(process, contained)
    status = read_status(tiny_run)
    assert status["status"] == "preempted" and "saved at step" in status["reason"]
    assert list_checkpoints(tiny_run.output_dir / "checkpoints")[0][0] == status["step"] >= 4
    assert_none_left(tiny_run)


@pytest.mark.long
@pytest.mark.parametrize("contained", [True, False], ids=["process 1", "group"])
def test_a_recipe_that_is_stopped_once_in_each_stage_ends_in_a_whole_release(tmp_path, contained):
    write_tiny_texts(tmp_path / "texts")
    run = TinyRun(tmp_path / "texts", tmp_path / "run")
    more = ["--plan.flops=1e13", "--plan.device=rtx-4090", "--plan.domain_bytes=1e6", "--data.decontamination={}"]
    more += ["--evaluation.tasks=[general_agreement]", "--training.sequence_length=128"]
    outputs = ("plan", "benchmarks", "documents", "tokenizer", "tokens", "checkpoints", "eval", "figures", "release")
    for output in outputs:
        process, deadline = start_apart(run, 1, contained, *more), time.monotonic() + 200
        works = "checkpoints/step_*" if output == "checkpoints" else f".{output}.*"
        while not any(run.output_dir.glob(works)):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
            time.sleep(0.002)
        error = stop_apart(process, contained)
        assert "Traceback" not in error, error
        assert_none_left(run)
    process = start_apart(run, 1, contained, *more)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert (run.output_dir / "release" / "model.safetensors").exists()
    verify_run.main([str(run.output_dir)])
    assert not [path for path in run.output_dir.glob(".*.*") if path.name != ".hashes.lock"]
