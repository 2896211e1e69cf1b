# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of eval/tasks: their definitions, their rows, and the requests that they make of a model.

Each YAML in eval/tasks/<suite>/ defines one benchmark as data, without code. It has lm-eval's keys dataset_path,
dataset_name, test_split, validation_split, fewshot_split, num_fewshot, target_delimiter, description and version:
    tasks        {task name: keys that differ}, or a CSV file beside the YAML with a column `task` and one a key
    rows         the reader of benchmark_rows.py that turns a row into an item
    selected_by  the field that holds dataset_name, in a file with the rows of several tasks
    revision     the data set's commit; null reads the newest, and results.json records which one that was
    kind         choice (default), cloze or answer: see benchmark_rows.py
    metrics      names in item_scores.METRICS; the first is the task's score
    calibrated   a context without content, such as "Answer:", after which the choices are scored too
    groups       names that select the task together with others, and under which their scores are averaged
    commercial   false: the licence forbids commercial use, and the task runs only with --noncommercial
    published    {model: published score}, in the unit of the task's score
An empty line follows a description, as lm-eval's own tasks write it.
"""

import contextlib
import csv
import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from benchmark_rows import READERS, as_item
from limits import read_yaml


logger = logging.getLogger(__name__)

TASKS_DIR = Path(__file__).resolve().parent / "tasks"
MAX_LABELS = 30  # of a classification task whose rows list no choices


@dataclass
class Benchmark:
    """One task. The module's docstring describes the fields that a YAML sets."""

    task: str
    suite: str
    file: Path
    rows: str = "items"
    selected_by: str = ""
    dataset_path: str = "json"
    dataset_name: str | None = None
    data_files: dict | None = None
    encoding: str | None = None
    revision: str | None = None
    test_split: str = "test"
    validation_split: str | None = None  # scored instead of the test split, by a task that has none in lm-eval
    fewshot_split: str | None = None
    fewshot_order: str = "random"  # or first: always the first rows, in their order
    holdout: float | None = None  # fraction of the test split used for few-shot examples, if no other split has any
    num_fewshot: int = 0
    kind: str = "choice"
    description: str = ""
    target_delimiter: str = " "
    metrics: list = field(default_factory=lambda: ["acc", "acc_norm"])
    calibrated: str | None = None
    max_new_tokens: int = 64
    licence: str = ""
    commercial: bool = True
    groups: list = field(default_factory=list)
    published: dict = field(default_factory=dict)
    version: float = 1.0

    @property
    def scored_split(self) -> str:
        return self.validation_split or self.test_split


def read_benchmarks(tasks_dir: Path = TASKS_DIR) -> dict[str, Benchmark]:
    """Read every benchmark in a folder's subfolders: {task name: benchmark}. A YAML tag that runs code is refused.

    Raises: ValueError: for a YAML that is not a plain benchmark, or that names a file outside its folder.
    """
    benchmarks = {}
    for path in sorted(tasks_dir.glob("*/*.yaml")):
        try:
            content = read_yaml(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not plain YAML data: {error}") from error
        tasks = content.pop("tasks", None) if isinstance(content, dict) else None
        if isinstance(tasks, str):
            with (path.parent / Path(tasks).name).open(encoding="utf-8", newline="") as stream:
                table = [{key: value for key, value in line.items() if value} for line in csv.DictReader(stream)]
            tasks = {line.pop("task"): {key: table_value(key, value) for key, value in line.items()} for line in table}
        if not isinstance(tasks, dict) or not tasks:
            raise ValueError(f"{path}: needs tasks: {{name: keys}} or the name of a CSV file")
        for name, own in tasks.items():
            settings = content | (own or {})
            unknown = settings.keys() - Benchmark.__dataclass_fields__.keys()
            if unknown:
                raise ValueError(f"{path}: {name}: unknown keys: {', '.join(sorted(unknown))}")
            if settings.get("description"):
                settings["description"] += "\n\n"
            benchmark = Benchmark(task=name, suite=path.parent.name, file=path, **settings)
            if benchmark.rows not in READERS:
                raise ValueError(f"{path}: rows: {benchmark.rows!r}: benchmark_rows.py has {', '.join(READERS)}")
            if benchmark.dataset_path == "json" and not is_beside(benchmark):
                raise ValueError(f"{path}: data_files: {benchmark.data_files} must name files beside the YAML")
            if name in benchmarks:
                raise ValueError(f"{path}: {name} is already in {benchmarks[name].file}")
            benchmarks[name] = benchmark
    return benchmarks


def table_value(key: str, value: str) -> object:
    """Return a CSV cell as the YAML would hold it: lists are separated by spaces, commercial is true or false."""
    if key == "commercial":
        return {"true": True, "false": False}[value]
    if key == "version":
        return float(value)
    return value.split() if key in ("metrics", "groups") else value


def is_beside(benchmark: Benchmark) -> bool:
    files = (benchmark.data_files or {}).values()
    folder = benchmark.file.parent.resolve()
    return bool(files) and all((folder / str(name)).resolve().parent == folder for name in files)


def choose_tasks(names: list[str], benchmarks: dict[str, Benchmark], noncommercial: bool) -> list[str]:
    """Return the tasks of a list of tasks, groups and suites, without those whose licence forbids the use.

    Raises: ValueError: for a name that is none of these, or whose tasks all need --noncommercial.
    """
    chosen, unknown = [], []
    for name in names:
        members = [
            task for task, benchmark in benchmarks.items() if name in (task, benchmark.suite, *benchmark.groups)
        ]
        allowed = [task for task in members if benchmarks[task].commercial or noncommercial]
        if members and not allowed:
            raise ValueError(
                f"{name}: the licence ({benchmarks[members[0]].licence}) forbids commercial use; "
                "--noncommercial runs it anyway"
            )
        if len(allowed) < len(members):
            logger.info("%s: %d tasks are left out; --noncommercial adds them", name, len(members) - len(allowed))
        chosen += [task for task in allowed if task not in chosen]
        unknown += [] if members else [name]
    if unknown:
        groups = sorted({group for benchmark in benchmarks.values() for group in (benchmark.suite, *benchmark.groups)})
        single = sorted(task for task, benchmark in benchmarks.items() if not benchmark.groups)
        raise ValueError(
            f"{', '.join(map(repr, unknown))}: not a task of this repository; there are {', '.join(single)}, "
            f"and the groups {', '.join(groups)}"
        )
    return chosen


# Rows


def read_local_rows(path: Path) -> dict[str, list[dict]]:
    """Return the rows of a .jsonl, .json or .csv file by their field `split`; rows without one are `test`."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    elif path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    splits: dict[str, list[dict]] = {}
    for row in rows:
        splits.setdefault(str(row.get("split", "test")), []).append(row)
    return splits


def read_hub_rows(benchmark: Benchmark) -> tuple[dict[str, list[dict]], str | None]:
    """Read a benchmark's splits from the Hub. Returns: {split: rows}, and their commit."""
    from datasets import disable_progress_bars, load_dataset
    from huggingface_hub import HfApi

    disable_progress_bars()
    if benchmark.data_files:  # files, not a repository: the commit is in their address or unknown
        kind = "text" if benchmark.rows == "fpb" else "json"
        options = {"encoding": benchmark.encoding} if benchmark.encoding else {}
        loaded, revision = load_dataset(kind, data_files=benchmark.data_files, **options), benchmark.revision
    else:
        revision = HfApi(token=False).dataset_info(benchmark.dataset_path, revision=benchmark.revision).sha
        loaded = load_dataset(benchmark.dataset_path, benchmark.dataset_name, revision=revision, token=False)
    wanted = {benchmark.scored_split, benchmark.fewshot_split} - {None}
    return {split: list(loaded[split]) for split in wanted}, revision


def load_items(benchmark: Benchmark, local: Path | None = None) -> tuple[list[dict], list[dict], dict]:
    """Load a benchmark's items.

    Args:
        benchmark: from `read_benchmarks`.
        local: a file of rows or items to read instead of the Hub.

    Returns: the items, the few-shot examples, and their origin: {"path" (or the local file's name), "name",
        "revision" (None for a local file), "sha256" (of the items)}.
    Raises: ValueError: for a row of another form, or a task without rows.
    """
    if local is None and benchmark.dataset_path == "json":
        local = benchmark.file.parent / benchmark.data_files["test"]
    if local is not None:
        splits, revision = read_local_rows(local), None
        test = splits.get("test") or splits.get(benchmark.scored_split, [])
        other = [name for name in (benchmark.fewshot_split, "fewshot", "train", "dev") if name in splits]
        pool = splits[other[0]] if other and other[0] != benchmark.scored_split else []
    else:
        splits, revision = read_hub_rows(benchmark)
        test, pool = splits[benchmark.scored_split], splits.get(benchmark.fewshot_split, [])
    place = str(local or benchmark.dataset_path)
    parts = [to_items(benchmark, rows, kind, place) for rows, kind in ((test, ""), (pool, "fewshot-"))]
    items, shots = label_choices(benchmark, *parts)
    if benchmark.holdout and not shots:
        shots = [item for item in items if is_held_out(item, benchmark.holdout)]
        items = [item for item in items if not is_held_out(item, benchmark.holdout)]
    if not items:
        raise ValueError(f"{benchmark.task}: {local or benchmark.dataset_path} has no row of this task")
    digest = hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()
    path = local.name if local is not None else benchmark.dataset_path
    return items, shots, {"path": path, "name": benchmark.dataset_name, "revision": revision, "sha256": digest}


def to_items(benchmark: Benchmark, rows: list[dict], kind: str, place: str) -> list[dict]:
    """Turn the task's rows into items, each with its own id.

    Args:
        benchmark: the task.
        rows: of one split.
        kind: "fewshot-" for the few-shot examples, else "".
        place: the rows' file or data set, for messages.

    Raises: ValueError: naming the place and the number of a row that is no item, or has the id of another.
    """
    found, numbers = [], {}
    for number, row in enumerate(rows):
        if row.get(benchmark.selected_by, benchmark.dataset_name) != benchmark.dataset_name:
            continue
        where = f"{benchmark.task}: {place}: row {number} of {'the examples' if kind else 'the test split'}"
        try:
            item = as_item(row, benchmark.rows)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"{where} is not in the form that benchmark_rows.{benchmark.rows} reads: {error!r}; "
                f"its fields are {', '.join(row)}"
            ) from error
        if item is None:
            continue
        problem = find_problem(item, benchmark.kind)
        if not problem and found and ("contexts" in item) != ("contexts" in found[0]):
            problem = "contexts and a single context are two forms of an item; make a task of each"
        if problem:
            raise ValueError(f"{where}: {problem}")
        item = {"id": f"{benchmark.task}-{kind}{number:05d}"} | item
        first = numbers.setdefault(item["id"], number)
        if first != number:
            raise ValueError(f"{where}: id: {item['id']!r} is that of row {first} too; give each item its own")
        found.append(item)
    return found


def find_problem(item: dict, kind: str) -> str | None:
    """Return why an item cannot be scored by a task of a kind; None if it can."""
    texts = {"choice": ["context"], "cloze": ["context", "continuation"], "answer": ["context", "answer"]}[kind]
    listed = None
    if "label" in item and "choices" not in item:
        texts = ["context", "label"]
    elif kind == "choice" and "contexts" in item:
        texts, listed = ["continuation"], "contexts"
    elif kind == "choice":
        listed = "choices"
    for name in texts:
        if not isinstance(item.get(name), str):
            return f"{name}: {item.get(name)!r} must be a text, in a task of kind: {kind}"
    if listed is None:
        return None
    options, gold = item.get(listed), item.get("gold")
    if options is None and "answer" in item:
        return "there is an answer and there are no choices; set kind: answer in the task's YAML, or add choices"
    if not isinstance(options, list) or not options or not all(isinstance(each, str) for each in options):
        return f"{listed}: {options!r} must be a list of texts"
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(options):
        return f"gold: {gold!r} must be a number from 0 to {len(options) - 1}, that of the right one of {listed}"
    return None


def label_choices(benchmark: Benchmark, items: list[dict], shots: list[dict]) -> tuple[list[dict], list[dict]]:
    """Turn items with a label into choices among all labels of the task, or into answers."""
    labels = sorted({item["label"] for item in [*items, *shots] if "label" in item})
    if benchmark.kind == "answer":
        for item in (item for item in [*items, *shots] if "label" in item):
            item["answer"] = item.pop("label")
        return items, shots
    if len(labels) > MAX_LABELS:
        raise ValueError(
            f"{benchmark.task}: {len(labels)} different answers are too many to choose from; set kind: answer"
        )
    for item in (item for item in [*items, *shots] if "label" in item):
        item |= {"choices": labels, "gold": labels.index(item.pop("label"))}
    return items, shots


def is_held_out(item: dict, share: float) -> bool:
    """Return whether an item serves as a few-shot example, by a hash of its text: no other item matters."""
    digest = hashlib.sha256(json.dumps([item["context"], item.get("gold")]).encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


# Requests


def build_requests(
    benchmark: Benchmark, items: list[dict], shots: list[dict], num_fewshot: int, seed: int
) -> list[dict]:
    """Render a task's items with lm-eval.

    Returns: for each item {"id", "requests", "gold", "target", "tag"}. requests: one (context, continuation) a choice,
        or the single (context, "") for kind `answer`. target: the right continuation or answer.
    """
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    # lm-eval draws other examples for a task that has a validation split only.
    scored, examples = ("validation", "training") if benchmark.validation_split else ("test", "fewshot")
    splits = {scored: Dataset.from_list(items)} | ({examples: Dataset.from_list(shots)} if num_fewshot else {})
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    task = ConfigurableTask(
        config={
            "task": benchmark.task,
            "custom_dataset": lambda **_: DatasetDict(splits),
            f"{scored}_split": scored,
            f"{examples}_split": examples if num_fewshot else None,
            "fewshot_config": {"sampler": "first_n" if benchmark.fewshot_order == "first" else "default"},
            "num_fewshot": num_fewshot,
            "description": benchmark.description,
            "target_delimiter": benchmark.target_delimiter,
            **LM_EVAL_KEYS[benchmark.kind if "contexts" not in items[0] else "contexts"],
        }
    )
    task.set_fewshot_seed(seed)
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):  # hides a progress bar for each task
        task.build_all_requests(rank=0, world_size=1)
    rendered: list[dict] = [{"id": item["id"], "requests": [], "gold": item.get("gold", 0)} for item in items]
    for instance in task.instances:
        context, continuation = instance.args
        text = continuation if isinstance(continuation, str) else ""
        rendered[instance.doc_id]["requests"].append([context, text])
    for item, entry in zip(items, rendered, strict=True):
        entry["target"] = item["answer"] if benchmark.kind == "answer" else entry["requests"][entry["gold"]][1]
        entry["tag"] = item.get("label_type")
    return rendered


LM_EVAL_KEYS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": lambda doc: doc["context"],  # a function, since a template would run braces in the text
        "doc_to_choice": lambda doc: doc["choices"],
        "doc_to_target": lambda doc: doc["gold"],
    },
    "contexts": {
        "output_type": "multiple_choice",
        "doc_to_text": lambda doc: doc["gold"],
        "doc_to_choice": lambda doc: doc["contexts"],
        "doc_to_target": lambda doc: doc["continuation"],
    },
    "cloze": {
        "output_type": "loglikelihood",
        "doc_to_text": lambda doc: doc["context"],
        "doc_to_target": lambda doc: f" {doc['continuation']}",  # lm-eval puts no delimiter here
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": lambda doc: doc["context"],
        "doc_to_target": lambda doc: doc["answer"],
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
    },
}


def available_shots(benchmark: Benchmark, shots: list[dict], requested: int | None) -> int:
    """Return the number of examples before each question: as requested, or the task's own, or all there are."""
    wanted = benchmark.num_fewshot if requested is None else requested
    available = len(shots) if benchmark.fewshot_order == "first" else max(0, len(shots) - 1)  # lm-eval draws one more
    if available < wanted:
        logger.warning("%s: only %d of %d few-shot examples are available", benchmark.task, available, wanted)
    return min(wanted, available)


def common_answers(rendered: list[dict]) -> list[str | None]:
    """Return the texts of the first, second, ... choice, as far as every item has as many; None where they differ."""
    columns = zip(*([text for _, text in entry["requests"]] for entry in rendered), strict=False)
    return [texts[0].strip() if len(set(texts)) == 1 else None for texts in columns]


def exported_items(rendered: list[dict]) -> list[dict]:
    """Return each item as --export_requests writes it: {"id", "context", "choices", "gold"}."""
    exported = []
    for entry in rendered:
        contexts = {context for context, _ in entry["requests"]}
        if len(contexts) == 1:
            choices = [continuation for _, continuation in entry["requests"]]
            if choices == [""]:
                choices = [entry["target"]]
            item = {"context": contexts.pop(), "choices": choices}
        else:  # one continuation after several contexts: each whole text is a choice
            item = {"context": "", "choices": [context + continuation for context, continuation in entry["requests"]]}
        exported.append({"id": entry["id"], **item, "gold": entry["gold"]})
    return exported
