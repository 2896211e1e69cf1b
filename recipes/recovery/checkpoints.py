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
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from atomic_files import discard, file_sha256, read_json, sync, write_json
from recipe_config import RecipeError
from recovery.agreement import from_main
from recovery.stored_tensors import (
    CHECKPOINT_FORMAT,
    PROGRAM,
    Part,
    describe_places,
    find_damage,
    list_checkpoints,
    part_name,
)


PART_SECONDS = 600.0  # how long the first process waits for the files of the others


class DiskFullError(RecipeError):
    """There is no room for a checkpoint; those before it are as they were."""


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
