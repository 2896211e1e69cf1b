# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model: bits per byte of held-out text by source and domain, benchmark tasks, generated samples.

In:  a model folder or any Hub id; documents/<split>/<source>/*.parquet (columns id, text), whose domains stand in
     documents/stats.json; the tasks below eval/tasks.
Out: <output>/results.json, complete or not there at all. The same inputs give the same file, byte for byte.

    python eval/run_eval.py --model runs/legal-quickstart/model --documents runs/legal-quickstart/documents \
        --output runs/legal-quickstart/eval --tasks legal_sense,general_agreement --xz
    python eval/run_eval.py --model HuggingFaceTB/SmolLM2-135M --output smollm2 --tasks general_agreement
    python eval/run_eval.py --export_requests benchmarks

The last one needs no model: it writes what each task asks, benchmarks/<task>.jsonl with id, context, choices and gold,
against which training text is decontaminated. What came of that, documents/decontamination.json, is read back by
--decontamination: the scores of items that the training text does not hold are then given apart from those of others.
It runs in one process, on one GPU where there is one.
"""

import argparse
import hashlib
import json
import logging
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from ruamel.yaml import YAML
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from bits_per_byte import (
    DTYPES,
    bits_per_byte,
    encode_text,
    load_model,
    score_documents,
    start_token_id,
    xz_baselines,
)


logger = logging.getLogger(__name__)

TASKS_DIR = Path(__file__).resolve().parent / "tasks"
XZ_KINDS = ("xz_documents", "xz_stream", "xz_primed")
RESAMPLES = 1000  # of the bootstrap
# Of fewer items only the count is given: the standard error of guessing between two answers would be above 0.11.
MIN_GROUP_ITEMS = 20
OVERLAP_GROUPS = ("clean", "overlapping", "not_checkable", "unchecked")
# Plain sampling of a small model soon goes round in circles; greedy decoding does at once.
GENERATION = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1, "max_new_tokens": 80}


def read_task_configs(tasks_dir: Path = TASKS_DIR) -> dict[str, dict]:
    """Read every task YAML below a folder, as data: a `!function` tag, with which lm-eval runs code, is refused.

    Returns: {task name: lm-eval configuration}, with the data files resolved against the YAML's own folder.
    Raises: ValueError: for a YAML that is not a plain task, or a data file that lies outside its folder.
    """
    configs = {}
    for path in sorted(tasks_dir.glob("*/*.yaml")):
        try:
            config = YAML(typ="safe", pure=True).load(path)
        except Exception as error:
            raise ValueError(f"{path}: not plain YAML data: {error}") from error
        files = config.get("dataset_kwargs", {}).get("data_files") if isinstance(config, dict) else None
        if not files or not isinstance(config.get("task"), str) or config.get("dataset_path") != "json":
            raise ValueError(f"{path}: needs task, dataset_path: json and dataset_kwargs.data_files: {{split: file}}")
        for split, name in files.items():
            files[split] = str(path.parent / name)
            if (path.parent / name).resolve().parent != path.parent.resolve():
                raise ValueError(f"{path}: data file {name!r} must lie beside the YAML")
        configs[config["task"]] = config | {"num_fewshot": 0}
    return configs


def load_tasks(names: list[str], cache_dir: str) -> dict:
    """Build lm-eval's task objects, {name: task}, from the repository's own YAML and nothing else.

    Args:
        names: tasks below eval/tasks.
        cache_dir: an empty folder for the datasets library, whose usual cache may hold an older version of the items.
    """
    # lm-eval renders templates that are not sandboxed: whatever runs from here on finds no credentials.
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        os.environ.pop(name, None)
    from datasets import disable_progress_bars
    from lm_eval.tasks import TaskManager

    disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    configs = read_task_configs()
    for name in names:
        configs[name]["dataset_kwargs"]["cache_dir"] = cache_dir
    return TaskManager(include_defaults=False).load([configs[name] for name in names])["tasks"]


def task_requests(task: object) -> list[dict]:
    """Return what a multiple-choice task asks, [{id, context, choices, gold}], as lm-eval renders it.

    A continuation is scored exactly as it stands in choices, its leading space included.
    """
    task.build_all_requests(rank=0, world_size=1)
    items: dict[int, dict] = {}
    for instance in task.instances:
        context, choice = instance.args
        new = {"id": instance.doc["id"], "context": context, "choices": [], "gold": task.doc_to_target(instance.doc)}
        items.setdefault(instance.doc_id, new)["choices"].append(choice)
    return list(items.values())


def format_requests(items: list[dict]) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def export_requests(folder: Path, names: list[str]) -> None:
    """Write folder/<task>.jsonl for each task."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache_dir:
        for name, task in load_tasks(names, cache_dir).items():
            items = task_requests(task)
            write_synced(folder / f".{name}.jsonl.tmp", format_requests(items))
            os.replace(folder / f".{name}.jsonl.tmp", folder / f"{name}.jsonl")
            logger.info("%s: %d items", folder / f"{name}.jsonl", len(items))


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: list[str],
    *,
    context_length: int,
    batch_size: int,
    decontamination: dict | None = None,
) -> dict[str, dict]:
    """Score tasks with lm-eval.

    Every request begins with the token that starts a document. Where a tokenizer adds no special tokens by itself,
    lm-eval puts it before requests without a context only, but in training no text began without it.

    Returns: {task: {"metrics": {name: {"value", "stderr"}}, "chance", "num_items", "version", and
        "gold_bits_per_byte": {"value", "stderr"}, cost of the right continuations, which moves before accuracy does;
        "boundary_mismatches": items in which a continuation changes how the context before it is cut into tokens;
        "truncated": requests longer than the context, of which the start was cut off;
        "by_overlap": what `score_by_overlap` returns, None without decontamination.json's content}}.
    Raises: ValueError: when a continuation alone does not fit the context.
    """
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    class DocumentStartLM(HFLM):
        """HFLM that encodes text as text, after the token that starts a document."""

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
            return self.tokenizer(string, add_special_tokens=False, split_special_tokens=True)["input_ids"]

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            context_tokens, continuation_tokens = super()._encode_pair(context, continuation)
            return [self.prefix_token_id, *context_tokens], continuation_tokens

    results = {}
    with tempfile.TemporaryDirectory() as cache_dir:
        tasks = load_tasks(names, cache_dir)
        lm = DocumentStartLM(
            pretrained=model,
            backend="causal",
            tokenizer=tokenizer,
            max_length=context_length,
            batch_size=batch_size,
            prefix_token_id=start_token_id(tokenizer),
        )
        for name, task in tasks.items():
            items = task_requests(task)
            mismatches, truncated = 0, 0
            for item in items:
                context = lm.tok_encode(item["context"])
                whole = [lm.tok_encode(item["context"] + choice) for choice in item["choices"]]
                mismatches += any(tokens[: len(context)] != context for tokens in whole)
                truncated += sum(len(tokens) > context_length for tokens in whole)
                longest = max(len(tokens) for tokens in whole) - len(context)
                if longest > context_length:
                    raise ValueError(
                        f"{name}: the continuation of {item['id']} has {longest} tokens, more than "
                        f"context_length={context_length}; leave the task out or use a model with a longer context"
                    )
            output = evaluate(lm, {"tasks": {name: task}, "groups": {}, "group_map": {}}, bootstrap_iters=1000)
            numbers = output["results"][name]
            values = {key.removesuffix(",none"): float(numbers[key]) for key in numbers if key.endswith(",none")}
            nats = [-sample["filtered_resps"][sample["target"]][0] for sample in output["samples"][name]]
            gold_bytes = [len(item["choices"][item["gold"]].encode()) for item in items]
            results[name] = {
                "metrics": {
                    metric: {"value": value, "stderr": values[f"{metric}_stderr"]}
                    for metric, value in values.items()
                    if not metric.endswith("_stderr")
                },
                "chance": float(np.mean([1 / len(item["choices"]) for item in items])),
                "num_items": len(items),
                "version": output["versions"][name],
                "gold_bits_per_byte": ratio_with_stderr(nats, gold_bytes),
                "boundary_mismatches": mismatches,
                "truncated": truncated,
                "by_overlap": None,
            }
            if decontamination is not None:
                groups = overlap_groups(name, items, decontamination)
                if "unchecked" in groups:
                    logger.warning("%s: the training text was not checked against these items", name)
                samples = output["samples"][name]
                scored = [
                    {"nats": cost, "bytes": size, "choices": len(item["choices"])}
                    | {"metrics": {metric: sample[metric] for metric in results[name]["metrics"]}}
                    for cost, size, item, sample in zip(nats, gold_bytes, items, samples, strict=True)
                ]
                results[name]["by_overlap"] = score_by_overlap(task, groups, scored)
    return results


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


def score_by_overlap(task: object, groups: list[str], scored: list[dict]) -> dict[str, dict]:
    """Score the items of each group by themselves, with the task's own way to put its items' values together.

    Args:
        task: of lm-eval.
        groups: of each item, as `overlap_groups` gives them.
        scored: of each item: nats and bytes of its right continuation, number of choices, value of each metric.

    Returns: {group: {"num_items", "chance", "metrics", "gold_bits_per_byte"}}, the last two None for groups of less
        than MIN_GROUP_ITEMS items; groups without items are left out.
    """
    from lm_eval.api.metrics import stderr_for_metric

    results = {}
    for group in (group for group in OVERLAP_GROUPS if group in groups):
        items = [item for item, own in zip(scored, groups, strict=True) if own == group]
        results[group] = entry = {
            "num_items": len(items),
            "chance": float(np.mean([1 / item["choices"] for item in items])),
            "metrics": None,
            "gold_bits_per_byte": None,
        }
        if len(items) < MIN_GROUP_ITEMS:
            continue
        entry["gold_bits_per_byte"] = ratio_with_stderr(
            [item["nats"] for item in items], [item["bytes"] for item in items]
        )
        entry["metrics"] = {}
        for metric in items[0]["metrics"]:
            values, aggregate = [item["metrics"][metric] for item in items], task.aggregation()[metric]
            stderr = stderr_for_metric(aggregate, RESAMPLES)
            entry["metrics"][metric] = {"value": float(aggregate(values)), "stderr": stderr and float(stderr(values))}
    return results


def ratio_with_stderr(nats: list[float], sizes: list[int]) -> dict[str, float]:
    """Return bits per byte of all items together and its standard error, that of a ratio of two means."""
    bits, byte_counts = np.array(nats) / math.log(2), np.array(sizes)
    ratio = bits.sum() / byte_counts.sum()
    spread = ((bits - ratio * byte_counts) ** 2).sum() * len(bits) / (len(bits) - 1)
    return {"value": float(ratio), "stderr": float(math.sqrt(spread) / byte_counts.sum())}


def read_documents(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of a source's parquet files, file by file."""
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(columns=["id", "text"], batch_size=256):
            yield from zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True)


def chosen_texts(folder: Path, max_bytes: int | None) -> list[str]:
    """Return a source's texts in the order of their ids; with max_bytes, the first that fit, at least one."""
    texts, total_bytes = [], 0
    for _, text in sorted(read_documents(folder)):
        total_bytes += len(text.encode())
        if texts and max_bytes is not None and total_bytes > max_bytes:
            break
        texts.append(text)
    return texts


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


def score_sources(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace
) -> dict[str, dict]:
    """Score the held-out documents of every source, and sum them by domain: {"sources": ..., "domains": ...}."""
    stats = arguments.documents / "stats.json"
    known = json.loads(stats.read_text(encoding="utf-8"))["sources"] if stats.is_file() else {}
    sources, members = {}, {}
    for folder in sorted(path for path in (arguments.documents / arguments.split).iterdir() if path.is_dir()):
        texts = [text for text in chosen_texts(folder, arguments.max_bytes_per_source) if text]
        if not texts:
            logger.warning("%s holds no text, so %s is left out", folder, folder.name)
            continue
        scores = score_documents(
            model,
            tokenizer,
            texts,
            context_length=arguments.context_length,
            stride=arguments.stride,
            batch_size=arguments.batch_size,
            description=folder.name,
        )
        sizes = {}
        if arguments.xz:
            logger.info("%s: compressing with xz", folder.name)
            training = read_documents(arguments.documents / "train" / folder.name)
            sizes = xz_baselines([text.encode() for text in texts], (text.encode() for _, text in training))
        parts = (
            np.array([score.nats for score in scores]),
            np.array([score.bytes for score in scores]),
            sum(score.tokens for score in scores),
        )
        domain = known.get(folder.name, {}).get("domain") or folder.name
        not_restored = sum(not score.restored for score in scores)
        if not_restored:
            logger.warning("%s: tokens of %d documents do not decode back to the text", folder.name, not_restored)
        sources[folder.name] = {"domain": domain, **summarise(*parts, sizes, arguments.seed)}
        sources[folder.name]["documents_not_restored"] = not_restored
        members.setdefault(domain, []).append((*parts, sizes, not_restored))

    domains = {}
    for domain, entries in sorted(members.items()):
        nats, byte_counts, tokens, sizes, not_restored = zip(*entries, strict=True)
        summed = {
            kind: sum(each[kind] for each in sizes)
            for kind in XZ_KINDS
            if all(each.get(kind) is not None for each in sizes)
        }
        entry = summarise(np.concatenate(nats), np.concatenate(byte_counts), sum(tokens), summed, arguments.seed)
        domains[domain] = {"domain": domain, **entry, "documents_not_restored": sum(not_restored)}
    return {"sources": sources, "domains": domains}


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


def write_results(output: Path, results: dict) -> None:
    """Write output/results.json in a folder beside it and swap the two, so that a killed run leaves the old one."""
    output = output.resolve()
    new, old = (output.with_name(f".{output.name}.{suffix}") for suffix in ("tmp", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir(parents=True)
    write_synced(new / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
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
    parser.add_argument("--tasks", default="", help="comma-separated names of tasks below eval/tasks")
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
    """Find everything that would stop the run, and fill in context_length and stride.

    Raises: SystemExit: listing all problems.
    """
    known = list(read_task_configs())
    problems = [
        f"--tasks: {name!r} is not a task of this repository; there are {', '.join(known)}"
        for name in arguments.tasks
        if name not in known
    ]
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
            if names and ("results.json" not in names or not names <= {"results.json", "stage.json"}):
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


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(argv)
    check_arguments(arguments)
    if arguments.export_requests is not None:
        export_requests(arguments.export_requests, arguments.tasks or list(read_task_configs()))
        return
    try:
        model, tokenizer = load_model(arguments.model, arguments.revision, arguments.dtype)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--model: {error}") from error

    names = ("split", "max_bytes_per_source", "batch_size", "dtype", "context_length", "stride", "tasks", "seed")
    results = {
        "format": 1,
        "model": arguments.model,
        "revision": arguments.revision,
        "model_sha256": weights_sha256(arguments.model),
        "settings": {name: getattr(arguments, name) for name in names}
        | {"num_fewshot": 0, "device": model.device.type, "generation": GENERATION}
        | {"decontamination_sha256": arguments.decontamination and file_sha256(arguments.decontamination)},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers", "datasets", "lm-eval")},
        "bits_per_byte": {"sources": {}, "domains": {}},
        "tasks": {},
        "samples": [],
    }
    if arguments.documents is not None:
        results["bits_per_byte"] = score_sources(model, tokenizer, arguments)
    results["samples"] = generate_samples(
        model, tokenizer, arguments.prompts, context_length=arguments.context_length, seed=arguments.seed
    )
    if arguments.tasks:
        results["tasks"] = run_tasks(
            model,
            tokenizer,
            arguments.tasks,
            context_length=arguments.context_length,
            batch_size=arguments.batch_size,
            decontamination=read_decontamination(arguments.decontamination),
        )
    write_results(arguments.output, results)
    sources = results["bits_per_byte"]["sources"].items()
    parts = [f"{name} {entry['bits_per_byte']:.3f} bits per byte" for name, entry in sources]
    parts += [f"{name} acc {entry['metrics']['acc']['value']:.3f}" for name, entry in results["tasks"].items()]
    parts += [f"{len(results['samples'])} samples"]
    logger.info("evaluate: %s, in %s", ", ".join(parts), arguments.output / "results.json")


if __name__ == "__main__":
    main()
