# SPDX-License-Identifier: Apache-2.0
"""Turn scored items into a task's scores, with 95 % intervals and the scores of guessing and of a constant answer.

A scored item: {"id", "gold", "nats", "bytes", "tokens" and "characters" (of each choice), "greedy" (whether the model
would write the first choice), "uncalibrated" (nats after a context without content), "prediction" and "target" (texts,
kind `answer`), "tag"}.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np

from intervals import Mean, MeanRecall, measured
from metrics.entity_f1.entity_f1 import count_entities
from metrics.legalbench.legalbench import cites, count_names, is_near, names_term
from metrics.numeric_match.numeric_match import numbers_match
from metrics.tatqa.tatqa import tatqa_scores


GUESSES = 200  # simulated for a metric whose chance level has no formula
CONSTANT_ANSWERS = 10  # the most frequent written answers, each tried as the only answer

Scored = list[dict]


def predictions(items: Scored, rule: str) -> np.ndarray:
    """Return the chosen index of each item, by likelihood: plain, per character, per token or over a prior."""
    divided = {
        "plain": lambda item, nats: nats,
        "per_character": lambda item, nats: nats / np.maximum(1, item["characters"]),
        "per_token": lambda item, nats: nats / np.maximum(1, item["tokens"]),
        "calibrated": lambda item, nats: nats - np.array(item["uncalibrated"]),
    }[rule]
    return np.array([int(np.argmin(divided(item, np.array(item["nats"])))) for item in items])


def accuracy(rule: str) -> Callable:
    def metric(items: Scored, chosen: np.ndarray | None = None) -> Callable:
        chosen = predictions(items, rule) if chosen is None else chosen
        gold = np.array([item["gold"] for item in items])
        return Mean((chosen == gold).astype(float))

    return metric


def class_counts(gold: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each class, the items of it, the items predicted as it, and the items that are both."""
    size = int(max(gold.max(), chosen.max())) + 1
    right = np.bincount(gold[gold == chosen], minlength=size)
    return np.bincount(gold, minlength=size), np.bincount(chosen, minlength=size), right


def weighted_f1(rule: str) -> Callable:
    """F1 of each class, weighted by its number of items, as scikit-learn's average="weighted".

    Items with tags, as in Headline, are scored for each tag, and the tags' scores are averaged.
    """

    def of_draw(gold: np.ndarray, chosen: np.ndarray) -> float:
        true, taken, right = class_counts(gold, chosen)
        f1 = 2 * right / np.maximum(1, true + taken)
        return float((f1 * true).sum() / true.sum())

    def metric(items: Scored, chosen: np.ndarray | None = None) -> Callable:
        chosen = predictions(items, rule) if chosen is None else chosen
        gold = np.array([item["gold"] for item in items])
        tags = np.unique([str(item.get("tag")) for item in items], return_inverse=True)[1]

        def score(draw: np.ndarray) -> float:
            parts = [draw[tags[draw] == tag] for tag in np.unique(tags[draw])]
            return float(np.mean([of_draw(gold[part], chosen[part]) for part in parts]))

        return score

    return metric


def balanced_accuracy(items: Scored, chosen: np.ndarray | None = None) -> Callable:
    """Mean recall over the classes, LegalBench's metric."""
    chosen = predictions(items, "plain") if chosen is None else chosen
    gold = np.array([item["gold"] for item in items])
    return MeanRecall(gold, chosen == gold)


def answer_metric(per_item: Callable[[str, str], float]) -> Callable:
    def metric(items: Scored, chosen: np.ndarray | None = None) -> Callable:
        return Mean(np.array([per_item(item["prediction"], item["target"]) for item in items], float))

    return metric


def counted_f1(count: Callable[[str, str], tuple[int, int, int]]) -> Callable:
    """F1 of what answers list, counted over all items: the right, the predicted and the reference entries."""

    def metric(items: Scored, chosen: np.ndarray | None = None) -> Callable:
        counts = np.array([count(item["prediction"], item["target"]) for item in items], float)

        def score(draw: np.ndarray) -> float:
            right, predicted, true = counts[draw].sum(0)
            return float(2 * right / max(1, predicted + true))

        return score

    return metric


def rouge_l_f1(items: Scored, chosen: np.ndarray | None = None) -> Callable:
    """Mean over the items of ROUGE-L's F-measure, with stemming."""
    from rouge_score.rouge_scorer import RougeScorer  # evaluate.load("rouge") needs the Hub

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return answer_metric(lambda prediction, target: scorer.score(target, prediction)["rougeL"].fmeasure)(items)


def normalised(text: str) -> str:
    return " ".join(text.lower().strip().rstrip(".").split())


METRICS: dict[str, Callable] = {
    "acc": accuracy("plain"),
    "acc_norm": accuracy("per_character"),
    "acc_per_token": accuracy("per_token"),
    "acc_calibrated": accuracy("calibrated"),
    "f1": weighted_f1("plain"),
    "f1_per_token": weighted_f1("per_token"),
    "f1_calibrated": weighted_f1("calibrated"),
    "balanced_acc": balanced_accuracy,
    "greedy": lambda items, chosen=None: Mean(np.array([float(item["greedy"]) for item in items])),
    "exact_match": answer_metric(lambda prediction, target: float(normalised(prediction) == normalised(target))),
    "numeric_match": answer_metric(numbers_match),
    "entity_f1": counted_f1(count_entities),
    "rouge_l_f1": rouge_l_f1,
    "citation_match": answer_metric(cites),
    "term_match": answer_metric(names_term),
    "within_10_percent": answer_metric(is_near),
    "names_f1": counted_f1(count_names),
    "tatqa_em": answer_metric(lambda prediction, target: tatqa_scores(prediction, target)[0]),
    "tatqa_f1": answer_metric(lambda prediction, target: tatqa_scores(prediction, target)[1]),
}
CHOICE_METRICS = [name for name in METRICS if name.startswith(("acc", "f1", "balanced"))]


def chance_level(name: str, items: Scored, seed: int) -> float | None:
    """Return the score of guessing: from the number of choices, by simulation for F1, None for written answers."""
    if name not in CHOICE_METRICS:
        return None
    sizes = np.array([len(item["nats"]) for item in items])
    if name.startswith("acc"):
        return float((1 / sizes).mean())
    generator, every = np.random.default_rng(seed), np.arange(len(items))
    guesses = (generator.integers(sizes) for _ in range(GUESSES))
    return float(np.mean([METRICS[name](items, chosen=guess)(every) for guess in guesses]))


def best_constant(name: str, items: Scored, answers: list[str | None]) -> tuple[float | None, str | None]:
    """Return the best score of a model that gives every item the same answer, and that answer.

    Args:
        name: of the metric.
        items: scored items.
        answers: from `common_answers`, the answers that every item has as its first choice, its second and so on.

    Returns: (None, None) if no answer is a choice of every item, as with choices in full text, and for a cloze.
    """
    every, scores = np.arange(len(items)), {}
    if name in CHOICE_METRICS:
        for index, answer in enumerate(answers):
            if answer is not None:
                scores[answer] = METRICS[name](items, chosen=np.full(len(items), index))(every)
    elif all("target" in item for item in items):
        for answer, _ in Counter(item["target"] for item in items).most_common(CONSTANT_ANSWERS):
            scores[answer] = METRICS[name]([item | {"prediction": answer} for item in items])(every)
    best = max(scores, key=scores.get, default=None)
    return scores.get(best), best


def gold_bits(items: Scored) -> Callable:
    """Bits per byte of all right continuations together, which improves long before accuracy does."""
    nats = np.array([item["nats"][item["gold"]] for item in items])
    sizes = np.array([item["bytes"][item["gold"]] for item in items])
    return lambda draw: float(nats[draw].sum() / np.log(2) / sizes[draw].sum())


def margins(items: Scored) -> Callable:
    """Probability of the right choice among the choices, minus that of the best wrong one: -1 to 1."""
    values = []
    for item in items:
        shares = np.exp(min(item["nats"]) - np.array(item["nats"]))
        shares /= shares.sum()
        values.append(shares[item["gold"]] - np.delete(shares, item["gold"]).max())
    return Mean(np.array(values))


def score_items(name: str, items: Scored, metrics: list[str], seed: int, answers: list[str | None]) -> dict:
    """Score a task's items by some metrics.

    Args:
        name: of the task, which has its own bootstrap draws.
        items: scored items.
        metrics: names in METRICS.
        seed: of the bootstrap and of simulated guessing.
        answers: from `common_answers`.

    Returns: {"num_items", "chance" (of the first metric), "metrics", "gold_bits_per_byte", "probability_margin"}, the
        last two None without likelihoods or choices. metrics: {name: {"value", "stderr", "interval", "chance",
        "constant" and "constant_answer" (from `best_constant`), "baseline" (the higher of chance and constant)}}.
    """
    size, entry = len(items), {"num_items": len(items), "chance": None, "metrics": {}}
    for metric in metrics:
        chance = chance_level(metric, items, seed)
        constant, answer = best_constant(metric, items, answers)
        entry["metrics"][metric] = measured(METRICS[metric](items), name, size, seed) | {
            "chance": chance,
            "constant": constant,
            "constant_answer": answer,
            "baseline": max((level for level in (chance, constant) if level is not None), default=None),
        }
    entry["chance"] = entry["metrics"][metrics[0]]["chance"]
    has_likelihood = all(item.get("nats") for item in items)
    has_choice = has_likelihood and all(len(item["nats"]) > 1 for item in items)
    entry["gold_bits_per_byte"] = measured(gold_bits(items), name, size, seed) if has_likelihood else None
    entry["probability_margin"] = measured(margins(items), name, size, seed) if has_choice else None
    return entry
