# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model: bits per byte of held-out text by source, domain and month, benchmark tasks, generated samples.

In:  a model folder or Hub id; documents/<split>/<source>/*.parquet (columns id, text and, if known, date and family),
     with each source's domain in documents/stats.json; the benchmarks of eval/tasks, whose rows come from the Hub or
     from --task_data.
Out: <output>/results.json; items/ with the cost of each item and document, which compare.py reads; baselines/<model>/
     with the same for other models. The folder is written as a whole. The same inputs give the same bytes.

    python eval/run_eval.py --model runs/legal-quickstart/model --documents runs/legal-quickstart/documents \
        --output runs/legal-quickstart/eval --tasks legal_sense,general_agreement --xz
    python eval/run_eval.py --model HuggingFaceTB/SmolLM2-135M --output smollm2 --tasks legal,mmlu
    python eval/run_eval.py --model runs/mine/model --output scores --tasks arc_easy --task_data arc_easy=arc.jsonl
    python eval/run_eval.py --model runs/mine/model --output scores --stock_tasks sciq --task_folder path/to/tasks
    accelerate launch --num_processes 8 eval/run_eval.py --model runs/mine/model --output scores --tasks finance
    python eval/run_eval.py --export_requests benchmarks

The last command needs no model. It writes the tasks' items to benchmarks/<task>.jsonl (id, context, choices, gold),
and prepare_data.py removes training documents that contain them. Given its record, documents/decontamination.json, as
--decontamination, run_eval.py scores items that the training text shares words with separately from the others.

An evaluation that was stopped resumes when started again. Several processes share the work and write what one would.
"""

import argparse
import ctypes
import hashlib
import json
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import enable_progress_bars
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from benchmark_tasks import (
    Benchmark,
    available_shots,
    build_requests,
    choose_tasks,
    common_answers,
    exported_items,
    load_items,
    read_benchmarks,
)
from bits_per_byte import DTYPES, load_model
from generated_samples import GENERATION, generate_sample
from group_scores import average_groups
from held_out_scores import score_sources
from item_scores import score_items
from limits import NotScored, run_script
from request_scoring import RequestScorer, score_requests
from results_folder import (
    OWN_FILES,
    clear_parts,
    json_lines,
    locked_output,
    locked_run,
    parts_folder,
    write_results,
    write_synced,
)
from shared_work import SharedWork
from stock_tasks import load_without_tokens
from training_overlap import overlap_groups, read_decontamination, score_by_overlap


HERE = Path(__file__).resolve().parent
SMALL_FILES = (".json", ".model", ".txt", ".jinja")  # of a model or its tokenizer, beside the weights
LONGEST_CONTEXT = 8192  # of --own_contexts
LAUNCHED = {"LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}  # variables that launchers set
OF_SEVERAL = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # that each of several processes has
PR_SET_PDEATHSIG = 1  # of prctl(2)
logger = logging.getLogger(__name__)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", help="model folder or Hub id")
    parser.add_argument("--revision", help="commit, tag or branch of a Hub id")
    parser.add_argument("--documents", type=Path, help="the run's documents folder; None: no bits per byte")
    parser.add_argument(
        "--output", type=Path, help="folder for results.json; an earlier evaluation there is replaced at the end"
    )
    parser.add_argument("--split", default="test", help="train, validation or test")
    parser.add_argument("--max_bytes_per_source", type=int, help="score whole documents up to this size; None: all")
    parser.add_argument("--tasks", default="", help="comma-separated tasks, groups or suites of eval/tasks")
    parser.add_argument(
        "--task_data",
        nargs="*",
        default=[],
        metavar="TASK=FILE",
        help="read the rows of a task or group from a local .jsonl, .json or .csv instead of the Hub",
    )
    parser.add_argument(
        "--stock_tasks",
        default="",
        help="comma-separated tasks that lm-eval ships; loading one runs its code",
    )
    parser.add_argument(
        "--task_folder",
        type=Path,
        help="folder of tasks in lm-eval's format, which --stock_tasks then names; loading one runs its code",
    )
    parser.add_argument(
        "--num_fewshot", type=int, help="examples before each question; None: the number that the task sets"
    )
    parser.add_argument(
        "--noncommercial", action="store_true", help="include tasks whose licence forbids commercial use"
    )
    parser.add_argument(
        "--baselines",
        nargs="*",
        default=[],
        help="other models to score the same way: folders or Hub ids, also owner/name@revision",
    )
    parser.add_argument(
        "--own_contexts",
        action="store_true",
        help=f"score a baseline with its own context too where it is longer, up to {LONGEST_CONTEXT} tokens",
    )
    parser.add_argument(
        "--baseline_scores", type=Path, help="folder that keeps the baselines' scores for the next evaluation"
    )
    parser.add_argument(
        "--decontamination",
        type=Path,
        help="decontamination.json of the model's training text: score clean and overlapping items separately",
    )
    parser.add_argument("--prompts", nargs="*", default=[], help="texts to continue")
    parser.add_argument("--prompt", dest="prompts", action="append", help="one prompt, such as --prompt=-The")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights; None: bfloat16 on GPUs whose launch file says mixed_precision: bf16, else float32",
    )
    parser.add_argument("--context_length", type=int, help="tokens; None: the model's max_position_embeddings")
    parser.add_argument(
        "--stride", type=int, help="tokens between windows over a long document; None: half the context"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap and of the samples")
    parser.add_argument("--xz", action="store_true", help="also compress the documents with xz")
    parser.add_argument("--export_requests", type=Path, help="write the tasks' items to this folder and stop")
    arguments = parser.parse_args(argv)
    launched_in = os.environ.get("ACCELERATE_MIXED_PRECISION") if torch.cuda.is_available() else None
    arguments.dtype = arguments.dtype or {"bf16": "bfloat16"}.get(launched_in, "float32")
    arguments.tasks = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    arguments.stock_tasks = [name.strip() for name in arguments.stock_tasks.split(",") if name.strip()]
    arguments.task_data = {name: Path(path) for name, _, path in (each.partition("=") for each in arguments.task_data)}
    return arguments


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse arguments that cannot work, and fill in tasks and context_length.

    Raises: SystemExit: listing every problem.
    """
    problems = [
        f"--task_data: {name}: no such file: {path}"
        for name, path in arguments.task_data.items()
        if not path.is_file()
    ]
    if arguments.task_folder is not None and not (arguments.task_folder.is_dir() and arguments.stock_tasks):
        problems.append(f"--task_folder: {arguments.task_folder} must be a folder with the tasks of --stock_tasks")
    try:
        arguments.tasks = choose_tasks(arguments.tasks, read_benchmarks(), arguments.noncommercial)
    except ValueError as error:
        problems.append(f"--tasks: {error}")
    else:
        problems += unused_rows(arguments)
    if arguments.export_requests is None:
        problems += [f"--{name} is required" for name in ("model", "output") if getattr(arguments, name) is None]
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
                    f"--output: {arguments.output} holds something else than an earlier evaluation, and would be "
                    "replaced; name another folder"
                )
        if arguments.model is not None:
            problems += check_model(arguments)
        same = [str(Path(name).resolve()) if Path(name).is_dir() else name for name in arguments.baselines]
        problems += [f"--baselines: {name} is named twice" for name in sorted({n for n in same if same.count(n) > 1})]
        for name in arguments.baselines:
            problems += [f"--baselines: {problem}" for problem in check_folder(named_revision(name)[0])]
    if problems:
        raise SystemExit("run_eval.py cannot start:\n" + "\n".join(f"  {problem}" for problem in problems))


def unused_rows(arguments: argparse.Namespace) -> list[str]:
    """Return a problem for each name of --task_data that is neither a chosen task nor a group of one."""
    if not arguments.task_data:
        return []
    benchmarks = read_benchmarks()
    exported = arguments.export_requests is not None and not arguments.stock_tasks
    tasks = arguments.tasks or (own_tasks(benchmarks) if exported else [])
    known = dict.fromkeys(name for task in tasks for name in (task, *benchmarks[task].groups))
    return [
        f"--task_data: {name} is not read, since it is no chosen task nor a group of one; there are "
        f"{', '.join(known) or 'none: name them with --tasks'}"
        for name in arguments.task_data
        if name not in known
    ]


def own_tasks(benchmarks: dict[str, Benchmark]) -> list[str]:
    """Return the tasks whose items are in this repository, which --export_requests writes where no task is named."""
    return [name for name, benchmark in benchmarks.items() if benchmark.dataset_path == "json"]


def check_folder(model: str) -> list[str]:
    """Return the problems of a model's folder, or of a name that is neither a folder nor a Hub id."""
    folder = Path(model)
    if folder.is_dir():
        lacking = [name for name in ("config.json", "*.safetensors", "tokenizer*.json") if not any(folder.glob(name))]
        if lacking:
            return [f"the folder {folder} lacks {', '.join(lacking)}; use one that save_pretrained wrote"]
    elif folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        return [f"there is no folder {folder}, and a Hub id has the form name or owner/name"]
    elif "/" in model and Path(folder.parts[0]).is_dir():  # the Hub is not asked for a mistyped folder
        return [f"there is no folder {folder} in {Path(folder.parts[0])}, and the Hub was not asked for this name"]
    return []


def check_model(arguments: argparse.Namespace) -> list[str]:
    """Return the problems of the model, and fill in context_length from its config."""
    if problems := check_folder(arguments.model):
        return [f"--model: {problem}" for problem in problems]
    try:
        config = AutoConfig.from_pretrained(arguments.model, revision=arguments.revision, trust_remote_code=False)
    except Exception as error:  # of the Hub, or of whatever the file holds
        where = "its config.json cannot be read" if Path(arguments.model).is_dir() else "cannot be read from the Hub"
        return [f"--model: {arguments.model}: {where}: {error}"]
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if arguments.context_length is None and limit is None:
        return [f"--context_length is required: the config of {arguments.model} has no max_position_embeddings"]
    arguments.context_length = arguments.context_length or limit
    if limit is not None and arguments.context_length > limit:
        return [f"--context_length={arguments.context_length} is more than the model's {limit} positions"]
    if arguments.stride is not None and arguments.stride > arguments.context_length:
        return [f"--stride={arguments.stride} is more than the context of {arguments.context_length} tokens"]
    return []


def load_tasks(arguments: argparse.Namespace) -> dict[str, tuple]:
    """Load the rows of the chosen tasks: {task: (benchmark, items, few-shot examples, origin of the rows)}.

    Raises: SystemExit: naming every task whose rows cannot be read.
    """
    benchmarks, loaded, problems = read_benchmarks(), {}, []
    for name in arguments.tasks:
        given = [arguments.task_data[each] for each in (name, *benchmarks[name].groups) if each in arguments.task_data]
        local = given[0] if given else None
        try:
            loaded[name] = (benchmarks[name], *load_items(benchmarks[name], local))
        except Exception as error:  # from the Hub, the network or a file
            problems.append(f"{name}: {type(error).__name__}: {error}")
    try:
        if arguments.stock_tasks:
            loaded |= load_without_tokens(arguments.stock_tasks, arguments.task_folder, arguments.num_fewshot)
    except ValueError as error:
        problems.append(f"--stock_tasks: {error}")
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise SystemExit(f"tasks whose rows cannot be read; --task_data TASK=FILE reads a local copy:\n{listed}")
    return loaded


def export_requests(arguments: argparse.Namespace) -> None:
    """Write <folder>/<task>.jsonl for each task: its items, without few-shot examples."""
    arguments.export_requests.mkdir(parents=True, exist_ok=True)
    for name, (benchmark, items, _, _) in load_tasks(arguments).items():
        exported = exported_items(build_requests(benchmark, items, [], 0, arguments.seed))
        path = arguments.export_requests / f"{name}.jsonl"
        write_synced(path.with_name(f".{name}.jsonl.tmp"), json_lines(exported))
        os.replace(path.with_name(f".{name}.jsonl.tmp"), path)
        logger.info("evaluate: %s: %d items", name, len(exported))


def evaluate_model(
    name: str, revision: str | None, arguments: argparse.Namespace, tasks: dict, kept: Path | None = None
) -> dict[str, str]:
    """Evaluate one model.

    Args:
        name: its folder or Hub id.
        revision: of a Hub model.
        arguments: of the command line.
        tasks: of load_tasks.
        kept: folder of finished pieces that stay; None: they are discarded with the evaluation's own.

    Returns: the files of its folder, {path: text}.

    Raises: NotLoaded, NotScored
    """
    state = PartialState()
    model, tokenizer = on_all(lambda: load_model(name, revision, arguments.dtype, device=state.device))
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or arguments.context_length
    own = argparse.Namespace(**vars(arguments) | {"context_length": min(arguments.context_length, limit)})
    # Half of each model's own context: half of a longer one would leave the windows of a shorter one without overlap.
    own.stride = max(1, own.context_length // 2) if own.stride is None else min(own.stride, own.context_length)
    names = ("split", "max_bytes_per_source", "batch_size", "dtype", "context_length", "stride", "seed")
    settings = {each: getattr(own, each) for each in names} | {"device": state.device.type}
    versions = {"python": platform.python_version()} | {
        each: version(each) for each in ("torch", "transformers", "tokenizers", "datasets", "lm-eval")
    }
    weights = weights_sha256(name)
    commit = None if weights else commit_of(name, revision)
    identity = {"model": weights or [name, commit], "files": small_files(name), "settings": settings}
    identity["versions"] = versions
    work = SharedWork(kept or parts_folder(own.output), identity)
    checked = own.decontamination and hashlib.sha256(own.decontamination.read_bytes()).hexdigest()
    results = {
        "format": 2,
        "model": name,
        "revision": commit,
        "model_sha256": weights,
        "settings": settings
        | {"tasks": list(tasks), "num_fewshot": own.num_fewshot, "generation": GENERATION}
        | {"decontamination_sha256": checked},
        "versions": versions,
        "bits_per_byte": {"sources": {}, "domains": {}, "months": {}, "context_lengths": {}},
        "tasks": {},
        "groups": {},
        "group_parts": {},
        "samples": [],
    }
    files = {}
    if own.documents is not None:
        results["bits_per_byte"], scored = score_sources(model, tokenizer, own, work)
        files |= {f"items/documents.{source}.jsonl": json_lines(each) for source, each in scored.items()}

    def continue_prompt(prompt: str) -> dict[str, str]:
        return generate_sample(model, tokenizer, prompt, context_length=own.context_length, seed=own.seed)

    results["samples"] = work.map("samples", own.prompts, continue_prompt, "samples")
    if tasks:
        scorer = RequestScorer(
            model, tokenizer, context_length=own.context_length, batch_size=own.batch_size, work=work
        )
        decontamination = read_decontamination(own.decontamination)
        for task, (benchmark, items, shots, origin) in tasks.items():
            entry, scored = run_task(scorer, benchmark, items, shots, own, decontamination)
            results["tasks"][task] = entry | {"dataset": origin}
            files[f"items/{task}.jsonl"] = json_lines(scored)
        results["groups"], results["group_parts"] = average_groups(
            results["tasks"], read_benchmarks(), own.noncommercial
        )
    return {"results.json": json.dumps(results, indent=2, ensure_ascii=False) + "\n"} | files


class NotLoaded(Exception):
    """A model or its config cannot be loaded."""


def on_all(load: Callable) -> Any:
    """Return load().

    Raises: NotLoaded: in every process if in one, or the others would wait for it.
    """
    found, error = None, None
    try:
        found = load()
    except Exception as raised:  # of the Hub, or of whatever the files hold
        error = f"{type(raised).__name__}: {raised}" if type(raised) not in (OSError, ValueError) else str(raised)
    if errors := [text for text in gather_object([error]) if text is not None]:
        raise NotLoaded(error or errors[0])
    return found


def run_task(
    scorer: RequestScorer,
    benchmark: Benchmark,
    items: list[dict],
    shots: list[dict],
    arguments: argparse.Namespace,
    decontamination: dict | None = None,
) -> tuple[dict, list[dict]]:
    """Score one task.

    Returns: its entry in results.json: what `score_items` returns, "score" (the name of its first metric), "groups",
        "version", "num_fewshot", the counts that `score_requests` returns, "published", and "by_overlap" (what
        `score_by_overlap` returns, None if the training text was not checked); and its scored items.
    """
    num_fewshot = available_shots(benchmark, shots, arguments.num_fewshot)
    rendered = build_requests(benchmark, items, shots, num_fewshot, arguments.seed)
    scored, counts = score_requests(
        scorer, benchmark.task, rendered, max_new_tokens=benchmark.max_new_tokens, calibrated=benchmark.calibrated
    )
    if counts["left_out"] and PartialState().is_main_process:
        text = "evaluate: %s: %d of %d items are not scored: a continuation alone is longer than the context"
        logger.info(text, benchmark.task, counts["left_out"], len(items))
    answers = common_answers(rendered)
    entry = score_items(benchmark.task, scored, benchmark.metrics, arguments.seed, answers)
    entry |= {"score": benchmark.metrics[0], "groups": benchmark.groups, "version": benchmark.version}
    entry |= {"num_fewshot": num_fewshot, **counts, "published": benchmark.published, "by_overlap": None}
    if decontamination is not None:
        exported = exported_items(build_requests(benchmark, items, [], 0, arguments.seed))
        groups = zip(exported, overlap_groups(benchmark.task, exported, decontamination), strict=True)
        ids = {item["id"] for item in scored}
        overlaps = [group for item, group in groups if item["id"] in ids]
        entry["by_overlap"] = score_by_overlap(benchmark, scored, overlaps, arguments.seed, answers)
    return entry, scored


def named_revision(name: str) -> tuple[str, str | None]:
    """Return the id and the revision of `owner/name@revision`; a folder has none."""
    place, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    return place, revision or None


def contexts_of(name: str, arguments: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """Return the settings to score a baseline with, by the end of its folder's name: with the context of the model,
    and with its own where --own_contexts asks for it and it is longer."""
    settings = {"": arguments}
    if arguments.own_contexts:
        place, revision = named_revision(name)
        config = on_all(lambda: AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False))
        longest = min(getattr(config.get_text_config(), "max_position_embeddings", None) or 0, LONGEST_CONTEXT)
        if longest > arguments.context_length:
            settings[f"--{longest}-tokens"] = argparse.Namespace(**vars(arguments) | {"context_length": longest})
    return settings


def summarise_baseline(results: dict) -> dict:
    """Return the scores of a baseline for results.json; its own file has the rest."""
    sources = results["bits_per_byte"]["sources"].items()
    scores = {name: task["metrics"][task["score"]]["value"] for name, task in results["tasks"].items()}
    return {
        **{key: results[key] for key in ("name", "model", "revision", "model_sha256")},
        "context_length": results["settings"]["context_length"],
        "bits_per_byte": {name: entry["bits_per_byte"] for name, entry in sources},
        "scores": scores | {name: group["value"] for name, group in results["groups"].items()},
    }


def baseline_names(models: list[str]) -> dict[str, str]:
    """Name each baseline: its Hub id as given, or its folder, with as many parents' names as tell it apart."""
    parts = {name: Path(name).resolve().parts[1:] if Path(name).is_dir() else (name,) for name in models}
    names = {}
    for name, own in parts.items():
        length = next(n for n in range(1, len(own) + 1) if sum(each[-n:] == own[-n:] for each in parts.values()) == 1)
        names[name] = "/".join(own[-length:])
    return names


def commit_of(model: str, revision: str | None) -> str | None:
    """Return the commit of a model that was loaded from the Hub, which is the name of its folder in the cache."""
    config = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else revision


def weights_sha256(model: str) -> str | None:
    """Return the sha256 of a model folder's safetensors, in the order of their names; None for a Hub id."""
    files = sorted(Path(model).glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest() if files else None


def small_files(model: str) -> dict[str, str]:
    """Return the sha256 of each file of a model folder beside its weights: configuration and tokenizer decide scores.

    Of a Hub id there are none: its commit names them all.
    """
    paths = sorted(path for path in Path(model).glob("*") if path.suffix in SMALL_FILES and path.name != "stage.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def describe(results: dict) -> str:
    sources = results["bits_per_byte"]["sources"].items()
    parts = [f"{name} {entry['bits_per_byte']:.3f} bits per byte" for name, entry in sources]
    alone = {name: entry for name, entry in results["tasks"].items() if not entry["groups"]}
    parts += [f"{name} {e['score']} {e['metrics'][e['score']]['value']:.3f}" for name, e in alone.items()]
    parts += [
        f"{name}, {e['score']} {e['value']:.3f}" for name, e in (results["groups"] | results["group_parts"]).items()
    ]
    return ", ".join([*parts, f"{len(results['samples'])} samples"])


def print_own_messages() -> None:
    """Print the messages of the modules here, and of libraries only errors; downloads from the Hub keep their bars."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or Path(record.pathname).parent == HERE)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    enable_progress_bars()


def main(argv: list[str] | None = None) -> None:
    print_own_messages()
    constants.HF_HUB_DISABLE_TELEMETRY = True
    arguments = parse_arguments(argv)
    check_arguments(arguments)
    if arguments.export_requests is not None:
        arguments.tasks = arguments.tasks or ([] if arguments.stock_tasks else own_tasks(read_benchmarks()))
        export_requests(arguments)
        return
    check_launch()
    state = PartialState(cpu=not torch.cuda.is_available())
    with ExitStack() as held:
        if state.is_main_process:
            run = arguments.output.resolve().parent
            if arguments.output.name == "eval" and (run / "recipe.yaml").exists():  # the output of a recipe's stage
                held.enter_context(locked_run(run, "evaluate"))
            held.enter_context(locked_output(arguments.output))
        evaluate(arguments, state)
    state.wait_for_everyone()


def check_launch() -> None:
    """End with the launcher that started this process, if one did, and refuse variables that another job left.

    Raises: SystemExit: this process would wait for others that nobody starts.
    """
    if LAUNCHED & os.environ.keys() and sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    missing = [name for name in OF_SEVERAL if not os.environ.get(name)]
    if os.environ.get("WORLD_SIZE", "1") not in ("0", "1") and missing:
        raise SystemExit(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} asks for several processes, but {', '.join(missing)} is not set: "
            "another job left it; unset WORLD_SIZE, or start the evaluation by `accelerate launch`"
        )


def evaluate(arguments: argparse.Namespace, state: PartialState) -> None:
    """Evaluate the model and the baselines that can be loaded and scored, and write their results."""
    with state.main_process_first():  # rows are downloaded once
        tasks = load_tasks(arguments)
    try:
        files = evaluate_model(arguments.model, arguments.revision, arguments, tasks)
    except (NotLoaded, NotScored) as error:
        raise SystemExit(f"--model: {error}") from error
    results, baselines = json.loads(files["results.json"]), {}
    not_scored, failed_before, try_again = {}, failed_baselines(arguments.output), False
    for name, unique in baseline_names(arguments.baselines).items():
        folder, shown = unique.replace("/", "--"), f"the local model {unique}" if Path(name).is_dir() else unique
        try:
            for label, own in contexts_of(name, arguments).items():
                found = evaluate_model(*named_revision(name), own, tasks, arguments.baseline_scores)
                scores = {"name": shown} | json.loads(found["results.json"])
                found["results.json"] = json.dumps(scores, indent=2, ensure_ascii=False) + "\n"
                files |= {f"baselines/{folder}{label}/{path}": text for path, text in found.items()}
                baselines[f"{folder}{label}"] = summarise_baseline(scores)
        except (NotLoaded, NotScored) as error:
            not_scored[shown] = text = f"the baseline {name} was not scored: {error}"
            if isinstance(error, NotLoaded):
                text += "; evaluate again once it can be loaded"
                not_scored[shown] = failed_before.get(shown, text)  # each try may word it otherwise
                try_again = True
            if state.is_main_process:
                logger.error("evaluate: %s", text)
    if baselines or not_scored:
        results |= {"baselines": baselines, "baselines_not_scored": not_scored}
        files["results.json"] = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    if state.is_main_process:
        write_results(arguments.output, files)
        if not try_again:  # else the next try, for what could not be loaded, scores nothing twice
            clear_parts(arguments.output)
        logger.info("evaluate: %s, in %s", describe(results), arguments.output / "results.json")


def failed_baselines(output: Path) -> dict[str, str]:
    """Return why baselines were not scored by the evaluation that is in a folder."""
    try:
        return dict(json.loads((output / "results.json").read_text(encoding="utf-8"))["baselines_not_scored"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


if __name__ == "__main__":
    run_script(main)
