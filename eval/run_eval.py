# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model: bits per byte of held-out text by source, domain and month, benchmark tasks, generated samples.

In:  a model folder or any Hub id; documents/<split>/<source>/*.parquet (columns id, text, date), whose domains stand
     in documents/stats.json; the benchmarks below eval/tasks, whose rows come from the Hub or from --task_data.
Out: <output>/results.json; items/, what each item and document cost, which compare.py reads; baselines/<model>/ with
     the same of other models. All of it is there, or none. The same inputs give the same file, byte for byte.

    python eval/run_eval.py --model runs/legal-quickstart/model --documents runs/legal-quickstart/documents \
        --output runs/legal-quickstart/eval --tasks legal_sense,general_agreement --xz
    python eval/run_eval.py --model HuggingFaceTB/SmolLM2-135M --output smollm2 --tasks legal,mmlu_law
    python eval/run_eval.py --model runs/mine/model --output scores --tasks arc_easy --task_data arc_easy=arc.jsonl
    accelerate launch --num_processes 8 eval/run_eval.py --model runs/mine/model --output scores --tasks finance
    python eval/run_eval.py --export_requests benchmarks

The last one needs no model: it writes what each task asks, benchmarks/<task>.jsonl with id, context, choices and gold,
against which training text is decontaminated. What came of that, documents/decontamination.json, is read back by
--decontamination: the scores of items that the training text does not hold are then given apart from those of others.
Stopped and started again it goes on; several processes share the work and write what one would.
"""

import argparse
import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from benchmark_tasks import (
    Benchmark,
    build_requests,
    choose_tasks,
    exported_items,
    load_items,
    read_benchmarks,
    shots_at_hand,
)
from bits_per_byte import (
    DTYPES,
    bits_per_byte,
    encode_text,
    load_model,
    score_documents,
    start_token_id,
    xz_baselines,
)
from item_scores import RESAMPLES, score_items
from request_scoring import RequestScorer, score_requests
from shared_work import SharedWork


logger = logging.getLogger(__name__)

XZ_KINDS = ("xz_documents", "xz_stream", "xz_primed")
PIECE_DOCUMENTS = 32  # scored together by one process
# Long documents are read with this many times the model's own context, so far as so many of its contexts hold them.
CONTEXT_FACTORS, LONG_CONTEXTS = (0.5, 1, 2, 4), 64
# Of fewer items only the count is given: the standard error of guessing between two answers would be above 0.11.
MIN_GROUP_ITEMS = 20
OWN_FILES = {"results.json", "stage.json", "items", "baselines"}
OVERLAP_GROUPS = ("clean", "overlapping", "not_checkable", "unchecked")
# Plain sampling of a small model soon goes round in circles; greedy decoding does at once.
GENERATION = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1, "max_new_tokens": 80}


def load_tasks(arguments: argparse.Namespace) -> dict[str, tuple]:
    """Load the rows of the chosen tasks: {task: (benchmark, items, few-shot examples, where they come from)}.

    Raises: SystemExit: naming every task whose rows cannot be had.
    """
    # Nothing below needs credentials, and nothing that it reads or runs shall find any.
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        os.environ.pop(name, None)
    benchmarks, loaded, problems = read_benchmarks(), {}, []
    for name in arguments.tasks:
        given = [arguments.task_data[each] for each in (name, *benchmarks[name].groups) if each in arguments.task_data]
        local = given[0] if given else None
        try:
            loaded[name] = (benchmarks[name], *load_items(benchmarks[name], local))
        except Exception as error:  # whatever the Hub, the network or a file says
            problems.append(f"{name}: {type(error).__name__}: {error}")
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise SystemExit(f"tasks whose rows cannot be read; --task_data TASK=FILE reads a local copy:\n{listed}")
    return loaded


def format_requests(items: list[dict]) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def export_requests(arguments: argparse.Namespace) -> None:
    """Write folder/<task>.jsonl for each task: its items without few-shot examples."""
    arguments.export_requests.mkdir(parents=True, exist_ok=True)
    for name, (benchmark, items, _, _) in load_tasks(arguments).items():
        exported = exported_items(build_requests(benchmark, items, [], 0, arguments.seed))
        path = arguments.export_requests / f"{name}.jsonl"
        write_synced(path.with_name(f".{name}.jsonl.tmp"), format_requests(exported))
        os.replace(path.with_name(f".{name}.jsonl.tmp"), path)
        logger.info("%s: %d items", path, len(exported))


def run_task(
    scorer: RequestScorer, benchmark: Benchmark, items: list[dict], shots: list[dict], arguments: argparse.Namespace
) -> tuple[dict, list[dict], dict[str, np.ndarray]]:
    """Score one task.

    Returns: its entry in results.json: what `score_items` returns, "score" (the name of its first metric), "groups",
        "version", "num_fewshot", "boundary_mismatches" and "truncated" as `score_requests` counts them, "published",
        and "by_overlap", {group: what `score_items` returns, without metrics for groups of less than MIN_GROUP_ITEMS
        items}, None where the training text was not checked; its scored items; and the resampled scores.
    """
    num_fewshot = shots_at_hand(benchmark, shots, arguments.num_fewshot)
    rendered = build_requests(benchmark, items, shots, num_fewshot, arguments.seed)
    scored, counts = score_requests(
        scorer, benchmark.task, rendered, max_new_tokens=benchmark.max_new_tokens, calibrated=benchmark.calibrated
    )
    entry, resampled = score_items(scored, benchmark.metrics, arguments.seed)
    entry |= {"score": benchmark.metrics[0], "groups": benchmark.groups, "version": benchmark.version}
    entry |= {"num_fewshot": num_fewshot, **counts, "published": benchmark.published, "by_overlap": None}
    decontamination = read_decontamination(arguments.decontamination)
    if decontamination is not None:
        exported = exported_items(build_requests(benchmark, items, [], 0, arguments.seed))
        groups = overlap_groups(benchmark.task, exported, decontamination)
        if "unchecked" in groups:
            logger.warning("%s: the training text was not checked against these items", benchmark.task)
        entry["by_overlap"] = {
            group: score_group([item for item, own in zip(scored, groups, strict=True) if own == group], benchmark)
            for group in OVERLAP_GROUPS
            if group in groups
        }
    return entry, scored, resampled


def score_group(items: list[dict], benchmark: Benchmark) -> dict:
    if len(items) >= MIN_GROUP_ITEMS:
        return score_items(items, benchmark.metrics, seed=0)[0]
    sizes = [1 / len(item["nats"]) for item in items]
    return {"num_items": len(items), "chance": float(np.mean(sizes)), "metrics": None, "gold_bits_per_byte": None}


def average_groups(tasks: dict[str, dict], resampled: dict[str, dict[str, np.ndarray]]) -> dict[str, dict]:
    """Average the scores of a group's tasks, each task counting once, as LegalBench and MMLU do.

    Returns: {group: {"score", "value", "interval", "chance", "num_tasks"}}; the interval resamples the
        items of every task.
    """
    groups = {}
    for group in sorted({group for entry in tasks.values() for group in entry["groups"]}):
        members = {name: entry for name, entry in tasks.items() if group in entry["groups"]}
        scores = [entry["metrics"][entry["score"]] for entry in members.values()]
        draws = np.mean([resampled[name][entry["score"]] for name, entry in members.items()], axis=0)
        chances = [score["chance"] for score in scores]
        groups[group] = {
            "score": next(iter(members.values()))["score"],
            "value": float(np.mean([score["value"] for score in scores])),
            "interval": [float(bound) for bound in np.percentile(draws, [2.5, 97.5])],
            "chance": None if None in chances else float(np.mean(chances)),
            "num_tasks": len(members),
        }
    return groups


def overlap_groups(name: str, items: list[dict], decontamination: dict) -> list[str]:
    """Say of each item how far the training text was kept free of it, by decontamination.json.

    An item of which every document was taken out of the training text is clean for the model that is scored.

    Returns: for each item `clean`; `overlapping`, where documents that stayed share words with it; `not_checkable`,
        where it is too short to be told from other text; or `unchecked`, where the check did not know the task, or
        knew other items under its name.
    """
    digest = hashlib.sha256(format_requests(items).encode()).hexdigest()
    if decontamination["settings"]["sha256"].get(name) != digest:
        return ["unchecked"] * len(items)
    found = decontamination["tasks"][name]
    overlapping = {entry["id"] for entry in found["overlaps"] if entry["fraction_after_removal"] > 0}
    not_checkable = {item_id for ids in found["not_checkable"].values() for item_id in ids}
    return [
        "not_checkable" if item["id"] in not_checkable else "overlapping" if item["id"] in overlapping else "clean"
        for item in items
    ]


def read_documents(folder: Path) -> Iterator[tuple[str, str, str | None]]:
    """Yield (id, text, date) of a source's parquet files, file by file."""
    for path in sorted(folder.glob("*.parquet")):
        file = pq.ParquetFile(path)
        columns = [name for name in ("id", "text", "date") if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns, batch_size=256):
            dates = batch["date"].to_pylist() if "date" in columns else [None] * len(batch)
            yield from zip(batch["id"].to_pylist(), batch["text"].to_pylist(), dates, strict=True)


def chosen_documents(folder: Path, max_bytes: int | None) -> list[tuple[str, str, str | None]]:
    """Return a source's documents in the order of their ids; with max_bytes, the first that fit, at least one."""
    chosen, total_bytes = [], 0
    for document in sorted(read_documents(folder), key=lambda document: document[:2]):
        total_bytes += len(document[1].encode())
        if chosen and max_bytes is not None and total_bytes > max_bytes:
            break
        chosen.append(document)
    return chosen


def summarise(nats: np.ndarray, byte_counts: np.ndarray, tokens: int, sizes: dict, seed: int) -> dict:
    """Return the entry of one source or domain.

    The 95 % interval is that of the bootstrap over documents: each resample draws documents with their nats and bytes
    together. It says how much the choice of documents matters, not the choice of a training seed; None for a single
    document, which says nothing about it.

    Args:
        nats: (documents,), of each document.
        byte_counts: (documents,), of each document.
        tokens: of all documents.
        sizes: compressed bytes of all documents under each of XZ_KINDS; a kind may be missing or None.
        seed: of the bootstrap.
    """
    total_bytes = int(byte_counts.sum())
    interval = None
    if len(nats) > 1:
        generator = np.random.default_rng(seed)
        draws = (generator.integers(len(nats), size=len(nats)) for _ in range(RESAMPLES))
        resampled = [bits_per_byte(nats[draw].sum(), byte_counts[draw].sum()) for draw in draws]
        interval = [float(bound) for bound in np.percentile(resampled, [2.5, 97.5])]
    return {
        "documents": len(nats),
        "bytes": total_bytes,
        "tokens": tokens,
        "nats": float(nats.sum()),
        "bits_per_byte": bits_per_byte(float(nats.sum()), total_bytes),
        "confidence_interval": interval,
    } | {kind: None if sizes.get(kind) is None else 8 * sizes[kind] / total_bytes for kind in XZ_KINDS}


def score_split(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: argparse.Namespace,
    split: str,
    work: SharedWork,
) -> dict[str, list[dict]]:
    """Score the held-out documents of every source of a split: {source: [{"id", "date", "nats", "bytes", ...}]}."""

    def score(texts: list[str]) -> list:
        settings = {"context_length": arguments.context_length, "stride": arguments.stride}
        scores = score_documents(
            model, tokenizer, texts, **settings, batch_size=arguments.batch_size, description=None
        )
        return [[each.nats, each.bytes, each.tokens, each.restored] for each in scores]

    scored = {}
    for folder in sorted(path for path in (arguments.documents / split).iterdir() if path.is_dir()):
        documents = [each for each in chosen_documents(folder, arguments.max_bytes_per_source) if each[1]]
        if not documents:
            logger.warning("%s holds no text, so %s is left out", folder, folder.name)
            continue
        texts = [text for _, text, _ in documents]
        pieces = [texts[start : start + PIECE_DOCUMENTS] for start in range(0, len(texts), PIECE_DOCUMENTS)]
        costs = [cost for part in work.map("documents", pieces, score, folder.name) for cost in part]
        scored[folder.name] = [
            {"id": key, "date": date, "nats": nats, "bytes": size, "tokens": tokens, "restored": restored}
            for (key, _, date), (nats, size, tokens, restored) in zip(documents, costs, strict=True)
        ]
        not_restored = sum(not each["restored"] for each in scored[folder.name])
        if not_restored:
            logger.warning("%s: tokens of %d documents do not decode back to the text", folder.name, not_restored)
    return scored


def summed(documents: list[dict], sizes: dict, seed: int) -> dict:
    """Return the entry of some documents: what `summarise` returns, and how many their tokens do not give back."""
    nats, sizes_of = (np.array([each[key] for each in documents]) for key in ("nats", "bytes"))
    entry = summarise(nats, sizes_of, sum(each["tokens"] for each in documents), sizes, seed)
    return entry | {"documents_not_restored": sum(not each["restored"] for each in documents)}


def score_sources(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace, work: SharedWork
) -> tuple[dict[str, dict], dict[str, list[dict]]]:
    """Score the held-out documents.

    Returns: {"sources", "domains", "months", "context_lengths"}, each {name: entry}; months are those of the dated
        documents of the split `future`, which is later than all training text, where there is one; context_lengths
        as `score_context_lengths` returns them; and the documents of each source.
    """
    stats = arguments.documents / "stats.json"
    known = json.loads(stats.read_text(encoding="utf-8"))["sources"] if stats.is_file() else {}
    scored = score_split(model, tokenizer, arguments, arguments.split, work)
    sources, compressed, domains = {}, {}, {}
    for name, documents in scored.items():
        compressed[name] = {}
        if arguments.xz:
            held_out = chosen_documents(arguments.documents / arguments.split / name, arguments.max_bytes_per_source)
            training = read_documents(arguments.documents / "train" / name)
            compressed[name] = work.map(
                "xz",
                [[text for _, text, _ in held_out if text]],
                lambda texts, training=training: xz_baselines(
                    [text.encode() for text in texts], (text.encode() for _, text, _ in training)
                ),
                f"{name}: xz",
            )[0]
        domain = known.get(name, {}).get("domain") or name
        sources[name] = {"domain": domain, **summed(documents, compressed[name], arguments.seed)}
        domains.setdefault(domain, []).append(name)
    by_domain = {}
    for domain, names in sorted(domains.items()):
        sizes = {
            kind: sum(compressed[name][kind] for name in names)
            for kind in XZ_KINDS
            if all(compressed[name].get(kind) is not None for name in names)
        }
        documents = [each for name in names for each in scored[name]]
        by_domain[domain] = {"domain": domain, **summed(documents, sizes, arguments.seed)}
    months: dict[str, list[dict]] = {}
    if arguments.split != "future" and any((arguments.documents / "future").glob("*/*.parquet")):
        for name, documents in score_split(model, tokenizer, arguments, "future", work).items():
            scored[f"future.{name}"] = documents
            for each in documents:
                if each["date"] and len(each["date"]) >= 7:
                    months.setdefault(each["date"][:7], []).append(each)
    by_month = {month: summed(documents, {}, arguments.seed) for month, documents in sorted(months.items())}
    by_length = score_context_lengths(model, tokenizer, arguments, sorted(sources), work)
    return {"sources": sources, "domains": by_domain, "months": by_month, "context_lengths": by_length}, scored


def score_context_lengths(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: argparse.Namespace,
    sources: list[str],
    work: SharedWork,
) -> dict[str, dict]:
    """Score documents longer than the model's context, read with less of it, all of it, and more than it was made for.

    Returns: {tokens of the context: entry}, the same documents in each; {} where none is so long, or where the model
        cannot read beyond its context, as with learned positions.
    """
    config = model.config.get_text_config()
    own_length = getattr(config, "max_position_embeddings", None) or arguments.context_length
    if getattr(config, "rope_parameters", None) is None:
        return {}
    texts, num_tokens = [], 0
    for name in sources:
        folder = arguments.documents / arguments.split / name
        for _, text, _ in chosen_documents(folder, arguments.max_bytes_per_source):
            length = len(encode_text(tokenizer, text)[0]) if len(text.encode()) > own_length else 0
            if length > own_length and num_tokens < LONG_CONTEXTS * own_length:
                texts.append(text)
                num_tokens += length
    entries = {}
    for length in (int(factor * own_length) for factor in CONTEXT_FACTORS if texts):

        def score(text: str, length: int = length) -> dict:
            scores = score_documents(
                model, tokenizer, [text], context_length=length, batch_size=arguments.batch_size, description=None
            )
            return vars(scores[0])

        documents = work.map(f"context of {length}", texts, score, f"context of {length} tokens")
        entries[str(length)] = summed(documents, {}, arguments.seed)
    return entries


@torch.inference_mode()
def generate_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    context_length: int,
    seed: int,
) -> list[dict[str, str]]:
    """Continue each prompt by sampling as GENERATION says, each from the same seed: other prompts do not matter."""
    samples = []
    for prompt in prompts:
        room = max(context_length // 2, context_length - 1 - GENERATION["max_new_tokens"])
        ids = encode_text(tokenizer, prompt)[0].tolist()[-room:]  # the end of a prompt that is too long
        input_ids = torch.tensor([[start_token_id(tokenizer), *ids]], device=model.device)
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            pad_token_id=start_token_id(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            **GENERATION | {"max_new_tokens": min(GENERATION["max_new_tokens"], context_length - input_ids.shape[1])},
        )
        text = tokenizer.decode(output[0, input_ids.shape[1] :], skip_special_tokens=True)
        samples.append({"prompt": prompt, "text": text})
    return samples


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_sha256(model: str) -> str | None:
    """Return the sha256 of a model folder's safetensors, in the order of their names; None for a Hub id."""
    files = sorted(Path(model).glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest() if files else None


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_results(output: Path, files: dict[str, str]) -> None:
    """Write a folder of files beside the output and swap the two, so that a killed run leaves the old one."""
    output = output.resolve()
    new, old = (output.with_name(f".{output.name}.{suffix}") for suffix in ("tmp", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, text in files.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        write_synced(new / name, text)
    if output.exists():
        output.rename(old)
    new.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", help="model folder or Hub id")
    parser.add_argument("--revision", help="commit, tag or branch of a Hub id")
    parser.add_argument("--documents", type=Path, help="the run's documents folder; None: no bits per byte")
    parser.add_argument("--output", type=Path, help="folder for results.json; an earlier one is replaced at the end")
    parser.add_argument("--split", default="test", help="train, validation or test")
    parser.add_argument("--max_bytes_per_source", type=int, help="score whole documents up to this; None: all")
    parser.add_argument("--tasks", default="", help="comma-separated tasks, groups or suites of eval/tasks")
    parser.add_argument(
        "--task_data",
        nargs="*",
        default=[],
        metavar="TASK=FILE",
        help="read the rows of a task or group from a local .jsonl, .json or .csv instead of the Hub",
    )
    parser.add_argument("--num_fewshot", type=int, help="examples before each question; None: as each task says")
    parser.add_argument("--noncommercial", action="store_true", help="also tasks whose licence forbids commercial use")
    parser.add_argument("--baselines", nargs="*", default=[], help="models to score the same way, folders or Hub ids")
    parser.add_argument(
        "--decontamination",
        type=Path,
        help="decontamination.json of the text the model was trained on: score clean and overlapping items apart",
    )
    parser.add_argument("--prompts", nargs="*", default=[], help="texts to continue")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--context_length", type=int, help="tokens; None: the model's max_position_embeddings")
    parser.add_argument("--stride", type=int, help="tokens a long document's windows move on; None: half the context")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of the samples")
    parser.add_argument("--xz", action="store_true", help="compress the documents with xz too")
    parser.add_argument("--export_requests", type=Path, help="write the tasks' items to this folder and stop")
    arguments = parser.parse_args(argv)
    arguments.tasks = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    arguments.task_data = {name: Path(path) for name, _, path in (each.partition("=") for each in arguments.task_data)}
    return arguments


def read_decontamination(path: Path | None) -> dict | None:
    """Return decontamination.json's content. Raises: ValueError: it is not there or something else."""
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["settings"]["sha256"].keys() != content["tasks"].keys():
            raise KeyError("tasks")
        return content
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ValueError(f"{path} is not a decontamination.json as prepare writes it: {error!r}") from error


def check_arguments(arguments: argparse.Namespace) -> None:
    """Find everything that would stop the run, and fill in the tasks, context_length and stride.

    Raises: SystemExit: listing all problems.
    """
    problems = [
        f"--task_data: {name}: no such file: {path}"
        for name, path in arguments.task_data.items()
        if not path.is_file()
    ]
    try:
        arguments.tasks = choose_tasks(arguments.tasks, read_benchmarks(), arguments.noncommercial)
    except ValueError as error:
        problems.append(f"--tasks: {error}")
    if arguments.export_requests is None:
        problems += [f"--{name} is needed" for name in ("model", "output") if getattr(arguments, name) is None]
        if not (arguments.documents or arguments.tasks or arguments.prompts):
            problems.append("nothing to do: give --documents, --tasks or --prompts")
        for name, least in {"batch_size": 1, "max_bytes_per_source": 1, "context_length": 8, "stride": 1}.items():
            value = getattr(arguments, name)
            if value is not None and value < least:
                problems.append(f"--{name}={value} must be at least {least}")
        try:
            read_decontamination(arguments.decontamination)
        except ValueError as error:
            problems.append(f"--decontamination: {error}")
        if arguments.documents is not None:
            split = arguments.documents / arguments.split
            if not any(split.glob("*/*.parquet")):
                problems.append(f"--documents: there is no {split}/<source>/*.parquet; prepare the documents first")
        if arguments.output is not None and arguments.output.exists():
            names = {path.name for path in arguments.output.iterdir()} if arguments.output.is_dir() else {"a file"}
            if names and ("results.json" not in names or not names <= OWN_FILES):
                problems.append(
                    f"--output: {arguments.output} holds something else than an earlier evaluation and would be "
                    "replaced; name another folder"
                )
        if arguments.model is not None:
            problems += check_model(arguments)
    if problems:
        raise SystemExit("run_eval.py cannot start:\n" + "\n".join(f"  {problem}" for problem in problems))


def check_model(arguments: argparse.Namespace) -> list[str]:
    """Return what is wrong with the model, and fill in context_length and stride from it."""
    folder = Path(arguments.model)
    if folder.is_dir():
        lacking = [name for name in ("config.json", "*.safetensors", "tokenizer*.json") if not any(folder.glob(name))]
        if lacking:
            return [f"--model: the folder {folder} lacks {', '.join(lacking)}; use one that save_pretrained wrote"]
    elif folder.is_absolute() or arguments.model.startswith(".") or arguments.model.count("/") > 1:
        return [f"--model: there is no folder {folder}, and a Hub id has the form name or owner/name"]
    try:
        config = AutoConfig.from_pretrained(arguments.model, revision=arguments.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        return [f"--model: {arguments.model} is not a folder here and cannot be read from the Hub: {error}"]
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if arguments.context_length is None and limit is None:
        return [f"--context_length is needed: {arguments.model} states no max_position_embeddings"]
    arguments.context_length = arguments.context_length or limit
    if limit is not None and arguments.context_length > limit:
        return [f"--context_length={arguments.context_length} is more than the model's {limit} positions"]
    arguments.stride = max(1, arguments.context_length // 2) if arguments.stride is None else arguments.stride
    if arguments.stride > arguments.context_length:
        return [f"--stride={arguments.stride} is more than the context of {arguments.context_length} tokens"]
    return []


def evaluate_model(name: str, revision: str | None, arguments: argparse.Namespace, tasks: dict) -> dict[str, str]:
    """Evaluate one model: the files of its folder, {path: text}."""
    state = PartialState()
    try:
        model, tokenizer = load_model(name, revision, arguments.dtype, device=state.device)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--model: {error}") from error
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or arguments.context_length
    own = argparse.Namespace(**vars(arguments) | {"context_length": min(arguments.context_length, limit)})
    own.stride = min(own.stride, own.context_length)
    names = ("split", "max_bytes_per_source", "batch_size", "dtype", "context_length", "stride", "seed")
    settings = {each: getattr(own, each) for each in names} | {"device": state.device.type}
    versions = {"python": platform.python_version()} | {
        each: version(each) for each in ("torch", "transformers", "tokenizers", "datasets", "lm-eval")
    }
    weights = weights_sha256(name)
    commit = None if weights else getattr(model.config, "_commit_hash", None) or revision
    identity = {"model": weights or [name, commit], "settings": settings, "versions": versions}
    work = SharedWork(parts_folder(arguments.output), identity)
    results = {
        "format": 2,
        "model": name,
        "revision": commit,
        "model_sha256": weights,
        "settings": settings
        | {"tasks": list(tasks), "num_fewshot": own.num_fewshot, "generation": GENERATION}
        | {"decontamination_sha256": own.decontamination and file_sha256(own.decontamination)},
        "versions": versions,
        "bits_per_byte": {"sources": {}, "domains": {}, "months": {}, "context_lengths": {}},
        "tasks": {},
        "groups": {},
        "samples": [],
    }
    files, resampled = {}, {}
    if own.documents is not None:
        results["bits_per_byte"], scored = score_sources(model, tokenizer, own, work)
        files |= {f"items/documents.{source}.jsonl": format_requests(each) for source, each in scored.items()}
    results["samples"] = work.map(
        "samples",
        own.prompts,
        lambda prompt: generate_samples(model, tokenizer, [prompt], context_length=own.context_length, seed=own.seed)[
            0
        ],
        "samples",
    )
    if tasks:
        settings = {"context_length": own.context_length, "batch_size": own.batch_size, "work": work}
        scorer = RequestScorer(model, tokenizer, **settings)
        for task, (benchmark, items, shots, origin) in tasks.items():
            results["tasks"][task], scored, resampled[task] = run_task(scorer, benchmark, items, shots, own)
            results["tasks"][task]["dataset"] = origin
            files[f"items/{task}.jsonl"] = format_requests(scored)
        results["groups"] = average_groups(results["tasks"], resampled)
    return {"results.json": json.dumps(results, indent=2, ensure_ascii=False) + "\n"} | files


def parts_folder(output: Path) -> Path:
    """Return where finished pieces of an evaluation are kept until it is whole."""
    return output.resolve().with_name(f".{output.resolve().name}.parts")


def describe(results: dict) -> str:
    sources = results["bits_per_byte"]["sources"].items()
    parts = [f"{name} {entry['bits_per_byte']:.3f} bits per byte" for name, entry in sources]
    alone = {name: entry for name, entry in results["tasks"].items() if not entry["groups"]}
    parts += [f"{name} {e['score']} {e['metrics'][e['score']]['value']:.3f}" for name, e in alone.items()]
    parts += [
        f"{name} {e['score']} {e['value']:.3f} ({e['num_tasks']} tasks)" for name, e in results["groups"].items()
    ]
    return ", ".join([*parts, f"{len(results['samples'])} samples"])


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(argv)
    check_arguments(arguments)
    if arguments.export_requests is not None:
        own = [name for name, benchmark in read_benchmarks().items() if benchmark.dataset_path == "json"]
        arguments.tasks = arguments.tasks or own
        export_requests(arguments)
        return
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():  # what the Hub sends is fetched once
        tasks = load_tasks(arguments)
    files = evaluate_model(arguments.model, arguments.revision, arguments, tasks)
    for name in arguments.baselines:
        folder = f"baselines/{Path(name).name if Path(name).is_dir() else name.replace('/', '--')}"
        files |= {f"{folder}/{path}": text for path, text in evaluate_model(name, None, arguments, tasks).items()}
    if state.is_main_process:
        write_results(arguments.output, files)
        shutil.rmtree(parts_folder(arguments.output), ignore_errors=True)
        results = json.loads(files["results.json"])
        logger.info("evaluate: %s, in %s", describe(results), arguments.output / "results.json")
    state.wait_for_everyone()


if __name__ == "__main__":
    main()
