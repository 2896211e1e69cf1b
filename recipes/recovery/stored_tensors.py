# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints: which exist, which are damaged, and their tensors, whichever processes wrote them.

torch.distributed.checkpoint is not used because its `.metadata` file is a pickle, which runs code when it is read."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from atomic_files import file_sha256
from recipe_config import RecipeError


CHECKPOINT_FORMAT = 2
PROGRAM = "recipes/pretrain.py"
NAME = re.compile(r"step_(\d{8})")


class NoValidCheckpointError(RecipeError):
    """There are checkpoints, but all are damaged; to start from step 0 would hide that."""


class Part:
    """The part of a tensor that this process holds.

    Attributes:
        local: the part; the whole tensor where it is not a DTensor.
        shape: of the whole.
        offset: of the part in the whole, in each dimension.
        mine: whether this process writes it; of replicas only the first does.
    """

    def __init__(self, tensor: Tensor):
        if isinstance(tensor, DTensor):
            self.shape = tuple(tensor.shape)
            size, self.offset = compute_local_shape_and_global_offset(
                tensor.shape, tensor.device_mesh, tensor.placements
            )
            # Along the dimensions of the mesh that hold replicas, only the first writes.
            coordinate = tensor.device_mesh.get_coordinate()
            replicas = [
                at for at, placement in zip(coordinate, tensor.placements, strict=True) if not placement.is_shard()
            ]
            self.mine = not any(replicas) and math.prod(size) > 0
            local = tensor.to_local()
        else:
            self.shape, self.offset, self.mine, local = tuple(tensor.shape), (0,) * tensor.ndim, True, tensor
        self.local = local.detach()

    def copy(self) -> Tensor:
        """Return a copy of the part in host memory."""
        return torch.empty(self.local.shape, dtype=self.local.dtype, device="cpu").copy_(self.local)


def part_name(rank: int) -> str:
    return f"part-{rank:05d}.json"


def describe_places(named: dict[str, Part]) -> dict[str, list]:
    """Return name -> [offset of the part, shape of the whole]; without tensors that are held whole."""
    return {
        name: [list(part.offset), list(part.shape)]
        for name, part in named.items()
        if tuple(part.local.shape) != part.shape
    }


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of everything named like a checkpoint, newest step first."""
    named = [(match, path) for path in folder.glob("step_*") if (match := NAME.fullmatch(path.name))]
    return sorted(((int(match[1]), path) for match, path in named), reverse=True)


def find_damage(checkpoint: Path) -> str | None:
    """Return the first thing that is wrong with a checkpoint; None if nothing is, as list_damage looks for it."""
    return next(list_damage(checkpoint), None)


def list_damage(checkpoint: Path) -> Iterator[str]:
    """Yield what is wrong with a checkpoint, file by file: each has its recorded size and sha256 in a whole one."""
    try:
        if checkpoint.is_symlink():
            yield "is a link, and checkpoints are not"
            return
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        if manifest.get("program", PROGRAM) != PROGRAM:
            yield f"manifest.json: of another program, {manifest['program']}"
        elif manifest["format"] != CHECKPOINT_FORMAT:
            yield f"manifest.json: format {manifest['format']}, this version reads {CHECKPOINT_FORMAT}"
        elif f"step_{manifest['step']:08d}" != checkpoint.name:
            yield f"manifest.json: of step {manifest['step']}"
        elif "state.json" not in manifest["files"]:
            yield "manifest.json: names no state.json"
        else:
            found = (find_file_damage(checkpoint, *file) for file in manifest["files"].items())
            yield from (problem for problem in found if problem)
    except FileNotFoundError:
        yield "manifest.json is missing"
    except OSError as error:
        yield f"manifest.json cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield "manifest.json cannot be read"


def find_file_damage(checkpoint: Path, name: str, recorded: dict) -> str | None:
    """Return what is wrong with a file of a checkpoint; None if nothing is."""
    path = checkpoint / name
    if Path(name).name != name:
        return f"manifest.json: {name!r} is not the name of a file"
    try:
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != recorded["bytes"]:
            return f"{name}: {path.stat().st_size:,} bytes, {recorded['bytes']:,} in the manifest"
        if file_sha256(path) != recorded["sha256"]:
            return f"{name}: its sha256 is not the one in the manifest"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None


def newest_checkpoint(folder: Path, below: int | None = None) -> tuple[Path | None, list[str]]:
    """Return the newest valid checkpoint or None, and what is wrong with each one that was skipped.

    Args: below: only checkpoints before this step; None: all.
    Raises: NoValidCheckpointError: there are checkpoints, but none is valid.
    """
    skipped = [f"{path}: not a checkpoint of this program" for path in foreign_folders(folder)]
    candidates = [path for step, path in list_checkpoints(folder) if below is None or step < below]
    for checkpoint in candidates:
        problem = find_damage(checkpoint)
        if problem is None:
            return checkpoint, skipped
        skipped.append(f"{checkpoint}: {problem}")
    if candidates:
        raise NoValidCheckpointError(
            f"no checkpoint can be used: {'; '.join(skipped)}. To start from step 0, move {folder} away."
        )
    return None, skipped


def foreign_folders(folder: Path) -> list[Path]:
    """Return the folders beside the checkpoints that another program made or someone renamed."""
    folders = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    return [path for path in folders if not NAME.fullmatch(path.name.removesuffix(".replaced"))]


def load_state(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def newest_state(run: Path) -> dict | None:
    """Return the state of a run's newest checkpoint, or what was kept of it in the run folder; None if there is none.

    run_recipe.py keeps that of members, whose checkpoints it deletes.
    """
    checkpoints = list_checkpoints(run / "checkpoints")
    if checkpoints:
        return load_state(checkpoints[0][1])
    return load_state(run) if (run / "state.json").exists() else None


class StoredTensors:
    """The tensors in a checkpoint's files of one stem (`model` or `optimizer`); opened by a `with` block."""

    def __init__(self, checkpoint: Path, stem: str):
        pattern = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.safetensors")
        self.paths = sorted(path for path in checkpoint.iterdir() if pattern.fullmatch(path.name))
        self.parts: dict[str, list[tuple]] = {}  # name -> (file, offset, shape of the part, shape of the whole)

    def __enter__(self) -> "StoredTensors":
        self.stack = ExitStack()
        for path in self.paths:
            try:
                file = self.stack.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise RecipeError(f"{path}: no safetensors file: {error}") from error
            places = json.loads((file.metadata() or {}).get("places", "{}"))
            for name in file.keys():  # noqa: SIM118 (no mapping)
                shape = tuple(file.get_slice(name).get_shape())
                offset, whole = places.get(name, [(0,) * len(shape), shape])
                self.parts.setdefault(name, []).append((file, tuple(offset), shape, tuple(whole)))
        return self

    def __exit__(self, *_) -> None:
        self.stack.close()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.parts[name][0][3]

    def read(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """Return the part of a tensor at `offset` with `shape`, assembled from the files.

        Raises: RecipeError: the files hold only some of it, or it holds NaN or infinity.
        """
        values = None
        covered = 0
        for file, part_offset, part_shape, _ in self.parts[name]:
            if (part_offset, part_shape) == (offset, shape):
                values, covered = file.get_tensor(name), math.prod(shape)
                break
            bounds = [
                (max(a, b), min(a + size, b + other))
                for a, size, b, other in zip(offset, shape, part_offset, part_shape, strict=True)
            ]
            if any(first >= last for first, last in bounds):
                continue
            source = tuple(slice(first - b, last - b) for (first, last), b in zip(bounds, part_offset, strict=True))
            piece = file.get_slice(name)[source]
            if values is None:
                values = torch.empty(shape, dtype=piece.dtype)
            values[tuple(slice(first - a, last - a) for (first, last), a in zip(bounds, offset, strict=True))] = piece
            covered += piece.numel()
        if covered != math.prod(shape):
            raise RecipeError(f"{self.paths[0].parent}: {name}: {covered} of {math.prod(shape)} values are there")
        if values is not None and values.is_floating_point() and not torch.isfinite(values).all():
            raise RecipeError(
                f"{self.paths[0].parent}: {name} holds NaN or infinity; set run.resume to an earlier checkpoint"
            )
        return values if values is not None else torch.empty(shape)

    def read_like(self, name: str, like: Tensor) -> Tensor:
        """Return a stored tensor on the device of `like`, divided as `like` is.

        Raises: RecipeError: the tensor is missing or has another shape.
        """
        if name not in self.parts:
            raise RecipeError(f"{self.paths[0].parent}: {name} is missing")
        if self.shape(name) != tuple(like.shape):
            raise RecipeError(
                f"{self.paths[0].parent}: {name} has shape {self.shape(name)}, the model's is {tuple(like.shape)}"
            )
        if not isinstance(like, DTensor):
            return self.read(name, (0,) * like.ndim, tuple(like.shape)).to(like.device)
        size, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
        local = self.read(name, tuple(offset), tuple(size)).to(like.device)
        return DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )


def load_tensors(checkpoint: Path, stem: str) -> dict[str, Tensor]:
    """Return name -> whole tensor of the files of a stem (`model` or `optimizer`)."""
    with StoredTensors(checkpoint, stem) as stored:
        return {name: stored.read(name, (0,) * len(stored.shape(name)), stored.shape(name)) for name in stored.parts}
