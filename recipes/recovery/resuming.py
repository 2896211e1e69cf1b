# SPDX-License-Identifier: Apache-2.0
"""Choosing the checkpoint to resume from, and checking that it belongs to the same experiment."""

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path

from atomic_files import StaleStageError, is_unchanged, read_json, with_checksum, write_json
from mixture.phases import schedule_phases
from mixture.skips import extend_skips
from recipe_config import Recipe, RecipeError, Training
from recorded_files import find_difference, recorded_beginnings
from recovery.stored_tensors import find_damage, list_checkpoints, load_state, newest_checkpoint
from run_folder import REPLACED, compare, input_hashes, read_record, starts_again
from stages import STAGES


def fresh_state(recipe: Recipe, training: Training, shares: dict[str, float]) -> dict:
    """Return the state of a run at step 0: what a checkpoint holds besides tensors, as JSON values."""
    return {
        "step": 0,
        "trained_steps": 0,  # without those that data.skip leaves out
        "max_steps": training.max_steps,
        "sequence_length": training.sequence_length,
        "tokens_per_step": training.tokens_per_step,
        "seconds": 0.0,
        "bytes_seen": {name: 0 for name in shares},
        "tokens_seen": {name: 0 for name in shares},
        # With a time limit, no later phase starts before the length is known.
        "phases": schedule_phases(recipe.data, shares, None if training.max_seconds else training.max_steps),
        "skips": extend_skips([], recipe.data.skip, 0),
        "settings": json.loads(json.dumps(STAGES["pretrain"].settings(recipe))),
        "inputs": input_hashes(recipe, "pretrain"),
        "evaluation_due": False,  # after a signal interrupted one
        "stability": None,
        "rollbacks": [],
        "learning_rate_factor": 1.0,
        "averaged": None,  # see WeightAverage.add
    }


def describe_identity(state: dict, num_processes: int) -> dict:
    """Return the experiment and versions that a checkpoint's manifest names."""
    settings = hashlib.sha256(json.dumps(state["settings"], sort_keys=True).encode()).hexdigest()
    versions = {package: version(package) for package in ("torch", "transformers", "accelerate", "safetensors")}
    inputs = {f"{name}_sha256": sha256 for name, sha256 in state["inputs"].items()}
    return {"settings_sha256": settings, **inputs, "num_processes": num_processes, "versions": versions}


def choose_checkpoint(recipe: Recipe, overwrite: bool) -> tuple[Path | None, list[str], list[str]]:
    """Choose the checkpoint to resume from, after deleting those of a finished model that --overwrite replaces.

    Call it when nothing else can refuse to train: that model would have lost them for nothing.

    Returns: the checkpoint, or None for step 0; notes on those that were skipped; files of check_beginnings.
    Raises: RecipeError: no checkpoint can be used, run.resume forbids it, or a file that the run adds to is damaged.
    """
    resume, run = recipe.run.resume, Path(recipe.run.output_dir)
    if resume not in ("auto", "never"):
        problem = find_damage(Path(resume))
        if problem is not None:
            raise RecipeError(f"run.resume={resume}: {problem}; name the folder of a whole checkpoint")
        return Path(resume), [], check_beginnings(run, Path(resume))
    if overwrite and starts_again(run):
        start_again(recipe)
    newest, skipped = newest_checkpoint(run / "checkpoints")
    if resume == "never" and newest is not None:
        raise RecipeError(f"run.resume=never, but there is {newest}; move it away or set run.resume=auto")
    notes = [f"skipped a damaged checkpoint: {problem}" for problem in skipped]
    return newest, notes, check_beginnings(run, newest)


def check_beginnings(run: Path, checkpoint: Path | None) -> list[str]:
    """Refuse to add lines to metrics, samples or a chronicle that are not as they were at the checkpoint.

    Returns: the names of those that are missing and start again.
    Raises: RecipeError: one is damaged.
    """
    beginnings = (checkpoint and recorded_beginnings(checkpoint, run)) or {}
    missing = [name for name in beginnings if not (run / name).exists()]
    for name, recorded in beginnings.items():
        if name not in missing and (problem := find_difference(run / name, recorded, grows=True)):
            raise RecipeError(
                f"{run / name} is damaged: up to {checkpoint.name}, {problem}. Restore it from a copy, or move it "
                "away: training then starts a new one, and notes that"
            )
    return missing


def forget_beginnings(run: Path, names: list[str]) -> None:
    """Take files that start again out of the manifests of all checkpoints, which recorded their earlier lines."""
    for _, checkpoint in list_checkpoints(run / "checkpoints") if names else []:
        manifest = read_json(checkpoint / "manifest.json")
        if manifest and is_unchanged(manifest) and "records" in manifest:
            kept = {name: entry for name, entry in manifest["records"].items() if name not in names}
            write_json(checkpoint / "manifest.json", with_checksum(manifest | {"records": kept}))


def check_state(checkpoint: Path, fresh: dict) -> tuple[dict, list[str]]:
    """Return the state to resume with, and what changed since it was saved, in words.

    data.skip may change (skips.describe_changes reports it), and training may become longer.

    Args:
        checkpoint: to resume from.
        fresh: fresh_state of the recipe.

    Raises: StaleStageError: the checkpoint was made with other settings or inputs, which are named.
    """
    state, settings = load_state(checkpoint), fresh["settings"]
    longer = is_extended(state, fresh)
    allowed = state["settings"] | {"skip": settings["skip"]}
    if longer:
        max_tokens = {"max_tokens": settings["training"]["max_tokens"]}
        allowed = allowed | {"training": allowed["training"] | max_tokens}
    differing = compare(allowed, settings, "") + compare(state["inputs"], fresh["inputs"], "inputs")
    if differing:
        raise StaleStageError(
            f"{checkpoint} is of another experiment: {'; '.join(differing)}. Set another run.output_dir, restore the "
            f"recipe, or move {checkpoint.parent} away to start again."
        )
    if not longer:
        return state | {"settings": settings}, []
    change = (
        f"training.max_tokens was {state['settings']['training']['max_tokens']:,}, is "
        f"{settings['training']['max_tokens']:,} after step {state['step']}: {fresh['max_steps']:,} steps, not "
        f"{state['max_steps']:,}, and from here on the learning rate is that of the longer run"
    )
    return state | {"settings": settings, "max_steps": fresh["max_steps"], "phases": fresh["phases"]}, [change]


def refuse_other_precision(checkpoint: Path, state: dict, now: dict) -> None:
    """Refuse to go on in another precision than the steps so far, which only a named checkpoint asks for.

    Args:
        checkpoint: the newest, which training resumes from.
        state: of the checkpoint.
        now: of record.describe_computing.

    Raises: RecipeError: with what keeps the precision, and what changes it.
    """
    before = state["computing"][-1]["mixed_precision"] if state.get("computing") else None
    if before in (None, now["mixed_precision"]):
        return
    as_before = (
        f"To go on as before, set mixed_precision: {before} in the launch file, or `accelerate launch "
        f"--mixed_precision {before}`. "
        if before in ("no", "bf16")  # what training takes now
        else ""
    )
    raise RecipeError(
        f"{checkpoint} was computed with mixed_precision: {before}, and this launch sets "
        f"{now['mixed_precision']}, which rounds differently. {as_before}To change it after step {state['step']}, "
        f"which the chronicle notes, add --run.resume={checkpoint} to the next start only"
    )


def follow_computing(state: dict, now: dict) -> list[str]:
    """Add to a state how its next steps are computed, if that differs from the steps before.

    Args:
        state: that training starts or resumes from; its `computing` lists {"after_step": N, ...}, a period each.
        now: of record.describe_computing.

    Returns: what changed, in words.
    """
    step, periods = state["step"], state.get("computing", [])  # absent from earlier checkpoints
    before = periods[-1] if periods else {}
    keys = [key for key in before | now if key != "after_step"]
    changed = [key for key in keys if periods and before.get(key) != now.get(key)]
    if changed or not periods:
        state["computing"] = [*periods, {"after_step": step, **now}]
    if not periods and step > 0:
        return [f"how steps 1 to {step} were computed is not recorded, so a change cannot be seen"]
    return [
        f"{key} was {before.get(key)}, is {now.get(key)} after step {step}; "
        + (
            "this rounds otherwise, so the losses are not those of a run without the change"
            if key == "mixed_precision"
            else "this can change the order of sums, and with it the last digits of the losses"
        )
        for key in changed
    ]


def is_extended(state: dict, fresh: dict) -> bool:
    """Return whether a larger training.max_tokens only adds steps to a saved run.

    It does not once a later phase has started, or training.max_seconds has fixed the length.
    """
    larger = fresh["settings"]["training"]["max_tokens"] > state["settings"]["training"]["max_tokens"]
    later_phase_started = any(0 < phase["after_step"] <= state["step"] for phase in state["phases"])
    same_first_phase = state["phases"][0] == fresh["phases"][0]
    return larger and same_first_phase and not later_phase_started and "planned_steps" not in state


def set_aside_later(checkpoints: Path, step: int) -> None:
    """Rename the checkpoints after the step that training resumes from, or the next start would resume from them."""
    for number, later in list_checkpoints(checkpoints):
        if number > step:
            replaced = later.with_name(f"{later.name}.replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            later.rename(replaced)


def start_again(recipe: Recipe) -> None:
    """Delete the checkpoints and metrics of the finished model, and name it as the one that --overwrite replaces."""
    run = Path(recipe.run.output_dir)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (run / name).unlink(missing_ok=True)
    (run / REPLACED).parent.mkdir(exist_ok=True)  # where it could not be deleted
    write_json(run / REPLACED, with_checksum({"sha256": read_record(run / "model")["sha256"]}))
