# SPDX-License-Identifier: Apache-2.0
"""new_recipe.py: what it refuses, what it asks, and that a folder of small texts becomes a recipe that trains."""

import json
import shlex
import subprocess
import sys

import pytest
from ruamel.yaml import YAML
from tiny_run import RECIPES, ROOT, make_text
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig

import new_recipe
from plan_run import make_plan
from planning.devices import find_device
from recipe_config import RecipeError
from recipe_loading import load_recipe


@pytest.fixture
def texts(tmp_path):
    """A folder of 60 small texts, 140 kB."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for seed in range(60):
        (folder / f"{seed}.txt").write_text(make_text(seed))
    return folder


@pytest.fixture
def make(tmp_path, texts):
    """Make a recipe of the texts with flags, in a folder of its own; later flags win."""

    def make_recipe(*flags: str):
        folder = tmp_path / "telecom"
        new_recipe.main(["--name", "telecom", "--text", str(texts), "--folder", str(folder), *flags])
        return folder

    return make_recipe


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--name", "../telecom"],
            "--name: '../telecom' is no folder's name; use lower-case letters, digits, - and _",
        ),
        (["--name", "/telecom"], "--name: '/telecom' is no folder's name"),
        (["--name", ""], "--name: '' is no folder's name"),
        (["--name", "statistics"], "--name: 'statistics' is the name of a Python module; choose another"),
        (["--name", "torch"], "--name: 'torch' is the name of a Python module"),
        (["--name", "corpus"], "--name: 'corpus' is the name of a Python module"),
        (["--folder", str(RECIPES / "legal")], "recipes/legal exists; choose another name or --folder"),
        (["--text", "no such folder"], "--text: path 'no such folder': no such file or folder"),
        (["--text", ""], "--text: missing; give a folder, a file or a Hub dataset (org/name@main)"),
        (["--text", "texts/nowhere"], "--text: path 'texts/nowhere': no such file or folder in"),
        (["--gpus", "8xh300"], "--gpus: '8xh300' is neither none nor a number of a100-40gb, a100-80gb, h100-sxm"),
        (["--gpus", "0xh100"], "--gpus: '0xh100' is neither none nor a number of"),
        (["--gpus", "8xh100"], "--hours: missing, and no --money either"),
        (
            ["--hours", "soon"],
            "--plan.hours: plan.hours: should be a number or an amount such as '7 days', got \"soon\"",
        ),
        (["--hours", "-1"], "--plan.hours: plan.hours: input should be greater than 0, got -1"),
        (["--gpus", "l40s", "--money", "500"], "plan.price_per_device_hour: missing; plan.money needs the price"),
        (["--hours", "1", "--money", "5", "--price", "2"], "hours and money are each a budget; keep one of them"),
        (["--language", "xx"], "unknown language 'xx'"),
        (["--model", "nowhere/model"], "--model: 'nowhere/model' cannot be loaded"),
    ],
)
def test_an_answer_that_makes_no_recipe_is_refused_and_nothing_is_written(make, tmp_path, flags, message):
    before = sorted(RECIPES.iterdir())
    with pytest.raises(RecipeError) as error:
        make(*flags)
    assert message in str(error.value), error.value
    assert not (tmp_path / "telecom").exists() and sorted(RECIPES.iterdir()) == before


def test_a_folder_without_text_is_refused(make, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(RecipeError, match="--text: path '.*none': no file to read"):
        make("--text", str(tmp_path / "none"))
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / "none" / name).write_text(" \n")
    with pytest.raises(RecipeError, match="--text: .*none: no text in 2 files; they are empty or cannot be read"):
        make("--text", str(tmp_path / "none"))


def test_a_model_of_another_kind_is_refused(make, tmp_path):
    BloomConfig().save_pretrained(tmp_path / "bloom")
    with pytest.raises(RecipeError, match="bloom' is of type 'bloom'; choose a model of one of: Llama, "):
        make("--model", str(tmp_path / "bloom"))


def test_all_problems_are_listed_at_once(make):
    with pytest.raises(RecipeError) as error:
        make(
            "--name",
            "torch",
            "--text",
            "nowhere",
            "--gpus",
            "8xh300",
            "--hours",
            "x",
            "--model",
            "m/m",
            "--language",
            "xx",
        )
    starts = ("--name", "--text", "--gpus", "--model", "data.languages.keep.0", "--plan.hours")
    assert len(error.value.problems) == len(starts)
    assert all(problem.startswith(start) for problem, start in zip(error.value.problems, starts, strict=True))


def test_five_questions_are_asked_where_no_flag_answers_them(monkeypatch, tmp_path, texts, capsys):
    answers = ["telecom", str(texts), "2xh100", "$8", "", ""]
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answers[len(asked) - 1])
    new_recipe.main(["--folder", str(tmp_path / "telecom")])
    assert [question.split(",")[0].split(" (")[0] for question in asked] == [
        "Domain",
        "Folder or file of the text",
        "GPUs",
        "Hours on them",
        "scratch",
        "Language of the text",
    ]
    assert asked[-2].endswith("[scratch]: ") and asked[-1].endswith("[en]: ")
    assert "a budget of 8 USD on 2 x h100-sxm" in (tmp_path / "telecom" / "README.md").read_text()


def test_the_numbers_are_the_planners_and_the_comments_say_so(make, monkeypatch):
    monkeypatch.setattr(new_recipe, "look_at_text", lambda path: (5_000_000_000, None))
    folder = make("--gpus", "6x4090", "--hours", "20")
    recipe = load_recipe([folder / "base.yaml"])
    plan = make_plan(recipe, find_device("rtx-4090"))
    assert (recipe.plan.hours, recipe.plan.num_devices, recipe.plan.domain_bytes) == (20, 6, 4_960_000_000)
    planned = {key: value for key, value in plan["model"].items() if value is not None}
    assert {key: getattr(recipe.model, key) for key in planned} == planned
    for key in ("max_tokens", "learning_rate", "warmup_steps", "weight_decay"):
        assert getattr(recipe.training, key) == plan["training"][key], key
    micro_tokens = recipe.training.per_device_train_batch_size * recipe.training.sequence_length
    assert recipe.training.tokens_per_step % (6 * micro_tokens) == 0, "which six can share"
    assert recipe.training.tokens_per_step == pytest.approx(plan["training"]["tokens_per_step"], rel=0.1)
    text = (folder / "base.yaml").read_text()
    assert f"model:  # {plan['parameters']['total']:,} parameters with a vocabulary of 32,768" in text
    for key in ("max_tokens", "tokens_per_step", "learning_rate", "per_device_train_batch_size"):
        assert f"{key}: " in text and "# planner: " in text.partition(f"  {key}: ")[2].splitlines()[0], key


def test_a_text_too_small_for_the_budget_gets_a_model_of_its_size_on_one_device_and_is_told(make, capsys):
    folder = make("--gpus", "8xh100", "--hours", "24")
    recipe = load_recipe([folder / "base.yaml"])
    shown = capsys.readouterr().out
    assert "the text is too small for 24 h on 8 x h100-sxm, and takes less than 1% of it" in shown
    assert "--num_processes" not in shown
    assert recipe.plan.num_devices == 1 and recipe.plan.flops == 1e14 and recipe.data.fit_to_corpus
    plan = make_plan(recipe, find_device("h100-sxm"))
    assert plan["model"]["hidden_size"] == recipe.model.hidden_size and plan["parameters"]["total"] < 1e6
    assert plan["training"]["max_tokens"] == recipe.training.max_tokens < 8 * 140_000 / 4.4


def test_rows_without_a_field_text_are_noted_with_their_fields(make, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": n, "body": make_text(n)}) + "\n" for n in range(9)))
    make("--text", str(tmp_path / "rows.jsonl"))
    assert (
        "rows have no text in a field `text`; the fields are id (a number), body (a text); set text_field: body in "
        "data.sources, or edit data.py" in capsys.readouterr().out
    )


def test_another_language_is_kept_as_the_korean_recipe_keeps_its_own(make):
    recipe = load_recipe([make("--language", "ko,ja") / "base.yaml"])
    assert recipe.data.languages.keep == recipe.hub.language == ["ko", "ja"]
    assert recipe.tokenizer.pretokenization == "qwen35" and recipe.evaluation.prompts == []


def test_a_new_recipe_runs_as_printed_from_a_folder_of_texts_to_a_model(make, tmp_path, capsys):
    folder = make()
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "base.yaml", "data.py"]
    assert (folder / "data.py").read_bytes() == (RECIPES / "custom" / "data.py").read_bytes()
    raw = YAML(typ="safe").load((folder / "base.yaml").read_text())
    assert raw["run"]["output_dir"] == "runs/telecom" and raw["data"]["sources"][0]["name"] == "telecom"

    check, run = (shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:])
    checked = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pretrain would run: recipes/pretrain.py" in checked.stdout
    page = (folder / "README.md").read_text()
    assert all(shlex.join(["python", *command[1:]]) in page for command in (check, run))

    output = tmp_path / "run"
    tiny = [f"--run.output_dir={output}", "--training.max_tokens=20_000", "--training.torch_compile=false"]
    tiny += ["--tokenizer.vocab_size=400", "--training.eval_steps=10", "--data.workers=1", "--run.seed=1"]
    for stage in ("prepare_data", "train_tokenizer", "tokenize_corpus", "pretrain"):
        script = [sys.executable, str(RECIPES / f"{stage}.py"), *run[2:], *tiny]
        finished = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    model, tokenizer = (kind.from_pretrained(output / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.config.hidden_size == load_recipe([folder / "base.yaml"]).model.hidden_size
    ids = tokenizer("The licensee shall", return_tensors="pt").input_ids
    assert model(ids).logits.isfinite().all()

    continued = tmp_path / "continued"
    make("--model", str(output / "model"), "--folder", str(continued))
    recipe = load_recipe([continued / "base.yaml"])
    assert recipe.model.from_pretrained == str(output / "model") and recipe.training.optimizer == "adamw"
    assert recipe.model.hidden_size is None and not recipe.plan.budgets(), "its shape is its own"
    assert recipe.training.learning_rate == pytest.approx(0.0029 / 3, rel=0.02)
    assert recipe.training.max_tokens == pytest.approx(8 * 125_000 / 4.4, rel=0.05)
