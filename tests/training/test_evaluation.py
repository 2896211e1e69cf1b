# SPDX-License-Identifier: Apache-2.0
"""Scoring tasks while training: the numbers of the evaluation at the end, in batches of one shape."""

import json

import pytest
import torch
from accelerate import Accelerator
from tiny_run import RECIPES
from transformers import AutoTokenizer

from benchmark_tasks import common_answers
from item_scores import score_items
from model.llama import build_model
from model.summed_loss import SummedLoss
from recipe_config import RecipeError
from recipe_loading import load_recipe
from request_scoring import RequestScorer, score_requests
from run_eval import main as run_eval
from shared_work import SharedWork
from training.benchmarks import load_benchmarks, score_benchmarks
from training.evaluation import continue_prompts


TASKS = ["legal_sense", "general_agreement"]
LONGER = ["--training.sequence_length=256", "--training.tokens_per_step=512"]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    run_eval(["--export_requests", str(folder), "--tasks", ",".join(TASKS)])
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenized_run):
    return AutoTokenizer.from_pretrained(tokenized_run.output_dir / "tokenizer")


@pytest.fixture(scope="module")
def model(tokenized_run, tokenizer) -> SummedLoss:
    torch.manual_seed(0)
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], tokenized_run.argv(*LONGER)[2:])
    return SummedLoss(build_model(recipe, len(tokenizer)), compiled=False)


def score(model, tasks, tokenizer) -> dict:
    return score_benchmarks(model, tasks, 4 * 256, tokenizer.eos_token_id, Accelerator(), stop=lambda: False)


@pytest.mark.parametrize("packed", [True, False])
def test_numbers_are_those_of_the_final_evaluation_of_the_same_items(model, tokenizer, benchmarks, packed):
    tasks = load_benchmarks(benchmarks, TASKS, 10**6, tokenizer, 256, packed)
    found = score(model, tasks, tokenizer)
    scorer = RequestScorer(model.language_model.eval(), tokenizer, context_length=256, batch_size=8, work=SharedWork())
    for name in TASKS:
        items = [json.loads(line) for line in (benchmarks / f"{name}.jsonl").read_text().splitlines()]
        rendered = [
            {"id": item["id"], "gold": item["gold"], "requests": [[item["context"], c] for c in item["choices"]]}
            for item in items
        ]
        scored, _ = score_requests(scorer, name, rendered, max_new_tokens=0, calibrated=None)
        right = [item["nats"].index(min(item["nats"])) == item["gold"] for item in scored]
        nats = sum(item["nats"][item["gold"]] for item in scored)
        bits = nats / torch.log(torch.tensor(2.0)).item() / sum(item["bytes"][item["gold"]] for item in scored)
        assert found[f"eval/{name}/num_items"] == len(items)
        assert found[f"eval/{name}/gold_bits_per_byte"] == pytest.approx(bits, rel=1e-5)
        assert found[f"eval/{name}/accuracy"] == pytest.approx(sum(right) / len(right), abs=1.5 / len(right))
        assert found[f"eval/{name}/chance"] == pytest.approx(1 / len(items[0]["choices"]))


def test_every_batch_has_one_shape_whatever_the_items(model, tokenizer, benchmarks):
    shapes = set()
    hook = model.register_forward_pre_hook(
        lambda _, unnamed, inputs: shapes.update((key, inputs[key].shape) for key in inputs if key != "by_token"),
        with_kwargs=True,
    )
    tasks = load_benchmarks(benchmarks, TASKS, 30, tokenizer, 256, packed=True)
    score(model, tasks, tokenizer)
    hook.remove()
    assert {key: shape for key, shape in shapes if key != "cumulative_lengths"} == dict.fromkeys(
        ("input_ids", "position_ids", "labels"), (4, 256)
    )
    # Short requests double the list of documents once; padding, of rows and of the last batch, does not.
    assert len(shapes) <= 3 + 2, shapes


def test_a_limit_spreads_over_the_items_and_packing_uses_fewer_rows(tokenizer, benchmarks):
    whole, few = (load_benchmarks(benchmarks, TASKS, limit, tokenizer, 256, True) for limit in (10**6, 12))
    assert len(few["legal_sense"].gold) == 12 < len(whole["legal_sense"].gold)
    alone = load_benchmarks(benchmarks, TASKS, 12, tokenizer, 256, False)["legal_sense"]
    assert len(alone.input_ids) == 48 > len(few["legal_sense"].input_ids)


def test_a_request_in_a_row_of_its_own_has_no_longer_row_than_it_needs(model, tokenizer, benchmarks):
    items = [{"id": "a", "context": "The court", "choices": [" denies the claim", " now"], "gold": 0}]
    (benchmarks / "short.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    task = load_benchmarks(benchmarks, ["short"], 10, tokenizer, 256, packed=False)["short"]
    used = (task.input_ids != tokenizer.eos_token_id).sum(1).max() + 1
    rows, length = task.input_ids.shape
    assert rows == 2 and length // 2 < used <= length <= 32
    longer = load_benchmarks(benchmarks, ["short", "legal_sense"], 10**6, tokenizer, 256, packed=False)
    assert len({each.input_ids.shape[1] for each in longer.values()}) == 1, "one shape for all"
    assert score(model, {"short": task}, tokenizer) == pytest.approx(
        score(model, {"short": longer["short"]}, tokenizer)
    )


def test_a_long_context_loses_its_beginning_and_an_item_with_a_longer_choice_is_left_out(tokenizer, tmp_path):
    items = [
        {"id": "a", "context": "The court denies the claim" * 40, "choices": [" of no tenant", " now"], "gold": 0},
        {"id": "b", "context": "The court", "choices": [" denies" * 200, " now"], "gold": 1},
    ]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    task = load_benchmarks(tmp_path, ["long"], 10, tokenizer, 32, True)["long"]
    assert len(task.gold) == 1
    assert task.input_ids.shape == (2, 32) and tokenizer.eos_token_id not in task.input_ids
    for row, choice in enumerate(items[0]["choices"]):
        assert tokenizer.decode(task.labels[row][task.labels[row] >= 0]) == choice


def test_a_continuation_without_other_choices_is_right_when_each_token_is_the_likeliest(model, tokenizer, tmp_path):
    (written,) = continue_prompts(model, tokenizer, ["The court"], 256, torch.device("cpu"))
    items = [{"id": "a", "context": "The court", "choices": [written], "gold": 0}]
    items += [{"id": "b", "context": "The court", "choices": [" zzz"], "gold": 0}]
    (tmp_path / "cloze.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    found = score(model, load_benchmarks(tmp_path, ["cloze"], 10, tokenizer, 256, True), tokenizer)
    assert found["eval/cloze/accuracy"] == 0.5 and found["eval/cloze/chance"] == 0


YES_NO, LETTERS = [" yes", " no"], [" A", " B", " C"]
# For each task the choices and the right one of its items, and the score to beat.
BASELINES = {
    "always_yes": ([(YES_NO, 0), (YES_NO, 0), (YES_NO, 0), (YES_NO, 1)], 0.75),
    "balanced": ([(YES_NO, 0), (YES_NO, 1)], 0.5),
    "own_choices": ([([" a cat", " a dog"], 0), ([" a ship", " a boat"], 0)], 0.5),
    "more_letters": ([(LETTERS, 1), (LETTERS[:2], 1), (LETTERS, 1)], 1.0),
    "other_order": ([(YES_NO, 0), (YES_NO[::-1], 0)], 0.5),
    "cloze": ([([" mat"], 0), ([" mat"], 0)], 0.0),
}


@pytest.mark.parametrize("task", BASELINES)
def test_a_task_is_held_against_guessing_and_the_best_constant_answer_as_at_the_end(model, tokenizer, tmp_path, task):
    pairs, expected = BASELINES[task]
    items = [{"id": str(n), "context": "The", "choices": own, "gold": gold} for n, (own, gold) in enumerate(pairs)]
    (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    found = score(model, load_benchmarks(tmp_path, [task], 10, tokenizer, 32, True), tokenizer)
    assert found[f"eval/{task}/baseline"] == pytest.approx(expected)
    if task != "cloze":
        rendered = [{"requests": [["The", choice] for choice in own]} for own, _ in pairs]
        sizes = {"nats": 1.0, "bytes": 1, "tokens": 1, "characters": 1}
        scored = [{"gold": gold} | {key: [size] * len(own) for key, size in sizes.items()} for own, gold in pairs]
        at_the_end = score_items(task, scored, ["acc"], 0, common_answers(rendered))["metrics"]["acc"]
        assert at_the_end["baseline"] == pytest.approx(expected)
        assert at_the_end["chance"] == pytest.approx(found[f"eval/{task}/chance"])


@pytest.mark.parametrize("line", ["", "{}", "[1]", '{"context": "a", "choices": [" b"], "gold": 3}', "{"])
def test_a_file_that_holds_no_items_is_refused_by_name(tokenizer, tmp_path, line):
    (tmp_path / "mine.jsonl").write_text(line)
    with pytest.raises(RecipeError, match="mine.jsonl does not hold items"):
        load_benchmarks(tmp_path, ["mine"], 10, tokenizer, 32, True)


def test_a_signal_interrupts_the_scoring(model, tokenizer, benchmarks):
    tasks = load_benchmarks(benchmarks, TASKS, 10, tokenizer, 256, True)
    assert score_benchmarks(model, tasks, 4 * 256, tokenizer.eos_token_id, Accelerator(), stop=lambda: True) is None
