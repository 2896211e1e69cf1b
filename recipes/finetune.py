# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a model to summarise or to converse: supervised, with TRL's SFTTrainer, every weight or peft's adapters.

In:   finetune.* of the recipe: a model (by default model/ of the run), and documents with summaries, or conversations,
      to train on and to test on, from the Hub or a file.
Out:  <run.output_dir>/finetuned/: the model (adapters merged), results.json (ROUGE of its summaries, of the model's
      before, and of each document's first sentences, with the differences on the same documents; or bits per byte of
      the answers before and after) and README.md, the card.

    python recipes/finetune.py --config recipes/legal/summarise.yaml
    python recipes/finetune.py --config recipes/legal/summarise.yaml --finetune.model=HuggingFaceTB/SmolLM2-360M \\
        --finetune.sequence_length=4096 --run.output_dir=runs/smollm2-summaries
    python recipes/finetune.py --config recipes/legal/chat.yaml
    accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 8 recipes/finetune.py --config ...
    python recipes/summary_page.py --config recipes/legal/summarise.yaml     # paste a text, read its summary

The same command resumes a stopped run from its newest checkpoint.
"""

import hashlib
import json
import os
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env, set_seed
from datasets import Dataset, disable_progress_bars
from rouge_score import rouge_scorer
from scipy.stats import bootstrap
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTConfig, SFTTrainer

from atomic_files import RECORD, discard, empty_trash, read_json, write_json
from card_text import render_card
from child_processes import leave_on_signals
from conversations import (
    answer,
    answer_bits,
    bits_per_byte,
    encode_messages,
    mark_answers,
    questions,
    read_conversations,
    stop_tokens,
    with_chat_template,
    without_control_tokens,
)
from corpus.benchmark_overlap import BenchmarkIndex
from corpus.data_card import origin
from launching import refuse_lone_process
from model.continued import lora_config
from model.families import refuse_other_families
from publishing.base_licence import refuse_licence, terms_along
from publishing.base_model import Base, base_of, find_base, find_licensors, find_teachers
from recipe_config import Finetune, Recipe, RecipeError, Source, refuse_missing_folder
from recipe_loading import parse_command_line, run_command, silence_transformers
from recovery.run_lock import run_lock
from recovery.tuning_checkpoints import kept_precision, newest_checkpoint, seal, write_precision
from run_folder import is_finished, new_output, require, write_record
from sources.readers import read_unit
from sources.row_checks import Unreadable
from sources.units import list_units
from stages import STAGES, benchmarks_folder, output_folder, why_unchecked
from summaries import CHAT_TEMPLATE, build_completion, build_prompt, encode, lead, summarise


METRICS = ("rouge1", "rouge2", "rougeL")
SHOWN_EXAMPLES = 3


def read_examples(source: Source, settings: Finetune, limit: int | None) -> tuple[list[tuple[str, str]], int]:
    """Return at most `limit` (document, summary) pairs of a source, and how many rows lacked one of the two.

    Raises: RecipeError: no row has both.
    """
    examples, left_out = [], 0
    for unit in list_units(source):
        for row in read_unit(source, unit):
            found = None
            if not isinstance(row, Unreadable):
                found = [row.get(field) for field in (settings.document_field, settings.summary_field)]
            if found is None or not all(isinstance(text, str) and text.strip() for text in found):
                left_out += 1
                continue
            examples.append((found[0], found[1].strip()))
            if len(examples) == limit:
                return examples, left_out
    if not examples:
        raise RecipeError(
            f"finetune: {source.name}: none of {left_out} rows of {source.path} has texts in both fields "
            f"{settings.document_field!r} and {settings.summary_field!r}; set finetune.document_field, summary_field"
        )
    return examples, left_out


def load_model(settings: Finetune, folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model to fine-tune, in fp32, and its tokenizer.

    Raises: RecipeError: it cannot be loaded, is of no known family, names code of its own, or reads fewer tokens than
        finetune.sequence_length.
    """
    where, place = f"finetune.model={folder!r}", {"revision": settings.revision, "trust_remote_code": False}
    refuse_missing_folder("finetune.model", folder)
    try:
        config = AutoConfig.from_pretrained(folder, **place)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where}: cannot be loaded: {error}") from error
    refuse_other_families(config, where)
    longest = config.max_position_embeddings
    if longest < settings.sequence_length:
        raise RecipeError(
            f"finetune.sequence_length={settings.sequence_length} is more than the {longest} tokens that {folder} "
            "reads; lower it"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **place)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", use_safetensors=True, **place)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where}: cannot be loaded: {error}") from error
    if settings.lora is not None:
        lora_config(settings.lora, model, "finetune.lora")  # refuses before anything is scored
    if settings.task == "chat":
        tokenizer = with_chat_template(tokenizer, settings.lora is not None)
    elif settings.template == "chat" and tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    return model, tokenizer


def rouge(summaries: list[str], references: list[str]) -> dict[str, np.ndarray]:
    """Return ROUGE-1, -2 and -L (F1, stemmed) of each document."""
    scorer = rouge_scorer.RougeScorer(METRICS, use_stemmer=True)
    scores = [scorer.score(*pair) for pair in zip(references, summaries, strict=True)]
    return {name: np.array([score[name].fmeasure for score in scores]) for name in METRICS}


def mean_with_interval(values: np.ndarray) -> dict[str, float | None]:
    """Return the mean over documents, between the bounds of its 95 % bootstrap interval (BCa); None of one document.

    Of the differences between two models on the same documents this is the paired bootstrap.
    """
    low = high = mean = float(values.mean())
    if len(values) < 2:
        return {"low": None, "mean": mean, "high": None}
    if np.ptp(values):  # else every resample has the same mean
        low, high = bootstrap((values,), np.mean, rng=np.random.default_rng(0), batch=1000).confidence_interval
    return {"low": float(low), "mean": mean, "high": float(high)}


def summarise_together(documents: list[str], model, tokenizer, settings: Finetune, progress: str) -> list[str]:
    """Summarise documents, shared among the processes; every process returns all summaries, in order."""
    state = PartialState()
    mine = range(state.process_index, len(documents), state.num_processes)
    shown = progress if state.is_main_process else None
    found = summarise([documents[index] for index in mine], model, tokenizer, settings, progress=shown)
    gathered = dict(gather_object(list(zip(mine, found, strict=True))))
    return [gathered[index] for index in range(len(documents))]


@dataclass
class Examples:
    """What the model is trained and tested on.

    Attributes:
        train, test: (document, summary) pairs.
        left_out: rows without a document or a summary, by split; training documents that are in the test too, and
            those that hold benchmark items, None where these were not looked for.
    """

    train: list[tuple[str, str]]
    test: list[tuple[str, str]]
    left_out: dict[str, int | None]


def choose_examples(settings: Finetune, benchmarks: BenchmarkIndex | None, min_overlap_fraction: float) -> Examples:
    """Read both splits, and leave test documents and those that hold benchmark items out of the training ones.

    Raises: RecipeError: no training document is left.
    """
    test, test_left_out = read_examples(settings.test, settings, settings.max_test_documents)
    train, train_left_out = read_examples(settings.train, settings, settings.max_train_documents)
    held_out = {document for document, _ in test}
    kept = [pair for pair in train if pair[0] not in held_out]
    if not kept:
        raise RecipeError("finetune.train: every document is in finetune.test too; split them")
    left_out = {"train": train_left_out, "test": test_left_out, "train_also_in_test": len(train) - len(kept)}
    left_out["train_with_benchmark_items"] = None
    if benchmarks is not None:
        clean = [
            pair
            for pair in kept
            if max(benchmarks.overlaps("\n".join(pair)).values(), default=0) < min_overlap_fraction
        ]
        left_out["train_with_benchmark_items"] = len(kept) - len(clean)
        if not clean:
            raise RecipeError("finetune.train: every document holds benchmark items; choose other documents")
        kept = clean
    return Examples(kept, test, left_out)


def load_benchmarks(recipe: Recipe) -> tuple[BenchmarkIndex | None, float]:
    """Return the index of the benchmarks that the run's documents were checked against, None where there are none, and
    the fraction of an item from which a document holds it.
    """
    folder = benchmarks_folder(recipe) if why_unchecked(recipe) is None else None
    if folder is None or not any(folder.glob("*.jsonl")):
        return None, 1.0
    settings = recipe.data.decontamination
    return BenchmarkIndex(folder, settings.ngram_words), settings.min_overlap_fraction


def accumulation_steps(settings: Finetune, num_processes: int) -> int:
    """Return how many batches a step adds up. Raises: RecipeError: examples_per_step is no multiple of a batch."""
    per_batch = settings.per_device_train_batch_size * num_processes
    if settings.examples_per_step % per_batch:
        raise RecipeError(
            f"finetune.examples_per_step={settings.examples_per_step} is not a multiple of "
            f"per_device_train_batch_size * num_processes = {per_batch}"
        )
    return settings.examples_per_step // per_batch


class SealedCheckpoints(TrainerCallback):
    """Seal a checkpoint when all processes have written their files of it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


def build_trainer(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    checkpoints: Path,
    precision: str | None = None,
) -> SFTTrainer:
    """Return TRL's trainer, whose loss counts the summaries or answers only.

    Conversations share sequences, without seeing each other: positions, which begin anew with each, give the borders.

    Args: precision: of the steps before, whatever this machine or its launch file would take; None: theirs.
    """
    settings, state = recipe.finetune, PartialState()
    packing = settings.task == "chat"
    disable_progress_bars()  # of datasets, one for each step of TRL's over the rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about the names of TRL's own settings
        arguments = SFTConfig(
            output_dir=str(checkpoints),
            max_length=settings.sequence_length,
            completion_only_loss=not packing,
            packing=packing,
            num_train_epochs=settings.num_train_epochs,
            per_device_train_batch_size=settings.per_device_train_batch_size,
            gradient_accumulation_steps=accumulation_steps(settings, state.num_processes),
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,  # a fraction, since it is below 1
            weight_decay=0.0,
            logging_steps=10,
            save_steps=settings.save_steps,
            seed=recipe.run.seed,
            data_seed=recipe.run.seed,
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=not state.is_main_process,
        )
    if precision not in (None, arguments.mixed_precision):
        state.print(f"finetune: resumes in mixed precision {precision}, as before, not {arguments.mixed_precision}")
        arguments.mixed_precision = precision
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(settings.lora, model, "finetune.lora") if settings.lora else None,
        callbacks=[SealedCheckpoints()],
    )


def train(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    checkpoints: Path,
) -> tuple[PreTrainedModel, int, dict]:
    """Train a model on rows, from the last checkpoint on if there is one.

    Returns: the model, with its adapters merged; how many parameters were trained; and steps, last_loss, seconds,
        resumed_from and mixed_precision, as results.json has them.
    """
    with PartialState().main_process_first():
        last = newest_checkpoint(checkpoints)
        kept = kept_precision(checkpoints) if last else None
    trainer = build_trainer(recipe, model, tokenizer, rows, checkpoints, kept)
    if PartialState().is_main_process:
        write_precision(checkpoints, trainer.args.mixed_precision)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=last)
    seconds = time.perf_counter() - started
    tuned = trainer.accelerator.unwrap_model(trainer.model)
    trained = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    if recipe.finetune.lora:
        tuned = tuned.merge_and_unload()
    return (
        tuned,
        trained,
        {
            "steps": trainer.state.global_step,
            "last_loss": trainer.state.log_history[-1].get("train_loss"),
            "seconds": seconds,
            "resumed_from": last and Path(last).name,
            "mixed_precision": trainer.args.mixed_precision,
        },
    )


def finetune(recipe: Recipe, made_from: dict, folder: str) -> dict:
    """Train, score and write finetuned/; return the content of results.json.

    Args:
        recipe: with its finetune section.
        made_from: what decides the result; its hash names the checkpoints.
        folder: Hub id or folder of the model to fine-tune.
    """
    settings, state = recipe.finetune, PartialState()
    set_seed(recipe.run.seed)
    examples = choose_examples(settings, *load_benchmarks(recipe))
    model, tokenizer = load_model(settings, folder)
    if state.is_main_process:
        print(f"finetune: {len(examples.train):,} documents to train on, {len(examples.test):,} to test on, {folder}")
        found = examples.left_out["train_with_benchmark_items"]
        print(f"finetune: training documents with benchmark items: {'not looked for' if found is None else found}")
    documents, references = ([pair[part] for pair in examples.test] for part in (0, 1))
    model.to(state.device)
    before = summarise_together(documents, model, tokenizer, settings, "finetune: summaries before")

    identity = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    checkpoints = Path(recipe.run.output_dir) / "finetune_checkpoints" / identity
    rows = [
        {"prompt": build_prompt(document, settings, tokenizer), "completion": build_completion(summary, settings)}
        for document, summary in examples.train
    ]
    tuned, trained, progress = train(recipe, model, tokenizer, rows, checkpoints)
    after = summarise_together(documents, tuned, tokenizer, settings, "finetune: summaries after")

    leads = [lead(document, settings.lead_sentences) for document in documents]
    summaries = {f"first {settings.lead_sentences} sentences": leads, "before": before, "after": after}
    scores = {name: rouge(found, references) for name, found in summaries.items()}
    results = {
        "made_from": made_from,
        "model": {"parameters": tuned.num_parameters(), "trained": trained},
        "documents": {"train": len(examples.train), "test": len(examples.test), "left_out": examples.left_out},
        **progress,
        "rouge": {
            name: {metric: mean_with_interval(values) for metric, values in found.items()}
            for name, found in scores.items()
        },
        "after_minus": {
            name: {metric: mean_with_interval(scores["after"][metric] - found[metric]) for metric in METRICS}
            for name, found in scores.items()
            if name != "after"
        },
        "cut_documents": sum(is_truncated(document, settings, tokenizer) for document in documents),
        "examples": [
            {"reference": reference, "before": old, "after": new}
            for reference, old, new in list(zip(references, before, after, strict=True))[:SHOWN_EXAMPLES]
        ],
    }
    if state.is_main_process:
        write_output(recipe, tuned, tokenizer, results)
        if checkpoints.parent.exists():
            discard(checkpoints.parent)
    state.wait_for_everyone()
    return results


def choose_conversations(
    settings: Finetune, benchmarks: BenchmarkIndex | None, min_overlap_fraction: float
) -> Examples:
    """Read both splits, and leave what the test asks and what holds benchmark items out of the training one."""
    test, test_left_out = read_conversations(settings.test, settings.max_test_documents)
    train, train_left_out = read_conversations(settings.train, settings.max_train_documents)
    held_out = {questions(messages) for messages in test}
    kept = [messages for messages in train if questions(messages) not in held_out]
    left_out = {"train": train_left_out, "test": test_left_out, "train_also_in_test": len(train) - len(kept)}
    left_out["train_with_benchmark_items"] = None
    if benchmarks is not None:
        texts = ["\n".join(message["content"] for message in messages) for messages in kept]
        found = [max(benchmarks.overlaps(text).values(), default=0) for text in texts]
        kept = [one for one, overlap in zip(kept, found, strict=True) if overlap < min_overlap_fraction]
        left_out["train_with_benchmark_items"] = len(found) - len(kept)
    return Examples(kept, test, left_out)


def finetune_chat(recipe: Recipe, made_from: dict, folder: str) -> dict:
    """Train on conversations, score and write finetuned/; as `finetune`, but for the scores.

    Raises: RecipeError: no conversation fits finetune.sequence_length.
    """
    settings, state = recipe.finetune, PartialState()
    set_seed(recipe.run.seed)
    examples = choose_conversations(settings, *load_benchmarks(recipe))
    model, tokenizer = load_model(settings, folder)
    train_set, test_set = (
        [without_control_tokens(messages, tokenizer) for messages in split]
        for split in (examples.train, examples.test)
    )
    marked = [mark_answers(messages, tokenizer) for messages in train_set]
    fitting = [rows for rows in marked if max(len(row["input_ids"]) for row in rows) <= settings.sequence_length]
    scored = [one for one in test_set if len(encode_messages(one, tokenizer)) <= settings.sequence_length]
    too_long = {"train_too_long": len(marked) - len(fitting), "test_too_long": len(test_set) - len(scored)}
    left_out = examples.left_out | too_long
    for split, found in (("train", fitting), ("test", scored)):
        if not found:
            raise RecipeError(
                f"finetune.{split}: no conversation fits finetune.sequence_length={settings.sequence_length} and is "
                f"in one of the two only ({left_out}); raise it, or give other rows"
            )
    if state.is_main_process:
        print(f"finetune: {len(fitting):,} conversations to train on, {len(scored):,} to test on, {folder}")
    model.to(state.device)
    before = answer_bits(model, tokenizer, scored)
    shown = scored[:SHOWN_EXAMPLES]
    answers = [[answer(one, model, tokenizer, settings.max_summary_tokens) for one in shown]]

    identity = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    checkpoints = Path(recipe.run.output_dir) / "finetune_checkpoints" / identity
    tuned, trained, progress = train(recipe, model, tokenizer, list(chain.from_iterable(fitting)), checkpoints)
    after = answer_bits(tuned, tokenizer, scored)
    answers.append([answer(one, tuned, tokenizer, settings.max_summary_tokens) for one in shown])
    tuned.generation_config.eos_token_id = stop_tokens(fitting[0][0], tokenizer)
    results = {
        "made_from": made_from,
        "model": {"parameters": tuned.num_parameters(), "trained": trained},
        "documents": {"train": len(fitting), "test": len(scored), "left_out": left_out},
        **progress,
        "bits_per_byte": {"before": bits_per_byte(before), "after": bits_per_byte(after)},
        "answer_bytes": int(after[:, 1].sum()),
        "examples": [
            {"prompt": one[-2]["content"], "reference": one[-1]["content"], "before": old, "after": new}
            for one, old, new in zip(shown, *answers, strict=True)
        ],
    }
    if state.is_main_process:
        write_output(recipe, tuned, tokenizer, results)
        if checkpoints.parent.exists():
            discard(checkpoints.parent)
    state.wait_for_everyone()
    return results


def is_truncated(document: str, settings: Finetune, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a document fills its prompt, up to 8 tokens, so that its end was truncated."""
    room = settings.sequence_length - settings.max_summary_tokens
    return len(encode(build_prompt(document, settings, tokenizer), tokenizer)) >= room - 8


def write_output(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, results: dict) -> None:
    """Write finetuned/."""
    with new_output(recipe, "finetune", {"settings": results["made_from"], "inputs": {}, "once": {}}) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "results.json", results)
        (folder / "README.md").write_text(write_card(recipe, results), encoding="utf-8")


def tuned_base(recipe: Recipe) -> Base | None:
    """Return the model of others that is fine-tuned, or that the run continued; None for a run from scratch."""
    settings = recipe.finetune
    return base_of(settings.model, settings.revision) if settings.model else find_base(recipe)


def write_card(recipe: Recipe, results: dict) -> str:
    """Return the model card."""
    front_matter = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": recipe.hub.shown_license,
        "language": recipe.hub.language,
        "tags": ["conversational" if recipe.finetune.task else "summarization", "trl", "sft"],
    }
    settings, base = recipe.finetune, tuned_base(recipe)
    if base and base.hub_id():
        front_matter["base_model"] = base.hub_id()
    continued = f", continued from {base.lineage()}" if base else ""
    licences = " and ".join(link.licence or "not stated" for link in find_licensors(base)) if base else ""
    return render_card(
        Path(__file__).parent / "publishing" / ("chat_card.md" if settings.task else "finetune_card.md"),
        front_matter,
        settings=settings,
        base=base,
        model_name=base.lineage() if settings.model else f"model/ of the run{continued}",
        model_licence=(licences or "not stated")
        if settings.model
        else "; of its base ".join(filter(None, [recipe.hub.shown_license, licences])),
        terms=terms_along(base, [] if settings.model else find_teachers(recipe)),
        origins={"train": origin(settings.train), "test": origin(settings.test)},
        results=results,
        title=f"{Path(recipe.run.output_dir).name}, fine-tuned to {'converse' if settings.task else 'summarise'}",
    )


def adopt_earlier(recipe: Recipe) -> None:
    """Record a finetuned/ of an earlier version, whose results.json holds what it was made from."""
    folder = output_folder(recipe, "finetune")
    results = read_json(folder / "results.json")
    if results and not (folder / RECORD).exists():
        write_record(folder, "finetune", {"settings": results["made_from"], "inputs": {}, "once": {}})


@leave_on_signals("finished checkpoints are kept")
def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    silence_transformers()
    settings = recipe.finetune
    if settings is None:
        raise RecipeError(
            "finetune: missing; recipes/legal/summarise.yaml shows one, and --config takes it after your own file"
        )
    folder = settings.model or str(require(recipe, "pretrain"))
    refuse_missing_folder("finetune.model", folder)
    refuse_lone_process()
    # Unlike Accelerator, PartialState ignores this variable, and each process would train alone.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise SystemExit(f"finetune: Accelerate counts {state.num_processes} processes; see accelerate_configs/")
    with state.main_process_first():
        adopt_earlier(recipe)
        finished = is_finished(recipe, "finetune", options.overwrite)
    if finished:
        if state.is_main_process and not options.dry_run:
            empty_trash(Path(recipe.run.output_dir) / "finetune_checkpoints")
        state.print(f"finetune: nothing to do, {output_folder(recipe, 'finetune')} is up to date")
        return
    if options.dry_run:
        state.print(f"finetune: would fine-tune {folder} with {settings.train.path}")
        return
    unnamed = recipe.hub.model_copy(update={"repo_id": None})  # the name is that of the run's own model
    teachers = [] if settings.model else find_teachers(recipe)
    refuse_licence(recipe.model_copy(update={"hub": unnamed}), tuned_base(recipe), teachers)
    train = finetune_chat if settings.task else finetune
    with run_lock(Path(recipe.run.output_dir), "finetune") if state.is_main_process else nullcontext():
        results = train(recipe, STAGES["finetune"].settings(recipe), folder)
    if PartialState().is_main_process and settings.task:
        scores = ", ".join(f"{scores['mean']:.3f} {name}" for name, scores in results["bits_per_byte"].items())
        print(
            f"finetune: {results['steps']:,} steps in {results['seconds']:.0f} s; bits per byte of answers {scores}; "
            f"{output_folder(recipe, 'finetune')}"
        )
    elif PartialState().is_main_process:
        scores = ", ".join(f"{name} {scores['rouge2']['mean']:.3f}" for name, scores in results["rouge"].items())
        print(
            f"finetune: {results['steps']:,} steps in {results['seconds']:.0f} s; ROUGE-2 {scores}; "
            f"{output_folder(recipe, 'finetune')}"
        )


if __name__ == "__main__":
    run_command(main)
