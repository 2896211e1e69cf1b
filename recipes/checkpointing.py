# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole or absent: written beside, synced, renamed, verified, and only then older ones go.

A checkpoint is a folder `step_00001000/` with tensors as safetensors, everything else as `state.json`, and
`manifest.json` with what it belongs to and the size and sha256 of each file. Nothing in it is ever unpickled. The
newest valid one wins; one that is damaged is named and passed over.

A process writes its part of each tensor with the place of it in the whole, and reads what part of the whole it needs.
So one process, several with the whole model each (DDP) and several with a part each (FSDP2) save in one form, and go
on from each other's checkpoints. Training waits for the copy to memory only; files are written behind it.
"""

import errno
import json
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from process_agreement import from_main
from recipe_config import RecipeError
from run_folder import discard, file_sha256, read_json, sync, write_json


CHECKPOINT_FORMAT = 2
PROGRAM = "recipes/pretrain.py"
NAME = re.compile(r"step_(\d{8})")
PART_SECONDS = 600.0  # how long the first process waits for the files of the others


class NoValidCheckpointError(RecipeError):
    """There are checkpoints and none can be used; starting again from nothing would hide that."""


class DiskFullError(RecipeError):
    """There is no room for a checkpoint; those before it are as they were."""


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


class Checkpoints:
    """Saves the checkpoints of a run, one at a time, behind the training.

    Args:
        folder: of all checkpoints of the run.
        keep: how many of the newest to keep, at least 2.
        keep_every_steps: those of a multiple of so many steps are never deleted; None: there are none.
        identity: JSON values that say what the checkpoints belong to, for their manifests.
        accelerator: of the run.
        saved: called with (step, folder, seconds of writing) when one is in its place, on the first process, by the
            thread that writes.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_every_steps: int | None,
        identity: dict,
        accelerator: Accelerator,
        saved: Callable[[int, Path, float], None] = lambda *_: None,
    ):
        self.folder, self.keep, self.keep_every_steps, self.identity = folder, keep, keep_every_steps, identity
        self.accelerator, self.saved = accelerator, saved
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
        """Copy what is to be saved, and have it written; waits for the checkpoint before to be in its place.

        Args:
            step: optimizer steps done.
            tensors: file stem -> name -> tensor; all processes have the same names.
            state: JSON values.

        Raises:
            DiskFullError: there is no room for it.
            FloatingPointError: a tensor is not finite.
        """
        self.finish()
        rank, stems = self.accelerator.process_index, {}
        parts = {stem: {name: Part(tensor) for name, tensor in named.items()} for stem, named in tensors.items()}
        sharded = any(isinstance(tensor, DTensor) for named in tensors.values() for tensor in named.values())
        writers = self.accelerator.num_processes if sharded else 1
        refuse_not_finite(step, parts, self.accelerator)
        for stem, named in parts.items():
            stems[stem] = {
                name: part
                for name, part in named.items()
                if part.mine and (rank == 0 or isinstance(tensors[stem][name], DTensor))
            }
        partial = self.folder / f".step_{step:08d}.tmp"
        if rank == 0:
            needed = sum(t.numel() * t.element_size() for named in tensors.values() for t in named.values())
            try:
                clean_up(self.folder)
                partial.mkdir(parents=True)
                require_space(self.folder, needed, f"the checkpoint of step {step}")
            except (OSError, DiskFullError) as error:
                raise self.explain(error) from error
        if writers > 1:
            self.accelerator.wait_for_everyone()  # the folder is there, and empty
        if rank >= writers:
            return
        copies = {
            stem: ({name: part.copy() for name, part in named.items()}, describe_places(named))
            for stem, named in stems.items()
        }
        text = json.loads(json.dumps(state))  # as it is now
        self.thread = threading.Thread(target=self._write, args=(step, partial, copies, text, rank, writers))
        self.thread.start()

    def check(self) -> None:
        """Raise what went wrong behind the training, if anything did."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is in its place, or raise why it is not."""
        self.wait()
        self.check()

    def _write(self, step: int, partial: Path, copies: dict, state: dict, rank: int, writers: int) -> None:
        started = time.perf_counter()
        try:
            files = {}
            for stem, (tensors, places) in copies.items():
                name = f"{stem}.safetensors" if writers == 1 else f"{stem}-{rank + 1:05d}-of-{writers:05d}.safetensors"
                save_file(tensors, partial / name, metadata={"format": "pt", "places": json.dumps(places)})
                files[name] = describe_file(partial / name)
            if rank > 0:
                write_json(partial / part_name(rank), files)
                return
            write_json(partial / "state.json", state)
            files["state.json"] = describe_file(partial / "state.json")
            for other in range(1, writers):
                files |= take_part(partial / part_name(other))
            final = commit(partial, step, files, self.identity)
            prune(self.folder, self.keep, self.keep_every_steps)
            self.saved(step, final, time.perf_counter() - started)
        except Exception as error:
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            self.error = self.explain(error)

    def explain(self, error: Exception) -> Exception:
        """Turn an error of writing into one that says what is left and what to do."""
        full = isinstance(error, DiskFullError) or getattr(error, "errno", None) == errno.ENOSPC
        full = full or "No space left" in str(error)  # safetensors has no errno
        if not full and not isinstance(error, OSError):
            return error
        newest = next((path for _, path in list_checkpoints(self.folder)), None)
        left = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint yet"
        free = shutil.disk_usage(self.folder).free
        return (DiskFullError if full else RecipeError)(
            f"a checkpoint could not be written: {error}; {free:,} bytes are free in {self.folder}; {left}, and the "
            "same command goes on from it once " + ("there is room" if full else "the folder can be written")
        )


def part_name(rank: int) -> str:
    return f"part-{rank:05d}.json"


def describe_places(named: dict[str, Part]) -> dict[str, list]:
    """Return name -> [offset of the part, shape of the whole] of the parts that are not whole."""
    return {
        name: [list(part.offset), list(part.shape)]
        for name, part in named.items()
        if tuple(part.local.shape) != part.shape
    }


def describe_file(path: Path) -> dict:
    """Sync a file and return its entry in the manifest."""
    sync(path)
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def take_part(path: Path) -> dict:
    """Wait for another process to have written its files, and return their entries."""
    deadline = time.monotonic() + PART_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise RecipeError(f"{path}: not there after {PART_SECONDS:g} s; do all processes see this folder?")
        time.sleep(0.02)
    entries = read_json(path)
    path.unlink()
    return entries


def commit(partial: Path, step: int, files: dict, identity: dict) -> Path:
    """Write the manifest, give the folder its name and read it back."""
    manifest = {"program": PROGRAM, "format": CHECKPOINT_FORMAT, "step": step, **identity, "files": files}
    write_json(partial / "manifest.json", manifest)
    final = partial.with_name(f"step_{step:08d}")
    if final.exists():  # of an earlier try that was passed over as damaged
        discard(final)
    partial.rename(final)
    sync(final.parent)
    if problem := find_damage(final):
        raise OSError(errno.EIO, f"written and read back differ: {problem}", str(final))
    return final


def prune(folder: Path, keep: int, keep_every_steps: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and those of every so many steps."""
    for step, old in list_checkpoints(folder)[keep:]:
        if keep_every_steps is None or step % keep_every_steps:
            discard(old)  # renamed first: an interrupted deletion leaves nothing that looks like a checkpoint


def clean_up(folder: Path) -> None:
    """Delete what killed processes left half written or half deleted."""
    for leftover in [*folder.glob(".step_*.tmp"), *folder.glob(".trash.*")]:
        if leftover.is_symlink():
            leftover.unlink()
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Make sure that a file system has room, with a hundredth to spare.

    Raises: DiskFullError: it has not, with both numbers.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes * 1.01 > free:
        raise DiskFullError(f"{what} needs {needed_bytes:,} bytes and {folder} has {free:,} free")


def refuse_full_disk(run: Path, keep: int, parameters: int, accelerator: Accelerator) -> None:
    """Make sure before step 0 that there is room for the checkpoints, one beside those kept, and the model."""
    size = 12 * parameters  # the weights and AdamW's two moments, in fp32
    missing = max(1, keep + 1 - len(list_checkpoints(run / "checkpoints")))
    what = f"training ({missing} checkpoints of {size:,} bytes, and the model)"
    from_main(accelerator, lambda: require_space(run, missing * size + size // 3, what))


def refuse_not_finite(step: int, parts: dict[str, dict[str, Part]], accelerator: Accelerator) -> None:
    """Make sure that no checkpoint holds NaN or infinity.

    Raises: FloatingPointError: a tensor does, on every process.
    """
    tensors = [part.local for named in parts.values() for part in named.values() if part.local.is_floating_point()]
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all()
    if accelerator.reduce(finite.to(accelerator.device, torch.float32)).item() < accelerator.num_processes:
        names = [name for n in parts.values() for name, part in n.items() if not torch.isfinite(part.local).all()]
        raise FloatingPointError(
            f"step {step}: {', '.join(names[:3]) or 'a tensor of another process'} is not finite; nothing was saved"
        )


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


def check_replicas(model: nn.Module, accelerator: Accelerator) -> None:
    """Make sure that all copies of the weights are the same, bit for bit, before one of them is written down.

    Under DDP each process has a copy, under FSDP2 with replicas each group of processes.

    Raises: RuntimeError: they are not; the gradients were not averaged, or a device computes wrongly.
    """
    parameters = [parameter.detach() for parameter in model.parameters()]
    divided = next((parameter for parameter in parameters if isinstance(parameter, DTensor)), None)
    copies = accelerator.num_processes
    if divided is not None:  # the dimensions of the mesh that hold copies come first
        sizes = zip(divided.device_mesh.shape, divided.placements, strict=True)
        copies = math.prod(size for size, placement in sizes if placement.is_replicate())
    if copies == 1:
        return
    held = [parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in parameters]
    sums = torch.stack([one.view(torch.int32).sum(dtype=torch.int64) for one in held])
    of_processes = accelerator.gather(sums.unsqueeze(0))  # (num_processes, num_parameters)
    checksums = of_processes.view(copies, -1, len(sums)).sum(1)  # of the parts of a copy
    differing = (checksums != checksums[0]).any(dim=1).nonzero().flatten().tolist()
    if differing:
        groups = torch.arange(accelerator.num_processes).view(copies, -1)
        raise RuntimeError(
            f"processes {groups[0].tolist()} and {groups[differing].flatten().tolist()} hold different weights, so "
            "what they train is not one model; nothing was saved at this step. Go on from the last checkpoint, on "
            "other devices if it happens again."
        )


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight of the language model once, by the name it has in the exported model."""
    for name, parameter in model.named_parameters():
        yield plain_name(name).removeprefix("language_model."), parameter


def gather_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, dict[str, Tensor]]:
    """Collect weights, and optimizer state as `<parameter>.<key>`, for Checkpoints.save."""
    take_parts(model)
    moments = {
        f"{plain_name(name)}.{key}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return {"model": dict(named_weights(model)), "optimizer": moments}


def take_parts(model: nn.Module) -> None:
    """Have each process hold its part again where FSDP2 put some weights together.

    A pass without a backward one, as a validation's, leaves the outermost weights whole: they are other tensors then,
    which the optimizer has no state of.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def restore_tensors(checkpoint: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Load weights and optimizer state into a model and its optimizers, on any number of processes.

    Raises: RecipeError: a tensor is missing, has another shape or is not finite.
    """
    take_parts(model)
    with StoredTensors(checkpoint, "model") as stored, torch.no_grad():
        for name, parameter in named_weights(model):
            parameter.copy_(stored.read_like(name, parameter))
    owners = {parameter: o for o in optimizers for group in o.param_groups for parameter in group["params"]}
    with StoredTensors(checkpoint, "optimizer") as stored:
        keys: dict[str, list[str]] = {}
        for name in stored.parts:
            parameter, _, key = name.rpartition(".")
            keys.setdefault(parameter, []).append(key)
        for name, parameter in model.named_parameters():
            if parameter not in owners:  # not trained
                continue
            state = {}
            for key in keys.get(plain_name(name), []):
                stored_name = f"{plain_name(name)}.{key}"
                whole = stored.shape(stored_name) == tuple(parameter.shape)
                like = parameter if whole else torch.empty(stored.shape(stored_name), device=parameter.device)
                state[key] = stored.read_like(stored_name, like)
            if keys and not state:
                raise RecipeError(f"{checkpoint}: optimizer: the state of {plain_name(name)} is missing")
            owners[parameter].state[parameter] = state


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrapping and compiling a model put into it."""
    for added in ("_orig_mod.", "_checkpoint_wrapped_module."):
        name = name.replace(added, "")
    return name.removeprefix("module.")
