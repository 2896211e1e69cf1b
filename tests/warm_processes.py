# SPDX-License-Identifier: Apache-2.0
"""Commands of the recipes, run in forks of this process, which has imported everything, and harmed at a given point.

Starting Python and importing torch takes most of the time of a tiny run. Here a command runs as it is, but what it
starts is forked: the scripts of the stages, and a launcher that handles signals and failures as Accelerate's does.
"""

import ctypes
import importlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from tiny_run import ROOT
from tqdm import tqdm


RECIPES, EVAL = ROOT / "recipes", ROOT / "eval"
RUN_RECIPE = "recipes/run_recipe.py"
GRACE_SECONDS = 8  # between the two; torchrun's 30 s would only make a try with a stopped process longer
MODULES = ("run_recipe", "prepare_data", "train_tokenizer", "tokenize_corpus", "pretrain", "push_to_hub")
MODULES += ("verify_run", "run_eval", "report", "divided_models")


@dataclass(frozen=True)
class Harm:
    """What happens to the processes of a command.

    Attributes:
        script: the file name, without its ending, of the script that is harmed.
        rank: which of its processes.
        change: number of the change to the watched folder that is prevented; 0: none.
        watched: the folder.
        error: errno with which this change and all later ones fail; 0: the process is killed.
        forward: number of the forward pass in training in which `signals` are sent; 0: none.
        target: who gets them: rank, launcher or run_recipe.
        signals: sent one after the other, `pause` seconds apart.
        open_files: how many the process may open; 0: as many as it likes.
        clock_back_seconds: how much the wall clock of this process is set back, in that pass.
        memory_bytes: how much the process may take beside what it has; 0: as much as it likes.
        trace: a folder in which each script lists the changes that it makes and what it imports; empty: no lists.
        mark: a file that is made when a change is prevented or fails, or a pass is reached; empty: none.
    """

    script: str = ""
    rank: int = 0
    change: int = 0
    watched: str = ""
    error: int = 0
    forward: int = 0
    target: str = "rank"
    signals: tuple[int, ...] = ()
    pause: float = 0.0
    open_files: int = 0
    clock_back_seconds: int = 0
    memory_bytes: int = 0
    trace: str = ""
    mark: str = ""

    def arm(self, script: str) -> None:
        """Prepare this process, which is about to run a script."""
        rank = int(os.environ.get("RANK", "0"))
        if self.trace:
            trace = f"{self.trace}/{script}-{rank}"
            ctypes.CDLL(None).crash_shim_watch(os.fsencode(self.watched), ctypes.c_long(0), os.fsencode(trace))
        if script != self.script or rank != self.rank:
            return
        if self.open_files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.open_files, self.open_files))
        if self.memory_bytes:
            most = psutil.Process().memory_info().vms + self.memory_bytes
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        if self.change:
            shim = ctypes.CDLL(None)
            shim.crash_shim_refuse(self.error)
            shim.crash_shim_mark(os.fsencode(self.mark))
            shim.crash_shim_watch(os.fsencode(self.watched), ctypes.c_long(self.change), b"")
        if self.forward:
            from model.summed_loss import SummedLoss

            forward, passes = SummedLoss.forward, [0]

            def harmed(model, *batch, **named):
                passes[0] += model.training
                if model.training and passes[0] == self.forward:
                    self.send()
                return forward(model, *batch, **named)

            SummedLoss.forward = harmed

    def send(self) -> None:
        """Send the signals to the target, above which this process is."""
        parents = {"rank": os.getpid(), "launcher": os.getppid()}
        parents["run_recipe"] = psutil.Process(os.getppid()).ppid()
        Path(self.mark).touch()
        ctypes.CDLL(None).crash_shim_set_clock_back(ctypes.c_long(self.clock_back_seconds))
        for number in self.signals:
            with suppress(ProcessLookupError):  # an earlier one may have ended it
                os.kill(parents[self.target], number)
            time.sleep(self.pause)


def import_all() -> None:
    """Import what the scripts need, before anything is forked."""
    sys.path[:0] = [str(folder) for folder in (RECIPES, EVAL, ROOT / "tests") if str(folder) not in sys.path]
    for name in MODULES:
        importlib.import_module(name)


def import_as(trace: Path) -> None:
    """Import what the scripts of a traced command had imported when they ended."""
    for path in trace.glob("*.modules"):
        for name in path.read_text().split():
            if name not in sys.modules:
                with suppress(Exception):
                    importlib.import_module(name)


def start(command: list[str], output: Path, harm: Harm, stages: tuple[str, ...]) -> psutil.Process:
    """Start a command in a session of its own, as from a terminal in the repository's folder.

    Args:
        command: run_recipe.py or another script, with its arguments.
        output: file that everything printed is appended to.
        harm: what happens to it.
        stages: those that run_recipe.py runs, of the ones that the recipe has.
    """

    def run() -> None:
        import child_processes
        import run_recipe

        plan_stages = run_recipe.plan_stages
        run_recipe.plan_stages = lambda recipe: [name for name in plan_stages(recipe) if name in stages]
        child_processes.psutil.Popen = lambda command, **settings: start_forked(command, harm, **settings)
        os.setsid()
        os.chdir(ROOT)
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run_script([sys.executable, *command], harm)

    return psutil.Process(fork(run))


def fork(run: Callable[[], None]) -> int:
    """Run a function in a child, which ends with it; return its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        # tqdm's own lock is shared with all that are forked: one that is killed while it holds it would stop the rest.
        tqdm.set_lock(threading.RLock())
        try:
            run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def start_forked(
    command: list[str],
    harm: Harm,
    stdin: int,
    stdout: IO | None,
    stderr: IO | None,
    process_group: int,
    preexec_fn: Callable[[], None],
) -> psutil.Process:
    """Stand for psutil.Popen."""
    assert stdin == subprocess.DEVNULL and process_group == 0 and stdout is stderr

    def run() -> None:
        if stdout is not None:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
        preexec_fn()
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if "accelerate.commands.launch" in command:
            launch(command, harm)
        else:
            run_script(command, harm)

    return psutil.Process(fork(run))


def run_script(command: list[str], harm: Harm) -> None:
    """Run a script as Python would, and end this process as Python would."""
    words = [word for word in command if word != "-P"]
    name = Path(words[1]).stem
    sys.argv, sys.orig_argv, status = words[1:], command, 0
    harm.arm(name)
    module = importlib.import_module(name)
    if os.environ.get("CAMPAIGN_DIVIDED"):
        from divided_models import fsdp2

        from training import accelerators

        accelerators.Accelerator = fsdp2
    try:
        (module.run_command if hasattr(module, "run_command") else module.run_script)(module.main)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
    except KeyboardInterrupt:
        traceback.print_exc()
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    with suppress(BaseException):
        threading._shutdown()  # waits for threads, as Python does
        if harm.trace:
            Path(harm.trace, f"{name}.modules").write_text("\n".join(sorted(sys.modules)))
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def launch(command: list[str], harm: Harm) -> None:
    """Start the processes of an `accelerate launch`, end all when one fails, and end this process.

    For one process Accelerate's launcher has no handler; for several torchrun sends SIGTERM to all, and then SIGKILL.
    """
    count = int(command[command.index("--num_processes") + 1])
    script = next(index for index, word in enumerate(command) if word.endswith(".py"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks, stopped = [], []
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if count > 1 else ()
    before = {number: signal.getsignal(number) for number in handled}
    for number in handled:  # before the first is there, which would wait for the others of a launcher that has ended
        signal.signal(number, lambda *_: stopped.append(1))
    for rank in range(count):

        def run(rank: int = rank) -> None:
            for number, handler in before.items():
                signal.signal(number, handler)
            os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # as the launch files of the campaign say
            if count > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
                os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_PORT": port}
            run_script([sys.executable, *command[script:]], harm)

        ranks.append(psutil.Process(fork(run)))
    failed = False
    while ranks and not failed and not stopped:
        for rank in list(ranks):
            with suppress(psutil.TimeoutExpired):
                failed = failed or rank.wait(0.02) != 0
                ranks.remove(rank)
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.terminate()
    for rank in psutil.wait_procs(ranks, GRACE_SECONDS)[1]:
        rank.kill()
    os._exit(1 if failed or stopped else 0)
