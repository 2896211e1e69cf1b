# SPDX-License-Identifier: Apache-2.0
"""Run every stage of a recipe in order: finished stages are skipped, an interrupted one resumes.

    plan -> requests -> prepare -> tokenizer -> tokenize -> pretrain -> evaluate -> report -> publish

The plan needs a budget in `plan`. It is made first where the recipe says how much text there is, and again for the
report, with the run in its charts. It is advice: if it cannot be made, the other stages run all the same. The requests
are the benchmarks' items: prepare removes documents that hold them (data.decontamination), and training is scored on
them (training.eval_tasks). With training.distillation, the members are trained before the model that learns from them.

In:   one or more YAML files; a file of accelerate_configs/ describes the machine.
Out:  everything in <run.output_dir>; see the docstring of each stage's script.

    python recipes/run_recipe.py --config recipes/legal/quickstart.yaml
    python recipes/run_recipe.py --config recipes/legal/base.yaml \\
        --accelerate_config accelerate_configs/ddp.yaml --num_processes 8
    python recipes/run_recipe.py --config recipes/custom/base.yaml --run.output_dir=runs/mine \\
        --data.sources='[{"name": "mine", "path": "my_texts"}]'

With hub.leak_audit, audit_leaks.py runs before the report, unless audit.json is of the finished model already.

Nothing is uploaded unless hub.repo_id is set. --overwrite runs stages again whose output is out of date.
"""

import json
import os
import shlex
import signal
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from shutil import copyfile

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from atomic_files import StaleStageError, discard, hash_items, read_json
from child_processes import EXIT_STOPPED, leave_on_signals, run_with_status
from launching import (
    clear_environment,
    evaluation_command,
    launch_command,
    newest_precision,
    stored_precision,
    whole_number,
)
from machine_limits import lower_memory
from mixture.fitting import check_length
from planning.model_shape import count_parameters
from publishing.base_licence import check_licence
from publishing.leak_limits import read_audit
from publishing.repositories import check_repositories
from recipe_config import Recipe, RecipeError, refuse_missing_folder
from recipe_loading import parse_command_line, run_command
from recorded_files import OF_REPORT, find_damaged_run_files, record_run_files, recording
from recovery.run_lock import run_lock
from run_folder import is_finished, new_output, record_stage, starts_again
from sources.units import Listing, list_all_sources
from stages import ROOT, STAGES, has_script, output_folder
from sweeps.runs import link


PLAIN_TEXT = (".txt", ".md", ".text", ".jsonl", ".json")  # their text is no larger than the file
# Stages that are left out where their script is absent, and the note that says so before work starts.
OPTIONAL = {
    "plan": "nothing is planned",
    "requests": "the text is not checked against the benchmarks, nor are these scored while training",
    "evaluate": "nothing is evaluated",
    "report": "there is no report",
}


def plan_stages(recipe: Recipe) -> list[str]:
    """Return the stages that can run here; print which optional ones cannot.

    Raises: RecipeError: a script that the model needs is absent, or a source cannot be read.
    """
    wanted = [name for name, stage in STAGES.items() if not stage.by_hand]
    text_is_counted = recipe.plan.domain_bytes or (output_folder(recipe, "prepare") / "stats.json").exists()
    if not recipe.plan.budgets() or not text_is_counted:
        wanted.remove("plan")
    if recipe.plan.budgets():
        wanted.insert(wanted.index("report"), "plan")
    decontamination = recipe.data.decontamination
    checked = decontamination is not None and decontamination.benchmarks is None and recipe.evaluation.tasks
    if not checked and not recipe.training.eval_tasks:
        wanted.remove("requests")
    absent = [name for name in wanted if not has_script(name)]
    missing = [name for name in absent if name not in OPTIONAL]
    if missing:
        raise RecipeError(f"{', '.join(STAGES[name].script for name in missing)}: not there; copy recipes/ whole")
    if absent:
        lacking = ", ".join(OPTIONAL[name] for name in absent)
        left_out = f"{' and '.join(absent)} are left out: {lacking}"
        print(f"run_recipe: note: there is no {ROOT / 'eval'}, so {left_out}; copy it too")
    if not output_folder(recipe, "prepare").exists():  # the stages after it know better
        check_text(recipe, list_all_sources(recipe.data.sources))
    for section in ("model", "tokenizer"):
        if base := getattr(recipe, section).from_pretrained:
            refuse_missing_folder(f"{section}.from_pretrained", base)
    if "evaluate" in wanted and not output_folder(recipe, "evaluate").exists():
        for name in recipe.evaluation.baselines:
            check_baseline(name)
    if recipe.model.from_pretrained and not output_folder(recipe, "pretrain").exists():
        from model.base_checks import check_base  # only here: importing it takes seconds

        check_base(recipe)
    distillation = recipe.training.distillation
    if distillation and distillation.teachers and not output_folder(recipe, "pretrain").exists():
        from training.teacher_checks import check_teachers  # as above

        check_teachers(recipe)
    # Now, and not when the release is made; check_repositories does it for a repository.
    if not recipe.hub.repo_id and not output_folder(recipe, "pretrain").exists() and (note := check_licence(recipe)):
        print(f"run_recipe: {note}")
    return [name for name in wanted if name not in absent]


def check_baseline(name: str) -> None:
    """Refuse a baseline that is not there, or that the Hub does not give to this user; note where it is not asked.

    Raises: RecipeError
    """
    refuse_missing_folder("evaluation.baselines", name)
    if Path(name).exists():
        return
    place, _, revision = name.partition("@")
    try:
        hf_hub_download(place, "config.json", revision=revision or None)
    except GatedRepoError as error:
        raise RecipeError(
            f"evaluation.baselines={name!r} is gated: accept its terms on {constants.ENDPOINT}/{place}, then run `hf "
            "auth login` or set HF_TOKEN; or leave it out"
        ) from error
    except LocalEntryNotFoundError:
        print(f"run_recipe: note: the Hub was not reached, so that it has the baseline {name} was not checked")
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(
            f"evaluation.baselines={name!r}: the Hub gives no config.json of it ({reason}); correct the name, or "
            "leave it out"
        ) from error
    except OSError as error:
        print(f"run_recipe: note: that the Hub has the baseline {name} could not be checked: {error}")


def check_text(recipe: Recipe, listings: dict[str, Listing]) -> None:
    """Compare the length of training with the files, where their sizes say how much text there is at most.

    Raises: RecipeError: they are too small for it.
    """
    units = [unit for listing in listings.values() for unit in listing.units]
    if not all(Path(unit.name).suffix.lower() in PLAIN_TEXT and unit.size_bytes for unit in units):
        return
    sizes = {name: sum(unit.size_bytes for unit in listing.units) for name, listing in listings.items()}
    if note := check_length(recipe, sizes):
        print(f"run_recipe: note: {note}")


def run_stage(recipe: Recipe, name: str, options, launch: list[str], spare: str | None = None) -> None:
    """Run a stage's script and record its output where the script reads no recipe.

    Training runs by `launch`, and the evaluation too where there is a GPU or several processes.

    Args: spare: as in run_script.
    """
    stage, run = STAGES[name], Path(recipe.run.output_dir)
    python = [sys.executable]
    if name in ("pretrain", "evaluate"):
        python = launch if name == "pretrain" else evaluation_command(launch)
    given = ["--config", *options.config, *options.overrides, *resume_of(recipe, run)]
    given += ["--overwrite"] if options.overwrite else []
    command = [*python, *stage.command(recipe, given)]
    if name == "requests":
        with run_lock(run, name), new_output(recipe, name) as folder:
            run_script(name, [*command, str(folder)], run)
    elif stage.arguments:
        with run_lock(run, name):
            with recording(run, *OF_REPORT) if name == "report" else nullcontext():
                made = run_script(name, command, run, spare)
            if made:
                record_stage(recipe, name)
    else:  # it locks the run folder itself
        run_script(name, command, run, "there is no plan" if name == "plan" else None)


def train_members(recipe: Recipe, options, launch: list[str]) -> None:
    """Train the models of training.distillation.members that are not finished, each in a run folder of its own.

    They share the documents, the tokenizer and the tokens of the run. Each has a seed of its own. The checkpoints of a
    finished one are deleted.

    Raises: RecipeError: one failed, or the disk has no room for all models.
    """
    run, distillation = Path(recipe.run.output_dir), recipe.training.distillation
    waiting = [folder for folder in recipe.member_folders() if not (folder / "model").exists()]
    if waiting and recipe.model.from_pretrained is None:  # the size of another is known once it is loaded
        refuse_full_disk_of(recipe, waiting)
    for number in range(distillation.members if distillation else 0):
        member, folder = recipe.member(number), recipe.member_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        for stage in ("prepare", "tokenizer", "tokenize"):
            link(folder, run, STAGES[stage].output)
        if is_finished(member, "pretrain", options.overwrite):
            delete_checkpoints(folder)
            continue
        print(f"run_recipe: model {number + 1} of {distillation.members} to learn from, in {folder}")
        own = [f"--run.output_dir={folder}", f"--run.seed={member.run.seed}", "--training.distillation=null"]
        own += ["--hub.revision_steps=null"]  # those in the repository are of the model that learns
        given = [
            "--config",
            *options.config,
            *options.overrides,
            *own,
            *resume_of(recipe, folder),
            *(["--overwrite"] if options.overwrite else []),
        ]
        run_script("pretrain", [*launch, *STAGES["pretrain"].command(member, given)], folder)
        delete_checkpoints(folder)


def refuse_full_disk_of(recipe: Recipe, waiting: list[Path]) -> None:
    """Refuse a disk without room for the models of members that wait and of the run, and the checkpoints of one.

    Raises: DiskFullError: with both numbers.
    """
    # Only here: importing them takes seconds.
    from recovery.checkpoints import DiskFullError, checkpoint_bytes, require_space
    from recovery.stored_tensors import list_checkpoints

    averaged, keep = recipe.training.average is not None, recipe.training.save_total_limit
    report = output_folder(recipe, "tokenizer") / "report.json"
    counts = count_parameters(recipe.model, json.loads(report.read_text(encoding="utf-8"))["vocab_size"])
    in_muon = counts["attention"] + counts["feed_forward"] if recipe.training.optimizer == "muon" else 0
    of_model = 4 * counts["total"] * (2 if averaged else 1)
    missing = max(1, keep + 1 - len(list_checkpoints(waiting[0] / "checkpoints")))
    needed = (len(waiting) + 1) * of_model + missing * checkpoint_bytes(counts["total"], averaged, in_muon)
    what = f"training ({len(waiting)} models to learn from, the one that learns, and {missing} checkpoints of one)"
    try:
        require_space(Path(recipe.run.output_dir), needed, what)
    except DiskFullError as error:
        raise DiskFullError(f"{error}; make room, and start again with: {shlex.join(sys.orig_argv)}") from error


def delete_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished member: nothing resumes from them, and several members fill a disk.

    The state of the newest stays, which tells document_ledger.py what the member was trained on.
    """
    from recovery.stored_tensors import list_checkpoints  # only here: importing it takes seconds

    if (folder / "checkpoints").exists() and not (folder / "checkpoints").is_symlink():
        for _, newest in list_checkpoints(folder / "checkpoints")[:1]:
            if (newest / "state.json").exists():
                copyfile(newest / "state.json", folder / "state.json")
                record_run_files(folder, ("state.json",))
        discard(folder / "checkpoints")


def resume_of(recipe: Recipe, folder: Path) -> list[str]:
    """Return the override that keeps a checkpoint that run.resume names from every run folder but its own."""
    if recipe.run.resume in ("auto", "never"):
        return []
    checkpoint = Path(recipe.run.resume).resolve()
    holders = [member for member in recipe.member_folders() if checkpoint.is_relative_to(member.resolve())]
    return [] if folder == (holders or [Path(recipe.run.output_dir)])[0] else ["--run.resume=auto"]


def run_script(name: str, command: list[str], run: Path, spare: str | None = None) -> bool:
    """Run a stage's command, and pass signals on to it; return whether it succeeded.

    Args: spare: what is left where it fails, which is then noted and ends nothing. None: the others need it.

    Raises: SystemExit: it failed (1) or a signal came (EXIT_STOPPED); the command that continues is printed.
    """
    ended, training = run_with_status(command, run / "status.json")
    preempted = name == "pretrain" and training.get("status") == "preempted"
    stopped = ended.signal_name or preempted
    if not ended.status and not stopped:
        return True
    if spare and not stopped:
        print(f"run_recipe: note: {spare}, for the reason above; the other stages run all the same")
        return False
    how = f"on {ended.signal_name}" if ended.signal_name else f"with status {ended.status}"
    # A launcher hides how its processes ended, but training that was killed has not changed its status.
    unfinished = training.get("status") == "running"
    if not stopped and (unfinished or -ended.status in (signal.SIGKILL, signal.SIGABRT)):
        script = next(Path(word).name for word in command if word.endswith(".py"))
        how += f", killed, as when memory runs out (then {lower_memory(script)})"
    kept = training["reason"] if preempted else "finished stages are kept"
    sys.stderr.write(f"run_recipe: {name} stopped {how}: {kept}; start again with: {shlex.join(sys.orig_argv)}\n")
    raise SystemExit(EXIT_STOPPED if stopped else 1)


def run_audit(recipe: Recipe, dry_run: bool) -> None:
    """Audit the model where hub.leak_audit asks for it and audit.json is not of what is there now."""
    run, script = Path(recipe.run.output_dir), ROOT / "recipes" / "audit_leaks.py"
    if recipe.hub.leak_audit is None or read_audit(run)[0] is not None:
        return
    if dry_run:
        print("run_recipe: audit would run: recipes/audit_leaks.py")
    else:
        run_script("audit", [sys.executable, str(script), str(run)], run)


def note_unchecked(recipe: Recipe) -> None:
    """Print the benchmarks that the documents were not checked against, or only in an earlier version."""
    report = output_folder(recipe, "prepare") / "decontamination.json"
    checked = json.loads(report.read_text(encoding="utf-8"))["settings"]["sha256"] if report.exists() else {}
    exported = {} if recipe.data.decontamination.benchmarks else hash_items(output_folder(recipe, "requests"))
    unchecked = [
        task
        for task in exported or recipe.evaluation.tasks
        if task not in checked or exported.get(task, checked[task]) != checked[task]
    ]
    if unchecked:
        more = f" and {len(unchecked) - 5} more" if len(unchecked) > 5 else ""
        print(
            f"run_recipe: note: the documents were not checked against {', '.join(unchecked[:5])}{more} as they "
            "are now, and their results will say so; --overwrite prepares the documents again, and then everything "
            "made from them"
        )


def may_score_baselines(recipe: Recipe) -> bool:
    """Return whether a baseline could not be loaded when the model was evaluated, and what was scored still counts.

    With another kind of device or version of torch, the model would be scored again.
    """
    folder = output_folder(recipe, "evaluate")
    results = read_json(folder / "results.json") or {}
    if not results.get("baselines_not_scored") or not folder.with_name(f".{folder.name}.parts").exists():
        return False
    import torch  # only here: importing it takes seconds

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (results["settings"]["device"], results["versions"]["torch"]) == (device, version("torch"))


def kept_precision(recipe: Recipe, overwrite: bool) -> str | None:
    """Return the precision that a run was trained in so far, or the models that it learns from; None if none were.

    What --overwrite trains again from step 0 keeps none.
    """
    if recipe.run.resume not in ("auto", "never"):
        return stored_precision(Path(recipe.run.resume))
    folders = [Path(recipe.run.output_dir), *recipe.member_folders()]
    kept = [folder for folder in folders if not (overwrite and starts_again(folder))]
    return next((found for folder in kept if (found := newest_precision(folder) or trained_precision(folder))), None)


def trained_precision(folder: Path) -> str | None:
    """Return the precision of a finished model whose checkpoints are deleted; None if it has others or none."""
    found = (read_json(folder / "training.json") or {}) if starts_again(folder) else {}
    return found.get("mixed_precision") if found.get("mixed_precision") in ("bf16", "no") else None


def activation() -> str | None:
    """Return the command after which `python` is this interpreter; None if it is already, or not of an environment."""
    if sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV"):
        return None
    script = Path(sys.prefix) / "bin" / "activate"
    near = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
    return f"source {shlex.quote(str(near))}"


@leave_on_signals("finished stages are kept")
def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(
        __doc__,
        argv,
        accelerate_config="file of accelerate_configs/ to train with; default: single_gpu.yaml or cpu.yaml",
        num_processes="processes to train with, where the file leaves it open",
    )
    clear_environment()
    run = Path(recipe.run.output_dir)
    stages = plan_stages(recipe)
    chosen = Path(options.accelerate_config) if options.accelerate_config else None
    if options.num_processes and whole_number(options.num_processes, "--num_processes") > 1 and not chosen:
        raise RecipeError(
            f"--num_processes {options.num_processes}: several processes need a launch file too; add "
            "--accelerate_config accelerate_configs/ddp.yaml, or another of that folder"
        )
    kept = kept_precision(recipe, options.overwrite)
    launch = launch_command(recipe, chosen, options.num_processes, kept) if chosen else None
    if recipe.hub.repo_id and "publish" in stages and not options.dry_run:
        print(check_repositories(recipe))  # now, and not after days of training
    skipped = []
    for name in stages:
        if name in ("report", "publish"):  # both show the audit; the first that runs has it made
            run_audit(recipe, options.dry_run)
        # Whether a stage is up to date is known once its inputs are there.
        finished = is_finished(recipe, name, options.overwrite)
        if name == "publish" and recipe.hub.repo_id and not options.dry_run:
            finished = False  # only the Hub knows whether it has the release
        spare = None
        if name == "evaluate" and finished and may_score_baselines(recipe):
            finished, spare = False, "the earlier results stay"  # a try costs little: what was scored is kept
        if name == "prepare" and finished and recipe.data.decontamination and "evaluate" in stages:
            note_unchecked(recipe)
        if finished:
            skipped.append(name)
        elif options.dry_run:
            print(f"run_recipe: {name} would run: {STAGES[name].script}")
        else:
            if name in ("pretrain", "evaluate"):
                launch = launch or launch_command(recipe, None, None, kept)
            if name == "pretrain":
                train_members(recipe, options, launch)
            run_stage(recipe, name, options, launch, spare)
    if options.dry_run:
        return
    if skipped == stages:
        print(f"run_recipe: nothing to do, every stage in {run} is finished: {', '.join(dict.fromkeys(skipped))}")
        summary = run / "summary.txt"
        if summary.exists():
            print(summary.read_text(encoding="utf-8"))
    if problem := find_damaged_run_files(run).get("training.json"):
        raise StaleStageError(f"{run / 'training.json'}: {problem}; restore it from a copy, or train again")
    model = output_folder(recipe, "pretrain")
    training = json.loads((run / "training.json").read_text(encoding="utf-8"))
    print(
        f"run_recipe: {training['tokens_seen']:,} tokens in {training['seconds']:.0f} s; model {model}, "
        f"card {output_folder(recipe, 'publish') / 'README.md'}"
        + (f", report {run / 'report.html'}" if (run / "report.html").exists() else "")
    )
    if command := activation():
        print(f"run_recipe: before another command: {command}")


if __name__ == "__main__":
    run_command(main)
