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
    common_answers,
    exported_items,
    load_items,
    read_benchmarks,
)
from bits_per_byte import load_model
from evaluation_arguments import LONGEST_CONTEXT, check_arguments, named_revision, parse_arguments
from generated_samples import GENERATION, generate_sample
from group_scores import average_groups
from held_out_scores import score_sources
from item_scores import score_items
from limits import NotScored, run_script
from request_scoring import RequestScorer, score_requests
from results_folder import (
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
LAUNCHED = {"LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"}  # variables that launchers set
OF_SEVERAL = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # that each of several processes has
PR_SET_PDEATHSIG = 1  # of prctl(2)
logger = logging.getLogger(__name__)


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
