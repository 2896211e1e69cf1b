# SPDX-License-Identifier: Apache-2.0
"""The size of the vocabulary: measured by hand, small models at equal FLOPs, one row each, never made twice."""

import json
import math
import shutil

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

import choose_vocabulary
import verify_run
from atomic_files import RECORD
from fit_scaling_law import read_rows
from planning.model_shape import training_flops_per_token
from planning.scaling_laws import optimal_vocab_size
from recipe_config import RecipeError
from recipe_loading import load_recipe


SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = [f"--vocabulary.model={json.dumps(SHAPE)}", "--vocabulary.flops=6e9"]


def recipe_of(run, *overrides):
    config, *settings = run.argv(*overrides)[1:]
    return load_recipe([config], settings)


def test_missing_documents_are_refused(tiny_run):
    shutil.rmtree(tiny_run.output_dir / "documents")
    with pytest.raises(RecipeError, match="documents is missing; rerun: python recipes/prepare_data.py"):
        choose_vocabulary.main(tiny_run.argv("--vocabulary.trained_sizes=[]"))


def test_sizes_are_measured_on_held_out_text_and_one_that_the_text_cannot_fill_is_left_out(tiny_run, capsys):
    other = [f"--tokenizer.compare_with=['{tiny_run.output_dir}/tokenizer']"]
    argv = tiny_run.argv("--vocabulary.sizes=[320, 384, 30000]", "--vocabulary.trained_sizes=[]", *other)
    choose_vocabulary.main(argv)
    found = json.loads((tiny_run.output_dir / "vocabulary" / "vocabulary.json").read_text())
    assert [row["vocab_size"] for row in found["sizes"]] == [320, 384]
    assert list(found["left_out"]) == ["512", "30000"] and "yields only" in found["left_out"]["512"]  # 512: the law's
    shown = capsys.readouterr().out
    cheapest = min(found["sizes"], key=lambda row: row["flops_per_byte"])["vocab_size"]
    assert found["recommended"] == cheapest and f"set tokenizer.vocab_size={cheapest}" in shown
    assert found["by"] == "cost" and "The law is outside of its range, which begins at 33 M" in shown

    folder = tiny_run.output_dir / "vocabulary" / "384" / "tokenizer"
    tokenizer, tokens_per_byte = AutoTokenizer.from_pretrained(folder), 0.0
    for source, share in (("law", 0.6), ("web", 0.4)):
        texts = pq.read_table(tiny_run.output_dir / "documents" / "validation" / source)["text"].to_pylist()
        num_tokens = sum(len(tokenizer(text).input_ids) for text in texts)
        tokens_per_byte += share * num_tokens / sum(len(text.encode()) for text in texts)
    row = found["sizes"][1]
    assert row["bytes_per_token"] == pytest.approx(1 / tokens_per_byte)
    assert row["uniform_bits_per_byte"] == pytest.approx(math.log2(384) * tokens_per_byte)
    assert row["context_bytes"] == pytest.approx(32 / tokens_per_byte)
    # One matrix of 384 x 32; two layers of 4 x 32 x 32 and 3 x 32 x 64, five norms of 32.
    inside = 2 * (4 * 32 * 32 + 3 * 32 * 64) + 5 * 32
    assert row["parameters_fraction"] == pytest.approx(384 * 32 / (384 * 32 + inside))
    products = 6 * (384 * 32 + inside - 5 * 32 + 2 * 2 * 32 * 32)
    assert row["flops_fraction"] == pytest.approx(6 * 384 * 32 / products)
    assert row["flops_per_byte"] == pytest.approx(products * tokens_per_byte)
    # The same tokenizer as the stage made of the same recipe.
    [beside] = found["others"].values()
    assert beside == row


def test_where_the_law_holds_its_optimum_is_recommended_as_far_as_the_text_goes(tiny_run, capsys, monkeypatch):
    monkeypatch.setattr(choose_vocabulary, "LAW_FROM_PARAMETERS", 0)
    choose_vocabulary.main(tiny_run.argv("--vocabulary.sizes=[320, 384]", "--vocabulary.trained_sizes=[]"))
    found = json.loads((tiny_run.output_dir / "vocabulary" / "vocabulary.json").read_text())
    assert (found["by"], found["recommended"]) == ("law", 384)
    shown = capsys.readouterr().out
    assert "Vocabulary size 384, by the vocabulary law" in shown and "The text is too small for 512 tokens" in shown


def test_the_best_of_several_small_models_is_recommended_where_the_law_does_not_hold(tiny_run, capsys):
    choose_vocabulary.main(
        tiny_run.argv("--vocabulary.sizes=[320, 384]", "--vocabulary.trained_sizes=[300, 384]", *SMALL)
    )
    found = json.loads((tiny_run.output_dir / "vocabulary" / "vocabulary.json").read_text())
    runs = {run["vocab_size"]: run["bits_per_byte"] for run in found["small_models"]["runs"]}
    assert len(runs) == 2 and found["by"] == "small models"
    assert found["recommended"] == min(runs, key=runs.get)
    assert "that of the small model with the fewest bits per byte" in capsys.readouterr().out


def test_a_small_model_is_trained_once_and_has_one_row(tiny_run, capsys, tmp_path):
    argv = tiny_run.argv("--vocabulary.sizes=[320, 384]", "--vocabulary.trained_sizes=[320]", *SMALL)
    folder = tiny_run.output_dir / "vocabulary"
    choose_vocabulary.main(argv)
    [(key, row)] = read_rows(folder / "runs.csv").items()
    assert row["vocab_size"] == "320" and 0 < float(row["bits_per_byte"]) < 8
    found = json.loads((folder / "vocabulary.json").read_text())
    [run] = found["small_models"]["runs"]
    assert run["bits_per_byte"] == float(row["bits_per_byte"]) and run["bits_per_byte_law"] > 0
    assert (folder / "vocabulary.png").stat().st_size > 10_000

    # The same command does nothing, and with the row alone no model is trained again.
    shutil.rmtree(folder / "320" / "tokens")
    made = {name: (folder / name).stat().st_mtime_ns for name in ("vocabulary.json", "vocabulary.png", RECORD)}
    capsys.readouterr()
    choose_vocabulary.main([*argv, "--results", str(tmp_path / "results")])
    assert "nothing to do" in capsys.readouterr().out
    assert made == {name: (folder / name).stat().st_mtime_ns for name in made}
    assert json.loads((tmp_path / "results" / "vocabulary.json").read_text()) == found
    assert verify_run.check_stage(tiny_run.output_dir, "vocabulary")[0][0].startswith("ok, 3 files, ")
    other = [*argv, "--vocabulary.sizes=[320, 352]"]
    with pytest.raises(RecipeError, match=r"vocabulary is out of date: vocabulary.sizes.1 was 384, is 352. Run with"):
        choose_vocabulary.main(other)
    choose_vocabulary.main([*other, "--overwrite"])
    assert [row["vocab_size"] for row in json.loads((folder / "vocabulary.json").read_text())["sizes"]] == [320, 352]
    assert list(read_rows(folder / "runs.csv")) == [key] and not (folder / "320" / "tokens").exists()


def test_small_models_have_equal_flops_and_their_settings_decide_their_key(tiny_run):
    recipe = recipe_of(tiny_run, *SMALL)
    documents, keys = tiny_run.output_dir / "documents", set()
    for size in (320, 384, 512):
        run = choose_vocabulary.small_run(recipe, size)
        per_token = training_flops_per_token(recipe.vocabulary.model, size, 256)
        assert abs(run.recipe.training.max_tokens * per_token - 6e9) <= 4096 * per_token / 2
        keys.add(choose_vocabulary.run_key(run, documents))
    for other in ("--vocabulary.flops=7e9", "--run.seed=1", "--tokenizer.algorithm=unigram"):
        run = choose_vocabulary.small_run(recipe_of(tiny_run, *SMALL, other), 320)
        keys.add(choose_vocabulary.run_key(run, documents))
    assert len(keys) == 6
    run = choose_vocabulary.small_run(recipe_of(tiny_run, *SMALL, "--training.torch_compile=true"), 320)
    assert choose_vocabulary.run_key(run, documents) in keys


def test_without_sizes_the_small_models_are_around_the_laws_optimum(tiny_run):
    recipe = recipe_of(tiny_run)
    parameters = 4 * (4 * 64 * 64 + 3 * 64 * 176) + 9 * 64
    best = optimal_vocab_size(parameters, 64, 3, recipe.vocabulary.flops)
    assert best < 512 and choose_vocabulary.sizes_to_train(recipe) == [512, 2048, 8192, 32_768]
    recipe.vocabulary.flops = 1e15
    best = optimal_vocab_size(parameters, 64, 3, 1e15)
    assert choose_vocabulary.sizes_to_train(recipe)[0] == round(best / 128) * 128 > 512


@pytest.mark.parametrize(("value", "said"), [("[300]", "at least 2"), ("[300, 200]", "greater than or equal to 257")])
def test_values_that_are_no_sizes_are_refused(tiny_run, value, said, capsys):
    with pytest.raises(SystemExit):
        choose_vocabulary.main(tiny_run.argv(f"--vocabulary.sizes={value}"))
    assert said in capsys.readouterr().err
