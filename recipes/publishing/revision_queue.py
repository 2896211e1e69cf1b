# SPDX-License-Identifier: Apache-2.0
"""Weights of unfinished training, published as revisions such as step-0001000 without training waiting for it.

pretrain.py calls `queue_revision` after a save: it links the checkpoint's weights into <run.output_dir>/revisions/ and
starts, where none is running, a process that sends what waits there. Neither waits for the Hub nor raises. While the
Hub is down, revisions wait; the next save and the end of the run try again:

    python recipes/push_to_hub.py --config runs/mine/recipe.yaml --only revisions
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from huggingface_hub import get_token

from card_text import render_card
from hub_transfer import Job, Limits, run_transfer
from publishing.release_checks import check_tensors
from publishing.release_files import empty, seal, write_weights
from recipe_config import Recipe, RecipeError
from run_folder import discard


MAX_WAITING = 8  # revisions; each keeps a checkpoint's weights on the disk
TRIES = 2  # of a revision; the next save and the end of the run try again
FREE_COPIES = 3  # of the weights, that must fit on the disk for one more to be kept
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# What the launcher tells a process of the training; the sender is none, and takes no device.
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_")


def revision_name(step: int) -> str:
    return f"step-{step:07d}"


def queue_revision(recipe: Recipe, weights: Path, config: object, tokenizer: Path, state: dict) -> str | None:
    """Put weights among those that wait to be published, and make sure that something sends them.

    Args:
        recipe: of the run.
        weights: a checkpoint's safetensors file, which may be deleted after this.
        config: of the model, with `save_pretrained`.
        tokenizer: its folder.
        state: what the card says: step, max_steps, tokens_seen.

    Returns: None, or why it was not done, for a note; it raises nothing.
    """
    run, name = Path(recipe.run.output_dir), revision_name(state["step"])
    try:
        waiting, size = list_waiting(run), weights.stat().st_size
        if len(waiting) >= MAX_WAITING:
            return f"{name} is not published: {len(waiting)} revisions wait for the Hub already"
        if shutil.disk_usage(run).free < FREE_COPIES * size:
            return f"{name} is not published: the disk is too full to keep its weights until they are sent"
        partial = run / "revisions" / f".{name}.tmp"
        partial.mkdir(parents=True, exist_ok=True)
        empty(partial)
        try:
            os.link(weights, partial / "model.safetensors")
        except OSError:
            shutil.copyfile(weights, partial / "model.safetensors")
        config.save_pretrained(partial)
        for path in (tokenizer / file for file in TOKENIZER_FILES if (tokenizer / file).exists()):
            shutil.copyfile(path, partial / path.name)
        card = render_card(
            Path(__file__).with_name("revision_card.md"),
            {"license": recipe.hub.license, "language": recipe.hub.language, "library_name": "transformers"},
            recipe=recipe,
            state=state,
            revision=name,
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
        if (partial.parent / name).exists():  # of before a resume that went back
            discard(partial.parent / name)
        partial.rename(partial.parent / name)
        start_sending(run)
    except Exception as error:  # whatever it is, training is worth more
        return f"{name} is not published: {type(error).__name__}: {error}"
    return None


def list_waiting(run: Path) -> list[Path]:
    return sorted((run / "revisions").glob("step-*"))


def start_sending(run: Path) -> None:
    """Start a process that publishes what waits, unless one is running; it outlives this one and takes no device."""
    with lock(run, wait=False) as is_free:
        if not is_free:
            return
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)} | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    script, config = Path(__file__).resolve().parent.parent / "push_to_hub.py", run / "recipe.yaml"
    nice = ["nice", "-n", "19"] if shutil.which("nice") else []
    command = [*nice, sys.executable, str(script), "--config", str(config), "--only", "revisions"]
    with (run / "revisions" / "sending.log").open("ab") as log:
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def send_revisions(recipe: Recipe, wait: bool) -> tuple[list[str], str | None]:
    """Publish every revision that waits, the oldest first, until one fails.

    Args: wait: for another process that is sending; without, nothing is done beside it.

    Returns: the names of those that were published, and what went wrong with the one that was not.
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
    """Cut the weights where they are too large, and look for what must not get out, as for a release."""
    if not (folder / "manifest.json").exists():
        if (folder / "model.safetensors").exists():
            for leftover in folder.glob("model-*"):  # of a try that was killed
                leftover.unlink()
        write_weights(folder, folder, recipe.hub.max_shard_size)
        check_tensors(folder)
        seal(recipe, folder)


@contextmanager
def lock(run: Path, wait: bool) -> Iterator[bool]:
    """Hold the right to send a run's revisions, and say whether it was free; it ends with the process."""
    with (run / "revisions" / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def read_sent(run: Path) -> dict[str, dict]:
    """Return what is on the Hub, {revision: record}."""
    with suppress(FileNotFoundError):
        records = json.loads((run / "revisions.json").read_text(encoding="utf-8"))
        return {name: record for name, record in records.items() if "commit" in record}
    return {}
