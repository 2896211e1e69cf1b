# SPDX-License-Identifier: Apache-2.0
"""The first pass over the text: read the sources, take the text out of each example, and judge it by itself."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from datatrove.data import Document
from huggingface_hub import HfApi

from atomic_files import write_json
from corpus.accounting import Tally
from corpus.document_files import document_id
from corpus.language import LanguageFilter
from corpus.personal_data import Redactor
from corpus.pipeline_executor import TaskProgress
from corpus.text_normalisation import normalise
from corpus.text_quality import QualityFilter
from recipe_config import Data, Source, Splits
from sources.readers import Unreadable, document_date, read_unit
from sources.units import Unit, is_hub_dataset, list_all_units, named_errors


# A source is read by at least so many tasks, where it has so many files, and by one more for each so many bytes.
MIN_TASKS_PER_SOURCE = 8
BYTES_PER_TASK = 1 << 30


def pin_revisions(data: Data, note: Path) -> Data:
    """Resolve the head of each Hub dataset without a revision to its commit, so that one commit is read throughout.

    Args: note: file in which the commits are kept, so that an interrupted run goes on with the same ones.
    """
    commits = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    sources = []
    for source in data.sources:
        if is_hub_dataset(source) and source.revision is None:
            if source.name not in commits:
                with named_errors(source):
                    commits[source.name] = HfApi().dataset_info(source.path).sha
            source = source.model_copy(update={"revision": commits[source.name]})
        sources.append(source)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, commits)
    return data.model_copy(update={"sources": sources})


def plan_parts(data: Data) -> list[tuple[Source, list[Unit]]]:
    """Divide each source into the parts that one task reads, by the number and the size of its files alone."""
    all_units, parts = list_all_units(data.sources), []
    for source in data.sources:
        units = all_units[source.name]
        wanted = max(MIN_TASKS_PER_SOURCE, sum(unit.size_bytes for unit in units) // BYTES_PER_TASK)
        # A limit on the bytes of a source is one counter, so one task does the reading.
        tasks = 1 if source.max_bytes else min(wanted, len(units))
        parts += [(source, units[task::tasks]) for task in range(tasks)]
    return parts


def load_extract_text(path: str) -> Callable[[dict, str], str | None]:
    """Import extract_text from the recipe's data.py, which is no package."""
    spec = importlib.util.spec_from_file_location("recipe_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.extract_text


class Judge:
    """What a recipe wants to be done with a document by itself, whatever the others are: clean, refuse, redact."""

    def __init__(self, data: Data):
        self.data = data
        self.language = data.languages and LanguageFilter(data.languages.keep, data.languages.min_probability)
        self.quality = data.quality and QualityFilter(data.quality.profile, data.quality.overrides)
        self.redactor = data.personal_data and Redactor(data.personal_data.profile, data.personal_data.actions)

    def clean(self, text: str | None) -> str:
        text = (text or "").replace("\r\n", "\n")
        return (normalise(text) if self.data.normalise_text else text).strip()

    def apply(self, text: str) -> tuple[str, str | None]:
        """Return the text as it goes on, and the reason to drop it or None."""
        if len(text.encode()) < self.data.min_document_bytes:
            return text, "too_short" if text else "no_text"
        if self.language and (reason := self.language.refuse(text)):
            return text, reason
        return self.quality.apply(text) if self.quality else (text, None)


def read_part(documents, rank: int, world_size: int, data: Data, parts, work: Path) -> Iterator[Document]:
    """Read one part of a source: yield its documents, count every example as read or dropped for a reason."""
    source, units = parts[rank]
    extract_text, judge = load_extract_text(data.extract_text), Judge(data)
    progress = TaskProgress(work / "logs" / "read" / "progress", rank)
    tally = Tally(work / "counts", "read", rank, source.name)
    quarantine = work / "quarantine" / f"{rank:05d}.jsonl"
    quarantine.parent.mkdir(parents=True, exist_ok=True)
    with quarantine.open("w", encoding="utf-8") as refused:
        for unit, example in read_until(source, units, tally, progress):
            if not isinstance(example, Unreadable):
                example = take_text_and_date(extract_text, example, source, unit, data.splits)
            if isinstance(example, Unreadable):
                tally.add("dropped:unreadable", example.size_bytes)
                entry = {"source": source.name, "position": example.position, "reason": example.reason}
                refused.write(json.dumps(entry, ensure_ascii=False) + "\n")
                continue
            text, date = example
            text = judge.clean(text)
            num_bytes = len(text.encode())
            if not unit.size_bytes:
                progress.add(num_bytes)
            text, reason = judge.apply(text)
            if reason is not None:
                tally.add(f"dropped:{reason}", num_bytes)
                continue
            if judge.redactor is not None:
                text, found = judge.redactor.apply(text)
                tally.documents.update({f"personal_data:{kind}": number for kind, number in found.items()})
                if text is None:
                    tally.add("dropped:personal_data", num_bytes)
                    continue
                num_bytes = len(text.encode())
            tally.add("read", num_bytes)
            yield Document(text=text, id=document_id(text), metadata={"source": source.name, "date": date})
    progress.note()
    tally.write()


def take_text_and_date(
    extract_text: Callable, example: dict, source: Source, unit: Unit, splits: Splits
) -> tuple[str | None, str | None] | Unreadable:
    """Call the recipe's extract_text; what it cannot take, or gives that is no text, is no document.

    Nor is, where later text is held out, one whose date cannot be told: it could be trained on all the same. Elsewhere
    it goes on without a date.
    """
    try:
        text = extract_text(example, source.name)
        if isinstance(text, str):
            text.encode()
    except Exception as error:
        return Unreadable(
            unit.name, f"extract_text raises {type(error).__name__}: {error}", len(repr(example).encode())
        )
    if not isinstance(text, str | None):
        return Unreadable(unit.name, f"extract_text gives {type(text).__name__}, not text", len(repr(text).encode()))
    try:
        return text, document_date(example, source.date_field)
    except ValueError as error:
        if text is None or splits.future_from is None:
            return text, None
        return Unreadable(unit.name, str(error), len(text.encode()))


def read_until(source: Source, units: list[Unit], tally: Tally, progress: TaskProgress) -> Iterator[tuple]:
    """Yield (unit, example) until the source's max_bytes of documents have been read."""
    for unit in units:
        for example in read_unit(source, unit):
            if source.max_bytes and tally.num_bytes["read"] >= source.max_bytes:
                return
            yield unit, example
        progress.add(unit.size_bytes)
