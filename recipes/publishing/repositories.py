# SPDX-License-Identifier: Apache-2.0
"""List the repositories that a recipe publishes to, and check before training that it may publish to them."""

import shutil
from pathlib import Path

from huggingface_hub import constants

from planning.model_shape import count_parameters
from publishing.base_licence import check_licence
from publishing.hub_transfer import Job, Limits, run_transfer
from recipe_config import Recipe, RecipeError
from stages import output_folder


BYTES_PER_PARAMETER = 4  # weights are exported in fp32
CHECK_LIMITS = Limits(request_seconds=20.0, first_wait_seconds=0.5, tries=3, total_seconds=90.0)


def list_jobs(recipe: Recipe, replace: bool = False) -> list[Job]:
    """Return the jobs of a recipe, the model first. Revisions are separate jobs, in revision_sending.py."""
    hub, run = recipe.hub, Path(recipe.run.output_dir)
    if hub.repo_id is None:
        return []
    common = {"record": str(run / "publish.json"), "private": hub.private, "replace": replace}
    jobs = [Job(str(output_folder(recipe, "publish")), hub.repo_id, **common)]
    if hub.tokenizer_repo_id:
        folder = str(run / "release_tokenizer")
        message = "Publish the tokenizer"
        jobs.append(Job(folder, hub.tokenizer_repo_id, **common, key="tokenizer", message=message))
    if hub.dataset_repo_id:
        folder, message = str(run / "release_dataset"), "Publish the data card"
        kind = {"key": "dataset", "repo_type": "dataset", "message": message}
        jobs.append(Job(folder, hub.dataset_repo_id, **common, **kind))
    return jobs


def check_repositories(recipe: Recipe) -> str:
    """Check that the Hub accepts everything that a recipe publishes, and return a line that says so.

    An unreachable Hub does not stop training, since a cluster's node may have no network; the line says that instead.

    Raises: RecipeError: the token is missing, wrong or may not write; a repository holds someone else's files; or the
        disk has no room for the release; or its licence contradicts that of the base.
    """
    note = check_licence(recipe)
    refuse_full_disk(recipe)
    result = run_transfer("check", list_jobs(recipe), CHECK_LIMITS)
    if result.get("unreachable"):
        return f"publish: note: {result['failed']}; the release can be uploaded later, from a machine with a network"
    if "failed" in result:
        raise RecipeError(result["failed"])
    ready = ", ".join(done["repo_id"] for done in result["done"])
    may = f"publish: {result['done'][0]['user']} may publish to {ready} at {constants.ENDPOINT}"
    return f"publish: {note}\n{may}" if note else may


def refuse_full_disk(recipe: Recipe) -> None:
    """Refuse a disk without room for the model and its release. Raises: RecipeError."""
    if recipe.model.from_pretrained or (output_folder(recipe, "pretrain") / "config.json").exists():
        return  # the size of a continued model is not known here
    needed_bytes = 2 * BYTES_PER_PARAMETER * count_parameters(recipe.model, recipe.tokenizer.vocab_size)["total"]
    run = Path(recipe.run.output_dir)
    run.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(run).free
    if free_bytes < needed_bytes:
        raise RecipeError(
            f"run.output_dir={run}: the model and its release take {needed_bytes / 1e9:.1f} GB, "
            f"{free_bytes / 1e9:.1f} GB are free; make room there or set another folder"
        )
