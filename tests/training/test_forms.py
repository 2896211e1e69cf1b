# SPDX-License-Identifier: Apache-2.0
"""The forms a training step can take: compiled, recomputed, with and without document borders, sharded."""

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator, ParallelismConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from tiny_run import RECIPES, ROOT
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForCausalLM

import pretrain
from mixture.batches import document_positions
from model.attention import choose_attention
from model.dropout import add_dropout
from model.llama import build_model
from model.summed_loss import SummedLoss
from recipe_config import Average, Distillation, RecipeError
from recipe_loading import load_recipe
from recovery.stored_tensors import load_tensors
from training.parallelism import refuse_combinations
from training.schedule import seed_step


FSDP2 = f"""
import functools, os, sys
sys.path[:0] = [{str(RECIPES)!r}, {str(ROOT / "tests")!r}]
import torch
import divided_models, pretrain
from model import summed_loss
from training import accelerators
from torch.distributed.tensor import DTensor

def check_input(layer, arguments, named):
    for given in (*arguments, *named["position_embeddings"]):  # as under autocast, on one process
        assert given.dtype == torch.float32, given.dtype

class Checked(summed_loss.SummedLoss):
    def __init__(self, model, *args, **options):
        super().__init__(model, *args, **options)
        model.model.layers[0].register_forward_pre_hook(check_input, with_kwargs=True)

    def forward(self, *args, **batch):
        parameters = list(self.language_model.model.layers.parameters())
        assert all(isinstance(parameter, DTensor) for parameter in parameters)
        if os.environ["RANK"] == os.environ.get("DRIFTING_RANK"):
            parameters[0].to_local().data.view(-1)[0] += 1e-7
        return super().forward(*args, **batch)

torch.compile = functools.partial(torch.compile, backend="aot_eager")
accelerators.Accelerator, summed_loss.SummedLoss = getattr(divided_models, sys.argv.pop(1)), Checked
pretrain.main()
"""


def launch(script, kind, processes, argv) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    return subprocess.run([*command, str(script), kind, *argv], env=environment, capture_output=True, text=True)


def recipe_of(run, *overrides):
    return load_recipe([RECIPES / "custom" / "base.yaml"], run.argv(*overrides)[2:])


@pytest.fixture
def batch():
    """Two sequences of two documents, the second beginning at position 20."""
    tokens = torch.randint(1, 384, (2, 33), generator=torch.Generator().manual_seed(0))
    tokens[:, 19] = 0
    input_ids = tokens[:, :-1].contiguous()
    return input_ids, torch.from_numpy(document_positions(input_ids.numpy(), 0)), tokens[:, 1:]


def model_of(run, *overrides, **options):
    recipe = recipe_of(run, *overrides)
    torch.manual_seed(0)
    model = build_model(recipe, 384)
    choose_attention(model, recipe.training, Accelerator())
    return SummedLoss(model, compiled=False, document_masking=recipe.training.document_masking, **options)


def test_without_document_masking_documents_see_each_other_and_no_mask_is_made(tokenized_run, batch):
    inputs, positions, labels = batch
    changed = inputs.clone()
    changed[:, :19] = torch.randint(1, 384, (2, 19), generator=torch.Generator().manual_seed(1))
    labels = labels.clone()
    labels[:, :19] = -100
    masks = []
    for masked in ("true", "false"):
        model = model_of(tokenized_run, f"--training.document_masking={masked}", "--training.attn_implementation=sdpa")
        layer = model.language_model.model.layers[0]
        layer.register_forward_pre_hook(lambda *a: masks.append(a[2]["attention_mask"]), with_kwargs=True)
        before, after = (model(tokens, positions, labels)[1].item() for tokens in (inputs, changed))
        assert (before == after) == (masked == "true")
    assert [mask is None for mask in masks] == [False, False, True, True]


@pytest.mark.parametrize("name", ["sdpa", "varlen"])
@pytest.mark.parametrize("masked", [True, False])
def test_positions_begin_anew_at_each_document_or_at_each_row(masked, name, tokenized_run, batch):
    overrides = [f"--training.document_masking={str(masked).lower()}", f"--training.attn_implementation={name}"]
    model, seen = model_of(tokenized_run, *overrides), []
    rotary = model.language_model.model.rotary_emb
    rotary.register_forward_pre_hook(lambda _, a, given: seen.append(given["position_ids"]), with_kwargs=True)
    inputs, positions, labels = batch
    model(inputs, positions, labels)
    rows = positions if masked else torch.arange(32).expand(2, 32)
    assert torch.equal(seen[0].expand(2, -1), rows)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputing_activations_leaves_loss_and_gradients_as_they_are(dropout, tokenized_run, batch):
    gradients = []
    for recomputed in (False, True):
        model = model_of(tokenized_run, f"--model.attention_dropout={dropout}")
        add_dropout(model.language_model, dropout)
        if recomputed:
            model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        seed_step(0, 1, 0)
        model(*batch)[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_fixed_shape_is_compiled_once_for_training_and_once_for_what_is_scored(tokenized_run, batch, monkeypatch):
    counter = CompileCounter()
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m, **kw: compile_module(m, backend=counter, **kw))
    torch.compiler.reset()
    recipe = recipe_of(tokenized_run)
    model = SummedLoss(build_model(recipe, 384), compiled=True)
    inputs, _, labels = batch
    for repetition in range(4):
        inputs = inputs.clone()
        inputs[:, 3 + repetition] = 0  # other borders each time
        positions = torch.from_numpy(document_positions(inputs.numpy(), 0))
        model.train()
        model(inputs, positions, labels)[0].backward()
        if repetition == 0:
            first = counter.frame_count
        model.eval()
        with torch.no_grad():
            model(inputs, positions, labels)
            model(inputs, positions, labels, by_token=True)  # as tasks are scored
        if repetition == 0:
            both = counter.frame_count
    assert first == 1 and both == counter.frame_count == 2


@pytest.fixture
def new_accelerator():
    """Have Accelerate read the environment's precision again, which it keeps for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("new_accelerator")
@pytest.mark.parametrize(
    ("kind", "processes", "optimizer", "precision", "within"),
    [
        pytest.param("fsdp2", 2, "adamw", "no", 1e-5, marks=pytest.mark.long),
        ("fsdp2", 2, "muon", "bf16", 5e-3),
        ("replicated_fsdp2", 4, "adamw", "no", 1e-5),
        pytest.param("replicated_fsdp2", 4, "muon", "no", 2e-4, marks=pytest.mark.long),  # it iterates in bf16
        pytest.param("replicated_fsdp2", 4, "muon", "bf16", 5e-3, marks=pytest.mark.long),  # as multi_node.yaml says
    ],
)
def test_processes_that_each_hold_a_part_of_the_weights_give_the_losses_of_one(
    kind, processes, optimizer, precision, within, tokenized_run, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    alone, sharded = (tokenized_run.copy(tmp_path / name) for name in ("alone", "sharded"))
    overrides = [f"--training.optimizer={optimizer}", "--training.max_tokens=2048", "--model.tie_word_embeddings=true"]
    pretrain.main(alone.argv(*overrides))
    script = tmp_path / "fsdp2.py"
    script.write_text(FSDP2)
    compiled = str(processes == 4).lower()
    result = launch(script, kind, processes, sharded.argv(*overrides, f"--training.torch_compile={compiled}"))
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = alone.losses(), sharded.losses()
    assert list(one) == list(two) == list(range(1, 9)) and one[8] < one[1] - 0.3
    # The first loss has seen no step; rounded to bf16, the sum of 64 tokens' would be a hundredth off.
    assert abs(one[1] - two[1]) < {"no": 1e-6, "bf16": 2e-3}[precision]
    assert max(abs(one[step] - two[step]) for step in one) < within
    for run in (alone, sharded):
        assert json.loads((run.output_dir / "training.json").read_text())["max_steps"] == 8
    # Saved after a validation, which leaves weights gathered.
    stored = [load_tensors(run.output_dir / "checkpoints" / "step_00000008", "optimizer") for run in (alone, sharded)]
    assert stored[0].keys() == stored[1].keys()
    for run in (alone, sharded):
        saved = load_tensors(run.output_dir / "checkpoints" / "step_00000008", "model")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32} and len(saved) == 20
    models, infos = zip(
        *(
            AutoModelForCausalLM.from_pretrained(run.output_dir / "model", output_loading_info=True)
            for run in (alone, sharded)
        ),
        strict=True,
    )
    assert not any(value for info in infos for value in info.values())
    logits = [model(torch.arange(1, 30)[None]).logits for model in models]
    torch.testing.assert_close(*logits, rtol=0, atol=max(1e-3, 25 * within))


@pytest.mark.long
def test_copies_of_a_divided_model_that_drift_apart_are_stopped_before_they_are_saved(tiny_run, tmp_path, monkeypatch):
    script = tmp_path / "drifting.py"
    script.write_text(FSDP2)
    monkeypatch.setenv("DRIFTING_RANK", "3")
    result = launch(script, "replicated_fsdp2", 4, tiny_run.argv("--training.max_tokens=1024"))
    assert result.returncode != 0 and "processes [0, 1] and [2, 3] hold different weights" in result.stderr
    assert not list(tiny_run.output_dir.glob("checkpoints/step_*"))


@pytest.mark.parametrize(
    ("kind", "parallelism", "changes", "reason"),
    [
        (DistributedType.DEEPSPEED, None, {"optimizer": "muon"}, "keeps only the last"),
        (DistributedType.DEEPSPEED, None, {"zero_stage": 2}, "zero_stage 2: .* judged without"),
        (DistributedType.DEEPSPEED, None, {"offload": "cpu"}, "with offloading"),
        (DistributedType.DEEPSPEED, None, {"average": Average(ema=0.9)}, "training.average .* cannot be averaged"),
        (DistributedType.DEEPSPEED, None, {"distillation": Distillation(members=2)}, "would divide the teachers"),
        (DistributedType.DEEPSPEED, None, {"lora": True}, "merged into whole weights"),
        (DistributedType.FSDP, None, {"lora": True}, "merged into whole weights"),
        (
            DistributedType.FSDP,
            None,
            {"offload": "cpu"},
            "fsdp_offload_params: true .* set fsdp_offload_params: false",
        ),
        (DistributedType.FSDP, None, {"fsdp_version": 1}, "fsdp_version: 1, .*: set fsdp_version: 2"),
        (DistributedType.NO, None, {"precision": "fp16"}, "fp16 is not trained in: .* set bf16, or no"),
        (DistributedType.MULTI_GPU, None, {"precision": "fp8"}, "fp8 is not trained in"),
        (DistributedType.FSDP, ParallelismConfig(cp_size=2, dp_shard_size=2), {}, "drops the mask"),
        (DistributedType.FSDP, ParallelismConfig(cp_size=2), {"document_masking": False}, "with cp: .* same batch"),
        (DistributedType.FSDP, ParallelismConfig(tp_size=2), {}, "with tp: its processes need the same batch"),
    ],
)
def test_what_would_lose_work_in_silence_is_refused(kind, parallelism, changes, reason, tokenized_run):
    class Accelerated:
        distributed_type, parallelism_config = kind, parallelism
        mixed_precision = changes.pop("precision", "no")

        class state:
            class deepspeed_plugin:
                zero_stage = changes.pop("zero_stage", 3)
                deepspeed_config = {"zero_optimization": {"offload_param": {"device": changes.get("offload", "none")}}}

            fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=changes.pop("fsdp_version", 2), cpu_offload="offload" in changes
            )

    changes.pop("offload", None)
    lora = changes.pop("lora", False)
    training = recipe_of(tokenized_run).training.model_copy(update=changes)
    with pytest.raises(RecipeError, match=f"(?s){reason}"):
        refuse_combinations(training, lora, Accelerated)
    Accelerated.distributed_type, Accelerated.mixed_precision = DistributedType.FSDP, "bf16"
    Accelerated.parallelism_config = ParallelismConfig(dp_replicate_size=2, dp_shard_size=2)
    Accelerated.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    refuse_combinations(training, False, Accelerated)


@pytest.mark.parametrize("name", ["fsdp2", "multi_node"])
def test_the_launcher_hands_on_what_a_file_says_of_dividing_the_model(name, monkeypatch):
    path = str(ROOT / "accelerate_configs" / f"{name}.yaml")
    arguments = ["--config_file", path, "--num_processes", "16", "train.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    for key, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True and not plugin.cpu_ram_efficient_loading
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]
    if name == "multi_node":
        parallelism = ParallelismConfig()
        assert (parallelism.dp_replicate_size, parallelism.dp_shard_size) == (2, 8)
