# SPDX-License-Identifier: Apache-2.0
"""Functions run in child processes, each with a log and a time limit: a crash of one loses nothing but its own result.

Children are forked from a process that has imported everything, which saves each of them the seconds of the imports.
That process must never use the GPU, whose state a fork does not carry over.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any


class Child:
    """A function that runs in a process of its own.

    Args:
        start_method: "fork", or "spawn" where a forked process cannot use the GPU.
        function: defined in a module; its result is sent back.
        arguments: of the function.
        log: file that what it prints is appended to.
        leads: make it the leader of a process group, which ends with it; for children that start others.
    """

    def __init__(self, start_method: str, function: Callable, *arguments: Any, log: Path, leads: bool = False):
        context = get_context(start_method)
        self.name, self.log, self.leads = function.__name__, log, leads
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=run_and_send, args=(sender, log, leads, function, arguments))
        self.process.start()
        sender.close()

    def finish(self, seconds: float) -> tuple[Any, str | None]:
        """Wait for the function; return its result and None, or None and what went wrong."""
        until = time.monotonic() + seconds
        result, problem = None, None
        try:
            if self.receiver.poll(max(0.0, seconds)):
                result, problem = self.receiver.recv()
            else:
                problem = f"not finished within {seconds:.0f} s"
        except EOFError:
            self.process.join(max(0.0, until - time.monotonic()))
            problem = f"ended with code {self.process.exitcode}; its log is {self.log}"
        if problem is not None:
            self.kill()
        self.process.join(10)
        self.kill()
        return result, problem

    def kill(self) -> None:
        """End the process, and its group where it leads one."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL) if self.leads else self.process.kill()


def run_and_send(sender, log: Path, leads: bool, function: Callable, arguments: tuple) -> None:
    if leads:
        os.setpgid(0, 0)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        sender.send((function(*arguments), None))
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        sender.send((None, f"{type(error).__name__}: {error}"))
