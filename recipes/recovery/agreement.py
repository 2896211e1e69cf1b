# SPDX-License-Identifier: Apache-2.0
"""What all processes share: decisions of the main one; and the check that recipe, data and versions are the same."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from atomic_files import read_record
from recipe_config import Recipe, RecipeError
from recovery.run_lock import run_lock
from run_folder import compare
from stages import STAGES, output_folder


T = TypeVar("T")


def from_main(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """Return what `decide` returns in the main process, on every process; a RecipeError it raises is raised on all."""
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


def on_all(accelerator: Accelerator, check: Callable[[], object]) -> None:
    """Call a function on every process; a RecipeError of one is raised on all, which wait for it."""
    found = None
    try:
        check()
    except RecipeError as error:
        found = error
    if accelerator.num_processes > 1:
        found = next((error for error in gather_object([found]) if error is not None), None)
    if found is not None:
        raise found


@contextmanager
def held_run(run: Path, accelerator: Accelerator) -> Iterator[str | None]:
    """Lock a run folder for all processes that train in it, as run_lock does for one."""
    with ExitStack() as stack:
        yield from_main(accelerator, lambda: stack.enter_context(run_lock(run, "pretrain")))


def refuse_differences(recipe: Recipe, accelerator: Accelerator) -> None:
    """Refuse processes that were started with different recipes, data or versions.

    Raises: RecipeError: on every process, naming the processes that differ from process 0 and the values.
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
    for process, facts_there in enumerate(all_facts[1:], start=1):
        if differing := compare(all_facts[0], facts_there, ""):
            listed = "; ".join(differing[:5]) + (f"; and {len(differing) - 5} more" if len(differing) > 5 else "")
            problems.append(f"process {process} differs from process 0: {listed}")
    if problems:
        raise RecipeError(*problems)
