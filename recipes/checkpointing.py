# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or absent: written beside, synced, renamed, verified, and only then older ones go.

A checkpoint is a folder `step_00001000/` with tensors as safetensors, everything else as `state.json`, and
`manifest.json` with the size and sha256 of each file. Nothing in it is ever unpickled. The newest valid one wins;
one that is damaged is named and passed over.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recipe_config import RecipeError
from run_folder import file_sha256, sync, write_json


CHECKPOINT_FORMAT = 1
NAME = re.compile(r"step_(\d{8})")


class NoValidCheckpointError(RecipeError):
    """There are checkpoints and none can be used; starting again from nothing would hide that."""


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep: int) -> Path:
    """Write a checkpoint and, once it verifies, delete all but the newest `keep`.

    Args:
        folder: of all checkpoints of the run.
        step: optimizer steps done.
        tensors: file stem -> name -> tensor.
        state: JSON values.
        keep: how many to keep, at least 2.

    Raises: OSError: the disk is full or the folder cannot be written; older checkpoints are as they were.
    """
    final = folder / f"step_{step:08d}"
    partial = folder / f".{final.name}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for stem, named in tensors.items():
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        save_file(contiguous, partial / f"{stem}.safetensors")
    write_json(partial / "state.json", state)
    files = {}
    for path in sorted(partial.iterdir()):
        files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        sync(path)
    write_json(partial / "manifest.json", {"format": CHECKPOINT_FORMAT, "step": step, "files": files})
    if final.exists():  # of an earlier try that was passed over as damaged
        shutil.rmtree(final)
    partial.rename(final)
    sync(folder)
    if problem := find_damage(final):
        raise OSError(f"{final}: written and read back differ: {problem}")
    for _, old in list_checkpoints(folder)[keep:]:
        (old / "manifest.json").unlink()  # a deletion that is interrupted leaves a folder that counts for nothing
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of everything named like a checkpoint, newest step first."""
    found = [(match, path) for path in folder.glob("step_*") if (match := NAME.fullmatch(path.name))]
    return sorted(((int(match[1]), path) for match, path in found), reverse=True)


def find_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None when every file is there with the recorded content."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != CHECKPOINT_FORMAT:
            return f"manifest.json: format {manifest['format']}, this version reads {CHECKPOINT_FORMAT}"
        for name, recorded in manifest["files"].items():
            path = checkpoint / name
            if path.is_symlink() or not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != recorded["bytes"]:
                return f"{name}: {path.stat().st_size:,} bytes, {recorded['bytes']:,} in the manifest"
            if file_sha256(path) != recorded["sha256"]:
                return f"{name}: its sha256 is not the one in the manifest"
    except FileNotFoundError:
        return "manifest.json is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json cannot be read"
    return None


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest valid checkpoint, and what was wrong with those passed over.

    Raises: NoValidCheckpointError: when there are checkpoints but none is valid.
    """
    passed_over = []
    for _, checkpoint in list_checkpoints(folder):
        problem = find_damage(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint}: {problem}")
    if passed_over:
        raise NoValidCheckpointError(
            "no checkpoint can be used: "
            + "; ".join(passed_over)
            + f". To start again from nothing, move {folder} away."
        )
    return None, []


def load_state(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def load_tensors(checkpoint: Path, stem: str) -> dict[str, Tensor]:
    return load_file(checkpoint / f"{stem}.safetensors")


def check_replicas(model: nn.Module, accelerator: Accelerator) -> None:
    """Make sure that all processes hold the same weights, bit for bit, before one of them writes them down.

    Raises: RuntimeError: they do not; the gradients were not averaged, or a device computes wrongly.
    """
    sums = [p.detach().view(torch.int32).sum(dtype=torch.int64) for p in model.parameters()]
    checksums = accelerator.gather(torch.stack(sums).unsqueeze(0))  # (num_processes, num_parameters)
    differing = (checksums != checksums[0]).any(dim=1).nonzero().flatten().tolist()
    if differing:
        raise RuntimeError(
            f"process 0 and processes {differing} hold different weights, so what they train is not one model; "
            "nothing was saved at this step. Go on from the last checkpoint, on other devices if it happens again."
        )


def gather_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, dict[str, Tensor]]:
    """Collect weights, and optimizer state as `<parameter>.<key>`, for save_checkpoint."""
    inner = getattr(model, "module", model).language_model
    weights = inner.state_dict()
    if inner.config.tie_word_embeddings:
        del weights["lm_head.weight"]  # the same tensor as model.embed_tokens.weight
    moments = {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return {"model": weights, "optimizer": {plain_name(name): value for name, value in moments.items()}}


def restore_tensors(checkpoint: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Load weights and optimizer state into a model and optimizers that were just made."""
    inner = getattr(model, "module", model).language_model
    weights = load_tensors(checkpoint, "model")
    if inner.config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    inner.load_state_dict(weights, strict=True)
    states: dict[str, dict[str, Tensor]] = {}
    for name, value in load_tensors(checkpoint, "optimizer").items():
        parameter, _, key = name.rpartition(".")
        states.setdefault(parameter, {})[key] = value
    owners = {parameter: o for o in optimizers for group in o.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        state = states[plain_name(name)]
        owners[parameter].state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrapping the model for several processes puts before it."""
    return name.removeprefix("module.")
