# SPDX-License-Identifier: Apache-2.0
"""Stage 6: build the release of a run, check it, and publish it to the Hub if the recipe names a repository.

In:   <run.output_dir>/model/, the records of the stages before it, hub.* of the recipe. Without eval/ and figures/ the
      release has no results, and its card says so.
Out:  <run.output_dir>/release/: the model's files, README.md (the card), data_card.md without text of the sources, the
      records, and manifest.json with the bytes and sha256 of each. With hub.repo_id also that repository, in one
      tagged commit, and publish.json. If the recipe sets them, also release_tokenizer/ and release_dataset/ with
      repositories of their own, and the revisions that wait in revisions/.

    python recipes/push_to_hub.py --config recipes/legal/quickstart.yaml                   # uploads nothing
    python recipes/push_to_hub.py --config recipes/legal/quickstart.yaml --gguf f16,q8_0   # also for llama.cpp
    hf auth login
    python recipes/push_to_hub.py --config recipes/legal/quickstart.yaml --hub.repo_id=me/tiny-legal

Run it again after any failure: nothing is sent twice, and `main` of a repository never holds half a release. The token
comes from `hf auth login` or the environment variable HF_TOKEN, never from a recipe or an argument.
"""

import shlex
from pathlib import Path

from huggingface_hub import get_token

from publishing.extra_releases import build_dataset_release, build_tokenizer_release
from publishing.hub_transfer import run_transfer
from publishing.release_files import LISTS, build_release, describe_files, read_if_there
from publishing.repositories import list_jobs
from publishing.revision_queue import list_waiting
from publishing.revision_sending import send_revisions
from recipe_config import Recipe, RecipeError
from recipe_loading import parse_command_line, run_command, silence_transformers
from recovery.run_lock import run_lock
from run_folder import is_finished
from stages import output_folder


PARTS = ("model", "tokenizer", "dataset", "revisions")


def build(recipe: Recipe, parts: list[str], overwrite: bool = False) -> dict[str, Path]:
    """Build the folders that a recipe publishes, {part: folder}. (Training builds the revisions.)"""
    run, folders, notes = Path(recipe.run.output_dir), {}, []
    if "model" in parts:
        folders["model"] = folder = output_folder(recipe, "publish")
        if overwrite or not is_finished(recipe, "publish"):
            notes += build_release(recipe)
        if describe_files(folder) != read_if_there(folder / "manifest.json")["files"]:
            raise RecipeError(f"{folder} was changed after it was checked; run again with --overwrite")
    if "tokenizer" in parts and recipe.hub.tokenizer_repo_id:
        folders["tokenizer"] = run / "release_tokenizer"
        build_tokenizer_release(recipe)
    if "dataset" in parts and recipe.hub.dataset_repo_id:
        folders["dataset"] = run / "release_dataset"
        notes += build_dataset_release(recipe)
    for note in notes:
        print(f"publish: note: {note}")
    return folders


def upload(recipe: Recipe, parts: list[str], overwrite: bool = False) -> None:
    """Upload the folders to their repositories, read them back, and print the state of each.

    Raises: RecipeError: for any failure, with what to do. The folders are kept.
    """
    if get_token() is None:
        raise RecipeError("hub.repo_id is set, but there is no Hub token: run `hf auth login`, or set HF_TOKEN")
    jobs = [job for job in list_jobs(recipe, replace=overwrite) if job.key in parts]
    result = run_transfer("publish", jobs) if jobs else {"done": []}
    for done in result["done"]:
        where, state = f"commit {done['commit'][:12]}, {done['tag']}", "private" if done["private"] else "public"
        print(f"publish: {'' if done['is_new'] else 'nothing to do, '}{done['url']} ({state}) holds it as {where}")
    failed = result.get("failed")
    if "revisions" in parts and failed is None:
        sent, failed = send_revisions(recipe, wait=True)
        for name in sent:
            print(f"publish: {recipe.hub.repo_id}, revision {name}: sent")
    if failed:
        raise RecipeError(f"{failed}. The release folders are kept")


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(
        __doc__,
        argv,
        only=f"publish only this: {', '.join(PARTS[:-1])} or {PARTS[-1]}",
        gguf="as hub.gguf, types separated by commas: f16,q8_0",
    )
    if options.gguf:
        recipe.hub.gguf = options.gguf.split(",")
        if unknown := set(recipe.hub.gguf) - {"f16", "q8_0"}:
            raise RecipeError(f"--gguf {options.gguf}: {', '.join(sorted(unknown))} is not f16 or q8_0")
    silence_transformers()
    run = Path(recipe.run.output_dir)
    if options.only not in (None, *PARTS):
        raise RecipeError(f"--only {options.only}: not one of {', '.join(PARTS)}")
    parts = [options.only] if options.only else list(PARTS)
    if options.only == "revisions" and not options.dry_run:  # started by training, and runs beside it
        sent, failed = send_revisions(recipe, wait=False)
        print(f"publish: revisions sent: {', '.join(sent) or 'none'}")
        if failed:
            raise RecipeError(f"{failed}. The revisions in {run / 'revisions'} are kept")
        return
    with run_lock(run, "publish"):
        folders = build(recipe, parts, options.overwrite)
    for part, folder in folders.items():
        describe(part, folder, with_files=options.dry_run)
    repo_id = [] if recipe.hub.repo_id else [f"--hub.repo_id=YOUR_NAME/{run.absolute().name}"]
    command = ["python", "recipes/push_to_hub.py", "--config", *options.config, *options.overrides, *repo_id]
    command += ["--only", options.only] if options.only else []
    command += ["--gguf", options.gguf] if options.gguf else []
    if options.dry_run or recipe.hub.repo_id is None:
        if waiting := list_waiting(run):
            print(f"publish: waiting to be sent: {', '.join(folder.name for folder in waiting)}")
        print(f"publish: nothing was uploaded; to upload: {shlex.join(map(str, command))}")
        return
    try:
        upload(recipe, parts, options.overwrite)
    except RecipeError as error:
        raise RecipeError(f"{error}; to finish later: {shlex.join(map(str, command))}") from error


def describe(part: str, folder: Path, with_files: bool) -> None:
    """Print a line about a folder, and with_files the size of each file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LISTS[1])
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    if with_files:
        width = max(map(len, sizes))
        for name, size_bytes in sizes.items():
            print(f"  {name:<{width}}  {size_bytes:>15,} bytes")
    total = sum(sizes.values()) / 1e6
    print(f"publish: {part}: {folder} ({len(sizes)} files, {total:.1f} MB), card {folder / 'README.md'}")


if __name__ == "__main__":
    run_command(main)
