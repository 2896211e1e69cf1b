# SPDX-License-Identifier: Apache-2.0
"""The arguments of run_eval.py, and what is wrong with them before any work starts."""

import argparse
import os
from pathlib import Path

import torch
from transformers import AutoConfig

from benchmark_tasks import choose_tasks, read_benchmarks
from bits_per_byte import DTYPES
from results_folder import OWN_FILES
from training_overlap import read_decontamination


LONGEST_CONTEXT = 8192  # of --own_contexts


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Evaluate a model: bits per byte of held-out text by source, domain and month, benchmark tasks, "
        "generated samples.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
    benchmarks = read_benchmarks()
    try:
        arguments.tasks = choose_tasks(arguments.tasks, benchmarks, arguments.noncommercial)
    except ValueError as error:
        problems.append(f"--tasks: {error}")
    else:
        if arguments.export_requests is not None and not (arguments.tasks or arguments.stock_tasks):
            # Those whose items are in this repository.
            arguments.tasks = [name for name, one in benchmarks.items() if one.dataset_path == "json"]
        known = dict.fromkeys(name for task in arguments.tasks for name in (task, *benchmarks[task].groups))
        problems += [
            f"--task_data: {name} is not read, since it is no chosen task nor a group of one; there are "
            f"{', '.join(known) or 'none: name them with --tasks'}"
            for name in arguments.task_data
            if name not in known
        ]
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


def named_revision(name: str) -> tuple[str, str | None]:
    """Return the id and the revision of `owner/name@revision`; a folder has none."""
    place, _, revision = (name, "", "") if Path(name).is_dir() else name.partition("@")
    return place, revision or None
