# SPDX-License-Identifier: Apache-2.0
"""Preemption: a signal ends training with a checkpoint.

SIGTERM, SIGINT, SIGHUP or SIGUSR1 may reach the launcher or one process at any moment. The processes
agree at the next step or validation batch, save, and exit within `save_seconds` of the signal. That allows for the
steps until then, for a save that is running, and for their own. Before the first step after a start there is nothing
to save, and they exit at once.

A file `leave` in the run folder asks for the same without a limit, since no launcher knows of it: slurm.sh makes it
when Slurm warns that the time is nearly up.

| exit code | meaning |
|---|---|
| 0 | finished |
| 1 | stopped by an error, which is printed and in status.json |
| 2 | the recipe is wrong; nothing was done |
| 75 | stopped by a signal; the same command resumes from the newest checkpoint |"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch
from accelerate import Accelerator
from torch import distributed

from child_processes import EXIT_STOPPED, SAVE_SECONDS, SIGNALS, end_with_parent, heeded_signals
from recipe_config import RecipeError
from recovery.chronicle import RunStatus


LEAVE = "leave"
# Until they save: the step at work, one until the others have answered, and on a GPU one that it is still computing.
STEPS_BEFORE_SAVE = 3
RECENT_STEPS = 10  # whose slowest is allowed for
LAUNCHED = {"LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}  # variables that launchers set
LAUNCHER_SECONDS = 30  # after which torchrun, having passed a signal on, kills the processes that still run


class Preemption:
    """Catches signals in a `with` block, and has all processes agree on them.

    A signal wakes a thread, since the main one may be compiling or waiting for another process. The thread ends the
    process if there is nothing to save, or if it is not saved after save_seconds. A second signal changes nothing.

    Args:
        status: of the run.
        explain_end: says why another process ended, if one did: launchers send the others a signal then, which does
            not ask them to start again.

    Attributes:
        signal_name: the first signal received; None before.
        anything_to_save: whether a step was trained since the start.
        slowest_save, recent_steps: seconds of a save, its copy to memory included, and of the last steps.
    """

    def __init__(self, status: RunStatus, explain_end: Callable[[], str | None] = lambda: None):
        self.status, self.explain_end, self.signal_name = status, explain_end, None
        self.anything_to_save, self.left = False, threading.Event()
        self.group, self.pending = None, None
        self.slowest_save, self.recent_steps = 0.0, ()
        self.leave_file = status.path.with_name(LEAVE)
        if status.writes:
            self.leave_file.unlink(missing_ok=True)  # for the run before

    @property
    def save_seconds(self) -> float:
        """How long after a signal everything may take: a running save, one more, and the steps before it."""
        return max(SAVE_SECONDS, 2 * self.slowest_save) + STEPS_BEFORE_SAVE * max(self.recent_steps, default=0.0)

    def allow(self, seconds: float) -> str:
        """Allow for a save that takes so long, after one that is running; return what to print about the limit.

        status.json gets the limit too, for run_recipe.py, which ends processes that lost their launcher.
        """
        self.slowest_save = seconds
        self.record_limit()
        steps = f"of up to {max(self.recent_steps):.1f} s" if self.recent_steps else "once they are measured"
        text = f"after a signal, {self.save_seconds:.0f} s are allowed: {max(SAVE_SECONDS, 2 * seconds):.0f} s for a "
        text += f"save of about {seconds:.1f} s after one that is running, and {STEPS_BEFORE_SAVE} steps {steps}"
        if self.save_seconds <= LAUNCHER_SECONDS:
            return text
        return f"{text}; but only {LAUNCHER_SECONDS} s where the launcher gets it: send it to its child processes"

    def note_step(self, seconds: float) -> None:
        """Allow for steps as slow as this one. The first since the start is left out: most of it is compiling."""
        if self.anything_to_save:
            self.recent_steps = (*self.recent_steps, seconds)[-RECENT_STEPS:]
            self.record_limit()

    def record_limit(self) -> None:
        """Write the limit into status.json if it has moved by more than a second, and not at each step."""
        if abs(self.save_seconds - self.status.values.get("save_seconds", math.inf)) > 1:
            self.status.update(save_seconds=self.save_seconds)

    def __enter__(self) -> "Preemption":
        read_end, self.wakeup = os.pipe()
        os.set_blocking(self.wakeup, False)
        self.before = {number: signal.signal(number, lambda *_: None) for number in heeded_signals()}
        self.wakeup_before = signal.set_wakeup_fd(self.wakeup, warn_on_full_buffer=False)
        self.owner = os.getpid()
        os.register_at_fork(after_in_child=self.forget)
        if os.environ.keys() & LAUNCHED:  # a shell may end before what it started, as under nohup
            end_with_parent()
        threading.Thread(target=self.watch, args=(read_end,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.left.set()
        signal.set_wakeup_fd(self.wakeup_before)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        os.close(self.wakeup)

    def forget(self) -> None:
        """Restore the default signal handlers in a forked child, such as a data loader's."""
        if not self.left.is_set() and self.owner != os.getpid():
            signal.set_wakeup_fd(-1)
            for number in self.before:
                signal.signal(number, signal.SIG_DFL)

    def watch(self, read_end: int) -> None:
        """Wait for a signal, and end the process if it does not leave by itself in time."""
        while received := os.read(read_end, 1):
            if received[0] in SIGNALS:
                break
        if not received:  # the block ended
            os.close(read_end)
            return
        self.signal_name = signal.Signals(received[0]).name
        if self.anything_to_save:
            since = time.monotonic()
            while (seconds := since + self.save_seconds - time.monotonic()) > 0:  # allow() may raise it meanwhile
                if self.left.wait(seconds):
                    return
            reason = f"{self.signal_name}, and saving took longer than {self.save_seconds:.0f} s; not saved"
        else:
            reason = f"{self.signal_name} before the first step since the start; nothing to save"
        end = self.explain_end()
        status, code = ("failed", 1) if end else ("preempted", EXIT_STOPPED)
        with suppress(OSError):  # leave even if the disk is full
            self.status.end(status, code, end or reason, alone=True)
        sys.stderr.write(f"pretrain: {end or reason}; start again with the same command\n")
        os._exit(code)

    def connect(self, accelerator: Accelerator, timeout_seconds: float) -> None:
        """Open a process group on the CPU, so that agreeing never waits for a device.

        Raises: RecipeError: the processes do not reach each other by gloo.
        """
        if accelerator.num_processes > 1:
            try:
                self.group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
            except RuntimeError as error:
                raise RecipeError(
                    f"gloo, by which the processes agree, does not connect them: {str(error).splitlines()[0]}; set "
                    "GLOO_SOCKET_IFNAME to the network between the machines (`ip -brief address`)"
                ) from error

    def requested(self) -> bool:
        """Return whether any process received a signal: the same on all, which must call this equally often.

        With several processes this is the answer to the call before, which has arrived by now, so no process waits.
        """
        if self.status.writes and self.anything_to_save and self.signal_name is None and self.leave_file.exists():
            self.signal_name = f"the file {LEAVE}"
        if self.group is None:
            return self.signal_name is not None
        answer = False
        if self.pending is not None:
            work, asked = self.pending
            work.wait()
            answer = bool(asked)
        asked = torch.tensor(int(self.signal_name is not None))
        self.pending = (distributed.all_reduce(asked, distributed.ReduceOp.MAX, self.group, async_op=True), asked)
        return answer

    def leave(self, reason: str) -> None:
        """End this process after it has saved.

        Args: reason: the signal and the step, for status.json and the main process's last line.
        Raises: SystemExit: always, with EXIT_STOPPED.
        """
        self.status.end("preempted", EXIT_STOPPED, reason)
        if self.status.writes:
            self.leave_file.unlink(missing_ok=True)
            sys.stderr.write(f"pretrain: {reason}; the same command resumes from there\n")
        if self.group is not None:
            distributed.barrier(self.group)  # the launcher ends the others as soon as one has left
        raise SystemExit(EXIT_STOPPED)
