# SPDX-License-Identifier: Apache-2.0
"""The stages of a recipe: for each its script, its output folder, the settings that decide its output, its inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atomic_files import RECORD, file_sha256, hash_items, read_record
from recipe_config import Recipe
from sources.units import source_fingerprint


ROOT = Path(__file__).resolve().parent.parent


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


def output_folder(recipe: Recipe, name: str) -> Path:
    return Path(recipe.run.output_dir) / STAGES[name].output


def has_script(name: str) -> bool:
    return (ROOT / STAGES[name].script).exists()
