# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints: which are there, which are damaged, and their tensors, whichever processes wrote them."""

import json
import math
import re
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
    """There are checkpoints and none can be used; starting again from nothing would hide that."""


class Part:
    """A part of a tensor that one process holds, and where in the whole it stands."""

    def __init__(self, tensor: Tensor):
        if isinstance(tensor, DTensor):
            self.shape = tuple(tensor.shape)
            size, self.offset = compute_local_shape_and_global_offset(
                tensor.shape, tensor.device_mesh, tensor.placements
            )
            # Where dimensions of the mesh hold copies, the first of each writes.
            coordinate = tensor.device_mesh.get_coordinate()
            copies = [
                at for at, placement in zip(coordinate, tensor.placements, strict=True) if not placement.is_shard()
            ]
            self.mine = not any(copies) and math.prod(size) > 0
            local = tensor.to_local()
        else:
            self.shape, self.offset, self.mine, local = tuple(tensor.shape), (0,) * tensor.ndim, True, tensor
        self.local = local.detach()

    def copy(self) -> Tensor:
        """Return the part in memory that training does not touch."""
        return torch.empty(self.local.shape, dtype=self.local.dtype, device="cpu").copy_(self.local)


def part_name(rank: int) -> str:
    return f"part-{rank:05d}.json"


def describe_places(named: dict[str, Part]) -> dict[str, list]:
    """Return name -> [offset of the part, shape of the whole] of the parts that are not whole."""
    return {
        name: [list(part.offset), list(part.shape)]
        for name, part in named.items()
        if tuple(part.local.shape) != part.shape
    }


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of everything named like a checkpoint, newest step first."""
    found = [(match, path) for path in folder.glob("step_*") if (match := NAME.fullmatch(path.name))]
    return sorted(((int(match[1]), path) for match, path in found), reverse=True)


def find_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None when every file is there with the recorded content."""
    try:
        if checkpoint.is_symlink():
            return "is a link, and checkpoints are not"
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        if manifest.get("program", PROGRAM) != PROGRAM:
            return f"manifest.json: of another program, {manifest['program']}"
        if manifest["format"] != CHECKPOINT_FORMAT:
            return f"manifest.json: format {manifest['format']}, this version reads {CHECKPOINT_FORMAT}"
        if f"step_{manifest['step']:08d}" != checkpoint.name:
            return f"manifest.json: of step {manifest['step']}"
        if "state.json" not in manifest["files"]:
            return "manifest.json: names no state.json"
        for name, recorded in manifest["files"].items():
            path = checkpoint / name
            if Path(name).name != name:
                return f"manifest.json: {name!r} is not the name of a file"
            if path.is_symlink() or not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != recorded["bytes"]:
                return f"{name}: {path.stat().st_size:,} bytes, {recorded['bytes']:,} in the manifest"
            if file_sha256(path) != recorded["sha256"]:
                return f"{name}: its sha256 is not the one in the manifest"
    except FileNotFoundError:
        return "manifest.json is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "manifest.json cannot be read"
    return None


def newest_checkpoint(folder: Path, below: int | None = None) -> tuple[Path | None, list[str]]:
    """Return the newest valid checkpoint, and what was wrong with those passed over.

    Args: below: only those of fewer steps; None: all.
    Raises: NoValidCheckpointError: when there are checkpoints but none is valid.
    """
    passed_over = [f"{path}: not a checkpoint of this program" for path in strangers(folder)]
    found = [path for step, path in list_checkpoints(folder) if below is None or step < below]
    for checkpoint in found:
        problem = find_damage(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint}: {problem}")
    if found:
        raise NoValidCheckpointError(
            "no checkpoint can be used: "
            + "; ".join(passed_over)
            + f". To start again from nothing, move {folder} away."
        )
    return None, passed_over


def strangers(folder: Path) -> list[Path]:
    """Return the folders among the checkpoints that are none: those of other programs, or renamed by hand."""
    folders = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    return [path for path in folders if not NAME.fullmatch(path.name.removesuffix(".replaced"))]


def load_state(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


class StoredTensors:
    """The tensors of a stem of a checkpoint, whichever processes wrote them; to be used in a `with` block."""

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
        """Return the part of a tensor that begins at `offset` and has `shape`, put together from the files.

        Raises: RecipeError: the files do not hold all of it, or it holds NaN or infinity.
        """
        found = None
        covered = 0
        for file, part_offset, part_shape, _ in self.parts[name]:
            if (part_offset, part_shape) == (offset, shape):
                found, covered = file.get_tensor(name), math.prod(shape)
                break
            bounds = [
                (max(a, b), min(a + size, b + other))
                for a, size, b, other in zip(offset, shape, part_offset, part_shape, strict=True)
            ]
            if any(first >= last for first, last in bounds):
                continue
            source = tuple(slice(first - b, last - b) for (first, last), b in zip(bounds, part_offset, strict=True))
            piece = file.get_slice(name)[source]
            if found is None:
                found = torch.empty(shape, dtype=piece.dtype)
            found[tuple(slice(first - a, last - a) for (first, last), a in zip(bounds, offset, strict=True))] = piece
            covered += piece.numel()
        if covered != math.prod(shape):
            raise RecipeError(f"{self.paths[0].parent}: {name}: {covered} of {math.prod(shape)} values are there")
        if found is not None and found.is_floating_point() and not torch.isfinite(found).all():
            raise RecipeError(
                f"{self.paths[0].parent}: {name} holds NaN or infinity; set run.resume to an earlier checkpoint"
            )
        return found if found is not None else torch.empty(shape)

    def read_like(self, name: str, like: Tensor) -> Tensor:
        """Return a tensor as this process holds it: whole, or the part that it holds of `like`.

        Raises: RecipeError: the stored tensor is not there or has another shape.
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
    """Return the whole tensors of a stem, whichever processes wrote them."""
    with StoredTensors(checkpoint, stem) as stored:
        return {name: stored.read(name, (0,) * len(stored.shape(name)), stored.shape(name)) for name in stored.parts}
