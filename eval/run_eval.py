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
    python eval/run_eval.py --model runs/mine/model --output scores --stock_tasks sciq --task_folder path/to/tasks
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
from importlib.metadata import version
from pathlib import Path

import numpy as np
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
from bits_per_byte import DTYPES, encode_text, load_model, start_token_id
from held_out_scores import score_sources
from item_scores import score_items
from request_scoring import RequestScorer, score_requests
from shared_work import SharedWork
from stock_tasks import load_stock_tasks


logger = logging.getLogger(__name__)

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
    try:
        if arguments.stock_tasks:
            loaded |= load_stock_tasks(arguments.stock_tasks, arguments.task_folder, arguments.num_fewshot)
    except Exception as error:  # these are code
        problems.append(f"--stock_tasks: {type(error).__name__}: {error}")
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
    parser.add_argument(
        "--stock_tasks", default="", help="comma-separated tasks that lm-eval ships; they are code of that package"
    )
    parser.add_argument(
        "--task_folder",
        type=Path,
        help="folder of tasks in lm-eval's format, for --stock_tasks instead of lm-eval's own; its code is run",
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
    arguments.stock_tasks = [name.strip() for name in arguments.stock_tasks.split(",") if name.strip()]
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
    if arguments.task_folder is not None and not (arguments.task_folder.is_dir() and arguments.stock_tasks):
        problems.append(f"--task_folder: {arguments.task_folder} must be a folder, of which --stock_tasks names tasks")
    try:
        arguments.tasks = choose_tasks(arguments.tasks, read_benchmarks(), arguments.noncommercial)
    except ValueError as error:
        problems.append(f"--tasks: {error}")
    if arguments.export_requests is None:
        problems += [f"--{name} is needed" for name in ("model", "output") if getattr(arguments, name) is None]
        if not (arguments.documents or arguments.tasks or arguments.stock_tasks or arguments.prompts):
            problems.append("nothing to do: give --documents, --tasks, --stock_tasks or --prompts")
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
        arguments.tasks = arguments.tasks or ([] if arguments.stock_tasks else own)
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
