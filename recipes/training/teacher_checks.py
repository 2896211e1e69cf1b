# SPDX-License-Identifier: Apache-2.0
"""Refusals of models to learn from: before any text is read, and before training, of those that have changed."""

from pathlib import Path

from transformers import AutoTokenizer

from atomic_files import RECORD, StaleStageError, read_record
from file_hashes import remembered_hashes
from model.base_checks import refuse_other_tensors, tensor_names
from model.teachers import load_teacher_config, load_tokenizer, rules_of
from recipe_config import Recipe
from run_folder import differences, find_damaged_files
from stages import memory_folder, output_folder


def check_teachers(recipe: Recipe) -> None:
    """Check the models of training.distillation.teachers before any text is read, from their small files.

    Where the tokenizer of the run is not known yet, theirs are compared with it when they are loaded.

    Raises: RecipeError: it says what is wrong, and what to do.
    """
    place, revision = recipe.tokenizer.from_pretrained or recipe.model.from_pretrained, recipe.model.revision
    rules = None
    if differences(recipe, "tokenizer") == []:
        rules = rules_of(AutoTokenizer.from_pretrained(output_folder(recipe, "tokenizer")), "the tokenizer")
    elif place and recipe.tokenizer.extend_by is None:
        taken = load_tokenizer(place, revision or recipe.tokenizer.revision, f"from_pretrained={place!r}")
        rules = rules_of(taken, f"from_pretrained={place!r}: its tokenizer")
    for folder in map(Path, recipe.training.distillation.teachers):
        refuse_damaged_teacher(recipe, folder)
        settings, config = load_teacher_config(recipe, folder, rules)
        refuse_other_tensors(settings, config, tensor_names(settings))


def refuse_changed_teachers(recipe: Recipe) -> None:
    """Refuse members that are not there or were trained by another recipe, and models that are damaged.

    Raises: StaleStageError: it names the difference, and what to do.
    """
    for number in range(recipe.training.distillation.members if recipe.training.distillation else 0):
        member = recipe.member(number)
        changed, folder = differences(member, "pretrain"), output_folder(member, "pretrain")
        if changed is None:
            raise StaleStageError(
                f"training.distillation.members: {folder}: no model there; run_recipe.py trains members, with the "
                "same --config"
            )
        if changed:
            raise StaleStageError(
                f"training.distillation.members: {folder} is out of date: {'; '.join(changed)}; run_recipe.py with "
                "the same --config and --overwrite trains it again"
            )
    for folder in recipe.teacher_folders():
        refuse_damaged_teacher(recipe, folder)


def refuse_damaged_teacher(recipe: Recipe, folder: Path) -> None:
    """Refuse a model that has a record, and files that are not as recorded. Raises: StaleStageError."""
    if read_record(folder) is None:
        return
    with remembered_hashes(memory_folder(recipe)) as sha256:
        damage = find_damaged_files(folder, sha256=sha256)
    if damage:
        raise StaleStageError(
            f"training.distillation={str(folder)!r} is damaged: {'; '.join(damage[:5])}. Restore it from a copy, or "
            f"train it again; or, if you changed it yourself, delete its {RECORD}"
        )
