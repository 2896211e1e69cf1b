# SPDX-License-Identifier: Apache-2.0
"""Leaving in time: a signal ends training with a checkpoint, and `status.json` says how a run ended.

SIGTERM, SIGINT, SIGHUP and SIGUSR1 (Slurm's warning) ask to leave, at any moment, of the launcher or of one process.
The processes agree at the next step or validation batch, save, and exit within SAVE_SECONDS of the signal; before the
first step since the start there is nothing to save, and they leave at once.

| exit code | meaning |
|---|---|
| 0 | finished |
| 1 | stopped by an error, which is printed and in status.json |
| 2 | the recipe is wrong; nothing was done |
| 75 | asked to leave; the same command goes on from the newest checkpoint |

A launcher reports 1 whatever its processes return, so `status.json` is what to read: `status` is running, preempted,
failed or finished; `step`, `max_steps`; `checkpoint`, the newest that was saved; `reason` and `exit_code` of the end;
`pid`, `host`, `started` and `updated`. "running" with nobody holding the run's lock means killed.
"""

import ctypes
import os
import platform
import signal
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import distributed

from run_folder import read_json, write_json


EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again
SAVE_SECONDS = 20.0  # torchrun kills what is still there 30 s after it passed a signal on
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # of prctl(2)


class RunStatus:
    """`status.json` of a run.

    Args:
        run: the run folder.
        writes: whether this process keeps it up to date; any may say how the run ended.
    """

    def __init__(self, run: Path, writes: bool):
        self.path, self.writes, self.lock = run / "status.json", writes, threading.RLock()
        self.values: dict = {}

    def begin(self) -> None:
        self.update(status="running", pid=os.getpid(), host=platform.node(), started=utc_now())

    def update(self, **values) -> None:
        """Write down what changed."""
        with self.lock:
            self.values |= values
            if self.writes:
                write_json(self.path, self.values | {"updated": utc_now()})

    def end(self, status: str, exit_code: int, reason: str, alone: bool = False) -> None:
        """Say how the run ended. The first word of a launch stands: what follows a failure is its consequence.

        Args: alone: this process ends without the agreement of the others, so any may say it.
        """
        with self.lock:
            found = read_json(self.path) or {}
            if (self.writes or alone) and found.get("status") == "running":
                self.values = found | {"status": status, "exit_code": exit_code, "reason": reason}
                own = self.path.with_name(f".status.{os.environ.get('RANK', '0')}.json")  # others may write at once
                write_json(own, self.values | {"updated": utc_now()})
                os.replace(own, self.path)

    def is_preempted(self) -> bool:
        """Return whether a process of this launch has said that it was asked to leave."""
        return (read_json(self.path) or {}).get("status") == "preempted"


class Preemption:
    """Signals that ask to leave, and the agreement of all processes on them; to be used in a `with` block.

    A signal wakes a thread, since the main one may be in a compiler or wait for another process: where there is
    nothing to save the thread ends the process, and it does so too when saving takes longer than SAVE_SECONDS. A
    second signal changes nothing.
    """

    def __init__(self, status: RunStatus):
        self.status, self.signal_name = status, None
        self.anything_to_save, self.left = False, threading.Event()
        self.group, self.pending = None, None

    def __enter__(self) -> "Preemption":
        read_end, self.wakeup = os.pipe()
        os.set_blocking(self.wakeup, False)
        self.before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self.wakeup_before = signal.set_wakeup_fd(self.wakeup, warn_on_full_buffer=False)
        self.owner = os.getpid()
        os.register_at_fork(after_in_child=self.forget)
        if sys.platform.startswith("linux"):  # a launcher that is killed takes its processes along
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        threading.Thread(target=self.watch, args=(read_end,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.left.set()
        signal.set_wakeup_fd(self.wakeup_before)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        os.close(self.wakeup)

    def forget(self) -> None:
        """Give a child, such as one that reads data, back what signals do by default."""
        if not self.left.is_set() and self.owner != os.getpid():
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)

    def watch(self, read_end: int) -> None:
        """Wait for a signal, note it, and see to it that the process ends in time."""
        while received := os.read(read_end, 1):
            if received[0] in SIGNALS:
                break
        if not received:  # the block ended
            os.close(read_end)
            return
        self.signal_name = signal.Signals(received[0]).name
        if self.anything_to_save:
            if self.left.wait(SAVE_SECONDS):
                return
            said = f"{self.signal_name}, and saving took longer than {SAVE_SECONDS:g} s"
        else:
            said = f"{self.signal_name} before the first step since the start"
        with suppress(OSError):  # a full disk is no reason to stay
            reason = f"{said}; the newest checkpoint is the one before it"
            self.status.end("preempted", EXIT_PREEMPTED, reason, alone=True)
        sys.stderr.write(f"pretrain: {said}; leaving\n")
        os._exit(EXIT_PREEMPTED)

    def connect(self, accelerator: Accelerator, timeout_seconds: float) -> None:
        """Open a channel beside the one of the gradients, so that agreeing never waits for a device."""
        if accelerator.num_processes > 1:
            self.group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))

    def requested(self) -> bool:
        """Return whether any process was asked to leave, the same on all; every process must ask as often.

        With several, the answer is that to the question before: it had a whole step to arrive, and nothing waits.
        """
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

        Raises: SystemExit: always, with EXIT_PREEMPTED.
        """
        self.status.end("preempted", EXIT_PREEMPTED, reason)
        if self.group is not None:
            distributed.barrier(self.group)  # who leaves first has the launcher end the others
        raise SystemExit(EXIT_PREEMPTED)


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
