# SPDX-License-Identifier: Apache-2.0
"""What a machine can lack while a script runs, and what to do about it: room, memory, files, permissions."""

import errno
import math
import os
import re
from pathlib import Path


FEWER_WORKERS = (
    "set data.workers lower, which divides the memory among fewer processes, or where it is 1 use a machine with more"
)
LESS_MEMORY = {
    "prepare_data.py": FEWER_WORKERS,
    "train_tokenizer.py": "set tokenizer.max_train_bytes lower",
    "tokenize_corpus.py": FEWER_WORKERS,
    "pretrain.py": "set training.per_device_train_batch_size lower, which changes no result, or "
    "training.gradient_checkpointing: true",
    "run_eval.py": "set evaluation.batch_size lower",
    "audit_leaks.py": "run recipes/audit_leaks.py by itself with a --batch_size below 16",
    "finetune.py": "set finetune.per_device_train_batch_size lower",
}
FULL = (errno.ENOSPC, errno.EDQUOT)
# torch.save, which names no cause, and NumPy, which says "65536 requested and 60400 written"
NOT_WRITTEN = re.compile(r"iostream error|PytorchStreamWriter failed writing|^\d+ requested and \d+ written$")
# torch, Python, and C++, which means a thread where no file is named
NO_MEMORY = ("can't allocate memory", "can't start new thread", os.strerror(errno.EAGAIN), os.strerror(errno.ENOMEM))
SHARED = Path("/dev/shm")  # memory that processes share, small in a container
LEAST_SHARED_BYTES = 1 << 20
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain_limit(error: BaseException, script: str) -> str | None:
    """Return what the machine lacks and what to do; None if the error, and what led to it, are of another kind."""
    errors = [error]
    while found := errors[-1].__cause__ or errors[-1].__context__:
        errors.append(found)
    for error in errors:
        code, text = getattr(error, "errno", None), str(error)
        is_full = code in FULL and not error.filename and shared_bytes_left() < LEAST_SHARED_BYTES
        if is_full or "out of shared memory" in text:  # the words of torch, for the workers that read its batches
            return (
                f"{SHARED}, the memory that processes share, is full: {text}; make it larger, in a container by "
                "`--shm-size 8g`, or an emptyDir of medium Memory on Kubernetes, and the same command resumes"
            )
        # Libraries in Rust and C++ raise errors of their own with the system's words.
        if code in FULL or any(os.strerror(full) in text for full in FULL):
            return f"the disk is full: {text}; make room there, and the same command resumes"
        if NOT_WRITTEN.search(text):
            return f"a file could not be written, as on a full disk: {text}; make room, and the same command resumes"
        if code in REFUSED and error.filename:
            return (
                f"{error.filename} cannot be used: {error.strerror}; correct its owner or mode, or set another "
                "run.output_dir"
            )
        if code in (errno.EMFILE, errno.ENFILE):
            return f"too many files are open: {text}; raise the limit by `ulimit -n 4096`, and start again"
        in_words = code is None and any(words in text for words in NO_MEMORY)
        if isinstance(error, MemoryError) or code == errno.ENOMEM or in_words:
            return f"memory ran out ({text or 'MemoryError'}); {lower_memory(script)}, and the same command resumes"
    return None


def shared_bytes_left() -> float:
    """Return the room in /dev/shm; infinity where there is none."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return math.inf
    return found.f_bavail * found.f_frsize


def lower_memory(script: str) -> str:
    """Return which key to set so that a script takes less memory."""
    return LESS_MEMORY.get(script, "use a machine with more of it")
