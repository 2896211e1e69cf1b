# SPDX-License-Identifier: Apache-2.0
"""tests/gpu/run.sh, rehearsed on a processor, so that it works the first time that there is a GPU."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_run import RECIPES, ROOT


FOLDER = ROOT / "tests" / "gpu"
LOAD = f"""import sys
sys.path[:0] = [{str(RECIPES)!r}, {str(FOLDER)!r}]
import first_hour as f
lab = f.Lab(f.Path(sys.argv[1]), False)
"""


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", f"{LOAD}\n{code}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The folder that a rehearsal left, and what it printed."""
    out = tmp_path_factory.mktemp("gpu")
    for left_over in ("made", "runs/eager-fp32/model", "compiled", "logs"):  # by a run into the same folder
        (out / "files" / left_over).mkdir(parents=True)
        (out / "files" / left_over / "old").write_text("old")
    command = ["bash", str(FOLDER / "run.sh"), "--rehearse", "--out", str(out)]
    ended = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return out, ended.stdout


def test_the_rehearsal_takes_every_check_of_the_readme_and_none_fails(rehearsed):
    out, printed = rehearsed
    results = json.loads((out / "results.json").read_text())
    numbers = re.findall(r"^(\d+)\. ", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert list(results["checks"]) == numbers == [str(number) for number in range(1, 13)]
    passed = {number: check["passed"] for number, check in results["checks"].items()}
    # Speed and memory of a processor are no news; what is right is judged on a processor too.
    assert {number for number, one in passed.items() if one} == {"1", "3", "8", "9", "10", "12"}
    assert not [number for number, one in passed.items() if one is False] and "failed: none" in printed
    assert all(check["figure"] and check["expected"] for check in results["checks"].values())
    assert not list(out.rglob("old")) and list(out.glob("files/runs/eager-fp32/model/*"))


def test_the_rehearsal_measures_every_shape_and_writes_a_table(rehearsed):
    out, _ = rehearsed
    measured = [one for one in json.loads((out / "results.json").read_text())["measured"] if "left_out" not in one]
    assert {one["shape"] for one in measured} == {"125M", "342M", "1B"}
    # On a processor the default takes plain attention at the rehearsal's short sequences, as a recipe does.
    assert {one["used_attention"] for one in measured} == {"eager", "sdpa", "varlen"}
    for one in measured:
        assert one["tokens_per_second"] > 0 and one["optimizer_seconds"] > 0
        assert len(one["muon_seconds"]) == 3 and min(one["muon_seconds"].values()) > 0
        # Spans such as an optimizer's step hold kernels that are listed themselves.
        names = [kernel["name"] for kernel in one["kernels"]]
        assert names and not [name for name in names if name.startswith(("Optimizer.step", "enumerate("))]
    attempted = [one["attention"] for one in json.loads((out / "results.json").read_text())["measured"]]
    # What compiles long comes last, for which there may be no time: the default in the other form, then this one.
    assert attempted[3:] == ["varlen", "sdpa", "auto", "flex_attention"]
    # A processor compiles all layers as one graph, and in the other form each of the two.
    assert [one["compiled_modules"] for one in measured if one["form"] == "other"] == [2]
    assert {one["compiled_modules"] for one in measured if one["form"] == "default"} == {0, 1}
    table = (out / "results.md").read_text()
    assert table.count("\n| ") > 12 + 3 * 10 and "| 10 | killed and resumed |" in table


def test_a_check_that_finds_a_fault_fails_and_one_that_crashes_or_hangs_loses_only_its_own_result(tmp_path):
    (tmp_path / "files" / "logs").mkdir(parents=True)
    code = """
import os, time
def measured(**changes):
    one = {"shape": "342M", "attention": f.DEFAULT_ATTENTION, "used_attention": "varlen", "form": "default"}
    one |= {"first_loss": 10.4, "muon_seconds": {"ours": 0.02, "torch": 0.08, "ours_of_one_process": 0.006}}
    one |= {"tokens_per_second": 9e4}
    one |= {"seconds_to_first_step": 30.0, "peak_memory_bytes": 40e9, "estimated_memory_bytes": {"all": 42e9}}
    one |= {"train/utilisation_6nd_fraction": 0.3, "train/mfu_fraction": 0.4}
    one |= {"seconds_per_step": 0.7, "optimizer_host_seconds": 0.02, "optimizer_seconds": 0.03}
    return one | changes
other = measured(attention="flex_attention", tokens_per_second=6e4, first_loss=10.401, seconds_to_first_step=80.0)
others = [measured(shape="125M"), measured(shape="1B")]
one_graph = measured(form="other", tokens_per_second=1e5, seconds_to_first_step=80.0, optimizer_seconds=0.5)
others.append(one_graph | {"peak_memory_bytes": 60e9, "first_loss": 11.0, "train/mfu_fraction": 0.1})
judged = f.OF_SHAPES | f.OF_FORMS | f.LAST
for check in judged.values():
    assert check(lab, [measured(), *others, other]).passed is True, check
for check, change in (
    (f.check_attentions, {"first_loss": 10.5}), (f.check_attentions, {"tokens_per_second": 5e4}),
    (f.check_speed, {"train/mfu_fraction": 0.2}), (f.check_optimizer, {"optimizer_seconds": 0.1}),
    (f.check_optimizer, {"optimizer_host_seconds": 0.1}),
    (f.check_start, {"seconds_to_first_step": 100.0}), (f.check_memory, {"peak_memory_bytes": 50e9}),
):
    assert check(lab, [measured(**change), *others, other]).passed is False, (check, change)
figure = f.check_optimizer(lab, [measured()]).figure
assert "alone 20.0 ms, 0.25 of torch.optim.Muon's 80.0, and one of 4 processes 6.0 ms, 30% of it" in figure, figure
figure = f.check_start(lab, [measured(), *others]).figure
assert "342M compiled by layer: 30.0 s, then 90,000 tokens/s" in figure, figure
assert "342M compiled as one graph: 80.0 s, then 100,000 tokens/s" in figure, figure
crashed = {"shape": "342M", "attention": f.DEFAULT_ATTENTION, "form": "other"}
for problem, passed in (("not finished within 120 s", True), ("not finished: no time", True), ("code 7", False)):
    result = f.check_start(lab, [measured(), *others[:2], crashed | {"left_out": problem}])
    assert result.passed is passed and f"as one graph: {problem}" in result.figure, result
crashed |= {"shape": "1B", "form": "default", "left_out": "out of memory"}
unknown = measured(shape="1B")
del unknown["train/mfu_fraction"]  # a device whose peak is not known
for check in (f.OF_SHAPES | f.OF_FORMS).values():
    result = check(lab, [measured(), others[0], crashed, other])
    assert result.passed is False and "NOTHING of 1B" in result.figure, check
assert f.check_speed(lab, [measured(), others[0], unknown]).passed is False
for problem, passed in (("code 7", False), ("not finished: no time", None), ("not finished within 9 s", None)):
    lacks = [{"shape": "342M", "attention": name, "form": "default", "left_out": problem} for name in ("sdpa", "flex")]
    result = f.check_attentions(lab, [measured(), *others, *lacks])
    assert result.passed is passed and f"flex left out: {problem}" in result.figure, result
    assert f.check_attentions(lab, [measured(), *others, other, *lacks]).passed is True
    only_sdpa = [measured(attention="sdpa"), lacks[0] | {"attention": f.DEFAULT_ATTENTION}]
    assert f.check_attentions(lab, only_sdpa).passed is False
report = f.Report(lab, "a GPU")
f.judge(lab, report, judged)
assert [result.passed for result in report.results.values()] == [False] * 5
def crash(lab): os._exit(7)
def hang(lab): time.sleep(60)
def refuse(lab): raise ValueError("no such")
late = "not finished within 0 s"
for function, seconds, problem in ((crash, 20, "code 7"), (hang, 0.5, late), (refuse, 20, "no such")):
    result, found = lab.child(function, leads=True).finish(seconds)
    assert result is None and problem in found, found
class Refused:
    def __init__(self, *arguments, **options): self.process = self
    def is_alive(self): return False
    def kill(self): pass
    def finish(self, seconds): return None, "RecipeError: the disk is full"
f.Lab.child = Refused
for check in (f.check_compiled_ddp, f.check_saving, f.check_resuming):
    try:
        check(lab)
    except RuntimeError as error:
        assert "the disk is full" in str(error), error
    else:
        raise AssertionError(check)
assert f.check_dry_runs(lab).passed is False
print("as expected")
"""
    assert run_python(code, str(tmp_path)).endswith("\nas expected\n")


def test_one_of_four_processes_orthogonalises_a_quarter_of_the_matrices_in_the_time_of_its_own(tmp_path):
    code = """
import types
from training import muon
matrices = [f.torch.nn.Parameter(f.torch.randn(64, 64)) for _ in range(8)]
prepared = types.SimpleNamespace(
    module=f.torch.nn.ParameterList(matrices), optimizers=[muon.ShardedMuon(matrices, 1e-3, 0.1)],
    step=lambda ok: None, clear_gradients=lambda: None,
)
accelerator, training = types.SimpleNamespace(device="cpu"), types.SimpleNamespace(weight_decay=0.1)
run = types.SimpleNamespace(prepared=prepared, accelerator=accelerator, training=training)
newton_schulz, counts = muon.newton_schulz, []
muon.newton_schulz = lambda batch, options: counts.append(len(batch)) or newton_schulz(batch, options)
seconds = f.time_optimizers(run)["muon_seconds"]
print(counts, min(seconds.values()) > 0, all(matrix.isfinite().all() for matrix in matrices))
"""
    assert run_python(code, str(tmp_path)) == "[8, 8, 8, 2, 2, 2] True True\n"


def test_a_child_can_start_afresh_where_a_fork_cannot_use_the_gpu(tmp_path):
    (tmp_path / "files" / "logs").mkdir(parents=True)
    script = tmp_path / "afresh.py"
    script.write_text(
        f"{LOAD}\nlab.rehearsal, lab.start_method = True, 'spawn'\n"
        "if __name__ == '__main__':\n    print(lab.child(f.use_gpu).finish(60))\n"
    )
    ended = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=True)
    assert ended.stdout == "('', None)\n"


def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path):
    command = ["bash", str(FOLDER / "run.sh"), "--out", str(tmp_path)]
    ended = subprocess.run(
        command,
        env=os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2 and "no GPU: " in ended.stdout and "--rehearse runs on a processor" in ended.stdout
    assert not (tmp_path / "results.json").exists()


def with_requirements(names: set[str]) -> set[str]:
    """Return the names of packages, and of all that pip installs with them."""
    found, wanted = set(), [canonicalize_name(name) for name in names]
    while wanted:
        if (name := wanted.pop()) not in found:
            found.add(name)
            needed = [Requirement(text) for text in requires(name) or []]
            needed = [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
            wanted += map(canonicalize_name, needed)
    return found


def test_what_the_script_imports_is_on_the_list_of_packages_or_comes_with_those_that_it_names():
    readme = (FOLDER / "README.md").read_text()
    listed = readme[readme.index("manylinux2014_x86_64") :].partition("bash")[0].replace("\\", " ").split()[1:]
    there = {"torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "pyarrow"}
    code = "import json; print(json.dumps([m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)]))"
    loaded = [Path(file) for file in json.loads(run_python(code, "x").splitlines()[-1])]
    owners, imported = packages_distributions(), set()
    for file in (file for file in loaded if file.is_relative_to(RECIPES)):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {owners[name.partition(".")[0]][0] for name in names if name.partition(".")[0] in owners}
    missing = with_requirements(imported) - with_requirements(there) - {canonicalize_name(name) for name in listed}
    assert "pydantic" in imported and not missing
