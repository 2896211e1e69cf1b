# SPDX-License-Identifier: Apache-2.0
"""Send the revisions that wait in <run.output_dir>/revisions/, one at a time, after the checks of a release."""

from dataclasses import replace
from pathlib import Path

from huggingface_hub import get_token

from atomic_files import discard
from publishing.hub_transfer import Job, Limits, run_transfer
from publishing.release_checks import check_tensors
from publishing.release_files import seal, write_weights
from publishing.revision_queue import list_waiting, lock
from recipe_config import Recipe, RecipeError


TRIES = 2  # of a revision; the next save and the end of the run try again


def send_revisions(recipe: Recipe, wait: bool) -> tuple[list[str], str | None]:
    """Publish every waiting revision, the oldest first, until one fails.

    Args: wait: until another sending process ends; otherwise leave the queue to it.

    Returns: the names of the published revisions, and the error of the one that failed.
    """
    run, sent = Path(recipe.run.output_dir), []
    if not (run / "revisions").exists() or recipe.hub.repo_id is None:
        return sent, None
    with lock(run, wait) as is_free:
        while is_free and (waiting := list_waiting(run)):
            folder = waiting[0]
            if get_token() is None:
                return sent, "there is no Hub token: run `hf auth login`, or set HF_TOKEN"
            try:
                prepare(recipe, folder)
            except RecipeError as error:
                return sent, f"{folder.name}: {error}"
            job = Job(
                str(folder),
                recipe.hub.repo_id,
                record=str(run / "revisions.json"),
                key=folder.name,
                revision=folder.name,
                private=recipe.hub.private,
                message=f"Publish the weights of {folder.name}",
            )
            result = run_transfer("publish", [job], replace(Limits(), tries=TRIES))
            if "failed" in result:
                return sent, result["failed"]
            discard(folder)
            sent.append(folder.name)
    return sent, None


def prepare(recipe: Recipe, folder: Path) -> None:
    """Shard weights that are too large, and search for what must not be published, as for a release."""
    if not (folder / "manifest.json").exists():
        if (folder / "model.safetensors").exists():
            for leftover in folder.glob("model-*"):  # from a killed try
                leftover.unlink()
        write_weights(folder, folder, recipe.hub.max_shard_size)
        check_tensors(folder)
        seal(recipe, folder)
