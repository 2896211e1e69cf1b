# SPDX-License-Identifier: Apache-2.0
"""Run one task of a pipeline; `data.executor: local`, which runs the tasks in processes of this machine.

Only the bookkeeping of datatrove's local executor is used: it waits for ever if the kernel kills a worker, and sends
the whole pipeline with each task.
"""

import os
import resource
import signal
import sys
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from copy import deepcopy
from multiprocessing import connection, forkserver, get_context
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from corpus.finished_tasks import mark_finished, written
from recipe_config import Data, RecipeError


RECIPES = Path(__file__).resolve().parents[1]


class TaskRunner:
    """Run one task as datatrove does, but without its log, which contains text of documents, and its own bar.

    Attributes:
        status: shown in the progress bar.
    """

    status = ""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> None:
        if self.is_rank_completed(rank):
            return
        written.clear()
        logger.disable("datatrove")
        raise_open_files()
        documents = None
        for step in self.pipeline:
            # A step has counters, so each task gets a copy; a function has none and may hold a large index.
            own = deepcopy(step) if isinstance(step, PipelineStep) else step
            documents = own(documents, rank, self.world_size)
        if documents:
            deque(documents, maxlen=0)
        mark_finished(Path(self.logging_dir.path) / "completions" / f"{rank:05d}")


def raise_open_files() -> None:
    """Let this process open as many files as it may: near-duplicates take one a bucket, Arrow and Ray some more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # where the system's own limit is lower than the one it states
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class LocalExecutor(TaskRunner, LocalPipelineExecutor):
    """Run tasks in processes of this machine, which end with this one, however it ends."""

    def __init__(self, data: Data, pipeline: list, tasks: int, folder: Path, description: str):
        super().__init__(pipeline, tasks, data.workers or available_cores(), str(folder))
        self.description = description

    @staticmethod
    def check(data: Data) -> None:
        """Accept any settings: nothing has to be checked."""

    def run_tasks(self) -> None:
        ranks = self.get_incomplete_ranks()
        workers = min(self.workers, len(ranks))
        if workers <= 1:
            for rank in ranks:
                self._run_for_rank(rank)
            return
        context = get_context("forkserver")
        start_fork_server(context)
        lifeline, held = context.Pipe(duplex=False)
        with lifeline, ProcessPoolExecutor(workers, context, become_worker, (self, lifeline)) as pool:
            try:
                for future in as_completed([pool.submit(run_in_worker, rank) for rank in ranks]):
                    future.result()
            except BrokenProcessPool as error:
                held.close()  # ends a worker that the pool started while it ended the others, and would wait for
                raise RecipeError(
                    f"{self.description}: a worker process was killed, most likely because memory ran out; start "
                    f"the command again with fewer data.workers than {workers}, and it resumes where it stopped"
                ) from error
            except BaseException:
                held.close()  # ends the workers now, not after their tasks
                raise
        held.close()


def available_cores() -> int:
    """Return how many cores this process may use, which in a container or a Slurm job can be fewer than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def start_fork_server(context) -> None:
    """Start the process that workers are forked from, once, with the loaded modules of recipes/ imported.

    Otherwise each worker of each pipeline would import them, for a second or two, and have its own copy in memory.
    """
    files = {name: Path(getattr(module, "__file__", None) or "") for name, module in sys.modules.items()}
    ours = {name: file for name, file in files.items() if file.is_relative_to(RECIPES)}
    context.set_forkserver_preload([file.stem if name == "__main__" else name for name, file in ours.items()])
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # the fork server does not inherit sys.path
    os.environ["PYTHONSAFEPATH"] = "1"  # it would look in the working folder first
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"], os.environ["PYTHONSAFEPATH"]
        os.environ.update(before)


def become_worker(executor: LocalExecutor, lifeline: connection.Connection) -> None:
    """Prepare this process to run tasks of an executor until the other end of the lifeline is closed."""
    global worker_executor
    worker_executor = executor
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one

    def end_with_lifeline() -> None:
        connection.wait([lifeline])
        os._exit(1)

    threading.Thread(target=end_with_lifeline, daemon=True).start()


def run_in_worker(rank: int) -> None:
    worker_executor._run_for_rank(rank)
