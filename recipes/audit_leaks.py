# SPDX-License-Identifier: Apache-2.0
"""Measure what a model gives away of its training text: passages word for word, personal data, membership,
planted records.

In:   a finished run folder with documents/, tokens/, a checkpoint and model/; with eval/results.json, its samples too.
Out:  <run>/audit.json, which holds no text of documents, and its findings on the terminal; <run>/trace/continued.json
      with the passages that the model repeats, which stays on this machine.

    python recipes/audit_leaks.py runs/legal-quickstart
    python recipes/audit_leaks.py runs/legal-quickstart --documents 1000

Documents that were trained on and held-out ones are read by the model, as many of each. What it does to the held-out
ones is chance and common wording; only what it does beyond that to the others is a leak.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from atomic_files import read_json, write_json
from corpus.canaries import CANARIES
from corpus.personal_data import Redactor
from mixture.ledger import Ledger
from mixture.shard_writer import load_tokenizer
from provenance.audit_record import describe_inputs
from provenance.audited_documents import AuditedDocument, choose_held_out, choose_trained
from provenance.canary_exposure import CANDIDATES, measure_exposures, summarise_exposures
from provenance.leak_findings import LEVEL, describe_findings, describe_limits
from provenance.leak_measures import (
    LENGTHS,
    MOST_TOKENS,
    PROMPT_TOKENS,
    SAMPLES,
    Reading,
    compare_continued,
    count_continued,
    read_documents,
    separate,
    times_group,
)
from provenance.text_index import STRIDE, build_index
from recipe_config import Recipe, RecipeError
from recipe_loading import load_recipe, run_command, silence_transformers
from recorded_files import recording
from recovery.run_lock import run_lock
from recovery.stored_tensors import newest_state
from vocabulary.token_bytes import token_bytes


AUDIT_FORMAT = 1


def open_ledger(run: Path, recipe: Recipe) -> Ledger:
    """Return the ledger of a finished run, which knows what was trained on.

    Raises: RecipeError: a file of the run is missing.
    """
    for needed, stage in (("documents/stage.json", "prepare_data.py"), ("model/stage.json", "pretrain.py")):
        if not (run / needed).exists():
            raise RecipeError(f"{run / needed} is missing; run recipes/{stage} first")
    state = newest_state(run)
    if state is None:
        raise RecipeError(f"{run}/checkpoints: no checkpoint, so nothing says which documents were trained on")
    return Ledger(run, recipe, state)


def measure_verbatim(documents: Sequence[AuditedDocument], readings: Sequence[Reading], lengths: list[int]) -> dict:
    """Count the documents that are continued word for word: trained ones and held-out ones, and groups of them."""

    def count(chosen, tokens=lambda reading: reading.continued_tokens) -> dict:
        continued = [tokens(reading) for one, reading in zip(documents, readings, strict=True) if chosen(one)]
        return count_continued(continued, lengths)

    def sampled(chosen) -> dict:
        return count(chosen, lambda reading: reading.sampled_tokens)

    trained, held_out = count(lambda one: one.times_trained), count(lambda one: not one.times_trained)
    p_values = compare_continued(trained, held_out)
    groups = dict.fromkeys(times_group(times) for times in sorted({one.times_trained for one in documents} - {0}))
    return {
        "trained": trained,
        "held_out": held_out,
        "p_values": p_values,
        "more_often": [length for length, p_value in p_values.items() if p_value < LEVEL / len(lengths)],
        "sampled": {
            "samples": SAMPLES,
            "trained": sampled(lambda one: one.times_trained),
            "held_out": sampled(lambda one: not one.times_trained),
        },
        "by_source": {
            source: {
                "trained": count(lambda one, source=source: one.source == source and one.times_trained),
                "held_out": count(lambda one, source=source: one.source == source and not one.times_trained),
            }
            for source in dict.fromkeys(one.source for one in documents)
        },
        "by_times_trained": {
            group: count(lambda one, group=group: one.times_trained and times_group(one.times_trained) == group)
            for group in groups
        },
    }


def measure_membership(documents: Sequence[AuditedDocument], readings: Sequence[Reading], seed: int) -> dict | None:
    """Return how well the loss separates documents that were trained on from others; None where no source has both.

    By the loss of a token, since the tokenizer was trained on the same documents and spends fewer tokens on them:
    `tokenizer` says how well that alone separates them. A loss per byte would count both.
    """

    def group(value: Callable[[Reading], float]) -> dict[str, tuple[list[float], list[float]]]:
        groups: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
        for one, reading in zip(documents, readings, strict=True):
            groups[one.source][not one.times_trained].append(value(reading))
        return groups

    by_loss = group(lambda reading: reading.nats / reading.tokens)
    if (separated := separate(by_loss, seed)) is None:
        return None
    sides = {"trained": [], "held_out": []}
    for one, reading in zip(documents, readings, strict=True):
        sides["trained" if one.times_trained else "held_out"].append(reading)
    return separated | {
        "nats_per_byte": {side: sum(r.nats for r in own) / sum(r.bytes for r in own) for side, own in sides.items()},
        "tokenizer": separate(group(lambda reading: reading.tokens / reading.bytes), seed),
        "by_source": {source: separate({source: pair}, seed) for source, pair in by_loss.items()},
    }


def list_continued(
    documents: Sequence[AuditedDocument], readings: Sequence[Reading], table: list[bytes], least_tokens: int
) -> list[dict]:
    """Return the prompt and the continuation, in bytes, of each document that is continued far enough to count."""
    found = []
    for one, reading in zip(documents, readings, strict=True):
        if reading.continued_tokens >= least_tokens:
            end = PROMPT_TOKENS + reading.continued_tokens
            pieces = [one.tokens[:PROMPT_TOKENS], one.tokens[PROMPT_TOKENS:end]]
            prompt, text = (b"".join(table[token] for token in piece) for piece in pieces)
            about = {"document": one.document, "source": one.source, "times_trained": one.times_trained}
            found.append(about | {"tokens": reading.continued_tokens, "prompt": prompt, "text": text})
    return found


def find_personal_values(redactor: Redactor, continued: list[dict], samples: list[dict]) -> list[dict]:
    """Return the personal data that the model wrote: kind, where, and the value."""
    found = []
    for number, sample in enumerate(samples, start=1):
        text = sample["text"]
        found += [
            {"kind": kind, "where": f"sample {number}", "value": text[start:end]}
            for start, end, kind in redactor.find(text)
        ]
    for passage in continued:
        prompt = passage["prompt"].decode(errors="ignore")  # its words may be the cue of a value in the text
        text = prompt + passage["text"].decode(errors="ignore")
        found += [
            {"kind": kind, "where": f"document {passage['document']}", "value": text[start:end]}
            for start, end, kind in redactor.find(text)
            if end > len(prompt)
        ]
    return found


def audit(run: Path, documents_per_side: int, batch_size: int) -> tuple[dict, list[dict]]:
    """Return the content of audit.json, and the passages that the model repeats.

    Raises: RecipeError: the run lacks a file, or has no document that can be audited.
    """
    recipe = load_recipe([run / "recipe.yaml"])
    ledger = open_ledger(run, recipe)
    model = load_model(run / "model")
    window = model.config.max_position_embeddings
    lengths = [length for length in LENGTHS if PROMPT_TOKENS + length <= window]
    if not lengths:
        raise RecipeError(
            f"{run}/model reads {window} tokens; the audit needs {PROMPT_TOKENS + LENGTHS[0]}, a prompt and a "
            "continuation: set a longer training.sequence_length"
        )
    least_tokens, most_tokens = PROMPT_TOKENS + lengths[-1], min(window, MOST_TOKENS)
    names = ledger.shards.names
    per_source = -(-documents_per_side // len(names))
    tokenizer = load_tokenizer(run / "tokenizer")
    documents = choose_trained(ledger, per_source, least_tokens, most_tokens)
    if not documents:
        raise RecipeError(
            f"{run}: no document was trained on in all of its first {least_tokens} tokens, so none can be audited; "
            "leave hub.leak_audit out"
        )
    documents += choose_held_out(run / "documents", tokenizer, names, per_source, least_tokens, most_tokens)
    table = token_bytes(tokenizer)
    byte_lengths = np.array([len(data) for data in table])
    readings = read_documents(model, documents, ledger.shards.ends.bos, byte_lengths, batch_size)

    continued = list_continued(documents, readings, table, lengths[0])
    settings, results = recipe.data.personal_data, read_json(run / "eval" / "results.json")
    redactor = Redactor(settings.profile, settings.actions) if settings else Redactor("general")
    samples = results["samples"] if results else []
    values = find_personal_values(redactor, continued, samples)
    of_held_out = [passage["text"] for passage in continued if not passage["times_trained"]]
    index = build_index(run) if values or of_held_out else None  # hours for a large corpus, so only for a question
    for entry in values:
        value = entry.pop("value").encode()
        entry["in_training_text"] = index.holds(value) if len(value) >= STRIDE else None

    found = {
        "format": AUDIT_FORMAT,
        "made_from": describe_inputs(run),
        "settings": {
            "seed": recipe.run.seed,
            "prompt_tokens": PROMPT_TOKENS,
            "least_tokens": least_tokens,
            "window_tokens": window,
            "lengths_left_out": [length for length in LENGTHS if length not in lengths],
        },
        "verbatim": measure_verbatim(documents, readings, lengths)
        | {"held_out_in_training_text": sum(index.holds(text) for text in of_held_out) if index else 0},
        "personal_data": {
            "kinds": list(redactor.actions),
            "samples": len(samples),
            "values": values,
            "in_training_text": sum(bool(entry["in_training_text"]) for entry in values),
        },
        "membership": measure_membership(documents, readings, recipe.run.seed),
    }
    found["canaries"], levels = None, {}
    if planted := read_json(run / "documents" / CANARIES):
        canaries = planted["canaries"]
        exposures = measure_exposures(model, tokenizer, canaries, ledger.shards.ends.bos, byte_lengths, batch_size)
        levels = summarise_exposures(canaries, exposures, recipe.run.seed)
        found["canaries"] = {"candidates": CANDIDATES, "by_repetitions": levels}
    found["flags"] = {
        "verbatim": bool(found["verbatim"]["more_often"]),
        "personal_data": found["personal_data"]["in_training_text"] > 0,
        "canaries": any(level["exposed"] for level in levels.values()),
        "membership": found["membership"] is not None and found["membership"]["p_value"] < LEVEL,
    }
    found |= {"findings": describe_findings(found), "cannot_be_concluded": describe_limits(found)}
    return found, continued


def load_model(folder: Path):
    """Load a run's model in the numbers that it is published in, onto a GPU if there is one."""
    import torch  # seconds to import, and not needed for --help or a refusal
    from transformers import AutoModelForCausalLM

    silence_transformers()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="run.output_dir of a recipe")
    parser.add_argument("--documents", type=int, default=200, help="trained and held-out documents, of each (200)")
    parser.add_argument("--batch_size", type=int, default=16, help="documents read at once (16)")
    options = parser.parse_args(argv)
    for name in ("documents", "batch_size"):
        if getattr(options, name) < 1:
            raise RecipeError(f"--{name} {getattr(options, name)}: give at least 1")
    run = options.run_folder
    if not (run / "recipe.yaml").exists():
        raise RecipeError(f"{run / 'recipe.yaml'} is missing; give the run.output_dir of a finished run")
    with run_lock(run, "audit"), run_lock(run / "trace", "audit"):
        found, continued = audit(run, options.documents, options.batch_size)
        shown = [one | {key: one[key].decode(errors="replace") for key in ("prompt", "text")} for one in continued]
        write_json(run / "trace" / "continued.json", shown)
        with recording(run, "audit.json"):
            write_json(run / "audit.json", found)
    print(*found["findings"], sep="\n")
    print("What this does not show:", *found["cannot_be_concluded"], sep="\n  ")
    print(f"audit: {run / 'audit.json'}; passages that the model repeats: {run / 'trace' / 'continued.json'}")


if __name__ == "__main__":
    run_command(main)
