# SPDX-License-Identifier: Apache-2.0
"""The run folder: where each stage's output lies, whether it is up to date, and how it appears all at once.

A stage writes into a hidden folder beside its output, which a killed stage leaves for the next try, and which is
synced to disk and renamed when everything is there: an output folder that exists is complete. `stage.json` in it
records the settings and the inputs it was made from and the size and sha256 of each file, so that a stage is done
over when something it depends on changed, refused where that would throw work away, and skipped otherwise.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from corpus.source_units import source_fingerprint
from recipe_config import Recipe, RecipeError


ROOT = Path(__file__).resolve().parent.parent
RECORD = "stage.json"
RECORD_FORMAT = 1


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        script: the command that runs it, below the repository's root.
        output: its folder in the run folder.
        settings: what in the recipe decides its output.
        inputs: the stages whose outputs it reads.
        derived: whether it is cheap and follows from the rest, so that it is simply done over when out of date.
        once: what else decides its output, but only when it is made: a later change is no reason to make it anew.
        descriptions: files of its output that only derived stages read, so that no other is out of date by them.
    """

    script: str
    output: str
    settings: Callable[[Recipe], dict]
    inputs: tuple[str, ...] = ()
    derived: bool = False
    once: Callable[[Recipe], dict] = lambda recipe: {}
    descriptions: tuple[str, ...] = ()


def documents_settings(recipe: Recipe) -> dict:
    """Everything that decides the documents: not the mixture of them, nor the machine that makes them."""
    mixture = {"min_shares", "phases", "skip", "max_repetitions", "fit_to_corpus"}
    data = recipe.data.model_dump(exclude=mixture | {"workers", "executor", "slurm", "extract_text"})
    if recipe.data.decontamination is not None and recipe.data.decontamination.benchmarks is not None:
        data["decontamination"]["benchmarks"] = hash_items(benchmarks_folder(recipe))  # not where they lie
    if recipe.data.near_duplicates is not None:
        earlier = {folder: read_record(Path(folder)) for folder in recipe.data.near_duplicates.against}
        data["near_duplicates"]["against"] = [record["sha256"] if record else path for path, record in earlier.items()]
    for source, settings in zip(recipe.data.sources, data["sources"], strict=True):
        # Correcting what a card says, or the mixture, is no reason to prepare again.
        for key in ("share", "max_repetitions", "license", "url"):
            del settings[key]
        settings["fingerprint"] = source_fingerprint(source)
    return data | {"extract_text_sha256": file_sha256(Path(recipe.data.extract_text))}


def why_unchecked(recipe: Recipe) -> str | None:
    """Say why the documents of a recipe are checked against no benchmark; None where they are checked."""
    decontamination = recipe.data.decontamination
    if decontamination is None:
        return "data.decontamination is not set"
    if decontamination.benchmarks is None and not exported_tasks(recipe):
        return "evaluation.tasks names no benchmark"
    if decontamination.benchmarks is None and not has_script("requests"):
        return "there was no eval/ folder beside recipes/ to take the benchmarks from"
    return None


def benchmarks_folder(recipe: Recipe) -> Path:
    """Return where the benchmarks lie that documents are checked against: the recipe's own, or the run's."""
    return Path(recipe.data.decontamination.benchmarks or output_folder(recipe, "requests"))


def hash_items(folder: Path) -> dict[str, str]:
    return {path.stem: file_sha256(path) for path in sorted(folder.glob("*.jsonl"))}


def exported_benchmarks(recipe: Recipe) -> dict:
    """What the run took from evaluation.tasks: a benchmark that is added later makes no documents out of date."""
    if why_unchecked(recipe) is not None or recipe.data.decontamination.benchmarks is not None:
        return {}
    missing = dict.fromkeys(sorted(unexported_tasks(recipe)), "not exported")
    return {"benchmarks": missing | hash_items(benchmarks_folder(recipe))}


def exported_tasks(recipe: Recipe) -> list[str]:
    """Return the tasks, groups and suites whose items the stage `requests` writes."""
    return list(dict.fromkeys([*recipe.evaluation.tasks, *recipe.training.eval_tasks]))


def unexported_tasks(recipe: Recipe) -> list[str]:
    """Return those of exported_tasks whose items are not there; of a group only its record tells."""
    folder = output_folder(recipe, "requests")
    record = read_record(folder)
    asked = record["settings"]["tasks"] if record else []
    return [name for name in exported_tasks(recipe) if name not in asked and not (folder / f"{name}.jsonl").exists()]


def requests_settings(recipe: Recipe) -> dict:
    files = sorted(path for path in (ROOT / "eval" / "tasks").glob("*/*") if path.suffix != ".md")
    hashes = {path.relative_to(ROOT).as_posix(): file_sha256(path) for path in files if path.is_file()}
    return {"tasks": exported_tasks(recipe), "files": hashes}


def base_content(path: str, revision: str | None = None) -> dict:
    """What decides a model or tokenizer that is taken: of a folder also its content, by its record or its sizes."""
    base = {"from_pretrained": path, "revision": revision}
    folder = Path(path)
    if folder.is_dir():
        record = read_record(folder)
        files = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
        files |= {path.name: file_sha256(path) for path in sorted(folder.glob("*.json")) if path.name != RECORD}
        base["content"] = record["sha256"] if record else files
    return base


def tokenizer_settings(recipe: Recipe) -> dict:
    data = recipe.data
    shares = {source.name: source.share for source in data.sources}
    asked = {"shares": shares} | data.model_dump(include={"min_shares", "fit_to_corpus"})
    asked["phases"] = [phase.model_dump(include={"start_fraction", "shares"}) for phase in data.phases]
    if taken := recipe.model.from_pretrained or recipe.tokenizer.from_pretrained:
        asked["base"] = base_content(taken, recipe.model.revision)
    return recipe.tokenizer.model_dump() | asked


def training_settings(recipe: Recipe) -> dict:
    """Everything that decides the weights: not how often something is logged, scored or saved, nor on what machine."""
    observing = {
        "logging_steps",
        "eval_steps",
        "max_eval_bytes",
        "eval_tasks",
        "max_eval_items",
        "save_steps",
        "save_total_limit",
        "keep_every_steps",
        "report_to",
    }
    observing |= {
        "report_to",
        "torch_compile",
        "per_device_train_batch_size",
        "attn_implementation",
        "gradient_checkpointing",
    }
    shares = {source.name: {"share": source.share} for source in recipe.data.sources}
    if recipe.data.fit_to_corpus or any(source.share is None for source in recipe.data.sources):
        for source in recipe.data.sources:  # otherwise it only decides whether the run is refused
            shares[source.name]["max_repetitions"] = source.max_repetitions or recipe.data.max_repetitions
    model = recipe.model.model_dump()
    if recipe.model.from_pretrained is not None:  # its shape is the base's, whatever the recipe says
        model = base_content(recipe.model.from_pretrained, recipe.model.revision) | {"lora": model["lora"]}
    return {
        "seed": recipe.run.seed,
        "sources": shares,
        **recipe.data.model_dump(include={"min_shares", "phases", "skip", "fit_to_corpus"}),
        "model": model,
        "training": recipe.training.model_dump(exclude=observing),
    }


def release_settings(recipe: Recipe) -> dict:
    said = {source.name: [source.license, source.url] for source in recipe.data.sources}
    elsewhere = {"private", "revision_steps", "tokenizer_repo_id", "dataset_repo_id", "dataset_text"}
    return recipe.hub.model_dump(exclude=elsewhere) | {"sources": said}


def plan_settings(recipe: Recipe) -> dict:
    """Everything in the recipe that decides the plan; what earlier stages counted is read too."""
    shares = [[source.name, source.label, source.share] for source in recipe.data.sources]
    return {
        "plan": recipe.plan.model_dump(),
        "sources": shares,
        **recipe.data.model_dump(include={"min_shares", "max_repetitions"}),
        "vocab_size": recipe.tokenizer.vocab_size,
        **recipe.training.model_dump(include={"sequence_length", "optimizer"}),
    }


STAGES = {
    # It reads what is there of its inputs, and is made first: the finished run is put into its charts at the end.
    "plan": Stage("recipes/plan_run.py", "plan", plan_settings, ("prepare", "tokenizer", "pretrain"), derived=True),
    "requests": Stage("eval/run_eval.py", "benchmarks", requests_settings, derived=True),
    "prepare": Stage("recipes/prepare_data.py", "documents", documents_settings, once=exported_benchmarks),
    "tokenizer": Stage(
        "recipes/train_tokenizer.py",
        "tokenizer",
        tokenizer_settings,
        ("prepare",),
        descriptions=("report.json", "speed.json", "README.md"),
    ),
    "tokenize": Stage("recipes/tokenize_corpus.py", "tokens", lambda recipe: {}, ("prepare", "tokenizer")),
    "pretrain": Stage("recipes/pretrain.py", "model", training_settings, ("tokenize", "tokenizer")),
    "evaluate": Stage(
        "eval/run_eval.py",
        "eval",
        lambda recipe: recipe.evaluation.model_dump(exclude={"batch_size"}),
        ("requests", "prepare", "pretrain"),
        derived=True,
    ),
    "report": Stage(
        "eval/report.py", "figures", lambda recipe: {}, ("plan", "tokenizer", "pretrain", "evaluate"), derived=True
    ),
    "publish": Stage(
        "recipes/push_to_hub.py",
        "release",
        release_settings,
        ("prepare", "tokenizer", "pretrain", "evaluate", "report"),
        derived=True,
    ),
}


class StaleStageError(RecipeError):
    """An output was made from something else than the recipe now says; the message names what and the remedy."""


def output_folder(recipe: Recipe, name: str) -> Path:
    return Path(recipe.run.output_dir) / STAGES[name].output


def has_script(name: str) -> bool:
    return (ROOT / STAGES[name].script).exists()


def read_record(folder: Path) -> dict | None:
    """Return a finished stage's record, or None where there is none.

    Raises: StaleStageError: it is not a record.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not {"settings", "inputs", "sha256", "files"} <= record.keys():
        raise StaleStageError(
            f"{folder / RECORD} cannot be read. Bring it back from a copy, or delete {folder} and run its stage again"
        )
    return record


def input_hashes(recipe: Recipe, name: str) -> dict[str, str | None]:
    """Return the hash of each input's files; None where that stage was not run, as results may be left out."""
    return {
        upstream: hash_input(read_record(output_folder(recipe, upstream)), upstream, name)
        for upstream in STAGES[name].inputs
    }


def hash_input(record: dict | None, upstream: str, name: str) -> str | None:
    """Return the hash of what a stage reads of another's output, given its record."""
    if record is None or STAGES[name].derived:
        return record and record["sha256"]
    return hash_files(
        {path: file for path, file in record["files"].items() if path not in STAGES[upstream].descriptions}
    )


def differences(recipe: Recipe, name: str, once: bool = False) -> list[str] | None:
    """Say what a stage's output was made from that is different now; None where there is no output.

    Args: once: count too what matters only when the output is made.
    """
    record = read_record(output_folder(recipe, name))
    if record is None:
        return None
    found = compare(record["settings"], json.loads(json.dumps(STAGES[name].settings(recipe))), "")
    if once:
        found += compare(record.get("once", {}), STAGES[name].once(recipe), "")
    return found + [
        f"the output of {upstream} changed"
        for upstream, sha256 in input_hashes(recipe, name).items()
        if record["inputs"].get(upstream) != sha256
    ]


def compare(before: object, now: object, path: str) -> list[str]:
    """List the leaves in which two settings differ, as `key.path was X, is Y`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*before, *now]))
        return [line for key in keys for line in compare(before.get(key), now.get(key), f"{path}.{key}".strip("."))]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [line for index, (a, b) in pairs for line in compare(a, b, f"{path}.{index}")]
    return [] if before == now else [f"{path} was {json.dumps(before)}, is {json.dumps(now)}"]


def is_finished(recipe: Recipe, name: str, overwrite: bool = False) -> bool:
    """Return whether a stage has nothing left to do.

    Raises: StaleStageError: when its output is there but out of date, unless it is derived or overwrite is set.
    """
    changed = differences(recipe, name, once=overwrite)
    if changed is None:
        return False
    if changed and not overwrite and not STAGES[name].derived:
        raise StaleStageError(
            f"{output_folder(recipe, name)} is out of date: {'; '.join(changed)}. "
            f"Run with --overwrite to make it anew, or set another run.output_dir."
        )
    return not changed


def require(recipe: Recipe, name: str, part: tuple[int, int] = (0, 1)) -> Path:
    """Return the folder of a finished input stage, after reading its files through.

    Args: part: (k, n) reads the k-th of n equal parts of them, for n processes that share the work.

    Raises: StaleStageError: when it is missing, out of date or damaged, with the command that makes it.
    """
    changed = differences(recipe, name)
    if changed is None or changed:
        state = "is missing" if changed is None else f"is out of date: {'; '.join(changed)}"
        script = "recipes/run_recipe.py" if STAGES[name].derived else STAGES[name].script
        raise StaleStageError(
            f"{output_folder(recipe, name)} {state}; rerun: python {script} with the same --config"
            + (" and --overwrite" if changed and not STAGES[name].derived else "")
        )
    if damage := find_damage(output_folder(recipe, name), part):
        raise StaleStageError(
            f"{output_folder(recipe, name)} is damaged: {'; '.join(damage[:5])}. Bring it back from a copy, or delete "
            f"it and rerun {STAGES[name].script}"
        )
    return output_folder(recipe, name)


def find_damage(folder: Path, part: tuple[int, int] = (0, 1)) -> list[str]:
    """Say which files of a finished stage are not what its record says; see require for `part`."""
    record, (process, processes), problems = read_record(folder), part, []
    if hash_files(record["files"]) != record["sha256"]:
        problems.append(f"{RECORD}: the list of files is not the one it was made with")
    for name, recorded in sorted(record["files"].items())[process::processes]:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{name}: outside of the folder")
        elif not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != recorded["bytes"]:
            problems.append(f"{name}: {path.stat().st_size:,} bytes, {recorded['bytes']:,} when it was made")
        elif file_sha256(path) != recorded["sha256"]:
            problems.append(f"{name}: its sha256 is not the one of when it was made")
    return problems


@contextmanager
def new_output(recipe: Recipe, name: str) -> Iterator[Path]:
    """Give a stage the folder to write into, and turn it into the stage's output when the block ends without error.

    The same recipe and inputs give the same folder, so what an interrupted try left in it can be built upon.
    """
    made_from = describe_inputs(recipe, name)
    identity = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    final = output_folder(recipe, name)
    partial = final.parent / f".{final.name}.{identity[:12]}.tmp"
    partial.mkdir(parents=True, exist_ok=True)
    yield partial
    write_record(partial, name, made_from)
    replaced = final.parent / f".{final.name}.{identity[:12]}.old"
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    sync(final.parent)
    for leftover in final.parent.glob(f".{final.name}.*"):
        discard(leftover)


def discard(folder: Path) -> None:
    """Delete a folder such that an interrupted deletion leaves nothing that could be taken for a part of it."""
    trash = folder.with_name(f".trash.{folder.name}")
    shutil.rmtree(trash, ignore_errors=True)
    folder.rename(trash)
    shutil.rmtree(trash)


def describe_inputs(recipe: Recipe, name: str) -> dict[str, dict]:
    """Return all that a stage's output is made from, as its record keeps it."""
    stage = STAGES[name]
    return {"settings": stage.settings(recipe), "inputs": input_hashes(recipe, name), "once": stage.once(recipe)}


def write_record(folder: Path, name: str, made_from: dict[str, dict]) -> None:
    """Sync every file of a folder to disk and write `stage.json` beside them."""
    for leftover in folder.rglob(".*"):  # no output has a hidden name; a file that a killed try was writing has one
        if not leftover.is_dir():  # as .eval_results, which the Hub reads
            leftover.unlink()
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / RECORD)
    files = {}
    for path in paths:
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        sync(path)
    record = {"format": RECORD_FORMAT, "stage": name, **made_from, "sha256": hash_files(files), "files": files}
    write_json(folder / RECORD, record)


def record_stage(recipe: Recipe, name: str) -> None:
    """Record a stage whose script knows nothing of recipes, once it has written its output folder."""
    write_record(output_folder(recipe, name), name, describe_inputs(recipe, name))


def hash_files(files: dict[str, dict]) -> str:
    """Return the hash of a record's list of files, which has the hash of each."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON so that the file is either the old one or the whole new one, whatever happens."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the whole new one, whatever happens."""
    partial = path.with_name(f".{path.name}.tmp")
    partial.unlink(missing_ok=True)  # a link that lies there would lead the text out of the run folder
    with partial.open("x", encoding="utf-8") as file:
        file.write(text)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def read_json(path: Path) -> dict | None:
    """Return the object in a JSON file; None where there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_json_lines(path: Path) -> list[dict]:
    """Return the entries of a file of JSON lines, without a last one that was cut short; empty where there is none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # splitlines cuts at U+2028 too
    return [json.loads(line) for line in lines[:-1]]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
