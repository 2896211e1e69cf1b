# SPDX-License-Identifier: Apache-2.0
"""Experiments of arms: the grid, its cost, what identifies a run, and one that is trained and gone on with."""

import csv
import json

import pytest
from tiny_run import RECIPES, write_tiny_texts

import compare_arms
from compare_arms import load_experiment
from recipe_config import RecipeError


TINY = """
results: results
x: domain_bytes
flops: [2e8]
domain_bytes: [60_000]
bases:
  general: {flops: 4e8, data: {shares: {law: 0.0, web: 1.0}}}
arms:
  scratch: {}
  continued-extended:
    model: {from_pretrained: "base:general"}
    tokenizer: {extend_by: 4}
recipe:
  run: {output_dir: RUNS}
  data:
    sources:
      - {name: law, path: TEXTS/law.jsonl, domain: legal, share: 0.75}
      - {name: web, path: TEXTS/web, domain: general, share: 0.25}
    near_duplicates: null
    workers: 1
    max_repetitions: 100
    splits: {validation_fraction: 0.1, test_fraction: 0.1}
  tokenizer: {vocab_size: 384}
  model: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}
  training: {sequence_length: 32, tokens_per_step: 256, learning_rate: 1e-2, torch_compile: false, warmup_steps: 2}
"""


@pytest.fixture
def tiny(tmp_path):
    write_tiny_texts(tmp_path / "texts")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("TEXTS", str(tmp_path / "texts")).replace("RUNS", str(tmp_path / "runs")))
    return path


def test_the_shipped_experiments_give_every_arm_the_same_compute():
    for name, arms in (("mixture_share", 5), ("scratch_or_adapt", 5)):
        experiment, bases, runs = load_experiment(RECIPES / "experiments" / f"{name}.yaml")
        assert len(runs) == arms * len(experiment.flops) * max(1, len(experiment.domain_bytes))
        assert len({run.key for run in runs}) == len(runs)
        for run in runs:
            spent = compare_arms.flops_per_token(run.recipe) * run.recipe.training.max_tokens
            assert spent == pytest.approx(run.flops, rel=0.02)
            assert run.base in (None, *bases)
    shares = {
        run.arm: run.recipe.data.sources[0].share
        for run in load_experiment(RECIPES / "experiments" / "mixture_share.yaml")[2]
    }
    assert list(shares.values()) == [0, 0.25, 0.51, 0.75, 1]


def test_adapters_buy_more_tokens_and_new_entries_cost_some():
    _, _, runs = load_experiment(RECIPES / "experiments" / "scratch_or_adapt.yaml")
    tokens = {run.arm: run.recipe.training.max_tokens for run in runs[:5]}
    assert tokens["adapters"] == pytest.approx(1.5 * tokens["continued"], rel=0.02)
    assert tokens["continued-extended"] < tokens["continued"] == tokens["scratch-general-tokenizer"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"base:general"', '"base:specific"', "arms.continued-extended: no base 'specific'; there are general"),
        ("extend_by: 4", "extend_bye: 4", "arms.continued-extended: recipe: tokenizer.extend_bye: unknown key"),
        ("flops: [2e8]", "flops: []", "flops: List should have at least 1 item"),
        ("x: domain_bytes\n", "", "x: Field required"),
        ("domain_bytes: [60_000]\n", "", "x: domain_bytes is the axis, but there are none"),
    ],
)
def test_an_experiment_that_cannot_be_run_is_refused_with_the_arm(tiny, before, after, message):
    assert before in tiny.read_text()
    tiny.write_text(tiny.read_text().replace(before, after))
    with pytest.raises(RecipeError) as refused:
        load_experiment(tiny)
    assert message in str(refused.value)


@pytest.mark.long
def test_a_row_a_run_and_a_second_start_trains_nothing(tiny, capsys):
    compare_arms.main(["--config", str(tiny), "--max_runs", "1"])
    compare_arms.main(["--config", str(tiny)])
    with (tiny.parent / "results" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ["scratch", "continued-extended"]
    assert float(rows[1]["general_bits_per_byte"]) < float(rows[0]["general_bits_per_byte"]), "it had read such text"
    assert (tiny.parent / "results" / "curve.png").exists()
    written = (tiny.parent / "results" / "runs.csv").read_bytes()
    capsys.readouterr()
    compare_arms.main(["--config", str(tiny)])
    assert "2 runs, 2 with a row" in capsys.readouterr().out
    assert (tiny.parent / "results" / "runs.csv").read_bytes() == written
    base = json.loads(next((tiny.parent / "runs" / "runs").glob("*/training.json")).read_text())
    assert base["parameters"]["total"] > 0
