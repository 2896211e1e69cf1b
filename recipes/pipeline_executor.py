# SPDX-License-Identifier: Apache-2.0
"""Run a datatrove pipeline over a fixed number of tasks, with a progress bar, going on where a killed run stopped.

The number of tasks belongs to the data and decides the output; the number of workers belongs to the machine and
does not. Each task notes what it has done in a small file, so the bar works wherever the tasks run.
"""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor
from loguru import logger
from tqdm import tqdm


class QuietLocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor without its log on the console; errors are raised all the same."""

    def _run_for_rank(self, *args, **kwargs):
        logger.disable("datatrove")
        return super()._run_for_rank(*args, **kwargs)


class TaskProgress:
    """Count, as documents pass through, how much of a task is done.

    Args:
        folder: where the tasks of this pipeline note it, one file each.
        rank: the task.
    """

    def __init__(self, folder: Path, rank: int):
        self.file = folder / f"{rank:05d}"
        self.done = 0
        self.noted = 0

    def add(self, amount: int) -> None:
        self.done += amount
        if self.done - self.noted >= 1 << 18:
            self.note()

    def note(self) -> None:
        self.file.write_text(str(self.done))
        self.noted = self.done


def run_pipeline(
    pipeline: list, tasks: int, workers: int, folder: Path, description: str, total_bytes: int | None = None
) -> None:
    """Run each task of a pipeline once.

    Args:
        pipeline: datatrove steps, or callables (documents, rank, world_size) -> documents.
        tasks: how many parts the work has.
        workers: how many of them run at a time.
        folder: for logs and notes of what is done; the same folder again does only what is missing.
        description: what the progress bar says.
        total_bytes: what the tasks' `TaskProgress` adds up to; None counts finished tasks instead.
    """
    notes = folder / "progress"
    notes.mkdir(parents=True, exist_ok=True)
    logger.disable("datatrove")
    executor = QuietLocalExecutor(pipeline, tasks=tasks, workers=min(workers, tasks), logging_dir=str(folder))
    in_bytes = total_bytes is not None
    bar = tqdm(
        total=total_bytes if in_bytes else tasks,
        desc=description,
        unit="B" if in_bytes else " tasks",
        unit_scale=in_bytes,
        leave=False,
    )

    def refresh() -> None:
        files = notes.iterdir() if in_bytes else (folder / "completions").glob("*")
        done = sum(int(file.read_text() or 0) for file in files) if in_bytes else len(list(files))
        bar.update(min(done, bar.total) - bar.n)

    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.5):
            refresh()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        executor.run()
    finally:
        finished.set()
        watcher.join()
        refresh()
        bar.close()


def track(documents: Iterable, notes: Path, rank: int) -> Iterator:
    """Pass documents on, counting the bytes of their text."""
    progress = TaskProgress(notes, rank)
    for document in documents:
        progress.add(len(document.text.encode()))
        yield document
    progress.note()
