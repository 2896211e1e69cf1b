# SPDX-License-Identifier: Apache-2.0
"""What to do with a text that ends long before the budget: how often to read it, by how many models.

Each way is "equal to X times the text": the usual recipe, which reads its text 16 times, would need X times as much
text for the same loss. Reading once or four times follows from the law of repetition (scaling_laws.py). The other
factors are of the runs in experiments/scarce_text/, with the lowest and the highest of the sizes tried.
"""

from dataclasses import dataclass

from planning.available_text import Text
from planning.scaling_laws import REPETITION_LAW


EPOCHS = 16  # of the usual recipe and of every way that reads the text often
MEMBERS = 4
FORWARD_FRACTION = 1 / 3  # of the FLOPs of a training step: a teacher's forward pass


@dataclass(frozen=True)
class Way:
    """A way to train on little text.

    Attributes:
        name: for the table.
        factor: lowest and highest factor that was measured.
        readings: of the text, in FLOPs of one reading of it by one model.
        keys: of the recipe that set it.
    """

    name: str
    factor: tuple[float, float]
    readings: float
    keys: str
