# SPDX-License-Identifier: Apache-2.0
"""The processes and devices that a run trains on, as Accelerate finds them, and what they lack."""

import ctypes
import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

from launching import refuse_lone_process, refuse_silent_cpu, refuse_unreachable_machine
from recipe_config import Recipe, RecipeError, Training


BUCKET_MB = 100  # of gradients that DDP averages at once; fp32 fills its own 25 with a layer or two
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Return the accelerator of the launch file, or of the environment where there is none.

    Raises: RecipeError: the launch file or the environment asks for what is not there, or for what would be ignored.
    """
    refuse_lone_process()
    refuse_unreachable_machine()
    available = [str(tracker) for tracker in get_available_trackers()]
    if absent := set(recipe.training.report_to) - set(available):  # Accelerate ignores them silently
        raise RecipeError(f"training.report_to: not installed: {', '.join(sorted(absent))}; pip install them")
    if (steps := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        raise RecipeError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps}: Accelerate would divide the gradient by it, and "
            "training.tokens_per_step decides the accumulation: unset it, or remove it from the launch file"
        )
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the name before torch 2.9, which would be read first
        # Batches of phases and evaluations differ in shape; fixed segments would leave gaps that fit none of them.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    ddp = DistributedDataParallelKwargs(
        gradient_as_bucket_view=True,  # the averaged gradients are the gradients: no copy, and no memory for one
        broadcast_buffers=False,  # the only buffers are RoPE's frequencies, the same on every process
        bucket_cap_mb=BUCKET_MB,
    )
    accelerator = Accelerator(
        log_with=recipe.training.report_to or None,
        project_dir=recipe.run.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.run.timeout_seconds)), ddp],
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next, in place of returning it to the system.

    Each step frees its activations and gradients, and every page that is taken anew is cleared first. A C library
    without mallopt stays as it is.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for setting in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            mallopt(setting, 2**31 - 1)


def check_devices(accelerator: Accelerator) -> str | None:
    """Refuse processes that would train alone, and a processor in place of a GPU; return a note on unused GPUs."""
    refuse_silent_cpu(accelerator.device.type)
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise RecipeError(
            f"{launched} processes were launched but Accelerate counts {accelerator.num_processes}: each would train "
            "alone. Use a file from accelerate_configs/; on CPUs launch with ACCELERATE_USE_CPU=true and ddp.yaml."
        )
    num_gpus = torch.cuda.device_count() if accelerator.device.type == "cuda" else 0
    if num_gpus > (used := int(os.environ.get("LOCAL_WORLD_SIZE", 1))):
        return (
            f"{used} of the {num_gpus} GPUs of this machine are used; for all of them launch with "
            f"accelerate_configs/ddp.yaml and --num_processes {num_gpus}"
        )
    return None


def explain_out_of_memory(
    error: torch.OutOfMemoryError, training: Training, accelerator: Accelerator, longest: int
) -> str:
    """Return what to change, and torch's own first sentence.

    Args:
        error: torch's.
        training: with the batch that was trained on, which may be smaller than the recipe's.
        accelerator: whose kind of division decides what helps.
        longest: sequence of a phase; a batch has room for one.
    """
    batch_size, torchs = training.per_device_train_batch_size, str(error).partition(". ")[0]
    smallest = longest // training.sequence_length
    remedies = [f"training.per_device_train_batch_size below {batch_size}"] if batch_size > smallest else []
    remedies += ["a shorter sequence_length in data.phases"] if batch_size <= smallest > 1 else []
    remedies += [] if training.gradient_checkpointing else ["training.gradient_checkpointing: true"]
    divided = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    remedies += ["more GPUs" if divided else "accelerate_configs/fsdp2.yaml, which divides the model among GPUs"]
    return f"out of memory: {torchs}. Use {', or '.join(remedies)}; the same command then resumes, with equal steps"
