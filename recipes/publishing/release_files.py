# SPDX-License-Identifier: Apache-2.0
"""Build the release folder from a run: the files that are published, and their names.

A file is released only if it is named here and is unchanged since its stage wrote it. Local paths in text files are
shortened.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml, save_torch_state_dict
from huggingface_hub.serialization._base import parse_size_to_int
from huggingface_hub.utils import yaml_dump
from safetensors import safe_open

from atomic_files import RECORD, file_sha256, read_record, write_json
from corpus.data_card import render_data_card
from publishing.base_licence import refuse_licence
from publishing.base_model import find_base, find_teachers
from publishing.gguf_file import build_gguf, gguf_bytes, refuse_unwritable
from publishing.leak_limits import read_audit, refuse_leaks
from publishing.local_paths import copy_without_paths, shorten_paths
from publishing.model_card import write_card
from publishing.notice import write_notice
from publishing.release_checks import check_model, refuse_odd_files, refuse_secrets
from publishing.sample_redaction import redact_report, redact_results, sample_redactor
from publishing.training_log import write_tensorboard_log
from recipe_config import Hub, Recipe, RecipeError
from recorded_files import REMEDY, RUN_FILES, find_damaged_run_files
from run_folder import new_output, require
from stages import ROOT, output_folder
from vocabulary.tokenizer_training import read_texts


# The allow-list: file in the run folder -> name in the release. Model files and figures keep their names.
RECORDS = {
    "documents/stats.json": "data_stats.json",
    "tokenizer/report.json": "tokenizer_report.json",
    "training.json": "training.json",
    "metrics.jsonl": "metrics.jsonl",
}
OPTIONAL_RECORDS = {  # files that only some runs have
    "documents/decontamination.json": "decontamination.json",
    "tokenizer/README.md": "tokenizer_card.md",
    "environment.json": "environment.json",
    "plan.json": "plan.json",
    "preflight.json": "preflight.json",
    "chronicle.md": "chronicle.md",
    "chronicle.jsonl": "chronicle.jsonl",
}
RESULTS = {"evaluate": {"eval/results.json": "results.json"}, "report": {"report.html": "report.html"}}
MODEL_FILE = re.compile(
    r"(generation_)?config\.json|tokenizer(_config)?\.json|special_tokens_map\.json|chat_template\.jinja"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
WEIGHT_FILE = re.compile(r"model.*\.safetensors(\.index\.json)?")
FIGURE_FILE = re.compile(r"[a-z0-9_]+\.png")
RESTORE = "restore it from a copy, or run the stage that writes it again"
SHOWN_BY_REPORT = ("samples.jsonl", "status.json", "recipe.yaml")  # not released themselves
LISTS = ("manifest.json", RECORD)  # lists of files, which cannot list themselves


def collect(recipe: Recipe) -> tuple[dict[str, Path], list[str]]:
    """Return the files of a release, {name in it: path}, and notes on results that are left out.

    Raises: RecipeError: a stage is missing or out of date, or a file changed since its stage wrote it.
    """
    run = Path(recipe.run.output_dir)
    recorded = {}
    for stage in ("prepare", "tokenizer", "tokenize", "pretrain"):
        recorded |= recorded_files(require(recipe, stage))
    names, notes, damaged = dict(RECORDS), [], find_damaged_run_files(run)
    names |= {relative: name for relative, name in OPTIONAL_RECORDS.items() if (run / relative).exists()}
    if (run / "audit.json").exists():
        audit, problem = read_audit(run)
        if audit is None and "audit.json" not in damaged:
            notes.append(f"{run / 'audit.json'} is left out: it {problem}; run recipes/audit_leaks.py again")
        else:  # a damaged one is refused below: the report shows what it says
            names["audit.json"] = "audit.json"
    for stage, files in RESULTS.items():
        folder = output_folder(recipe, stage)
        if read_record(folder) is None:
            if folder.exists():
                notes.append(f"{folder} is left out: it has no record of its inputs; run recipes/run_recipe.py")
            continue
        recorded |= recorded_files(require(recipe, stage))
        names |= files
    # Every file in these two folders must be of a kind that is allowed there.
    names |= {f"model/{path.name}": path.name for path in (run / "model").iterdir() if path.name != RECORD}
    if "report.html" in names:
        names |= {f"figures/{p.name}": f"figures/{p.name}" for p in (run / "figures").iterdir() if p.name != RECORD}

    problems = []
    if RUN_FILES in damaged:
        problems.append(f"{run / RUN_FILES} {damaged[RUN_FILES]}. {REMEDY}")
    if "report.html" in names:
        shown = [name for name in SHOWN_BY_REPORT if name in damaged]
        problems += [f"{run / name}: {damaged[name]}; {RESTORE}, and then the report" for name in shown]
    for relative in names:
        path, folder = run / relative, Path(relative).parent.name
        allowed = {"model": MODEL_FILE, "figures": FIGURE_FILE}.get(folder)
        if path.is_symlink() or (folder and path.parent.is_symlink()):  # the run folder itself may be a link
            problems.append(f"{path} is a link, which could lead anywhere; put the file itself there")
        elif allowed and not allowed.fullmatch(path.name):
            problems.append(f"{path} does not belong to a release; move it away")
        elif not path.is_file():
            problems.append(f"{path} is missing; run the stage that writes it again")
        elif problem := damaged.get(relative):
            problems.append(f"{path}: {problem}; {RESTORE}")
        elif folder and path not in recorded:
            problems.append(f"{path} was not written by its stage; move it away, or run that stage again")
    files = {name: run / relative for relative, name in names.items()}
    for key, name, path in (
        ("data.extract_text", "data.py", recipe.data.extract_text),
        ("hub.license_file", "LICENSE", recipe.hub.license_file or own_licence(recipe)),
    ):
        if path is not None and not Path(path).is_file():
            problems.append(f"{key}={path}: no such file")
        elif path is not None:
            files[name] = Path(path)
    if problems:
        raise RecipeError(*problems)
    refuse_changed(files.values(), recorded)
    return files, notes


def own_licence(recipe: Recipe) -> str | None:
    """Return this repository's LICENSE if the recipe names the same licence, apache-2.0."""
    path = ROOT / "LICENSE"
    return str(path) if recipe.hub.license == "apache-2.0" and path.exists() else None


def recorded_files(folder: Path) -> dict[Path, str]:
    """Return the sha256 of each file as its stage recorded it."""
    return {folder / name: file["sha256"] for name, file in read_record(folder)["files"].items()}


def refuse_changed(paths: Iterable[Path], recorded: dict[Path, str]) -> None:
    """Read files before they are published: require trusts their times, which a fault of the disk keeps.

    Raises: RecipeError: one is not as its stage recorded it.
    """
    changed = [path for path in paths if path in recorded and file_sha256(path) != recorded[path]]
    if changed:
        raise RecipeError(*(f"{path}: its sha256 is not the recorded one; {RESTORE}" for path in changed))


def build_release(recipe: Recipe) -> list[str]:
    """Make the release folder: copy the files, render the cards, search for secrets, load the model from it.

    Returns: notes on what was left out, and why.
    """
    base, teachers = find_base(recipe), find_teachers(recipe)
    refuse_licence(recipe, base, teachers)
    files, notes = collect(recipe)
    refuse_leaks(recipe)
    model, kinds = output_folder(recipe, "pretrain"), recipe.hub.gguf or []
    if kinds:
        refuse_unwritable(model)
    redact = sample_redactor(recipe)
    with new_output(recipe, "publish") as folder:
        empty(folder)
        num_bytes = sum(path.stat().st_size for path in files.values())
        refuse_full_disk(folder, num_bytes + gguf_bytes(model, kinds))
        copy_files(recipe, files, folder)
        notes += redact_samples(folder, redact)
        write_weights(model, folder, recipe.hub.max_shard_size)
        shown = shorten_paths(recipe)
        write_recipe(shown, folder / "recipe.yaml")
        stats, checked = (read_if_there(folder / name) for name in ("data_stats.json", "decontamination.json"))
        # Without text of the sources; hub.dataset_text publishes that.
        (folder / "data_card.md").write_text(render_data_card(shown, stats, checked, samples=None), encoding="utf-8")
        write_notice(shown, folder, base, teachers)
        write_eval_results(folder)
        if kinds:
            sources = [source.name for source in recipe.data.sources]
            documents = output_folder(recipe, "prepare")
            held_out = [read_texts(documents, "validation", source) for source in sources]
            build_gguf(shown, folder, chain.from_iterable(held_out))
        if recipe.hub.tensorboard:
            write_tensorboard_log(folder)
        write_card(shown, folder, base, teachers)
        seal(recipe, folder)
        check_model(folder, model)
    return notes


def seal(recipe: Recipe, folder: Path) -> None:
    """Search a folder for what must not be published, then list its files in manifest.json."""
    refuse_odd_files(folder)
    refuse_secrets(folder, public_names(recipe), recipe.hub.confidential)
    write_json(folder / "manifest.json", {"format": 1, "files": describe_files(folder)})


def public_names(recipe: Recipe) -> set[str]:
    """Return the owners of the recipe's repositories, in lower case."""
    hub = recipe.hub
    return {name.split("/")[0].lower() for name in (hub.repo_id, hub.tokenizer_repo_id, hub.dataset_repo_id) if name}


def empty(folder: Path) -> None:
    for leftover in folder.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()


def refuse_full_disk(folder: Path, num_bytes: int) -> None:
    """Refuse a disk that the copy would fill. Raises: RecipeError."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < 1.05 * num_bytes:
        raise RecipeError(
            f"{folder}: a release takes {num_bytes / 1e9:.1f} GB, {free_bytes / 1e9:.1f} GB are free; make room there"
        )


def copy_files(recipe: Recipe, files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if path.parent.name == "model" and WEIGHT_FILE.fullmatch(path.name):
            continue
        if path.parent.name in ("model", "figures") or name in ("data.py", "LICENSE"):
            shutil.copyfile(path, folder / name)
            continue
        copy_without_paths(path, folder / name, recipe)
        if name == "report.html":
            page = (folder / name).read_text(encoding="utf-8")
            page = relink(page, {path: name for name, path in files.items()}, Path(recipe.run.output_dir))
            (folder / name).write_text(page, encoding="utf-8")


def redact_samples(folder: Path, redact: Callable[[str], str]) -> list[str]:
    """Redact the samples of a release, and return a note where one changed."""
    results, report, changed = read_if_there(folder / "results.json"), folder / "report.html", 0
    if results and (changed := redact_results(results, redact)):
        write_json(folder / "results.json", results)
    if report.exists():
        page = report.read_text(encoding="utf-8")
        report.write_text(redact_report(page, redact), encoding="utf-8")
    return [f"{changed} samples of the model held personal data, which was redacted"] if changed else []


def write_weights(model: Path, folder: Path, max_shard_size: str) -> None:
    """Copy the weights, sharded into files of at most max_shard_size if one is larger."""
    files = sorted(path for path in model.iterdir() if WEIGHT_FILE.fullmatch(path.name))
    if max(path.stat().st_size for path in files) <= parse_size_to_int(max_shard_size):
        for path in (path for path in files if path.parent != folder):
            shutil.copyfile(path, folder / path.name)
        return
    tensors = {}
    for path in (path for path in files if path.suffix == ".safetensors"):
        with safe_open(path, framework="pt") as file:  # mapped, not read
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size)
    if model == folder:
        for path in files:
            path.unlink()


def write_recipe(shown: Recipe, path: Path) -> None:
    """Write the recipe as someone else would run it: with the data.py beside it, and without publishing."""
    hub = Hub(license=shown.hub.license, language=shown.hub.language)
    data = shown.data.model_copy(update={"extract_text": None})
    path.write_text(shown.model_copy(update={"hub": hub, "data": data}).dump_yaml(), encoding="utf-8")


def write_eval_results(folder: Path) -> None:
    """Write .eval_results/<task>.yaml, the Hub's format for a score, for tasks that are Hub datasets.

    The Hub compares scores on the dataset's page, which tasks of local files lack. The format:
    https://huggingface.co/docs/hub/eval-results.
    """
    results = read_if_there(folder / "results.json")
    for name, task in results["tasks"].items() if results else ():
        dataset = task.get("dataset") or {}  # path, name, revision; a local file has no revision
        if not dataset.get("revision") or not task["metrics"]:
            continue
        metric = task.get("score") or next(iter(task["metrics"]))
        score = task["metrics"][metric]
        few_shot = task.get("num_fewshot", 0)
        entry = EvalResultEntry(
            dataset_id=dataset["path"],
            task_id=dataset["name"] or "default",
            value=score["value"],
            dataset_revision=dataset["revision"],
            notes=f"task {name}, {metric}, {few_shot}-shot, standard error {score['stderr']:.4g}",
        )
        (folder / ".eval_results").mkdir(exist_ok=True)
        text = yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
        (folder / ".eval_results" / f"{name}.yaml").write_text(text, encoding="utf-8")


def read_if_there(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def relink(page: str, names: dict[Path, str], run: Path) -> str:
    """Point the links of a run's report to the files of the release; links to other files become text."""

    def renamed(found: re.Match) -> str:
        name = names.get(run / found[1])
        return f'<a href="{name}">{found[2]}</a>' if name else found[2]

    return re.sub(r'<a href="([\w./]+)">(.*?)</a>', renamed, page)


def describe_files(folder: Path) -> dict[str, dict]:
    """Return bytes and sha256 of every file of a release, by name, without its lists of files."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        for name in names
        if name not in LISTS
    }
