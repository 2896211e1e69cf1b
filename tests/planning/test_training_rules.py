# SPDX-License-Identifier: Apache-2.0
"""A recipe may leave batch and learning rate out; then one rule sets them, whoever reads the recipe."""

import pytest
from tiny_run import RECIPES

from planning.training_rules import rule_learning_rate, rule_tokens_per_step
from recipe_config import RecipeError
from recipe_loading import load_recipe


BASE = RECIPES / "legal" / "base.yaml"
LEFT_OUT = ["--training.tokens_per_step=null", "--training.learning_rate=null"]


def test_batch_and_learning_rate_left_out_are_set_by_the_rule_for_the_size():
    training = load_recipe([BASE], LEFT_OUT).training
    # 341,885,952 parameters multiply; the rule gives 706,000 tokens and 1.6e-3.
    assert training.tokens_per_step == 524_288
    assert training.learning_rate == pytest.approx(0.0016)
    assert load_recipe([BASE], LEFT_OUT[:1]).training.learning_rate == 1e-3  # what is stated stays


def test_a_resolved_recipe_says_what_the_rule_gave_and_loads_to_the_same(tmp_path):
    recipe = load_recipe([BASE], LEFT_OUT)
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(recipe.dump_yaml())
    assert load_recipe([resolved]) == recipe


def test_the_batch_is_a_power_of_two_of_its_unit_and_leaves_a_short_run_its_steps():
    assert rule_tokens_per_step(108e6, 32_768, 1e12) == 8 * 32_768  # the rule gives 327,680
    assert rule_tokens_per_step(108e6, 2048, 20e6) == 64 * 2048  # 152 steps; twice the batch would give 76
    assert rule_tokens_per_step(1e12, 2048, 1e15) == rule_tokens_per_step(7e9, 2048, 1e15)
    assert rule_tokens_per_step(1e5, 4096, 1e5) == 4096  # one unit is the least


def test_the_learning_rate_is_not_carried_below_the_sizes_the_rule_was_made_for():
    assert rule_learning_rate(1e5) == rule_learning_rate(60e6) == 0.0029
    assert rule_learning_rate(7e9) < rule_learning_rate(1e9) < 0.0029


def test_a_batch_that_is_stated_is_still_checked():
    with pytest.raises(RecipeError, match="tokens_per_step: 100 is not divisible"):
        load_recipe([BASE], ["--training.tokens_per_step=100"])
