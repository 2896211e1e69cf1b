# SPDX-License-Identifier: Apache-2.0
"""A mock Slurm: sbatch, squeue, sacct and scancel run job arrays as local processes; srun and scontrol serve a job
that a test itself runs.

Installed under those names in a folder of the PATH, which also holds the state: `jobs/<id>/script`, and
`jobs/<id>/<index>` with the state of an element. `silent` holds how many more times squeue does not answer; with
`forgotten`, squeue lists no job that has ended, as Slurm does after some minutes. `ends` names an element that ends
while it runs: `killed 3`, `timeout 7`, or `requeued 2`, which is started again and then lost with its node.
"""

import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


FOLDER = Path(sys.argv[0]).parent
JOBS = FOLDER / "jobs"
STATES = {0: "COMPLETED", -signal.SIGKILL: "OUT_OF_MEMORY", 128 + signal.SIGKILL: "OUT_OF_MEMORY"}


def install(folder: Path) -> Path:
    """Write the commands to a folder, and return it."""
    folder.mkdir()
    for name in ("sbatch", "squeue", "sacct", "scancel", "srun", "scontrol"):
        (folder / name).write_text(f"#!{sys.executable} -IS\n{Path(__file__).read_text()}")
        (folder / name).chmod(0o755)
    return folder


@contextmanager
def held() -> Iterator[None]:
    """Hold the states of all elements, so that none changes between a look at it and the change that follows."""
    with (FOLDER / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def options(words: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.removeprefix("--").partition("=") for word in words)}


def sbatch(words: list[str]) -> None:
    given = options(words)
    if given.get("partition") == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    if "test-only" in given:
        return
    text = Path(words[-1]).read_text()
    directives = [shlex.split(line.removeprefix("#SBATCH "))[0] for line in re.findall("^#SBATCH .*", text, re.M)]
    JOBS.mkdir(exist_ok=True)
    job = str(100 + len(list(JOBS.iterdir())))
    (JOBS / job).mkdir()
    (JOBS / job / "script").write_text(text)
    settings = options(directives)
    (JOBS / job / "name").write_text(settings["job-name"])
    first, last, limit = re.fullmatch(r"(\d+)-(\d+)(?:%(\d+))?", settings["array"]).groups()
    for index in range(int(first), int(last) + 1):
        (JOBS / job / str(index)).write_text("PENDING")
    environment = os.environ | dict(word.split("=") for word in given["export"].split(",") if "=" in word)
    command = [sys.executable, "-IS", FOLDER / "sbatch", "run", job, limit or "1000", settings["output"]]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(command, env=environment, start_new_session=True, cwd="/", **quiet)
    sys.stdout.write(f"Submitted batch job {job}" + "\n")


def run(words: list[str]) -> None:
    """Run the elements of a job, up to the limit at a time."""
    job, limit, output = words
    running: dict[int, subprocess.Popen] = {}
    while True:
        with held():
            if not advance(job, int(limit), output, running):
                return
        time.sleep(0.05)


def advance(job: str, limit: int, output: str, running: dict[int, subprocess.Popen]) -> bool:
    """Note which elements have ended, start the next, and return whether any is left."""
    states = {int(file.name): file.read_text() for file in (JOBS / job).iterdir() if file.name.isdigit()}
    for index, process in list(running.items()):
        if states[index] == "CANCELLED" and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.poll() is not None:
            if states[index] != "CANCELLED":
                (JOBS / job / str(index)).write_text(STATES.get(process.returncode, "FAILED"))
            del running[index]
    end_as_asked(job, states, running)
    waiting = sorted(index for index, state in states.items() if state == "PENDING")
    for index in waiting[: limit - len(running)]:
        (JOBS / job / str(index)).write_text("RUNNING")
        environment = os.environ | {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(index)}
        with open(output.replace("%A", job).replace("%a", str(index)), "wb") as log:
            command = ["bash", JOBS / job / "script"]
            running[index] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    return bool(waiting or running)


def end_as_asked(job: str, states: dict[int, str], running: dict[int, subprocess.Popen]) -> None:
    """End the element that `ends` names, once it runs."""
    wanted = (FOLDER / "ends").read_text().split() if (FOLDER / "ends").exists() else []
    if not wanted or (index := int(wanted[1])) not in running or states[index] != "RUNNING":
        return
    os.killpg(running.pop(index).pid, signal.SIGKILL)
    again = wanted[0] == "requeued"
    state = {"killed": "OUT_OF_MEMORY", "timeout": "TIMEOUT", "requeued": "PENDING", "again": "NODE_FAIL"}[wanted[0]]
    states[index] = state
    (JOBS / job / str(index)).write_text(state)
    (FOLDER / "ends").write_text(f"again {index}") if again else (FOLDER / "ends").unlink()


def elements() -> list[tuple[Path, Path, str]]:
    """Return each element's job, file and state; a job that sbatch is still writing has none."""
    jobs = [job for job in JOBS.glob("*") if (job / "name").exists()]
    return [(job, file, file.read_text()) for job in jobs for file in job.iterdir() if file.name.isdigit()]


def squeue(words: list[str]) -> None:
    silent = FOLDER / "silent"
    if silent.exists() and (left := int(silent.read_text())):
        silent.write_text(str(left - 1))
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    given = options(words)
    assert given["format"] == "%F|%K|%T|%r" and "me" in given and given["states"] == "all", words
    for job, file, state in elements():
        forgotten = (FOLDER / "forgotten").exists() and state not in ("PENDING", "RUNNING")
        if not forgotten and (job / "name").read_text() == given["name"]:
            sys.stdout.write(f"{job.name}|{file.name}|{state}|{'Resources' if state == 'PENDING' else 'None'}" + "\n")


def sacct(words: list[str]) -> None:
    for job, file, state in elements():
        if job.name in options(words)["jobs"].split(","):
            sys.stdout.write(f"{job.name}_{file.name}|{state}{' by 1000' if state == 'CANCELLED' else ''}" + "\n")


def srun(words: list[str]) -> None:
    """Replace this process by the task, as a step on one node."""
    command = [word for word in words if not word.startswith(("--n", "--cpus-per-task="))]
    (FOLDER / "srun_options").write_text("\n".join(words[: len(words) - len(command)]))
    os.execvp(command[0], command)


def scontrol(words: list[str]) -> None:
    if words[0] == "requeue":
        with (FOLDER / "requeued").open("a") as file:
            file.write(words[1] + "\n")
    elif words[:2] == ["show", "hostnames"]:
        sys.stdout.write("localhost\n")


def scancel(words: list[str]) -> None:
    for job, file, state in elements():
        if job.name in words and state in ("PENDING", "RUNNING"):
            file.write_text("CANCELLED")


if __name__ == "__main__":
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    if words[:1] == ["run"]:
        run(words[1:])
    else:
        commands = {"sbatch": sbatch, "squeue": squeue, "sacct": sacct, "scancel": scancel, "scontrol": scontrol}
        if name == "srun":
            srun(words)
        with held():
            commands[name](words)
