# SPDX-License-Identifier: Apache-2.0
"""The shares of the mixture: what is fixed stays, what is asked is kept to, and what cannot be is refused by name."""

import json
import re

import numpy as np
import pytest
from token_files import open_shards, write_tokens

import pretrain
import tokenize_corpus
import train_tokenizer
from mixture.fitting import check_length, expected_deviations, fit_to_corpus, limit_repetitions, resolve_for_run
from mixture.order import TokenMixture
from mixture.phases import make_mixture, schedule_phases
from mixture.shares import average_shares, resolve_shares
from recipe_config import Data, Recipe, RecipeError, Training


def data_of(*sources: dict, **keys) -> Data:
    """Return the data section with sources {name, share, domain, max_repetitions}."""
    return Data.model_validate({"sources": [{"path": "x"} | source for source in sources], **keys})


def training_of(max_tokens: int, **keys) -> Training:
    sizes = {"tokens_per_step": 64 * 32, "sequence_length": 64, "per_device_train_batch_size": 1}
    return Training(max_tokens=max_tokens, learning_rate=1.0, **sizes | keys)


LEGAL = [{"name": "cases", "domain": "legal"}, {"name": "acts", "domain": "legal"}]
WEB = {"name": "web", "domain": "general"}
BYTES = {"cases": 300, "acts": 100, "web": 600}


def test_least_shares_that_fixed_shares_and_phases_break_are_refused_together():
    phases = [{"start_fraction": 0.8, "shares": {"web": 1.0}}, {"start_fraction": 0.9, "shares": {"cases": 1.0}}]
    data = data_of(
        {"name": "cases", "share": 0.2, "domain": "legal"},
        {"name": "acts", "share": 0.2, "domain": "legal"},
        {"name": "web", "share": 0.6, "domain": "general"},
        min_shares={"legal": 0.51},
        phases=phases,
    )
    with pytest.raises(RecipeError) as error:
        resolve_shares(data, BYTES)
    assert list(error.value.problems) == [
        "data.min_shares.legal=0.51: cases, acts have 0.4 by their shares; raise one of them, or lower it to 0.4",
        "data.phases.0.shares: legal has 0, less than data.min_shares.legal=0.51; raise it here, or lower the least "
        "share",
    ]


def test_least_shares_that_add_up_to_more_than_is_left_are_refused():
    data = data_of(*LEGAL, WEB | {"share": 0.6}, min_shares={"legal": 0.51})
    with pytest.raises(RecipeError, match="min_shares and the shares in data.sources add up to 1.11; lower them by"):
        resolve_shares(data, BYTES)


def test_repetitions_that_leave_a_least_share_out_of_reach_are_refused_with_a_length_that_does_it(tmp_path):
    tokens = write_tokens(tmp_path / "tokens", {"cases": [64_001], "acts": [32_001], "web": [6_400_001]})
    shards = open_shards(tokens, 64)
    data = data_of(*LEGAL, WEB, min_shares={"legal": 0.5}, max_repetitions=2.0)
    with pytest.raises(RecipeError) as error:
        resolve_for_run(data, training_of(640_000), shards)
    (problem,) = error.value.problems
    assert "data.min_shares.legal=0.5: cases, acts reach 0.299" in problem
    tokens = int(problem.split("max_tokens=640,000 to ")[1].split(", lower")[0].replace(",", ""))
    assert 360_000 < tokens < 384_000
    resolve_for_run(data, training_of(tokens), shards)
    resolve_for_run(data.model_copy(update={"min_shares": {"legal": 0.299}}), training_of(640_000), shards)


def test_repetitions_that_leave_nothing_to_train_on_are_refused(tmp_path):
    shards = open_shards(write_tokens(tmp_path / "tokens", {"cases": [64_001], "acts": [64_001], "web": [64_001]}), 64)
    with pytest.raises(
        RecipeError, match="data.max_repetitions=2: the sources without a share can take 0.3.* of the 1"
    ):
        resolve_for_run(data_of(*LEGAL, WEB, max_repetitions=2.0), training_of(1_024_000), shards)


def test_a_fixed_share_that_repeats_a_source_too_often_is_refused_by_its_own_limit(tmp_path):
    shards = open_shards(write_tokens(tmp_path / "tokens", {"cases": [64_001], "web": [6_400_001]}), 64)
    data = data_of({"name": "cases", "share": 0.5, "max_repetitions": 1.5}, {"name": "web", "share": 0.5})
    shares, training = {"cases": 0.5, "web": 0.5}, training_of(640_000)
    with pytest.raises(RecipeError, match=r"cases 5.0 times, more than data.sources.0.max_repetitions=1.5; at most 1"):
        limit_repetitions(training, data, shards, shares)
    fitted, notes = limit_repetitions(training, data.model_copy(update={"fit_to_corpus": True}), shards, shares)
    assert fitted.max_tokens < 200_000 and "this many are used" in notes[0]
    assert limit_repetitions(fitted, data, shards, shares) == (fitted, [])


def test_sources_without_a_share_divide_what_is_left_as_their_bytes_do():
    assert resolve_shares(data_of(*LEGAL, WEB), BYTES) == pytest.approx({"cases": 0.3, "acts": 0.1, "web": 0.6})
    fixed = resolve_shares(data_of(*LEGAL, WEB | {"share": 0.2}), BYTES)
    assert fixed == pytest.approx({"cases": 0.6, "acts": 0.2, "web": 0.2})
    out = resolve_shares(data_of({"name": "cases", "share": 0.0}, LEGAL[1], WEB), BYTES)
    assert out == pytest.approx({"cases": 0, "acts": 1 / 7, "web": 6 / 7})


def test_sources_of_a_label_are_raised_together_to_its_least_share():
    raised = resolve_shares(data_of(*LEGAL, WEB, min_shares={"legal": 0.51}), BYTES)
    assert raised == pytest.approx({"cases": 0.51 * 0.75, "acts": 0.51 * 0.25, "web": 0.49})
    both = resolve_shares(data_of(*LEGAL, WEB, min_shares={"legal": 0.8, "acts": 0.5}), BYTES)
    assert both == pytest.approx({"cases": 0.3, "acts": 0.5, "web": 0.2})
    partly = data_of(LEGAL[0] | {"share": 0.3}, LEGAL[1], WEB, min_shares={"legal": 0.51})
    assert resolve_shares(partly, BYTES) == pytest.approx({"cases": 0.3, "acts": 0.21, "web": 0.49})
    assert sum(both.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("phases", [[], [{"start_fraction": 0.7, "shares": {"cases": 0.3, "web": 0.7}}]])
def test_no_source_without_a_share_is_repeated_more_often_than_allowed(tmp_path, phases):
    sizes = {"cases": [20_001, 30_001], "acts": [200_001], "web": [900_001]}
    tokens = write_tokens(tmp_path / "tokens", sizes, {"cases": 5.0, "acts": 3.0, "web": 4.0})
    shards = open_shards(tokens, 64)
    data = data_of(*LEGAL, WEB | {"max_repetitions": 1.0}, min_shares={"legal": 0.1}, phases=phases)
    for max_tokens in (300_000, 900_000, 1_300_000):
        training = training_of(max_tokens)
        shares = resolve_for_run(data, training, shards)
        mixture = make_mixture(shards, schedule_phases(data, shares, training.max_steps), 32, seed=0)
        times = mixture.repetitions(training.max_steps * 32)
        assert times["cases"] <= 4 and times["acts"] <= 4 and times["web"] <= 1
        assert sum(shares.values()) == pytest.approx(1)
        assert limit_repetitions(training, data, shards, shares) == (training, [])
    if not phases:
        assert times["web"] > 0.97, "the others take no more than they must"
        assert times["cases"] == pytest.approx(times["acts"], rel=0.05), "what web gives up goes by bytes"


def test_a_corpus_that_is_fitted_to_gets_its_natural_shares_and_a_shorter_run(tmp_path):
    shards = open_shards(write_tokens(tmp_path / "tokens", {"cases": [64_001], "acts": [32_001], "web": [96_001]}), 64)
    data = data_of(*LEGAL, WEB, max_repetitions=2.0, fit_to_corpus=True)
    shares = resolve_shares(data, shards.train_bytes)
    training, _ = fit_to_corpus(training_of(10_000_000), shards, shares)
    training, notes = limit_repetitions(training, data, shards, shares)
    assert notes and training.max_tokens == pytest.approx(2 * 192_000, rel=0.02)


def test_a_run_that_is_too_long_for_its_text_is_refused_before_there_are_tokens_with_the_length_that_is_not():
    data = data_of({"name": "cases", "share": 0.6}, {"name": "web"}, {"name": "forum"}, max_repetitions=4)
    recipe = Recipe.model_construct(data=data, training=training_of(1_000_000))
    enough = {"cases": 400_000, "web": 150_000, "forum": 150_000}
    assert check_length(recipe, enough) is None
    # 0.6 of at least 2 million bytes are 1.2 million, more than four times 250,000.
    with pytest.raises(RecipeError, match="max_tokens=1,000,000 is too long for the text: cases would be") as error:
        check_length(recipe, enough | {"cases": 250_000})
    assert "about 378,787 tokens would not. Set --training.max_tokens=378787 or data.fit_to_corpus" in str(error.value)
    with pytest.raises(RecipeError, match="too long for the text: web and forum would be repeated"):
        check_length(recipe, enough | {"web": 10_000})
    fitted = Recipe.model_construct(data=data.model_copy(update={"fit_to_corpus": True}), training=recipe.training)
    assert (
        "of cases lasts for about 378,787 of training.max_tokens=1,000,000, which will be shortened"
        in check_length(fitted, enough | {"cases": 250_000})
    )
    assert check_length(fitted, {name: 10 * size for name, size in enough.items()}) is None


def test_phases_begin_at_whole_steps_and_not_before_what_is_done():
    data = data_of(WEB, phases=[{"start_fraction": f, "shares": {"web": 1.0}} for f in (0.5, 0.9)])
    shares = {"web": 1.0}
    assert [phase["after_step"] for phase in schedule_phases(data, shares, 15)] == [0, 8, 14]
    assert [phase["after_step"] for phase in schedule_phases(data, shares, 15, earliest=12)] == [0, 12, 14]
    assert [phase["after_step"] for phase in schedule_phases(data, shares, None)] == [0]


def test_the_average_share_counts_each_phase_for_its_length():
    data = data_of(*LEGAL, WEB, phases=[{"start_fraction": 0.75, "shares": {"acts": 1.0}}])
    assert average_shares(data, {"cases": 0.4, "acts": 0.0, "web": 0.6}) == pytest.approx(
        {"cases": 0.3, "acts": 0.25, "web": 0.45}
    )


# --- what comes of it in bytes


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Two sources whose windows differ by a tenth in bytes: token t has 1 + t % 8 bytes, each window its own mean.

    Returns: the shards, the byte lengths, and the bytes of each window of each source.
    """
    generator, lengths = np.random.default_rng(0), 1 + np.arange(64) % 8
    sources = {}
    for name, windows in (("law", 300), ("web", 700)):
        means = np.repeat(generator.uniform(0.3, 0.7, windows), 32)
        sources[name] = [np.append(0, 8 + generator.binomial(7, means)).astype(np.uint16)]
    ratios = {name: float(lengths[shard[1:]].sum()) / len(shard) for name, (shard,) in sources.items()}
    shards = open_shards(write_tokens(tmp_path_factory.mktemp("uneven") / "tokens", sources, ratios), 32)
    windows = [lengths[shard[1:]].reshape(-1, 32).sum(axis=1) for (shard,) in sources.values()]
    return shards, lengths, windows


def shares_of_bytes(mixture: TokenMixture, windows: list[np.ndarray], sequences: range) -> np.ndarray:
    totals = np.zeros(len(windows))
    for location in map(mixture.locate, sequences):
        totals[location.source] += windows[location.source][location.start // 32]
    return totals / totals.sum()


@pytest.mark.parametrize("num_sequences", [100, 450])  # less than an epoch of each, more than one of the first
def test_the_expected_deviation_is_the_one_that_many_seeds_show(uneven, num_sequences):
    shards, lengths, windows = uneven
    assert 0.05 < windows[0].std() / windows[0].mean() < 0.2
    phases = {0: {"law": 0.8, "web": 0.2}, 300: {"law": 0.5, "web": 0.5}}
    mixtures = [TokenMixture(shards, phases, seed) for seed in range(150)]
    delivered = [shares_of_bytes(mixture, windows, range(num_sequences)) for mixture in mixtures]
    shown = np.std(delivered, axis=0)
    for mixture in mixtures[:2]:
        said = expected_deviations(mixture, lengths, mixture.counts(num_sequences))
        assert list(said) == ["law", "web"]
        assert np.array(list(said.values())) / shown == pytest.approx(1, rel=0.5)


def test_whole_epochs_deviate_by_nothing(uneven):
    shards, lengths, _ = uneven
    mixture = TokenMixture(shards, {0: {"law": 0.5, "web": 0.5}}, seed=0)
    assert set(expected_deviations(mixture, lengths, np.array([600, 700])).values()) == {0.0}


def test_over_a_long_run_the_share_in_actual_bytes_is_within_a_thousandth(uneven):
    shards, _, windows = uneven
    for share in (0.5127, 0.2):
        mixture = TokenMixture(shards, {0: {"law": share, "web": 1 - share}}, seed=1)
        assert abs(shares_of_bytes(mixture, windows, range(30_000))[0] - share) < 0.001


def test_the_shares_of_a_run_are_said_and_in_its_record(tiny_run, capsys):
    sources = [
        {"name": "law", "path": str(tiny_run.texts / "law.jsonl"), "domain": "legal"},
        {"name": "web", "path": str(tiny_run.texts / "web"), "domain": "general"},
    ]
    changed = tiny_run.argv(f"--data.sources={json.dumps(sources)}", "--data.min_shares={legal: 0.8}")
    with pytest.raises(RecipeError, match="tokenizer is out of date: .*min_shares.legal was null, is 0.8"):
        pretrain.main(changed)
    train_tokenizer.main([*changed, "--overwrite"])
    tokenize_corpus.main([*changed, "--overwrite"])
    pretrain.main(changed)
    training = json.loads((tiny_run.output_dir / "training.json").read_text())
    assert training["phases"] == [{"after_step": 0, "shares": pytest.approx({"law": 0.8, "web": 0.2})}]
    assert training["mixture"]["law"]["asked_fraction"] == pytest.approx(0.8)
    for part in training["mixture"].values():
        assert (
            abs(part["delivered_fraction"] - part["asked_fraction"]) < 5 * part["expected_deviation_fraction"] + 0.01
        )
    said = capsys.readouterr().out
    assert "pretrain: from step 1 on, 80.00 % law, 20.00 % web (of the bytes)" in said
    assert re.search(
        r"pretrain: step 10: law [78]\d.\d\d % of the bytes \(target 80.00 %\), read 0.\d times; web ", said
    )
    (line,) = [line for line in tiny_run.metrics() if line["step"] == 10 and "data/share/law" in line]
    assert line["data/asked/law"] == pytest.approx(0.8) and 0.7 < line["data/share/law"] < 0.9
    assert line["data/repetitions/web"] > 0
