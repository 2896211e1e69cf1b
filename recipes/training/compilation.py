# SPDX-License-Identifier: Apache-2.0
"""Whether training is compiled, and why not where the recipe asks for it."""

import os
import shutil
import struct
import subprocess
import sysconfig
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch._inductor.runtime.cache_dir_utils import cache_dir

from recipe_config import Training


# Of a 64-bit ELF file: where the section headers begin, the bytes of one, and their number.
ELF_HEADER = struct.Struct("<40sQ10xHH2x")
WRITING_SECONDS = 5.0  # longer than a linker takes to write a library


def decide_compilation(training: Training, accelerator: Accelerator) -> tuple[bool, str | None]:
    """Return whether training is compiled, and a note if training.torch_compile cannot be followed."""
    if not training.torch_compile:
        return False, None
    if missing := find_missing_compiler():
        return False, f"training runs uncompiled, which takes longer: {missing}"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return False, "training runs uncompiled: DeepSpeed fetches weights in hooks of each module"
    removed = remove_broken_libraries()
    return True, f"removed {removed} half-written libraries of torch.compile's cache" if removed else None


def find_missing_compiler() -> str | None:
    """Return what torch.compile lacks on this machine and how to install it, or None: a line is compiled."""
    compiler, include = os.environ.get("CXX", "g++"), sysconfig.get_path("include")
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}) is on the PATH; install it with: apt-get install g++"
    if not (Path(include) / "Python.h").exists():
        return f"{include}/Python.h is missing; install it with: apt-get install python3-dev"
    with TemporaryDirectory() as folder:
        source, library = Path(folder) / "line.cpp", Path(folder) / "line.so"
        source.write_text("#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n")
        command = [compiler, "-shared", "-fPIC", "-fopenmp", source, "-o", library]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"{compiler} does not work ({tried.stderr.strip().splitlines()[-1:] or tried.returncode}); reinstall it"
    return None


def remove_broken_libraries() -> int:
    """Remove libraries that a killed compiler left half written in torch.compile's cache, and return how many.

    They would be loaded, and end every later run of the same shapes. Another run may be writing one at this moment.
    """
    removed = 0
    for path in Path(cache_dir()).rglob("*.so"):
        with suppress(FileNotFoundError):  # another process of this machine removes them too
            if time.time() - path.stat().st_mtime > WRITING_SECONDS and not is_whole_library(path):
                path.unlink()
                removed += 1
    return removed


def is_whole_library(path: Path) -> bool:
    """Return whether an ELF library has its section headers, which a linker writes at the end of the file."""
    with path.open("rb") as file:
        header = file.read(ELF_HEADER.size)
    if len(header) < ELF_HEADER.size or not header.startswith(b"\x7fELF"):
        return False
    _, offset, entry_bytes, entries = ELF_HEADER.unpack(header)
    return offset > 0 and offset + entry_bytes * entries <= path.stat().st_size
