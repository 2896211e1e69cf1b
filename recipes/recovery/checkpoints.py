# SPDX-License-Identifier: Apache-2.0
"""Writing checkpoints that are whole or absent.

A checkpoint is written to a hidden folder, synced and renamed; older ones are deleted only then. It is a folder
`step_00001000/` of safetensors files, `state.json` for everything else, and `manifest.json` with the experiment it
belongs to and the size and sha256 of each file, which resuming compares. Nothing in it is ever unpickled.

Each process writes the parts of tensors that it holds, with their offsets, so one process, DDP and FSDP2 write one
format and resume from each other's checkpoints. Training waits only for the copy to memory; a thread writes the files.
"""

import errno
import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from atomic_files import TRASH, discard, file_sha256, read_json, sync, with_checksum, write_json
from recipe_config import RecipeError
from recorded_files import appended_sizes, describe_beginning
from recovery.agreement import from_main
from recovery.stored_tensors import (
    CHECKPOINT_FORMAT,
    PROGRAM,
    Part,
    describe_places,
    list_checkpoints,
    part_name,
)
from recovery.tensor_files import write_hashed, write_tensors


PROBE_BYTES = 1 << 26


class DiskFullError(RecipeError):
    """There is no room for a checkpoint; earlier ones are unchanged."""


class Checkpoints:
    """Saves the checkpoints of a run, one at a time, in a thread.

    Args:
        folder: holds all checkpoints of the run.
        keep: number of newest checkpoints to keep, at least 2.
        keep_every_steps: checkpoints of multiples of this step are never deleted; None: only the newest are kept.
        identity: JSON values for the manifests, from describe_identity.
        accelerator: of the run.
        saved: called as saved(step, folder, seconds) on the first process, by the writing thread, after each save; the
            seconds are those of the copy to memory too.
        timeout_seconds: how long the first process waits for the files of the others.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_every_steps: int | None,
        identity: dict,
        accelerator: Accelerator,
        saved: Callable[[int, Path, float], None] = lambda *_: None,
        timeout_seconds: float = 600.0,
    ):
        self.folder, self.keep, self.keep_every_steps, self.identity = folder, keep, keep_every_steps, identity
        self.accelerator, self.saved, self.timeout_seconds = accelerator, saved, timeout_seconds
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        if accelerator.process_index == 0:
            clean_up(folder)  # now: a run that was killed in its last save makes no other

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
        """Copy tensors and state to memory and start writing them, once the checkpoint before is written.

        Args:
            step: optimizer steps done.
            tensors: file stem -> name -> tensor; the same names on all processes.
            state: JSON values.

        Raises:
            DiskFullError: there is no room for it.
            FloatingPointError: a tensor is not finite.
        """
        self.finish()
        self.started, rank = time.perf_counter(), self.accelerator.process_index
        parts = {stem: {name: Part(tensor) for name, tensor in named.items()} for stem, named in tensors.items()}
        refuse_not_finite(step, parts, self.accelerator)
        all_tensors = [tensor for named in tensors.values() for tensor in named.values()]
        sharded = any(isinstance(tensor, DTensor) for tensor in all_tensors)
        writers = self.accelerator.num_processes if sharded else 1
        partial = self.folder / f".step_{step:08d}.tmp"
        if rank == 0:
            self._make_folder(partial, step, sum(tensor.numel() * tensor.element_size() for tensor in all_tensors))
        if writers > 1:
            self.accelerator.wait_for_everyone()  # the folder exists and is empty
        if rank >= writers:
            return
        copies = {}
        for stem, named in parts.items():
            own = {
                name: part
                for name, part in named.items()
                if part.mine and (rank == 0 or isinstance(tensors[stem][name], DTensor))
            }
            copies[stem] = ({name: part.copy() for name, part in own.items()}, describe_places(own))
        state = json.loads(json.dumps(state))  # a copy: training changes it
        appended = appended_sizes(self.folder.parent)  # now: later lines are of later steps
        self.thread = threading.Thread(
            target=self._write, args=(step, partial, copies, state, appended, rank, writers)
        )
        self.thread.start()

    def _make_folder(self, partial: Path, step: int, num_bytes: int) -> None:
        try:
            clean_up(self.folder)
            partial.mkdir(parents=True)
            require_space(self.folder, num_bytes, f"the checkpoint of step {step}")
        except (OSError, DiskFullError) as error:
            raise self.explain(error) from error

    def check(self) -> None:
        """Raise the writing thread's error, if there is one."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def finish(self) -> None:
        """Wait until nothing is being written; raise the writing thread's error, if there is one."""
        self.wait()
        self.check()

    def _write(
        self, step: int, partial: Path, copies: dict, state: dict, appended: dict[str, int], rank: int, writers: int
    ) -> None:
        try:
            part = "" if writers == 1 else f"-{rank + 1:05d}-of-{writers:05d}"
            with ThreadPoolExecutor(len(copies)) as pool:
                entries = {
                    f"{stem}{part}.safetensors": pool.submit(
                        write_tensors,
                        partial / f"{stem}{part}.safetensors",
                        tensors,
                        {"format": "pt", "places": json.dumps(places)},
                    )
                    for stem, (tensors, places) in copies.items()
                }
            files = {name: entry.result() for name, entry in entries.items()}
            if rank > 0:
                write_json(partial / part_name(rank), files)
                return
            write_json(partial / "state.json", state)
            files["state.json"] = describe_file(partial / "state.json")
            for other in range(1, writers):
                files |= wait_for_files(partial / part_name(other), self.timeout_seconds)
            run = self.folder.parent
            for name in appended:
                sync(run / name)
            records = {name: describe_beginning(run / name, size) for name, size in appended.items()}
            final = commit(partial, step, files, self.identity | {"records": records})
            prune(self.folder, self.keep, self.keep_every_steps)
            self.saved(step, final, time.perf_counter() - self.started)
        except Exception as error:
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            self.error = self.explain(error)

    def explain(self, error: Exception) -> Exception:
        """Return an error that names the newest checkpoint and what to do, for one of the disk; others as they are."""
        full = isinstance(error, DiskFullError) or getattr(error, "errno", None) == errno.ENOSPC
        if not full and not isinstance(error, OSError):
            return error
        newest = next((path for _, path in list_checkpoints(self.folder)), None)
        left = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint yet"
        free = shutil.disk_usage(self.folder).free
        return (DiskFullError if full else RecipeError)(
            f"a checkpoint could not be written: {error}; {free:,} bytes are free in {self.folder}; {left}, and the "
            "same command resumes from it once " + ("there is room" if full else "the folder can be written")
        )


def describe_file(path: Path) -> dict:
    """Sync a file and return its entry in the manifest."""
    sync(path)
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def wait_for_files(path: Path, timeout_seconds: float) -> dict:
    """Wait for another process to list the files it wrote, and return their entries in the manifest."""
    deadline = time.monotonic() + timeout_seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise RecipeError(
                f"{path}: absent after run.timeout_seconds={timeout_seconds:g}; do all processes see this folder?"
            )
        time.sleep(0.02)
    entries = read_json(path)
    path.unlink()
    return entries


def commit(partial: Path, step: int, files: dict, identity: dict) -> Path:
    """Write the manifest and rename the folder to its final name."""
    manifest = {"program": PROGRAM, "format": CHECKPOINT_FORMAT, "step": step, **identity, "files": files}
    write_json(partial / "manifest.json", with_checksum(manifest))
    final = partial.with_name(f"step_{step:08d}")
    if final.exists():  # damaged, and skipped at the start
        discard(final)
    partial.rename(final)
    sync(final.parent)
    return final


def prune(folder: Path, keep: int, keep_every_steps: int | None) -> None:
    """Delete all checkpoints but the newest `keep` and those at multiples of `keep_every_steps`."""
    for step, old in list_checkpoints(folder)[keep:]:
        if keep_every_steps is None or step % keep_every_steps:
            discard(old)  # renamed first: an interrupted deletion leaves nothing that looks like a checkpoint


def clean_up(folder: Path) -> None:
    """Delete what killed processes left half-written or half-deleted."""
    for leftover in [*folder.glob(".step_*.tmp"), *folder.glob(f"{TRASH}*")]:
        if leftover.is_symlink():
            leftover.unlink()
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse a file system with less free space than needed, and 1 % to spare.

    Raises: DiskFullError: with both numbers.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes * 1.01 > free:
        raise DiskFullError(f"{what} needs {needed_bytes:,} bytes and {folder} has {free:,} free")


def refuse_full_disk(
    run: Path,
    keep: int,
    parameters: dict[str, int],
    accelerator: Accelerator,
    averaged: bool = False,
    in_muon: int = 0,
) -> int:
    """Refuse, before step 0, a disk without room for the checkpoints to keep, one more, and the model.

    Returns the bytes of a checkpoint.

    Args:
        run: the run folder.
        keep: number of newest checkpoints to keep.
        parameters: those in total, and those that are trained.
        accelerator: of the run.
        averaged: the weights are averaged, and both are kept.
        in_muon: of those trained, how many Muon steps.
    """
    size, models = checkpoint_bytes(parameters["trained"], averaged, in_muon), 2 if averaged else 1
    missing = max(1, keep + 1 - len(list_checkpoints(run / "checkpoints")))
    what = f"training ({missing} checkpoints of {size:,} bytes, and the model)"
    from_main(accelerator, lambda: require_space(run, missing * size + 4 * models * parameters["total"], what))
    return size


def checkpoint_bytes(trained: int, averaged: bool, in_muon: int) -> int:
    """Return the size of a checkpoint: what is trained in fp32, its average, and AdamW's two moments or Muon's one."""
    return (16 if averaged else 12) * trained - 4 * in_muon


def estimate_save_seconds(run: Path, num_bytes: int, accelerator: Accelerator) -> float:
    """Return how long a checkpoint takes to write, from a file of PROBE_BYTES that is written and deleted."""

    def measure() -> float:
        path, probe = run / ".write_rate.tmp", bytes(min(num_bytes, PROBE_BYTES))
        path.unlink(missing_ok=True)
        started = time.perf_counter()
        try:
            write_hashed(path, [memoryview(probe)])
        except OSError as error:
            raise RecipeError(f"{run} cannot be written, and checkpoints go there: {error}") from error
        finally:
            path.unlink(missing_ok=True)
        return (time.perf_counter() - started) * num_bytes / len(probe)

    return from_main(accelerator, measure)


def refuse_not_finite(step: int, parts: dict[str, dict[str, Part]], accelerator: Accelerator) -> None:
    """Refuse to save NaN or infinity.

    Raises: FloatingPointError: on every process, if a tensor of any holds one.
    """
    tensors = [part.local for named in parts.values() for part in named.values() if part.local.is_floating_point()]
    finite = torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all()
    if accelerator.reduce(finite.to(accelerator.device, torch.float32)).item() < accelerator.num_processes:
        names = [name for n in parts.values() for name, part in n.items() if not torch.isfinite(part.local).all()]
        raise FloatingPointError(
            f"step {step}: {', '.join(names[:3]) or 'a tensor of another process'} is not finite; nothing was saved"
        )
