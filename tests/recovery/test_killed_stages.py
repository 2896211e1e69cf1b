# SPDX-License-Identifier: Apache-2.0
"""Stages killed with SIGKILL while they write: the rerun gives the same bytes as an undisturbed run.

crash_shim.c kills a stage just before its n-th change to the run folder. Every stage runs in a forked child of one
process that has imported everything, so that a case costs the stage's time without Python's start.

    pytest tests/recovery/test_killed_stages.py          at its start, in the middle, before and after its final rename
    pytest tests/recovery/test_killed_stages.py --all    at every change it makes; tests/README.md has the last count
"""

import ctypes
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_run import RECIPES, ROOT, TinyRun, make_text

import file_hashes
from atomic_files import RECORD, file_sha256
from corpus import pipeline_executor
from file_hashes import MEMORY
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
POINTS = ("start", "middle", "before its record", "before the rename", "after the rename")


def write_texts(folder: Path) -> None:
    """Write the sources of a `TinyRun` as three files, each of which is a task of prepare."""
    (folder / "web").mkdir(parents=True)
    for number, name in enumerate(("law.jsonl", "web/a.jsonl", "web/b.jsonl")):
        rows = [json.dumps({"text": make_text(100 * number + row)}) + "\n" for row in range(12)]
        (folder / name).write_text("".join(rows))


def run_stage(stage: str, run: TinyRun, kill_before: int = 0, trace: Path | None = None) -> int:
    """Run a stage in a child, killed before its n-th change unless n is 0; return the child's exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        watch = ctypes.CDLL(None).crash_shim_watch
        watch(os.fsencode(run.output_dir), ctypes.c_long(kill_before), os.fsencode(trace or ""))
        module, overrides = SCRIPTS[stage]
        importlib.import_module(module).main(run.argv(*TRAINING, *overrides))
        status = 0
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
    Returns: point -> exit code of the killed try and what it left, exit code of the rerun, hashes of both outputs.
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
    for number, point in sorted(points.items()):
        shutil.rmtree(run.output_dir)
        shutil.copytree(inputs, run.output_dir)
        killed = run_stage(stage, run, kill_before=number)
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
    assert len(results[stage]) >= len(POINTS)
    renamed = False
    for point, found in results[stage].items():
        assert found["killed"] == -signal.SIGKILL, (point, found)
        assert found["left"] == (found["expected"] if renamed else None), (point, found)
        assert found["rerun"] == 0 and found["same"], (point, found)
        renamed = renamed or found["before"].endswith(f"/run/{STAGES[stage].output}")
    assert renamed


@pytest.mark.parametrize("stage", SCRIPTS)
def test_the_rerun_of_a_killed_stage_leaves_nothing_beside_its_output(results, stage):
    for point, found in results[stage].items():
        if found["left"] is None:  # a finished stage does not run again
            assert found["beside"] == [], (point, found)
