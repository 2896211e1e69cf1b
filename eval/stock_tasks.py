# SPDX-License-Identifier: Apache-2.0
"""Load tasks in lm-eval's format, its own or those of a folder, as benchmarks of this repository.

Such a task is code: its YAML names functions that run. It is therefore loaded only if --stock_tasks names it, and a
folder of tasks only if --task_folder names it. The requests are those that lm-eval would make. Scoring, reporting,
export and the check against training text are the same as for eval/tasks.
"""

import hashlib
import json
import re
from pathlib import Path

from benchmark_tasks import Benchmark


PREFIX = "lm_eval-"  # of their names in results.json, since eval/tasks has tasks of the same names
KINDS = {"multiple_choice": "choice", "loglikelihood": "cloze"}


def load_stock_tasks(names: list[str], folder: Path | None, num_fewshot: int | None) -> dict[str, tuple]:
    """Load tasks, groups and tags by name: {PREFIX + task: (benchmark, items, few-shot examples, origin)}.

    Args:
        names: lm-eval's.
        folder: of tasks to load instead of those that lm-eval ships.
        num_fewshot: examples before each question; None: as many as each task sets.

    Raises: ValueError: naming a task that does not exist, cannot be loaded, or needs lm-eval's own scoring.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: there is no such task in {folder or 'lm-eval'}")
    return {
        PREFIX + name: as_benchmark(name, task, num_fewshot) for name, task in manager.load(names)["tasks"].items()
    }


def as_benchmark(name: str, task, num_fewshot: int | None) -> tuple[Benchmark, list[dict], list[dict], dict]:
    config = task.config
    if config.output_type not in KINDS or task.multiple_target:
        form = "with several right answers" if task.multiple_target else f"of output_type {config.output_type}"
        raise ValueError(f"{name}: a task {form}, which only lm-eval's own command scores: lm_eval --tasks {name}")
    listed = {each["metric"] for each in config.metric_list or []}
    by_choice = [metric for metric in ("acc", "acc_norm") if metric in listed] or ["acc"]
    benchmark = Benchmark(
        task=PREFIX + name,
        suite="lm_eval",
        file=Path(),
        dataset_path=str(config.dataset_path),
        dataset_name=config.dataset_name,
        validation_split=None if config.test_split else config.validation_split,
        fewshot_order="first" if task.fewshot_cfg.sampler == "first_n" else "random",
        num_fewshot=config.num_fewshot or 0,
        kind=KINDS[config.output_type],
        description=config.description or "",
        target_delimiter=config.target_delimiter,
        metrics=by_choice if config.output_type == "multiple_choice" else ["greedy"],
        version=(config.metadata or {}).get("version", 0),
    )
    wanted = benchmark.num_fewshot if num_fewshot is None else num_fewshot
    items = [as_item(task, doc) | {"id": f"{name}-{n:05d}"} for n, doc in enumerate(task.eval_docs)]
    examples = task.fewshot_docs() if wanted else []
    shots = [as_item(task, doc) | {"id": f"{name}-fewshot-{n:05d}"} for n, doc in enumerate(examples)]
    origin = {
        "path": benchmark.dataset_path,
        "name": benchmark.dataset_name,
        "revision": commit_of(task.eval_docs),
        "sha256": hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest(),
    }
    return benchmark, items, shots, origin


def as_item(task, doc: dict) -> dict:
    """Turn a row into an item by the task's own functions; benchmark_rows.py lists the forms of an item."""
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    if task.config.output_type == "loglikelihood":
        return {"context": text, "continuation": target.removeprefix(" ")}
    choices = list(task.doc_to_choice(doc))
    if task.multiple_input:
        return {"contexts": choices, "continuation": target, "gold": text}
    return {"context": text, "choices": choices, "gold": target if isinstance(target, int) else choices.index(target)}


def commit_of(rows) -> str | None:
    """Return the Hub commit of rows, read from the addresses of their downloaded files; None if unknown."""
    sources = getattr(getattr(rows, "info", None), "download_checksums", None) or {}
    found = re.search(r"@([0-9a-f]{40})/", " ".join(sources))
    return found and found[1]
