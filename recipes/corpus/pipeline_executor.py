# SPDX-License-Identifier: Apache-2.0
"""Run a datatrove pipeline over a fixed number of tasks, with a progress bar; resume where a killed run stopped.

The number of tasks depends on the data and decides the output. Where they run, and how many at a time, depends on the
machine and does not. A finished task leaves its mark in `<folder>/completions` (see finished_tasks.py); a running one
writes its progress to `<folder>/progress`. On a cluster, the run folder must be on a file system that all nodes share.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from corpus.finished_tasks import drop_damaged
from corpus.local_executor import LocalExecutor, available_cores
from corpus.ray_executor import RayExecutor
from corpus.slurm_executor import SlurmExecutor
from corpus.stage_progress import StageProgress
from recipe_config import Data


EXECUTORS = {"local": LocalExecutor, "slurm": SlurmExecutor, "ray": RayExecutor}
NOTE_SECONDS = 1.0  # between two writes of one task, each of which loads a shared file system
REFRESH_SECONDS = {"local": 0.5, "slurm": 5.0, "ray": 5.0}  # of the bar


class TaskProgress:
    """Count how much of a task is done and write it to a file now and then.

    Args:
        folder: has one file for each task of the pipeline.
        rank: of the task.
    """

    def __init__(self, folder: Path, rank: int):
        self.file = folder / f"{rank:05d}"
        self.done = 0
        self.noted_at = time.monotonic()

    def add(self, amount: int) -> None:
        self.move_to(self.done + amount)

    def move_to(self, done: int) -> None:
        self.done = done
        if time.monotonic() - self.noted_at >= NOTE_SECONDS:
            self.note()

    def note(self) -> None:
        self.file.write_text(str(self.done))
        self.noted_at = time.monotonic()


def track(documents: Iterable, rank: int, world_size: int, folder: Path) -> Iterator:
    """Yield the documents unchanged, counting the bytes of their text for the progress bar."""
    progress = TaskProgress(folder, rank)
    for document in documents:
        progress.add(len(document.text.encode()))
        yield document
    progress.note()


def read_progress(note: Path) -> int:
    """Return the bytes that a task has done; 0 where its note is half-written or damaged, for only the bar uses it."""
    content = note.read_bytes()
    return int(content) if content.isdigit() else 0


def check_executor(data: Data) -> None:
    """Check, before work starts, that the tasks can run on data.executor.

    Raises: RecipeError: they cannot; the message has the remedy.
    """
    EXECUTORS[data.executor].check(data)


def run_pipeline(
    pipeline: list,
    tasks: int,
    data: Data,
    folder: Path,
    description: str,
    total_bytes: int | None = None,
    stage: StageProgress | None = None,
) -> None:
    """Run each task of a pipeline once.

    Args:
        pipeline: datatrove steps, or functions (documents, rank, world_size) -> documents of importable modules.
        tasks: number of tasks.
        data: gives executor, workers and slurm.
        folder: for the state of the pipeline; a second run with the same folder runs only the missing tasks.
        description: name in the progress bar and in errors.
        total_bytes: sum of the tasks' `TaskProgress`; None counts finished tasks instead.
        stage: gets how much is done, and says in the bar how far the stage is.

    Raises: the error of the first task that fails, as soon as it does; RecipeError if the user can fix the cause, such
        as a task that was killed because memory ran out.
    """
    notes = folder / "progress"
    notes.mkdir(parents=True, exist_ok=True)
    drop_damaged(sorted((folder / "completions").glob("[0-9]*")), description, available_cores())
    executor = EXECUTORS[data.executor](data, pipeline, tasks, folder, description)
    in_bytes = total_bytes is not None
    bar = tqdm(
        total=total_bytes if in_bytes else tasks,
        desc=description,
        unit="B" if in_bytes else " tasks",
        unit_scale=in_bytes,
        leave=False,
    )

    def refresh() -> None:
        files = list((notes if in_bytes else folder / "completions").glob("[0-9]*"))
        done = sum(map(read_progress, files)) if in_bytes else len(files)
        if stage is not None:
            stage.move_to(min(done / max(bar.total, 1), 1.0))
        parts = [stage.describe() if stage is not None else "", executor.status]
        bar.set_postfix_str(", ".join(filter(None, parts)), refresh=False)
        bar.update(min(done, bar.total) - bar.n)

    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(REFRESH_SECONDS[data.executor]):
            refresh()

    refresh()  # which notes what an earlier try has done
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        executor.run_tasks()
    finally:
        finished.set()
        watcher.join()
        refresh()
        bar.close()
