# SPDX-License-Identifier: Apache-2.0
"""What all processes of a run agree on: a decision of the main process, and the recipe and data they were given."""

from collections.abc import Callable
from importlib.metadata import version
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from atomic_files import read_record
from recipe_config import Recipe, RecipeError
from run_folder import compare
from stages import STAGES, output_folder


T = TypeVar("T")


def from_main(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Have the main process decide, and tell the others; all raise the RecipeError that it raises."""
    outcome: list = [None]
    if accelerator.is_main_process:
        try:
            outcome = [decide()]
        except RecipeError as error:
            outcome = [error]
    decided = broadcast_object_list(outcome)[0]
    if isinstance(decided, RecipeError):
        raise decided
    return decided


def refuse_differences(recipe: Recipe, accelerator: Accelerator) -> None:
    """Make sure that all processes were given the same recipe, data and versions.

    Raises: RecipeError: on every process, naming those that differ from process 0, and in what.
    """
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        "inputs": {
            name: (read_record(output_folder(recipe, name)) or {}).get("sha256") for name in STAGES["pretrain"].inputs
        },
        "versions": {package: version(package) for package in ("torch", "transformers", "accelerate")},
    }
    all_facts = gather_object([facts])
    problems = []
    for process, others in enumerate(all_facts[1:], start=1):
        if found := compare(all_facts[0], others, ""):
            shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
            problems.append(f"process {process} was given something else than process 0: {shown}")
    if problems:
        raise RecipeError(*problems)
