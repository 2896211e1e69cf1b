# SPDX-License-Identifier: Apache-2.0
"""Load tasks in lm-eval's format, its own or those of a folder, as benchmarks of this repository.

Such a task is code: its YAML names functions that run. It is therefore loaded only if --stock_tasks names it, and a
folder of tasks only if --task_folder names it, and runs in a process of its own without access tokens. The requests
are those that lm-eval would make. Scoring, reporting, export and the check against training text are the same as for
eval/tasks.

    python eval/stock_tasks.py < request.json    # how run_eval.py starts that process
"""

import hashlib
import json
import os
import re
import site
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmark_tasks import Benchmark


PREFIX = "lm_eval-"  # of their names in results.json, since eval/tasks has tasks of the same names
KINDS = {"multiple_choice": "choice", "loglikelihood": "cloze"}


# Names of environment variables that hold credentials.
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)
# Python's audit events of starting a program, which could read any file.
ESCAPES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty")


def load_without_tokens(names: list[str], folder: Path | None, num_fewshot: int | None) -> dict[str, tuple]:
    """Run `load_stock_tasks` in a process that sees no access token, neither in its environment nor in a file.

    It has no variables that SECRET matches and an empty home folder, cannot open files of tokens, and cannot start
    programs. That protects tokens from code that looks for them; for code that you do not trust, use a container.

    Raises: ValueError: with the message of what failed there.
    """
    from datasets import config
    from huggingface_hub import constants

    with tempfile.TemporaryDirectory() as scratch:
        environment = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
        environment |= {
            "HOME": scratch,
            "HF_HOME": scratch,
            "HF_HUB_CACHE": constants.HF_HUB_CACHE,
            "HF_DATASETS_CACHE": str(config.HF_DATASETS_CACHE),
            "PYTHONUSERBASE": site.getuserbase(),
        }
        request = {
            "names": names,
            "folder": folder and str(folder.resolve()),
            "num_fewshot": num_fewshot,
            "token_files": [constants.HF_TOKEN_PATH, constants.HF_STORED_TOKENS_PATH, os.path.expanduser("~/.netrc")],
            "answer": str(Path(scratch) / "answer.json"),
        }
        command = [sys.executable, str(Path(__file__).resolve())]
        subprocess.run(command, input=json.dumps(request), text=True, env=environment, stdout=sys.stderr, check=False)
        try:
            answer = json.loads(Path(request["answer"]).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError("the process that loads tasks ended without an answer") from error
    if "error" in answer:
        raise ValueError(answer["error"])
    return {
        name: (Benchmark(**benchmark | {"file": Path(benchmark["file"])}), items, shots, origin)
        for name, (benchmark, items, shots, origin) in answer["tasks"].items()
    }


def refuse_tokens(token_files: list[str]) -> None:
    """Make this process unable to open files of tokens, to read the environment of others, or to start programs."""
    hidden = [os.stat(path) for path in token_files if os.path.exists(path)]

    def check(event: str, arguments: tuple) -> None:
        if event in ESCAPES:
            raise PermissionError(f"{event}: the code of a task must not start programs")
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike) and os.path.exists(arguments[0]):
            found = os.stat(arguments[0])  # a file has one number under all of its names
            environment = re.fullmatch(r"/proc/.*/environ", os.path.realpath(os.fsdecode(arguments[0])))
            if environment or any(os.path.samestat(found, each) for each in hidden):
                raise PermissionError(f"{arguments[0]}: the code of a task must not read access tokens")

    sys.addaudithook(check)


def answer_request() -> None:
    """Load the tasks of the request on standard input and write them to the file that it names."""
    import lm_eval.tasks  # noqa: F401  starts programs itself, so it is imported before that is refused

    request = json.load(sys.stdin)
    refuse_tokens(request["token_files"])
    folder = request["folder"] and Path(request["folder"])
    try:
        loaded = load_stock_tasks(request["names"], folder, request["num_fewshot"])
        answer = {
            "tasks": {
                name: (asdict(benchmark) | {"file": str(benchmark.file)}, *rest)
                for name, (benchmark, *rest) in loaded.items()
            }
        }
    except Exception as error:  # these tasks are code
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


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


if __name__ == "__main__":
    answer_request()
