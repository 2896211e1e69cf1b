# SPDX-License-Identifier: Apache-2.0
"""Teach a model to summarise: supervised fine-tuning with TRL's SFTTrainer, every weight or peft's adapters.

In:   finetune.* of the recipe: a model (by default model/ of the run), documents with summaries to learn from and
      others to be scored on, from the Hub or a file.
Out:  <run.output_dir>/finetuned/: the model (adapters merged), results.json (ROUGE of it, of the model before, and of
      the first sentences of each document) and README.md, the card.

    python recipes/finetune.py --config recipes/legal/summarise.yaml
    python recipes/finetune.py --config recipes/legal/summarise.yaml --finetune.model=HuggingFaceTB/SmolLM2-360M \\
        --finetune.sequence_length=4096 --run.output_dir=runs/smollm2-summaries
    accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 8 recipes/finetune.py --config ...
    python recipes/summary_page.py --config recipes/legal/summarise.yaml     # paste a text, read its summary

Started again after a stop, it resumes from its newest checkpoint.
"""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env, set_seed
from datasets import Dataset
from rouge_score import rouge_scorer, scoring
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from atomic_files import read_record, write_json
from card_text import render_card
from model.continued import lora_config
from recipe_config import Finetune, Recipe, RecipeError, Source
from recipe_loading import parse_command_line, run_command
from sources.readers import Unreadable, read_unit
from sources.units import list_units
from summaries import CHAT_TEMPLATE, build_completion, build_prompt, encode, lead, summarise


METRICS = ("rouge1", "rouge2", "rougeL")
SHOWN_EXAMPLES = 3


def read_examples(source: Source, settings: Finetune, limit: int | None) -> tuple[list[tuple[str, str]], int]:
    """Return (document, summary) of a source, at most `limit`, and how many rows were left out for lacking either.

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

    Raises: RecipeError: it cannot be loaded or does not read as far as the recipe asks.
    """
    place = {"revision": settings.revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **place)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", use_safetensors=True, **place)
    except (OSError, ValueError) as error:
        raise RecipeError(f"finetune.model={folder!r}: cannot be loaded: {error}") from error
    longest = model.config.max_position_embeddings
    if longest < settings.sequence_length:
        raise RecipeError(
            f"finetune.sequence_length={settings.sequence_length} is more than the {longest} tokens that {folder} "
            "was made for; lower it"
        )
    if settings.template == "chat" and tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    return model, tokenizer


def rouge(summaries: list[str], references: list[str]) -> dict[str, dict[str, float]]:
    """Return ROUGE-1, -2 and -L (F1, stemmed), each with the bounds of a 95 % bootstrap interval over documents."""
    scorer, aggregator = rouge_scorer.RougeScorer(METRICS, use_stemmer=True), scoring.BootstrapAggregator()
    np.random.seed(0)  # the aggregator draws from numpy's own generator
    for summary, reference in zip(summaries, references, strict=True):
        aggregator.add_scores(scorer.score(reference, summary))
    scores = aggregator.aggregate()
    return {
        name: {"low": score.low.fmeasure, "mean": score.mid.fmeasure, "high": score.high.fmeasure}
        for name, score in scores.items()
    }


def summarise_together(documents: list[str], model, tokenizer, settings: Finetune, progress: str) -> list[str]:
    """Share the documents among the processes; every process returns all summaries, in order."""
    state = PartialState()
    mine = range(state.process_index, len(documents), state.num_processes)
    shown = progress if state.is_main_process else None
    found = summarise([documents[index] for index in mine], model, tokenizer, settings, progress=shown)
    gathered = dict(gather_object(list(zip(mine, found, strict=True))))
    return [gathered[index] for index in range(len(documents))]


def finetune(recipe: Recipe, made_from: dict, folder: str) -> dict:
    """Train, score and write finetuned/; return results.json's content."""
    settings, run, state = recipe.finetune, Path(recipe.run.output_dir), PartialState()
    set_seed(recipe.run.seed)
    test, test_left_out = read_examples(settings.test, settings, settings.max_test_documents)
    train, train_left_out = read_examples(settings.train, settings, settings.max_train_documents)
    held_out = {document for document, _ in test}
    leaked = len(train) - len(train := [pair for pair in train if pair[0] not in held_out])
    if not train:
        raise RecipeError("finetune.train: every document is in finetune.test too; split them")
    model, tokenizer = load_model(settings, folder)
    if state.is_main_process:
        print(f"finetune: {len(train):,} documents to learn from, {len(test):,} to be scored on, {folder}")
    documents, references = ([pair[part] for pair in test] for part in (0, 1))
    model.to(state.device)
    before = summarise_together(documents, model, tokenizer, settings, "finetune: summaries before")

    per_step = settings.per_device_train_batch_size * state.num_processes
    if settings.examples_per_step % per_step:
        raise RecipeError(
            f"finetune.examples_per_step={settings.examples_per_step} is not a multiple of "
            f"per_device_train_batch_size * num_processes = {per_step}"
        )
    rows = [
        {"prompt": build_prompt(document, settings, tokenizer), "completion": build_completion(summary, settings)}
        for document, summary in train
    ]
    identity = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    checkpoints = run / "finetune_checkpoints" / identity
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(checkpoints),
            max_length=settings.sequence_length,
            completion_only_loss=True,
            num_train_epochs=settings.num_train_epochs,
            per_device_train_batch_size=settings.per_device_train_batch_size,
            gradient_accumulation_steps=settings.examples_per_step // per_step,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,  # a fraction, since it is below 1
            weight_decay=0.0,
            logging_steps=10,
            save_steps=settings.save_steps,
            save_total_limit=2,
            seed=recipe.run.seed,
            data_seed=recipe.run.seed,
            bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=not state.is_main_process,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(settings.lora) if settings.lora else None,
    )
    started = time.perf_counter()
    last = get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    seconds = time.perf_counter() - started
    tuned = trainer.accelerator.unwrap_model(trainer.model)
    trained = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    if settings.lora:
        tuned = tuned.merge_and_unload()
    after = summarise_together(documents, tuned, tokenizer, settings, "finetune: summaries after")

    baseline = f"first {settings.lead_sentences} sentences"
    leads = [lead(document, settings.lead_sentences) for document in documents]
    results = {
        "made_from": made_from,
        "model": {"parameters": tuned.num_parameters(), "trained": trained},
        "documents": {
            "train": len(train),
            "test": len(test),
            "left_out": {"train": train_left_out, "test": test_left_out, "train_also_in_test": leaked},
        },
        "steps": trainer.state.global_step,
        "last_loss": trainer.state.log_history[-1].get("train_loss"),
        "seconds": seconds,
        "resumed_from": last and Path(last).name,
        "rouge": {
            name: rouge(found, references)
            for name, found in {baseline: leads, "before": before, "after": after}.items()
        },
        "cut_documents": sum(is_cut(document, settings, tokenizer) for document in documents),
        "examples": [
            {"reference": reference, "before": old, "after": new}
            for reference, old, new in list(zip(references, before, after, strict=True))[:SHOWN_EXAMPLES]
        ],
    }
    if state.is_main_process:
        write_output(recipe, tuned, tokenizer, results)
        shutil.rmtree(checkpoints.parent, ignore_errors=True)
    state.wait_for_everyone()
    return results


def is_cut(document: str, settings: Finetune, tokenizer: PreTrainedTokenizerBase) -> bool:
    room = settings.sequence_length - settings.max_summary_tokens
    return len(encode(build_prompt(document, settings, tokenizer), tokenizer)) >= room - 8


def write_output(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, results: dict) -> None:
    """Write finetuned/ beside and rename it, so that a folder of this name is complete."""
    final = Path(recipe.run.output_dir) / "finetuned"
    partial = final.with_name(".finetuned.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    write_json(partial / "results.json", results)
    front_matter = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": recipe.hub.license,
        "language": recipe.hub.language,
        "tags": ["summarization", "trl", "sft"],
    }
    card = render_card(
        Path(__file__).parent / "publishing" / "finetune_card.md",
        front_matter,
        settings=recipe.finetune,
        results=results,
        title=f"{Path(recipe.run.output_dir).name}, fine-tuned to summarise",
    )
    (partial / "README.md").write_text(card, encoding="utf-8")
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    settings, run = recipe.finetune, Path(recipe.run.output_dir)
    if settings is None:
        raise RecipeError(
            "finetune: missing; recipes/legal/summarise.yaml shows it, --config takes it beside yours too"
        )
    folder = settings.model or str(run / "model")
    record = read_record(Path(folder)) if Path(folder).is_dir() else None
    if settings.model is None and record is None:
        raise RecipeError(f"{folder} is missing; run recipes/run_recipe.py first, or set finetune.model")
    made_from = {"settings": settings.model_dump(), "seed": recipe.run.seed, "model": record and record["sha256"]}
    done = run / "finetuned" / "results.json"
    if done.exists():
        if json.loads(done.read_text(encoding="utf-8"))["made_from"] == made_from:
            print(f"finetune: nothing to do, {done.parent} is up to date")
            return
        if not options.overwrite:
            raise RecipeError(f"{done.parent} was made with other settings or another model; --overwrite rebuilds it")
    if options.dry_run:
        print(f"finetune: would fine-tune {folder} with {settings.train.path}")
        return
    # Unlike Accelerator, PartialState ignores this variable, and each process would train alone.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    if state.num_processes != int(os.environ.get("WORLD_SIZE", 1)):
        raise SystemExit(f"finetune: Accelerate counts {state.num_processes} processes; see accelerate_configs/")
    results = finetune(recipe, made_from, folder)
    if PartialState().is_main_process:
        scores = ", ".join(f"{name} {scores['rouge2']['mean']:.3f}" for name, scores in results["rouge"].items())
        print(f"finetune: {results['steps']:,} steps in {results['seconds']:.0f} s; ROUGE-2 {scores}; {done.parent}")


if __name__ == "__main__":
    run_command(main)
