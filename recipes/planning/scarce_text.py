# SPDX-License-Identifier: Apache-2.0
"""What to do with a text that ends long before the budget: how often to read it, and by how many models.

A way is "equal to X times the text": the usual recipe at its best number of epochs, about USUAL_EPOCHS, would need X
times as much text for the same loss. The factors are the lowest and highest on the test text of two experiments,
scarce_law and scarce_medicine (0.53 million parameters), beside the usual recipe with the epochs that are best on
validation text: of one model with the decay of rule_regularisation, on 0.25 to 2 MB; of an ensemble and a student, on
1 MB with three members. scarce_text was scored on test text with one amount of text, which gives no factor.
Where a law or a larger experiment says otherwise, the range has both ends: of four epochs by the law of repetition,
which was fitted without tuned regularisation and alone says what one epoch is worth; of an ensemble by Kim et al.
2025, "Pre-training under infinite compute" (arXiv 2509.14786), the limit for many large models on 200 million tokens.
"""

from planning.available_text import Text
from planning.scaling_laws import REPETITION_LAW


USUAL_EPOCHS, MANY_EPOCHS, MEMBERS = 8, 30, 4
FORWARD_FRACTION = 1 / 3  # of a training step's FLOPs: the forward pass of a teacher
MEASURED_FOUR_EPOCHS = 1.0  # highest: on 1 MB of law, where 4 are as good as 8
MEASURED_ON = (
    "test text, 0.53 million parameters, 1 MB of law and of medicine, three members; one model also 0.25 and 2 MB of "
    "law; once, the lower end of four times and the upper end of the ensemble by laws of larger models"
)
# Way -> lowest and highest factor, and the keys of the recipe that set it.
WAYS = {
    "many times": ((1.1, 1.5), "recipes/custom/scarce.yaml with training.distillation: null"),
    "ensemble": ((1.7, 5.2), "its members, all of them used at once"),
    "student": ((1.5, 1.6), "recipes/custom/scarce.yaml"),
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

    def by_law(epochs: float) -> float:
        return round(REPETITION_LAW.effective_tokens(epochs, 1) / REPETITION_LAW.effective_tokens(USUAL_EPOCHS, 1), 2)

    student = MEMBERS * MANY_EPOCHS + MANY_EPOCHS * (1 + MEMBERS * FORWARD_FRACTION)
    costs = {"many times": MANY_EPOCHS, "ensemble": MEMBERS * MANY_EPOCHS, "student": student}
    four = [by_law(4), MEASURED_FOUR_EPOCHS]
    ways = [
        {"way": "once", "readings": 1, "equal_to": [by_law(1)] * 2, "keys": "data.max_repetitions: 1"},
        {"way": "four times", "readings": 4, "equal_to": four, "keys": "data.max_repetitions: 4"},
        {"way": "usual", "readings": USUAL_EPOCHS, "equal_to": [1, 1], "keys": "data.max_repetitions: 8"},
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
