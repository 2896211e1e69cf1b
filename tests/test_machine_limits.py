# SPDX-License-Identifier: Apache-2.0
"""What a machine lacks ends a script with a message that names what to do, and the command that starts it again."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from tiny_run import RECIPES

import limits
import run_recipe
from child_processes import EXIT_STOPPED
from recipe_config import RecipeError
from recipe_loading import run_command
from recovery.run_lock import run_lock
from stages import STAGES


def heed_signals() -> None:
    """Take signals as usual where the tests were started in the background."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def fail_with(error: BaseException, cause: BaseException | None = None) -> None:
    raise error from cause


def system_error(number: int, name: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        (
            "prepare_data.py",
            system_error(errno.ENOSPC, "runs/x/a.parquet"),
            "the disk is full: .*runs/x/a.parquet.*make",
        ),
        ("push_to_hub.py", system_error(errno.EDQUOT), "the disk is full"),
        ("train_tokenizer.py", ValueError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (
            "prepare_data.py",
            MemoryError(),
            r"memory ran out \(MemoryError\); set data.workers lower, .*, or where it is 1 ",
        ),
        ("train_tokenizer.py", MemoryError("40 GB"), r"memory ran out \(40 GB\); set tokenizer.max_train_bytes lower"),
        (
            "finetune.py",
            RuntimeError("basic_ios::clear: iostream error"),
            "a file could not be written, as on a full disk: ",
        ),
        (
            "train_tokenizer.py",
            OSError("65536 requested and 60400 written"),
            "a file could not be written, as on a full",
        ),
        (
            "pretrain.py",
            RuntimeError("Resource temporarily unavailable"),  # of gloo, which starts a thread
            "memory ran out .* set training.per_device_train_batch_size lower",
        ),
        ("tokenize_corpus.py", system_error(errno.ENOMEM), "memory ran out .* set data.workers lower"),
        (
            "pretrain.py",
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80000000000 bytes"),
            "memory ran out .* set training.per_device_train_batch_size lower",
        ),
        (
            "finetune.py",
            RuntimeError("unable to mmap 136872 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
            "memory ran out ",
        ),
        ("prepare_data.py", system_error(errno.EMFILE, "a"), "too many files are open: .* `ulimit -n 4096`"),
        (
            "pretrain.py",
            system_error(errno.EROFS, "runs/x/status.json"),
            "runs/x/status.json cannot be used: Read-only",
        ),
    ],
)
def test_a_limit_of_the_machine_ends_a_script_with_a_message(monkeypatch, script, error, message):
    monkeypatch.setattr(sys, "argv", [f"recipes/{script}"])
    for raised in (error, RuntimeError("a worker failed")):
        with pytest.raises(SystemExit, match=f"^{script}: {message}"):
            run_command(lambda raised=raised: fail_with(raised, None if raised is error else error))


def test_a_stop_between_two_stages_prints_the_command_that_starts_again():
    code = f"import sys; sys.path.insert(0, {str(RECIPES)!r}); import run_recipe, atexit, signal, os; "
    code += "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM)); "  # another while Python ends
    code += "run_recipe.parse_command_line = lambda *_, **__: os.kill(os.getpid(), getattr(signal, sys.argv[1])); "
    code += "run_recipe.main()"
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        command = [sys.executable, "-c", code, name]
        ended = subprocess.run(command, capture_output=True, text=True, preexec_fn=heed_signals)
        assert ended.returncode == EXIT_STOPPED and "Traceback" not in ended.stderr, ended.stderr
        assert f"stopped on {name}: finished stages are kept; start again with: " in ended.stderr


def test_ctrl_c_ends_a_script_without_a_traceback(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["recipes/prepare_data.py"])
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: fail_with(KeyboardInterrupt()))
    assert ended.value.code == EXIT_STOPPED
    assert capfd.readouterr().err == "prepare_data.py: stopped on SIGINT; the same command starts it again\n"


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError):
        run_command(lambda: fail_with(KeyError("x")))
    with pytest.raises(FileNotFoundError):
        limits.run_script(lambda: fail_with(system_error(errno.ENOENT, "x")))


def test_a_full_disk_and_too_few_open_files_end_an_evaluation_with_a_message():
    with pytest.raises(SystemExit, match="No space left on device: runs/x/eval/results.json"):
        limits.run_script(lambda: fail_with(system_error(errno.ENOSPC, "runs/x/eval/results.json")))
    with pytest.raises(SystemExit, match="too many files are open: .*ulimit -n 4096"):
        limits.run_script(lambda: fail_with(system_error(errno.EMFILE, "runs/x/tokens")))


@pytest.mark.parametrize(
    ("name", "script", "lower"),
    [
        ("plan", "plan_run.py", None),
        ("requests", "run_eval.py", "set evaluation.batch_size lower"),
        ("prepare", "prepare_data.py", "set data.workers lower"),
        ("tokenizer", "train_tokenizer.py", "set tokenizer.max_train_bytes lower"),
        ("tokenize", "tokenize_corpus.py", "set data.workers lower"),
        ("pretrain", "pretrain.py", "set training.per_device_train_batch_size lower"),
        ("evaluate", "run_eval.py", "set evaluation.batch_size lower"),
        ("audit", "audit_leaks.py", "run recipes/audit_leaks.py by itself with a --batch_size below 16"),
        ("report", "report.py", "use a machine with more of it"),
        ("publish", "push_to_hub.py", "use a machine with more of it"),
    ],
)
def test_a_stage_that_the_system_killed_names_what_to_lower(name, script, lower, tmp_path, capfd):
    assert name == "audit" or Path(STAGES[name].script).name == script
    (tmp_path / script).write_text("import os\nos.kill(os.getpid(), 9)\n")
    command = [sys.executable, str(tmp_path / script)]
    if name == "plan":  # which is advice
        run_recipe.run_script(name, command, tmp_path, "there is no plan")
        assert "note: there is no plan" in capfd.readouterr().out
        return
    with pytest.raises(SystemExit) as ended:
        run_recipe.run_script(name, command, tmp_path)
    assert ended.value.code == 1
    error = capfd.readouterr().err
    assert f"{name} stopped with status -9, killed, as when memory runs out (then {lower}" in error
    assert "start again with: " in error


def test_every_stage_of_a_recipe_is_among_those_that_the_system_kills():
    (marked,) = test_a_stage_that_the_system_killed_names_what_to_lower.pytestmark
    assert {name for name, *_ in marked.args[1]} == {"audit", *(n for n, stage in STAGES.items() if not stage.by_hand)}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_run_folder_that_cannot_be_written_is_refused_by_its_key(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise system_error(number)

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with (
        pytest.raises(RecipeError, match=f"{tmp_path} cannot be written"),
        run_lock(tmp_path, "prepare"),
    ):
        pass


def test_where_no_thread_can_start_for_lack_of_memory_reading_documents_does_not_wait_for_ever(tmp_path):
    file = tmp_path / "00000.parquet"
    table = {"id": [f"{number:032x}" for number in range(50)], "source": ["law"] * 50, "text": ["a"] * 50}
    pq.write_table(pa.table(table), file)
    code = f"""import sys; sys.path.insert(0, {str(RECIPES)!r})
import resource; from pathlib import Path; import psutil
from corpus.exact_duplicates import read_ids
from mixture.shard_writer import read_batches
from recipe_loading import run_command
most = psutil.Process().memory_info().vms + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
def read():
    print(len(read_ids(file)[0]), sum(len(batch) for batch in read_batches(file)))
sys.argv[0], file = "prepare_data.py", Path(sys.argv[1])
run_command(read)"""
    # The stack of a thread takes more than is left, and all data much less.
    command = ["bash", "-c", 'ulimit -Ss 2097152 && exec "$@"', "bash", sys.executable, "-c", code, file]
    plain = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}  # others reserve addresses by the gigabyte
    ended = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=40)
    assert ended.stdout == "50 50\n" or ended.stderr.startswith("prepare_data.py: memory ran out "), ended.stderr
