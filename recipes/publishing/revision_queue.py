# SPDX-License-Identifier: Apache-2.0
"""Queue weights of unfinished training for publication as revisions such as step-0001000; training does not wait.

pretrain.py calls `queue_revision` after a save. It links the checkpoint's weights into <run.output_dir>/revisions/
and, if none is running, starts a process that sends the queue (revision_sending.py). It neither waits for the Hub nor
raises. run_recipe.py ends that process with the training, and its stage publish sends what is left. While the Hub is
down, revisions wait; the next save and the end of the run try again:

    python recipes/push_to_hub.py --config runs/mine/recipe.yaml --only revisions
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout
from safetensors.torch import save_file

from atomic_files import discard
from card_text import render_card
from recipe_config import Recipe
from recovery.run_lock import NO_LOCKS, lock_file
from recovery.stored_tensors import load_state, load_tensors
from stages import output_folder


MAX_WAITING = 8  # revisions; each keeps a checkpoint's weights on the disk
FREE_COPIES = 3  # of the weights must fit on the disk before one more is queued
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
HELD_LOCK = "REVISIONS_LOCK_IS_HELD"  # environment variable for the sender
# Set by the launcher for the processes of the training. The sender is not one of them and uses no device.
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_")


def queue_revision(recipe: Recipe, checkpoint: Path, config: object) -> str | None:
    """Queue a checkpoint's weights for publication, if the recipe publishes revisions and the step is one of them.

    Args:
        recipe: of the run.
        checkpoint: its folder, which may be deleted afterwards.
        config: the model's, with `save_pretrained`.

    Returns: None, or a note on why it failed; it never raises.
    """
    hub, run = recipe.hub, Path(recipe.run.output_dir)
    try:
        state = load_state(checkpoint)
        if hub.repo_id is None or hub.revision_steps is None or state["step"] % hub.revision_steps:
            return None
        name = f"step-{state['step']:07d}"
        if recipe.model.lora is not None:
            return f"{name} is not published: a checkpoint holds the adapters alone, which are merged at the end"
        size = sum(path.stat().st_size for path in checkpoint.glob("model*.safetensors"))
        if len(list_waiting(run)) >= MAX_WAITING:
            return f"{name} is not published: {MAX_WAITING} revisions wait for the Hub already"
        if shutil.disk_usage(run).free < FREE_COPIES * size:
            return f"{name} is not published: the disk is too full to keep its weights until they are sent"
        partial = run / "revisions" / f".{name}.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        take_weights(checkpoint, partial / "model.safetensors")
        config.save_pretrained(partial)
        tokenizer = output_folder(recipe, "tokenizer")
        for path in (tokenizer / file for file in TOKENIZER_FILES if (tokenizer / file).exists()):
            shutil.copyfile(path, partial / path.name)
        card = render_card(
            Path(__file__).with_name("revision_card.md"),
            {"license": hub.shown_license, "language": hub.language, "library_name": "transformers"},
            recipe=recipe,
            state=state,
            revision=name,
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
        if (partial.parent / name).exists():  # from before a resume at an earlier step
            discard(partial.parent / name)
        partial.rename(partial.parent / name)
        start_sending(run)
    except Exception as error:  # it must not end training
        return f"{checkpoint.name} is not published: {type(error).__name__}: {error}"
    return None


def take_weights(checkpoint: Path, target: Path) -> None:
    """Link a checkpoint's weights; join the parts if each process wrote its own."""
    whole = checkpoint / "model.safetensors"
    if not whole.exists():
        return save_file(load_tensors(checkpoint, "model"), target, metadata={"format": "pt"})
    try:
        os.link(whole, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(whole, target)


def list_waiting(run: Path) -> list[Path]:
    return sorted((run / "revisions").glob("step-*"))


def start_sending(run: Path) -> None:
    """Start a process that publishes the waiting revisions, unless one runs; it outlives this one and uses no device.

    run_recipe.py ends it with training, as all that training leaves behind: its publish stage sends what still waits.

    It inherits the lock, so that no second one starts meanwhile. Where the file system has no such locks, a second one
    finds the lease of the first and ends.
    """
    with (run / "revisions" / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            launch(run, None)
        else:
            launch(run, file.fileno())


def launch(run: Path, lock_descriptor: int | None) -> None:
    """Start push_to_hub.py beside the training; it inherits the open lock file and holds the lock until it ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)} | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    if lock_descriptor is not None:
        environment[HELD_LOCK] = "yes"
    script, config = Path(__file__).resolve().parent.parent / "push_to_hub.py", run / "recipe.yaml"
    nice = ["nice", "-n", "19"] if shutil.which("nice") else []
    command = [*nice, sys.executable, str(script), "--config", str(config), "--only", "revisions"]
    with (run / "revisions" / "sending.log").open("ab") as log:
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[] if lock_descriptor is None else [lock_descriptor],
        )


@contextmanager
def lock(run: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock on sending a run's revisions, and yield whether it was free; it ends with the process."""
    if HELD_LOCK in os.environ:  # inherited from the process that started this one
        yield True
        return
    try:
        held = lock_file(run / "revisions" / ".lock", wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()
