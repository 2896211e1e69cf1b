# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run are stopped: by which signals, with which exit code, and all of them together."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

import psutil

from atomic_files import read_json


EXIT_STOPPED = 75  # stopped by a signal; the same command resumes. EX_TEMPFAIL of sysexits.h: try again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
SAVE_SECONDS = 20.0  # that training may take to save after a signal, at least: see recovery.preemption
LEAVE_SECONDS = 10.0  # that processes that lost their parent have to leave, beside those that they need to save
LOOK_SECONDS = 2.0  # between two looks at a command; a signal that came before its processes were ready is repeated
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)


def heeded_signals() -> list[signal.Signals]:
    """Return the signals that stop a run, without those that are ignored since the start, as SIGHUP under nohup."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def leave_on_signals(kept: str) -> Iterator[None]:
    """Have the signals that stop a run end this process with EXIT_STOPPED, while it runs no child.

    Args: kept: what is not lost, for the message, which ends with the command that starts again.
    """

    def leave(number: int, _) -> None:
        command = shlex.join(sys.orig_argv)
        sys.stderr.write(f"stopped on {signal.Signals(number).name}: {kept}; start again with: {command}\n")
        raise SystemExit(EXIT_STOPPED)

    before = {number: signal.signal(number, leave) for number in heeded_signals()}
    after = before
    try:
        yield
    except SystemExit as ended:
        if ended.code == EXIT_STOPPED:  # another signal, while Python ends, must not decide the exit code
            after = dict.fromkeys(before, pass_over)
        raise
    finally:
        for number, handler in after.items():
            signal.signal(number, handler)


def pass_over(number: int, frame: object) -> None:
    """Handle a signal by doing nothing; unlike one that is ignored, it is not for what this process starts."""


def end_with_parent() -> None:
    """Have this process get SIGTERM when its parent ends, however that ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process; other systems than Linux lack it."""
    if sys.platform.startswith("linux"):
        libc().prctl(option, value)


@cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


@contextmanager
def outside_working_folder() -> Iterator[None]:
    """Have the interpreters that multiprocessing starts in a `with` block take no module from the working folder.

    A pickle.py may lie there. Not for a script of recipes/, whose own folder would be left out too.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


class Ended(NamedTuple):
    """How a command ended: its exit status, and the first signal that this process received meanwhile, if any."""

    status: int
    signal_name: str | None


def run_child(
    command: list[str], launches: bool, save_seconds: Callable[[], float] = lambda: 0.0, log: IO | None = None
) -> Ended:
    """Run a command to its end, pass signals on to it, and leave none of its processes behind.

    The command has a process group of its own, so that Ctrl-C and a scheduler's signal to the group reach it once, as
    SIGTERM, and at a time when this process waits for it.

    Args:
        command: what to run.
        launches: the command is a launcher, whose own handling of signals leaves too little time to save: its
            children get the signal instead.
        save_seconds: how long its processes may save; called when the command has ended and left some behind.
        log: file for what it prints; None: the terminal.
    """
    others, received, process = set(psutil.Process().children(recursive=True)), [], None

    def pass_on(number: int, _) -> None:
        received.append(signal.Signals(number).name)
        stop()

    def stop() -> None:
        if process is not None:
            end(launched_by(process) if launches else [process])

    before = {number: signal.signal(number, pass_on) for number in heeded_signals()}
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # a process whose launcher is killed becomes a child of this one
    try:
        process = psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            preexec_fn=end_with_parent,  # if this one is killed
        )
        status = None
        while status is None:
            if received:
                stop()
            with suppress(psutil.TimeoutExpired):
                status = process.wait(LOOK_SECONDS)
        left = [child for child in psutil.Process().children(recursive=True) if child not in others]
        end(left)
        for child in psutil.wait_procs(left, save_seconds() + LEAVE_SECONDS)[1] if left else []:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return Ended(status, received[0] if received else None)


def run_with_status(command: list[str], status_file: Path, log: IO | None = None) -> tuple[Ended, dict]:
    """Run a command as run_child does, which may keep a status.json of training.

    Returns: how it ended, and the status that it left; empty if that is of another command, which may go on.
    """
    before = read_json(status_file) or {}

    def save_seconds() -> float:
        return (read_json(status_file) or {}).get("save_seconds", SAVE_SECONDS)

    ended = run_child(command, "accelerate.commands.launch" in command, save_seconds, log)
    status = read_json(status_file) or {}
    own = any(status.get(key) != before.get(key) for key in ("pid", "host", "started"))
    return ended, status if own else {}


def launched_by(launcher: psutil.Process) -> list[psutil.Process]:
    """Return the processes that a launcher has started, or the launcher itself if it has started none."""
    with suppress(psutil.NoSuchProcess):
        return launcher.children() or [launcher]
    return []


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
