# SPDX-License-Identifier: Apache-2.0
"""Whole recipes by one command: copied, moved, killed, run again."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from argparse import Namespace
from pathlib import Path

import psutil
import pytest
from closed_network import ClosedNetwork
from mini_hub import hub_environment, start_hub
from tiny_run import RECIPES, ROOT, make_text, tiny_settings, write_tiny_texts
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import launching
import recipe_loading
import recorded_files
import run_recipe
from atomic_files import file_sha256
from recipe_config import RecipeError
from recipe_loading import load_recipe
from stages import STAGES


RECIPE = load_recipe([RECIPES / "custom" / "base.yaml"], ["--data.sources=[{name: a, path: a}]"])


def run(command: list, cwd: Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, **options)


UNIGRAM = ("--tokenizer.algorithm=unigram", "--tokenizer.pad_vocabulary=true")  # the text yields too few tokens


def phase_of(sequence_length: int) -> str:
    """Return the override of a second phase with longer sequences."""
    phase = {"start_fraction": 0.5, "shares": {"law": 0.6, "web": 0.4}, "sequence_length": sequence_length}
    return f"--data.phases={json.dumps([phase | {'rope_parameters': {'rope_theta': 50_000.0}}])}"


@pytest.fixture(scope="module")
def telecom(tmp_path_factory) -> tuple[list, Path, subprocess.CompletedProcess]:
    """Copy the repository's three folders and the legal recipe in them, and run the copy from another folder, with the
    network closed.

    Returns: the command, the folder it ran in, and the finished process.
    """
    folder = tmp_path_factory.mktemp("elsewhere") / "Verträge & Söhne"
    for name in ("recipes", "eval", "accelerate_configs"):
        shutil.copytree(ROOT / name, folder / "repo" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(folder / "repo" / "recipes" / "legal", folder / "repo" / "recipes" / "telecom")
    write_tiny_texts(folder / "texts")
    with (folder / "texts" / "law.jsonl").open("a") as file:
        file.write(
            json.dumps({"text": f"{make_text(99)}\nTHE KEYS TO THE OLD CABINET are on the kitchen-table!"}) + "\n"
        )
    config = folder / "repo" / "recipes" / "telecom" / "base.yaml"
    settings = [*tiny_settings(Path("texts"), Path("runs/telecom")), "--evaluation.tasks=[general_agreement]"]
    settings += ["--training.sequence_length=128", "--data.decontamination={}"]
    settings += ["--training.eval_tasks=[general_agreement]"]
    settings += ["--plan.flops=1e13", "--plan.device=rtx-4090", phase_of(256), *UNIGRAM]
    command = [folder / "repo" / "recipes" / "run_recipe.py", "--config", config, *settings]
    closed = ClosedNetwork(tmp_path_factory.getbasetemp() / "closed_network")
    first = [*closed.prefix, sys.executable, *map(str, command)]
    return command, folder, subprocess.run(first, cwd=folder, env=closed.environment, capture_output=True, text=True)


def test_nothing_is_asked_of_the_network_from_text_to_release(telecom, tmp_path, tmp_path_factory):
    asked = tmp_path_factory.getbasetemp() / "closed_network" / "asked.txt"
    assert telecom[2].returncode == 0, telecom[2].stderr[-3000:]
    assert not asked.exists(), asked.read_text()
    closed = ClosedNetwork(tmp_path / "closed")
    code = "import huggingface_hub; huggingface_hub.HfApi().model_info('gpt2')"
    command = [*closed.prefix, sys.executable, "-c", code]
    assert subprocess.run(command, env=closed.environment, capture_output=True).returncode == 1
    assert any("huggingface.co" in line for line in closed.asked()), "the guard sees what is asked"


def test_a_copied_recipe_runs_through_every_stage_from_another_folder(telecom):
    _, folder, result = telecom
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    output = folder / "runs" / "telecom"
    for name, stage in STAGES.items():
        assert (output / stage.output).is_dir() != stage.by_hand, name
    for file in (
        "report.html",
        "summary.txt",
        "release/README.md",
        "eval/results.json",
        "figures/loss.png",
        "plan.json",
    ):
        assert (output / file).stat().st_size > 100, file
    assert not list(output.glob(".*.tmp"))
    results = json.loads((output / "eval" / "results.json").read_text())
    assert set(results["bits_per_byte"]["sources"]) == {"law", "web"}
    assert set(results["bits_per_byte"]["domains"]) == {"legal", "general"}
    tokenizer = AutoTokenizer.from_pretrained(output / "release")
    model = AutoModelForCausalLM.from_pretrained(output / "release")
    assert len(tokenizer) == model.config.vocab_size
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["eval/general_agreement/num_items"] == 100
    assert "bits per byte" in result.stdout.lower() and "report.html" in result.stdout


CONTINUED = "--model.from_pretrained=base"  # which has a chat template
EXTENDED, ADAPTERS = "--tokenizer.extend_by=10", "--model.lora={rank: 2, targets: [q_proj, down_proj]}"
MINE = '--data.sources=[{"name": "mine", "path": "texts/web"}]'
# name -> recipe, settings and processes; each runs in a folder of its own, beside the repository.
WAYS = {
    "continued from a base with a chat template, extended, adapters, two processes": (
        "custom",
        [CONTINUED, EXTENDED, ADAPTERS],
        2,
    ),
    "from scratch with a recipe of the repository": ("legal", [], 1),
    "from scratch with Unigram and a custom recipe": ("custom", [MINE, *UNIGRAM], 1),
    "from scratch with two processes and a longer phase": ("custom", [phase_of(64)], 2),
    "continued, every weight": ("custom", [CONTINUED], 1),
    "continued, extended": ("legal", [CONTINUED, EXTENDED], 1),
    "continued, adapters": ("custom", [CONTINUED, ADAPTERS], 1),
    "continued, extended, every weight, a longer phase": ("custom", [CONTINUED, EXTENDED, phase_of(64)], 1),
}


@pytest.fixture(scope="module")
def base(tokenized_run, tmp_path_factory) -> Path:
    """A model of random weights, with the tiny run's tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("base") / "base"
    tokenizer = AutoTokenizer.from_pretrained(tokenized_run.output_dir / "tokenizer")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.mark.parametrize(
    "way",
    [
        "a copied recipe from another folder, with spaces and umlauts, Unigram and a longer phase",
        *(pytest.param(way, marks=[pytest.mark.long] if number else []) for number, way in enumerate(WAYS)),
    ],
)
def test_every_way_from_text_ends_in_a_release_on_the_hub(way, request, tmp_path):
    published = "--hub.repo_id=me/tiny"
    if way in WAYS:
        recipe, settings, processes = WAYS[way]
        folder, output = tmp_path / "neue Läufe", tmp_path / "neue Läufe" / "run"
        write_tiny_texts(folder / "texts")
        if CONTINUED in settings:
            (folder / "base").symlink_to(request.getfixturevalue("base"))
        command = [RECIPES / "run_recipe.py", "--config", RECIPES / recipe / "base.yaml"]
        command += [*tiny_settings(Path("texts"), Path("run")), "--data.fit_to_corpus=false", *settings, published]
        if processes > 1:
            launch_file = ROOT / "accelerate_configs" / "ddp.yaml"
            command += ["--accelerate_config", launch_file, "--num_processes", processes]
    else:
        settings, processes = [*UNIGRAM], 1
        command, folder, _ = request.getfixturevalue("telecom")
        output = shutil.copytree(folder / "runs" / "telecom", tmp_path / "run")
        command = [Path(command[0]).with_name("push_to_hub.py"), *command[1:], f"--run.output_dir={output}", published]
    with start_hub() as (_, endpoint):
        environment = hub_environment(endpoint, tmp_path / "home")
        done = run(command, folder, env={name: value for name, value in environment.items() if name != "PYTHONPATH"})
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        with urllib.request.urlopen(f"{endpoint}/_state") as answer:
            repository = json.load(answer)["repositories"]["models/me/tiny"]
    release = output / "release"
    local = {
        path.relative_to(release).as_posix(): path.stat().st_size for path in release.rglob("*") if path.is_file()
    }
    local.pop("stage.json", None)
    assert {name: size for name, size in repository["files"].items() if name != ".gitattributes"} == local

    model, report = AutoModelForCausalLM.from_pretrained(release, output_loading_info=True)
    tokenizer, training = AutoTokenizer.from_pretrained(release), json.loads((output / "training.json").read_text())
    assert not any(report.values()) and model.num_parameters() == training["parameters"]["total"]
    ids = tokenizer("The court denies any claim.", return_tensors="pt").input_ids
    assert model(ids).logits.isfinite().all() and len(tokenizer) == model.config.vocab_size
    assert training["num_processes"] == processes
    assert (tokenizer.chat_template is not None) == (CONTINUED in settings)
    assert ("Unigram" in tokenizer.backend_tokenizer.to_str()) == (UNIGRAM[0] in settings)
    assert bool(training["parameters"]["adapters"]) == (ADAPTERS in settings)
    if longer := [phase["sequence_length"] for phase in training["phases"][1:]]:
        assert tokenizer.model_max_length == model.config.max_position_embeddings >= max(longer)
    assert not re.search(r"Läufe|Söhne", "".join(path.read_text(errors="ignore") for path in release.rglob("*.*")))


def test_a_report_that_was_killed_before_its_files_are_recorded_is_made_again(tmp_path, monkeypatch):
    """Its stage does not count as finished, or publishing would refuse files that nobody can record."""
    run_folder, finished = tmp_path / "run", []
    run_folder.mkdir()
    recipe = RECIPE.model_copy(update={"run": RECIPE.run.model_copy(update={"output_dir": str(run_folder)})})

    def make(name, command, run, spare=None):
        (run / "report.html").write_text(f"report of {command}")
        return True

    real = recorded_files.record_run_files

    def killed(run, names, forget=()):
        if names:
            raise SystemExit("killed")
        real(run, names, forget)

    options = Namespace(config=[], overrides=[], overwrite=False)
    monkeypatch.setattr(run_recipe, "run_script", make)
    monkeypatch.setattr(run_recipe, "record_stage", lambda recipe, name: finished.append(name))
    run_recipe.run_stage(recipe, "report", options, [])
    assert "report.html" in recorded_files.recorded_run_files(run_folder)
    monkeypatch.setattr(recorded_files, "record_run_files", killed)
    with pytest.raises(SystemExit, match="killed"):
        run_recipe.run_stage(recipe, "report", Namespace(**vars(options) | {"overwrite": True}), [])
    assert finished == ["report"], "the second is not"
    assert not recorded_files.find_damaged_run_files(run_folder), "not recorded, and so not damaged"


def test_the_terminal_shows_what_the_stages_say_and_nothing_of_the_libraries(telecom):
    lines = [line for line in re.split(r"[\r\n]+", telecom[2].stderr) if line.strip(" \x1b[A")]
    assert any(line.startswith("evaluate: samples") for line in lines)
    assert {line.partition(":")[0] for line in lines} <= {
        "prepare",
        "tokenizer",
        "tokenize",
        "pretrain",
        "evaluate",
        "report",
    }
    assert any(line.startswith("pretrain: step") for line in lines)
    assert ".benchmarks." not in telecom[2].stderr + telecom[2].stdout, "a hidden folder, which is no longer there"


def test_a_dry_run_says_that_the_text_is_too_small_before_anything_is_made(tmp_path):
    write_tiny_texts(tmp_path / "texts")
    sources = [{"name": "law", "path": "texts/law.jsonl"}]
    command = [RECIPES / "run_recipe.py", "--config", RECIPES / "custom" / "base.yaml", "--dry_run"]
    command.append(f"--data.sources={json.dumps(sources)}")
    shrunk = run(command, tmp_path)
    assert shrunk.returncode == 0 and "run_recipe: note: the text of law lasts for about" in shrunk.stdout
    refused = run([*command, "--data.fit_to_corpus=false"], tmp_path)
    assert refused.returncode == 1 and "is too long for the text: law would be repeated" in refused.stderr
    assert "Set --training.max_tokens=" in refused.stderr and not (tmp_path / "runs").exists()


def test_the_benchmarks_that_are_scored_are_those_that_the_text_was_kept_free_of(telecom):
    output = telecom[1] / "runs" / "telecom"
    report = json.loads((output / "documents" / "decontamination.json").read_text())
    assert report["removed"]["law"]["documents"] == 1
    assert report["settings"]["sha256"] == {
        "general_agreement": file_sha256(output / "benchmarks/general_agreement.jsonl")
    }
    stats = json.loads((output / "documents" / "stats.json").read_text())["sources"]["law"]
    assert stats["dropped"]["benchmark_overlap"]["documents"] == 1
    task = json.loads((output / "eval" / "results.json").read_text())["tasks"]["general_agreement"]
    assert task["by_overlap"].keys() <= {"clean", "not_checkable"}, "its document was taken out, so the item is clean"
    assert sum(group["num_items"] for group in task["by_overlap"].values()) == task["num_items"]
    for page in ("documents/README.md", "release/data_card.md", "release/README.md"):
        assert "1 of law" in (output / page).read_text() or "1 documents" in (output / page).read_text(), page
    assert "1 of law" in (output / "report.html").read_text()


def test_running_it_again_does_nothing_and_reports_it(telecom):
    command, folder, _ = telecom
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("[!.]*") if path.is_file()}
    result = run(command, folder)
    assert result.returncode == 0
    assert "nothing to do, every stage in runs/telecom is finished" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("[!.]*") if path.is_file()} == before


def test_an_evaluation_that_lacks_a_baseline_is_tried_again(telecom):
    command, folder, _ = telecom
    results = folder / "runs" / "telecom" / "eval" / "results.json"
    kept = results.read_text()
    results.write_text(json.dumps(json.loads(kept) | {"baselines_not_scored": {"org/a": "not there"}}))
    found = run([*command, "--dry_run"], folder).stdout
    assert "would run" not in found, "what was scored is not kept, so that a try would cost a whole evaluation"
    parts = results.parent.with_name(".eval.parts")
    parts.mkdir()
    found = run([*command, "--dry_run"], folder).stdout
    assert "run_recipe: evaluate would run" in found and "pretrain would run" not in found
    of_gpu = json.loads(results.read_text())
    of_gpu["settings"]["device"] = "cuda"
    results.write_text(json.dumps(of_gpu))
    assert "would run" not in run([*command, "--dry_run"], folder).stdout, "it would be scored again, without the GPU"
    parts.rmdir()
    results.write_text(kept)
    assert "would run" not in run([*command, "--dry_run"], folder).stdout


def test_another_try_for_a_baseline_that_fails_ends_nothing(tmp_path, capsys):
    fails = [sys.executable, "-c", "raise SystemExit(1)"]
    assert not run_recipe.run_script("evaluate", fails, tmp_path, "the earlier results stay"), "nothing is recorded"
    assert "run_recipe: note: the earlier results stay, for the reason above" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_recipe.run_script("evaluate", fails, tmp_path)


def test_a_damaged_summary_of_training_is_named_when_nothing_is_left_to_do(telecom):
    command, folder, _ = telecom
    path = folder / "runs" / "telecom" / "training.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"tokens_seen", b"tokens\xefseen"))
    result = run(command, folder)
    path.write_bytes(before)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "training.json: its sha256 is not the recorded one; restore it from a copy" in result.stderr


def test_a_changed_evaluation_runs_again_and_a_changed_model_is_refused(telecom):
    command, folder, _ = telecom
    result = run([*command, "--model.num_hidden_layers=3"], folder)
    assert result.returncode != 0 and "model.num_hidden_layers was 2, is 3" in result.stderr
    assert "Traceback" not in result.stderr
    result = run([*command, "--evaluation.tasks=[]", "--dry_run"], folder)
    assert result.stdout.splitlines() == ["run_recipe: evaluate would run: eval/run_eval.py"]


def test_a_benchmark_that_is_added_later_is_scored_as_unchecked_and_nothing_is_trained_again(telecom):
    command, folder, _ = telecom
    output = folder / "runs" / "telecom"
    before = {name: (output / name / "stage.json").read_bytes() for name in ("documents", "tokens", "model")}
    more = [*command, "--evaluation.tasks=[general_agreement, legal_sense]"]
    result = run(more, folder)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    assert "note: the documents were not checked against legal_sense as they are now" in result.stdout
    assert {name: (output / name / "stage.json").read_bytes() for name in before} == before
    tasks = json.loads((output / "eval" / "results.json").read_text())["tasks"]
    assert tasks["legal_sense"]["by_overlap"].keys() == {"unchecked"}
    assert "clean" in tasks["general_agreement"]["by_overlap"]
    assert "<li>unchecked: the text was not checked against them.</li>" in (output / "report.html").read_text()
    assert "not checked against the text" in (output / "release" / "README.md").read_text()
    overwritten = run([*more, "--overwrite", "--dry_run"], folder)
    assert overwritten.stdout.splitlines()[0] == "run_recipe: prepare would run: recipes/prepare_data.py"


def prepare_alone(folder: Path, tasks: str) -> list:
    """Copy recipes/ and eval/, add a group of one private task, and return the command that prepares a tiny text."""
    for name in ("recipes", "eval"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    private = folder / "eval" / "tasks" / "private"
    private.mkdir()
    (private / "README.md").write_text("Private.")
    form = "tasks: {nda_terms: }\ndata_files: {test: terms.jsonl}\nmetrics: [acc]\ngroups: [contracts]\n"
    (private / "terms.yaml").write_text(form)
    item = {"id": "nda-1", "context": "The term of this agreement is", "choices": ["two years.", "ten goats."]}
    (private / "terms.jsonl").write_text(json.dumps(item | {"gold": 0}) + "\n")
    write_tiny_texts(folder / "texts")
    script, config = folder / "recipes" / "prepare_data.py", folder / "recipes" / "custom" / "base.yaml"
    settings = [*tiny_settings(Path("texts"), Path("run")), "--data.decontamination={}"]
    return [script, "--config", config, *settings, f"--evaluation.tasks=[{tasks}]"]


def test_prepare_alone_writes_the_items_of_a_group_and_run_recipe_skips_both_stages(tmp_path):
    command = prepare_alone(tmp_path, "contracts")
    result = run(command, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    written = {path.name for path in (tmp_path / "run" / "benchmarks").glob("[!.]*")}
    assert written == {"nda_terms.jsonl", "stage.json"}
    report = json.loads((tmp_path / "run" / "documents" / "decontamination.json").read_text())
    assert "nda_terms" in json.dumps(report)
    later = run([tmp_path / "recipes" / "run_recipe.py", *command[1:], "--dry_run"], tmp_path)
    assert later.stdout.splitlines()[0] == "run_recipe: tokenizer would run: recipes/train_tokenizer.py", later.stderr


def test_prepare_alone_that_is_stopped_while_it_writes_the_items_leaves_no_process_and_says_so(tmp_path):
    command = [sys.executable, *map(str, prepare_alone(tmp_path, "contracts"))]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (export := psutil.Process(process.pid).children()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    assert list(tmp_path.glob("run/.benchmarks*"))
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and "prepare: stopped on SIGTERM; the same command starts it again" in said, said
    assert not any(one.is_running() for one in export)


def test_prepare_alone_refuses_benchmarks_that_cannot_be_read_and_says_how_to_bring_them(tmp_path):
    command = prepare_alone(tmp_path, "mmlu_legal, contracts")
    result = run(command, tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")})
    assert result.returncode != 0 and not (tmp_path / "run" / "documents").exists()
    assert "mmlu_jurisprudence" in result.stderr, "the reason is that of the command that exports them"
    assert "data.decontamination: the items of mmlu_legal, contracts were not written" in result.stderr
    assert "data.decontamination.benchmarks" in result.stderr and "Traceback" not in result.stderr


def test_recipes_alone_make_a_model_and_a_release_without_results_even_when_killed(tmp_path):
    shutil.copytree(RECIPES, tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    texts = tmp_path / "my texts"
    texts.mkdir()
    for seed in range(40):
        (texts / f"{seed}.txt").write_text(make_text(seed))
    sources = json.dumps([{"name": "mine", "path": str(texts)}])
    command = [tmp_path / "recipes" / "run_recipe.py", "--config", tmp_path / "recipes" / "custom" / "base.yaml"]
    command += [f"--data.sources={sources}", "--training.torch_compile=false", "--training.max_tokens=100_000"]
    command += ["--data.max_repetitions=1", "--data.decontamination={}", "--evaluation.tasks=[legal_sense]"]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = tmp_path / "runs" / "custom"
    deadline = time.monotonic() + 120
    while not (output / "tokenizer").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    printed_before = process.communicate()[0]
    first_line = printed_before.splitlines()[0]  # before work starts
    assert "requests and evaluate and report are left out" in first_line
    assert "the text is not checked against the benchmarks" in first_line
    prepared = (output / "documents" / "stage.json").stat().st_mtime_ns

    result = run(command, tmp_path)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    assert (output / "documents" / "stage.json").stat().st_mtime_ns == prepared
    for note in ("bytes yield about", "training.tokens_per_step=16,384 is too much for", "training.max_tokens"):
        assert note in printed_before + result.stdout, note
    assert (output / "release" / "README.md").exists() and not (output / "report.html").exists()
    AutoModelForCausalLM.from_pretrained(output / "release")
    assert "no eval/ folder" in json.loads((output / "documents" / "stats.json").read_text())["unchecked"]
    for card in ("documents/README.md", "release/data_card.md", "release/README.md"):
        assert "not checked against any benchmark: there was no eval/ folder" in (output / card).read_text(), card


def test_what_is_missing_is_reported_before_work_starts(tmp_path):
    shutil.copytree(RECIPES, tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__", "pretrain.py"))
    config = ["--config", tmp_path / "recipes" / "custom" / "base.yaml"]
    result = run([tmp_path / "recipes" / "run_recipe.py", *config], tmp_path)
    assert result.returncode != 0 and "recipes/pretrain.py: not there; copy recipes/ whole" in result.stderr
    result = run([RECIPES / "run_recipe.py", *config], tmp_path)
    assert result.returncode != 0 and "mine: path 'my_texts': no such file or folder" in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "num_processes", "refusal"),
    [
        ("{distributed_type: MULTI_CPU, num_processes: 2}", None, "distributed_type: MULTI_CPU with 2 processes"),
        ("{use_cpu: true, num_processes: 4}", None, "use_cpu: True with 4 processes: Accelerate would start one"),
        ("{use_cpu: true, num_processes: 1}", "2", "use_cpu: True with 2 processes"),
        ("{distributed_type: MULTI_GPU}", None, "num_processes is not set; add --num_processes N"),
        ("{distributed_type: MULTI_GPU}", "two", "--num_processes=two: expected a whole number of at least 1"),
        ("{distributed_type: MULTI_GPU}", "-2", "--num_processes=-2: expected a whole number of at least 1"),
        ("{num_processes: [2]}", None, "num_processes=[2]: expected a whole number of at least 1"),
        ("{num_processes: 1, num_machines: many}", None, "num_machines=many: expected a whole number of at least 1"),
        ("{num_processes: [2", None, "machine.yaml:1: "),
        ("[2, 3]", None, "machine.yaml: a launch file is a mapping of Accelerate's keys, got list"),
        ("", None, "machine.yaml: a launch file is a mapping of Accelerate's keys, got NoneType"),
        ("a: " + 2000 * "[", None, "machine.yaml:1: nested deeper than"),
        ("{use_cpu: true, num_processes: 1}", None, None),
        ("{distributed_type: MULTI_GPU}", "2", None),
    ],
)
def test_a_launch_file_whose_processes_accelerate_would_ignore_is_refused(tmp_path, settings, num_processes, refusal):
    file = tmp_path / "machine.yaml"
    file.write_text(settings)
    if refusal:
        with pytest.raises(RecipeError) as error:
            launching.launch_command(RECIPE, file, num_processes)
        assert refusal in str(error.value)
    else:
        command = launching.launch_command(RECIPE, file, num_processes)
        assert command[command.index("--num_processes") + 1] == (num_processes or "1")


def test_a_launch_file_that_is_none_and_processes_without_a_launch_file_are_refused(tmp_path):
    (tmp_path / "text.yaml").write_bytes(b"\xff\xfe")
    text = tmp_path / "text.yaml"
    for path, reason in ((tmp_path, f"{tmp_path}: no such file"), (text, f"{text}: cannot be read: not UTF-8 text")):
        with pytest.raises(RecipeError, match=reason):
            launching.launch_command(RECIPE, path, "2")
    write_tiny_texts(tmp_path / "texts")
    settings = tiny_settings(tmp_path / "texts", tmp_path / "run")
    with pytest.raises(SystemExit, match="--num_processes 2: several processes need a launch file"):
        recipe_loading.run_command(
            lambda: run_recipe.main(
                ["--config", str(RECIPES / "custom" / "base.yaml"), *settings, "--num_processes", "2"]
            )
        )


@pytest.mark.parametrize("size", launching.WORLD_SIZES)
def test_the_environment_of_one_of_several_processes_is_refused_with_its_variables(size, monkeypatch):
    monkeypatch.setenv(size, "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RecipeError, match=rf"RANK=1.* unset .*{size}"):
        launching.clear_environment()


def test_what_another_launcher_left_in_the_environment_is_removed_and_printed(monkeypatch, capsys):
    left = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "FSDP_VERSION": "2", "WORLD_SIZE": "1", "MASTER_PORT": "1"}
    kept = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "NVIDIA_TF32_OVERRIDE": "0", "FSDPX": "1"}
    for name, value in (left | kept).items():
        monkeypatch.setenv(name, value)
    launching.clear_environment()
    assert not left.keys() & os.environ.keys() and kept.items() <= os.environ.items()
    shown = capsys.readouterr().out
    assert f"accelerate_configs/ decides: {', '.join(sorted(left))}" in shown
    assert "training computes: NVIDIA_TF32_OVERRIDE" in shown and "hides every GPU" not in shown
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    launching.clear_environment()
    shown = capsys.readouterr().out
    assert "CUDA_VISIBLE_DEVICES hides every GPU; ACCELERATE_USE_CPU=true says" in shown and "removed" not in shown


def test_accelerates_file_in_the_home_folder_is_not_followed_where_no_launch_file_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "ROOT", tmp_path)
    monkeypatch.setattr(launching, "has_gpu", lambda: True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert "--config_file" not in launching.launch_command(RECIPE, None, None)
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("distributed_type: FSDP\n")
    with pytest.raises(RecipeError, match="default_config.yaml: without .* Accelerate would train as this file says"):
        launching.launch_command(RECIPE, None, None)


def test_a_launch_needs_neither_a_home_nor_an_account(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "ROOT", tmp_path)
    monkeypatch.setattr(launching, "has_gpu", lambda: True)
    for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert "--config_file" not in launching.launch_command(RECIPE, None, None)


def test_a_run_has_the_same_losses_whatever_other_launchers_left_in_the_environment(tmp_path):
    write_tiny_texts(tmp_path / "texts")
    settings = tiny_settings(Path("texts"), Path("run"))
    for name in ("recipes", "accelerate_configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    left = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_MIXED_PRECISION": "fp16",
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_DEBUG_MODE": "1",
        "FSDP_OFFLOAD_PARAMS": "true",
        "RANK": "0",
        "MASTER_PORT": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    (tmp_path / "home" / "accelerate").mkdir(parents=True)
    (tmp_path / "home" / "accelerate" / "default_config.yaml").write_text(
        "{compute_environment: LOCAL_MACHINE, distributed_type: MULTI_CPU, num_processes: 2, mixed_precision: fp16}"
    )
    losses = []
    for environment in ({}, left):
        command = ["recipes/run_recipe.py", "--config", "recipes/legal/base.yaml", *settings]
        result = run(command, tmp_path, env=os.environ | environment)
        assert result.returncode == 0, result.stderr[-2000:]
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
        for name in ("model", "checkpoints", "release"):
            shutil.rmtree(tmp_path / "run" / name)
        for path in [*(tmp_path / "run").glob("*.json*")]:
            path.unlink()
    assert losses[0] == losses[1] and len(losses[0]) > 3
    assert "removed from the environment, since accelerate_configs/ decides: ACCELERATE_DEBUG_MODE" in result.stdout


def test_a_reader_whose_shell_has_not_entered_the_environment_gets_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / ".venv"))
    assert run_recipe.activation() is None
    monkeypatch.delenv("VIRTUAL_ENV")
    assert run_recipe.activation() == "source .venv/bin/activate"
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert run_recipe.activation() is None


def test_evaluation_gets_what_the_recipe_says(tmp_path):
    # Not the recipe's own folder, in which the quickstart may have been run.
    recipe = load_recipe([RECIPES / "legal" / "quickstart.yaml"], [f"--run.output_dir={tmp_path}"])
    command = STAGES["evaluate"].command(recipe, ["--config", "x"])
    assert command[0] == str(ROOT / "eval" / "run_eval.py") and "--config" not in command
    assert command[command.index("--tasks") + 1] == "legal_sense,general_agreement"
    assert [word for word in command if word.startswith("--prompt=")] == [
        f"--prompt={prompt}" for prompt in recipe.evaluation.prompts
    ]
    assert "--xz" in command
    assert "--decontamination" not in command, "these documents are not there"
    assert "--baselines" not in command and "baselines" not in STAGES["evaluate"].settings(recipe), "as before the key"


def test_evaluation_scores_the_recipes_baselines_again_if_one_changes(tmp_path):
    baseline = tmp_path / "baseline"
    baseline.mkdir()
    (baseline / "model.safetensors").write_bytes(b"1")
    overrides = [f"--run.output_dir={tmp_path}", f"--evaluation.baselines=[{baseline}, owner/model@v1]"]
    recipe = load_recipe([RECIPES / "legal" / "quickstart.yaml"], overrides)
    command = STAGES["evaluate"].command(recipe, [])
    assert command[command.index("--baselines") + 1 :][:2] == [str(baseline), "owner/model@v1"]
    assert command[command.index("--baseline_scores") + 1] == str(tmp_path / "baseline_scores")
    before = STAGES["evaluate"].settings(recipe)
    (baseline / "model.safetensors").write_bytes(b"22")
    assert STAGES["evaluate"].settings(recipe) != before
    write_tiny_texts(tmp_path / "texts")
    settings = [*tiny_settings(tmp_path / "texts", tmp_path / "run"), "--evaluation.baselines=[./absent]"]
    absent = load_recipe([RECIPES / "custom" / "base.yaml"], settings)
    with pytest.raises(RecipeError, match=r"evaluation.baselines='./absent': no such folder"):
        run_recipe.plan_stages(absent)


CHECK_BASELINES = """
import sys
from recipe_config import RecipeError
from run_recipe import check_baseline
for name in sys.argv[1:]:
    try:
        check_baseline(name)
        print(name, "passes")
    except RecipeError as error:
        print(error)
"""


def test_a_baseline_that_is_gated_or_that_the_hub_does_not_know_is_refused_before_work(tmp_path):
    gated = {"match": "owner/gated", "status": 403, "headers": {"X-Error-Code": "GatedRepo"}, "times": 9}
    with start_hub() as (_, endpoint):
        environment = hub_environment(endpoint, tmp_path / "home")
        urllib.request.urlopen(f"{endpoint}/_faults", data=json.dumps([gated]).encode()).close()
        command = [sys.executable, "-c", CHECK_BASELINES, "owner/gated@v1", "owner/mistyped"]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    refused = found.splitlines()
    assert "evaluation.baselines='owner/gated@v1' is gated: accept its terms on" in refused[0]
    assert "evaluation.baselines='owner/mistyped': the Hub gives no config.json of it" in refused[1]
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, env=offline, capture_output=True, text=True, check=True).stdout
    assert found.count("run_recipe: note: the Hub was not reached") == 2 and "owner/mistyped passes" in found


def test_the_audit_runs_before_the_report_where_the_recipe_sets_limits_and_once(telecom, capsys, monkeypatch):
    command, folder, _ = telecom
    monkeypatch.chdir(folder)
    limits = "--hub.leak_audit={max_verbatim_50_fraction: 1}"
    result = run([*command, limits], folder)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    audit, report = (folder / "runs" / "telecom" / name for name in ("audit.json", "report.html"))
    assert audit.stat().st_mtime < report.stat().st_mtime
    finding = html.escape(json.loads(audit.read_text())["findings"][0])
    assert finding in report.read_text()
    assert (folder / "runs" / "telecom" / "release" / "audit.json").exists()
    monkeypatch.setattr(run_recipe, "run_script", lambda *_: pytest.fail("it is not made again"))
    run_recipe.main([*map(str, command[1:]), limits])
