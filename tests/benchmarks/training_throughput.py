# SPDX-License-Identifier: Apache-2.0
"""Tokens per second and peak memory of a training step, beside other loops at the same shapes, on this machine.

    python tests/benchmarks/training_throughput.py --model 7m --vocab_size 8192 --sequence_length 512
    python tests/benchmarks/training_throughput.py --model 2m --vocab_size 131072 --sides ours plain --steps 2

Each side is a process of its own, in turns over `--rounds`; the best of its rounds counts. All compute in bf16
autocast on fp32 weights, or in fp32 with `--precision fp32`, with AdamW, on one thread, and time is processor time, so
that what else the machine does weighs little. The peak is a matrix product of that precision measured the same way,
between the sides.

| side | what it is |
|---|---|
| ours | SummedLoss of pretrain.py, documents not masked, as the others do not mask them |
| ours_masked | the same with borders of documents, by a mask |
| ours_by_layer | as ours with a graph for each layer, as on GPUs and under FSDP2 |
| ours_varlen | the same with borders of documents, by attn_implementation: varlen |
| plain | as ours with the projection and loss in one piece, compiled |
| eager | the loop of run_clm_no_trainer: the model's own loss, AdamW as it comes, uncompiled |
| trainer, trainer_compiled | transformers' Trainer |
| litgpt | LitGPT's model, compiled, with its chunked loss; `--litgpt_python` names a Python that has litgpt |
| nanogpt | nanoGPT's model, compiled: GPT-2's form, as wide and deep; `--nanogpt_folder` has its model.py |
"""

import argparse
import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
# (hidden_size, intermediate_size, num_hidden_layers, num_attention_heads): the layers' parameters are about the name's
SHAPES = {"2m": (192, 512, 5, 3), "7m": (320, 864, 6, 5), "30m": (512, 1408, 9, 8)}
SIDES = ("ours", "ours_masked", "eager", "trainer", "trainer_compiled", "litgpt", "nanogpt")


def multiplying_parameters(options) -> int:
    hidden, inner, layers, _ = SHAPES[options.model]
    return layers * (4 * hidden * hidden + 3 * hidden * inner) + options.vocab_size * hidden


def batches(options):
    import torch

    generator = torch.Generator().manual_seed(0)
    size = (options.batch_size, options.sequence_length + 1)
    while True:
        yield torch.randint(1, options.vocab_size, size, generator=generator)


def llama(options):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, layers, heads = SHAPES[options.model]
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            vocab_size=options.vocab_size,
            max_position_embeddings=options.sequence_length,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )


def make_ours(options) -> Callable[[], None]:
    """Return the step of pretrain.py: loss, clipping, judging and AdamW."""
    sys.path.insert(0, str(RECIPES))
    import torch
    from torch.nn import functional as F

    from mixture.batches import document_positions
    from mixture.document_borders import cumulative_lengths
    from model.attention import choose_attention
    from model.summed_loss import SummedLoss
    from recipe_config import Stability, Training
    from training.accelerators import keep_freed_memory
    from training.optimizers import build_optimizers, step_where
    from training.stability import StabilityMonitor

    keep_freed_memory()
    masked = options.side in ("ours_masked", "ours_varlen")
    training = Training(
        max_tokens=1_000_000,
        sequence_length=options.sequence_length,
        optimizer="adamw",
        learning_rate=1e-3,
        document_masking=masked,
        attn_implementation="varlen" if options.side == "ours_varlen" else "auto",
    )
    language_model = llama(options)
    precision = {"bf16": "bf16", "fp32": "no"}[options.precision]
    choose_attention(language_model, training, SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision))
    by_layer = options.side == "ours_by_layer"
    model = SummedLoss(language_model, compiled=True, by_layer=by_layer, document_masking=masked)
    if options.side == "plain":

        def plain(input_ids, position_ids, labels):
            hidden = language_model.model(input_ids=input_ids, use_cache=False).last_hidden_state
            logits = language_model.lm_head(hidden).float()
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").expand(2)

        language_model.model._compiled_call_impl = None  # one graph with the loss
        model.forward = torch.compile(plain, dynamic=False)
    optimizers, monitor = build_optimizers(model, training), StabilityMonitor(Stability(), torch.device("cpu"))
    data, step = batches(options), 0

    def train_step() -> None:
        nonlocal step
        step += 1
        tokens = next(data)
        tokens[:, options.sequence_length // 3 :: options.sequence_length // 2] = 0  # ends of documents
        inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        positions = document_positions(inputs.numpy(), 0)
        borders = {} if options.side == "plain" else {"cumulative_lengths": cumulative_lengths(positions)}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            minimised, nats = model(inputs, torch.from_numpy(positions), labels, **borders).unbind()
        (minimised / labels.numel()).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step_where(optimizers, monitor.judge(step, nats.detach() / labels.numel(), norm))
        for optimizer in optimizers:
            optimizer.zero_grad()
        monitor.read_verdicts()

    return train_step


def make_eager(options) -> Callable[[], None]:
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="bf16" if options.precision == "bf16" else "no", cpu=True)
    model = llama(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    data = batches(options)

    def train_step() -> None:
        tokens = next(data)[:, :-1]
        loss = model(input_ids=tokens, labels=tokens).loss
        accelerator.backward(loss)
        loss.detach().float().item()
        optimizer.step()
        optimizer.zero_grad()

    return train_step


def peer_step(options, model, loss_of: Callable) -> Callable[[], None]:
    """Return a step of another project's model, compiled, with clipping and AdamW."""
    import torch

    model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    data = batches(options)

    def train_step() -> None:
        tokens = next(data)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            loss = loss_of(model, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return train_step


def make_litgpt(options) -> Callable[[], None]:
    from litgpt.model import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    hidden, inner, layers, heads = SHAPES[options.model]
    config = Config(
        block_size=options.sequence_length,
        vocab_size=options.vocab_size,
        padded_vocab_size=options.vocab_size,
        n_layer=layers,
        n_head=heads,
        n_query_groups=heads,
        n_embd=hidden,
        intermediate_size=inner,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    return peer_step(options, GPT(config), lambda model, inputs, labels: chunked_cross_entropy(model(inputs), labels))


def make_nanogpt(options) -> Callable[[], None]:
    sys.path.insert(0, options.nanogpt_folder)
    from model import GPT, GPTConfig

    hidden, _, layers, heads = SHAPES[options.model]
    config = GPTConfig(
        block_size=options.sequence_length,
        vocab_size=options.vocab_size,
        n_layer=layers,
        n_head=heads,
        n_embd=hidden,
        dropout=0.0,
        bias=False,
    )
    return peer_step(options, GPT(config), lambda model, inputs, labels: model(inputs, labels)[1])


def time_steps(train_step: Callable[[], None], steps: int) -> list[float]:
    train_step()  # compiles
    train_step()
    seconds = []
    for _ in range(steps):
        started = time.process_time()
        train_step()
        seconds.append(time.process_time() - started)
    return seconds


def time_trainer(options) -> list[float]:
    import tempfile

    from transformers import Trainer, TrainerCallback, TrainingArguments

    ended = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            ended.append(time.process_time())

    data = batches(options)
    count = options.batch_size * (options.steps + 3)
    rows = [row[:-1] for _ in range(-(-count // options.batch_size)) for row in next(data)]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options.batch_size,
        max_steps=options.steps + 2,
        bf16=options.precision == "bf16",
        use_cpu=True,
        torch_compile=options.side == "trainer_compiled",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    dataset = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(model=llama(options), args=arguments, train_dataset=dataset, callbacks=[Clock()]).train()
    return [later - earlier for earlier, later in zip(ended[1:], ended[2:], strict=False)]


def measure_peak(precision: str) -> float:
    """Return the FLOP/s of one thread in a precision, of processor time."""
    import torch

    matrix = torch.randn(2048, 2048, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[precision])
    best = float("inf")
    for _ in range(4):
        started = time.process_time()
        matrix @ matrix
        best = min(best, time.process_time() - started)
    return 2 * 2048**3 / best


def run_side(options) -> None:
    """Measure one side in this process and print it as JSON."""
    import torch

    importlib.import_module("litgpt.model" if options.side == "litgpt" else "transformers")  # is no memory of a step
    torch.set_num_threads(1)
    imported_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    makers = {"eager": make_eager, "litgpt": make_litgpt, "nanogpt": make_nanogpt}
    if options.side.startswith("trainer"):
        seconds = time_trainer(options)
    else:
        seconds = time_steps(makers.get(options.side, make_ours)(options), options.steps)
    memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imported_kib
    print(
        json.dumps(
            {"seconds": min(seconds), "memory_bytes": memory_kib * 1024, "peak_flops": measure_peak(options.precision)}
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="7m")
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--sequence_length", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=list(SIDES))
    parser.add_argument("--litgpt_python", default=None)
    parser.add_argument("--nanogpt_folder", default=None)
    parser.add_argument("--side")
    options = parser.parse_args()
    if options.side:
        run_side(options)
        return
    best: dict[str, dict] = {}
    for _ in range(options.rounds):
        for side in options.sides:
            python = options.litgpt_python if side == "litgpt" else sys.executable
            if python is None or (side == "nanogpt" and options.nanogpt_folder is None):
                print(f"{side}: left out; name where it is with --litgpt_python or --nanogpt_folder")
                continue
            command = [python, __file__, "--side", side]
            passed_on = (
                "model",
                "vocab_size",
                "sequence_length",
                "batch_size",
                "precision",
                "steps",
                "nanogpt_folder",
            )
            for name in passed_on:
                command += [f"--{name}", str(getattr(options, name))]
            ended = subprocess.run(command, capture_output=True, text=True)
            if ended.returncode:
                print(f"{side}: failed: {ended.stderr.strip().splitlines()[-1]}")
                continue
            found = json.loads(ended.stdout.splitlines()[-1])
            before = best.get(side, found)
            best[side] = {
                "seconds": min(found["seconds"], before["seconds"]),
                "memory_bytes": min(found["memory_bytes"], before["memory_bytes"]),
                "peak_flops": max(found["peak_flops"], before["peak_flops"]),
            }
    tokens, peak = options.batch_size * options.sequence_length, max(side["peak_flops"] for side in best.values())
    parameters = multiplying_parameters(options)
    print(
        f"{options.model}, {parameters:,} parameters that multiply, vocabulary {options.vocab_size:,}, "
        f"{options.batch_size} sequences of {options.sequence_length}; "
        f"{options.precision} peak {peak / 1e12:.3f} TFLOP/s\n"
        "| side | tokens a second, one thread | 6ND of the peak | peak memory, MB | speed, ours / side "
        "| memory, ours / side |\n|---|--:|--:|--:|--:|--:|"
    )
    for side, found in best.items():
        speed = tokens / found["seconds"]
        ratio = found["seconds"] / best["ours"]["seconds"]
        used = 6 * parameters * speed / peak
        memory = best["ours"]["memory_bytes"] / found["memory_bytes"]
        print(
            f"| {side} | {speed:,.0f} | {used:.0%} | {found['memory_bytes'] / 1e6:,.0f} | {ratio:.2f} | {memory:.2f} |"
        )


if __name__ == "__main__":
    main()
