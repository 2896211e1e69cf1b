# SPDX-License-Identifier: Apache-2.0
"""The planner: BloombergGPT's case, scarce text, every kind of budget, and what it refuses."""

import csv
import itertools
import json
import math
import os
import re
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import mean

import pytest
from scipy.optimize import brentq
from tiny_run import RECIPES, ROOT

import plan_run
from planning import charts
from planning.available_text import Text
from planning.budget import read_budget
from planning.devices import DEVICES, PRICE_SOURCES, find_device
from planning.known_models import KNOWN_MODELS
from planning.memory import largest_batch, memory_by_part
from planning.plan import choose_size, make_plan, plan_loss
from planning.plan_table import describe
from planning.scaling_laws import LAWS, REPETITION_LAW, decayed_sum
from planning.scarce_text import MEASURED_FOUR_EPOCHS, WAYS
from planning.training_rules import rule_regularisation
from recipe_config import Model, RecipeError, Training
from recipe_loading import load_recipe
from sweeps.arm_results import BITS, TEACHERS, bits_by_place, text_factor
from sweeps.arms import load_experiment
from sweeps.runs import read_rows


BASE = RECIPES / "legal" / "base.yaml"
BLOOMBERG = [
    "--plan.device=a100-40gb",
    "--plan.num_devices=512",
    "--plan.device_hours=1.3e6",
    "--plan.reserve_fraction=0",
    "--plan.recomputation_factor=1.3333333333",
    "--plan.utilisation_fraction=0.3205128205",  # 100 TFLOP/s
    "--plan.domain_bytes=1.786e12",
    "--plan.general_bytes=1.687e12",
    "--plan.bytes_per_token=4.89",
    "--data.max_repetitions=1",
    "--plan.vocab_size=131072",
    "--plan.law=chinchilla_1",
]
SOURCES = {"law": "legal", "code": "legal", "web": "general"}
TEXT = ["--plan.domain_bytes=20e9", "--plan.general_bytes=19e9"]


@pytest.fixture
def plan(tmp_path):
    """Plan the legal recipe with overrides."""

    def make(*overrides: str) -> dict:
        recipe = load_recipe([BASE], [f"--run.output_dir={tmp_path / 'run'}", *overrides])
        made = make_plan(recipe, find_device(recipe.plan.device))
        assert_finite(made, "plan")
        assert describe(made)
        return made

    return make


def assert_finite(value: object, path: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            assert_finite(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            assert_finite(inner, f"{path}.{index}")
    elif isinstance(value, float):
        assert math.isfinite(value), path


def test_bloomberggpts_case_gives_a_model_of_its_size_on_fewer_tokens_than_the_law_asks_for(plan):
    made = plan(*BLOOMBERG)
    assert made["budget"]["model_flops"] == pytest.approx(3.51e23, rel=1e-6)
    assert made["laws"]["chinchilla_1"]["parameters"] == pytest.approx(52.993e9, rel=1e-4)
    assert made["laws"]["chinchilla_2"]["tokens"] == pytest.approx(1175.766e9, rel=1e-4)
    assert made["parameters"]["total"] == pytest.approx(52.993e9, rel=0.04)
    # 709 billion tokens are all there are; more than half of them of the domain.
    assert made["tokens"] == pytest.approx(709e9, rel=0.01)
    assert made["text"]["domain_share"] == pytest.approx(0.514, abs=1e-3)
    assert any("the text limits the run" in warning for warning in made["warnings"])
    chosen = made["memory"]["chosen"]
    assert chosen["accelerate_config"] == "fsdp2.yaml" and chosen["activation_checkpointing"]


def test_bloomberggpt_lies_on_chinchillas_line_in_size_and_below_it_in_tokens():
    bloomberg = next(model for model in KNOWN_MODELS if model.name == "BloombergGPT")
    assert bloomberg.flops == pytest.approx(1.73e23, rel=5e-3)  # the 2.36e23 of its paper include recomputation
    budget = 3.51e23  # what they had planned
    parameters, tokens = LAWS["chinchilla_2"].optimum(budget)
    assert bloomberg.parameters == pytest.approx(parameters, rel=0.03)
    assert bloomberg.tokens < 0.5 * tokens


def test_every_kind_of_budget_comes_to_the_same_model_flops(plan):
    hours = plan(*TEXT, "--plan.device_hours=800")
    for budget in (
        ["--plan.hours=100"],
        ["--plan.money=2000", "--plan.price_per_device_hour=2.5"],
        [f"--plan.flops={800 * 0.7 * 0.4 * 989e12 * 3600}"],
    ):
        made = plan(*TEXT, *budget)
        assert made["budget"]["model_flops"] == pytest.approx(hours["budget"]["model_flops"])
        assert made["model"] == hours["model"] and made["training"] == hours["training"]
    assert hours["cost"]["least"]["hours"] < hours["cost"]["expected"]["hours"] < hours["cost"]["most"]["hours"]
    assert hours["cost"]["expected"]["device_hours"] <= 800 * 0.7 * 1.01
    assert hours["loss"]["interval"][0] <= hours["loss"]["nats_per_token"] <= hours["loss"]["interval"][1]
    half, twice = (hours["loss"][key]["nats_per_token"] for key in ("with_half_the_budget", "with_twice_the_budget"))
    assert half > hours["loss"]["nats_per_token"] > twice


def test_with_text_enough_each_law_is_followed_exactly_and_with_less_the_model_is_smaller(plan):
    rich = ["--plan.domain_bytes=20e12", "--plan.general_bytes=19e12", "--plan.flops=1e21"]
    for law in ("chinchilla_1", "chinchilla_2", "chinchilla_3", "besiroglu", "kaplan"):
        made = plan(*rich, f"--plan.law={law}")
        counts = made["laws"][law]["counts"]
        assert made["parameters"][counts] == pytest.approx(made["laws"][law]["parameters"], rel=0.06), law
        assert 6 * made["parameters"]["multiplying"] * made["tokens"] == pytest.approx(1e21, rel=0.15)
    scarce = plan("--plan.domain_bytes=20e9", "--plan.general_bytes=19e9", "--plan.flops=1e21")
    assert scarce["tokens"] <= scarce["text"]["max_repetitions"] * (39e9 / 4.4) * 1.001
    assert scarce["text"]["worth_tokens"] < scarce["tokens"]


def test_for_little_text_the_ways_to_train_are_compared_and_the_best_that_is_paid_for_is_marked(plan):
    assert plan("--plan.domain_bytes=20e12", "--plan.general_bytes=19e12", "--plan.flops=1e21")["scarce_text"] == []
    little = ["--plan.domain_bytes=500e6", "--plan.general_bytes=1e6", "--plan.min_domain_share=0.99"]
    rich = plan(*little, "--plan.flops=1e21")
    ways = {way["way"]: way for way in rich["scarce_text"]}
    assert list(ways) == ["once", "four times", "usual", "many times", "ensemble", "student"]
    assert [name for name, way in ways.items() if way["take"]] == ["student"]
    reading = rich["flops"]["per_token"] * rich["tokens"] / rich["text"]["max_repetitions"]
    assert ways["four times"]["flops"] == pytest.approx(4 * reading, rel=0.01)
    assert ways["student"]["flops"] == pytest.approx(ways["ensemble"]["flops"] + 30 * (1 + 4 / 3) * reading, rel=0.01)
    assert ways["once"]["equal_to"] < ways["four times"]["equal_to"] < ways["usual"]["equal_to"] == [1, 1]
    assert ways["usual"]["equal_to"] < ways["many times"]["equal_to"] < ways["student"]["equal_to"]
    assert "little text" in describe(rich) and "scarce.yaml <- take" in describe(rich)
    for readings, way in ((5, "four times"), (10, "usual")):
        poor = plan(*little, f"--plan.flops={readings * reading}")
        assert [one["way"] for one in poor["scarce_text"] if one["take"]] == [way]


def test_the_plan_of_a_model_that_learns_from_others_pays_for_them_too(tmp_path):
    def make(*overrides: str) -> dict:
        given = [f"--run.output_dir={tmp_path / 'run'}", "--plan.device=h100-sxm", "--plan.domain_bytes=100e6"]
        recipe = load_recipe([RECIPES / "custom" / "scarce.yaml"], [*given, *overrides])
        return make_plan(recipe, find_device("h100-sxm"))

    alone = make("--plan.flops=3e17", "--training.distillation=null")
    made = make(f"--plan.flops={3e17 * 19 / 3}")  # 1 + 4 members + 4 forward passes of a third
    assert (made["parameters"], made["tokens"]) == (alone["parameters"], alone["tokens"])
    assert made["loss"] == alone["loss"] and made["training"] == alone["training"]
    assert made["budget_used_fraction"] == pytest.approx(alone["budget_used_fraction"])
    for key in (("flops", "training"), ("cost", "expected", "hours"), ("cost", "most", "money")):
        whole, one = (reduce(getitem, key, plan) for plan in (made, alone))
        assert whole == pytest.approx(one * 19 / 3), key
    assert "6.33 times that of one model" in made["verdict"]["sentences"][1] and "6.33 times" in describe(made)


def test_who_reads_the_text_30_times_already_is_not_told_to(tmp_path):
    def third(*overrides: str) -> str:
        given = [f"--run.output_dir={tmp_path / 'run'}", "--plan.domain_bytes=100e6", "--plan.flops=1e20"]
        recipe = load_recipe([RECIPES / "custom" / "scarce.yaml"], [*given, *overrides])
        return make_plan(recipe, find_device(recipe.plan.device))["verdict"]["sentences"][2]

    alone = third("--training.distillation=null")
    assert "Four ways out: learn from 4 models of its kind as recipes/custom/scarce.yaml does" in alone
    assert "Three ways out: give the domain less" in third()
    assert not any("read it 30 times" in sentence for sentence in (alone, third()))


def test_text_that_is_read_often_gets_the_decay_and_dropout_that_were_measured_for_it(plan):
    little = [
        "--plan.domain_bytes=50e6",
        "--plan.general_bytes=1e6",
        "--plan.min_domain_share=0.99",
        "--plan.flops=1e20",
    ]
    usual, often = (plan(*little, f"--data.max_repetitions={times}")["training"] for times in (8, 30))
    assert (usual["weight_decay"], usual["dropout"]) == (0.1, None)
    assert (often["weight_decay"], often["dropout"]) == (1.6, 0.1), "0.32 different tokens a parameter"
    more = plan(*little, "--data.max_repetitions=30", "--training.weight_decay=2", "--training.dropout=0.3")[
        "training"
    ]
    assert (more["weight_decay"], more["dropout"]) == (2.0, 0.3), "never less than the recipe's"


def test_the_decay_for_little_text_is_near_the_best_that_was_tried_for_each_amount():
    """Of models that read 0.25 MB of medicine, 1 MB of both and 2 MB of law; the first seed of each."""

    def decays(experiment: str, label: str, text: str) -> tuple[float, float]:
        path = RECIPES / "experiments" / f"{experiment}.yaml"
        tried = {run.key: run.recipe.training.weight_decay for run in load_experiment(path)[2]}
        rows = [row for row in read_rows(path.with_suffix("") / "runs.csv").values() if row["domain_bytes"] == text]
        rows = [row for row in rows if row["arm"].startswith("repacked")]
        longest = max(float(row["tokens"]) for row in rows)
        rows = [row for row in rows if float(row["tokens"]) == longest and row["seed"] == "1"]
        best = min(rows, key=lambda row: float(row[label + BITS]))
        epochs, parameters = float(best[f"{label}_repetitions"]), float(best["parameters"])
        rule = rule_regularisation(epochs, longest / parameters, Training(max_tokens=longest, sequence_length=256))
        return tried[best["key"]], rule["weight_decay"]

    assert decays("scarce_medicine", "medical", "250000") == (3.0, 3.0)
    assert decays("scarce_medicine", "medical", "1000000") == (1.0, 0.9)
    assert decays("scarce_law", "legal", "1000000") == (1.0, 0.9)
    assert decays("scarce_law", "legal", "2000000") == (0.3, 0.4)


def test_the_page_shows_the_rows_of_each_decay():
    """recipes/experiments/README.md: the table of decays, whose columns are arms, of seed 1."""
    arms = ["repacked-less-decay", "repacked", "repacked-decay-3", "repacked-decay-3-more-dropout"]
    page = (RECIPES / "experiments" / "README.md").read_text()
    table = re.findall(r"^\| ([\d.]+) MB of (law|medicine), (\d+), ([\d.]+) \|(.*)\|$", page, re.MULTILINE)
    assert len(table) == 5
    for amount, domain, readings, ratio, cells in table:
        folder, label = RECIPES / "experiments" / f"scarce_{domain}", {"law": "legal", "medicine": "medical"}[domain]
        text = f"{float(amount) * 1e6:.0f}"
        rows = [row for row in read_rows(folder / "runs.csv").values() if row["domain_bytes"] == text]
        means = [row for row in csv.DictReader((folder / "means.csv").open()) if row["domain_bytes"] == text]
        usual = min(row[label + BITS] for row in means if row["arm"] == "default")
        longest = max((row for row in rows if row["arm"].startswith("repacked")), key=lambda row: int(row["tokens"]))
        of_arms = {row["arm"]: row for row in rows if row["tokens"] == longest["tokens"] and row["seed"] == "1"}
        found = [f"{float(of_arms[arm][label + BITS]):.3f}" if arm in of_arms else "" for arm in arms]
        best = min((arm for arm in arms if arm in of_arms), key=lambda arm: float(of_arms[arm][label + BITS]))
        factors = {
            row["arm"]: row["factor"]
            for row in csv.DictReader((folder / "factors.csv").open())
            if row["domain_bytes"] == text and row["budget_flops"] == of_arms[best]["budget_flops"]
        }
        assert [cell.strip() for cell in cells.split("|")] == [usual, *found, f"{float(factors[best]):.1f}"], amount
        times = float(longest[f"{label}_repetitions"])
        assert readings == f"{times:.0f}"
        assert f"{int(longest['tokens']) / times / int(longest['parameters']):.2g}" == ratio


def test_the_factors_for_little_text_are_the_lowest_and_highest_on_test_text():
    """The usual recipe counts with the readings that are best on validation text; each amount with a decay for it."""
    ways = {
        ("repacked-decay-3-more-dropout", "250000"): "many times",
        ("repacked", "1000000"): "many times",
        ("repacked-less-decay", "2000000"): "many times",
        ("student", "1000000"): "student",
        ("ensemble", "1000000"): "ensemble",
        ("default", "1000000"): "four times",
    }
    measured: dict[str, list[float]] = {way: [] for way in ways.values()}
    for experiment, label in (("scarce_law", "legal"), ("scarce_medicine", "medical")):
        folder = RECIPES / "experiments" / experiment
        runs, usual = read_rows(folder / "runs.csv"), {}
        on_test = [
            runs[row["key"]] | {label + BITS: row["test_bits_per_byte"], label + TEACHERS: ""}
            for row in read_rows(folder / "test.csv").values()
        ]
        found, validated = bits_by_place(on_test, label), bits_by_place([*runs.values()], label)
        for text in {text for arm, _, text in found if arm == "default"}:
            places = [place for place in found if place[0] == "default" and place[2] == text]
            usual[float(text)] = mean(found[min(places, key=lambda place: mean(validated[place]))])
        for row in csv.DictReader((folder / "ensemble_test.csv").open()):
            found["ensemble", "", row["domain_bytes"]] = [float(row["test_bits_per_byte"])]
        readings = {(row["arm"], row["budget_flops"], row["domain_bytes"]): row for row in runs.values()}
        for place, bits in found.items():
            often = place in readings and float(readings[place][f"{label}_repetitions"])
            way = ways.get((place[0], place[2]))
            if way and not (place[0] == "default" and round(often) != 4):
                factor = text_factor(usual, float(place[2]), mean(bits))
                measured[way].append(float(factor.replace("<", "")))
    for way, number in {"many times": 4, "student": 2, "ensemble": 2}.items():
        assert len(measured[way]) == number and round(min(measured[way]), 1) == WAYS[way][0][0], (way, measured[way])
    for way in ("many times", "student"):
        assert round(max(measured[way]), 1) == WAYS[way][0][1], (way, measured[way])
    assert round(max(measured["four times"]), 1) == MEASURED_FOUR_EPOCHS


def test_the_readings_of_little_text_are_worth_what_the_page_says():
    """recipes/experiments/README.md: in the words "of the usual recipe 8 are worth" and what follows."""
    found = {}
    for experiment, label in (("scarce_law", "legal"), ("scarce_medicine", "medical")):
        folder = RECIPES / "experiments" / experiment
        means = {
            (row["arm"], row["budget_flops"], row["domain_bytes"]): float(row[label + BITS])
            for row in csv.DictReader((folder / "means.csv").open())
        }
        four, eight = (means["default", budget, "1000000"] for budget in ("3.75e+12", "7.5e+12"))
        doubling = min(four, eight) - means["default", "1.5e+13", "2000000"]
        factors = {
            (row["arm"], row["budget_flops"]): row["factor"]
            for row in csv.DictReader((folder / "factors.csv").open())
            if row["domain_bytes"] == "1000000"
        }
        often = float(factors["repacked", "3e+13"]) / float(factors["repacked-fewer-readings", "7.5e+12"])

        def beyond(constant: float, often: float = often) -> float:
            return decayed_sum(32, 1, constant) / decayed_sum(8, 1, constant) - often

        constant = brentq(beyond, 1, 100)
        found[label] = (round(2 ** ((four - eight) / doubling), 2), round(often, 1), round(constant))
    assert found == {"legal": (0.98, 1.3, 6), "medical": (1.15, 1.6, 9)}
    assert round(REPETITION_LAW.effective_tokens(8, 1) / REPETITION_LAW.effective_tokens(4, 1), 1) == 1.8
    assert round(REPETITION_LAW.effective_tokens(32, 1) / REPETITION_LAW.effective_tokens(8, 1), 1) == 2.2


@pytest.mark.parametrize("law", list(LAWS))
@pytest.mark.parametrize("gigabytes", [0.05, 5, 5000])
def test_a_larger_budget_never_has_a_higher_predicted_loss(gigabytes, law):
    tokens = gigabytes * 1e9 / 4.4
    text, last = Text(tokens, tokens, 0.5, 4), math.inf
    for exponent in range(340, 520, 2):
        loss = plan_loss(text, *choose_size(law, 10 ** (exponent / 20), text))["nats_per_token"]
        assert loss is None or loss <= last + 1e-6, exponent
        last = last if loss is None else loss
    assert last < math.inf or gigabytes == 0.05


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["--plan.hours=7 days"], ["--plan.hours=168"]),
        (["--plan.hours=90 min"], ["--plan.hours=1.5"]),
        (["--plan.device_hours=2 weeks"], ["--plan.device_hours=336"]),
        (["--plan.money=$1,000"], ["--plan.money=1000"]),
        (["--plan.money=1000 USD"], ["--plan.money=1000", "--plan.price_per_device_hour=3.99"]),
        (["--plan.hours=9", "--plan.domain_bytes=5.5 GB"], ["--plan.hours=9", "--plan.domain_bytes=5500000000"]),
        (["--plan.hours=9", "--plan.general_bytes=2GiB"], ["--plan.hours=9", "--plan.general_bytes=2147483648"]),
        (["--plan.hours=9", "--plan.general_bytes=19GB"], ["--plan.hours=9"]),
    ],
)
def test_amounts_may_have_their_units_and_prices_and_general_text_have_a_default(plan, overrides, same):
    made, plain = (plan("--plan.domain_bytes=5GB", *options) for options in (overrides, same))
    assert made["model"] == plain["model"] and made["training"] == plain["training"] and made["cost"] == plain["cost"]


def test_general_text_that_no_key_states_is_what_the_share_of_the_domain_leaves_room_for(plan):
    sources = [{"name": name, "path": name, "domain": domain} for name, domain in SOURCES.items()]
    options = [f"--data.sources={json.dumps(sources)}", "--plan.flops=1e19", "--plan.domain=legal"]
    made = plan(*options, "--plan.domain_bytes=10GB", "--data.min_shares={legal: 0.8}")
    assert made["text"]["general_bytes"] == pytest.approx(2.5e9)
    assert any("2.5 GB of other text, what the domain's least share leaves room for" in a for a in made["assumptions"])


def test_the_verdict_comes_first_in_three_sentences_with_the_numbers_that_decide_it(plan):
    made = plan("--plan.money=$2000", "--plan.domain_bytes=40GB")
    first, second, third = made["verdict"]["sentences"]
    assert describe(made).startswith("verdict") and describe(made).index("\nbudget ") > describe(made).index(
        "The text"
    )
    assert re.match(r"Continue [\w.-]+ instead of .* the laws predict 2\.\d\d nats per token against 2\.\d\d", first)
    assert "a budget of 2,000 USD pays for" in second and re.search(r"hours of 8 x h100-sxm and [\d,]+ USD\.", second)
    assert third.startswith("The text is enough: it is read ") and "tokens" in third
    assert made["budget_used_fraction"] > 0.9

    scarce = plan("--plan.hours=7 days", "--plan.domain_bytes=5GB")
    third = scarce["verdict"]["sentences"][2]
    assert third.startswith(f"The text can use {scarce['budget_used_fraction']:.0%} of the budget: it is read 4 times")
    assert scarce["tokens_per_parameter"]["total"] > 9 and "where 20 are usual" in third
    for way in ("data.max_repetitions=8", "plan.min_domain_share", "of one device", "continue an open model"):
        assert way in third, way
    doubled = plan("--plan.hours=7 days", "--plan.domain_bytes=5GB", "--data.max_repetitions=8")
    assert (
        "read it 30 times with the decay and dropout of recipes/custom/scarce.yaml"
        in (doubled["verdict"]["sentences"][2])
    ), "more often with the usual decay is worse"
    assert doubled["tokens"] == pytest.approx(2 * scarce["tokens"], rel=0.02), "as the sentence says"


def test_too_little_text_gives_a_model_of_its_size_and_the_advice_to_continue_another(plan):
    made = plan("--plan.hours=7 days", "--plan.domain_bytes=50MB")
    assert made["verdict"]["sentences"][0] == (
        "There is not enough text to pretrain a model from scratch. Continue SmolLM2-1.7B."
    )
    assert made["parameters"]["total"] < 1e7 and made["loss"]["nats_per_token"] is None
    assert made["text"]["domain_epochs"] <= 4.01


def test_a_question_about_no_text_is_answered_and_writes_nothing(tmp_path, capsys):
    plan_run.main(["--config", str(BASE), f"--run.output_dir={tmp_path}", "--plan.hours=1", "--plan.domain_bytes=0"])
    assert capsys.readouterr().out.startswith("There is no text of 'legal'")
    assert not list(tmp_path.iterdir())


def test_every_price_has_a_source_with_a_date():
    assert {name for name, device in DEVICES.items() if device.dollars_per_hour} == set(PRICE_SOURCES)
    assert all(re.search(r", 20\d\d-\d\d-\d\d$", source) for source in PRICE_SOURCES.values())


def test_the_mixture_is_limited_by_the_domains_share_and_the_repetitions():
    text = Text(domain_tokens=10e9, general_tokens=100e9, min_domain_share=0.5, max_repetitions=4)
    assert text.most_tokens() == 80e9
    assert text.split(20e9) == (10e9, 10e9)
    domain, general = text.split(80e9)
    assert domain / 10e9 == 4 and general == 40e9
    effective, unique = text.effective_tokens(80e9)
    assert effective == pytest.approx(37.26e9 + 40e9, rel=1e-3) and unique == 50e9
    little_general = Text(domain_tokens=10e9, general_tokens=1e9, min_domain_share=0.5, max_repetitions=4)
    assert little_general.most_tokens() == 44e9
    assert little_general.split(44e9) == (40e9, 4e9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*TEXT], "plan: no budget; set one of plan.flops, plan.device_hours, plan.hours and plan.money"),
        ([*TEXT, "--plan.hours=1", "--plan.flops=1e20"], "flops and hours are each a budget; keep one of them"),
        (
            [*TEXT, "--plan.money=1", "--plan.device=l40s"],
            "plan.price_per_device_hour: missing; plan.money needs the price",
        ),
        (
            [*TEXT, "--plan.money=1", "--plan.currency=EUR"],
            "plan.price_per_device_hour: missing in EUR; the price list is",
        ),
        ([*TEXT, "--plan.money=1 EUR"], 'plan.money: should be a number or an amount such as $500, got "1 EUR"'),
        ([*TEXT, "--plan.hours=2 fortnights"], "plan.hours: should be a number or an amount such as '7 days', got"),
        (["--plan.hours=1", "--plan.domain_bytes=5 G"], 'amount such as 5GB, got "5 G"'),
        (["--plan.hours=1", "--plan.domain_bytes=-5GB"], 'amount such as 5GB, got "-5GB"'),
        (
            ["--plan.hours=1", "--plan.domain_bytes=-5"],
            "plan.domain_bytes: input should be greater than or equal to 0",
        ),
        ([*TEXT, "--plan.hours=-1"], "plan.hours: input should be greater than 0, got -1"),
        ([*TEXT, "--plan.flops=1e40"], "plan.flops: 1e+40 is 1e+40 model FLOPs; a run has between 1e+12 and 1e+30"),
        ([*TEXT, "--plan.hours=1e-9"], "model FLOPs; a run has between"),
        ([*TEXT, "--plan.hours=1", "--plan.device=h300"], "plan.device: input should be 'a100-40gb', 'a100-80gb'"),
        (["--plan.domain_bytes=0", "--plan.hours=1"], "There is no text of 'legal', so there is nothing to train on"),
        (
            ["--plan.domain_bytes=1", "--plan.hours=1"],
            "There is not enough text to train anything: read 4 times, that of",
        ),
        (["--plan.hours=1"], "plan.domain_bytes: missing, and there is no"),
        ([*TEXT, "--plan.hours=1", "--plan.domain=finance"], "plan.domain: no source or domain 'finance'; there are"),
        ([*TEXT, "--plan.hours=.nan"], "plan.hours: input should be"),
        ([*TEXT, "--plan.hours=1", "--plan.min_domain_share=1.5"], "plan.min_domain_share: input should be less"),
    ],
)
def test_a_budget_or_text_that_cannot_be_planned_is_refused_by_its_key(plan, overrides, message):
    with pytest.raises(RecipeError) as error:
        plan(*overrides)
    assert message in str(error.value), error.value


def test_documents_without_text_of_the_domain_are_refused(plan, tmp_path):
    documents = tmp_path / "run" / "documents"
    documents.mkdir(parents=True)
    kept = {"train": {"documents": 1, "bytes": 10**9}}
    (documents / "stats.json").write_text(json.dumps({"sources": {"web": {"kept": kept}}}))
    with pytest.raises(RecipeError, match="There is no text of 'legal', so there is nothing to train on"):
        plan("--plan.hours=1")


def test_bytes_per_token_are_of_each_part_weighted_by_its_bytes(plan, tmp_path):
    sources = [{"name": name, "path": name, "domain": domain} for name, domain in SOURCES.items()]
    report = {
        "bytes_per_token": {"domain tokenizer": {"law": 4.0, "code": 2.0, "web": 5.0}},
        "train_bytes": {"law": 4 * 10**9, "code": 10**9, "web": 7 * 10**9},
    }
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    (tmp_path / "run" / "tokenizer" / "report.json").write_text(json.dumps(report))
    options = [f"--data.sources={json.dumps(sources)}", "--plan.flops=1e18", "--plan.domain=legal"]
    text = plan(*TEXT, *options)["text"]
    assert text["domain_bytes_per_token"] == pytest.approx(5e9 / (1e9 + 0.5e9))
    assert text["general_bytes_per_token"] == pytest.approx(5.0)
    shares = text["domain_share"], 1 - text["domain_share"]
    assert text["bytes_per_token"] == pytest.approx(shares[0] * 5 / 1.5 + shares[1] * 5.0)
    assert (text["domain_bytes"], text["general_bytes"]) == pytest.approx((20e9, 19e9))


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        (["--plan.device=rtx-4090", "--plan.num_devices=1", "--plan.flops=1e24"], "the model fits no rtx-4090"),
        (["--plan.device=rtx-4090", "--plan.num_devices=1", "--plan.flops=3e20"], "fits"),
        (["--plan.flops=1e13"], "below what any of these laws was fitted on (1e17 and more): no loss is predicted"),
        (["--plan.flops=1e25"], "the text limits the run"),
    ],
)
def test_a_plan_outside_of_what_is_sensible_is_made_with_a_warning_and_no_nan(plan, overrides, warning):
    made = plan(*TEXT, *overrides)
    assert any(warning in line for line in made["warnings"]), made["warnings"]


def test_the_verdict_is_from_scratch_continued_pretraining_or_lora_as_budget_and_text_decide(plan):
    lots = ["--plan.domain_bytes=40e12", "--plan.general_bytes=40e12"]
    assert plan(*lots, "--plan.flops=1e25")["verdict"]["choice"] == "from scratch"
    continued = plan(*TEXT, "--plan.flops=2e21")["verdict"]
    assert continued["choice"] == "continued pretraining" and continued["budget_multiple_to_match"] > 1
    assert (
        plan("--plan.domain_bytes=1e12", "--plan.general_bytes=1e12", "--plan.flops=2e20")["verdict"]["choice"]
        == "LoRA"
    )


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (
            {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 352},
            ["--vocab_size=2048", "--sequence_length=512", "--batch_size=8"],
        ),
        pytest.param(
            {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 704, "tie_word_embeddings": True},
            ["--vocab_size=8192", "--sequence_length=256", "--batch_size=8", "--bf16"],
            marks=pytest.mark.long,
        ),
        (
            {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 1376},
            ["--vocab_size=8192", "--sequence_length=256", "--batch_size=4", "--optimizer=muon"],
        ),
        (
            {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 704},
            ["--vocab_size=8192", "--sequence_length=256", "--batch_size=16", "--average", "--teachers=3"],
        ),
    ],
)
def test_estimated_memory_is_within_a_tenth_of_what_steps_on_a_processor_take(shape, options):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is read from /proc, which this system does not have")
    # The C library gives back what is freed, instead of keeping it: else a process holds more than its tensors.
    environment = os.environ | {"PYTHONPATH": str(RECIPES), "MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"}
    script = ROOT / "tests" / "step_memory.py"
    command = [sys.executable, str(script), json.dumps(shape | {"num_hidden_layers": 3}), *options]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = json.loads(run.stdout)
    assert found["estimated_bytes"] == pytest.approx(found["measured_bytes"], rel=0.1), found["parts"]


def test_memory_falls_with_sharding_and_checkpointing_and_grows_with_the_batch():
    shape = Model(hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=16)

    def total(batch_size: int = 4, **options) -> float:
        return sum(memory_by_part(shape, 32_768, 2048, batch_size, **options).values())

    alone = total()
    # DDP's buckets are the gradients themselves.
    assert total(strategy="fsdp2.yaml", num_devices=8) < alone == total(strategy="ddp.yaml", num_devices=8)
    assert total(checkpointing=True) < alone < total(batch_size=8)
    assert total(muon=True) < alone
    for device in DEVICES.values():
        batch = largest_batch(device.memory_bytes, shape, 32_768, 2048)
        assert not batch or total(batch) <= 0.9 * device.memory_bytes < total(2 * batch)


def test_a_continued_model_is_not_planned(plan):
    base = ["--model.from_pretrained=some/model", "--training.learning_rate=1e-4", "--training.tokens_per_step=65536"]
    with pytest.raises(RecipeError, match="model.from_pretrained=some/model: its size is given"):
        plan(*base, "--training.max_tokens=1e9", "--plan.hours=1", *TEXT)


def test_this_machines_processor_is_one_device_and_is_measured(plan):
    made = plan("--plan.device=cpu", "--plan.hours=2", "--plan.domain_bytes=27e6", "--plan.general_bytes=33e6")
    assert made["budget"]["num_devices"] == 1 and "measured now" in made["budget"]["device_source"]
    per_hour = made["budget"]["flops_per_device_hour"]
    assert made["budget"]["model_flops"] == pytest.approx(2 * 0.7 * per_hour)
    assert 1e9 * 3600 * 0.4 < per_hour < 1e14 * 3600 * 0.4
    assert [one["accelerate_config"] for one in made["memory"]["strategies"]] == ["cpu.yaml"] * 2


def test_the_command_writes_the_plan_its_figures_and_an_overlay_that_loads(tmp_path, capsys):
    run = tmp_path / "run"
    plan_run.main(["--config", str(BASE), f"--run.output_dir={run}", *TEXT, "--plan.device_hours=800"])
    made = json.loads((run / "plan.json").read_text())
    planned = load_recipe([BASE, run / "plan" / "planned.yaml"], [f"--run.output_dir={run}"])
    assert planned.model.hidden_size == made["model"]["hidden_size"]
    assert planned.training.max_tokens == made["tokens"]
    assert planned.tokenizer.vocab_size == made["vocab_size"]
    assert planned.training.tokens_per_step == made["training"]["tokens_per_step"]
    figures = [run / "plan" / name for name in ("size.png", "tokens.png")]
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    shown = capsys.readouterr().out
    assert "verdict" in shown and "law chinchilla_3" in shown
    plan_run.main(["--config", str(BASE), f"--run.output_dir={run}", *TEXT, "--plan.device_hours=800"])
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "num_devices", "flops", "recomputes"),
    [("rtx-4090", 6, "1e21", False), ("rtx-4090", 6, "5e21", True), ("h100-sxm", 8, "1e21", False)],
)
def test_the_overlay_fits_the_devices_of_the_plan(tmp_path, device, num_devices, flops, recomputes):
    run = tmp_path / "run"
    plan = [f"--plan.device={device}", f"--plan.num_devices={num_devices}", f"--plan.flops={flops}"]
    text = ["--plan.domain_bytes=20e12", "--plan.general_bytes=19e12"]
    plan_run.main(["--config", str(BASE), f"--run.output_dir={run}", *text, *plan])
    chosen = json.loads((run / "plan.json").read_text())["memory"]["chosen"]
    assert chosen["activation_checkpointing"] == recomputes, "else this tests nothing"
    training = load_recipe([BASE, run / "plan" / "planned.yaml"], [f"--run.output_dir={run}"]).training
    assert training.gradient_checkpointing == recomputes
    assert training.per_device_train_batch_size == chosen["per_device_train_batch_size"]
    assert (
        training.tokens_per_step % (num_devices * training.per_device_train_batch_size * training.sequence_length) == 0
    )


@pytest.mark.parametrize("training", [None, {"parameters": {"total": 341_885_952}, "tokens_seen": 8e9}])
def test_names_in_the_charts_overlap_neither_each_other_nor_the_legend(plan, tmp_path, monkeypatch, training):
    drawn = []
    monkeypatch.setattr(charts, "save", lambda figure, path: drawn.append(figure.axes[0]))
    charts.draw_plan(plan(*TEXT, "--plan.device_hours=2000"), training, tmp_path)
    assert len(drawn) == 2
    for axes in drawn:
        axes.figure.draw_without_rendering()
        names = [text for text in axes.texts if text.get_text()]
        assert [name.get_text() for name in names] == [model.name for model in KNOWN_MODELS]
        boxes = [artist.get_window_extent() for artist in [*names, axes.get_legend()]]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(
    ("overrides", "utilisation", "interval", "named"),
    [
        ([], 0.4, [0.3, 0.5], "varlen attention"),
        (["--training.attn_implementation=sdpa"], 0.2, [0.15, 0.3], "sdpa attention"),
        (["--training.attn_implementation=flex_attention"], 0.3, [0.2, 0.4], "flex_attention attention"),
        (
            ["--training.attn_implementation=sdpa", "--training.document_masking=false"],
            0.4,
            [0.3, 0.5],
            "sdpa without document masking",
        ),
        (["--plan.device=mi300x"], 0.2, [0.15, 0.3], "sdpa attention"),
        (["--plan.device=cpu", "--training.attn_implementation=sdpa"], 0.4, [0.3, 0.5], "a processor"),
    ],
)
def test_the_stated_share_of_the_peak_is_that_of_the_attention_function(overrides, utilisation, interval, named):
    given = ["--plan.hours=24", "--plan.domain_bytes=1_000_000_000_000", "--plan.price_per_device_hour=2", *overrides]
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], given)
    assumptions = []
    budget = read_budget(recipe, DEVICES["h100-sxm"], assumptions)
    assert (budget["utilisation_fraction"], budget["utilisation_interval"]) == (utilisation, interval)
    assert len(assumptions) == 1 and f"for {named}; measure it" in assumptions[0]
    measured = load_recipe([RECIPES / "custom" / "base.yaml"], [*given, "--plan.utilisation_fraction=0.45"])
    assert read_budget(measured, DEVICES["h100-sxm"], assumptions)["utilisation_interval"] == [0.45, 0.45]
    assert len(assumptions) == 1
