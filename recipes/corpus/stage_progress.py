# SPDX-License-Identifier: Apache-2.0
"""How far a stage of several steps is, and about how long the rest of it takes.

Each step has a weight, its seconds for a megabyte of text where they were measured. Only their ratios count: how long
a weight takes here follows from what has been done in this run.
"""

import time

from recipe_config import Data


MIN_SECONDS = 5.0  # of work before a time is stated
MIN_FRACTION = 0.02  # of a step that is done before its own rate counts
# Seconds of a core for a megabyte of text (tests/benchmarks/README.md).
WEIGHTS = {
    "read": 0.03,
    "quality": 0.07,
    "languages": 0.035,
    "personal_data": 0.06,
    "exact duplicates": 0.0003,
    "signatures": 0.11,
    "signatures of earlier documents": 0.0,  # by the size of another corpus
    "near-duplicates": 0.001,
    "clusters": 0.0003,
    "passages": 0.1,
    "repeated passages": 0.001,
    "cut": 0.1,
    "cut_exact duplicates": 0.0003,
    "keep": 0.01,
    "decontamination": 0.05,
    "families": 0.15,
    "quality model": 0.001,
    "quality scores": 0.03,
    "split": 0.01,
}
RULES = ("quality", "languages", "personal_data")  # parts of the step `read`
OF_ONE_PROCESS = ("exact duplicates", "clusters", "repeated passages", "cut_exact duplicates", "families")


class StageProgress:
    """The steps of a stage, in their order.

    Args: weights: step -> its weight.
    """

    def __init__(self, weights: dict[str, float]):
        self.weights, self.steps = weights, list(weights)
        self.step, self.part, self.fraction, self.first_fraction, self.began_at = None, (0.0, 1.0), 0.0, None, 0.0
        self.weight_done, self.seconds = 0.0, 0.0  # of the steps before this one, in this run

    def begin(self, step: str, part: tuple[float, float] = (0.0, 1.0)) -> None:
        """Begin a step, or another part of the one that runs, from one fraction to another.

        Another step begins when the one before it is finished.
        """
        self.part = part
        if step == self.step:
            return
        if self.step is not None:
            self.first_fraction = self.first_fraction or 0.0
            self.weight_done += (1 - self.first_fraction) * self.weights[self.step]
            self.seconds += time.monotonic() - self.began_at
        self.step, self.fraction, self.first_fraction, self.began_at = step, 0.0, None, time.monotonic()

    def move_to(self, fraction: float) -> None:
        """Note how much of the part is done; what the first call of a step states, an earlier run has done."""
        first, last = self.part
        self.fraction = first + fraction * (last - first)
        if self.first_fraction is None:
            self.first_fraction = self.fraction

    def seconds_left(self) -> float | None:
        """Return about how many seconds this and the later steps take; None if too little is done to say."""
        here = time.monotonic() - self.began_at
        done = self.fraction - (self.first_fraction or 0.0)
        weight, seconds = self.weight_done + done * self.weights[self.step], self.seconds + here
        if not weight or seconds < MIN_SECONDS:
            return None
        own = here / done if done >= MIN_FRACTION else self.weights[self.step] * seconds / weight
        later = sum(self.weights[step] for step in self.steps[self.steps.index(self.step) + 1 :])
        return own * (1 - self.fraction) + later * seconds / weight

    def describe(self) -> str:
        """Return the number of the step and the time left in all, for a bar or a line."""
        number = f"step {self.steps.index(self.step) + 1} of {len(self.steps)}"
        left = self.seconds_left()
        return number if left is None else f"{number}, about {describe_seconds(left)} left in all"


def describe_seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 100 * 60 else f"{seconds / 3600:.1f} hours"


def weigh_steps(data: Data, workers: int, is_decontaminated: bool) -> dict[str, float]:
    """Return the steps of prepare that run with these settings, in their order, with the weight of each."""
    weights = WEIGHTS | {"read": WEIGHTS["read"] + sum(WEIGHTS[rule] for rule in RULES if getattr(data, rule))}
    weights["keep"] += WEIGHTS["decontamination"] * is_decontaminated
    steps = ["read", "exact duplicates"]
    if data.near_duplicates is not None:
        steps += ["signatures", "near-duplicates", "clusters"]
        if data.near_duplicates.against:
            steps.insert(3, "signatures of earlier documents")
    if data.repeated_passages is not None:
        steps += ["passages", "repeated passages", "cut", "cut_exact duplicates"]
    steps.append("keep")
    if data.family_containment is not None:
        steps.append("families")
    if data.quality_model is not None:
        steps += ["quality model", "quality scores"]
    steps.append("split")
    return {step: weights[step] * (workers if step in OF_ONE_PROCESS else 1) for step in steps}
