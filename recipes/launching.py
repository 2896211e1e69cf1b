# SPDX-License-Identifier: Apache-2.0
"""The `accelerate launch` command for this machine: its launch file, number of processes and precision."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

from recipe_config import RecipeError
from stages import ROOT


def has_gpu() -> bool:
    """Return whether torch sees a GPU, asked in another process: importing torch here would take seconds."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@cache
def has_fast_bf16() -> bool:
    """Return whether the processor multiplies faster in bf16 than in fp32, measured in another process.

    Its flags do not predict it: with AMX bf16 is many times faster; AVX512-BF16 alone ran at half the rate of fp32.
    """
    code = "from planning.devices import measure_products as m; r = m(); sys.exit(r['bf16'] <= r['fp32'])"
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'recipes')!r}); {code}"
    return subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def launch_command(accelerate_config: Path | None, num_processes: str | None) -> list[str]:
    """Return the `accelerate launch` command up to the script.

    Args:
        accelerate_config: launch file; None takes single_gpu.yaml or cpu.yaml, and plain options where there is no
            accelerate_configs/ folder.
        num_processes: overrides the file's number of processes; None keeps it.

    Raises: RecipeError: the file states no number of processes, or several in a way that Accelerate ignores.
    """
    # -P: no module is taken from the working folder, where a torch.py or numpy.py may lie.
    command = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--quiet"]
    if accelerate_config is None:
        on_gpu = has_gpu()
        accelerate_config = ROOT / "accelerate_configs" / ("single_gpu.yaml" if on_gpu else "cpu.yaml")
        if not accelerate_config.exists():
            plain = ["--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no"]
            precision = "bf16" if on_gpu or has_fast_bf16() else "no"
            return [*command, *plain, "--mixed_precision", precision, *([] if on_gpu else ["--cpu"])]
    settings = YAML(typ="safe").load(accelerate_config.read_text(encoding="utf-8"))
    processes = int(num_processes or settings.get("num_processes") or 0)
    several = processes > 1 or settings.get("num_machines", 1) > 1
    ignored = [
        f"{key}: {settings[key]}"
        for key, value in (("distributed_type", "MULTI_CPU"), ("use_cpu", True))
        if settings.get(key) == value
    ]
    if several and ignored:
        raise RecipeError(
            f"{accelerate_config}: {', '.join(ignored)} with {processes} processes: Accelerate would start one "
            "without a warning. For several CPU processes set ACCELERATE_USE_CPU=true and use "
            "accelerate_configs/ddp.yaml (distributed_type: MULTI_GPU)."
        )
    if not processes:
        raise RecipeError(f"{accelerate_config}: num_processes is not set; add --num_processes N, one for each device")
    command += ["--config_file", str(accelerate_config), "--num_processes", str(processes)]
    if "OMP_NUM_THREADS" not in os.environ:  # the launcher would choose the same, with a warning
        command += ["--num_cpu_threads_per_process", str(max(1, os.cpu_count() // processes))]
    on_cpu = settings.get("use_cpu") or os.environ.get("ACCELERATE_USE_CPU") == "true"
    if on_cpu and settings.get("mixed_precision") == "bf16" and not has_fast_bf16():
        print("note: this processor is faster in fp32 than in bf16; training in fp32")
        command += ["--mixed_precision", "no"]
    return command
