# SPDX-License-Identifier: Apache-2.0
"""The precision of a processor follows from the time of the recipe's own step."""

import itertools

import pytest
from small_models import small_model

from model import precision
from recipe_config import Model


SHAPE = {"hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 6, "num_attention_heads": 2}


def measure(monkeypatch, settings: Model, seconds_bf16: float, seconds_fp32: float) -> bool:
    """Measure real steps by a clock on which each takes the seconds that are given."""
    ticks = itertools.cycle([0.0, seconds_bf16, 0.0, seconds_fp32])
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    return precision.is_faster_in_bf16(settings.model_dump_json(), 300, 24)


@pytest.mark.parametrize(("bf16", "fp32", "faster"), [(1.0, 2.0, True), (2.0, 1.0, False), (1.0, 1.0, False)])
def test_the_precision_whose_step_is_shorter_is_taken(monkeypatch, bf16, fp32, faster):
    assert measure(monkeypatch, Model(**SHAPE), bf16, fp32) == faster


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_a_model_to_continue_is_measured_in_its_own_shape(monkeypatch, tmp_path, family):
    layers = {"layer_types": ["sliding_attention", "full_attention"] * 3} if family == "gemma3_text" else {}
    small_model(family, num_hidden_layers=6, **layers).save_pretrained(tmp_path)
    assert measure(monkeypatch, Model(from_pretrained=str(tmp_path)), 1.0, 2.0)


def test_this_processor_has_an_answer():
    assert precision.is_faster_in_bf16(Model(**SHAPE).model_dump_json(), 300, 24) in (True, False)
