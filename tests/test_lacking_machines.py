# SPDX-License-Identifier: Apache-2.0
"""What a machine really lacks, made by the kernel: each command ends with one line that names what to do.

Mounts, owners and memory limits need root on Linux; the tests skip elsewhere, with the reason.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_run import ROOT, TinyRun, write_tiny_texts


CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20


def run_in(script: str, words: list, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run a command of the repository after lines of shell; return its exit code and what it printed on stderr."""
    command = [*prefix, "bash", "-ec", f'{script}\nexec "$@"', "bash", sys.executable, *map(str, words)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    return ended.returncode, ended.stderr


@pytest.fixture
def in_mounts() -> tuple[str, ...]:
    """The words before a command that may mount what only it sees."""
    words = ("unshare", "--mount")
    if shutil.which(words[0]) is None or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("needs `unshare --mount`, which takes root")
    return words


@pytest.fixture
def memory_group(request) -> Iterator[Path]:
    """A group of processes that may take little memory together, of either version of the kernel's groups."""
    folder = CGROUPS / ("memory" if (CGROUPS / "memory").exists() else "") / f"tests-{os.getpid()}"
    limit = "memory.limit_in_bytes" if (CGROUPS / "memory").exists() else "memory.max"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(256 * MIB))
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        pytest.skip(f"needs a memory cgroup that tests may make: {error}")
    yield folder
    for _ in range(100):  # the last process may still be on its way out
        with suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.1)
    raise TimeoutError(f"{folder} holds processes {(folder / 'cgroup.procs').read_text().split()}")


def words_of(run: TinyRun, *overrides: str) -> list[str]:
    single = run.output_dir.with_name("fp32.yaml")  # no other process is asked whether bf16 is faster
    single.write_text("{compute_environment: LOCAL_MACHINE, distributed_type: 'NO', num_machines: 1, use_cpu: true}")
    return ["recipes/run_recipe.py", "--accelerate_config", single, "--num_processes", "1", *run.argv(*overrides)]


def last_lines(stderr: str) -> list[str]:
    assert "Traceback" not in stderr, stderr
    return stderr.strip().splitlines()[-2:]


def lacking_output(run: TinyRun, script: str) -> list:
    """Remove what a script writes, and return the words that start it."""
    for output in {"prepare_data": ("documents", "tokenizer", "tokens"), "run_recipe": ("tokens",)}.get(script, ()):
        shutil.rmtree(run.output_dir / output)
    return words_of(run) if script == "run_recipe" else [f"recipes/{script}.py", *run.argv()]


@pytest.mark.parametrize("script", ["run_recipe", "prepare_data", "pretrain", "push_to_hub"])
def test_a_run_folder_on_a_disk_that_is_mounted_read_only_is_named(tiny_run, in_mounts, script):
    run, words = tiny_run.output_dir, lacking_output(tiny_run, script)
    before = sorted(run.rglob("*"))
    mount = f"mount --bind '{run}' '{run}'; mount -o remount,ro,bind '{run}'"
    status, stderr = run_in(mount, words, in_mounts)
    reason = "\n".join(last_lines(stderr))
    assert status == 1 and f"{run} cannot be written (Read-only file system)" in reason
    assert "correct its owner or mode, or set another" in reason
    assert ("start again with: " in reason) is (script == "run_recipe")
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("script", ["run_recipe", "prepare_data", "pretrain", "push_to_hub"])
def test_a_run_folder_of_another_user_is_named(tiny_run, script):
    run, lacks = tiny_run.output_dir, "-dac_override,-dac_read_search,-fowner"
    words = lacking_output(tiny_run, script)
    without = ("setpriv", f"--bounding-set={lacks}")  # root may write everything, and so proves nothing
    try:
        for path in [run, *run.rglob("*")]:
            os.chown(path, 65534, 65534)
        subprocess.run([*without, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs root, to give the folder to another user: {error}")
    status, stderr = run_in("", words, without)
    reason = "\n".join(last_lines(stderr))
    assert status == 1 and f"{run} cannot be written (Permission denied)" in reason
    assert "correct its owner or mode, or set another" in reason
    assert ("start again with: " in reason) is (script == "run_recipe")


@pytest.mark.long
@pytest.mark.parametrize("open_files", [256, 64, 12])
def test_a_recipe_that_may_open_few_files_ends_in_a_release_or_in_one_line(tmp_path, open_files):
    write_tiny_texts(tmp_path / "texts")
    run = TinyRun(tmp_path / "texts", tmp_path / "run")
    more = ["--data.workers=2", "--data.near_duplicates={}"] if open_files >= 64 else []
    status, stderr = run_in(f"ulimit -n {open_files}", words_of(run, *more))  # the soft and the hard limit
    reason, again = last_lines(stderr)
    if open_files >= 64:
        assert status == 0 and (run.output_dir / "release" / "model.safetensors").exists(), stderr
    else:
        assert status == 1 and "too many files are open: " in reason and "`ulimit -n 4096`" in reason, stderr
        assert "start again with: " in again


def test_a_full_dev_shm_is_named_and_not_the_disk(tokenized_run, tmp_path, in_mounts):
    run = TinyRun(tokenized_run.texts, tmp_path / "run")
    fill = "mount -t tmpfs -o size=4k tmpfs /dev/shm; head -c 4096 /dev/zero > /dev/shm/full"
    words = ["recipes/prepare_data.py", *run.argv("--data.workers=2")]
    status, stderr = run_in(fill, words, in_mounts)
    [*_, reason] = last_lines(stderr)
    assert status == 1 and "/dev/shm, the memory that processes share, is full" in reason and "--shm-size" in reason
    assert run_in("", words)[0] == 0


@pytest.mark.parametrize(
    ("stage", "mib", "remedy"),
    [
        (
            "prepare",
            200,
            "set data.workers lower, which divides the memory among fewer processes, or where it is 1 use",
        ),
        ("tokenizer", 300, "set tokenizer.max_train_bytes lower"),
        ("pretrain", 350, "set training.per_device_train_batch_size lower"),
    ],
)
def test_a_stage_that_exceeds_the_memory_of_its_container_names_what_to_lower(
    tiny_run, tmp_path, memory_group, stage, mib, remedy
):
    texts = tmp_path / "texts"
    write_tiny_texts(texts)
    with (texts / "law.jsonl").open("a") as file:  # a document of 15 MB, copied several times
        file.write(json.dumps({"text": "The court denies any claim.\n" * 540_000}) + "\n")
    run = TinyRun(texts if stage == "prepare" else tiny_run.texts, tiny_run.output_dir)
    outputs = {"prepare": "documents", "tokenizer": "tokenizer", "tokenize": "tokens"}
    for name in list(outputs)[list(outputs).index(stage) if stage in outputs else 3 :]:
        shutil.rmtree(tiny_run.output_dir / outputs[name])
    [limit] = [*memory_group.glob("memory.limit_in_bytes"), *memory_group.glob("memory.max")]
    limit.write_text(str(mib * MIB))
    status, stderr = run_in(f"echo $$ > {memory_group}/cgroup.procs", words_of(run))
    assert status == 1, stderr
    [*_, reason] = last_lines(stderr)
    assert f"{stage} stopped with status" in reason and f"killed, as when memory runs out (then {remedy}" in reason
    assert "start again with: " in reason


def test_a_clock_that_is_set_back_in_training_changes_no_number(tiny_run, tmp_path, crash_shim):
    whole, shorter = tiny_run.copy(tmp_path / "whole"), ["--training.max_tokens=2048", "--training.save_steps=2"]
    code = f"""import ctypes, sys; sys.path.insert(0, {str(ROOT / "recipes")!r})
import pretrain
from model.summed_loss import SummedLoss
forward, passes = SummedLoss.forward, []
def set_back(model, *batch, **named):
    passes.append(1)
    if len(passes) == 9:
        ctypes.CDLL(None).crash_shim_set_clock_back(ctypes.c_long(400 * 86_400))
    return forward(model, *batch, **named)
pretrain.main({whole.argv(*shorter)!r})
SummedLoss.forward = set_back
pretrain.main({tiny_run.argv(*shorter)!r})"""
    status, stderr = run_in(f"export LD_PRELOAD={crash_shim}", ["-c", code])
    assert status == 0, stderr
    assert tiny_run.losses() == whole.losses() and len(whole.losses()) == 8
    times = [
        line["time"] for line in map(json.loads, (tiny_run.output_dir / "chronicle.jsonl").read_text().splitlines())
    ]
    assert times[-1] < times[0], "the clock really went back"
    assert subprocess.run([sys.executable, "recipes/verify_run.py", tiny_run.output_dir], cwd=ROOT).returncode == 0
