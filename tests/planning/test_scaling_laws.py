# SPDX-License-Identifier: Apache-2.0
"""The laws give what their papers print."""

import math

import pytest

from planning.scaling_laws import (
    CHINCHILLA_PARAMETERS,
    CHINCHILLA_TABLES,
    LAWS,
    REPETITION_LAW,
    LossLaw,
    bloomberg_hidden_size,
    deepseek_rule,
    fit_power_law,
    olmo_rule,
    optimal_vocab_size,
    optimal_vocabulary_parameters,
    power_lines_weight_decay,
    vocabulary_compute,
)


BLOOMBERG_FLOPS = 0.75 * 1.3e6 * 3600 * 100e12  # recomputation, GPU-hours, seconds, FLOP/s of a GPU: section 3.2
GOPHER_FLOPS = 5.76e23


def test_approaches_1_and_2_give_bloomberggpts_choice_of_size_and_tokens():
    assert LAWS["chinchilla_1"].optimum(BLOOMBERG_FLOPS) == pytest.approx((52.993e9, 1111.112e9), rel=1e-4)
    assert LAWS["chinchilla_2"].optimum(BLOOMBERG_FLOPS) == pytest.approx((49.753e9, 1175.766e9), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "printed"),
    [("chinchilla_1", (0.498, -1.004, 0.502, 0.229)), ("chinchilla_2", (0.490, -0.839, 0.510, 0.062))],
)
def test_the_fits_have_the_printed_coefficients_which_do_not_give_the_printed_sizes(name, printed):
    law = LAWS[name]
    fitted = [v for p in (law.parameters, law.tokens) for v in (p.exponent, math.log10(p.coefficient))]
    assert [round(value, 3) for value in fitted] == list(printed)
    sizes = (52.993e9, 1111.112e9) if name == "chinchilla_1" else (49.753e9, 1175.766e9)
    rounded = [10 ** (printed[i] * math.log10(BLOOMBERG_FLOPS) + printed[i + 1]) for i in (0, 2)]
    assert max(abs(a / b - 1) for a, b in zip(rounded, sizes, strict=True)) > 2e-3


@pytest.mark.parametrize("name", CHINCHILLA_TABLES)
def test_every_row_of_chinchillas_tables_keeps_to_6ND_and_the_misprinted_one_only_when_read_right(name):
    for parameters, flops, tokens in zip(CHINCHILLA_PARAMETERS, *CHINCHILLA_TABLES[name], strict=True):
        assert 6 * parameters * tokens == pytest.approx(flops, rel=0.05), parameters
    if name == "chinchilla_3":
        as_printed = 1.26e24
        assert pytest.approx(10 * as_printed, rel=0.01) == 6 * 175e9 * 12.0e12


@pytest.mark.parametrize("name", ["chinchilla_1", "chinchilla_2"])
def test_the_fits_go_through_every_row_of_their_table(name):
    for parameters, flops, tokens in zip(CHINCHILLA_PARAMETERS, *CHINCHILLA_TABLES[name], strict=True):
        assert LAWS[name].optimum(flops) == pytest.approx((parameters, tokens), rel=0.06), parameters  # 1.5T


def test_approach_3_gives_figure_4_and_its_exponents_but_not_table_a3():
    law = LAWS["chinchilla_3"]
    assert law.optimum(GOPHER_FLOPS)[0] == pytest.approx(40e9, rel=0.01)
    assert law.beta / (law.alpha + law.beta) == pytest.approx(0.4565, abs=1e-4)  # 0.46 in Table 2
    constants = [law.E, law.A, law.B]
    assert constants == pytest.approx([1.6934, 406.4, 410.7], rel=1e-4)
    assert law.optimum(2.21e19)[0] / 400e6 < 0.99  # the table's first row is 400M
    rounded = LossLaw("as printed", "total", E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    assert rounded.optimum(GOPHER_FLOPS)[0] == pytest.approx(32.2e9, rel=0.01)


@pytest.mark.parametrize("name", ["chinchilla_3", "besiroglu"])
def test_the_closed_form_is_where_the_loss_is_least(name):
    law = LAWS[name]
    parameters, tokens = law.optimum(1e21)
    assert 6 * parameters * tokens == pytest.approx(1e21)
    for factor in (0.98, 1.02):
        assert law.loss(parameters * factor, tokens / factor) > law.loss(parameters, tokens)


def test_the_refit_gives_20_tokens_a_parameter_where_approach_3_does_not():
    parameters, tokens = LAWS["besiroglu"].optimum(GOPHER_FLOPS)
    assert (parameters, tokens) == pytest.approx((72.3e9, 1.33e12), rel=0.01)
    law = LAWS["besiroglu"]
    assert law.beta / (law.alpha + law.beta) == pytest.approx(0.513, abs=1e-3)


def test_kaplans_law_is_read_as_chinchillas_appendix_reads_it():
    assert LAWS["kaplan"].optimum(1e21)[0] == pytest.approx(4.68e9, rel=1e-3)
    assert LAWS["chinchilla_1"].optimum(1e21)[0] == pytest.approx(2.86e9, rel=2e-3)


def test_the_effective_tokens_of_repeated_text_are_the_published_check_values():
    law = REPETITION_LAW
    assert law.loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440890, abs=1e-9)
    assert law.loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075, abs=1e-9)
    effective = [law.effective_tokens(epochs * 1e9, 1e9) / 1e9 for epochs in (1, 2, 4, 8, 16, 40, 1e6)]
    assert effective == pytest.approx([1, 1.968, 3.726, 6.624, 10.58, 15.17, 16.39], abs=5e-3)
    assert law.effective_tokens(3e9, 5e9) == 3e9  # less than one epoch


def test_with_text_enough_the_repetition_law_is_the_plain_one_and_with_too_little_it_takes_a_smaller_model():
    law = REPETITION_LAW
    plain = law.law.optimum(9.3e21)
    assert law.optimum(9.3e21, unique_tokens=1e15) == pytest.approx(plain, rel=1e-3)
    # As the paper's Figure 1: with 25B different tokens, more epochs on fewer parameters (6.34B against 8.67B).
    parameters, tokens = law.optimum(9.3e21, unique_tokens=25e9)
    assert 6.3e9 < parameters < 8e9 and tokens > plain[1]
    assert law.loss(parameters, tokens, 25e9) <= law.loss(6.34e9, 242e9, 25e9)
    capped = law.optimum(9.3e21, unique_tokens=25e9, most_tokens=100e9)
    assert capped[1] == 100e9 and capped[0] > parameters


TAO_TABLE = [  # N_nv, hidden size, FLOPs, vocabulary by approach 1, 2 and 3
    (33e6, 512, 1.6e17, 5.8e3, 6.1e3, 4.7e3),
    (85e6, 768, 1.0e18, 8.4e3, 9.0e3, 7.0e3),
    (151e6, 768, 3.3e18, 13.6e3, 14.6e3, 11.5e3),
    (302e6, 1024, 1.3e19, 18.2e3, 19.5e3, 15.8e3),
    (631e6, 1536, 5.7e19, 22.4e3, 24.1e3, 19.9e3),
    (1.13e9, 2048, 1.8e20, 27.3e3, 29.4e3, 24.6e3),
    (2.87e9, 3200, 1.2e21, 37.9e3, 41.0e3, 35.3e3),
    (7e9, 4096, 7.1e21, 62.3e3, 67.5e3, 59.5e3),
    (13e9, 5120, 2.4e22, 83.4e3, 90.5e3, 81.3e3),
    (30e9, 6048, 1.3e23, 142e3, 154e3, 142e3),
    (70e9, 8192, 7.1e23, 212e3, 231e3, 218e3),
    (130e9, 12288, 2.4e24, 237e3, 258e3, 248e3),
    (300e9, 16384, 1.3e25, 356e3, 389e3, 384e3),
]


@pytest.mark.parametrize(("non_vocabulary", "hidden_size", "flops", "first", "second", "third"), TAO_TABLE)
def test_the_vocabulary_law_gives_its_table(non_vocabulary, hidden_size, flops, first, second, third):
    assert vocabulary_compute(non_vocabulary) == pytest.approx(flops, rel=0.05)
    sizes = [optimal_vocab_size(non_vocabulary, hidden_size, approach) for approach in (1, 2, 3)]
    assert sizes == pytest.approx([first, second, third], rel=0.012)


def test_with_more_compute_than_is_optimal_a_larger_vocabulary_is():
    optimal = optimal_vocabulary_parameters(7e9)
    assert optimal_vocabulary_parameters(7e9, flops=10 * vocabulary_compute(7e9)) > optimal
    assert optimal_vocabulary_parameters(7e9, flops=vocabulary_compute(7e9)) == pytest.approx(optimal)


def test_batch_learning_rate_and_weight_decay_follow_their_rules():
    for parameters, batch, learning_rate in (
        (60e6, 221_446, 2.86e-3),
        (108e6, 327_680, 2.35e-3),
        (1e9, 1_444_888, 1.12e-3),
        (7e9, 5_287_286, 5.85e-4),
    ):
        rule = olmo_rule(parameters)
        assert (rule.tokens_per_step, rule.learning_rate) == pytest.approx((batch, learning_rate), rel=5e-3)
        assert rule.warmup_tokens == parameters
    for flops, batch, learning_rate in ((1e17, 106e3, 2.34e-3), (1e19, 479e3, 1.31e-3), (1e21, 2.16e6, 7.4e-4)):
        rule = deepseek_rule(flops)
        assert (rule.tokens_per_step, rule.learning_rate) == pytest.approx((batch, learning_rate), rel=6e-3)
    # At 20 tokens a parameter the timescale is 0.2236 of the run.
    assert power_lines_weight_decay(1e6, 1e-3, 20e9, 1e9) == pytest.approx(1e6 / (1e-3 * 20e9 * 0.2236), rel=1e-3)


def test_the_rule_of_shape_is_bloomberggpts():
    assert bloomberg_hidden_size(70) == pytest.approx(7510.07, abs=0.01)


def test_a_power_law_is_recovered_from_points_on_it():
    law = fit_power_law([1e18, 1e20, 1e22], [3 * x**0.5 for x in (1e18, 1e20, 1e22)])
    assert (law.coefficient, law.exponent) == pytest.approx((3, 0.5))
