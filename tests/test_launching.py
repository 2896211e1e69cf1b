# SPDX-License-Identifier: Apache-2.0
"""Which device a launch takes: never the processor in silence where a GPU was asked for or is there."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_run import RECIPES, ROOT, TinyRun

import launching
import pretrain
import recipe_loading
import run_recipe
from atomic_files import file_sha256, write_json
from recipe_config import RecipeError
from recipe_loading import load_recipe
from recovery.chronicle import RunStatus
from recovery.preemption import Preemption
from run_folder import REPLACED
from sweeps.runs import add_row, choose_launcher
from training.accelerators import make_accelerator


RECIPE = load_recipe([RECIPES / "custom" / "base.yaml"], ["--data.sources=[{name: a, path: a}]"])


@pytest.fixture
def machine(monkeypatch):
    """Return a function that sets what the environment, the system and torch say."""

    def set_up(
        use_cpu=None, files=(), cuda="13.0", error="The NVIDIA driver is too old (found version 12040).", **env
    ):
        def init():
            if error is not None:
                raise RuntimeError(f"{error}\nPlease update your GPU driver.")

        for name, value in ({"ACCELERATE_USE_CPU": use_cpu, "LOCAL_RANK": None} | env).items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        monkeypatch.setattr(launching, "device_files", lambda: list(files))
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "init", init)

    return set_up


def test_a_gpu_that_torch_cannot_use_is_named_with_its_reason_and_the_driver_to_install(machine):
    machine(files=["/dev/nvidia0"])
    reason = (
        r"this machine has /dev/nvidia0: torch .*: The NVIDIA driver is too old \(found version 12040\); CUDA 13.0 "
    )
    with pytest.raises(RecipeError, match=reason + "needs NVIDIA driver 580 or newer. .* ACCELERATE_USE_CPU=true"):
        launching.refuse_silent_cpu("cpu")
    machine(files=["/dev/nvidia0"], cuda=None, error="Torch not compiled with CUDA enabled")
    with pytest.raises(RecipeError, match="not compiled with CUDA enabled; install the torch of https://pytorch.org"):
        launching.refuse_silent_cpu("cpu")
    machine(files=["/dev/nvidia0"], error=None)
    with pytest.raises(RecipeError, match="sees no device; is CUDA_VISIBLE_DEVICES empty"):
        launching.refuse_silent_cpu("cpu")


def test_a_launch_file_that_asks_for_gpus_is_not_followed_on_a_processor(machine):
    for environment in ({"use_cpu": "False"}, {"LOCAL_RANK": "0"}):
        machine(**environment)
        with pytest.raises(RecipeError, match="although the launch file asks for GPUs: torch .* driver 580 or newer"):
            launching.refuse_silent_cpu("cpu")


def test_a_processor_that_is_meant_or_all_there_is_trains(machine):
    machine(use_cpu="true", files=["/dev/nvidia0"], LOCAL_RANK="0")
    launching.refuse_silent_cpu("cpu")
    machine()
    launching.refuse_silent_cpu("cpu")
    machine(files=["/dev/nvidia0"])
    launching.refuse_silent_cpu("cuda")


def test_without_a_launch_file_the_command_is_for_the_gpu_or_refused(machine, monkeypatch):
    machine(files=["/dev/kfd"])
    monkeypatch.setattr(launching, "has_gpu", lambda: False)
    with pytest.raises(RecipeError, match="this machine has /dev/kfd"):
        launching.launch_command(RECIPE, None, None)
    monkeypatch.setattr(launching, "has_gpu", lambda: True)
    assert "single_gpu.yaml" in " ".join(launching.launch_command(RECIPE, None, None))
    machine(use_cpu="true", files=["/dev/kfd"])
    assert "cpu.yaml" in " ".join(launching.launch_command(RECIPE, None, None))


@pytest.mark.parametrize(
    ("probe", "question"), [("has_gpu", "torch sees a GPU"), ("has_fast_bf16", "this processor is faster in bf16")]
)
@pytest.mark.parametrize("death", ["os.kill(os.getpid(), 9)", "sys.exit(1)", "print('Tru')", "raise MemoryError('x')"])
def test_a_probe_that_dies_is_an_error_and_not_an_answer(monkeypatch, probe, question, death):
    run = subprocess.run

    def dying(command, **settings):
        return run([*command[:-1], f"import os, sys; {death}"], **settings)

    monkeypatch.setattr(launching.subprocess, "run", dying)
    ask = getattr(launching, probe)
    with pytest.raises(RecipeError, match=f"whether {question} is not known.*Start again, or decide it by") as error:
        getattr(ask, "__wrapped__", ask)(*([RECIPE] if probe == "has_fast_bf16" else []))  # without its cache
    assert ("status -9" in str(error.value)) == ("kill" in death) and ("MemoryError: x" in str(error.value)) == (
        "Memory" in death
    )


def test_a_probe_answers():
    assert launching.ask_probe("x", "print(True)", "") and not launching.ask_probe("x", "print(1); print(False)", "")


@pytest.mark.parametrize(
    ("on", "file", "kept", "set_to"),
    [
        ("a slow processor", None, None, "no"),
        ("a slow processor", None, "bf16", None),
        ("a slow processor", None, "no", "no"),
        ("a slow processor", "cpu.yaml", "no", "no"),
        ("a GPU", None, None, None),
        ("a GPU", None, "bf16", None),
        ("a GPU", None, "no", "no"),
        ("a GPU", "single_gpu.yaml", "no", None),  # what was chosen is not changed, but training refuses it
    ],
)
def test_a_launch_keeps_the_precision_of_the_run_unless_a_file_was_chosen(
    machine, monkeypatch, on, file, kept, set_to
):
    machine(use_cpu=None if on == "a GPU" else "true")
    monkeypatch.setattr(launching, "has_gpu", lambda: True)
    monkeypatch.setattr(launching, "has_fast_bf16", lambda _: False)
    command = launching.launch_command(RECIPE, file and ROOT / "accelerate_configs" / file, None, kept)
    assert command[command.index("--mixed_precision") + 1 :][:1] == [set_to] if set_to else True
    assert ("--mixed_precision" in command) == (set_to is not None)


def write_checkpoint(run, step: int, precision: str) -> Path:
    """Write what a checkpoint says of its precision."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"computing": [{"mixed_precision": precision}]}))
    files = {"state.json": {"sha256": file_sha256(folder / "state.json")}}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return folder


def write_record(model: Path, sha256: str) -> None:
    """Write the record of a finished model."""
    model.mkdir()
    write_json(model / "stage.json", {"settings": {}, "inputs": {}, "files": {}, "sha256": sha256})


def test_the_precision_of_a_run_is_that_of_its_newest_whole_checkpoint_or_of_the_models_it_learns_from(tmp_path):
    recipe = load_recipe(
        [RECIPES / "custom" / "base.yaml"],
        [
            "--data.sources=[{name: a, path: a}]",
            f"--run.output_dir={tmp_path}",
            "--training.distillation={members: 2}",
        ],
    )
    (tmp_path / "environment.json").write_text(json.dumps({"computed": {"mixed_precision": "no", "threads": 2}}))
    assert run_recipe.kept_precision(recipe, False) is None, "nothing was trained"
    write_checkpoint(recipe.member_folder(1), 5, "no")
    assert run_recipe.kept_precision(recipe, False) == "no"
    first = write_checkpoint(tmp_path, 9, "bf16")
    assert run_recipe.kept_precision(recipe, False) == "bf16"
    newest = write_checkpoint(tmp_path, 10, "no")
    assert run_recipe.kept_precision(recipe, False) == "no"
    for name, text in (
        ("state.json", '{"computing": [{"mixed_precision": "xx"}]}'),
        ("manifest.json", '{"files": []}'),
    ):
        (newest / name).write_text(text)
        assert run_recipe.kept_precision(recipe, False) == "bf16"
    recipe.run.resume = str(first)
    write_record(tmp_path / "model", "of the finished model")
    for overwrite in (False, True):
        assert run_recipe.kept_precision(recipe, overwrite) == "bf16"


def test_what_overwrite_trains_again_keeps_no_precision_but_a_member_that_it_began_does(tmp_path):
    changes = ["--data.sources=[{name: a, path: a}]", f"--run.output_dir={tmp_path}"]
    recipe = load_recipe([RECIPES / "custom" / "scarce.yaml"], changes)
    write_checkpoint(tmp_path, 5, "no")
    write_record(tmp_path / "model", "of the finished model")
    assert run_recipe.kept_precision(recipe, overwrite=True) is None
    member = recipe.member_folder(1)
    write_checkpoint(member, 5, "bf16")
    write_record(member / "model", "of the finished member")
    assert run_recipe.kept_precision(recipe, overwrite=True) is None
    write_json(member / REPLACED, {"sha256": "of the finished member"})
    assert run_recipe.kept_precision(recipe, overwrite=True) == "bf16"


def test_an_experiment_goes_on_in_the_precision_of_its_rows_and_of_runs_that_began(machine, monkeypatch, tmp_path):
    machine(use_cpu="true")
    monkeypatch.setattr(launching, "has_fast_bf16", lambda _: pytest.fail("it is not measured again"))
    options, table = SimpleNamespace(accelerate_config=None, num_processes=None), tmp_path / "runs.csv"
    write_checkpoint(tmp_path / "b", 4, "no")
    folders = [tmp_path / "a", tmp_path / "b"]
    assert choose_launcher(options, RECIPE, table, folders)[-2:] == ["--mixed_precision", "no"]
    add_row(table, {"key": "1", "seed": 0})  # of an earlier version
    add_row(table, {"key": "2", "seed": 0, "mixed_precision": "bf16"})
    assert "--mixed_precision" not in choose_launcher(options, RECIPE, table, folders), "cpu.yaml says bf16"
    options.accelerate_config = tmp_path / "fp32.yaml"
    options.accelerate_config.write_text("use_cpu: true\nnum_processes: 1\nmixed_precision: 'no'\n")
    with pytest.raises(RecipeError, match=r"mixed_precision: no, but the other runs of .* in bf16; set that"):
        choose_launcher(options, RECIPE, table, folders)


def test_the_launcher_with_a_file_for_gpus_ends_with_the_reason_printed_once(tiny_run, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU to use")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    command += ["--config_file", str(ROOT / "accelerate_configs" / "ddp.yaml"), "--num_processes", "2"]
    script = tmp_path / "patient.py"  # however slow this machine is
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(RECIPES)!r})\nimport pretrain, recipe_loading\n"
        "recipe_loading.ALONE_SECONDS = 600\nrecipe_loading.run_command(pretrain.main)\n"
    )
    command += [str(script)]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    ended = subprocess.run([*command, *tiny_run.argv()], env=environment, capture_output=True, text=True)
    assert ended.returncode != 0 and "Traceback" not in ended.stderr.split("accelerate")[0]
    assert ended.stderr.count("although the launch file asks for GPUs") == 1
    assert not (tiny_run.output_dir / "metrics.jsonl").exists()


def test_an_error_of_another_process_alone_is_printed_after_a_wait(monkeypatch):
    def fails():
        raise RecipeError("the disk of this process is full")

    waited = []
    monkeypatch.setattr(recipe_loading.time, "sleep", waited.append)
    for local_rank, seconds in (("0", []), ("3", [recipe_loading.ALONE_SECONDS])):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit, match="the disk of this process is full"):
            recipe_loading.run_command(fails)
        assert waited == seconds


def test_gpus_that_no_process_uses_are_named(tiny_run, monkeypatch, capsys):
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    one = SimpleNamespace(device=torch.device("cuda"), num_processes=1, is_main_process=True)
    monkeypatch.setattr(pretrain, "make_accelerator", lambda recipe: one)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(pretrain, "refuse_combinations", stop)
    with pytest.raises(Stop):
        pretrain.main(tiny_run.argv())
    assert "note: 1 of the 8 GPUs of this machine are used; for all of them launch" in capsys.readouterr().out


WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def launched(monkeypatch):
    """Return a function that sets a launcher's variables in an environment without any."""

    def set_up(**variables: str) -> None:
        for name in [name for name in os.environ if launching.LAUNCHED.fullmatch(name)]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_up


@pytest.mark.parametrize(
    "left_over",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        {"RANK": "1"},
        {"LOCAL_RANK": "3", "MASTER_ADDR": "localhost"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
        {name: value for name, value in WHOLE.items() if name != "MASTER_ADDR"},
        {**WHOLE, "MASTER_PORT": ""},
        {"PMI_SIZE": "4"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
    ],
    ids=" ".join,
)
def test_training_by_hand_with_a_part_of_a_launchers_variables_is_refused_at_once(tiny_run, launched, left_over):
    launched(**left_over)
    first, value = next(iter(left_over.items()))
    with pytest.raises(RecipeError, match=rf"{first}={value}.*nobody starts: unset {first}.*accelerate launch"):
        pretrain.main(tiny_run.argv())
    assert not (tiny_run.output_dir / "metrics.jsonl").exists()


def test_processes_without_a_common_port_are_refused_instead_of_waiting(tiny_run, launched):
    launched(**(WHOLE | {"MASTER_PORT": "0"}))
    with pytest.raises(RecipeError, match="MASTER_PORT=0: each process would .*torchrun --standalone"):
        pretrain.main(tiny_run.argv())


@pytest.mark.parametrize(
    ("variables", "kept"),
    [
        (WHOLE, WHOLE),
        ({"WORLD_SIZE": "1", "RANK": "0"}, {}),
        ({"LOCAL_RANK": "0"}, {}),
        ({"MASTER_ADDR": "node-1", "MASTER_PORT": "29500"}, {"MASTER_ADDR": "node-1", "MASTER_PORT": "29500"}),
        ({"PMI_SIZE": "2", **WHOLE}, {"PMI_SIZE": "2", **WHOLE}),  # Accelerate reads WORLD_SIZE first
    ],
    ids=str,
)
def test_a_whole_launch_is_left_alone_and_variables_of_one_process_are_removed(launched, variables, kept):
    launched(**variables)
    launching.refuse_lone_process()
    assert {name: value for name, value in os.environ.items() if launching.LAUNCHED.fullmatch(name)} == kept


def test_a_machine_that_others_cannot_reach_by_its_name_is_refused(monkeypatch):
    def is_named(address, **environment):
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME", "RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        def resolve(*_):
            if address is None:
                raise socket.gaierror(-2, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

        monkeypatch.setattr(socket, "gethostname", lambda: "node7")
        monkeypatch.setattr(socket, "getaddrinfo", resolve)

    two_machines = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "3", "LOCAL_RANK": "3"}
    two_machines |= {"MASTER_ADDR": "node6", "MASTER_PORT": "29500"}
    for address, shown in (("127.0.1.1", "127.0.1.1"), ("::1", "::1"), (None, "no address")):
        is_named(address, **two_machines)
        with pytest.raises(RecipeError, match=f"name node7 stands for {shown}, .* or set GLOO_SOCKET_IFNAME to"):
            make_accelerator(RECIPE)
        is_named(address, **two_machines, GLOO_SOCKET_IFNAME="eth0")
        launching.refuse_unreachable_machine()
    for address, environment in (("10.0.0.7", two_machines), ("127.0.1.1", {"WORLD_SIZE": "8"}), ("127.0.1.1", {})):
        is_named(address, **environment)
        launching.refuse_unreachable_machine()


def test_processes_that_gloo_does_not_connect_are_refused_with_what_to_set(tmp_path, monkeypatch):
    def fails(**_):
        raise RuntimeError("[enforce fail at pair.cc] connect: Connection refused\nException raised from")

    monkeypatch.setattr(torch.distributed, "new_group", fails)
    with pytest.raises(RecipeError, match="does not connect them: .* Connection refused; set GLOO_SOCKET_IFNAME to"):
        Preemption(RunStatus(tmp_path, True)).connect(SimpleNamespace(num_processes=16), 60)


@pytest.mark.parametrize("prepared", [True, False], ids=["training", "preparing"])
def test_no_process_that_is_started_imports_a_module_of_the_working_folder(tiny_run, tmp_path, prepared):
    folder = tmp_path / "with modules"
    folder.mkdir()
    ours, others = ("launching", "planning", "recipe_config"), ("torch", "numpy", "accelerate")
    for name in (*ours, *others, "json", "pickle", "socket", "subprocess"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    if prepared:
        run, script, made = tiny_run, "run_recipe.py", Path("model", "model.safetensors")
    else:  # by the fork server
        run, script, made = (
            TinyRun(tiny_run.texts, tmp_path / "new"),
            "prepare_data.py",
            Path("documents", "stats.json"),
        )
    command = [sys.executable, RECIPES / script, *run.argv("--training.max_tokens=1024", "--data.workers=2")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert not (tmp_path / "imported").exists(), done.stderr[-2000:]
    assert done.returncode == 0 and (run.output_dir / made).exists(), done.stderr[-2000:]


def test_the_job_of_slurm_imports_no_module_of_the_folder_it_is_submitted_from():
    script = (ROOT / "accelerate_configs" / "slurm.sh").read_text()
    started = re.findall(r"""["'(]\$python" .*|exec "\$0" .*""", script)
    started = [words for words in started if " -c " in words or " -m " in words]
    assert len(started) == 3 and all('" -P -' in words for words in started), started


def test_no_worker_of_a_unigram_tokenizer_imports_a_module_of_the_working_folder(tmp_path):
    for name in ("json", "pickle", "socket", "subprocess"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w').close()\n")
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "train.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(RECIPES)!r})\nfrom vocabulary.split_and_merge import ordered_map\n"
        "if __name__ == '__main__':\n    with ordered_map(2) as run:\n        print(*run(abs, [-1, 2]))\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "1 2\n" and not (tmp_path / "imported").exists(), done.stderr[-2000:]


@pytest.mark.parametrize(
    ("file", "processes", "use_cpu", "launched"),
    [
        ("cpu.yaml", None, None, False),
        ("single_gpu.yaml", None, None, True),
        ("ddp.yaml", "8", None, True),
        ("ddp.yaml", "2", "true", True),
        ("ddp.yaml", "1", "true", False),
    ],
)
def test_the_evaluation_takes_the_gpus_and_processes_of_training(file, processes, use_cpu, launched, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    if use_cpu:
        monkeypatch.setenv("ACCELERATE_USE_CPU", use_cpu)
    monkeypatch.setattr(launching, "has_fast_bf16", lambda _: True)
    launch = launching.launch_command(RECIPE, ROOT / "accelerate_configs" / file, processes)
    ran = []
    monkeypatch.setattr(run_recipe, "run_script", lambda name, command, *rest: ran.append(command))
    monkeypatch.setattr(run_recipe, "record_stage", lambda *_: None)
    options = SimpleNamespace(config=["x.yaml"], overrides=[], overwrite=False)
    for name in ("prepare", "pretrain", "evaluate"):
        run_recipe.run_stage(RECIPE, name, options, launch)
    prepare, pretrain_, evaluate = (command[: len(launch)] for command in ran)
    assert prepare[0] == sys.executable and pretrain_ == launch and "accelerate.commands.launch" not in prepare
    assert (evaluate == launch) == launched and any("run_eval.py" in str(word) for word in ran[2])
    if not launched:
        assert ran[2][0] == sys.executable and "run_eval.py" in str(ran[2][1:3])
