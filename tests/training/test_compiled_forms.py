# SPDX-License-Identifier: Apache-2.0
"""The compiled step by layers, as GPUs take it, and of all layers at once, as a processor: under DDP and FSDP2.

torch.compile gets the backend aot_eager, which traces and differentiates as on a GPU and generates no code; in the
forms named `generated` it has its own, which compiles C++.
"""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from small_models import small_model
from tiny_run import RECIPES, ROOT, TinyRun
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import pretrain
import tokenize_corpus
import train_tokenizer
from mixture.document_borders import cumulative_lengths
from model import summed_loss
from model.attention import choose_attention
from model.summed_loss import SummedLoss, build_summed_loss
from recipe_config import Distillation, Training
from recipe_loading import load_recipe


SESSION = f"""
import functools, json, os, sys
sys.path[:0] = [{str(RECIPES)!r}, {str(ROOT / "tests")!r}]
import torch
import divided_models, pretrain
from model import summed_loss
from training import accelerators

choose_attention, compile = summed_loss.choose_attention, torch.compile
real, plain = accelerators.Accelerator, summed_loss.SummedLoss
# DDP's first bucket of gradients, at whose end torch divides a graph, ends within this model as 1 MB does within a
# larger one.
torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 30_000
real.end_training = lambda self: None  # the next run needs the process group

class ByLayer(plain):
    def __init__(self, model, compiled, **options):
        super().__init__(model, compiled, **options | {{"by_layer": True}})
        assert compiled and not torch._dynamo.config.optimize_ddp

def choose(model, training, *options):
    if training.attn_implementation == "flex_attention":  # refused on a processor
        model.set_attn_implementation("flex_attention")
    else:
        choose_attention(model, training, *options)

# torch has no kernel for its gradient on a processor, and refuses it; aot_eager computes what defines it.
sys.modules["torch.nn.attention.flex_attention"]._validate_device = lambda *_: None
summed_loss.choose_attention = choose

for kind, precision, argv in json.loads(open(sys.argv[1]).read()):
    torch.compiler.reset()
    torch._dynamo.config.optimize_ddp = True  # as it is before a run by layer
    summed_loss.SummedLoss = plain if kind in ("processor", "generated") else ByLayer
    torch.compile = compile if kind == "generated" else functools.partial(compile, backend="aot_eager")
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    accelerators.Accelerator = divided_models.fsdp2 if kind == "fsdp2" else real
    divided_models.AcceleratorState._reset_state()
    pretrain.main(argv)
"""
# name -> (form, precision, overrides)
PHASE = {"start_fraction": 0.5, "shares": {"law": 0.6, "web": 0.4}, "sequence_length": 64}
LONGER = [f"--data.phases={json.dumps([PHASE | {'rope_parameters': {'rope_theta': 20_000.0}}])}"]
RECOMPUTED = ["--training.gradient_checkpointing=true"]
FLEX = ["--training.attn_implementation=flex_attention"]
FORMS = {
    "ddp": ("ddp", "no", []),
    "ddp, longer": ("ddp", "no", LONGER),
    "ddp, recomputed": ("ddp", "no", RECOMPUTED),
    "ddp, bf16": ("ddp", "bf16", []),
    "processor, longer": ("processor", "no", LONGER),  # as accelerate_configs/ddp.yaml starts it without a GPU
    # As a GPU compiles it under DDP too: one graph of all layers, which torch divides at DDP's buckets.
    "processor, flex_attention, bf16": ("processor", "bf16", FLEX),
    "generated, longer, bf16": ("generated", "bf16", LONGER),
    "fsdp2": ("fsdp2", "no", []),  # last: the process stays of this kind
    "fsdp2, bf16": ("fsdp2", "bf16", []),
    "fsdp2, longer": ("fsdp2", "no", LONGER),
    "fsdp2, flex_attention": ("fsdp2", "no", FLEX),
    "fsdp2, flex_attention, bf16": ("fsdp2", "bf16", FLEX),
    "fsdp2, recomputed": ("fsdp2", "no", RECOMPUTED),
    "fsdp2, recomputed, bf16": ("fsdp2", "bf16", RECOMPUTED),
}
LONG = ("generated, longer, bf16", "processor, flex_attention, bf16", "fsdp2, flex_attention, bf16")
# About twice what tests/benchmarks/rounding.py measured at this learning rate; FSDP2 rounds the gains too.
BF16 = ["--training.learning_rate=3e-3"]
WITHIN = {"ddp": 1.2e-3, "processor": 1.2e-3, "generated": 1.2e-3, "fsdp2": 5e-3}
COMMON = ["--training.attn_implementation=varlen", "--model.num_key_value_heads=1", "--training.max_tokens=2048"]


def train_alone(run: TinyRun, precision: str, longer: bool) -> dict[int, float]:
    """Return the losses of one uncompiled process with a mask."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps its precision for the life of a process
    overrides = [*(BF16 if precision == "bf16" else []), *(LONGER if longer else [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        pretrain.main(run.argv(*COMMON, "--training.attn_implementation=sdpa", *overrides))
    AcceleratorState._reset_state(reset_partial_state=True)
    return run.losses()


@pytest.fixture(scope="module")
def sources(tokenized_run, tmp_path_factory) -> dict[bool, TinyRun]:
    """The tokenized run to train from, by whether a later phase has longer sequences."""
    longer = tokenized_run.copy(tmp_path_factory.mktemp("longer") / "run")
    for stage in (train_tokenizer, tokenize_corpus):  # phases decide the tokenizer's sample too
        stage.main(longer.argv(*LONGER, "--overwrite"))
    return {False: tokenized_run, True: longer}


def train_together(
    sources: dict[bool, TinyRun], folder: Path, processes: int, names: Iterable[str]
) -> dict[str, dict[int, float]]:
    """Return the losses of forms that several processes train in, one after the other."""
    runs, plan = {name: sources["longer" in name].copy(folder / name) for name in names}, []
    for name, run in runs.items():
        kind, precision, overrides = FORMS[name]
        overrides = [*COMMON, "--training.torch_compile=true", *overrides, *(BF16 if precision == "bf16" else [])]
        plan.append([kind, precision, run.argv(*overrides)])
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "session.py").write_text(SESSION)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(folder / "session.py"), str(folder / "plan.json")]
    ended = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return {name: run.losses() for name, run in runs.items()}


@pytest.fixture(scope="module")
def alone(sources, tmp_path_factory) -> dict[tuple[str, bool], dict[int, float]]:
    folder = tmp_path_factory.mktemp("alone")
    kinds = [(precision, longer) for precision in ("no", "bf16") for longer in (False, True)]
    return {kind: train_alone(sources[kind[1]].copy(folder / "{}-{}".format(*kind)), *kind) for kind in kinds}


@pytest.fixture(scope="module")
def two(sources, tmp_path_factory) -> dict[str, dict[int, float]]:
    return train_together(sources, tmp_path_factory.mktemp("two"), 2, [name for name in FORMS if name not in LONG])


@pytest.fixture(scope="module")
def two_long(sources, tmp_path_factory) -> dict[str, dict[int, float]]:
    return train_together(sources, tmp_path_factory.mktemp("two_long"), 2, LONG)


@pytest.fixture(scope="module")
def four(sources, tmp_path_factory) -> dict[str, dict[int, float]]:
    return train_together(sources, tmp_path_factory.mktemp("four"), 4, FORMS)


@pytest.mark.parametrize(
    ("processes", "name"),
    [
        *(("two", name) for name in FORMS if name not in LONG),
        *(pytest.param("two_long", name, marks=pytest.mark.long) for name in LONG),
        *(pytest.param("four", name, marks=pytest.mark.long) for name in FORMS),
    ],
)
def test_processes_that_compile_give_the_losses_of_one_that_does_not(processes, name, alone, request):
    kind, precision, _ = FORMS[name]
    one, other = alone[precision, "longer" in name], request.getfixturevalue(processes)[name]
    assert list(one) == list(other) == list(range(1, 9)) and one[8] < one[1] - 0.1
    apart = max(abs(one[step] - other[step]) for step in one)
    assert apart < (WITHIN[kind] if precision == "bf16" else 1e-5) and (apart > 1e-5) == (precision == "bf16")


def test_twelve_layers_are_one_graph_for_training_and_one_for_evaluation(monkeypatch):
    torch.compiler.reset()
    counter, compile_module = CompileCounterWithBackend("aot_eager"), torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda m, **given: compile_module(m, backend=counter, fullgraph=True, **given)
    )
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 12, "num_attention_heads": 2}
    language_model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=384, max_position_embeddings=32))
    training = Training(max_tokens=1000, sequence_length=32, attn_implementation="varlen")
    choose_attention(language_model, training, SimpleNamespace(device=torch.device("cpu"), mixed_precision="no"))
    model = SummedLoss(language_model, True, by_layer=True)
    monkeypatch.setattr(summed_loss, "chunked_loss", lambda hidden, *_: (hidden.sum(), hidden.sum().detach()))
    for step in range(3):
        tokens = torch.randint(1, 384, (2, 32), generator=torch.Generator().manual_seed(step))
        positions = torch.arange(32).repeat(2, 1)
        batch = {"input_ids": tokens, "position_ids": positions, "labels": tokens}
        batch["cumulative_lengths"] = cumulative_lengths(positions.numpy())
        model.train()
        model(**batch)[0].backward()
        with torch.no_grad():
            model.eval()
            model(**batch)
        assert counter.frame_count == 2, "training, evaluation, and nothing that a later step compiles again"


def test_a_batch_without_a_border_compiles_nothing_that_one_with_borders_has_not(monkeypatch):
    torch.compiler.reset()
    counter, compile_module = CompileCounterWithBackend("eager"), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m, **given: compile_module(m, backend=counter, **given))
    monkeypatch.setattr(summed_loss, "chunked_loss", lambda hidden, *_: (hidden.sum(), hidden.sum().detach()))
    language_model = small_model("llama")
    language_model.set_attn_implementation("sdpa")
    model = SummedLoss(language_model, True, by_layer=True)
    tokens, whole = torch.ones(2, 24, dtype=torch.int64), torch.arange(24).repeat(2, 1)
    for positions in (whole % 8, whole, whole % 12):
        model(tokens, positions, tokens)[0].backward()
        assert counter.frame_count == 1


def test_layers_of_two_kinds_compile_for_every_length_of_the_list_of_documents(monkeypatch):
    torch.compiler.reset()
    counter, compile_module = CompileCounterWithBackend("eager"), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m, **given: compile_module(m, backend=counter, **given))
    monkeypatch.setattr(summed_loss, "chunked_loss", lambda hidden, *_: (hidden.sum(), hidden.sum().detach()))
    language_model = small_model("gemma3_text")
    training = Training(max_tokens=1000, sequence_length=24, attn_implementation="varlen")
    choose_attention(language_model, training, SimpleNamespace(device=torch.device("cpu"), mixed_precision="no"))
    tokens, positions = torch.ones(2, 24, dtype=torch.int64), torch.arange(24).repeat(2, 1)
    batch = {"input_ids": tokens, "position_ids": positions, "labels": tokens}
    borders = cumulative_lengths(positions.numpy())
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):  # 8 is torch's own limit
        model = SummedLoss(language_model, True, by_layer=True)
        for room in (2, 4, 8):
            batch["cumulative_lengths"] = F.pad(borders, (0, room + 1 - len(borders)), value=tokens.numel())
            model.train()
            model(**batch)[0].backward()
            with torch.no_grad():
                model.eval()
                model(**batch)
    assert counter.frame_count == 2 * 2 * 3, "kinds, training and evaluation, lengths"


@pytest.mark.parametrize(
    ("device", "overrides", "by_layer"),
    [
        ("cpu", ["--training.attn_implementation=varlen"], False),
        ("cuda", [], True),
        ("cuda", ["--training.attn_implementation=sdpa"], True),
        ("cuda", ["--training.attn_implementation=sdpa", "--training.document_masking=false"], True),
        ("cuda", ["--training.attn_implementation=flex_attention"], False),
    ],
)
def test_a_gpu_compiles_by_layer_except_flex_attention_and_a_processor_all_layers_at_once(
    device, overrides, by_layer, tokenized_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__))
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], tokenized_run.argv(*overrides)[2:])
    accelerator = SimpleNamespace(device=torch.device(device), mixed_precision="bf16", distributed_type="NO")
    folder = tokenized_run.output_dir / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    build = functools.partial(build_summed_loss, recipe, recipe.training, tokenizer, folder, accelerator)
    teacher = build(compiled=False).language_model
    for part in (teacher, tokenizer):
        part.save_pretrained(tmp_path)
    recipe.training.distillation = Distillation(teachers=[str(tmp_path)])
    build(compiled=True)
    assert compiled == 2 * (["LlamaDecoderLayer"] * 2 if by_layer else ["LlamaModel"])


def test_a_log_has_a_line_each_logging_step_and_a_terminal_a_bar(tiny_run, monkeypatch, capsys):
    plain = tiny_run.copy(tiny_run.output_dir.parent / "plain")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    pretrain.main(tiny_run.argv("--training.torch_compile=true", "--training.max_tokens=1024"))
    printed = capsys.readouterr().err
    assert 0 < printed.index("compiling") < printed.index("tokens/s")
    last_step, evaluation = printed.index("step 4/4"), printed.rindex("pretrain: compiling")
    assert printed.count("compiling") == 2 and last_step < evaluation, "the evaluation after it compiles too"
    lines = [line for line in printed.splitlines() if line.startswith("pretrain: step")]
    assert len(lines) == 4 and "\r" not in printed
    assert re.match(r"pretrain: step 4/4, 00:00 left: loss \d\.\d{3}, .* tokens/s.*, 1,024 tokens", lines[3]), lines
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    pretrain.main(plain.argv("--training.max_tokens=1024"))
    printed = capsys.readouterr().err
    assert re.search(r"\rpretrain: +\d+%\|", printed) and "step 4/4" not in printed and "compiling" not in printed
