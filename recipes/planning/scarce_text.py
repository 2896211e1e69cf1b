# SPDX-License-Identifier: Apache-2.0
"""What to do with a text that ends long before the budget: how often to read it, and by how many models.

A way is "equal to X times the text": the usual recipe, reading its text MANY_EPOCHS times, would need X times as much
text for the same loss. What reading once and four times is equal to follows from the law of repetition
(scaling_laws.py), which was fitted without tuned regularisation. The ranges of the other ways begin at what they gave
in the runs of experiments/scarce_text/, and end at what is published: Kim et al. 2025, "Pre-training under infinite
compute" (arXiv 2509.14786), of ensembles of models of 150M to 1.4B parameters on 200M tokens.
"""

from planning.available_text import Text
from planning.scaling_laws import REPETITION_LAW


MANY_EPOCHS, MEMBERS = 16, 4
FORWARD_FRACTION = 1 / 3  # of a training step's FLOPs: the forward pass of a teacher
# Way -> lowest and highest factor, and the keys of the recipe that set it.
REGULARISED = "training.weight_decay, training.dropout, training.average, data.repack"
WAYS = {
    "regularised": ((1.0, 1.0), REGULARISED),
    "ensemble": ((1.0, 5.17), "training.distillation.members, and all of them used at once"),
    "student": ((1.0, 5.17), "recipes/custom/scarce.yaml"),
}


def compare_ways(text: Text, flops_per_token: float, budget_flops: float) -> list[dict]:
    """Return the ways to train a model on all of a text, the cheapest first; none where reading it four times is
    beyond the budget.

    Args:
        text: the available text.
        flops_per_token: of the model's training.
        budget_flops: what the budget pays for.

    Returns: of each way its name, `readings` (in readings of the text by one model), `flops`, `equal_to` (lowest and
        highest factor), `keys` of the recipe that set it, and whether it is the one to `take`: of those that the
        budget pays for, the one with the highest factors.
    """
    reading = flops_per_token * text.most_tokens() / text.max_repetitions
    if 4 * reading > budget_flops:
        return []

    def after(epochs: float) -> float:
        return REPETITION_LAW.effective_tokens(epochs, 1)

    once, four = (round(after(epochs) / after(MANY_EPOCHS), 2) for epochs in (1, 4))
    student = MEMBERS * MANY_EPOCHS + MANY_EPOCHS * (1 + MEMBERS * FORWARD_FRACTION)
    costs = {"regularised": MANY_EPOCHS, "ensemble": MEMBERS * MANY_EPOCHS, "student": student}
    ways = [
        {"way": "once", "readings": 1, "equal_to": [once, once], "keys": "data.max_repetitions: 1"},
        {"way": "four times", "readings": 4, "equal_to": [four, four], "keys": "data.max_repetitions: 4"},
    ]
    ways += [
        {"way": name, "readings": costs[name], "equal_to": list(factor), "keys": keys}
        for name, (factor, keys) in WAYS.items()
    ]
    for way in ways:
        way["flops"] = way["readings"] * reading
    paid = [way for way in ways if way["flops"] <= budget_flops and way["way"] != "ensemble"]  # one model is wanted
    best = max(paid, key=lambda way: (sum(way["equal_to"]), -way["readings"]))
    return [way | {"take": way is best} for way in ways]
