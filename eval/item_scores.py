# SPDX-License-Identifier: Apache-2.0
"""Turn scored items into a task's scores, with 95 % intervals, chance levels and probability margins.

A scored item: {"id", "gold", "nats", "bytes", "tokens" and "characters" (of each choice), "greedy" (whether the model
would write the first choice), "uncalibrated" (nats after a context without content), "prediction" and "target" (texts,
kind `answer`), "tag"}.
"""

from collections.abc import Callable

import numpy as np

from metrics.entity_f1.entity_f1 import count_entities
from metrics.numeric_match.numeric_match import numbers_match


RESAMPLES = 1000  # of the bootstrap
GUESSES = 200  # simulated for a metric whose chance level has no formula

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


def mean_of(values: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda draw: float(values[draw].mean())


def accuracy(rule: str) -> Callable:
    def metric(items: Scored, chosen: np.ndarray | None = None) -> Callable:
        chosen = predictions(items, rule) if chosen is None else chosen
        gold = np.array([item["gold"] for item in items])
        return mean_of((chosen == gold).astype(float))

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

    def score(draw: np.ndarray) -> float:
        true, _, right = class_counts(gold[draw], chosen[draw])
        return float((right[true > 0] / true[true > 0]).mean())

    return score


def answer_metric(per_item: Callable[[str, str], float]) -> Callable:
    def metric(items: Scored, chosen: np.ndarray | None = None) -> Callable:
        return mean_of(np.array([per_item(item["prediction"], item["target"]) for item in items], float))

    return metric


def entity_f1(items: Scored, chosen: np.ndarray | None = None) -> Callable:
    counts = np.array([count_entities(item["prediction"], item["target"]) for item in items], float)

    def score(draw: np.ndarray) -> float:
        right, predicted, true = counts[draw].sum(0)
        return float(2 * right / max(1, predicted + true))

    return score


def rouge_l(items: Scored, chosen: np.ndarray | None = None) -> Callable:
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
    "greedy": lambda items, chosen=None: mean_of(np.array([float(item["greedy"]) for item in items])),
    "exact_match": answer_metric(lambda prediction, target: float(normalised(prediction) == normalised(target))),
    "numeric_match": answer_metric(lambda prediction, target: float(numbers_match(prediction, target))),
    "entity_f1": entity_f1,
    "rouge_l": rouge_l,
}
CHOICE_METRICS = [name for name in METRICS if name.startswith(("acc", "f1", "balanced"))]


def draws(size: int, seed: int) -> np.ndarray:
    """Return the bootstrap's resamples, (RESAMPLES, size), the same for every model and metric."""
    return np.random.default_rng(seed).integers(size, size=(RESAMPLES, size))


def measured(score: Callable[[np.ndarray], float], size: int, seed: int) -> tuple[dict, np.ndarray]:
    """Return {"value", "stderr", "interval"} by the bootstrap over items, and the resampled scores."""
    value = score(np.arange(size))
    resampled = np.array([score(draw) for draw in draws(size, seed)])
    low, high = (float(bound) for bound in np.percentile(resampled, [2.5, 97.5]))
    spread = float(resampled.std(ddof=1))
    return {"value": float(value), "stderr": spread, "interval": [low, high]}, resampled


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
    return mean_of(np.array(values))


def score_items(items: Scored, metrics: list[str], seed: int) -> tuple[dict, dict[str, np.ndarray]]:
    """Score items by some metrics.

    Returns: {"num_items", "chance" (of the first metric), "metrics": {name: {"value", "stderr", "interval",
        "chance"}}, "gold_bits_per_byte", "probability_margin"}, the last two None without likelihoods or choices; and
        the bootstrap scores of each metric.
    """
    size, resampled = len(items), {}
    entry = {"num_items": size, "chance": chance_level(metrics[0], items, seed), "metrics": {}}
    for name in metrics:
        entry["metrics"][name], resampled[name] = measured(METRICS[name](items), size, seed)
        entry["metrics"][name]["chance"] = chance_level(name, items, seed)
    has_likelihood = all(item.get("nats") for item in items)
    has_choice = has_likelihood and all(len(item["nats"]) > 1 for item in items)
    entry["gold_bits_per_byte"] = measured(gold_bits(items), size, seed)[0] if has_likelihood else None
    entry["probability_margin"] = measured(margins(items), size, seed)[0] if has_choice else None
    return entry, resampled
