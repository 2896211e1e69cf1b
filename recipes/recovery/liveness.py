# SPDX-License-Identifier: Apache-2.0
"""Which process of a run is dead, stopped or stuck.

Each process keeps a file of its own up to date in the run folder, from a thread, with the step that it is at. The
first and the last watch the files, which on several machines are not of the same one: a file that has not changed for
run.timeout_seconds ends the run, with the name of its process. A process whose communication fails looks there for the
one that caused it.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from machine_limits import lower_memory


FOLDER = ".processes"
MAX_BEAT_SECONDS = 2.0  # so that the few seconds of `explain` see a change in each file of a process that lives
DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
GONE = (*DEAD, psutil.STATUS_STOPPED)


class Liveness:
    """Keeps the file of this process up to date in a `with` block.

    Args:
        run: the run folder.
        process, num_processes: of the run; a single one needs no watching.
        timeout_seconds: run.timeout_seconds.
        end_run: called with the reason, in a thread, when another process has stood still for as long.

    Attributes: step: that this process is at.
    """

    def __init__(
        self, run: Path, process: int, num_processes: int, timeout_seconds: float, end_run: Callable[[str], None]
    ):
        self.folder, self.process, self.num_processes = run / FOLDER, process, num_processes
        self.timeout_seconds, self.end_run = timeout_seconds, end_run
        self.limit = f"run.timeout_seconds={timeout_seconds:g}"
        self.beat_seconds = min(MAX_BEAT_SECONDS, timeout_seconds / 10)
        self.step, self.ended = 0, threading.Event()
        self.seen: dict[int, dict] = {}
        self.silent_seconds: dict[int, float] = {}

    def __enter__(self) -> "Liveness":
        if self.num_processes > 1:
            self.folder.mkdir(exist_ok=True)
            for path in self.folder.iterdir():  # of a killed run on more processes
                if self.process == 0 and path.name not in map(str, range(self.num_processes)):
                    path.unlink()
            self.write(0)
            threading.Thread(target=self.beat, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        with suppress(OSError):
            (self.folder / str(self.process)).unlink()
            self.folder.rmdir()  # by the last

    def write(self, beats: int) -> None:
        entry = {"pid": os.getpid(), "host": platform.node(), "step": self.step, "beats": beats}
        with suppress(OSError):  # a full disk must not end the thread
            (self.folder / str(self.process)).write_text(json.dumps(entry), encoding="utf-8")

    def beat(self) -> None:
        beats, watches = 0, self.process in (0, self.num_processes - 1)
        while not self.ended.wait(self.beat_seconds):
            beats += 1
            self.write(beats)
            if watches and (silent := self.look()):
                self.end_run(self.explain_death() or f"{self.describe(silent)} did not move for {self.limit}")
                return

    def look(self) -> list[int]:
        """Return the processes whose files did not change for the time limit, in which this one read them."""
        for process, entry in self.read().items():
            if self.seen.get(process) == entry:
                self.silent_seconds[process] += self.beat_seconds
            else:
                self.seen[process], self.silent_seconds[process] = entry, 0.0
        return [process for process, seconds in self.silent_seconds.items() if seconds >= self.timeout_seconds]

    def read(self) -> dict[int, dict]:
        """Return the entries of the other processes; a file that is missing, or being written, is left out."""
        entries = {}
        for process in set(range(self.num_processes)) - {self.process}:
            with suppress(OSError, ValueError):
                entries[process] = json.loads((self.folder / str(process)).read_bytes())
        return entries

    def explain(self) -> str | None:
        """Return which other process is dead, stopped or behind, after this one waited for it in vain.

        None if there is no sign of one: it ended with an error of its own.
        """
        entries = self.read()
        gone = [process for process, entry in entries.items() if status_here(entry) in GONE]
        if not gone:
            time.sleep(2.5 * self.beat_seconds)
            later = self.read()
            entries = {process: entry for process, entry in entries.items() if process in later}
            gone = [process for process in entries if later[process] == entries[process]]
        if death := self.explain_death():
            return death
        if gone:
            return f"{self.describe(gone)} is dead or stopped; {self.limit} limits how long others wait"
        behind = [process for process, entry in entries.items() if entry["step"] < self.step]
        stuck = f"is stuck, at an earlier step than the others, which wait for {self.limit}"
        return f"{self.describe(behind)} {stuck}" if behind else None

    def explain_death(self) -> str | None:
        """Return which other processes of this machine ended in the run, without deleting their files as those that
        leave it do; None if none did."""
        dead = [process for process, entry in self.read().items() if status_here(entry) in DEAD]
        lower = lower_memory("pretrain.py")
        return f"{self.describe(dead)} died, as when memory runs out (then {lower})" if dead else None

    def describe(self, processes: list[int]) -> str:
        """Return the names of processes, with their machines."""
        entries = self.seen | self.read()
        return ", ".join(
            f"process {process} on {entries[process]['host']} (pid {entries[process]['pid']}, step "
            f"{entries[process]['step']})"
            for process in processes
        )


def status_here(entry: dict) -> str | None:
    """Return the status of a process of this machine, one of psutil's; None for one of another machine."""
    if entry["host"] != platform.node():
        return None
    try:
        return psutil.Process(entry["pid"]).status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD
