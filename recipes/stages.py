# SPDX-License-Identifier: Apache-2.0
"""The stages of a recipe: each one's script, arguments, output folder, inputs, and the settings behind its output."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atomic_files import RECORD, file_sha256, hash_items, read_record
from file_hashes import remembered_hashes
from recipe_config import Recipe, RecipeError
from sources.units import source_fingerprint


ROOT = Path(__file__).resolve().parent.parent
BASE_FILES = (".json", ".safetensors", ".model", ".txt", ".jinja")  # of a model or a tokenizer


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        script: its path below the repository's root.
        output: its folder in the run folder.
        settings: returns the settings that decide its output; another value makes the output out of date.
        inputs: the stages whose outputs it reads.
        arguments: returns the arguments of a script that reads no recipe; None: the script takes the recipe.
        derived: whether it is cheap, so that an output that is out of date is replaced without --overwrite.
        once: returns settings that are compared only with --overwrite: without it, an output made with other values
            stays up to date.
        descriptions: files of its output that only derived stages read: they make no other stage out of date.
        files: the files of its output, where its folder also holds what the next try needs; empty: the whole folder.
        by_hand: whether only its own command runs it, and not run_recipe.py.
        earlier_settings: returns its settings as earlier versions recorded them.
    """

    script: str
    output: str
    settings: Callable[[Recipe], dict]
    inputs: tuple[str, ...] = ()
    arguments: Callable[[Recipe], list[str]] | None = None
    derived: bool = False
    once: Callable[[Recipe], dict] = lambda recipe: {}
    descriptions: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    by_hand: bool = False
    earlier_settings: Callable[[Recipe], dict] | None = None

    def command(self, recipe: Recipe, options: Sequence[str] = ()) -> list[str]:
        """Return the script and its arguments, for an interpreter or a launcher.

        Args: options: `--config`, its files and the overrides, for a script that takes the recipe.
        """
        return [str(ROOT / self.script), *(self.arguments(recipe) if self.arguments else options)]


def documents_settings(recipe: Recipe, whole_files: bool = True) -> dict:
    """Return what decides the documents: neither their mixture nor the machine that prepares them.

    Args: whole_files: as in source_fingerprint.
    """
    mixture = {"min_shares", "phases", "skip", "max_repetitions", "repack", "fit_to_corpus"}
    not_deciding = {"workers", "executor", "slurm", "extract_text", "dropped_samples_bytes"}
    data = recipe.data.model_dump(exclude=mixture | not_deciding)
    if recipe.data.near_duplicates is not None:
        earlier = {folder: read_record(Path(folder)) for folder in recipe.data.near_duplicates.against}
        data["near_duplicates"]["against"] = [record["sha256"] if record else path for path, record in earlier.items()]
    with remembered_hashes(memory_folder(recipe)) as sha256:
        if recipe.data.decontamination is not None and recipe.data.decontamination.benchmarks is not None:
            data["decontamination"]["benchmarks"] = hash_items(benchmarks_folder(recipe), sha256)  # not their path
        for source, settings in zip(recipe.data.sources, data["sources"], strict=True):
            # To correct the card or the mixture, nothing has to be prepared again.
            for key in ("share", "max_repetitions", "license", "url"):
                del settings[key]
            del settings["ignore"]  # the fingerprint is of what is read
            settings["fingerprint"] = source_fingerprint(source, sha256, whole_files)
        helpers = find_helpers(Path(recipe.data.extract_text))
        data |= {"extract_text_helpers": {path.name: sha256(path) for path in helpers}} if helpers else {}
        return data | {"extract_text_sha256": sha256(Path(recipe.data.extract_text))}


def memory_folder(recipe: Recipe) -> Path:
    """Return the folder that remembers hashes: the run folder, or that of the documents which runs share by a link."""
    return output_folder(recipe, "prepare").resolve().parent


def find_helpers(script: Path) -> list[Path]:
    """Return the modules beside data.py that it imports, and those that these import.

    Raises: RecipeError: one is not Python.
    """
    found, waiting = [], [script]
    while waiting:
        path = waiting.pop()
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, SyntaxError) as error:
            raise RecipeError(f"data.extract_text: {path} cannot be read: {error}") from error
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        for name in names:
            place = script.parent.joinpath(*name.split("."))
            for helper in (place.with_suffix(".py"), place / "__init__.py"):
                if helper.is_file() and helper not in [script, *found]:
                    found.append(helper)
                    waiting.append(helper)
    return sorted(found)


def why_unchecked(recipe: Recipe) -> str | None:
    """Return why a recipe's documents are not checked against benchmarks; None if they are."""
    decontamination = recipe.data.decontamination
    if decontamination is None:
        return "data.decontamination is not set"
    if decontamination.benchmarks is None and not exported_tasks(recipe):
        return "evaluation.tasks names no benchmark"
    if decontamination.benchmarks is None and not has_script("requests"):
        return "there was no eval/ folder beside recipes/ to take the benchmarks from"
    return None


def benchmarks_folder(recipe: Recipe) -> Path:
    """Return the folder of benchmarks that documents are checked against: the recipe's own, or the run's."""
    return Path(recipe.data.decontamination.benchmarks or output_folder(recipe, "requests"))


def exported_benchmarks(recipe: Recipe) -> dict:
    """Return task -> hash of the benchmarks exported for this run; empty if the recipe names its own or none."""
    if why_unchecked(recipe) is not None or recipe.data.decontamination.benchmarks is not None:
        return {}
    missing = dict.fromkeys(sorted(unexported_tasks(recipe)), "not exported")
    with remembered_hashes(memory_folder(recipe)) as sha256:
        return {"benchmarks": missing | hash_items(benchmarks_folder(recipe), sha256)}


def exported_tasks(recipe: Recipe) -> list[str]:
    """Return the tasks, groups and suites whose items the stage `requests` writes."""
    return list(dict.fromkeys([*recipe.evaluation.tasks, *recipe.training.eval_tasks]))


def unexported_tasks(recipe: Recipe) -> list[str]:
    """Return the exported_tasks without items; a group has them if the stage's record names it."""
    folder = output_folder(recipe, "requests")
    record = read_record(folder)
    recorded = record["settings"]["tasks"] if record else []
    return [
        name for name in exported_tasks(recipe) if name not in recorded and not (folder / f"{name}.jsonl").exists()
    ]


def requests_settings(recipe: Recipe) -> dict:
    files = sorted(path for path in (ROOT / "eval" / "tasks").glob("*/*") if path.suffix != ".md")
    with remembered_hashes(memory_folder(recipe)) as sha256:
        hashes = {path.relative_to(ROOT).as_posix(): sha256(path) for path in files if path.is_file()}
    return {"tasks": exported_tasks(recipe), "files": hashes}


def requests_arguments(recipe: Recipe) -> list[str]:
    """Return the arguments but for the last, the folder to write the items to."""
    return ["--tasks", ",".join(exported_tasks(recipe)), "--export_requests"]


def base_content(path: str, revision: str | None, run: Path) -> dict:
    """Return what identifies the base of a continued model or tokenizer: its name and, of a local folder, its content.

    The content is the hash in the folder's record if the files are still those of the record, else their hashes.

    Args: run: the folder that remembers hashes, so that large weights are not read at every start.
    """
    base = {"from_pretrained": path, "revision": revision}
    folder = Path(path)
    if folder.is_dir():
        paths = sorted(path for path in folder.iterdir() if path.suffix in BASE_FILES and path.name != RECORD)
        with remembered_hashes(run) as sha256:
            files = {path.name: sha256(path) for path in paths}
        record = read_record(folder)
        recorded = {name: file["sha256"] for name, file in record["files"].items()} if record else {}
        unchanged = record is not None and files == {name: recorded.get(name) for name in files}
        base["content"] = record["sha256"] if unchanged else files
    return base


def tokenizer_settings(recipe: Recipe) -> dict:
    data = recipe.data
    shares = {source.name: source.share for source in data.sources}
    mixture = {"shares": shares} | data.model_dump(include={"min_shares", "fit_to_corpus"})
    mixture["phases"] = [phase.model_dump(include={"start_fraction", "shares"}) for phase in data.phases]
    settings = recipe.tokenizer.model_dump() | mixture
    if base := recipe.model.from_pretrained or recipe.tokenizer.from_pretrained:
        revision = recipe.model.revision or recipe.tokenizer.revision
        settings["base"] = base_content(base, revision, memory_folder(recipe))
    return settings


def training_settings(recipe: Recipe) -> dict:
    """Return what decides the weights: neither how often training logs, scores and saves, nor the machine."""
    not_deciding = {
        "logging_steps",
        "eval_steps",
        "max_eval_bytes",
        "eval_tasks",
        "max_eval_items",
        "save_steps",
        "save_total_limit",
        "keep_every_steps",
        "report_to",
        "torch_compile",
        "per_device_train_batch_size",
        "attn_implementation",
        "gradient_checkpointing",
    }
    shares = {source.name: {"share": source.share} for source in recipe.data.sources}
    if recipe.data.fit_to_corpus or any(source.share is None for source in recipe.data.sources):
        for source in recipe.data.sources:  # otherwise a limit only decides whether the run is refused
            shares[source.name]["max_repetitions"] = source.max_repetitions or recipe.data.max_repetitions
    model = model_settings(recipe)
    if recipe.model.from_pretrained is not None:  # the base decides the shape, not the recipe
        model = base_content(recipe.model.from_pretrained, recipe.model.revision, memory_folder(recipe))
        model |= {"lora": recipe.model.lora and recipe.model.lora.model_dump()}
    training = recipe.training.model_dump(exclude=not_deciding)
    if recipe.training.distillation is not None:
        # Members follow from the recipe, so they may be deleted once the model has learned from them.
        teachers = recipe.training.distillation.teachers
        training["distillation"]["teachers"] = [base_content(path, None, memory_folder(recipe)) for path in teachers]
    return {
        "seed": recipe.run.seed,
        "sources": shares,
        **recipe.data.model_dump(include={"min_shares", "phases", "skip", "fit_to_corpus"}),
        # Earlier records lack it, or say true, which read less of each shard.
        **({"repack": "to both ends of each shard"} if recipe.data.repack else {}),
        "model": model,
        "training": training,
    }


def model_settings(recipe: Recipe) -> dict:
    return recipe.model.model_dump(exclude=set() if recipe.model.qk_norm else {"qk_norm"})  # earlier records lack it


def release_settings(recipe: Recipe) -> dict:
    sources = {source.name: [source.license, source.url] for source in recipe.data.sources}
    not_deciding = {"private", "revision_steps", "tokenizer_repo_id", "dataset_repo_id", "dataset_text"}
    return recipe.hub.model_dump(exclude=not_deciding) | {"sources": sources} | audit_settings(recipe)


def audit_settings(recipe: Recipe) -> dict:
    """Return what identifies the leak audit that report and card show; nothing where the run was not audited."""
    audit = Path(recipe.run.output_dir) / "audit.json"
    return {"audit": file_sha256(audit)} if audit.exists() else {}


def plan_settings(recipe: Recipe) -> dict:
    """Return the keys that decide the plan, which also reads the counts of earlier stages."""
    shares = [[source.name, source.label, source.share] for source in recipe.data.sources]
    return {
        "plan": recipe.plan.model_dump(),
        "sources": shares,
        **recipe.data.model_dump(include={"min_shares", "max_repetitions"}),
        "vocab_size": recipe.tokenizer.vocab_size,
        **recipe.training.model_dump(
            include={
                *("sequence_length", "optimizer", "attn_implementation", "document_masking"),
                *("weight_decay", "dropout", "average", "distillation"),
            }
        ),
    }


def evaluation_settings(recipe: Recipe) -> dict:
    settings = recipe.evaluation.model_dump(exclude={"batch_size", "baselines"})
    if recipe.evaluation.baselines:
        run = Path(recipe.run.output_dir)
        settings["baselines"] = [base_content(name, None, run) for name in recipe.evaluation.baselines]
    return settings


def vocabulary_settings(recipe: Recipe) -> dict:
    """Return what decides which size choose_vocabulary.py recommends, by its measurements and small models."""
    tokenizer = recipe.tokenizer.model_dump(exclude={"terms", "terms_file", "compare_with"})
    compared = {}
    for place in recipe.tokenizer.compare_with:
        file = Path(place.rpartition("::")[2])  # of zip://member::file
        with remembered_hashes(memory_folder(recipe)) as sha256:
            compared[place] = sha256(file) if file.is_file() else base_content(place, None, memory_folder(recipe))
    return {
        "vocabulary": recipe.vocabulary.model_dump(),
        "tokenizer": tokenizer | {"compare_with": compared},
        "seed": recipe.run.seed,
        "shares": [[source.name, source.label, source.share] for source in recipe.data.sources],
        **recipe.data.model_dump(include={"min_shares", "phases"}),
        "model": model_settings(recipe),
        "training": recipe.training.model_dump(include={"max_tokens", "sequence_length", "max_eval_bytes"}),
    }


def finetune_settings(recipe: Recipe, whole_files: bool = True) -> dict:
    """Return what decides the fine-tuned model, its texts and base by their content.

    Args: whole_files: as in source_fingerprint.
    """
    settings, run = recipe.finetune, Path(recipe.run.output_dir)
    with remembered_hashes(run) as sha256:
        texts = {
            split: source_fingerprint(getattr(settings, split), sha256, whole_files) for split in ("train", "test")
        }
    return {
        "settings": settings.model_dump(),
        "seed": recipe.run.seed,
        "model": base_content(settings.model or str(run / "model"), settings.revision, run),
        "texts": texts,
    }


def evaluate_arguments(recipe: Recipe) -> list[str]:
    run, evaluation = Path(recipe.run.output_dir), recipe.evaluation
    arguments = ["--model", str(run / "model"), "--documents", str(run / "documents")]
    arguments += ["--output", str(run / "eval"), "--max_bytes_per_source", str(evaluation.max_bytes_per_source)]
    arguments += ["--batch_size", str(evaluation.batch_size), "--seed", str(recipe.run.seed)]
    arguments += ["--tasks", ",".join(evaluation.tasks)] if evaluation.tasks else []
    arguments += [f"--prompt={prompt}" for prompt in evaluation.prompts]  # which may begin with a dash
    removed = run / "documents" / "decontamination.json"
    arguments += ["--decontamination", str(removed)] if evaluation.tasks and removed.exists() else []
    if evaluation.baselines:
        arguments += ["--own_contexts", "--baseline_scores", str(run / "baseline_scores")]
        arguments += ["--baselines", *evaluation.baselines]
    return arguments + (["--xz"] if evaluation.xz else [])


def report_arguments(recipe: Recipe) -> list[str]:
    return [str(Path(recipe.run.output_dir))]


STAGES = {
    # Made first, from the inputs that exist; made again at the end, with the finished run in its charts.
    "plan": Stage("recipes/plan_run.py", "plan", plan_settings, ("prepare", "tokenizer", "pretrain"), derived=True),
    "requests": Stage("eval/run_eval.py", "benchmarks", requests_settings, (), requests_arguments, derived=True),
    "prepare": Stage(
        "recipes/prepare_data.py",
        "documents",
        documents_settings,
        once=exported_benchmarks,
        earlier_settings=lambda recipe: documents_settings(recipe, whole_files=False),
    ),
    "tokenizer": Stage(
        "recipes/train_tokenizer.py",
        "tokenizer",
        tokenizer_settings,
        ("prepare",),
        descriptions=("report.json", "speed.json", "README.md"),
    ),
    "tokenize": Stage(
        "recipes/tokenize_corpus.py",
        "tokens",
        lambda recipe: {},
        ("prepare", "tokenizer"),
        descriptions=("encoders.json",),
    ),
    "pretrain": Stage("recipes/pretrain.py", "model", training_settings, ("tokenize", "tokenizer")),
    "evaluate": Stage(
        "eval/run_eval.py",
        "eval",
        evaluation_settings,
        ("requests", "prepare", "pretrain"),
        evaluate_arguments,
        derived=True,
    ),
    "report": Stage(
        "eval/report.py",
        "figures",
        audit_settings,
        ("plan", "tokenizer", "pretrain", "evaluate"),
        report_arguments,
        derived=True,
    ),
    "publish": Stage(
        "recipes/push_to_hub.py",
        "release",
        release_settings,
        ("prepare", "tokenizer", "pretrain", "evaluate", "report"),
        derived=True,
    ),
    "vocabulary": Stage(
        "recipes/choose_vocabulary.py",
        "vocabulary",
        vocabulary_settings,
        ("prepare",),
        files=("vocabulary.json", "vocabulary.png", "runs.csv"),
        by_hand=True,
    ),
    "finetune": Stage(
        "recipes/finetune.py",
        "finetuned",
        finetune_settings,
        by_hand=True,
        earlier_settings=lambda recipe: finetune_settings(recipe, whole_files=False),
    ),
}


def output_folder(recipe: Recipe, name: str) -> Path:
    return Path(recipe.run.output_dir) / STAGES[name].output


def has_script(name: str) -> bool:
    return (ROOT / STAGES[name].script).exists()
