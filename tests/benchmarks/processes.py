# SPDX-License-Identifier: Apache-2.0
"""One process and two at the same tokens a step: scaling efficiency here, and what larger machines would send.

    python tests/benchmarks/processes.py runs/legal-quickstart --steps 60

The run folder lends its tokens and its recipe. Each process has one thread, so that two have twice the processor of
one; the efficiency is the speed of two over twice that of one, from the steps after the first third. The volumes are
on paper, of a step, for each GPU, with rings: DDP sums fp32 gradients once (2 (P - 1) / P of them); FSDP2 fetches bf16
weights before the forward and the backward pass and scatters fp32 sums of gradients, each (P - 1) / P, once a
micro-step.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from training_runs import command, finish, launch, metrics


BYTES_FP32, BYTES_BF16 = 4, 2


def ddp_bytes(parameters: int, processes: int) -> float:
    return 2 * (processes - 1) / processes * parameters * BYTES_FP32


def fsdp_bytes(parameters: int, processes: int, micro_steps: int) -> float:
    return (processes - 1) / processes * parameters * (2 * BYTES_BF16 + BYTES_FP32) * micro_steps


def speed(source: Path, processes: int, options: argparse.Namespace) -> tuple[float, dict]:
    """Train with so many processes; return tokens per second and training.json."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        overrides = [f"--training.{key}=1_000_000" for key in ("eval_steps", "save_steps")]
        overrides += ["--training.logging_steps=2", "--data.fit_to_corpus=false", "--data.phases=[]"]
        overrides += [f"--training.max_tokens={options.steps * options.tokens_per_step}"]
        overrides += [f"--training.tokens_per_step={options.tokens_per_step}", "--training.warmup_steps=1"]
        overrides += [f"--training.per_device_train_batch_size={options.batch_size}"]
        training = finish(launch(command(source, folder, overrides), processes, threads=1), folder)
        lines = [line["train/tokens_per_second"] for line in metrics(folder) if "train/tokens_per_second" in line]
    return statistics.median(lines[len(lines) // 3 :]), training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="with tokens, tokenizer and recipe.yaml")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tokens_per_step", type=int, default=4096)
    parser.add_argument("--batch_size", type=int, default=8, help="sequences of a micro-step of one process")
    parser.add_argument("--parameters", type=float, nargs="+", default=[360e6, 1.1e9, 7e9], help="of models on paper")
    options = parser.parse_args()
    one, training = speed(options.run_folder, 1, options)
    two, _ = speed(options.run_folder, 2, options)
    sent = ddp_bytes(training["parameters"]["total"], 2) / 1e6
    print(
        f"{training['parameters']['total']:,} parameters, {options.tokens_per_step:,} tokens a step\n"
        "| processes | tokens per second | efficiency | MB sent a step by each |\n|--:|--:|--:|--:|\n"
        f"| 1 | {one:,.0f} | 1 | 0 |\n| 2 | {two:,.0f} | {two / (2 * one):.2f} | {sent:,.1f} |\n\n"
        "| parameters | GPUs | DDP, GB a step | FSDP2, GB a step of 1 micro-step | of 8 |\n|--:|--:|--:|--:|--:|"
    )
    for parameters in map(int, options.parameters):
        for processes in (8, 64):
            volumes = [ddp_bytes(parameters, processes)]
            volumes += [fsdp_bytes(parameters, processes, micro_steps) for micro_steps in (1, 8)]
            print(f"| {parameters:,} | {processes} | " + " | ".join(f"{size / 1e9:.2f}" for size in volumes) + " |")


if __name__ == "__main__":
    main()
