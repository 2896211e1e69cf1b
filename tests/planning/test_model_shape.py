# SPDX-License-Identifier: Apache-2.0
"""Parameters and FLOPs are counted as they are, and the shape chosen is one that hardware wants."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from planning.model_shape import (
    choose_shape,
    count_decoder_parameters,
    count_parameters,
    training_flops_per_token,
)
from recipe_config import Model


SHAPES = [
    Model(hidden_size=64, intermediate_size=176, num_hidden_layers=3, num_attention_heads=4),
    Model(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    Model(hidden_size=80, intermediate_size=200, num_hidden_layers=1, num_attention_heads=2, head_dim=64),
]


def build(shape: Model, vocab_size: int) -> LlamaForCausalLM:
    fields = shape.model_dump(exclude_none=True, exclude={"rope_theta"})
    return LlamaForCausalLM(LlamaConfig(**fields, vocab_size=vocab_size, attn_implementation="eager"))


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_transformers_llama(shape):
    with torch.device("meta"):
        model = build(shape, 384)
    counted = count_parameters(shape, 384)
    embedding = model.get_input_embeddings().weight.numel()
    assert counted["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert counted["non_embedding"] == counted["total"] - embedding
    assert counted["multiplying"] == counted["non_vocabulary"] + embedding


@pytest.mark.parametrize(
    ("shape", "vocab_size", "printed"),
    [
        (
            dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
            32_000,
            6_738_415_616,
        ),
        (
            dict(
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
            ),
            128_256,
            8_030_261_248,
        ),
        (
            dict(
                hidden_size=1024,
                intermediate_size=3072,
                num_hidden_layers=28,
                num_attention_heads=16,
                num_key_value_heads=8,
                head_dim=128,
                qk_norm=True,
                tie_word_embeddings=True,
            ),
            151_936,
            596_049_920,
        ),
    ],
    ids=["LLaMA 7B", "Llama 3 8B", "Qwen3 0.6B"],
)
def test_published_models_have_the_parameters_of_their_files(shape, vocab_size, printed):
    assert count_parameters(Model(**shape), vocab_size)["total"] == printed


def test_gpt2_has_the_parameters_of_transformers_and_bloomberggpt_those_of_its_paper():
    gpt2 = count_decoder_parameters(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        query_width=768,
        key_value_width=768,
        vocab_size=50_257,
        tied=True,
        gated=False,
        biased=True,
        positions=1024,
    )
    with torch.device("meta"):
        assert gpt2["total"] == sum(p.numel() for p in GPT2LMHeadModel(GPT2Config()).parameters()) == 124_439_808
    bloomberg = count_decoder_parameters(
        hidden_size=7680,
        intermediate_size=30_720,
        num_hidden_layers=70,
        query_width=40 * 192,
        key_value_width=40 * 192,
        vocab_size=131_072,
        tied=True,
        gated=False,
        biased=True,
        embedding_norm=True,
    )
    assert bloomberg["total"] == 50_558_868_480


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sequence_length", [32, 256])
def test_flops_are_those_that_torch_counts_within_1_percent(shape, sequence_length):
    model = build(shape, 384)  # eager attention: the counter sees no SDPA on a CPU
    input_ids = torch.zeros((2, sequence_length), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=input_ids, use_cache=False).logits.sum().backward()
    estimate = training_flops_per_token(shape, 384, sequence_length) * input_ids.numel()
    assert estimate == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("parameters", [2e6, 3e7, 2e8, 1.3e9, 7e9, 53e9, 400e9])
def test_the_chosen_shape_has_the_size_asked_and_dimensions_that_hardware_wants(parameters):
    for counts in ("total", "non_embedding"):
        for asked in (None, 32_768):
            if asked and parameters < 1e7:
                continue  # then the vocabulary alone is as large
            shape, vocab_size = choose_shape(parameters, counts, asked)
            assert count_parameters(shape, vocab_size)[counts] == pytest.approx(parameters, rel=0.12)
            assert not list(shape.problems()) and vocab_size % 128 == 0
            multiple = 128 if shape.hidden_size >= 256 else 32
            assert shape.hidden_size % multiple == shape.intermediate_size % multiple == 0
            assert 12 < shape.hidden_size / shape.num_hidden_layers < 300
            if shape.hidden_size >= 4096:
                assert shape.num_key_value_heads == 8


def test_a_large_vocabulary_on_a_small_model_is_tied_and_on_a_large_one_is_not():
    assert choose_shape(5e7, "total", 32_768)[0].tie_word_embeddings
    assert not choose_shape(7e9, "total", 32_768)[0].tie_word_embeddings
