# SPDX-License-Identifier: Apache-2.0
"""`data.executor: slurm`: submit each pipeline as a job array and wait for it.

The command keeps running where jobs can be submitted, until all jobs end, and does the steps between them. If it is
killed and started again, it finds its job in the queue by name and waits for it. datatrove's executor writes the job's
files, submits them and runs a task in the job. This module adds the waiting, and a script for paths with spaces.
"""

import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from datatrove.executor import SlurmPipelineExecutor
from loguru import logger

from atomic_files import write_json
from corpus.local_executor import RECIPES, TaskRunner
from recipe_config import Data, RecipeError


# Slurm's default limit is 1001; with more tasks, an element runs several.
MAX_ARRAY_ELEMENTS = 1000

LOOK_SECONDS = 1.0  # between two checks of the tasks' files
QUEUE_SECONDS = 20.0  # between two queries to the scheduler, so as not to slow it down
SILENCE_SECONDS = 3600.0  # how long the scheduler may fail to answer
UNSEEN_SECONDS = 120.0  # how long a finished task's files may be invisible here: NFS caches a listing for a minute
CANCEL_SECONDS = 120.0  # how long to wait for cancelled tasks

REMEDIES = {  # by final state of a failed element of an array
    "BOOT_FAIL": "start the command again",
    "CANCELLED": "someone or the cluster cancelled it; start the command again to resume",
    "DEADLINE": "raise the deadline in data.slurm.options",
    "FAILED": "see its log",
    "NODE_FAIL": "start the command again",
    "OUT_OF_MEMORY": "raise data.slurm.mem_per_cpu_gib",
    "PREEMPTED": "start the command again",
    "TIMEOUT": "raise data.slurm.time",
}
HELD_FOR_GOOD = "launch failed requeued held"  # reason of an element that no node could start


class Element(NamedTuple):
    """One element of a job array, as the scheduler reports it."""

    job: str
    index: str
    state: str
    reason: str = ""

    @property
    def failed(self) -> bool:
        return self.state in REMEDIES or self.reason == HELD_FOR_GOOD

    @property
    def alive(self) -> bool:
        return not self.failed and self.state != "COMPLETED"


class SlurmExecutor(TaskRunner, SlurmPipelineExecutor):
    """Run tasks as a job array of one core an element, and wait for it."""

    def __init__(self, data: Data, pipeline: list, tasks: int, folder: Path, description: str):
        logger.disable("datatrove")
        identity = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]
        super().__init__(
            pipeline,
            tasks,
            time=data.slurm.time,
            partition=data.slurm.partition,
            mem_per_cpu_gb=data.slurm.mem_per_cpu_gib,
            workers=min(data.workers, tasks) if data.workers else -1,
            tasks_per_job=math.ceil(tasks / MAX_ARRAY_ELEMENTS),
            job_name="-".join([*re.findall(r"\w+", description), identity]),
            job_id_retriever=first_number,
            qos=None,
            sbatch_args=data.slurm.options,
            logging_dir=str(folder),
            requeue_signals=None,
        )
        self.description = description
        self.failures = folder.absolute() / "failures"

    @staticmethod
    def check(data: Data) -> None:
        """Check that the scheduler would accept a job with the recipe's settings.

        Raises: RecipeError: it would not, or its commands are missing.
        """
        missing = [command for command in ("sbatch", "squeue", "scancel") if shutil.which(command) is None]
        if missing:
            raise RecipeError(
                f"data.executor: slurm: no {', '.join(missing)} on the PATH; start the command on a node that can "
                "submit jobs, or with --data.executor=local"
            )
        slurm = data.slurm
        settings = {"partition": slurm.partition, "time": slurm.time, "mem-per-cpu": f"{slurm.mem_per_cpu_gib}G"}
        options = [option(name, value) for name, value in (settings | slurm.options).items()]
        asked = subprocess.run(
            ["sbatch", "--test-only", *options, "--wrap=true"], capture_output=True, text=True, check=False
        )
        if asked.returncode:
            raise RecipeError(f"data.slurm: sbatch refuses a job with these settings: {asked.stderr.strip()}")

    def run(self) -> None:
        """Run an element's tasks, inside the job, and end the process without cleaning up.

        The interpreter sometimes aborts at exit while a thread of Arrow releases a Python file (apache/arrow issue
        34314), and Slurm then reports an element as failed that has done its work.
        """
        super().run()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> None:
        """Run a task inside the job; if it fails, write the error to a file for the waiting process."""
        try:
            super()._run_for_rank(rank)
        except Exception as error:
            problems = error.problems if isinstance(error, RecipeError) else [f"{type(error).__name__}: {error}"]
            log = self.log_of(os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"])
            where = f"(task {rank} of {self.tasks} of {self.description}; its log is {log})"
            self.failures.mkdir(exist_ok=True)
            write_json(self.failures / f"{rank:05d}.json", [*problems, where])
            raise

    def run_tasks(self) -> None:
        if not self.get_incomplete_ranks():
            return
        # The job of a killed earlier process may still run. The tasks that it leaves undone are submitted again.
        earlier = {element.job for element in self.queue(SILENCE_SECONDS) if element.alive}
        if earlier and self.wait(earlier):
            return
        shutil.rmtree(self.failures, ignore_errors=True)
        try:
            self.launch_job()
        except (OSError, subprocess.CalledProcessError) as error:
            raise RecipeError(f"{self.description}: sbatch failed ({error}); see its output above") from error
        if not self.wait({self.job_id}):
            elements = self.account({self.job_id})
            failed = next((element for element in elements if element.failed), None)
            self.fail({self.job_id}, [self.explain(failed) if failed else self.explain_unfinished()])

    def wait(self, jobs: set[str]) -> bool:
        """Wait until the jobs end, and return whether all tasks have finished.

        Raises: RecipeError: a task failed; the others are cancelled.
        """
        asked_at, alive_at = -math.inf, time.monotonic()
        try:
            while self.get_incomplete_ranks():
                if problems := self.noted_failures():
                    self.fail(jobs, problems)
                if time.monotonic() - asked_at >= QUEUE_SECONDS:
                    elements = [element for element in self.queue(SILENCE_SECONDS) if element.job in jobs]
                    asked_at = time.monotonic()
                    self.status = summarise(elements)
                    if failed := [element for element in elements if element.failed]:
                        self.fail(jobs, self.noted_failures() or [self.explain(failed[0])])
                    if any(element.alive for element in elements):
                        alive_at = asked_at
                    elif asked_at - alive_at > UNSEEN_SECONDS:
                        return not self.get_incomplete_ranks()
                time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt as error:
            names = " ".join(sorted(jobs))
            text = (
                f"Slurm job {names} keeps running; start the command again to wait for it, or end it: scancel {names}"
            )
            raise KeyboardInterrupt(text) from error
        return True

    def queue(self, patience_seconds: float) -> list[Element]:
        """Return the elements of this pipeline's jobs that wait, run, or ended within minutes.

        Raises: RecipeError: the scheduler has not answered for that long. The job keeps running.
        """
        command = ["squeue", "--me", f"--name={self.job_name}", "--states=all", "--array", "--noheader"]
        silent_since = time.monotonic()
        while True:
            try:
                answer = ask([*command, "--format=%F|%K|%T|%r"])
                return [Element(*line.strip().split("|", 3)) for line in answer.splitlines() if line.strip()]
            except (OSError, subprocess.SubprocessError) as error:
                reason = (getattr(error, "stderr", None) or str(error)).strip()
            if time.monotonic() - silent_since > patience_seconds:
                raise RecipeError(
                    f"{self.description}: squeue has not answered for {patience_seconds:.0f} s ({reason}); start the "
                    "command again when it does, to wait for the job, which keeps running"
                )
            self.status = f"squeue: {reason}"
            time.sleep(QUEUE_SECONDS)

    def account(self, jobs: set[str]) -> list[Element]:
        """Return the elements of jobs from the cluster's accounting; none if it has no accounting."""
        command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State"]
        try:
            answer = ask([*command, f"--jobs={','.join(sorted(jobs))}"])
        except (OSError, subprocess.SubprocessError):
            return []
        found = [re.match(r"(\d+)_(\S+)\|(\w+)", line) for line in answer.splitlines()]
        return [Element(*match.groups()) for match in found if match]

    def noted_failures(self) -> list[str]:
        """Return the errors that failed tasks wrote, in the order of the tasks."""
        return [line for file in sorted(self.failures.glob("*.json")) for line in json.loads(file.read_text())]

    def fail(self, jobs: set[str], problems: list[str]) -> None:
        """Cancel the jobs, wait until they end, so that the next start ignores them, and raise the problems."""
        subprocess.run(["scancel", *sorted(jobs)], capture_output=True, check=False)
        until = time.monotonic() + CANCEL_SECONDS
        while time.monotonic() < until and any(e.alive and e.job in jobs for e in self.queue(CANCEL_SECONDS)):
            time.sleep(LOOK_SECONDS)
        raise RecipeError(*problems)

    def explain(self, element: Element) -> str:
        log = Path(self.log_of(element.job, element.index))
        last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
        return (
            f"{self.description}: element {element.index} of Slurm job {element.job} ended as {element.state}; "
            f"{REMEDIES.get(element.state, element.reason)}; its log is {log}"
            + "".join(f", whose last line is: {line}" for line in last)
        )

    def explain_unfinished(self) -> str:
        return (
            f"{self.description}: Slurm job {self.job_id} has ended, but task {self.get_incomplete_ranks()[0]} has "
            f"not finished as seen from here; see {self.slurm_logs_folder}, and check that all nodes share its file "
            "system"
        )

    def log_of(self, job: str, index: str) -> str:
        return f"{self.slurm_logs_folder}/{job}_{index}.out"

    def get_launch_file_contents(self, sbatch_args: dict, run_script: str) -> str:
        """Return the script of the job, with the directory, PYTHONPATH and interpreter of this process."""
        task = [sys.executable, "-P", "-m", "datatrove.tools.launch_pickled_pipeline"]
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH {option(name, shlex.quote(str(value)))}" for name, value in sbatch_args.items()),
            f"cd {shlex.quote(os.getcwd())} || exit 1",
            f"export PYTHONPATH={shlex.quote(str(RECIPES))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"exec {shlex.join([*task, self.logging_dir.resolve_paths('executor.pik')])}",
        ]
        return "\n".join(lines) + "\n"

    def launch_merge_stats(self) -> None:
        """Skip datatrove's second job, which sums statistics that nothing here reads."""

    def save_executor_as_json(self, indent: int = 4) -> None:
        """Skip a file that would contain every argument of the pipeline."""


def option(name: str, value: str) -> str:
    """Return an option of sbatch; an empty value, also quoted, makes it a flag."""
    return f"--{name}" if value in ("", "''") else f"--{name}={value}"


def first_number(answer: str) -> str:
    """Return the job's id from sbatch's output, which may end in the name of a cluster."""
    return re.search(r"\d+", answer)[0]


def summarise(elements: list[Element]) -> str:
    """Return the number of elements in each state, and why the first pending one waits."""
    alive = [element for element in elements if element.alive]
    states = Counter(element.state.lower() for element in alive)
    reasons = [element.reason for element in alive if element.state == "PENDING"]
    jobs = " ".join(sorted({element.job for element in alive}))
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"job {jobs}: {counts}" + (f" ({reasons[0]})" if reasons else "") if alive else ""


def ask(command: list[str]) -> str:
    """Return the output of a command of the scheduler, which may take at most a minute."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
