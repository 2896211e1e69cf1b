# SPDX-License-Identifier: Apache-2.0
"""First pass over the text: read the sources, extract the text of each example, then clean and filter it by itself."""

import importlib.util
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np
from datatrove.data import Document
from huggingface_hub import HfApi

from atomic_files import CHECKSUM, is_unchanged, read_json, with_checksum, write_json
from corpus.accounting import Tally, sum_counts
from corpus.document_files import Place, PlaceWriter, document_id, write_documents
from corpus.dropped_samples import KEPT, Samples, hide
from corpus.finished_tasks import note_written
from corpus.language import LanguageFilter
from corpus.pages import move_starts
from corpus.personal_data import Redactor
from corpus.pipeline_executor import TaskProgress
from corpus.reading_plan import ReadingPlan, read_units, write_tasks
from corpus.rule_marks import explain_language, explain_quality
from corpus.text_normalisation import in_document_form
from corpus.text_quality import QualityFilter
from recipe_config import Data, RecipeError, Source, Splits
from sources.dates import document_date
from sources.readers import read_unit, rows_before
from sources.row_checks import Unreadable
from sources.row_text import describe_fields
from sources.separators import count_markers
from sources.units import Unit, is_hub_dataset, named_errors


SLOTS = 1 << 16  # of the first 16 bits of a document's id
TITLE_CHARACTERS = 200
COMMIT = re.compile("[0-9a-f]{40}")


def pin_revisions(data: Data, note: Path) -> Data:
    """Set the revision of each Hub dataset to a commit, that of a branch as it is now, for the listing and all tasks.

    Args:
        data: settings of the recipe.
        note: file that stores the commits, so that an interrupted run resumes with the same ones.
    """
    commits = read_json(note) or {}
    if note.exists() and (not commits or not is_unchanged(commits)):
        sys.stderr.write(f"prepare: asks the Hub for its newest commits: {note} is not as it was written\n")
        commits = {}
    commits.pop(CHECKSUM, None)
    sources = []
    for source in data.sources:
        if is_hub_dataset(source) and not COMMIT.fullmatch(source.revision or ""):
            branch = f"{source.path}@{source.revision}"
            if branch not in commits:
                with named_errors(source):
                    commits[branch] = HfApi().dataset_info(source.path, revision=source.revision).sha
            source = source.model_copy(update={"revision": commits[branch]})
        sources.append(source)
    if commits:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, with_checksum(commits))
    return data.model_copy(update={"sources": sources})


def load_extract_text(path: str) -> Callable[[dict, str], str | None]:
    """Return extract_text of the recipe's data.py.

    Raises: RecipeError: it cannot be imported, or has no such function.
    """
    extract_text = getattr(import_data_script(path), "extract_text", None)
    if not callable(extract_text):
        raise RecipeError(
            f"data.extract_text: {path} has no function extract_text(example, source); recipes/custom/data.py has one"
        )
    return extract_text


def load_redact(path: str) -> Callable[[str, str], str | None] | None:
    """Return redact of the recipe's data.py; None if it has none.

    Raises: RecipeError: the file cannot be imported, or its redact is no function.
    """
    redact = getattr(import_data_script(path), "redact", None)
    if redact is not None and not callable(redact):
        raise RecipeError(
            f"data.extract_text: redact in {path} is no function; write redact(text, source), or rename it"
        )
    return redact


def import_data_script(path: str) -> ModuleType:
    """Import the recipe's data.py, which is not in a package; modules beside it can be imported.

    Raises: RecipeError: it cannot be imported.
    """
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # after the folders of the recipes and of packages, whose names it must not take
    spec = importlib.util.spec_from_file_location("recipe_data", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        raise RecipeError(f"data.extract_text: {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


class DocumentPipeline:
    """The steps for one document that do not depend on other documents: normalise, filter, redact."""

    def __init__(self, data: Data):
        self.data = data
        self.language = data.languages and LanguageFilter(data.languages.keep, data.languages.min_probability)
        self.quality = data.quality and QualityFilter(data.quality.profile, data.quality.overrides)
        self.redactor = data.personal_data and Redactor(data.personal_data.profile, data.personal_data.actions)

    def normalise(self, text: str | None) -> str:
        return in_document_form(text or "", self.data.normalise_text)

    def filter(self, text: str) -> tuple[str, str | None]:
        """Return the text, without lines that the quality rules remove, and the reason to drop it or None."""
        if len(text.encode()) < self.data.min_document_bytes:
            return text, "too_short" if text else "no_text"
        if self.language and (reason := self.language.refuse(text)):
            return text, reason
        return self.quality.apply(text) if self.quality else (text, None)

    def redact(self, text: str) -> tuple[str | None, Counter]:
        """Return the text without personal data, None to drop it, and how many of each kind it had."""
        return self.redactor.apply(text) if self.redactor else (text, Counter())

    def explain(self, text: str, reason: str) -> tuple[list[tuple[int, int, str]], str]:
        """Return the places in a text that a reason to drop it refers to, and what was measured, in words."""
        if self.quality and reason in self.quality.limits:
            return explain_quality(reason, text, self.quality)
        if reason.startswith("language_"):
            return [], explain_language(text)
        if reason == "too_short":
            return [], f"{len(text.encode())} bytes, where at least {self.data.min_document_bytes} are needed"
        return [], ""

    def sample(
        self,
        samples: Samples,
        source: str,
        reason: str,
        raw: str,
        text: str,
        place: str,
        redact: Callable[[str], object] | None,
        kept: Document | None = None,
    ) -> None:
        """Keep a sample of a document as it was read and as it is.

        Args:
            samples: of the task.
            source: its name.
            reason: to drop it, or KEPT.
            raw: its text as extract_text gave it.
            text: after normalisation.
            place: the file and row it was read from.
            redact: of the recipe; what it gives no text for is not sampled.
            kept: what is kept of it; None: nothing.
        """
        identity = kept.id if kept else document_id(text) if samples.is_on else ""
        if not samples.wants(source, reason, identity):
            return
        if redact is not None:
            raw, text = redact(raw), kept.text if kept else redact(text)
            if not isinstance(raw, str) or not isinstance(text, str):
                return
        shown, marks, note = (kept.text, [], "") if kept else (text, *self.explain(text, reason))
        if self.redactor:
            found = [] if kept else self.redactor.find(text)
            shown, marks, raw = hide(shown, found), marks + found, hide(raw, self.redactor.find(raw))
        before = {"before": raw} if raw != shown else {}
        samples.add(source, reason, identity, shown, marks, note=note, place=place, **before)


def read_sources(
    run: Callable, data: Data, plan: ReadingPlan, work: Path, new_samples: Callable[[str, int], Samples]
) -> None:
    """Read every source to work/read, those with max_bytes in rounds, until they have as much text as that.

    Args:
        run: run(name, pipeline, tasks=..., total_bytes=...) of `prepare`.
        data: settings of the recipe, with pinned revisions.
        plan: of the units of all sources.
        work: folder for the files that this and the later passes exchange.
        new_samples: new_samples(step, task) returns the Samples of a task.
    """
    first_task, number = 0, 1
    while tasks := plan.next_round(text_read(work / "counts", first_task)):
        name = "read" if number == 1 else f"read, round {number}"
        write_tasks(work / "tasks", first_task, tasks)
        read = partial(read_task, data=data, work=work, first_task=first_task, new_samples=new_samples)
        read = partial(read, notes=work / "logs" / name / "progress")
        write = partial(write_documents, folder=work / "read", first_task=first_task)
        units = [unit for task in tasks for unit in task.units]
        total_bytes = sum(unit.range_bytes for unit in units) if all(unit.is_sized for unit in units) else None
        run(name, [read, write], tasks=len(tasks), total_bytes=total_bytes)
        first_task, number = first_task + len(tasks), number + 1


def text_read(counts: Path, num_tasks: int) -> dict[str, int]:
    """Return source -> bytes of text that the first tasks read; an interrupted try may have left counts of others."""
    read = sum_counts(counts, "read", num_tasks)
    return {label.rpartition("/")[0]: int(n[1]) for label, n in read.items() if label.endswith("/read")}


def find_surplus(data: Data, work: Path) -> dict[str, str]:
    """Return, of each source with more text than its max_bytes, the lowest document id that is too much.

    Documents of lower ids have at least max_bytes, and at most a 65,536th of the source or one document more.
    """
    surplus = {}
    for source in data.sources:
        if source.max_bytes is not None:
            slots = [np.load(file) for file in (work / "slots" / source.name).glob("*.npy")]
            last = int(np.searchsorted(np.cumsum(np.sum(slots, axis=0)), source.max_bytes))
            if last + 1 < SLOTS:
                surplus[source.name] = f"{last + 1:04x}"
    return surplus


def read_task(
    documents,
    rank: int,
    world_size: int,
    data: Data,
    work: Path,
    first_task: int,
    new_samples: Callable[[str, int], Samples],
    notes: Path,
) -> Iterator[Document]:
    """Yield the documents of one task; count every example as read, or as dropped for a reason."""
    task = first_task + rank
    name, units = read_units(work / "tasks", task)
    source = next(source for source in data.sources if source.name == name)
    extract_text, pipeline = load_extract_text(data.extract_text), DocumentPipeline(data)
    redact = load_redact(data.extract_text)
    tally, samples = Tally(work / "counts", "read", task, source.name), new_samples("read", task)
    progress = TaskProgress(notes, rank)
    places, slots = PlaceWriter(work / "places", task), np.zeros(SLOTS, dtype=np.int64)
    quarantine = work / "quarantine" / f"{task:05d}.jsonl"
    quarantine.parent.mkdir(parents=True, exist_ok=True)
    with quarantine.open("w", encoding="utf-8") as quarantined:

        def set_aside(example: Unreadable) -> None:
            tally.add("dropped:unreadable", example.size_bytes)
            tally.add_reason("unreadable", example.reason, example.size_bytes)
            entry = {"source": source.name, "position": example.position, "reason": example.reason}
            quarantined.write(json.dumps(entry, ensure_ascii=False) + "\n")

        for unit, place, where, example in read_examples(source, units, tally, places, progress):
            row = example
            if not isinstance(example, Unreadable):
                if encoding := example.get("converted_from"):
                    tally.documents[f"converted:{encoding}"] += 1
                if isinstance(unread := example.get("unread_pages"), int) and unread:
                    tally.documents["unread_pages"] += 1
                    tally.num_bytes["unread_pages"] += unread
                example = extract_document(extract_text, example, source, unit, data.splits)
            if isinstance(example, Unreadable):
                set_aside(example)
                continue
            raw, date = example
            text = normalised = pipeline.normalise(raw)
            hook = redact and partial(call_redact, redact, source=source, unit=unit)
            sample = partial(pipeline.sample, samples, source.name, raw=raw, text=normalised, place=where, redact=hook)
            num_bytes = len(text.encode())
            text, reason = pipeline.filter(text)
            if reason is not None:
                tally.add(f"dropped:{reason}", num_bytes)
                if text:
                    sample(reason)
                if reason == "no_text" and not isinstance(row.get("text"), str):
                    wanted = source.text_template or source.text_field or "text"
                    tally.add_reason("no_text", f"no text in field {wanted}; {describe_fields(row)}", num_bytes)
                continue
            text, found = pipeline.redact(text)
            tally.documents.update({f"personal_data:{kind}": number for kind, number in found.items()})
            if text is None:
                tally.add("dropped:personal_data", num_bytes)
                sample("personal_data")
                continue
            if redact is not None:
                before, text = text, call_redact(redact, text, source, unit, num_bytes)
                if isinstance(text, Unreadable):
                    set_aside(text)
                    continue
                if not text:
                    tally.add("dropped:redact", num_bytes)
                    continue
                tally.documents["redacted"] += text != before
            for marker, number in count_markers(text).items():
                tally.documents[f"marker:{marker}"] += 1
                tally.num_bytes[f"marker:{marker}"] += number
            tally.add("read", len(text.encode()))
            document = Document(text=text, id=document_id(text), metadata={"source": source.name, "date": date})
            places.write(document.id, place, *describe_document(row, text))
            slots[int(document.id[:4], 16)] += len(text.encode())
            sample(KEPT, kept=document)
            yield document
    places.close()
    note_written(quarantine)
    if source.max_bytes is not None:
        path = work / "slots" / source.name / f"{task:05d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, slots)
        note_written(path)
    progress.note()
    samples.write()
    tally.write()


def describe_document(row: dict, text: str) -> tuple[str | None, list[int] | None]:
    """Return the title of a document and where its pages begin in its text, if its format says so."""
    title, starts = row.get("title"), row.get("page_starts")
    title = " ".join(title.split())[:TITLE_CHARACTERS] if isinstance(title, str) else None
    is_paged = isinstance(starts, list) and all(isinstance(start, int) for start in starts)
    return title or None, move_starts(row["text"], text, starts) if is_paged else None


def extract_document(
    extract_text: Callable, example: dict, source: Source, unit: Unit, splits: Splits
) -> tuple[str | None, str | None] | Unreadable:
    """Return the text and the date of an example, or why it is unreadable.

    It is unreadable if extract_text raises an error or returns anything but a text or None. A date in an unknown form
    is dropped, except with splits.future_from: then the document is unreadable, because it could be future text.
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
        what = f"; {describe_fields(example)}" if text is example.get("text") else ""
        reason = f"extract_text gives {type(text).__name__}, not text{what}"
        return Unreadable(unit.name, reason, len(repr(text).encode()))
    try:
        return text, document_date(example, source.date_field)
    except ValueError as error:
        if text is None or splits.future_from is None:
            return text, None
        return Unreadable(unit.name, str(error), len(text.encode()))


def call_redact(
    redact: Callable, text: str, source: Source, unit: Unit, size_bytes: int = 0
) -> str | None | Unreadable:
    """Return what the recipe's redact makes of a text, or why it cannot be kept: then it must not be trained on."""
    try:
        redacted = redact(text, source.name)
        if isinstance(redacted, str):
            redacted.encode()
    except Exception as error:
        return Unreadable(unit.name, f"redact raises {type(error).__name__}: {error}", size_bytes)
    if not isinstance(redacted, str | None):
        return Unreadable(unit.name, f"redact gives {type(redacted).__name__}, not text", size_bytes)
    return redacted


def read_examples(
    source: Source, units: list[Unit], tally: Tally, places: PlaceWriter, progress: TaskProgress
) -> Iterator[tuple]:
    """Yield (unit, place, place to show, example); of one unit at most the source's max_bytes of text.

    The rows of a range count from its file's first where that is known without reading it. Otherwise `places` gets how
    many rows the range has or, where some ranges are not read, the place names the range.
    """
    for number, unit in enumerate(units):
        before, done, opened = tally.num_bytes["read"], progress.done, []
        first, all_are_read = rows_before(source, unit), source.max_bytes is None
        path, row = unit.name if first is not None or all_are_read else unit.place, first or 0
        shown = unit.name if first is not None else unit.place
        for example in read_unit(source, unit, opened.append):
            if source.max_bytes and tally.num_bytes["read"] - before >= source.max_bytes:
                break
            row += 1
            progress.move_to(done + bytes_read(opened, unit))
            yield unit, Place(path, number, row), f"{shown}:{row}", example
        if unit.stop is not None and all_are_read and (first is None or not unit.start):
            places.ranges[number] = [unit.name, row]
        progress.move_to(done + unit.range_bytes)


def bytes_read(opened: list[BinaryIO], unit: Unit) -> int:
    """Return how many of a unit's own bytes have been read, by the stream that was opened last."""
    with suppress(ValueError, IndexError):  # it is closed; none was opened
        return min(max(opened[-1].tell() - unit.start, 0), unit.range_bytes)
    return 0
