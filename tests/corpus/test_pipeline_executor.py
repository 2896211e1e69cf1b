# SPDX-License-Identifier: Apache-2.0
"""Pipelines on one machine, on a stand-in for Slurm and on a local Ray cluster: the same bytes, and no silent end."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.pipeline.readers import ParquetReader
from pipeline_steps import abort_at_exit, be_killed, break_down, refuse, wait_for, write
from slurm_stand_in import install
from tiny_run import RECIPES, ROOT, TinyRun, write_tiny_texts

import prepare_data
from atomic_files import read_record
from corpus import reading_plan, slurm_executor
from corpus.pipeline_executor import TaskProgress, check_executor, run_pipeline
from corpus.slurm_executor import SlurmExecutor
from recipe_config import Data, RecipeError, Slurm, Source
from sources import ranges


TASKS = 3
SLURM = Slurm(partition="cpu", time="00:10:00", mem_per_cpu_gib=3, options={"account": "my-project"})


def section(executor: str = "local", workers: int | None = 2, slurm: Slurm | None = None) -> Data:
    return Data(sources=[Source(name="law", path="law")], executor=executor, workers=workers, slurm=slurm)


ON_SLURM = section("slurm", 2, SLURM)


@pytest.fixture
def texts(tmp_path) -> Path:
    folder = tmp_path / "texts with a space"
    folder.mkdir()
    for part in range(5):
        rows = [{"id": f"{part}-{row}", "text": f"§ {part} " * (row + 1)} for row in range(20)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
    return folder


class Work:
    """A pipeline that reads texts and writes what it read, with further steps between."""

    def __init__(self, texts: Path, folder: Path):
        self.texts, self.out, self.logs = texts, folder / "out", folder / "logs" / "read, then write"

    def run(self, data: Data, *between, tasks: int = TASKS) -> None:
        pipeline = [ParquetReader(str(self.texts)), *between, partial(write, folder=self.out)]
        run_pipeline(pipeline, tasks, data, self.logs, "prepare: read")

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.out.glob("*.txt"))}

    def runs(self) -> list[int]:
        """Return the tasks in the order in which they began to write."""
        return [int(line.split()[0]) for line in (self.out / "runs").read_text().splitlines()]


@pytest.fixture
def work(texts, tmp_path) -> Work:
    return Work(texts, tmp_path / "run")


@pytest.fixture
def expected(texts, tmp_path) -> dict[str, bytes]:
    """What one process of this machine writes."""
    alone = Work(texts, tmp_path / "alone")
    alone.run(section(workers=1))
    assert len(alone.files()) == TASKS and sum(map(len, alone.files().values())) > 2000
    return alone.files()


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def start_controller(work: Work, data: Data, gate: Path) -> subprocess.Popen:
    """Start a process that runs the pipeline, each task of which waits for the gate."""
    code = f"""
import sys; sys.path[:0] = {[str(RECIPES), str(ROOT / "tests")]}
from functools import partial
from pathlib import Path
from datatrove.pipeline.readers import ParquetReader
from pipeline_steps import wait_for, write
from corpus import slurm_executor
from corpus.pipeline_executor import run_pipeline
from recipe_config import Data
slurm_executor.LOOK_SECONDS = slurm_executor.QUEUE_SECONDS = 0.1
pipeline = [ParquetReader({str(work.texts)!r}), partial(wait_for, file=Path({str(gate)!r})), None]
pipeline[-1] = partial(write, folder=Path({str(work.out)!r}))
data = Data.model_validate_json({data.model_dump_json()!r})
run_pipeline(pipeline, {TASKS}, data, Path({str(work.logs)!r}), "prepare: read")
"""
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_an_error_of_a_task_reaches_the_caller_as_it_was_raised(work):
    for workers in (1, 2):
        with pytest.raises(RecipeError) as error:
            work.run(section(workers=workers), partial(refuse, bad=2))
        assert error.value.problems == ("law: a.txt: not text", "law: b.txt: not text either")
        with pytest.raises(LookupError, match="nothing at 2"):
            work.run(section(workers=workers), partial(break_down, bad=2))


def test_a_worker_that_the_kernel_kills_ends_the_run_with_the_remedy_and_the_rerun_does_the_rest(
    work, expected, tmp_path
):
    killed = partial(be_killed, bad=2, unless=tmp_path / "more memory")
    with pytest.raises(RecipeError, match="prepare: read: a worker process was killed, .* fewer data.workers than 2"):
        work.run(section(), killed)
    (tmp_path / "more memory").touch()
    done = set(work.runs())
    assert 2 not in done
    work.run(section(), killed)
    assert work.files() == expected and 2 in work.runs()


def test_a_failing_task_ends_the_tasks_beside_it_at_once(work, tmp_path):
    with pytest.raises(LookupError, match="nothing at 1"):  # task 0 waits for what never comes
        work.run(section(), partial(break_down, bad=1), partial(wait_for, file=tmp_path / "gate"))
    workers = [int(file.read_text()) for file in tmp_path.glob("gate.*")]
    until(lambda: not any(map(is_running, workers)), seconds=5)


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_the_process_that_started_it(work, expected, tmp_path, with_signal):
    controller = start_controller(work, section(), tmp_path / "gate")
    until(lambda: len(list(tmp_path.glob("gate.*"))) == 2)
    workers = [int(file.read_text()) for file in tmp_path.glob("gate.*")]
    assert all(map(is_running, workers)) and controller.pid not in workers
    controller.send_signal(with_signal)
    controller.wait()
    until(lambda: not any(map(is_running, workers)), seconds=5)
    work.run(section())
    assert work.files() == expected


def test_any_number_of_workers_writes_the_same_bytes_and_a_rerun_does_only_what_is_missing(work, expected):
    work.run(section())
    assert work.files() == expected and sorted(work.runs()) == list(range(TASKS))
    (work.logs / "completions" / "00001").unlink()
    (work.out / "00001.txt").unlink()
    work.run(section(workers=3))
    assert work.files() == expected and work.runs()[TASKS:] == [1]


def test_many_short_tasks_need_no_process_and_leave_no_log_each(work):
    work.run(section(workers=1), tasks=64)
    left = [path.relative_to(work.logs).parts[0] for path in work.logs.rglob("*") if path.is_file()]
    assert left == ["completions"] * 64, "datatrove's logs and figures cost 0.024 s a task"
    runs = [line.split() for line in (work.out / "runs").read_text().splitlines()]
    assert runs == [[str(rank), str(os.getpid())] for rank in range(64)]


def test_progress_is_noted_at_most_once_a_second_and_at_the_end(tmp_path):
    progress = TaskProgress(tmp_path, 3)
    for _ in range(1000):
        progress.add(5)
    assert not list(tmp_path.iterdir())
    progress.noted_at -= 1
    progress.add(5)
    assert (tmp_path / "00003").read_text() == "5005"
    progress.add(5)
    progress.note()
    assert (tmp_path / "00003").read_text() == "5010"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A stand-in for the commands of Slurm on the PATH; returns its folder."""
    folder = install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(slurm_executor, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(slurm_executor, "QUEUE_SECONDS", 0.2)
    monkeypatch.setattr(slurm_executor, "UNSEEN_SECONDS", 1.0)
    return folder


def states(slurm: Path, job: int) -> list[str]:
    files = sorted(file for file in (slurm / "jobs" / str(job)).iterdir() if file.name.isdigit())
    return [file.read_text() for file in files]


def jobs(slurm: Path) -> int:
    return len(list((slurm / "jobs").glob("*")))


def test_a_slurm_that_cannot_take_the_job_is_refused_before_work_starts(slurm, monkeypatch, tmp_path):
    check_executor(ON_SLURM)
    refused = section("slurm", None, SLURM.model_copy(update={"partition": "nowhere"}))
    with pytest.raises(RecipeError, match="data.slurm: sbatch refuses a job with these settings: .*invalid partition"):
        check_executor(refused)
    (slurm / "squeue").unlink()
    monkeypatch.setenv("PATH", str(slurm))
    with pytest.raises(RecipeError, match="no squeue on the PATH; start the command on a node that can submit jobs"):
        check_executor(ON_SLURM)


def test_a_job_array_writes_the_bytes_that_one_machine_writes(work, expected, slurm, tmp_path, monkeypatch):
    (tmp_path / "started here").mkdir()
    monkeypatch.chdir(tmp_path / "started here")
    work.logs, work.out = Path("../relative logs"), Path("../relative/out")
    work.run(ON_SLURM)
    assert work.files() == expected and jobs(slurm) == 1
    assert sorted(work.runs()) == list(range(TASKS))
    work.run(ON_SLURM)
    assert jobs(slurm) == 1, "nothing is submitted when nothing is missing"
    (work.logs / "completions" / "00002").unlink()
    work.run(ON_SLURM)
    assert work.runs()[TASKS:] == [2] and len(states(slurm, 101)) == 1


def test_an_element_whose_work_is_done_has_not_failed_where_a_library_aborts_at_its_exit(work, expected, slurm):
    work.run(ON_SLURM, abort_at_exit)
    until(lambda: set(states(slurm, 100)) == {"COMPLETED"})
    assert work.files() == expected and jobs(slurm) == 1


def test_the_submitted_script_says_what_the_recipe_says_and_holds_no_secret(work, slurm):
    SlurmExecutor(ON_SLURM, [ParquetReader(str(work.texts))], 5, work.logs, "prepare: read").launch_job()
    subprocess.run(["scancel", "100"], check=True)
    script = (slurm / "jobs" / "100" / "script").read_text()
    lines = set(script.splitlines())
    assert lines >= {
        "#SBATCH --partition=cpu",
        "#SBATCH --time=00:10:00",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --mem-per-cpu=3G",
        "#SBATCH --array=0-4%2",
        "#SBATCH --account=my-project",
        "#SBATCH --requeue",
        f"#SBATCH --output='{work.logs}/slurm_logs/%A_%a.out'",
        f"cd {Path.cwd()} || exit 1",
        f"export PYTHONPATH={RECIPES}${{PYTHONPATH:+:$PYTHONPATH}}",
    }
    assert re.search(r"^#SBATCH --job-name=prepare-read-[0-9a-f]{12}$", script, re.MULTILINE)
    assert script.splitlines()[-1].startswith(f"exec {sys.executable} -P -m datatrove.tools.launch_pickled_pipeline '")
    assert "hf_secret" not in script and "qos" not in script


def test_more_tasks_than_an_array_holds_share_its_elements(work, slurm, monkeypatch):
    monkeypatch.setattr(slurm_executor, "MAX_ARRAY_ELEMENTS", 2)
    work.run(section("slurm", None, SLURM))
    assert len(states(slurm, 100)) == 2 and sorted(work.runs()) == list(range(TASKS))
    assert "#SBATCH --array=0-1\n" in (slurm / "jobs" / "100" / "script").read_text()


def test_the_error_of_a_task_of_an_array_names_its_log_and_cancels_the_rest(work, expected, slurm, tmp_path):
    waiting = partial(wait_for, file=tmp_path / "gate")
    with pytest.raises(RecipeError) as error:
        work.run(ON_SLURM, partial(refuse, bad=1), waiting)
    law, other, where = error.value.problems
    assert (law, other) == ("law: a.txt: not text", "law: b.txt: not text either")
    assert where == f"(task 1 of 3 of prepare: read; its log is {work.logs}/slurm_logs/100_1.out)"
    assert "RecipeError: law: a.txt: not text" in (work.logs / "slurm_logs" / "100_1.out").read_text()
    assert set(states(slurm, 100)) <= {"FAILED", "CANCELLED"}
    with pytest.raises(RecipeError, match="LookupError: nothing at 0"):
        work.run(ON_SLURM, partial(break_down, bad=0), waiting)
    (tmp_path / "gate").touch()
    work.run(ON_SLURM)
    assert work.files() == expected and jobs(slurm) == 3


def test_a_task_that_slurm_ends_stops_the_run_with_its_state_and_the_remedy(work, slurm, tmp_path):
    killed = partial(be_killed, bad=1, unless=tmp_path / "more memory")
    wanted = (
        r"prepare: read: element \d of Slurm job 10\d ended as OUT_OF_MEMORY; raise data.slurm.mem_per_cpu_gib; its"
    )
    with pytest.raises(RecipeError, match=wanted):
        work.run(ON_SLURM, killed)
    (slurm / "forgotten").touch()  # squeue shows it no longer, the accounting does
    with pytest.raises(RecipeError, match=wanted):
        work.run(ON_SLURM, killed)
    (slurm / "sacct").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(RecipeError, match=r"job 102 has ended, but task 1 has not finished as seen from here"):
        work.run(ON_SLURM, killed)


def test_a_job_that_someone_cancels_stops_the_run(work, slurm, tmp_path):
    controller = start_controller(work, ON_SLURM, tmp_path / "gate")
    until(lambda: list(tmp_path.glob("gate.*")))
    subprocess.run(["scancel", "100"], check=True)
    assert re.search(r"element \d of Slurm job 100 ended as CANCELLED", controller.communicate()[1])


def test_a_controller_that_is_killed_and_started_again_waits_for_the_job_that_still_runs(
    work, expected, slurm, tmp_path
):
    gate = tmp_path / "gate"
    controller = start_controller(work, ON_SLURM, gate)
    until(lambda: len(list(tmp_path.glob("gate.*"))) == 2)
    controller.kill()
    controller.wait()
    again = start_controller(work, ON_SLURM, gate)
    time.sleep(1)
    assert again.poll() is None and set(states(slurm, 100)) == {"RUNNING", "PENDING"}
    gate.touch()
    assert again.wait() == 0 and work.files() == expected
    assert jobs(slurm) == 1 and sorted(work.runs()) == list(range(TASKS))


def test_a_scheduler_that_does_not_answer_for_a_while_changes_nothing(work, expected, slurm, monkeypatch):
    (slurm / "silent").write_text("3")
    work.run(ON_SLURM)
    assert work.files() == expected and jobs(slurm) == 1
    (work.logs / "completions" / "00000").unlink()
    (slurm / "silent").write_text("1000000")
    monkeypatch.setattr(slurm_executor, "SILENCE_SECONDS", 0.5)
    with pytest.raises(RecipeError, match=r"squeue has not answered for 0 s \(.*Unable to contact.*start the command"):
        work.run(ON_SLURM)
    assert jobs(slurm) == 1


def test_prepare_started_as_a_script_gives_on_slurm_what_it_gives_here(slurm, tmp_path):
    texts = tmp_path / "texts"
    write_tiny_texts(texts)
    sources = f"--data.sources={json.dumps([{'name': 'law', 'path': str(texts / 'law.jsonl')}])}"
    here, there = TinyRun(texts, tmp_path / "here"), TinyRun(texts, tmp_path / "there")
    prepare_data.main(here.argv(sources))
    on_slurm = there.argv(sources, "--data.executor=slurm", "--data.slurm={partition: cpu}")
    subprocess.run([sys.executable, RECIPES / "prepare_data.py", *on_slurm], check=True, capture_output=True)
    found = [read_record(run.output_dir / "documents")["files"] for run in (here, there)]
    assert found[0] == found[1] and jobs(slurm) >= 4


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_run_is_refused_before_work_starts():
    with pytest.raises(RecipeError, match="ray: not installed; on every node: pip install ray"):
        check_executor(section("ray"))


@pytest.fixture(scope="module")
def ray_cluster():
    """The address of the cluster that RAY_ADDRESS names, or of one of two workers here, each a node of one core."""
    pytest.importorskip("ray", reason="needs Ray, which is not in requirements.txt: pip install ray==2.60.0")
    if "RAY_ADDRESS" in os.environ:
        yield os.environ["RAY_ADDRESS"]
        return
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def ray_address(ray_cluster, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    yield ray_cluster
    ray.shutdown()


def test_without_a_ray_cluster_the_run_is_refused_before_work_starts(monkeypatch):
    pytest.importorskip("ray", reason="needs Ray, which is not in requirements.txt: pip install ray==2.60.0")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(RecipeError, match="data.executor: ray: no cluster answers"):
        check_executor(section("ray"))


def test_a_ray_cluster_of_two_workers_writes_the_bytes_that_one_machine_writes(work, expected, ray_address):
    check_executor(section("ray"))
    for workers in (None, 1):
        work.run(section("ray", workers))
        assert work.files() == expected
        (work.logs / "completions" / "00001").unlink()
    assert sorted(work.runs()) == [0, 1, 1, 2]


def test_a_task_on_ray_imports_nothing_of_the_working_folder(work, expected, ray_address, tmp_path, monkeypatch):
    """Ray puts that folder before the others in its workers."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("json", "numpy", "torch", "datatrove", "datasets", "recipe_config", "corpus", "atomic_files"):
        (folder / f"{name}.py").write_text(f"open('{tmp_path}/imported', 'a').write('{name} ')\n")
    monkeypatch.chdir(folder)
    work.run(section("ray"))
    assert not (tmp_path / "imported").exists()
    assert work.files() == expected


def test_the_error_of_a_task_on_ray_reaches_the_caller_as_it_was_raised(work, ray_address):
    with pytest.raises(RecipeError) as error:
        work.run(section("ray"), partial(refuse, bad=1))
    assert error.value.problems == ("law: a.txt: not text", "law: b.txt: not text either")
    with pytest.raises(LookupError, match="nothing at 1"):
        work.run(section("ray"), partial(break_down, bad=1))


def test_a_task_whose_process_ray_loses_is_tried_again_and_then_the_run_ends(work, expected, ray_address, tmp_path):
    killed = partial(be_killed, bad=1, unless=tmp_path / "more memory")
    with pytest.raises(RecipeError, match="prepare: read: task 1 of 3 was lost 3 times"):
        work.run(section("ray"), killed)
    (tmp_path / "more memory").touch()
    work.run(section("ray"), killed)
    assert work.files() == expected


def test_tasks_on_ray_end_with_the_process_that_started_them_and_a_rerun_does_the_rest(
    work, expected, ray_address, tmp_path
):
    controller = start_controller(work, section("ray"), tmp_path / "gate")
    until(lambda: len(list(tmp_path.glob("gate.*"))) == 2)
    workers = [int(file.read_text()) for file in tmp_path.glob("gate.*")]
    controller.kill()
    controller.wait()
    until(lambda: not any(map(is_running, workers)), seconds=20)
    work.run(section("ray"))
    assert work.files() == expected


def test_prepare_and_tokenize_started_as_scripts_give_on_ray_what_they_give_here(tokenized_run, ray_address, tmp_path):
    there = TinyRun(tokenized_run.texts, tmp_path / "there")
    for stage in ("prepare_data", "train_tokenizer", "tokenize_corpus"):
        command = [sys.executable, RECIPES / f"{stage}.py", *there.argv("--data.executor=ray")]
        subprocess.run(command, check=True, capture_output=True)
    for output in ("documents", "tokens"):
        records = [read_record(run.output_dir / output) for run in (tokenized_run, there)]
        assert records[0]["files"] == records[1]["files"], output


SIXTEEN = 16


@pytest.fixture
def one_source(tmp_path, monkeypatch) -> Callable[[str], TinyRun]:
    """A function that names a run of one JSON lines file, which is read in SIXTEEN ranges, one a task."""
    write_tiny_texts(tmp_path / "texts")
    law = tmp_path / "texts" / "law.jsonl"
    monkeypatch.setattr(ranges, "RANGE_BYTES", -(-law.stat().st_size // SIXTEEN))
    monkeypatch.setattr(reading_plan, "MIN_TASKS_PER_SOURCE", SIXTEEN)
    return lambda name: TinyRun(tmp_path / "texts", tmp_path / name)


def prepared(run: TinyRun, *overrides: str) -> dict:
    source = [{"name": "law", "path": str(run.texts / "law.jsonl")}]
    prepare_data.main(run.argv(f"--data.sources={json.dumps(source)}", *overrides))
    return read_record(run.output_dir / "documents")["files"]


@pytest.mark.long
def test_elements_that_die_and_time_out_stop_the_command_and_the_next_does_what_is_missing(
    one_source, slurm, monkeypatch
):
    expected = prepared(one_source("here"))
    there, attempts = one_source("there"), 0
    on_slurm = ["--data.executor=slurm", "--data.workers=4", "--data.slurm={partition: cpu}"]
    for ends in ("killed 3", "timeout 7", "requeued 2"):
        (slurm / "ends").write_text(ends)
        with pytest.raises(RecipeError, match="OUT_OF_MEMORY|TIMEOUT|NODE_FAIL"):
            prepared(there, *on_slurm)
        attempts += 1
        done = list(there.output_dir.glob(".documents.*.tmp/work/logs/read/completions/*"))
        assert len(done) < SIXTEEN, "not all tasks had ended when the element did"
    assert prepared(there, *on_slurm) == expected and attempts == 3


@pytest.fixture
def two_nodes():
    """A Ray cluster of two nodes with two cores each; the second can be removed."""
    pytest.importorskip("ray", reason="needs Ray, which is not in requirements.txt: pip install ray==2.60.0")
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster, cluster.add_node(num_cpus=2)
    ray.shutdown()
    cluster.shutdown()


def test_a_node_of_a_ray_cluster_that_dies_in_the_middle_changes_no_byte(one_source, two_nodes, monkeypatch):
    import ray

    cluster, node = two_nodes
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    expected = prepared(one_source("here"))
    there = one_source("there")

    left = []

    def remove_in_the_middle() -> None:
        def done() -> int:
            return len(list(there.output_dir.glob(".documents.*.tmp/work/logs/read/completions/*")))

        until(lambda: done() >= 2, 120)
        cluster.remove_node(node, allow_graceful=False)
        left.append(SIXTEEN - done())

    remover = threading.Thread(target=remove_in_the_middle)
    remover.start()
    found = prepared(there, "--data.executor=ray")
    remover.join()
    assert found == expected and left[0] > 0, "the node was removed after its work"
    until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1)
