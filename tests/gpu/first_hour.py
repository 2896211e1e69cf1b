# SPDX-License-Identifier: Apache-2.0
"""What the first hour on a GPU has to answer: twelve checks of pretrain.py, in at most 8 minutes on one H100.

    bash tests/gpu/run.sh                      on a GPU; results.json and results.md in runs/gpu/
    bash tests/gpu/run.sh --rehearse           the same on a processor, in tiny shapes

Every check drives the project's own code on text that is made here: pretrain.py's command, or its Pretraining object
step by step. Prints a line a check, with its figure; exits with 1 if one fails. README.md says what each is for.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import sys
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import accelerate
import made_tokens
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from children import Child
from torch import distributed
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import MistralConfig, MistralForCausalLM

import pretrain
from mixture.document_borders import cumulative_lengths
from model import chunked_loss, summed_loss
from model.attention import choose_attention
from model.summed_loss import SummedLoss
from planning.devices import UTILISATION_INTERVAL
from recipe_config import RecipeError, Training
from recipe_loading import load_recipe
from recovery.chronicle import RunStatus
from recovery.liveness import Liveness
from recovery.preemption import EXIT_STOPPED, Preemption
from recovery.stored_tensors import newest_checkpoint
from training import preflight
from training.compilation import find_missing_compiler
from training.muon import ShardedMuon


ROOT = Path(__file__).resolve().parents[2]
ATTENTIONS = typing.get_args(Training.model_fields["attn_implementation"].annotation)
SLOW_TO_COMPILE = "flex_attention"  # a minute or more: the last, for which there may be no time
DEFAULT_ATTENTION = Training.model_fields["attn_implementation"].default
SHAPES = {"125M": "sizes/125m.yaml", "342M": "legal/base.yaml", "1B": "sizes/1b.yaml"}
SHAPE_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
MICRO_STEPS = 2  # as those recipes have on 8 GPUs
MUON_PROCESSES = 4
OTHER_FORM_SECONDS = 120.0  # to compile 24 layers as one graph, and for some steps
LOSS_STEPS, SAVED_AT, KILLED_AT, RESUME_STEPS = 20, 8, 14, 24


@dataclass
class Lab:
    """Where and how large the checks are.

    Attributes:
        out: folder of the results; what the checks write is in files/ there, emptied at the start.
        rehearsal: on a processor, in tiny shapes.
        start_method: of child processes.
        seconds: for all checks together.
        started: the clock when they started.
    """

    out: Path
    rehearsal: bool
    start_method: str = "fork"
    seconds: float = 480.0
    started: float = field(default_factory=time.monotonic)

    @property
    def files(self) -> Path:
        return self.out / "files"

    @property
    def vocab_size(self) -> int:
        return 512 if self.rehearsal else 32_768

    def child(self, function, *arguments, leads: bool = False) -> Child:
        """Run a function of a lab in a child; its log is logs/<function>-<arguments>."""
        words = [function.__name__, *(str(argument) for argument in arguments if isinstance(argument, str))]
        log = self.files / "logs" / f"{'-'.join(words)}.txt"
        return Child(self.start_method, function, self, *arguments, log=log, leads=leads)

    def argv(self, name: str, overrides: dict) -> list[str]:
        """Ready a run folder with the made tokens, and return pretrain.py's arguments for a run there."""
        folder, made = self.files / "runs" / name, self.files / "made"
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("documents", "tokenizer", "tokens"):
            if not (folder / part).exists():
                (folder / part).symlink_to(made / part, target_is_directory=True)
        settings = {"run.output_dir": str(folder), "training.logging_steps": 1, "evaluation.prompts": []} | overrides
        made_overrides = made_tokens.overrides(made, self.vocab_size)
        config = ["--config", str(made_tokens.CONFIG)]
        return [*config, *made_overrides, *(f"--{key}={json.dumps(value)}" for key, value in settings.items())]

    def small(self, steps: int) -> dict:
        """Return the overrides of a small run, for checks of what is right and not of how fast."""
        shape = (32, 64, 2, 2, 1) if self.rehearsal else (256, 704, 4, 4, 2)
        length, batch = (64, 2) if self.rehearsal else (256, 8)
        model = {f"model.{key}": value for key, value in zip(SHAPE_KEYS, shape, strict=True)}
        return model | {
            "training.sequence_length": length,
            "training.per_device_train_batch_size": batch,
            "training.tokens_per_step": 2 * batch * length,
            "training.max_tokens": steps * 2 * batch * length,
            "training.learning_rate": 2e-3,
        }

    def shape(self, name: str) -> dict:
        """Return the overrides of a shipped recipe's shape and batch."""
        path = ROOT / "recipes" / SHAPES[name]
        recipe = load_recipe([made_tokens.CONFIG, path] if path.parent.name == "sizes" else [path])
        batch, length = recipe.training.per_device_train_batch_size, recipe.training.sequence_length
        shape = [getattr(recipe.model, key) for key in SHAPE_KEYS]
        if self.rehearsal:
            batch, length = 2, 64
            shape = [32, 64, 2, 2, shape[-1] and 1]
        return {f"model.{key}": value for key, value in zip(SHAPE_KEYS, shape, strict=True)} | {
            "model.tie_word_embeddings": recipe.model.tie_word_embeddings,
            "training.sequence_length": length,
            "training.per_device_train_batch_size": batch,
            "training.tokens_per_step": MICRO_STEPS * batch * length,
            "training.optimizer": "muon",
            "training.learning_rate": 1e-3,
        }


@dataclass
class Result:
    """The result of a check.

    Attributes:
        name: what was checked.
        figure: what was found, in a line.
        expected: in words.
        passed: None where it cannot be judged: by a rehearsal, or for lack of time.
        values: all that was measured.
    """

    name: str
    figure: str
    expected: str
    passed: bool | None
    values: dict

    def line(self) -> str:
        return f"{describe(self.passed):8} {self.name}: {self.figure} (expected: {self.expected})"


def describe(passed: bool | None) -> str:
    return {True: "pass", False: "FAIL", None: "unjudged"}[passed]


def enter(lab: Lab, precision: str = "bf16") -> None:
    """Set a child's environment, and in a rehearsal a compiler that takes no seconds."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(lab.files / "compiled")
    if lab.rehearsal:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        torch.set_num_threads(1)
        torch.compile = partial(torch.compile, backend="aot_eager")


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def use_gpu(lab: Lab) -> str:
    """Return the GPU's name."""
    return "" if lab.rehearsal else torch.cuda.get_device_name(torch.zeros(1, device="cuda").device)


def make_text(lab: Lab) -> None:
    made_tokens.make_run(lab.files / "made", *((60, 40) if lab.rehearsal else (1000, 500)), lab.vocab_size)


def train(lab: Lab, name: str, overrides: dict, precision: str = "bf16", ddp: bool = False, options=()) -> dict:
    """Run pretrain.py's main; return its exit code and Accelerate's distributed type."""
    enter(lab, precision)
    if ddp:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 0
    try:
        pretrain.main([*lab.argv(name, overrides), *options])
    except SystemExit as ended:
        code = ended.code
    return {"code": code, "distributed": str(AcceleratorState._shared_state.get("distributed_type", ""))}


def losses(lab: Lab, name: str) -> dict[int, float]:
    path = lab.files / "runs" / name / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def wait_for_step(lab: Lab, name: str, step: int, child: Child, seconds: float) -> bool:
    """Wait until a run has logged a step; False if it ended before."""
    until = time.monotonic() + seconds
    while max(losses(lab, name), default=0) < step:
        if not child.process.is_alive() or time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def prepared(argv: list[str]) -> Iterator[pretrain.Pretraining]:
    """Yield what pretrain.py trains with, before its first step."""
    recipe = load_recipe([argv[1]], argv[2:])
    status = RunStatus(Path(recipe.run.output_dir), True)
    with Preemption(status) as preemption:
        accelerator = pretrain.make_accelerator(recipe)
        alone = Liveness(status.path.parent, 0, 1, recipe.run.timeout_seconds, print)
        with closing(pretrain.Pretraining(recipe, accelerator, status, preemption, alone)) as run:
            run.prepared.module.train()
            run.prepared.set_learning_rate(1e-4)
            yield run


def check_compiled_ddp(lab: Lab) -> Result:
    overrides = lab.small(LOSS_STEPS)
    both = {
        "eager-fp32": lab.child(train, "eager-fp32", overrides | {"training.torch_compile": False}, "no"),
        "ddp-bf16": lab.child(train, "ddp-bf16", overrides, "bf16", True),
    }
    ended = {name: child.finish(150) for name, child in both.items()}
    ends = {name: problem or result["code"] for name, (result, problem) in ended.items()}
    if problems := [f"{name}: {end}" for name, end in ends.items() if end]:
        raise RuntimeError("; ".join(problems))
    one, other = (losses(lab, name) for name in both)
    apart = max(abs(one[step] - other[step]) for step in one)
    kind = ended["ddp-bf16"][0]["distributed"].rpartition(".")[2]
    passed = len(one) == len(other) == LOSS_STEPS and apart < 0.05 and one[LOSS_STEPS] < one[1]
    return Result(
        "compiled bf16 step under DDP against an eager fp32 one",
        f"{len(other)} losses differ by at most {apart:.4f} nats; Accelerate ran {kind}",
        "at most 0.05, and MULTI_GPU",
        passed and (lab.rehearsal or kind == "MULTI_GPU"),
        {"eager_fp32": one, "compiled_bf16": other, "distributed_type": kind},
    )


def check_waits(lab: Lab) -> Result:
    enter(lab)
    with prepared(lab.argv("waits", lab.small(100))) as run:
        for step in range(1, 4):  # compiles, and fills caches
            run.train_step(step)
        wait_for_device()
        torch.cuda.set_sync_debug_mode("error") if not lab.rehearsal else None
        waited = None
        try:
            for step in range(4, 7):
                run.train_step(step)
        except RuntimeError as error:
            waited = str(error).splitlines()[0]
        finally:
            torch.cuda.set_sync_debug_mode("default") if not lab.rehearsal else None
    return Result(
        "no wait for the GPU in a step",
        waited or "3 steps without one",
        "none",
        None if lab.rehearsal else waited is None,
        {"waited": waited},
    )


def compile_in_other_form(lab: Lab) -> None:
    """Compile as the project does not on this device: all layers as one graph on a GPU, by layer on a processor."""

    def build(*arguments, by_layer: bool, **options) -> SummedLoss:
        return SummedLoss(*arguments, by_layer=not by_layer, **options)

    summed_loss.SummedLoss = build
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(lab.files / "compiled-other")  # as empty as the first form found it


def measure(lab: Lab, shape: str, attention: str, form: str = "default") -> dict:
    """Train some steps of a shape; return speed, utilisation, memory, kernels, and the optimizer's time.

    Args: form: in which it is compiled, "default" or "other"; see compile_in_other_form.
    """
    enter(lab)
    if form == "other":
        compile_in_other_form(lab)
    settings = lab.shape(shape) | {"training.attn_implementation": attention}
    if lab.rehearsal and (shape, attention) != ("342M", DEFAULT_ATTENTION):  # compiling takes most of the time there
        settings["training.torch_compile"] = False
    steps = 2 if lab.rehearsal else 6
    measured = {"shape": shape, "attention": attention, "form": form}
    try:
        with prepared(lab.argv("-".join(measured.values()), settings)) as run:
            started = time.perf_counter()
            run.train_step(1)
            wait_for_device()
            first_seconds = time.perf_counter() - started
            nats, _, targets = run.progress.sums.tolist()
            run.train_step(2)
            wait_for_device()
            started = time.perf_counter()
            for step in range(3, 3 + steps):
                run.train_step(step)
                run.monitor.read_verdicts()
            wait_for_device()
            seconds = (time.perf_counter() - started) / steps
            speed = run.training.tokens_per_step / seconds
            plan = preflight.describe_plan(
                run.recipe,
                run.training,
                run.state["phases"],
                len(run.text.tokenizer),
                run.text.micro_steps,
                run.language_model.config._attn_implementation,
                run.accelerator,
            )
            return measured | {
                "used_attention": run.language_model.config._attn_implementation,
                "compiled_modules": sum(one._compiled_call_impl is not None for one in run.language_model.modules()),
                "parameters": run.parameters["total"],
                "tokens_per_second": speed,
                "seconds_to_first_step": first_seconds,
                "seconds_per_step": seconds,
                "first_loss": nats / targets,
                **run.progress.utilisation.record(speed),
                "peak_memory_bytes": torch.cuda.max_memory_allocated() if not lab.rehearsal else 0,
                "estimated_memory_bytes": plan["memory_bytes"],
                **time_optimizers(run),
                "kernels": profile_step(run, 3 + steps),
            }
    except RecipeError as error:
        return measured | {"left_out": str(error)}


def time_optimizers(run: pretrain.Pretraining) -> dict:
    """Return the seconds of a step of the optimizers, and of Muon's matrices alone.

    These are stepped by the project, by torch, and by the project as on the first of MUON_PROCESSES under DDP, where
    the exchange of the updates costs no more than a copy.
    """
    ok = torch.ones((), dtype=torch.bool, device=run.accelerator.device)
    host, whole = time_step(list(run.prepared.module.parameters()), partial(run.prepared.step, ok))
    matrices = [one for group in run.prepared.optimizers[0].param_groups for one in group["params"]]
    settings = {"lr": 1e-4, "weight_decay": run.training.weight_decay}
    _, ours = time_step(matrices, ShardedMuon(matrices, **settings).step)
    _, torchs = time_step(matrices, torch.optim.Muon(matrices, **settings, adjust_lr_fn="match_rms_adamw").step)
    distributed.init_process_group("fake", rank=0, world_size=MUON_PROCESSES, store=FakeStore())
    _, part = time_step(matrices, ShardedMuon(matrices, **settings).step)
    distributed.destroy_process_group()
    run.prepared.clear_gradients()
    return {
        "optimizer_host_seconds": host,
        "optimizer_seconds": whole,
        "muon_seconds": {"ours": ours, "torch": torchs, "ours_of_one_process": part},
    }


def time_step(parameters: list[torch.Tensor], step: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of an optimizer's step on made gradients: of the host, and until the device is done."""
    for _ in range(3):  # the last counts
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter) * 1e-3
        wait_for_device()
        started = time.perf_counter()
        step()
        host = time.perf_counter() - started
        wait_for_device()
        whole = time.perf_counter() - started
    return host, whole


def profile_step(run: pretrain.Pretraining, step: int) -> list[dict]:
    """Return the kernels that a step spends most time in, and every kernel of attention."""
    on_gpu = run.accelerator.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        run.train_step(step)
        wait_for_device()
    seconds = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # A span that torch names, such as an optimizer's step, counts the kernels in it again.
    events = [event for event in profiler.key_averages() if not event.is_user_annotation]
    events = [event for event in events if getattr(event, seconds) > 0]
    if on_gpu:  # an operator's time is that of its kernels, which are listed themselves
        events = [event for event in events if str(event.device_type).endswith("CUDA")]
    events.sort(key=lambda event: getattr(event, seconds), reverse=True)
    total = sum(getattr(event, seconds) for event in events)
    words = ("flash", "fmha", "attention", "attn", "flex", "sdpa")
    attention = [event for event in events if any(word in event.key.lower() for word in words)]
    return [
        {
            "name": event.key[:120],
            "milliseconds": getattr(event, seconds) / 1e3,
            "share": getattr(event, seconds) / total,
        }
        for event in [*events[:10], *(event for event in attention if event not in events[:10])][:16]
    ]


def check_attentions(lab: Lab, measured: list[dict]) -> Result:
    rows = [one for one in measured if one["shape"] == "342M" and one["form"] == "default"]
    ran = [one for one in rows if "left_out" not in one]
    left_out = {one["attention"]: one["left_out"] for one in rows if "left_out" in one}
    apart = max(one["first_loss"] for one in ran) - min(one["first_loss"] for one in ran)
    fastest = max(one["tokens_per_second"] for one in ran)
    default = next((one for one in ran if one["attention"] == DEFAULT_ATTENTION), None)
    fast = default is not None and default["tokens_per_second"] > 0.95 * fastest
    speeds = ", ".join(f"{one['used_attention']} {one['tokens_per_second']:,.0f}" for one in ran)
    absent = "".join(f"; {name} left out: {reason}" for name, reason in left_out.items())
    # Nothing to compare the default with says nothing against it, if only time was missing.
    alone = fast and len(ran) == 1 and all(reason.startswith("not finished") for reason in left_out.values())
    return Result(
        "attention functions at 342M",
        f"tokens/s: {speeds}; first losses differ by {apart:.4f}{absent}",
        f"two or more, losses within 0.01, and {DEFAULT_ATTENTION} within 5 % of the fastest",
        None if alone else len(ran) > 1 and apart < 0.01 and (fast or lab.rehearsal),
        {"ran": [one["used_attention"] for one in ran], "left_out": list(left_out), "losses_apart": apart},
    )


def check_windows(lab: Lab) -> Result:
    """Compare a model whose windows slide without a mask, documents and all, with the same one with a mask."""
    enter(lab)
    device, length, window = ("cpu", 64, 5) if lab.rehearsal else ("cuda", 2048, 200)
    positions = torch.cat([torch.arange(length // 3), torch.arange(length - length // 3)])[None].repeat(2, 1)
    input_ids = torch.randint(0, 512, (2, length), device=device)
    batch = input_ids, positions.to(device), input_ids.roll(-1, 1)
    lengths = cumulative_lengths(positions.numpy()).to(device)
    accelerator = Accelerator(mixed_precision="bf16", cpu=lab.rehearsal)
    config = MistralConfig(
        **{"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": window},
    )
    found = {}
    for name in ("sdpa", "varlen"):
        torch.manual_seed(0)
        model = MistralForCausalLM(config).to(device)
        training = Training(max_tokens=length, sequence_length=length, attn_implementation=name)
        choose_attention(model, training, accelerator)
        with torch.autocast(device, torch.bfloat16):
            loss, _ = SummedLoss(model, compiled=False)(*batch, cumulative_lengths=lengths)
        loss.backward()
        gradients = torch.cat([one.grad.flatten() for one in model.parameters()])
        found[name] = loss.item() / input_ids.numel(), gradients
    (masked, expected), (loss, gradients) = found["sdpa"], found["varlen"]
    apart = ((gradients - expected).norm() / expected.norm()).item()
    return Result(
        "windows that slide, without a mask",
        f"loss {loss:.4f} and with a mask {masked:.4f}, gradients {apart:.2%} apart",
        "losses within 0.002, gradients within 2 %",
        abs(loss - masked) < 0.002 and apart < 0.02,
        {"loss": loss, "masked_loss": masked, "gradients_apart": apart},
    )


def defaults(measured: list[dict]) -> list[dict]:
    as_shipped = [one for one in measured if one["attention"] == DEFAULT_ATTENTION and one["form"] == "default"]
    return [one for one in as_shipped if "left_out" not in one]


def missing(rows: list[dict]) -> str:
    """Return which shapes have no row, for a figure; empty if all have one."""
    absent = [shape for shape in SHAPES if shape not in {one["shape"] for one in rows}]
    return f"; NOTHING of {', '.join(absent)}" if absent else ""


def check_speed(lab: Lab, measured: list[dict]) -> Result:
    rows = [one for one in defaults(measured) if "train/mfu_fraction" in one]
    least = UTILISATION_INTERVAL[0]
    return Result(
        "speed of each shape",
        "; ".join(
            f"{one['shape']} {one['tokens_per_second']:,.0f} tokens/s, "
            f"{one['train/mfu_fraction']:.1%} MFU, {one['train/utilisation_6nd_fraction']:.1%} 6ND"
            for one in rows
        )
        + missing(rows),
        f"an MFU of at least {least:.0%}, the low end of the plan, at every shape",
        None if lab.rehearsal else not missing(rows) and all(one["train/mfu_fraction"] >= least for one in rows),
        {one["shape"]: one["tokens_per_second"] for one in rows},
    )


def check_chunks(lab: Lab) -> Result:
    """Time the loss and its gradient in chunks of several sizes, among them the project's."""
    enter(lab)
    device = torch.device("cpu" if lab.rehearsal else "cuda")
    tokens, width, vocab_size = (512, 32, 512) if lab.rehearsal else (16 * 2048, 1024, 32_768)
    hidden = torch.randn(tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(vocab_size, width, device=device) * 0.02)
    labels = torch.randint(0, vocab_size, (tokens,), device=device)

    def seconds() -> float:
        timed = []
        for _ in range(4):
            wait_for_device()
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16):
                loss, _ = chunked_loss.chunked_loss(hidden, weight, labels, compiled=True)
            (loss / tokens).backward()
            wait_for_device()
            timed.append(time.perf_counter() - started)
        return min(timed[1:])

    by_rows = {"the project's": seconds()}
    sizes = (128, 256) if lab.rehearsal else (1 << k for k in range(10, 15))
    for rows in sizes:
        chunked_loss.rows_per_chunk = lambda *_, rows=rows: rows
        by_rows[f"{rows:,}"] = seconds()
    best = min(by_rows.values())
    slope, piece = torch.randn(1024, vocab_size, device=device), hidden.detach()[:1024]
    values = {"seconds_by_rows": by_rows, "adding_up": time_adding_up(slope.to(torch.bfloat16), piece, lab.rehearsal)}
    return Result(
        "rows of the loss at a time",
        ", ".join(f"{rows} {1e3 * one:.1f} ms" for rows, one in by_rows.items()),
        "the project's within 10 % of the best",
        None if lab.rehearsal else by_rows["the project's"] < 1.1 * best,
        values,
    )


def time_adding_up(slope: torch.Tensor, piece: torch.Tensor, rehearsal: bool) -> dict[str, float]:
    """Return the seconds of adding a product to an fp32 sum, in two kernels and, where torch can, in one."""
    total = torch.zeros(slope.shape[1], piece.shape[1], device=slope.device)

    def two() -> None:
        total.add_(slope.T @ piece)

    def one() -> None:
        torch.addmm(total, slope.T, piece, out_dtype=torch.float32, out=total)

    seconds = {}
    for name, add in (("two_kernels", two), ("one_kernel", one)):
        try:
            for _ in range(3):
                wait_for_device()
                started = time.perf_counter()
                for _ in range(1 if rehearsal else 20):
                    add()
                wait_for_device()
                seconds[name] = (time.perf_counter() - started) / (1 if rehearsal else 20)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            seconds[f"{name}_refused"] = str(error).splitlines()[0]
    return seconds


def check_optimizer(lab: Lab, measured: list[dict]) -> Result:
    rows = defaults(measured)
    shares = {
        one["shape"]: [one[key] / one["seconds_per_step"] for key in ("optimizer_host_seconds", "optimizer_seconds")]
        for one in rows
    }
    keys = ("optimizer_host_seconds", "optimizer_seconds", "muon_seconds")
    return Result(
        "a step of Muon",
        "; ".join(
            f"{one['shape']} {1e3 * one['optimizer_host_seconds']:.0f} ms of the host, "
            f"{1e3 * one['optimizer_seconds']:.0f} ms in all, {max(shares[one['shape']]):.0%} of a step, "
            f"{describe_muon(one['muon_seconds'])}"
            for one in rows
        )
        + missing(rows),
        f"at most 10 % of a step of {MICRO_STEPS} micro-steps, the host's time too",
        None if lab.rehearsal else not missing(rows) and max(map(max, shares.values())) <= 0.1,
        {one["shape"]: {key: one[key] for key in keys} for one in rows},
    )


def describe_muon(seconds: dict[str, float]) -> str:
    ours, torchs, part = (seconds[key] for key in ("ours", "torch", "ours_of_one_process"))
    return (
        f"its matrices alone {1e3 * ours:.1f} ms, {ours / torchs:.2f} of torch.optim.Muon's {1e3 * torchs:.1f}, and "
        f"one of {MUON_PROCESSES} processes {1e3 * part:.1f} ms, {part / ours:.0%} of it"
    )


def check_start(lab: Lab, measured: list[dict]) -> Result:
    rows = defaults(measured)
    seconds = {one["shape"]: one["seconds_to_first_step"] for one in rows}
    forms = [one for one in measured if one["shape"] == "342M" and one["attention"] == DEFAULT_ATTENTION]
    described = {}
    for one in forms:
        name = "by layer" if (one["form"] == "default") != lab.rehearsal else "as one graph"
        described[name] = one.get("left_out") or (
            f"{one['seconds_to_first_step']:.1f} s, then {one['tokens_per_second']:,.0f} tokens/s"
        )
    # That the other form takes long is a figure too; that it cannot be compiled is a fault.
    known = len(forms) == 2 and forms[1].get("left_out", "not finished").startswith("not finished")
    return Result(
        "seconds to the first step, compiling included",
        ", ".join(f"{name} {one:.1f}" for name, one in seconds.items())
        + missing(rows)
        + "".join(f"; 342M compiled {name}: {text}" for name, text in described.items()),
        "at most 60 as the project compiles",
        None if lab.rehearsal else not missing(rows) and max(seconds.values()) <= 60 and known,
        {"seconds": seconds, "forms": described},
    )


def train_and_time_saves(lab: Lab, name: str, overrides: dict) -> dict:
    """As train, and write how long each save kept training waiting into saves.json."""
    save, stalls = pretrain.Checkpoints.save, []

    def timed(self, *what) -> None:
        started = time.perf_counter()
        save(self, *what)
        stalls.append(time.perf_counter() - started)
        (lab.files / "saves.json").write_text(json.dumps(stalls))

    pretrain.Checkpoints.save = timed
    return train(lab, name, overrides)


def check_saving(lab: Lab) -> Result:
    settings = lab.shape("1B") | {"training.optimizer": "adamw", "training.torch_compile": False}
    child = lab.child(train_and_time_saves, "saving", settings | {"training.save_steps": 2})
    if not wait_for_step(lab, "saving", 3, child, 110):
        raise RuntimeError(f"no third step: {child.finish(1)}")
    folder = lab.files / "runs" / "saving" / "checkpoints"
    allowed = json.loads((folder.parent / "status.json").read_text())["save_seconds"]
    started = time.perf_counter()
    os.kill(child.process.pid, signal.SIGTERM)
    ended, problem = child.finish(allowed + 10)
    seconds = time.perf_counter() - started
    code = child.process.exitcode if ended is None else ended["code"]
    checkpoint, damaged = newest_checkpoint(folder)
    size = sum(path.stat().st_size for path in checkpoint.iterdir()) if checkpoint else 0
    stalls = json.loads((lab.files / "saves.json").read_text())
    last = max(losses(lab, "saving"))
    whole = checkpoint is not None and int(checkpoint.name.removeprefix("step_")) >= last and not damaged
    for path in (path for saved in folder.glob("*") for path in saved.iterdir()):
        path.unlink()  # gigabytes
    return Result(
        "saving at 1B",
        f"{size / 1e9:.1f} GB; training waits {stalls[0]:.1f} s; {seconds:.1f} s from SIGTERM to the end, "
        f"{'with' if whole else 'WITHOUT'} a checkpoint of step {last}, code {code}",
        f"whole within {allowed:.0f} s, which the run allowed itself, code {EXIT_STOPPED}",
        whole and code == EXIT_STOPPED and seconds < allowed + 5,
        {"bytes": size, "stall_seconds": stalls, "leave_seconds": seconds, "code": code, "problem": problem},
    )


def check_dry_runs(lab: Lab) -> Result:
    runs = {
        name: lab.child(
            train, f"dry-{name}", lab.small(20) | {"training.attn_implementation": name}, "bf16", False, ("--dry_run",)
        )
        for name in ATTENTIONS
    }
    found = {}
    for name, child in runs.items():
        result, problem = child.finish(150)
        found[name] = problem or ("ok" if result["code"] == 0 else f"code {result['code']}")
    refusals = [text for text in found.values() if text.startswith("RecipeError") and "attn_implementation" in text]
    return Result(
        "--dry_run with each attention function",
        "; ".join(f"{name}: {text.splitlines()[0]}" for name, text in found.items()),
        "ok, or a refusal that names what to use",
        found[DEFAULT_ATTENTION] == "ok" and len(refusals) + list(found.values()).count("ok") == len(found),
        found,
    )


def check_resuming(lab: Lab) -> Result:
    overrides = lab.small(RESUME_STEPS) | {"training.save_steps": SAVED_AT}
    whole, killed = lab.child(train, "whole", overrides), lab.child(train, "killed", overrides)
    reached = wait_for_step(lab, "killed", KILLED_AT, killed, 120)
    killed.process.kill()
    killed.finish(10)
    _, problem = whole.finish(120)
    before = max(losses(lab, "killed"), default=0)
    resumed, other_problem = lab.child(train, "killed", overrides).finish(120)
    if problem or other_problem or not reached or before >= RESUME_STEPS:
        raise RuntimeError(f"{problem or other_problem or f'killed at step {before} of {RESUME_STEPS}'}")
    one, other = losses(lab, "whole"), losses(lab, "killed")
    apart = max(abs(one[step] - other[step]) for step in one)
    noise = max(abs(one[step] - other[step]) for step in range(1, SAVED_AT + 1))  # of two runs, without a resume
    return Result(
        "killed and resumed",
        f"killed at step {before}; {len(other)} losses differ by at most {apart:.2e} from a run that was not, "
        f"{noise:.2e} before the checkpoint",
        "at most 1e-3",
        list(one) == list(other) == list(range(1, RESUME_STEPS + 1)) and apart < 1e-3 and resumed["code"] == 0,
        {"killed_at": before, "apart": apart, "apart_before_checkpoint": noise},
    )


def check_memory(lab: Lab, measured: list[dict]) -> Result:
    rows = defaults(measured)
    ratios = {one["shape"]: one["peak_memory_bytes"] / sum(one["estimated_memory_bytes"].values()) for one in rows}
    return Result(
        "peak memory against planning/memory.py",
        "; ".join(
            f"{one['shape']} {one['peak_memory_bytes'] / 1e9:.1f} GB, {ratios[one['shape']]:.2f} of the estimate"
            for one in rows
        )
        + missing(rows),
        "between 0.75 and 1.05 of it",
        None if lab.rehearsal else not missing(rows) and all(0.75 <= ratio <= 1.05 for ratio in ratios.values()),
        ratios,
    )


class Report:
    """The results so far, printed and written after each."""

    def __init__(self, lab: Lab, device: str):
        self.lab, self.results, self.measured = lab, {}, []
        self.machine = {
            "device": device or platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
            "compiler": find_missing_compiler() or "there",
        }

    def add(self, number: int, result: Result) -> None:
        self.results[number] = result
        print(f"{time.monotonic() - self.lab.started:4.0f} s {number:2} {result.line()}", flush=True)
        self.write()

    def measure(self, shape: str, attention: str, form: str = "default", seconds: float = 90.0) -> None:
        found, problem = None, "not finished: no time was left"
        if left(self.lab) > 5:
            child = self.lab.child(measure, shape, attention, form, leads=True)  # of processes that compile
            found, problem = child.finish(min(seconds, left(self.lab)))
        self.measured.append(found or {"shape": shape, "attention": attention, "form": form, "left_out": problem})

    def write(self) -> None:
        seconds = time.monotonic() - self.lab.started
        content = {"machine": self.machine, "rehearsal": self.lab.rehearsal, "seconds": seconds}
        content["checks"] = {number: asdict(self.results[number]) for number in sorted(self.results)}
        content["measured"] = self.measured
        (self.lab.out / "results.json").write_text(json.dumps(content, indent=1))
        lines = [", ".join(f"{key} {value}" for key, value in self.machine.items()) + f"; {seconds:.0f} s.", ""]
        lines += ["| # | check | found | expected | result |", "|--:|---|---|---|---|"]
        for number in sorted(self.results):
            one = self.results[number]
            lines.append(f"| {number} | {one.name} | {one.figure} | {one.expected} | {describe(one.passed)} |")
        for one in (one for one in self.measured if "kernels" in one):
            lines += ["", f"Kernels of a step, {one['shape']}, {one['attention']}, compiled in {one['form']} form:"]
            lines += ["", "| kernel | ms | share |", "|---|--:|--:|"]
            for row in one["kernels"]:
                lines.append(f"| `{row['name'].replace('|', ' ')}` | {row['milliseconds']:.2f} | {row['share']:.1%} |")
        (self.lab.out / "results.md").write_text("\n".join(lines) + "\n")


# The number in README.md -> what is checked, in the order in which it runs; checks of a row run side by side.
FIRST = {1: check_compiled_ddp, 2: check_waits, 9: check_dry_runs, 10: check_resuming, 12: check_windows}
OF_SHAPES = {4: check_speed, 6: check_optimizer, 11: check_memory}
THEN = [{5: check_chunks}, {8: check_saving}]
OF_FORMS = {7: check_start}
LAST = {3: check_attentions}
LIMITS = {1: 170, 2: 170, 5: 60, 8: 180, 9: 170, 10: 270, 12: 60}  # seconds; the sum of all is limited by --seconds


def run_row(lab: Lab, report: Report, row: dict) -> None:
    """Run checks side by side, each in a child of its own."""
    children = {number: lab.child(check, leads=True) for number, check in row.items() if left(lab) > 5}
    for number, check in row.items():
        problem, result = "no time was left", None
        if number in children:
            result, problem = children[number].finish(min(LIMITS[number], left(lab)))
        name = check.__name__.removeprefix("check_").replace("_", " ")
        report.add(number, result or Result(name, problem, "a result", False, {}))


def judge(lab: Lab, report: Report, checks: dict) -> None:
    """Run checks of what was measured."""
    for number, check in checks.items():
        try:
            report.add(number, check(lab, report.measured))
        except (ValueError, KeyError) as error:  # nothing was measured
            reasons = [one["left_out"] for one in report.measured if "left_out" in one]
            report.add(number, Result(check.__name__, f"{error}; {reasons}", "a result", False, {}))


def left(lab: Lab) -> float:
    return lab.started + lab.seconds - time.monotonic()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder for results and logs")
    parser.add_argument("--rehearse", action="store_true", help="on a processor, in tiny shapes")
    parser.add_argument("--seconds", type=float, default=480.0, help="limit for all checks together")
    options = parser.parse_args(argv)
    lab = Lab(options.out.resolve(), options.rehearse, seconds=options.seconds)
    shutil.rmtree(lab.files, ignore_errors=True)  # runs that are finished, and graphs that are compiled
    (lab.files / "logs").mkdir(parents=True)
    name, problem = lab.child(use_gpu).finish(60)
    if problem is not None:  # a forked process cannot use this GPU, or none can
        lab.start_method = "spawn"
        name, problem = lab.child(use_gpu).finish(60)
    if problem is not None:
        print(f"no GPU: {problem}\n--rehearse runs on a processor")
        return 2
    _, problem = lab.child(make_text).finish(120)
    if problem is not None:
        print(f"the text cannot be made: {problem}")
        return 2
    report = Report(lab, name)
    print(", ".join(f"{key} {value}" for key, value in report.machine.items()), flush=True)
    run_row(lab, report, FIRST)
    for shape in ("342M", "125M", "1B"):
        report.measure(shape, DEFAULT_ATTENTION)
    judge(lab, report, OF_SHAPES)
    for row in THEN:
        run_row(lab, report, row)
    used = report.measured[0].get("used_attention", "").partition("_causal")[0]
    for attention in ATTENTIONS:
        if attention not in (DEFAULT_ATTENTION, used, SLOW_TO_COMPILE):
            report.measure("342M", attention)
    report.measure("342M", DEFAULT_ATTENTION, "other", OTHER_FORM_SECONDS)
    judge(lab, report, OF_FORMS)
    report.measure("342M", SLOW_TO_COMPILE)
    judge(lab, report, LAST)
    failed, unjudged = (
        [number for number, result in sorted(report.results.items()) if result.passed is passed]
        for passed in (False, None)
    )
    seconds = time.monotonic() - lab.started
    print(f"{len(report.results)} checks in {seconds:.0f} s, failed: {failed or 'none'}; ", end="")
    print(f"unjudged: {unjudged or 'none'}; {lab.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
