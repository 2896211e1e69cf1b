# SPDX-License-Identifier: Apache-2.0
"""A step among processes: the batch that is used divides it, for every shipped recipe and number of processes."""

import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from host_waits import Waits
from tiny_run import RECIPES

import pretrain
from mixture.validation_text import ValidationText
from model.llama import build_model
from model.summed_loss import SummedLoss
from recipe_config import Recipe, RecipeError, Training
from recipe_loading import load_recipe
from recovery.chronicle import read_chronicle
from sweeps import arms, isoflop
from training.schedule import accumulation_steps, fit_batch
from training.validation import score_validation, send, shared_batches


SHIPPED = sorted(RECIPES.glob("*/*.yaml"))


def settings(sequences: int, batch_size: int) -> Training:
    sizes = {"sequence_length": 32, "tokens_per_step": sequences * 32, "per_device_train_batch_size": batch_size}
    return Training(max_tokens=100_000, learning_rate=1.0, **sizes)


def recipes_of(path: Path) -> list[Recipe]:
    """Return the recipe of a file, or those of an experiment's runs."""
    if path.parent.name != "experiments":
        return [load_recipe([RECIPES / "custom" / "base.yaml", path] if path.parent.name == "sizes" else [path])]
    if path.stem == "scaling_law":
        runs = isoflop.load_experiment(path)[1]
    else:
        _, bases, runs = arms.load_experiment(path)
        runs = [*bases.values(), *runs]
    return [run.recipe for run in runs]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_recipe_trains_on_any_number_of_processes_that_its_step_divides_by(path):
    steps = {}  # an experiment's runs have few forms
    for recipe in recipes_of(path):
        longest = recipe.data.longest_sequence(recipe.training.sequence_length)
        sizes = (recipe.training.tokens_per_step, recipe.training.per_device_train_batch_size, longest)
        steps[sizes] = (recipe.training, longest)
    assert steps
    for training, longest in steps.values():
        check_division(training, longest)
        # Experiments compare batches too, as few as four sequences.
        eighth = training.tokens_per_step // longest % 8 == 0
        assert eighth or path.name == "long_documents.yaml" or path.parent.name == "experiments"


def check_division(training: Training, longest: int) -> None:
    groups = training.tokens_per_step // longest
    for processes in range(1, 65):
        if groups % processes:
            with pytest.raises(RecipeError, match=f"which {processes} processes cannot share evenly; use"):
                fit_batch(training, longest, processes)
            continue
        fitted, _ = fit_batch(training, longest, processes)
        batch_tokens = fitted.per_device_train_batch_size * fitted.sequence_length
        assert fitted.per_device_train_batch_size <= training.per_device_train_batch_size
        assert batch_tokens % longest == 0
        assert accumulation_steps(fitted, processes) * batch_tokens * processes == training.tokens_per_step


def test_the_largest_batch_that_divides_the_step_is_used_and_named():
    used = {}
    for processes in (1, 2, 3, 4, 6, 12):
        fitted, notes = fit_batch(settings(12, 5), 32, processes)
        used[processes] = fitted.per_device_train_batch_size
        assert fitted.tokens_per_step == 12 * 32 and accumulation_steps(fitted, processes) > 0
        assert (
            len(notes) == 1 and f"per_device_train_batch_size=5 is an upper bound: {used[processes]} seq" in notes[0]
        )
    assert used == {1: 4, 2: 3, 3: 4, 4: 3, 6: 2, 12: 1}
    assert fit_batch(settings(12, 4), 32, 1) == (settings(12, 4), [])


def test_a_batch_holds_whole_sequences_of_the_longest_phase():
    fitted, _ = fit_batch(settings(48, 15), 4 * 32, 2)
    assert fitted.per_device_train_batch_size == 12
    with pytest.raises(RecipeError, match=r"is 3 sequences of 512 tokens, which 2 processes"):
        fit_batch(settings(48, 16), 16 * 32, 2)


def test_processes_that_cannot_share_a_step_are_refused_with_numbers_that_can():
    with pytest.raises(RecipeError, match=r"use 4 or 6 processes, or another step: nearest 320 or 480"):
        fit_batch(settings(12, 4), 32, 5)
    with pytest.raises(RecipeError, match=r"use 12 processes, or another step: nearest 416"):
        fit_batch(settings(12, 4), 32, 13)


def test_a_run_uses_that_batch_prints_it_and_has_the_losses_of_any_other(tokenized_run, tmp_path, capsys):
    losses = []
    for batch_size in (8, 7):  # of 8 sequences a step: 8 at once, and 2 times 4
        run = tokenized_run.copy(tmp_path / str(batch_size))
        pretrain.main(run.argv("--training.max_tokens=1024", f"--training.per_device_train_batch_size={batch_size}"))
        losses.append(run.losses())
    printed = capsys.readouterr().out
    assert "1,024 tokens" in printed and "8 sequences * 32 tokens * 1 micro-steps" in printed
    assert "4 sequences * 32 tokens * 2 micro-steps" in printed and "=7 is an upper bound: 4 sequences" in printed
    assert all(abs(losses[0][step] - losses[1][step]) < 1e-5 for step in losses[0]) and len(losses[0]) == 4
    assert any("upper bound" in entry["text"] for entry in read_chronicle(run.output_dir) if entry["event"] == "note")


def test_out_of_memory_names_the_keys_to_change_and_the_same_command_resumes_with_them(tiny_run, monkeypatch):
    train_step = pretrain.Pretraining.train_step

    def too_large(self, step):
        if step == 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of")
        train_step(self, step)

    # A step is 8 sequences, which batches of 7 do not divide: batches of 4 are used.
    argv = tiny_run.argv("--training.max_tokens=2048", "--training.per_device_train_batch_size=7")
    with monkeypatch.context() as context:
        context.setattr(pretrain.Pretraining, "train_step", too_large)
        with pytest.raises(
            RecipeError, match="per_device_train_batch_size below 4, or training.gradient_check"
        ) as said:
            pretrain.main(argv)
    assert str(said.value).startswith("out of memory: CUDA out of memory. Use ")
    status = json.loads((tiny_run.output_dir / "status.json").read_text())
    assert status["status"] == "failed" and "per_device_train_batch_size" in status["reason"]
    smaller = ["--training.per_device_train_batch_size=1", "--training.gradient_checkpointing=true"]
    pretrain.main([*argv, *smaller])
    assert list(tiny_run.losses()) == list(range(1, 9))
    least = settings(8, 1).model_copy(update={"gradient_checkpointing": True})
    for kind, remedy in ((DistributedType.MULTI_GPU, "fsdp2.yaml"), (DistributedType.FSDP, "Use more GPUs;")):
        devices = SimpleNamespace(distributed_type=kind)
        text = pretrain.explain_out_of_memory(said.value, least, devices, least.sequence_length)
        assert "per_device" not in text and remedy in text and ("fsdp2" in text) == ("fsdp2" in remedy)
    four = least.model_copy(update={"per_device_train_batch_size": 4})
    text = pretrain.explain_out_of_memory(said.value, four, devices, 4 * four.sequence_length)
    assert "Use a shorter sequence_length in data.phases, or more GPUs;" in text, "no fewer fit its phase"


def test_ddp_averages_in_the_gradients_and_sends_no_buffers_and_gpu_memory_can_grow(tiny_run, monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], tiny_run.argv()[2:])
    options = pretrain.make_accelerator(recipe).ddp_handler.to_kwargs()
    assert options == {"gradient_as_bucket_view": True, "broadcast_buffers": False, "bucket_cap_mb": 100}
    assert os.environ.pop("PYTORCH_ALLOC_CONF") == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    pretrain.make_accelerator(recipe)
    assert "PYTORCH_ALLOC_CONF" not in os.environ, "the user's setting stands alone"


def test_validation_batches_reach_a_gpu_from_pinned_memory_without_a_wait():
    calls = []

    class Batch:
        def pin_memory(self):
            calls.append("pinned")
            return self

        def to(self, device, non_blocking=False):
            calls.append((device.type, non_blocking))

    send(Batch(), torch.device("cuda"))
    send(Batch(), torch.device("cpu"))
    assert calls == ["pinned", ("cuda", True), ("cpu", False)]


def test_a_validation_waits_for_a_gpu_once_a_source_and_copies_its_batches_in_no_other_way(tokenized_run):
    tokens, accelerator = tokenized_run.output_dir / "tokens", Accelerator()
    texts = {name: ValidationText(tokens, name, 32, 1_000_000) for name in ("law", "web")}
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], tokenized_run.argv()[2:])
    model = SummedLoss(build_model(recipe, 384), compiled=False, by_layer=True)  # as on a GPU
    batches = sum(len(list(shared_batches(len(text.input_ids), 4, accelerator))) for text in texts.values())
    with Waits() as waits:
        score_validation(model, texts, 4, accelerator, stop=lambda: False)
    # Token ids, positions, borders and labels; the positions are counted on the host, where the token ids still are.
    expected = {"to in send": 4 * batches, "numpy in with_positions": batches, "_local_scalar_dense": len(texts)}
    assert Counter(waits.found) == expected and batches > len(texts)
