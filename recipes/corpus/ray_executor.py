# SPDX-License-Identifier: Apache-2.0
"""`data.executor: ray`: run tasks on the Ray cluster that RAY_ADDRESS names, or that this machine belongs to.

Only the bookkeeping of datatrove's executor for Ray is used: it returns without an error if a task fails, waits for
ever for a task that the kernel killed, and starts an actor with a pool of processes for each task.
"""

import importlib
import os
import re
import socket
import sys
from collections import Counter, deque
from contextlib import chdir
from pathlib import Path
from types import ModuleType

from datatrove.executor import RayPipelineExecutor
from loguru import logger

from corpus.local_executor import TaskRunner
from recipe_config import Data, RecipeError


RECIPES = Path(__file__).resolve().parents[1]
MAX_ATTEMPTS = 3  # for a task whose process or node dies; a task that raises an error is not retried


class RayExecutor(TaskRunner, RayPipelineExecutor):
    """Run tasks of one core each on a Ray cluster; they end when this process does."""

    def __init__(self, data: Data, pipeline: list, tasks: int, folder: Path, description: str):
        logger.disable("datatrove")
        super().__init__(pipeline, tasks, data.workers or tasks, logging_dir=str(folder))
        self.description = description

    @staticmethod
    def check(data: Data) -> None:
        if connect().cluster_resources().get("CPU", 0) < 1:
            raise RecipeError("data.executor: ray: the cluster has no core; start its workers with ray start")

    def run_tasks(self) -> None:
        waiting, running, attempts = deque(self.get_incomplete_ranks()), {}, Counter()
        if not waiting:
            return
        ray = connect()
        directory, path = os.getcwd(), [folder for folder in sys.path if folder]
        held = [
            ray.put(self)
        ]  # in a list, so that the task gets the reference, and unpickles it after it has set sys.path

        def run_rank(held: list, rank: int) -> None:
            os.chdir(directory)
            # Ray puts a folder of its own choice before the modules of this process.
            sys.path[:] = [*path, *(folder for folder in sys.path if folder not in {"", directory, *path})]
            ray.get(held[0])._run_for_rank(rank)

        # By default, Ray retries a task without end that it killed because memory ran out.
        task = ray.remote(num_cpus=1, max_retries=0)(run_rank)
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    rank = waiting.popleft()
                    attempts[rank] += 1
                    running[task.remote(held, rank)] = rank
                [done], _ = ray.wait(list(running), num_returns=1)
                rank = running.pop(done)
                try:
                    ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    if attempts[rank] == MAX_ATTEMPTS:
                        raise RecipeError(
                            f"{self.description}: task {rank} of {self.tasks} was lost {MAX_ATTEMPTS} times, most "
                            "likely because memory ran out; give each node of the Ray cluster fewer cores "
                            f"(ray start --num-cpus). Ray reports: {str(error).splitlines()[0]}"
                        ) from error
                    waiting.append(rank)
        except BaseException:
            for unfinished in running:
                ray.cancel(unfinished, force=True)
            raise


def connect() -> ModuleType:
    """Return the ray package, connected to the cluster.

    Raises: RecipeError: it is not installed, or no cluster answers.
    """
    try:
        ray = importlib.import_module("ray")  # not in requirements.txt: it is large, and few need it
    except ImportError as error:
        raise RecipeError("data.executor: ray: not installed; on every node: pip install ray==2.60.0") from error
    if not ray.is_initialized():
        try:
            # Ray itself retries for ten minutes if nothing listens at an address.
            if named := re.fullmatch(r"(?:ray://)?(.+):(\d+)", os.environ.get("RAY_ADDRESS", "")):
                socket.create_connection((named[1], int(named[2])), timeout=10).close()
            with chdir(RECIPES):  # workers import from the folder that this runs in, before they have a task
                ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            raise RecipeError(
                f"data.executor: ray: no cluster answers ({str(error).splitlines()[0]}); start one with ray start "
                "--head, and elsewhere than on its nodes set RAY_ADDRESS to the address that it prints"
            ) from error
    return ray
