# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint training goes on from, and whether it is of the same experiment."""

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path

from atomic_files import StaleStageError
from mixture.phases import schedule_phases
from mixture.skips import extend_skips
from recipe_config import Recipe, RecipeError, Training
from recovery.stored_tensors import find_damage, list_checkpoints, load_state, newest_checkpoint
from run_folder import compare, input_hashes
from stages import STAGES


def fresh_state(recipe: Recipe, training: Training, shares: dict[str, float]) -> dict:
    """Return what a run that begins writes into its checkpoints beside tensors, as JSON values."""
    return {
        "step": 0,
        "trained_steps": 0,  # without those that data.skip passes over
        "max_steps": training.max_steps,
        "sequence_length": training.sequence_length,
        "tokens_per_step": training.tokens_per_step,
        "seconds": 0.0,
        "bytes_seen": {name: 0 for name in shares},
        "tokens_seen": {name: 0 for name in shares},
        # With a time limit, no later phase begins before the length is known.
        "phases": schedule_phases(recipe.data, shares, None if training.max_seconds else training.max_steps),
        "skips": extend_skips([], recipe.data.skip, 0),
        "settings": json.loads(json.dumps(STAGES["pretrain"].settings(recipe))),
        "inputs": input_hashes(recipe, "pretrain"),
        "evaluation_due": False,  # one that a signal cut short
        "stability": None,
        "rollbacks": [],
        "learning_rate_factor": 1.0,
    }


def describe_identity(state: dict, num_processes: int) -> dict:
    """Return what a checkpoint says it belongs to."""
    settings = hashlib.sha256(json.dumps(state["settings"], sort_keys=True).encode()).hexdigest()
    versions = {package: version(package) for package in ("torch", "transformers", "accelerate", "safetensors")}
    inputs = {f"{name}_sha256": sha256 for name, sha256 in state["inputs"].items()}
    return {"settings_sha256": settings, **inputs, "num_processes": num_processes, "versions": versions}


def choose_checkpoint(recipe: Recipe) -> tuple[Path | None, list[str]]:
    """Choose the checkpoint to go on from.

    Returns: it or None, and what was wrong with those passed over.
    Raises: RecipeError: none can be used, or run.resume does not allow it.
    """
    resume = recipe.run.resume
    if resume not in ("auto", "never"):
        problem = find_damage(Path(resume))
        if problem is not None:
            raise RecipeError(f"run.resume={resume}: {problem}; name the folder of a whole checkpoint")
        return Path(resume), []
    found = newest_checkpoint(Path(recipe.run.output_dir) / "checkpoints")
    if resume == "never" and found[0] is not None:
        raise RecipeError(f"run.resume=never, but there is {found[0]}; move it away or set run.resume=auto")
    return found


def check_state(checkpoint: Path, fresh: dict) -> tuple[dict, list[str]]:
    """Return a checkpoint's state if it is of the same experiment, and how that was changed on the way.

    Allowed are another data.skip, which describe_changes tells of, and longer training.

    Raises: StaleStageError: it was made with other settings or inputs, which are named.
    """
    state, changes = load_state(checkpoint), []
    before = state["settings"] | {"skip": fresh["settings"]["skip"]}
    was, now = before["training"]["max_tokens"], fresh["settings"]["training"]["max_tokens"]
    begun = any(0 < phase["after_step"] <= state["step"] for phase in state["phases"])
    same_begin = state["phases"][0] == fresh["phases"][0]
    if now > was and not begun and same_begin and "planned_steps" not in state:
        before = before | {"training": before["training"] | {"max_tokens": now}}
        changes.append(
            f"training.max_tokens was {was:,}, is {now:,} after step {state['step']}: {fresh['max_steps']:,} steps, "
            f"not {state['max_steps']:,}, and the learning rate is that of the longer run from here on"
        )
        state |= {"max_steps": fresh["max_steps"], "phases": fresh["phases"]}
    changed = compare(before, fresh["settings"], "") + compare(state["inputs"], fresh["inputs"], "inputs")
    if changed:
        raise StaleStageError(
            f"{checkpoint} is of another experiment: {'; '.join(changed)}. Set another run.output_dir, restore the "
            "recipe, or run with --overwrite to start again."
        )
    return state | {"settings": fresh["settings"]}, changes


def set_aside_later(checkpoints: Path, step: int) -> None:
    """Rename checkpoints after the step that training goes on from, or the next start would go on from them."""
    for number, later in list_checkpoints(checkpoints):
        if number > step:
            replaced = later.with_name(f"{later.name}.replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            later.rename(replaced)


def start_again(recipe: Recipe) -> None:
    """Put away what an earlier training left, so that --overwrite begins at step 0."""
    run = Path(recipe.run.output_dir)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (run / name).unlink(missing_ok=True)
