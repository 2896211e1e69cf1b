# SPDX-License-Identifier: Apache-2.0
"""Stages killed with SIGKILL, or left without room, while they write: the rerun gives an undisturbed run's bytes.

crash_shim.c kills a stage just before its n-th change to the run folder, or fills the disk there. Every stage runs in
a forked child of one process that has imported everything, so that a case costs the stage's time without Python's
start.

    pytest tests/recovery/test_killed_stages.py          at its start, in the middle, before and after its final rename
    pytest tests/recovery/test_killed_stages.py --all    at every change it makes; tests/README.md has the last count
"""

import ctypes
import errno
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from tiny_run import RECIPES, ROOT, TinyRun, make_text

import file_hashes
from atomic_files import RECORD, file_sha256
from corpus import pipeline_executor
from file_hashes import MEMORY
from recipe_loading import run_command
from stages import STAGES


# Stage -> (its module, overrides). One worker, since the shim counts the changes of one process.
SCRIPTS = {
    "prepare": ("prepare_data", ["--data.near_duplicates={}"]),
    "tokenizer": ("train_tokenizer", []),
    "tokenize": ("tokenize_corpus", []),
    "pretrain": ("pretrain", []),
    "publish": ("push_to_hub", []),
}
# Trained long enough for one checkpoint, from which every try resumes: the kills hit the rest and the export.
TRAINING = ["--data.near_duplicates={}", "--training.max_tokens=512", "--training.warmup_steps=1"]
TRAINING += ["--training.save_steps=1", "--training.eval_steps=2", "--training.decay_fraction=0.5"]
TRAINING += ["--tokenizer.vocab_size=320"]
pytestmark = pytest.mark.timeout(0)  # the fixture has a limit of its own
FULL = "full disk"  # from the middle on
POINTS = ("start", "middle", "before its record", "before the rename", "after the rename")


def write_texts(folder: Path) -> None:
    """Write the sources of a `TinyRun` as three files, each of which is a task of prepare."""
    (folder / "web").mkdir(parents=True)
    for number, name in enumerate(("law.jsonl", "web/a.jsonl", "web/b.jsonl")):
        rows = [json.dumps({"text": make_text(100 * number + row)}) + "\n" for row in range(12)]
        (folder / name).write_text("".join(rows))


def run_stage(
    stage: str, run: TinyRun, kill_before: int = 0, trace: Path | None = None, full: Path | None = None
) -> int:
    """Run a stage in a child, killed before its n-th change unless n is 0; return the child's exit code.

    Args: full: file for what it prints on stderr where the disk is full from that change on, in place of the kill.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        module, overrides = SCRIPTS[stage]
        argv = run.argv(*TRAINING, *overrides)
        shim = ctypes.CDLL(None)
        if full:
            os.dup2(os.open(full, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
            shim.crash_shim_refuse(errno.ENOSPC)
        shim.crash_shim_watch(os.fsencode(run.output_dir), ctypes.c_long(kill_before), os.fsencode(trace or ""))
        run_command(partial(importlib.import_module(module).main, argv))
        status = 0
    except SystemExit as stopped:  # of run_command
        sys.stderr.write(f"{stopped.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def read_output(stage: str, run: TinyRun) -> str | None:
    """Return the hashes of the files in a stage's output, checked against its record; None where there is none."""
    folder = run.output_dir / STAGES[stage].output
    if not folder.exists():
        return None
    record = json.loads((folder / RECORD).read_text())
    paths = [path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD]
    found = {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}
    recorded = {name: entry["sha256"] for name, entry in record["files"].items()}
    if found != recorded:
        return f"files {sorted(found)}, recorded {sorted(recorded)}"
    recorded.pop("speed.json", None)  # the tokenizer's, a measurement
    return json.dumps(recorded, sort_keys=True)


def list_outputs(run: TinyRun) -> list[str]:
    """Return the names in a run folder, without the memory of hashes, which every start may write."""
    return sorted(path.name for path in run.output_dir.iterdir() if MEMORY not in path.name)


def choose_points(changes: list[str], final: Path) -> dict[str, int]:
    """Return the number of the change before which to kill, for each of POINTS.

    The middle is the middle write into the output; in a model's export, of its weights under a temporary name.
    """
    renamed = changes.index(f"rename {final}") + 1
    recorded = max(n for n in range(1, renamed) if changes[n - 1].endswith(f"/{RECORD}"))
    writes = [n for n in range(1, recorded) if changes[n - 1].startswith(f"write {final.parent}/.{final.name}.")]
    return dict(zip(POINTS, (1, writes[(len(writes) - 1) // 2], recorded, renamed, renamed + 1), strict=True))


def kill_stage(stage: str, run: TinyRun, inputs: Path, everywhere: bool) -> dict[str, dict]:
    """Run a stage undisturbed, then killed at each point and run again, always from the same inputs.

    Args: everywhere: kills before every other change too.
    Returns: point -> exit code of the killed try and what it left, exit code of the rerun, hashes of both outputs; of
        FULL also what the try without room printed.
    """
    trace = run.texts / f"{stage}.trace"
    final = run.output_dir / STAGES[stage].output
    assert run_stage(stage, run, trace=trace) == 0
    expected, beside = read_output(stage, run), list_outputs(run)
    changes = trace.read_text().splitlines()
    points = {number: point for point, number in choose_points(changes, final).items()}
    if everywhere:
        points = {number: f"change {number}" for number in range(1, len(changes) + 1)} | points
    results = {}
    tries = [(number, point, None) for number, point in sorted(points.items())]
    middle = next(number for number, point in points.items() if point == "middle")
    for number, point, full in [*tries, (middle, FULL, run.texts / f"{stage}.stderr")]:
        shutil.rmtree(run.output_dir)
        shutil.copytree(inputs, run.output_dir)
        killed = run_stage(stage, run, kill_before=number, full=full)
        left = read_output(stage, run)
        rerun = run_stage(stage, run)
        names = list_outputs(run)
        results[point] = {
            "changes": len(changes),
            "before": changes[number - 1],
            "killed": killed,
            "left": left,
            "rerun": rerun,
            "same": read_output(stage, run) == expected,
            "beside": sorted(set(names) ^ set(beside)),
            "expected": expected,
            "printed": full and full.read_text(),
        }
    return results


def kill_session(folder: str, everywhere: str) -> None:
    """Run the stages one after the other, each killed at its points, in a process with the shim.

    Args: everywhere: of kill_stage; empty: no.
    """
    for module, _ in SCRIPTS.values():
        importlib.import_module(module)
    pipeline_executor.NOTE_SECONDS = math.inf  # or a slow machine would count more changes than a fast one
    file_hashes.CLOCK_TICK_NS = math.inf  # no hash is remembered, which a fast machine would do more rarely
    root = Path(folder)
    run = TinyRun(root / "texts", root / "run")
    write_texts(run.texts)
    run.output_dir.mkdir()
    results = {}
    for stage in SCRIPTS:
        if stage == "pretrain":  # a whole training, whose checkpoints are kept
            assert run_stage(stage, run) == 0
            shutil.rmtree(run.output_dir / "model")
        inputs = root / f"before_{stage}"
        shutil.copytree(run.output_dir, inputs)
        results[stage] = kill_stage(stage, run, inputs, bool(everywhere))
        (root / "results.json").write_text(json.dumps(results, indent=1))


@pytest.fixture(scope="module")
def results(crash_shim, tmp_path_factory, request) -> dict[str, dict[str, dict]]:
    """What happened in `kill_session`: stage -> point -> result."""
    folder = tmp_path_factory.mktemp("killed")
    everywhere = "everywhere" if request.config.getoption("--all") else ""
    paths = os.pathsep.join([str(RECIPES), str(ROOT / "tests"), str(Path(__file__).parent)])
    code = "import sys, test_killed_stages; test_killed_stages.kill_session(*sys.argv[1:])"
    with (folder / "output").open("w") as output:  # not a pipe, which a helper of a killed stage would keep open
        session = subprocess.Popen(
            [sys.executable, "-c", code, folder, everywhere],
            env=os.environ | {"PYTHONPATH": paths, "LD_PRELOAD": str(crash_shim), "TOKENIZERS_PARALLELISM": "false"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            status = session.wait(None if everywhere else 500)
        finally:
            with suppress(ProcessLookupError):  # helpers of a killed stage
                os.killpg(session.pid, signal.SIGKILL)
            session.wait()
    assert status == 0, (folder / "output").read_text()
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_stage_that_is_killed_leaves_no_output_or_the_whole_one_and_its_rerun_gives_the_same_bytes(results, stage):
    assert len(results[stage]) > len(POINTS)
    renamed = False
    killed = {point: found for point, found in results[stage].items() if point != FULL}
    for point, found in killed.items():
        assert found["killed"] == -signal.SIGKILL, (point, found)
        assert found["left"] == (found["expected"] if renamed else None), (point, found)
        assert found["rerun"] == 0 and found["same"], (point, found)
        renamed = renamed or found["before"].endswith(f"/run/{STAGES[stage].output}")
    assert renamed


@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_stage_without_room_ends_with_a_line_and_goes_on_with_room(results, stage):
    found = results[stage][FULL]
    *_, last = re.split(r"[\r\n]+", found["printed"].strip())
    assert found["killed"] == 1 and "Traceback" not in found["printed"], found
    assert "No space left on device" in last or "are free" in last, last
    assert found["left"] is None and found["rerun"] == 0 and found["same"], found


@pytest.mark.parametrize("stage", SCRIPTS)
def test_the_rerun_of_a_killed_stage_leaves_nothing_beside_its_output(results, stage):
    for point, found in results[stage].items():
        if found["left"] is None:  # a finished stage does not run again
            assert found["beside"] == [], (point, found)


@pytest.mark.parametrize("killed", ["the command", "a worker"])
def test_prepare_on_two_workers_that_is_killed_gives_the_bytes_of_one_that_is_not(tmp_path, killed):
    runs = [TinyRun(tmp_path / "texts", tmp_path / name) for name in ("alone", "killed")]
    write_texts(runs[0].texts)
    (runs[0].texts / "law.jsonl").write_text(
        "".join(json.dumps({"text": make_text(row) * 20}) + "\n" for row in range(400))
    )

    def command(run: TinyRun, workers: int) -> list[str]:
        return [sys.executable, str(RECIPES / "prepare_data.py"), *run.argv(f"--data.workers={workers}")]

    subprocess.run(command(runs[0], 1), check=True, capture_output=True)
    process = subprocess.Popen(command(runs[1], 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def workers() -> list[psutil.Process]:
        """Return the processes that the fork server has made."""
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(process.pid)
            return [one for child in own.children() for one in child.children()]
        return []

    while process.poll() is None and not (found := workers()):
        time.sleep(0.01)
    assert found, "it ended before a worker was there"
    (process if killed == "the command" else found[-1]).kill()
    assert process.wait(60) != 0
    deadline = time.monotonic() + 30
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in found):
        assert time.monotonic() < deadline, "a worker outlives the command"
        time.sleep(0.05)
    assert read_output("prepare", runs[1]) is None
    subprocess.run(command(runs[1], 2), check=True, capture_output=True)
    assert read_output("prepare", runs[1]) == read_output("prepare", runs[0])
