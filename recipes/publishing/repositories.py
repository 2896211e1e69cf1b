# SPDX-License-Identifier: Apache-2.0
"""Which repositories a recipe publishes to, from which folders; and whether it may, asked before training starts."""

from pathlib import Path

from hub_transfer import Job, Limits, run_transfer
from recipe_config import Recipe, RecipeError
from run_folder import output_folder


CHECK_LIMITS = Limits(request_seconds=20.0, first_wait_seconds=0.5, tries=3, total_seconds=90.0)


def list_jobs(recipe: Recipe, replace: bool = False) -> list[Job]:
    """Return what a recipe publishes, the model first; revisions are jobs of their own, see revision_queue.py."""
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
    """Ask the Hub whether all that a recipe publishes may be published, and say in a line that it may.

    A Hub that cannot be reached is no reason not to train: a node of a cluster may have no network.

    Raises: RecipeError: the token is missing, wrong or may not write; or a repository is not this run's to write to.
    """
    result = run_transfer("check", list_jobs(recipe), CHECK_LIMITS)
    if result.get("unreachable"):
        return f"publish: note: {result['failed']}; what is made can be uploaded later, from where there is a network"
    if "failed" in result:
        raise RecipeError(result["failed"])
    ready = ", ".join(done["repo_id"] for done in result["done"])
    return f"publish: {result['done'][0]['user']} may publish to {ready}"
