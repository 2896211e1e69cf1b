# SPDX-License-Identifier: Apache-2.0
"""What a machine can lack while a script runs, and what to do about it: room, memory, files, permissions."""

import errno
import os


LESS_MEMORY = {
    "prepare_data.py": "set data.workers lower, which divides the memory among fewer processes",
    "train_tokenizer.py": "set tokenizer.max_train_bytes lower",
    "tokenize_corpus.py": "set data.workers lower, which divides the memory among fewer processes",
    "pretrain.py": "set training.per_device_train_batch_size lower, which changes no result, or "
    "training.gradient_checkpointing: true",
    "run_eval.py": "set evaluation.batch_size lower",
}
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_MEMORY = ("can't allocate memory", "can't start new thread")  # torch, Python
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain_limit(error: BaseException, script: str) -> str | None:
    """Return what the machine lacks and what to do; None if the error, and what led to it, are of another kind."""
    errors = [error]
    while found := errors[-1].__cause__ or errors[-1].__context__:
        errors.append(found)
    for error in errors:
        code, text = getattr(error, "errno", None), str(error)
        # Libraries in Rust and C++ raise errors of their own with the system's words.
        if code in FULL or any(os.strerror(full) in text for full in FULL):
            return f"the disk is full: {text}; make room there, and the same command resumes"
        if code in REFUSED and error.filename:
            return (
                f"{error.filename} cannot be used: {error.strerror}; correct its owner or mode, or set another "
                "run.output_dir"
            )
        if code in (errno.EMFILE, errno.ENFILE):
            return f"too many files are open: {text}; raise the limit by `ulimit -n 4096`, and start again"
        if isinstance(error, MemoryError) or code == errno.ENOMEM or any(words in text for words in NO_MEMORY):
            return f"memory ran out ({text or 'MemoryError'}); {lower_memory(script)}, and the same command resumes"
    return None


def lower_memory(script: str) -> str:
    """Return which key to set so that a script takes less memory."""
    return LESS_MEMORY.get(script, "use a machine with more of it")
