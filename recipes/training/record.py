# SPDX-License-Identifier: Apache-2.0
"""What training writes into the run folder beside its model, checkpoints, chronicle and status.

| file | what it holds |
|---|---|
| `recipe.yaml` | the recipe with every key resolved |
| `environment.json` | the versions of everything installed, and how training computes |
| `metrics.jsonl` | numbers over time, a line every few steps |
| `samples.jsonl` | the continuations of evaluation.prompts at each evaluation |
| `training.json` | what the whole run trained, on how much of each source, at what cost |
"""

import json
import os
import platform
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from atomic_files import append_text, read_json, read_json_lines, replace_text, write_json
from launching import deciding_environment
from mixture.fitting import expected_deviations
from mixture.order import TokenMixture
from model.llama import count_module_parameters
from model.summed_loss import SummedLoss
from recipe_config import Recipe, Training
from recorded_files import recorded_beginnings


def write_run_files(recipe: Recipe, run: Path, computed: dict) -> None:
    """Write recipe.yaml and environment.json."""
    replace_text(run / "recipe.yaml", recipe.dump_yaml())
    packages = {d.metadata["Name"]: d.version for d in distributions()}
    environment = {"python": platform.python_version(), "platform": platform.system(), "packages": packages}
    environment["computed"] = computed
    write_json(run / "environment.json", environment)


def append_lines(path: Path, records: list[dict]) -> None:
    """Append records to a file of JSON lines."""
    append_text(path, "".join(json.dumps(record) + "\n" for record in records))


def truncate_records(run: Path, step: int, checkpoint: Path | None) -> None:
    """Drop the lines after the step that training resumes from, and a last line that a kill left incomplete.

    Args: checkpoint: of that step, whose manifest says how much the files held; None at step 0.
    """
    beginnings = checkpoint and recorded_beginnings(checkpoint, run)
    for path in (run / "metrics.jsonl", run / "samples.jsonl"):
        if not path.exists():
            continue
        if checkpoint is None:
            kept = ""
        elif beginnings and path.name in beginnings:
            kept = path.read_bytes()[: beginnings[path.name]["bytes"]].decode("utf-8")
        else:
            kept = "".join(
                json.dumps(entry) + "\n" for entry in read_json_lines(path, "step") if entry["step"] <= step
            )
        replace_text(path, kept)


def summarize(recipe: Recipe, training: Training, model: SummedLoss, parameters: dict[str, int], state: dict) -> dict:
    """Return the part of training.json that says what was trained, how long and at what cost in FLOPs.

    Its total and non_embedding parameters are those of the exported model, into which the adapters are merged. Its
    flops are of this run, with the forward passes of the models that it learns from; members_flops and members are of
    those that were trained for it.
    """
    processed_tokens = state["trained_steps"] * training.tokens_per_step  # with those of skipped documents
    multiplied = multiplied_parameters(parameters, recipe.model.tie_word_embeddings)
    # A frozen weight has no gradient of its own, but passes on that of its input.
    per_token = 6 * multiplied if recipe.model.lora is None else 4 * multiplied + 2 * parameters["trained"]
    convention = "6 * parameters that multiply (all but the input embedding) * tokens, 4 where they are not trained"
    cost = {}
    if recipe.training.distillation is not None:
        for teacher in model.teachers[0].models:
            taught, tied = teacher.language_model, teacher.language_model.config.tie_word_embeddings
            per_token += 2 * multiplied_parameters(count_module_parameters(taught), tied)
        convention += ", 2 for the models that it learns from"
        if members := [
            trained for folder in recipe.member_folders() if (trained := read_json(folder / "training.json"))
        ]:
            cost["members_flops"] = sum(trained["flops"] for trained in members)
            cost["members"] = [
                {
                    **{key: trained[key] for key in ("tokens_seen", "seconds", "device")},
                    "device_hours": trained["seconds"] * trained["num_processes"] / 3600,
                }
                for trained in members
            ]
    merged = {part: parameters[part] - parameters["adapters"] for part in ("total", "non_embedding")}
    return {
        "parameters": parameters | merged,
        "sequence_length": training.sequence_length,
        "tokens_per_step": training.tokens_per_step,
        "max_steps": state["max_steps"],
        "skips": state["skips"],
        "tokens_seen": sum(state["tokens_seen"].values()),
        "seconds": state["seconds"],
        "tokens_per_second": processed_tokens / state["seconds"],
        "flops": per_token * processed_tokens,
        **cost,
        "flops_convention": f"{convention}, attention scores left out",
    }


def multiplied_parameters(parameters: dict[str, int], tied: bool) -> int:
    """Return the parameters that multiply: all but the input embedding, unless it is the projection too."""
    return parameters["non_embedding"] + (parameters["embedding"] if tied else 0)


def describe_device(accelerator: Accelerator) -> dict:
    """Return the part of training.json that says on what the run was trained."""
    device = device_name(accelerator.device)
    if accelerator.device.type == "cpu":
        device = f"cpu, {torch.get_num_threads()} threads a process, {device}"
    return {
        "device": device,
        "num_processes": accelerator.num_processes,
        "distributed_type": str(accelerator.distributed_type.value),
        "mixed_precision": accelerator.mixed_precision,
    }


def describe_computing(accelerator: Accelerator, training: Training, compiled: bool, attention: str) -> dict:
    """Return what this machine or its user decided about how training computes, and what can change its numbers.

    Args:
        accelerator: of the run.
        training: its settings.
        compiled: whether torch.compile is used.
        attention: the attention function.
    """
    on_cpu = accelerator.device.type == "cpu"
    environment = {name: os.environ[name] for name in deciding_environment()}
    return {
        "device": device_name(accelerator.device),
        "threads": torch.get_num_threads() if on_cpu else None,
        "num_processes": accelerator.num_processes,
        "distributed_type": str(accelerator.distributed_type.value),
        "mixed_precision": accelerator.mixed_precision,
        "compiled": compiled,
        "attention": attention,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "torch": torch.__version__,
        **({"environment": environment} if environment else {}),
    }


def device_name(device: torch.device) -> str:
    """Return the name of a device's product; its type where torch does not know the name, as Apple's `mps`."""
    if device.type == "cpu":
        return processor_name()
    module = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type


def processor_name() -> str:
    """Return the processor's name as Linux gives it, elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def summarize_mixture(mixture: TokenMixture, byte_lengths: np.ndarray, state: dict) -> dict[str, dict]:
    """Return the part of training.json about each source: target and actual share, and how much of it was read."""
    sequences = np.array(list(state["tokens_seen"].values())) // mixture.shards.sequence_length
    deviations = expected_deviations(mixture, byte_lengths, sequences)
    return {
        name: {
            "asked_fraction": part["asked"],
            "delivered_fraction": part["share"],
            "expected_deviation_fraction": deviations[name],
            "bytes_seen": state["bytes_seen"][name],
            "tokens_seen": state["tokens_seen"][name],
            "repetitions": part["repetitions"],
            "remainder_tokens": mixture.shards.remainder_tokens[name],
        }
        for name, part in shares_so_far(mixture, state).items()
    }


def shares_so_far(mixture: TokenMixture, state: dict) -> dict[str, dict[str, float]]:
    """Return for each source its target share (`asked`) and actual share (`share`) of the bytes, and `repetitions`."""
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
