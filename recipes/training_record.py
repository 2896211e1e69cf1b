# SPDX-License-Identifier: Apache-2.0
"""What a training run writes about itself: recipe.yaml, environment.json, metrics.jsonl and training.json."""

import json
import platform
from importlib.metadata import distributions
from pathlib import Path

import torch
from accelerate import Accelerator

from recipe_config import Recipe, Training
from run_folder import write_json
from token_mixture import TokenMixture


def write_run_files(recipe: Recipe, run: Path) -> None:
    """Write the recipe with every key resolved, and the versions of everything installed."""
    (run / "recipe.yaml").write_text(recipe.dump_yaml(), encoding="utf-8")
    packages = {d.metadata["Name"]: d.version for d in distributions()}
    environment = {"python": platform.python_version(), "platform": platform.system(), "packages": packages}
    write_json(run / "environment.json", environment)


def append_metrics(run: Path, record: dict) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def cut_metrics(run: Path, step: int) -> None:
    """Take back what was logged after the step that training goes on from, and a line that was cut short."""
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
        partial = metrics.with_name(".metrics.jsonl.tmp")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(metrics)


def summarize(
    recipe: Recipe,
    training: Training,
    mixture: TokenMixture,
    state: dict,
    parameters: dict[str, int],
    accelerator: Accelerator,
    notes: list[str],
    compiled: bool,
) -> dict:
    """Put together training.json: what was trained, on how much of what, at what cost."""
    tokens_seen = state["step"] * training.tokens_per_step
    sequences = tokens_seen // training.sequence_length
    counts, repetitions = mixture.counts(sequences), mixture.repetitions(sequences)
    total_bytes = sum(state["bytes_seen"].values())
    projection = 0 if not recipe.model.tie_word_embeddings else parameters["embedding"]
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
        "tokens_seen": tokens_seen,
        "seconds": state["seconds"],
        "tokens_per_second": tokens_seen / state["seconds"],
        "flops": 6 * (parameters["non_embedding"] + projection) * tokens_seen,
        "flops_convention": "6 * parameters that multiply (all but the input embedding) * tokens, "
        "attention scores left out",
        "device": device,
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "compiled": compiled,
        "notes": notes,
        "mixture": {
            source.name: {
                "asked_fraction": source.share,
                "delivered_fraction": state["bytes_seen"][source.name] / total_bytes,
                "bytes_seen": state["bytes_seen"][source.name],
                "tokens_seen": int(count) * training.sequence_length,
                "repetitions": repetitions[source.name],
                "remainder_tokens": mixture.remainder_tokens[source.name],
            }
            for source, count in zip(recipe.data.sources, counts, strict=True)
        },
    }


def processor_name() -> str:
    """Return the processor's name as Linux gives it, elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
