# SPDX-License-Identifier: Apache-2.0
"""The training text of a run: what each step reads, in which order, and the settings that fit it."""

import os
from collections.abc import Iterator
from itertools import count

from accelerate import Accelerator
from torch import Tensor

from mixture.batches import MicroBatches, read_batches
from mixture.order import TokenMixture
from mixture.phases import make_mixture
from mixture.skips import in_rollback, is_skipped
from recipe_config import Recipe
from recovery.agreement import on_all
from training.inputs import check_inputs, read_inputs
from training.schedule import accumulation_steps
from training.teacher_checks import refuse_changed_teachers


class TrainingText:
    """The training text of a run, as one of its processes reads it.

    Attributes:
        training: the settings to train with, which may be shorter than the recipe's; `notes` say where.
        shares: of the sources in the first phase.
        byte_lengths: UTF-8 bytes of each token, int64 of shape (vocab_size,).
        micro_steps: of a step.

    Raises: RecipeError: a stage before is missing or damaged, or the text does not allow the run.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator):
        self.accelerator, self.seed = accelerator, recipe.run.seed
        # The processes of a machine share the checking of files.
        part = (accelerator.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        refuse_changed_teachers(recipe)
        on_all(accelerator, lambda: check_inputs(recipe, part))  # before any reads what another has to check
        inputs = read_inputs(recipe, accelerator.num_processes)
        self.tokenizer, self.tokenizer_folder = inputs.tokenizer, inputs.tokenizer_folder
        self.shards, self.byte_lengths = inputs.shards, inputs.byte_lengths
        self.training, self.shares, self.notes = inputs.training, inputs.shares, inputs.notes
        self.skipped_documents = inputs.skipped_documents
        self.sequences_per_step = self.training.tokens_per_step // self.training.sequence_length
        self.micro_steps = accumulation_steps(self.training, accelerator.num_processes)

    def mix(self, state: dict) -> TokenMixture:
        """Return the sequences of all sources in the order in which the phases of a state read them."""
        return make_mixture(self.shards, state["phases"], self.sequences_per_step, self.seed)

    def read(self, mixture: TokenMixture, state: dict) -> Iterator[dict[str, Tensor]]:
        """Yield the micro-batches of this process after the step of a state."""
        dataset = MicroBatches(
            mixture,
            self.skipped_documents,
            self.byte_lengths,
            self.training.per_device_train_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.training.goldfish,
        )
        steps = (step for step in count(state["step"] + 1) if not leaves_out(state, step))
        return read_batches(dataset, steps, self.micro_steps, self.accelerator.device.type == "cpu")


def leaves_out(state: dict, step: int) -> bool:
    """Return whether data.skip or a rollback leaves a step out."""
    return is_skipped(state["skips"], step) or in_rollback(state["rollbacks"], step)
