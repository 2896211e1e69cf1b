# SPDX-License-Identifier: Apache-2.0
"""Models of others to learn from: their tokenizer and rows."""

import json
import shutil
from pathlib import Path

import pytest
from small_models import small_model
from small_tokenizers import KINDS
from tiny_run import TinyRun

import pretrain
import run_recipe
import tokenize_corpus
import train_tokenizer


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
