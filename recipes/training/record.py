# SPDX-License-Identifier: Apache-2.0
"""What a training run writes about itself: its settings, its curves, its samples, its sums."""

import json
import platform
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from atomic_files import read_json_lines, replace_text, write_json
from mixture.fitting import expected_deviations
from mixture.order import TokenMixture
from recipe_config import Recipe, Training


def write_run_files(recipe: Recipe, run: Path) -> None:
    """Write the recipe with every key resolved, and the versions of everything installed."""
    replace_text(run / "recipe.yaml", recipe.dump_yaml())
    packages = {d.metadata["Name"]: d.version for d in distributions()}
    environment = {"python": platform.python_version(), "platform": platform.system(), "packages": packages}
    write_json(run / "environment.json", environment)


def append_lines(path: Path, records: list[dict]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def cut_records(run: Path, step: int) -> None:
    """Take back what was logged after the step that training goes on from, and a line that was cut short."""
    for path in (run / "metrics.jsonl", run / "samples.jsonl"):
        if path.exists():
            kept = [json.dumps(entry) + "\n" for entry in read_json_lines(path) if entry["step"] <= step]
            replace_text(path, "".join(kept))


def summarize(
    recipe: Recipe,
    training: Training,
    mixture: TokenMixture,
    byte_lengths: np.ndarray,
    state: dict,
    parameters: dict[str, int],
    accelerator: Accelerator,
    notes: list[str],
    compiled: bool,
) -> dict:
    """Put together training.json: what was trained, on how much of what, at what cost."""
    processed_tokens = state["trained_steps"] * training.tokens_per_step  # those of skipped documents among them
    counts = np.array(list(state["tokens_seen"].values())) // training.sequence_length
    deviations = expected_deviations(mixture, byte_lengths, counts)
    projection = 0 if not recipe.model.tie_word_embeddings else parameters["embedding"]
    multiplied = parameters["non_embedding"] + projection
    # Weights that stay as they are need no gradient of their own, only what is behind them does.
    per_token = 6 * multiplied if recipe.model.lora is None else 4 * multiplied + 2 * parameters["trained"]
    device = accelerator.device.type
    if device == "cpu":
        device = f"cpu, {torch.get_num_threads()} threads a process, {processor_name()}"
    else:
        device = torch.cuda.get_device_name(accelerator.device)
    return {
        "parameters": parameters,
        "sequence_length": training.sequence_length,
        "tokens_per_step": training.tokens_per_step,
        "max_steps": state["max_steps"],
        "skips": state["skips"],
        "tokens_seen": sum(state["tokens_seen"].values()),
        "seconds": state["seconds"],
        "tokens_per_second": processed_tokens / state["seconds"],
        "flops": per_token * processed_tokens,
        "flops_convention": "6 * parameters that multiply (all but the input embedding) * tokens, 4 where they are "
        "not trained, attention scores left out",
        "device": device,
        "num_processes": accelerator.num_processes,
        "distributed_type": str(accelerator.distributed_type.value),
        "mixed_precision": accelerator.mixed_precision,
        "compiled": compiled,
        "notes": notes,
        "phases": state["phases"],
        "mixture": {
            name: {
                "asked_fraction": part["asked"],
                "delivered_fraction": part["share"],
                "expected_deviation_fraction": deviations[name],
                "bytes_seen": state["bytes_seen"][name],
                "tokens_seen": state["tokens_seen"][name],
                "repetitions": part["repetitions"],
                "remainder_tokens": mixture.shards.remainder_tokens[name],
            }
            for name, part in delivered(mixture, state).items()
        },
    }


def delivered(mixture: TokenMixture, state: dict) -> dict[str, dict[str, float]]:
    """Return of each source what was asked of it until now and what it gave: asked, share (of bytes), repetitions."""
    shards, total_bytes = mixture.shards, max(1, sum(state["bytes_seen"].values()))
    asked = mixture.target_shares(state["step"] * state["tokens_per_step"] // shards.sequence_length)
    return {
        name: {
            "asked": asked[name],
            "share": state["bytes_seen"][name] / total_bytes,
            "repetitions": state["tokens_seen"][name] / (windows * shards.sequence_length),
        }
        for name, windows in zip(shards.names, shards.num_windows, strict=True)
    }


def describe_delivered(parts: dict[str, dict[str, float]]) -> str:
    return "; ".join(
        f"{name} {100 * part['asked']:.2f} % asked, {100 * part['share']:.2f} % delivered, "
        f"seen {part['repetitions']:.1f} times"
        for name, part in parts.items()
    )


def print_plan(
    accelerator: Accelerator, training: Training, parameters: dict[str, int], state: dict, checkpoint: Path | None
) -> None:
    """Say before the first step what will be trained, on what."""
    micro_tokens = training.per_device_train_batch_size * training.sequence_length * accelerator.num_processes
    accelerator.print(
        f"pretrain: {parameters['total']:,} parameters ({parameters['non_embedding']:,} without the embedding), "
        f"{state['max_steps']:,} steps of {training.tokens_per_step:,} tokens = "
        f"{training.per_device_train_batch_size} sequences * {training.sequence_length} tokens * "
        f"{training.tokens_per_step // micro_tokens} micro-steps * {accelerator.num_processes} processes, "
        f"{accelerator.device.type}, {accelerator.mixed_precision}" + (f", from {checkpoint}" if checkpoint else "")
    )
    accelerator.print(describe_phases(state["phases"]))


def describe_step(record: dict) -> str:
    """Say what a person watches, beside the steps and the time left that the bar shows."""
    used = record.get("train/utilisation_hardware_fraction")
    return (
        f"loss {record['train/loss']:.3f}, {record['train/bits_per_byte']:.3f} bits/byte, "
        f"grad {record['train/grad_norm']:.2f}, lr {record['train/learning_rate']:.2e}, "
        f"{record['train/tokens_per_second']:,.0f} tokens/s{'' if used is None else f', {used:.0%} of peak'}, "
        f"{record['train/tokens_seen']:,} tokens"
    )


def describe_phases(phases: list[dict]) -> str:
    """Say the shares of the mixture, and the sequence length where it is raised, a line for each phase."""
    lines = []
    for phase in phases:
        shares = ", ".join(f"{100 * share:.2f} % {name}" for name, share in phase["shares"].items() if share)
        length = f", in sequences of {phase['sequence_length']:,} tokens" if "sequence_length" in phase else ""
        lines.append(f"pretrain: from step {phase['after_step'] + 1:,} on, of the bytes {shares}{length}")
    return "\n".join(lines)


def processor_name() -> str:
    """Return the processor's name as Linux gives it, elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
