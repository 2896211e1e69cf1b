# SPDX-License-Identifier: Apache-2.0
"""Attack tiny runs at random: each must end with the same bytes as a run of its recipe that nothing disturbs.

    python tests/campaign.py --minutes 30 --seed 1      # prints each failure, and the command that repeats it
    python tests/campaign.py --seed 1 --tries 417       # repeat one, or several

A recipe is drawn for every dozen tries: from scratch, with phases, with adapters, continued, distilled or with a
Unigram vocabulary, on 1, 2 or 4 processes, by DDP or FSDP2; or a fine-tuning, or an experiment (attacked_runs.py). A
try harms a stage of it and then runs the same command again. It counts if the harm took place: a process may end
before the moment of a kill, or need less than a limit.
A campaign of ten minutes or more writes its result into tests/README.md. Needs Linux and a C compiler.
"""

import argparse
import contextlib
import ctypes
import errno
import json
import os
import platform
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import psutil
from attacked_runs import SCRIPTS, SECONDS_A_TRY, TIMEOUT_SECONDS, Attacked, attacked_run, make_base, tail
from tiny_run import write_tiny_texts
from warm_processes import RUN_RECIPE, Harm, fork, import_all, import_as, start


PAGE, MARKED = Path(__file__).with_name("README.md"), re.compile(r"(<!-- campaign -->\n).*?(<!-- /campaign -->)", re.S)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
ENVIRONMENT |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
TRIES_A_RECIPE = 12
LEAST_TRIES = 2  # of a worker, however slow the machine is
END_SECONDS = 45  # for the launcher, which gives a process that stands still 30 s to leave
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@dataclass
class Try:
    """One attack, drawn from the seed and its number.

    Attributes:
        stage: that is attacked, in the words of the result.
        kind: of the attack.
        problems: what is wrong with what happened.
        harmed: whether the harm took place.
    """

    number: int
    stage: str
    kind: str
    problems: list[str]
    harmed: bool = True


def draw_attacks(seed: int, until: int) -> list[tuple[str, str]]:
    """Return the stage and the kind of attack of each try before a number.

    The kinds are drawn like cards: first one of each, then the rest of the pack, and a card that does not fit waits.
    """
    drawn: list[tuple[str, str]] = []
    packs: dict[bool, list[str]] = {}
    for number in range(until):
        if number % TRIES_A_RECIPE == 0:
            attacked = attacked_run(Path(), seed, number // TRIES_A_RECIPE)
        draw = random.Random(f"{seed}/{number}")
        if draw.random() < 0.05:
            drawn.append(("recipe", "hostile file"))
            continue
        stage = draw.choices(list(attacked.scripts), [often for _, often in attacked.scripts.values()])[0]
        kinds = KINDS_OF_TRAINING if stage == "pretrain" else KINDS_OF_STAGES
        left_out = {"stopped process"} if attacked.processes == 1 else set()
        left_out |= {FLIPPED} if len(attacked.scripts) < 5 else set()
        pack = packs.setdefault(stage == "pretrain", [])
        if not set(pack) - left_out:
            rest = [kind for kind, (_, often) in kinds.items() for _ in range(often - 1)]
            pack += [*draw.sample(list(kinds), len(kinds)), *draw.sample(rest, len(rest))]
        kind = next(kind for kind in pack if kind not in left_out)
        pack.remove(kind)
        drawn.append((stage, kind))
    return drawn


def attack(attacked: Attacked, seed: int, number: int) -> Try:
    """Carry out the attack of a number, run the command again, and check both."""
    (stage, kind), draw = draw_attacks(seed, number + 1)[-1], random.Random(f"{seed}/{number}/harm")
    folder = attacked.root / f"try-{number}"
    folder.mkdir()
    try:
        if stage == "recipe":
            return Try(number, stage, kind, attack_loader(draw, folder))
        kinds = KINDS_OF_TRAINING if stage == "pretrain" else KINDS_OF_STAGES
        place = "a save" if kind == "killed in a save" else "training" if stage == "pretrain" else stage
        one = Attack(attacked, draw, stage, kind, folder / "run", folder / "log")
        kinds[kind][0](one)
        return Try(number, place, kind, one.problems, one.harmed)
    finally:
        if os.path.ismount(folder / "disk"):
            subprocess.run(["umount", "--lazy", str(folder / "disk")], check=True)
        shutil.rmtree(folder)


class Attack:
    """One attack on a stage, with what is wrong afterwards in `problems`, and whether it took place in `harmed`."""

    def __init__(self, attacked: Attacked, draw: random.Random, stage: str, kind: str, run: Path, log: Path):
        self.attacked, self.draw, self.stage, self.kind, self.run, self.log = attacked, draw, stage, kind, run, log
        self.problems: list[str] = []
        self.harmed, self.ended = True, 0.0
        self.script, self.stages = attacked.scripts[stage][0], attacked.stages_until(stage)
        self.rank = draw.randrange(attacked.processes) if stage == "pretrain" else 0

    def copy(self) -> None:
        self.attacked.copy_before(self.stage, self.run, self.draw)

    # --- kinds of attack

    def kill_at_change(self, within: str = "") -> None:
        """Kill a process of the stage before a change of a file."""
        self.copy()
        self.execute(replace(self.at_change(within), error=0), killed=True)
        self.finish()

    def kill_in_save(self) -> None:
        self.kill_at_change("/checkpoints/")

    def fill_disk(self) -> None:
        """Have no room from a change of a file on."""
        self.copy()
        self.execute(replace(self.at_change(""), error=errno.ENOSPC))
        self.finish()

    def fill_small_disk(self) -> None:
        """Run on a file system that is too small, and then large enough."""
        disk = self.run.parent / "disk"
        disk.mkdir()
        self.run = disk / "run"
        whole = size_of(self.attacked.whole)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={2 * whole}", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            return self.fill_disk()
        self.copy()
        before = size_of(self.run)
        size = before + int((whole - before) * self.draw.random()) + (1 << 16)
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
        self.execute(Harm())
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        return self.finish()

    def kill_in_step(self) -> None:
        """Kill a process in a forward pass of training."""
        self.copy()
        self.execute(self.in_step((signal.SIGKILL,)), killed=True)
        self.finish()

    def stop_in_step(self) -> None:
        """Send signals that stop a run while it trains."""
        self.copy()
        harm = self.in_step(tuple(self.draw.choices(STOP_SIGNALS, k=self.draw.choice([1, 1, 2, 4]))))
        if harm.target == "launcher":  # has no handlers of its own for the others
            harm = replace(harm, signals=(signal.SIGTERM,) * len(harm.signals))
        status = self.execute(replace(harm, pause=self.draw.choice([0.0, 0.05])))
        step = harm.forward // self.micro_steps()
        if status == 75 and step > 1 and self.newest() < step - 1:
            self.problems.append(f"signals at step {step} left the checkpoint of step {self.newest()}")
        if status not in (0, 75):
            self.problems.append(f"signals ended the command with {status}")
        self.finish()

    def freeze(self) -> None:
        """Stop a process for ever, as a hung device would: the others name it, and end in time."""
        self.copy()
        harm = replace(self.in_step((signal.SIGSTOP,)), target="rank")
        status = self.execute(harm)
        if self.harmed:
            seconds = self.ended - self.log.with_suffix(".mark").stat().st_mtime
            limit = TIMEOUT_SECONDS[self.attacked.processes] + 5 + END_SECONDS
            if status != 1:
                self.problems.append(f"a stopped process ended the command with {status}")
            if f"process {self.rank} on" not in self.log.read_text(errors="replace"):
                self.problems.append(f"process {self.rank}, which stood still, is not named: {tail(self.log)}")
            if seconds > limit:
                self.problems.append(f"a stopped process ended the command after {seconds:.0f} s, not {limit}")
        self.finish()

    def kill_at_moment(self) -> None:
        """Kill any process of the command at any moment."""
        self.copy()
        self.execute(Harm(), killed=True, later=lambda processes: self.draw.choice(processes).kill())
        self.finish()

    def stop_at_moment(self) -> None:
        """Send signals that stop a run at any moment."""
        self.copy()
        numbers = self.draw.choices(STOP_SIGNALS, k=self.draw.choice([1, 1, 2, 4]))

        def send(processes: list[psutil.Process]) -> None:
            for number in numbers:
                processes[0].send_signal(number)
                time.sleep(0.02)

        status = self.execute(Harm(), later=send)
        if status not in (0, 75):
            self.problems.append(f"signals ended the command with {status}")
        self.finish()

    def set_clock_back(self) -> None:
        """Set the wall clock of a process back by a minute to a year while it trains."""
        self.copy()
        seconds = self.draw.choice([60, 86_400, 365 * 86_400])
        status = self.execute(replace(self.in_step(()), target="rank", clock_back_seconds=seconds))
        if status != 0:
            self.problems.append(f"with a clock set back by {seconds} s the command ended with {status}")
        self.finish()

    def limit_files(self) -> None:
        """Let a process of the stage open few files, of which it has some from the start."""
        self.copy()
        self.execute(Harm(self.script, self.rank, open_files=self.draw.choice([10, 12, 16, 24, 64])))
        self.finish()

    def limit_memory(self) -> None:
        """Let a process of the stage take little memory."""
        self.copy()
        self.execute(Harm(self.script, self.rank, memory_bytes=1 << self.draw.randrange(16, 28)))
        self.finish()

    def start_twice(self) -> None:
        """Start the same command twice, shortly after one another."""
        self.copy()
        first = self.attacked.start(self.run, self.log, Harm(), self.stages)
        time.sleep(self.draw.random() * self.attacked.seconds(self.stage))
        self.harmed = is_alive(first)
        second = self.attacked.start(self.run, self.log.with_suffix(".2"), Harm(), self.stages)
        statuses = []
        for process in (first, second):
            try:
                statuses.append(process.wait(SECONDS_A_TRY))
            except psutil.TimeoutExpired:
                self.problems.append(f"one of two commands did not end in {SECONDS_A_TRY} s")
        for log in (self.log, self.log.with_suffix(".2")):
            self.look_at(log.read_text(errors="replace"))
        if 0 not in statuses:
            self.problems.append(f"two commands at once: both failed, {statuses}: {tail(self.log)}")
        self.finish()

    def flip_bit(self) -> None:
        """Kill the stage, flip a bit of any file, and run it again: it is refused, or changes nothing."""
        self.copy()
        harm = self.in_step((signal.SIGKILL,)) if self.stage == "pretrain" else self.at_change("")
        self.execute(harm, killed=True)
        name, undo = self.flip()
        self.harmed = True  # also where the stage ended before it was to be killed
        status = self.attacked.run(self.run, self.log, Harm(), self.stages)
        self.look_at(self.log.read_text(errors="replace"))
        if status == 0:  # it was in a file that these stages do not read, or replace
            made = self.stages[self.stages.index(self.stage) :]
            found = self.attacked.find_differences(self.run, made)
            self.problems += [f"after a flipped bit in {name}, which nobody noticed, {one}" for one in found]
        elif status != 1:
            self.problems.append(f"after a flipped bit in {name} the command ended with {status}")
        undo()
        self.finish()

    def flip_in_finished(self) -> None:
        """Flip a bit of a finished run: verify_run.py names the file, and if it matters, no release is made of it."""
        shutil.copytree(self.attacked.whole, self.run, symlinks=True)
        name, undo = self.flip()
        if not any(Path(name).name in line for run in self.attacked.runs_in(self.run) for line in verify(run)):
            self.problems.append(f"verify_run.py does not name {name}, in which a bit was flipped")
        shutil.rmtree(self.run / "release")
        status = self.attacked.run(self.run, self.log, Harm(), tuple(SCRIPTS))
        output = self.log.read_text(errors="replace")
        self.look_at(output)
        if status not in (0, 1):
            self.problems.append(f"after a flipped bit in {name} the command ended with {status}")
        if status == 0 and must_refuse(name):
            self.problems.append(f"a release was made in spite of a flipped bit in {name}")
        if status == 1 and (self.run / "release").exists():
            self.problems.append(f"a flipped bit in {name} was refused, but there is a release")
        if status == 1 and must_refuse(name) and Path(name).name not in output:
            self.problems.append(f"a flipped bit in {name} was refused without its name: {tail(self.log)}")
        undo()
        if status == 0:
            self.problems += self.attacked.find_differences(self.run, ("publish",))

    # --- what they share

    def at_change(self, within: str) -> Harm:
        """Return the harm at a change that this process makes, among those of paths that hold a text."""
        if not any(within in change for change in self.attacked.changes(self.script, self.rank)):
            self.rank = 0  # the others write nothing there
        changes = self.attacked.changes(self.script, self.rank)
        numbers = [number for number, change in enumerate(changes, 1) if within in change]
        return Harm(self.script, self.rank, change=self.draw.choice(numbers), watched=str(self.run))

    def in_step(self, signals: tuple[int, ...]) -> Harm:
        """Return the harm in a forward pass of training."""
        steps = self.attacked.max_steps()
        forward = self.draw.randrange(1, steps * self.micro_steps() + 1)
        target = self.draw.choice(["rank", "rank", "launcher", "run_recipe"])
        return Harm(self.script, self.rank, forward=forward, target=target, signals=signals)

    def micro_steps(self) -> int:
        return self.attacked.tokens_per_step // (64 * self.attacked.processes)

    def newest(self) -> int:
        """Return the step of the newest checkpoint of the model that was trained last; 0 if there is none."""
        trained = [run / "status.json" for run in self.attacked.runs_in(self.run) if (run / "status.json").exists()]
        if not trained:
            return 0
        last = max(trained, key=lambda path: path.stat().st_mtime_ns).parent
        names = [path.name for path in (last / "checkpoints").glob("step_*") if path.is_dir()]
        return max((int(name[5:13]) for name in names if re.fullmatch(r"step_\d{8}", name)), default=0)

    def execute(self, harm: Harm, killed: bool = False, later=None) -> int | None:
        """Run the command with a harm and check how it ended; return its exit code.

        Args: killed: a process of it is killed, maybe the first.  later: is called with the processes after a while.
        """
        mark = self.log.with_suffix(".mark")
        self.log.touch()  # the command may be killed before it prints
        process = self.attacked.start(self.run, self.log, replace(harm, mark=str(mark)), self.stages)
        self.harmed = False
        if later is not None:
            time.sleep(self.draw.random() * 1.1 * self.attacked.seconds(self.stage))
            with suppress(psutil.NoSuchProcess):
                alive = [one for one in [process, *process.children(recursive=True)] if is_alive(one)]
                if process in alive:
                    later(alive)
                    self.harmed = True
        try:
            status = process.wait(SECONDS_A_TRY)
        except psutil.TimeoutExpired:
            status = None
            self.problems.append(f"did not end in {SECONDS_A_TRY} s")
            for child in [process, *process.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        self.ended = time.time()
        self.leave_no_orphan()
        if later is None:  # a limit took effect if the command failed
            self.harmed = mark.exists() if harm.change or harm.forward else status != 0
        output = self.log.read_text(errors="replace")
        if not output and status is not None and -status in STOP_SIGNALS:
            return 75  # it had not started to run
        self.look_at(output)
        if status not in (0, 1, 75, *([-signal.SIGKILL] if killed else [])):
            self.problems.append(f"ended with {status}: {tail(self.log)}")
        hint = f"start again with: {shlex.join([sys.executable, *self.attacked.command(self.run)])}\n"
        if hint not in output and (status == 75 or (status == 1 and self.attacked.says_how_to_start_again)):
            self.problems.append(f"no command to start again with: {tail(self.log)}")
        saved = [line["step"] for line in read_events(self.run) if line["event"] == "save"]
        if saved and self.newest() < max(saved):
            self.problems.append(f"the checkpoint of step {max(saved)} is lost")
        return status

    def leave_no_orphan(self) -> None:
        """Wait for what the command left behind, such as a training that saves; end it if it stays."""
        left = psutil.Process().children(recursive=True)
        for orphan in psutil.wait_procs(left, 40)[1]:
            with suppress(psutil.NoSuchProcess):
                if orphan.status() != psutil.STATUS_ZOMBIE:
                    self.problems.append(f"a process was left behind: {orphan.status()}")
                orphan.kill()
        psutil.wait_procs(psutil.Process().children(recursive=True), 5)

    def look_at(self, output: str) -> None:
        if "Traceback (most recent call last)" in output and not any("traceback" in p for p in self.problems):
            self.problems.append(f"a traceback: {find_error(output)}")

    def finish(self) -> None:
        """Run the same command again, undisturbed, and compare."""
        self.log.rename(self.log.with_suffix(".1"))
        status = self.attacked.run(self.run, self.log, Harm(), self.stages)
        self.leave_no_orphan()
        if status != 0:
            self.problems.append(f"the same command ended with {status}: {tail(self.log)}")
            return
        self.look_at(self.log.read_text(errors="replace"))
        self.compare("")

    def compare(self, when: str) -> None:
        self.problems += [f"{when}{found}" for found in self.attacked.find_differences(self.run, self.stages)]
        for run in self.attacked.runs_in(self.run):
            self.problems += [f"{when}verify_run.py: {line}" for line in verify(run)]
            if (run / "model").exists():
                recorded, whole = map(recorded_names, (run, self.attacked.whole / run.relative_to(self.run)))
                self.problems += [f"{when}{name} is not recorded" for name in sorted(whole - recorded)]
        known = {path.relative_to(self.attacked.whole) for path in self.attacked.whole.rglob(".*")}
        hidden = [path for path in self.run.rglob(".*") if path.relative_to(self.run) not in known]
        hidden = [path.name for path in hidden if path.name not in HARMLESS]
        self.problems += [f"{when}{name} was left in the run folder" for name in hidden]

    def flip(self) -> tuple[str, Callable[[], None]]:
        """Flip a bit of a file; return its name, and a function that restores it."""
        paths = sorted(path for path in self.run.rglob("*") if path.is_file() and path.stat().st_size)
        paths = [path for path in paths if path.name not in HARMLESS]
        path = self.draw.choice(
            self.draw.choice([paths, [path for path in paths if path.parent == self.run] or paths])
        )
        content = path.read_bytes()
        changed, bit = bytearray(content), self.draw.randrange(8 * len(content))
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)

        def undo() -> None:
            if path.exists() and path.read_bytes() == changed:  # nothing has replaced it
                path.write_bytes(content)

        return str(path.relative_to(self.run)), undo


FLIPPED = "flipped bit, finished"  # of a recipe with a release
KINDS_OF_TRAINING = {
    "killed in a step": (Attack.kill_in_step, 22),
    "killed in a save": (Attack.kill_in_save, 22),
    "killed at any change": (Attack.kill_at_change, 6),
    "killed at any moment": (Attack.kill_at_moment, 6),
    "stop signals": (Attack.stop_in_step, 18),
    "full disk": (Attack.fill_disk, 8),
    "small disk": (Attack.fill_small_disk, 3),
    "stopped process": (Attack.freeze, 5),
    "flipped bit, then resumed": (Attack.flip_bit, 12),
    FLIPPED: (Attack.flip_in_finished, 4),
    "started twice": (Attack.start_twice, 4),
    "few open files": (Attack.limit_files, 2),
    "little memory": (Attack.limit_memory, 4),
    "clock set back": (Attack.set_clock_back, 3),
}
KINDS_OF_STAGES = {
    "killed at any change": (Attack.kill_at_change, 35),
    "killed at any moment": (Attack.kill_at_moment, 12),
    "stop signals": (Attack.stop_at_moment, 18),
    "full disk": (Attack.fill_disk, 15),
    "small disk": (Attack.fill_small_disk, 5),
    "flipped bit, then resumed": (Attack.flip_bit, 10),
    "started twice": (Attack.start_twice, 10),
    "few open files": (Attack.limit_files, 3),
    "little memory": (Attack.limit_memory, 6),
}
# The memory of hashes has a checksum of its own, and a damaged one is not used; a lock's content is not read.
HARMLESS = {".hashes", ".hashes.lock", ".lock", "lock", "log.txt", ".arms.lock", ".rows.lock", ".claim"}
HARMLESS |= {"arms.yaml"}  # the user's


def attack_loader(draw: random.Random, folder: Path) -> list[str]:
    """Give run_recipe.py a hostile recipe: it is refused within two seconds of a processor, without a traceback."""
    from test_recipe_config import write_hostile

    recipe, log = write_hostile(draw.randrange(1_000_000), folder), folder / "log"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = start([RUN_RECIPE, "--config", str(recipe), "--dry_run"], log, Harm(), ()).wait(60)
    after, output = resource.getrusage(resource.RUSAGE_CHILDREN), log.read_text(errors="replace")
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    problems = [f"a hostile recipe ended with {status}: {output[-300:]}"] if status != 2 else []
    problems += ["a traceback for a hostile recipe"] if "Traceback" in output else []
    return problems + ([f"a hostile recipe took {seconds:.1f} s of a processor"] if seconds > 2 else [])


def must_refuse(name: str) -> bool:
    """Return whether a file of a finished run steers its release, or is in it.

    A stage's record holds things that do neither; where it is taken, the release must be the same.
    """
    from publishing.release_files import OPTIONAL_RECORDS, RECORDS

    read = ("documents", "tokenizer", "tokens", "model", "eval", "figures", "report.html", "run_files.json")
    steers = Path(name).parts[0] in read and Path(name).name != "stage.json"
    return steers or name in RECORDS | OPTIONAL_RECORDS


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def recorded_names(run: Path) -> set[str]:
    """Return which files of training a run has recorded."""
    from recorded_files import OF_TRAINING, recorded_run_files

    return recorded_run_files(run).keys() & {*OF_TRAINING}


def verify(run: Path) -> list[str]:
    """Return the lines of verify_run.py about what is wrong."""
    import verify_run

    log = run.with_name("verify")

    def check() -> None:
        with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.suppress(SystemExit):
            verify_run.main([str(run)])

    psutil.Process(fork(check)).wait()
    return [line for line in log.read_text().splitlines() if "! " in line or "Traceback" in line]


def read_events(run: Path) -> list[dict]:
    """Return the events of a chronicle, without half a last line."""
    with suppress(FileNotFoundError):
        lines = (run / "chronicle.jsonl").read_text(errors="replace").split("\n")[:-1]
        return [json.loads(line) for line in lines]
    return []


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def find_error(output: str) -> str:
    """Return the first line that names an exception after a traceback, and the last line of ours above it."""
    after = output.partition("Traceback (most recent call last)")[2]
    found = re.search(r"^(\w[\w.]*(Error|Exception|Interrupt)\b.*)", after, re.M)
    if not found:
        return after[:600]
    ours = re.findall(r'File ".*/((?:recipes|eval)/\S+)", line (\d+)', after[: found.start()])
    return f"{':'.join(ours[-1]) if ours else ''} {found[1][:300]}"


def work(root: Path, seed: int, recipes: range, until: float, tries: set[int] | None) -> None:
    """Attack one recipe after the other until the time is over, and append a line about each try to `results`."""
    from child_processes import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl

    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    made = 0
    for number in recipes:
        numbers = range(number * TRIES_A_RECIPE, (number + 1) * TRIES_A_RECIPE)
        numbers = [one for one in numbers if tries is None or one in tries]
        if not numbers or (time.monotonic() > until and made >= LEAST_TRIES):
            continue
        attacked = attacked_run(root, seed, number)
        try:
            attacked.make()
        except (RuntimeError, psutil.TimeoutExpired) as error:
            note(root, seed, Try(numbers[0], "recipe", "undisturbed", [str(error)], harmed=False), attacked, 0.0)
            continue
        import_as(attacked.traces)
        for one in numbers:
            if time.monotonic() > until and made >= LEAST_TRIES:
                return
            made, started = made + 1, time.monotonic()
            found = attack(attacked, seed, one)
            note(root, seed, found, attacked, time.monotonic() - started)
        shutil.rmtree(attacked.folder)


def note(root: Path, seed: int, found: Try, attacked: Attacked, seconds: float) -> None:
    """Append a try to the results, and print what is wrong with it and the command that repeats it."""
    line = vars(found) | {"recipe": str(attacked), "seconds": seconds}
    with (root / "results").open("a") as file:
        file.write(json.dumps(line) + "\n")
    for problem in found.problems:
        print(f"try {found.number}: {found.stage}, {found.kind}, {attacked}: {problem}")
        print(f"  python tests/campaign.py --seed {seed} --tries {found.number}", flush=True)


def report(results: list[dict], seed: int, minutes: float) -> str:
    """Return the result as Markdown: the number of tries of each kind on each stage, and the failures."""
    places = ["training", "a save", *[stage for stage in SCRIPTS if stage != "pretrain"], "fine-tuning", "recipe"]
    harmed = [one for one in results if one["harmed"]]
    counts = Counter((one["kind"], one["stage"]) for one in harmed)
    kinds = sorted({kind for kind, _ in counts}, key=lambda kind: -sum(counts[kind, place] for place in places))
    failed = [one for one in results if one["problems"]]
    recipes = Counter(one["recipe"] for one in harmed)
    lines = [
        f"{len(harmed):,} tries in {minutes:.0f} minutes, seed {seed}, {date.today()}, {os.cpu_count()} cores, "
        f"{processor()}: {len(failed)} failures. {len(results) - len(harmed):,} more, not counted here, ended before "
        "their harm.",
        "",
        f"| attack | {' | '.join(places)} |",
        f"|---|{'--:|' * len(places)}",
        *(f"| {kind} | {' | '.join(str(counts[kind, place] or '') for place in places)} |" for kind in kinds),
    ]
    lines += ["", f"Tries by recipe: {'; '.join(f'{name}: {count}' for name, count in sorted(recipes.items()))}."]
    return "\n".join([*lines, *(f"- {one['recipe']}, {one['kind']}: {one['problems'][0]}" for one in failed), ""])


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--tries", help="only these, by number, separated by commas")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="tries at a time")
    options = parser.parse_args()
    started = time.monotonic()
    tries = {int(number) for number in options.tries.split(",")} if options.tries else None
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        root = Path(folder)
        if "crash_shim" not in os.environ.get("LD_PRELOAD", ""):
            library = root / "crash_shim.so"
            source = Path(__file__).with_name("crash_shim.c")
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
            environment = os.environ | ENVIRONMENT | {"LD_PRELOAD": str(library)}
            command = [sys.executable, *sys.argv]
            raise SystemExit(subprocess.run(command, env=environment, preexec_fn=end_with_parent).returncode)
        import_all()
        write_tiny_texts(root / "texts")
        make_base(root / "base")
        until = started + 60 * options.minutes if tries is None else float("inf")
        last = 100_000 if tries is None else max(tries) // TRIES_A_RECIPE + 1
        workers = [
            fork(lambda first=first: work(root, options.seed, range(first, last, options.workers), until, tries))
            for first in range(options.workers)
        ]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
        lines = (root / "results").read_text().splitlines() if (root / "results").exists() else []
    results = [json.loads(line) for line in lines]
    minutes = (time.monotonic() - started) / 60
    text = report(results, options.seed, minutes)
    if ended := sum(map(bool, statuses)):
        text += f"\n{ended} of {len(statuses)} workers of the campaign ended before their time.\n"
    print(text)
    if minutes >= 10:
        PAGE.write_text(MARKED.sub(lambda found: f"{found[1]}{text}{found[2]}", PAGE.read_text()))
    failed = any(one["problems"] for one in results) or not results or any(statuses)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
