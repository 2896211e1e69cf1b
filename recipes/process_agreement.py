# SPDX-License-Identifier: Apache-2.0
"""What all processes of a run have to agree on before they train together."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from recipe_config import Recipe, RecipeError
from run_folder import STAGES, compare, output_folder, read_record
from run_lock import run_lock


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


@contextmanager
def held_run(run: Path, accelerator: Accelerator) -> Iterator[str | None]:
    """Hold a run folder for all processes; see run_lock."""
    with ExitStack() as stack:
        yield from_main(accelerator, lambda: stack.enter_context(run_lock(run)))


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
