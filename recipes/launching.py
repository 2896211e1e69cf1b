# SPDX-License-Identifier: Apache-2.0
"""The `accelerate launch` command for this machine: its launch file, number of processes and precision."""

import ipaddress
import os
import re
import socket
import subprocess
import sys
from glob import glob
from pathlib import Path

from atomic_files import file_sha256, read_json
from recipe_config import Recipe, RecipeError
from recipe_loading import read_yaml_file
from stages import ROOT


# CUDA of torch -> the oldest driver of its branch that runs it (NVIDIA's table of CUDA minor version compatibility).
LEAST_DRIVERS = {"12": "525", "13": "580"}
# What launchers set for the processes that they start: torchrun and Accelerate, Open MPI, MPICH and MVAPICH.
WORLD_SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
LAUNCHED = re.compile(
    r"(WORLD_SIZE|LOCAL_WORLD_SIZE|RANK|LOCAL_RANK|GROUP_RANK|ROLE_RANK|MASTER_ADDR|MASTER_PORT|"
    r"TORCHELASTIC_\w+|OMPI_COMM_WORLD_\w+|PMI_(SIZE|RANK)|MV2_COMM_WORLD_\w+)"
)
# The number of processes, by launcher -> what each of its processes has beside it. The first is torch's, whose names
# torchrun, Accelerate and accelerate_configs/slurm.sh set; Open MPI, MPICH and MVAPICH have names of their own.
PROCESSES = {
    "WORLD_SIZE": ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"),
    "OMPI_COMM_WORLD_SIZE": ("OMPI_COMM_WORLD_RANK",),
    "PMI_SIZE": ("PMI_RANK",),
    "MV2_COMM_WORLD_SIZE": ("MV2_COMM_WORLD_RANK",),
}
# What Accelerate's launcher sets from a launch file, and what it reads where the file leaves it out.
ACCELERATE = re.compile(r"(ACCELERATE|FSDP|FP8|MEGATRON_LM|PARALLELISM_CONFIG)_\w+")
CHOICES = ("ACCELERATE_USE_CPU", "ACCELERATE_LOG_LEVEL")  # of the user, for every launch file
NUMBERS = re.compile(
    r"(TORCH_COMPILE_DISABLE|TORCHDYNAMO_DISABLE|\w+_TF32_OVERRIDE|TORCH_\w*TF32\w*|CUBLAS_WORKSPACE_CONFIG)"
)


def clear_environment() -> None:
    """Remove what other jobs and launchers left in the environment of this process, and print what it removes.

    It also prints the variables that stay and decide on which device and how exactly training computes.

    Raises: RecipeError: the variables say that several processes were started, where this is the only one.
    """
    launched = {name: os.environ[name] for name in sorted(os.environ) if LAUNCHED.fullmatch(name)}
    if any(launched.get(name, "1") not in ("", "0", "1") for name in WORLD_SIZES):
        shown = " ".join(f"{name}={value}" for name, value in launched.items())
        raise RecipeError(
            f"the environment is that of one of several processes, {shown}; this command is one process, which starts "
            f"the others itself (--num_processes): unset {' '.join(launched)}"
        )
    left_over = {name for name in os.environ if ACCELERATE.fullmatch(name)} - {*CHOICES} | {*launched}
    for name in left_over:
        del os.environ[name]
    if left_over:
        print(f"note: removed from the environment, since accelerate_configs/ decides: {', '.join(sorted(left_over))}")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") and not processor_is_meant():
        print("note: CUDA_VISIBLE_DEVICES hides every GPU; ACCELERATE_USE_CPU=true says that the processor is meant")
    if deciding := deciding_environment():
        print(f"note: the environment changes how training computes: {', '.join(deciding)}")


def deciding_environment() -> list[str]:
    """Return the names of the variables that change how training computes, as read by torch and its libraries."""
    return sorted(name for name in os.environ if NUMBERS.fullmatch(name))


def refuse_lone_process() -> None:
    """Refuse an environment in which a launcher's variables are incomplete, as another job leaves them.

    This process would wait for others that nobody starts. Variables of one process are removed.

    Raises: RecipeError: with the variables; or each process would wait at a port of its own.
    """
    if os.environ.get("MASTER_PORT") == "0" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise RecipeError(
            "MASTER_PORT=0: each process would choose a port of its own and wait there for the others; launch with "
            "`torchrun --standalone`, or name a port"
        )
    for size, others in PROCESSES.items():
        given = {name: os.environ[name] for name in (size, *others) if os.environ.get(name)}
        ranks = [name for name in given if name.endswith("RANK")]
        missing = [name for name in (size, *others) if name not in given]
        if not missing:
            return
        if size not in given and not ranks:
            continue
        if given.get(size, "1") in ("0", "1") and all(given[name] == "0" for name in ranks):
            for name in given:
                del os.environ[name]
            continue
        shown = " ".join(f"{name}={value}" for name, value in given.items())
        raise RecipeError(
            f"{shown}: the environment says that this is one of several processes, but lacks {', '.join(missing)}; it "
            f"would wait for others that nobody starts: unset {' '.join(given)}, or use `accelerate launch` or "
            "`torchrun`"
        )


def refuse_unreachable_machine() -> None:
    """Refuse a machine whose own name stands for a loopback address, as Debian has it, where others must reach it.

    Gloo, by which processes agree also where NCCL averages their gradients, would wait for them until its timeout.

    Raises: RecipeError: with the name, its address and what to set.
    """
    launched = int(os.environ.get("WORLD_SIZE") or 1)
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or launched)
    if here >= launched or os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None)[0][4][0]
        reachable = not ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except OSError:
        address, reachable = "no address", False
    if not reachable:
        raise RecipeError(
            f"this machine's name {name} stands for {address}, where the processes of other machines cannot reach it; "
            "correct /etc/hosts, or set GLOO_SOCKET_IFNAME to the network between the machines (`ip -brief address`)"
        )


def has_gpu() -> bool:
    """Return whether torch sees a GPU, asked in another process: importing torch here would take seconds."""
    return ask_probe("torch sees a GPU", "import torch; print(torch.cuda.is_available())", "that you choose")


def ask_probe(question: str, code: str, file: str) -> bool:
    """Return what a line of Python prints in another process, True or False.

    Args:
        question: what is asked, for the message.
        code: the line.
        file: which launch file makes the question needless, for the message.

    Raises: RecipeError: the process ended without an answer, which is not a no.
    """
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    answer = ended.stdout.strip().rpartition("\n")[2]
    if ended.returncode or answer not in ("True", "False"):
        reason = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise RecipeError(
            f"whether {question} is not known: the process that was asked ended with status {ended.returncode} "
            f"({reason}). Start again, or decide it by --accelerate_config with a file of accelerate_configs/ {file}"
        )
    return answer == "True"


def device_files() -> list[str]:
    """Return the files under which the system offers GPUs, whether or not torch can use them."""
    return sorted(glob("/dev/nvidia[0-9]*") + glob("/dev/kfd"))


def why_no_gpu() -> str | None:
    """Return torch's reason why it sees no GPU, and the driver that it needs; None if it sees one."""
    import torch  # only here: importing it takes seconds

    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
        reason = f"torch {torch.__version__} sees no device; is CUDA_VISIBLE_DEVICES empty?"
    except (RuntimeError, AssertionError) as error:
        reason = f"torch {torch.__version__}: {str(error).strip().splitlines()[0].rstrip('.')}"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"{reason}; install the torch of https://pytorch.org that is for your GPU"
    driver = LEAST_DRIVERS.get((torch.version.cuda or "").partition(".")[0])
    return f"{reason}; CUDA {torch.version.cuda} needs NVIDIA driver {driver} or newer" if driver else reason


def processor_is_meant() -> bool:
    """Return whether ACCELERATE_USE_CPU says so, in one of Accelerate's spellings."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("y", "yes", "t", "true", "on", "1")


def refuse_silent_cpu(device_type: str) -> None:
    """Refuse to train on the processor where GPUs were asked for, or are there.

    ACCELERATE_USE_CPU says whether the processor is meant: the launcher sets it as the launch file says, or leaves it
    out where it starts a process for each GPU.

    Raises: RecipeError: with torch's reason.
    """
    if device_type != "cpu" or processor_is_meant():
        return
    files, asked = device_files(), bool(os.environ.get("ACCELERATE_USE_CPU")) or "LOCAL_RANK" in os.environ
    if not files and not asked:
        return
    because = f"this machine has {files[0]}" if files else "the launch file asks for GPUs"
    raise RecipeError(
        f"training would run on the processor, although {because}: {why_no_gpu()}. To train on the processor all the "
        "same, use accelerate_configs/cpu.yaml, or set ACCELERATE_USE_CPU=true"
    )


def has_fast_bf16(recipe: Recipe) -> bool:
    """Return whether this processor takes a step of the recipe's model faster in bf16 than in fp32, measured.

    Neither its flags nor a matrix product predict it: a model is products, attention and casts.
    """
    model = recipe.model.model_dump_json(), recipe.tokenizer.vocab_size, recipe.training.sequence_length
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
        f"from model.precision import is_faster_in_bf16; print(is_faster_in_bf16(*{model!r}))"
    )
    return ask_probe("this processor is faster in bf16", code, "with mixed_precision: no")


def newest_precision(run: Path) -> str | None:
    """Return the precision in which a run folder's newest checkpoint was computed; None if there is none that says."""
    checkpoints = sorted((run / "checkpoints").glob("step_" + 8 * "[0-9]"), reverse=True)
    return next((found for checkpoint in checkpoints if (found := stored_precision(checkpoint))), None)


def stored_precision(checkpoint: Path) -> str | None:
    """Return the precision in which a checkpoint was computed, "bf16" or "no".

    None if its state.json is damaged, does not say, as in earlier versions, or names one that few devices have.
    """
    try:
        recorded = read_json(checkpoint / "manifest.json")["files"]["state.json"]["sha256"]
        if file_sha256(checkpoint / "state.json") != recorded:
            return None
        found = read_json(checkpoint / "state.json")["computing"][-1]["mixed_precision"]
    except (OSError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return found if found in ("bf16", "no") else None


def read_launch_file(path: Path) -> dict:
    """Return the keys of a launch file. Raises: RecipeError: it cannot be read, or is no mapping."""
    if not path.is_file():
        raise RecipeError(f"--accelerate_config {path}: no such file; take one of accelerate_configs/")
    settings, _ = read_yaml_file(path)
    if not isinstance(settings, dict):
        raise RecipeError(f"{path}: a launch file is a mapping of Accelerate's keys, got {type(settings).__name__}")
    return settings


def whole_number(value: object, name: str) -> int:
    """Return a number of processes or machines. Raises: RecipeError: it is none."""
    if not str(value).isdecimal() or int(value) < 1:
        raise RecipeError(f"{name}={value}: expected a whole number of at least 1")
    return int(value)


def launch_command(
    recipe: Recipe, accelerate_config: Path | None, num_processes: str | None, kept: str | None = None
) -> list[str]:
    """Return the `accelerate launch` command up to the script.

    Args:
        recipe: whose model decides the precision of a processor.
        accelerate_config: launch file; None takes single_gpu.yaml or cpu.yaml, and plain options where there is no
            accelerate_configs/ folder.
        num_processes: overrides the file's number of processes; None keeps it.
        kept: the precision that this run was trained in so far, "bf16" or "no". Only a launch file that was chosen
            says otherwise, which training then refuses; on a processor bf16 means the faster one, so it is kept there
            too. None measures which that is.

    Raises: RecipeError: the file cannot be read, or states no number of processes, or several in a way that Accelerate
        ignores; or there is a GPU that torch cannot use.
    """
    # -P: no module is taken from the working folder, where a torch.py or numpy.py may lie.
    command = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--quiet"]
    chosen = accelerate_config is not None
    if not chosen:
        on_gpu = not processor_is_meant() and has_gpu()
        if not on_gpu:
            refuse_silent_cpu("cpu")
        accelerate_config = ROOT / "accelerate_configs" / ("single_gpu.yaml" if on_gpu else "cpu.yaml")
        if not accelerate_config.exists():
            home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
            # os.path's, as Accelerate: Path's raises where there is neither HOME nor an account, as in a container.
            for default in Path(os.path.expanduser(home)).glob("accelerate/default_config.*"):
                raise RecipeError(
                    f"{default}: without {accelerate_config.parent} Accelerate would train as this file says; copy "
                    "accelerate_configs/ too, name a file with --accelerate_config, or move this one away"
                )
            plain = ["--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no"]
            precision = kept or ("bf16" if on_gpu or has_fast_bf16(recipe) else "no")
            return [*command, *plain, "--mixed_precision", precision, *([] if on_gpu else ["--cpu"])]
    settings = read_launch_file(accelerate_config)
    processes = settings.get("num_processes")
    if num_processes is not None:
        processes = whole_number(num_processes, "--num_processes")
    elif processes is not None:
        processes = whole_number(processes, f"{accelerate_config}: num_processes")
    machines = whole_number(settings.get("num_machines", 1), f"{accelerate_config}: num_machines")
    several = (processes or 1) > 1 or machines > 1
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
    if processes is None:
        raise RecipeError(f"{accelerate_config}: num_processes is not set; add --num_processes N, one for each device")
    command += ["--config_file", str(accelerate_config), "--num_processes", str(processes)]
    if "OMP_NUM_THREADS" not in os.environ:  # the launcher would choose the same, with a warning
        command += ["--num_cpu_threads_per_process", str(max(1, os.cpu_count() // processes))]
    on_cpu = settings.get("use_cpu") or processor_is_meant()
    stated = settings.get("mixed_precision")
    measured = on_cpu and stated == "bf16"
    if kept is None and measured and not has_fast_bf16(recipe):
        print("note: this processor is faster in fp32 than in bf16; training in fp32")
        command += ["--mixed_precision", "no"]
    elif kept not in (None, stated) and (measured or not chosen):
        print(f"note: training continues in {'fp32' if kept == 'no' else kept}, as it began")
        command += ["--mixed_precision", kept]
    return command


def evaluation_command(launch: list[str]) -> list[str]:
    """Return what runs the evaluation: training's launch_command, or on one processor Python, which starts sooner."""
    on_cpu = processor_is_meant() or "--cpu" in launch
    on_cpu = on_cpu or any(Path(word).name == "cpu.yaml" for word in launch)
    return [sys.executable] if on_cpu and launch[launch.index("--num_processes") + 1] == "1" else launch
