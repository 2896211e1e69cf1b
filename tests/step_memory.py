# SPDX-License-Identifier: Apache-2.0
"""Prints the peak memory of training steps above the process after its imports, and the planner's estimate of it.

    MALLOC_MMAP_THRESHOLD_=131072 PYTHONPATH=recipes python tests/step_memory.py '{"hidden_size": 256, ...}' \\
        --vocab_size 8192 --sequence_length 256 --batch_size 16

Without that setting the C library keeps what was freed for later, and a process holds more than its tensors. Imports
count as done after a step of a tiny model, since torch loads some parts when they are first used.
"""

import argparse
import gc
import json
import re
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model.attention import choose_attention
from model.summed_loss import SummedLoss
from model.teachers import Teachers
from planning.memory import memory_by_part
from recipe_config import Average, Model, Training
from training.average import WeightAverage
from training.optimizers import build_optimizers


MICRO_STEPS = 2  # so that gradients are there while activations are, as in any step but the simplest
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}


def take_steps(shape: dict, vocab_size: int, sequence_length: int, batch_size: int, options: argparse.Namespace):
    torch.manual_seed(0)
    config = LlamaConfig(**shape, vocab_size=vocab_size, max_position_embeddings=sequence_length)
    tokens_per_step = MICRO_STEPS * batch_size * sequence_length
    training = Training(
        sequence_length=sequence_length,
        tokens_per_step=tokens_per_step,
        per_device_train_batch_size=batch_size,
        max_tokens=2 * tokens_per_step,
        optimizer=options.optimizer,
        learning_rate=1e-3,
    )
    on_cpu = SimpleNamespace(device=torch.device("cpu"), mixed_precision="bf16" if options.bf16 else "no")

    def summed_loss() -> SummedLoss:
        language_model = LlamaForCausalLM(config)
        choose_attention(language_model, training, on_cpu)
        return SummedLoss(language_model, options.compiled)

    model = summed_loss()
    teachers = [summed_loss() for _ in range(options.teachers)]
    model.teachers = (Teachers(teachers, share=0.5),) if teachers else ()
    average = WeightAverage(model, Average(ema=0.9)) if options.average else None
    optimizers, state = build_optimizers(model, training), {"max_steps": 2}
    for step in range(2):  # the optimizer's state is there from the second on
        for _ in range(MICRO_STEPS):
            input_ids = torch.randint(0, vocab_size, (batch_size, sequence_length))
            position_ids = torch.arange(sequence_length).expand(batch_size, -1)
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                minimised, _ = model(input_ids, position_ids, input_ids).unbind()
            (minimised / tokens_per_step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if average is not None:
            average.add(step + 1, state)


def resident_bytes(key: str) -> int:
    return 1024 * int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", type=json.loads, help="fields of LlamaConfig")
    for name in ("vocab_size", "sequence_length", "batch_size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--average", action="store_true")
    parser.add_argument("--teachers", type=int, default=0)
    options = parser.parse_args()
    sizes = (options.vocab_size, options.sequence_length, options.batch_size)
    take_steps(TINY, 300, 64, 2, options)
    gc.collect()
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    take_steps(options.shape, *sizes, options)
    measured = resident_bytes("VmHWM") - before
    parts = memory_by_part(
        Model(**options.shape),
        *sizes,
        compiled=options.compiled,
        muon=options.optimizer == "muon",
        average=options.average,
        num_teachers=options.teachers,
        compute_bytes=2 if options.bf16 else 4,
        device_type="cpu",
    )
    estimated = sum(parts.values())
    print(json.dumps({"measured_bytes": measured, "estimated_bytes": round(estimated), "parts": parts}))


if __name__ == "__main__":
    main()
