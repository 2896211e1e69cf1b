# SPDX-License-Identifier: Apache-2.0
"""Models of others to learn from: their tokenizer and rows, the checks of a base, and their files."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from small_models import small_model
from small_tokenizers import KINDS
from tiny_run import RECIPES, TinyRun

import pretrain
import run_recipe
import tokenize_corpus
import train_tokenizer
from recipe_config import Recipe, RecipeError
from recipe_loading import load_recipe
from run_folder import describe_inputs, write_record
from stages import STAGES, output_folder
from training.teacher_checks import check_teachers, refuse_changed_teachers


FAMILIES = {"Qwen": "qwen2", "Pythia": "gpt_neox", "Llama 2": "llama", "GPT-2": "gpt2"}
SHORT = ("--training.max_tokens=512", "--training.warmup_steps=1", "--training.eval_steps=2")


def learning_from(*places: Path) -> str:
    return f"--training.distillation.teachers={json.dumps([str(place) for place in places])}"


def save_teacher(kind: str, folder: Path, num_rows: int = 448) -> Path:
    """Save a small model of others with a tokenizer of a kind, and more rows than that has tokens."""
    small_model(FAMILIES[kind], vocab_size=num_rows).save_pretrained(folder)
    KINDS[kind]().save_pretrained(folder)
    return folder


def run_with_tokenizer(tokenized_run: TinyRun, folder: Path, *overrides: str) -> TinyRun:
    """Take the tokenizer that a recipe names, for the documents of a run."""
    run = TinyRun(tokenized_run.texts, folder)
    shutil.copytree(tokenized_run.output_dir / "documents", folder / "documents")
    for stage in (train_tokenizer, tokenize_corpus):
        stage.main(run.argv(*SHORT, *overrides))
    return run


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_from_scratch_learns_from_one_whose_tokenizer_it_took(kind, tokenized_run, tmp_path):
    """That normalises in a sequence since then, and bos may be eos. The model has rows for its tokens alone."""
    teacher = save_teacher(kind, tmp_path / "teacher")
    chosen = f"--tokenizer.from_pretrained={teacher}"
    run = run_with_tokenizer(tokenized_run, tmp_path / "run", chosen)
    pretrain.main(run.argv(*SHORT, chosen, learning_from(teacher)))
    assert run.metrics()[-1]["teachers/bits_per_byte"] > 0
    rows = json.loads((run.output_dir / "model" / "config.json").read_text())["vocab_size"]
    assert rows < 448


def test_a_continued_model_learns_from_its_members_and_from_a_larger_model_with_fewer_spare_rows(
    tokenized_run, tmp_path
):
    base, larger = save_teacher("Qwen", tmp_path / "base"), save_teacher("Qwen", tmp_path / "larger", num_rows=400)
    chosen = (f"--model.from_pretrained={base}", "--training.distillation.members=1", "--training.learning_rate=1e-3")
    run = run_with_tokenizer(tokenized_run, tmp_path / "run", *chosen)
    member = tmp_path / "run" / "members" / "0"
    member.mkdir(parents=True)
    for name in ("documents", "tokenizer", "tokens"):
        run_recipe.link(member, run.output_dir, name)
    own = [f"--run.output_dir={member}", "--run.seed=1", "--training.distillation=null"]
    pretrain.main(run.argv(*SHORT, *chosen, *own))
    pretrain.main(run.argv(*SHORT, *chosen, learning_from(larger)))
    assert run.metrics()[-1]["teachers/bits_per_byte"] > 0


@pytest.fixture
def teacher(tmp_path) -> Path:
    small_model("olmo2", vocab_size=448).save_pretrained(tmp_path / "teacher")
    KINDS["Llama 3"]().save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def without_projection(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_teacher_is_refused_before_work_starts_as_a_base_is(teacher, tokenized_run, tmp_path):
    settings = tokenized_run.argv(learning_from(teacher), f"--run.output_dir={tmp_path / 'run'}")[2:]
    longer = "--data.phases=[{start_fraction: 0.5, shares: {law: 0.6, web: 0.4}, sequence_length: 128}]"
    check_teachers(recipe := load_recipe([RECIPES / "custom" / "base.yaml"], settings))
    with pytest.raises(RecipeError, match="was made for 64 tokens, .* less than a sequence of data.phases, of 128"):
        batch = "--training.per_device_train_batch_size=4"
        check_teachers(load_recipe([RECIPES / "custom" / "base.yaml"], [*settings, longer, batch]))
    for spoil, message in (
        (lambda: change_config(teacher, max_position_embeddings=16), "was made for 16 tokens, which is less than"),
        (lambda: change_config(teacher, model_type="bloom"), "is of type 'bloom'; choose a model of one of"),
        (lambda: change_config(teacher, vocab_size=300), "has 300 rows for the 320 tokens of its tokenizer"),
        (lambda: without_projection(teacher), "tie_word_embeddings: false, and its files have no output projection"),
    ):
        kept = (teacher / "config.json").read_text()
        spoil()
        with pytest.raises(RecipeError, match=f"training.distillation='.*teacher'.*{message}"):
            check_teachers(recipe)
        (teacher / "config.json").write_text(kept)


def test_the_whole_recipe_refuses_a_mistyped_teacher_or_another_tokenizer_before_its_first_stage(
    teacher, tokenized_run, tmp_path
):
    run = tmp_path / "run"
    taken = save_teacher("Qwen", tmp_path / "taken")
    for overrides, message in (
        ([learning_from(tmp_path / "techer")], "techer'.*no model there; name the folder of a finished model"),
        ([learning_from(teacher), f"--tokenizer.from_pretrained={taken}"], "its tokenizer is not that of this run"),
    ):
        for dry in ([], ["--dry_run"]):
            with pytest.raises(RecipeError, match=message):
                run_recipe.main(tokenized_run.argv(f"--run.output_dir={run}", *overrides, *dry))
    assert not run.exists()


def test_members_that_were_trained_on_other_tokens_or_by_another_recipe_are_refused(tmp_path):
    def recipe_of(*overrides: str) -> Recipe:
        argv = TinyRun(tmp_path, tmp_path / "run").argv("--training.distillation.members=1", *overrides)
        return load_recipe([RECIPES / "custom" / "base.yaml"], argv[2:])

    def make(recipe: Recipe, stage: str, content: str) -> None:
        output_folder(recipe, stage).mkdir(parents=True, exist_ok=True)
        (output_folder(recipe, stage) / "file").write_text(content)
        write_record(output_folder(recipe, stage), stage, describe_inputs(recipe, "pretrain"))

    recipe, member = recipe_of(), recipe_of().member(0)
    for stage in ("tokenizer", "tokenize"):
        make(recipe, stage, "first")
        Path(member.run.output_dir).mkdir(parents=True, exist_ok=True)
        run_recipe.link(Path(member.run.output_dir), tmp_path / "run", STAGES[stage].output)
    make(member, "pretrain", "weights")
    refuse_changed_teachers(recipe)
    with pytest.raises(RecipeError, match="0/model is out of date: training.weight_decay was 0.1, is 0.2; run_recipe"):
        refuse_changed_teachers(recipe_of("--training.weight_decay=0.2"))
    make(recipe, "tokenize", "made again")
    with pytest.raises(RecipeError, match="0/model is out of date: the output of tokenize changed; run_"):
        refuse_changed_teachers(recipe)
