# SPDX-License-Identifier: Apache-2.0
"""Whether training is compiled, and why not where the recipe asks for it."""

import os
import shutil
import sysconfig
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType

from recipe_config import Training


def decide_compilation(training: Training, accelerator: Accelerator) -> tuple[bool, str | None]:
    """Return whether training is compiled, and a note if training.torch_compile cannot be followed."""
    if not training.torch_compile:
        return False, None
    if missing := find_missing_compiler():
        return False, f"training runs uncompiled, at about half the speed: {missing}"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return False, "training runs uncompiled: DeepSpeed fetches weights in hooks of each module"
    return True, None


def find_missing_compiler() -> str | None:
    """Return what torch.compile lacks on this machine and how to install it, or None."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "no C++ compiler (g++) is on the PATH; install it with: apt-get install g++"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"{header} is missing; install it with: apt-get install python3-dev"
    return None
