# SPDX-License-Identifier: Apache-2.0
"""Estimate how long prepare takes and what disk it needs, by its own steps on a few seconds of the recipe's own text.

How much text a compressed file holds is taken from a table. What is read over the network is not measured.
"""

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from datatrove.data import Document

from corpus.benchmark_overlap import BenchmarkIndex
from corpus.document_families import find_families
from corpus.document_files import document_id, read_documents, write_documents
from corpus.near_duplicates import MinHash
from corpus.reading import DocumentPipeline, call_redact, extract_document, load_extract_text, load_redact
from corpus.reading_plan import ReadingPlan, expect
from corpus.repeated_passages import count_passages
from corpus.stage_progress import describe_seconds
from recipe_config import Data, Source
from sources.readers import read_unit
from sources.row_checks import Unreadable
from sources.units import Unit


SAMPLE_SECONDS = 8.0  # of reading, of all sources together
MOST_OF_A_UNIT = 0.25  # of a source's seconds
MAX_SAMPLED_UNITS = 1000
UNMEASURED_BYTES_PER_SECOND = 4e6  # of a source without a local file
DISK_OF_TEXT, KEPT_DISK_OF_TEXT = 1.6, 0.4  # the compressed copies of the text while it is prepared, and afterwards
WARM_UP = "A sentence that loads what the rules need. "


class Measured(NamedTuple):
    """What preparing a sample took, in seconds: what any number of workers share, and what one process does."""

    text_bytes: int
    shared: float
    alone: float


def estimate(plan: ReadingPlan, data: Data, workers: int, index: BenchmarkIndex | None) -> list[str]:
    """Return lines on how much the tasks read, how long prepare takes and what disk it needs; uses the plan up."""
    seconds_each = SAMPLE_SECONDS / len(plan.sources)
    samples = {
        source.name: measure(source, draw_local(plan.units[source.name]), data, index, seconds_each)
        for source in plan.sources
    }
    lines, seconds, texts, unmeasured = [], 0.0, 0.0, []
    for source, expected in zip(plan.sources, expect(plan).values(), strict=True):
        sample, text_bytes = samples[source.name], min(expected.text_bytes, source.max_bytes or float("inf"))
        texts += text_bytes
        line = f"{source.name}: {expected.tasks:,} tasks read {expected.read_bytes:,} bytes, about "
        line += f"{text_bytes / 1e9:.2f} GB of text"
        if sample.text_bytes:
            shared, alone = (part * text_bytes / sample.text_bytes for part in (sample.shared, sample.alone))
            line += f", at {sample.text_bytes / 1e6 / sample.shared:.2g} MB/s a worker"
        else:
            shared, alone = text_bytes / UNMEASURED_BYTES_PER_SECOND, 0.0
            unmeasured += [source.name] if text_bytes else []
        lines.append(line)
        seconds += shared / min(workers, max(expected.tasks, 1)) + alone
    measured_bytes = sum(sample.text_bytes for sample in samples.values())
    by = f"measured on {measured_bytes / 1e6:.1f} MB of this text" if measured_bytes else ""
    if unmeasured:
        assumed = f"{UNMEASURED_BYTES_PER_SECOND / 1e6:g} MB/s a worker assumed for {', '.join(unmeasured)}"
        by = f"{by}, {assumed}" if by else assumed
    return [
        *lines,
        f"about {describe_seconds(seconds)} with {workers:,} workers ({by}), and {DISK_OF_TEXT * texts / 1e9:.2g} GB "
        f"of disk, {KEPT_DISK_OF_TEXT * texts / 1e9:.2g} GB when it is done",
    ]


def draw_local(units: list[Unit]) -> list[Unit]:
    """Return units that are local files, or ranges of some, drawn from all of them."""
    local = [unit for unit in units if "://" not in unit.path and not unit.by_datasets]
    return random.Random(0).sample(local, min(len(local), MAX_SAMPLED_UNITS))


def measure(source: Source, units: list[Unit], data: Data, index: BenchmarkIndex | None, seconds: float) -> Measured:
    """Prepare what can be read of the units in about so many seconds, by one worker."""
    pipeline, documents, text_bytes = DocumentPipeline(data), [], 0
    extract_text, redact = load_extract_text(data.extract_text), load_redact(data.extract_text)
    pipeline.redact(pipeline.filter(WARM_UP * 20)[0])
    started = time.monotonic()
    for unit in units:
        opened = time.monotonic()
        for example in read_unit(source, unit):
            if not isinstance(example, Unreadable):
                example = extract_document(extract_text, example, source, unit, data.splits)
            if not isinstance(example, Unreadable):
                text = pipeline.normalise(example[0])
                text_bytes += len(text.encode())
                text, reason = pipeline.filter(text)
                text = pipeline.redact(text)[0] if reason is None else None
                text = call_redact(redact, text, source, unit) if redact and text else text
                if text and not isinstance(text, Unreadable):
                    metadata = {"source": source.name, "date": example[1]}
                    documents.append(Document(text=text, id=document_id(text), metadata=metadata))
            if time.monotonic() > min(started + seconds, opened + seconds * MOST_OF_A_UNIT):
                break
        if time.monotonic() > started + seconds:
            break
    shared, alone = time.monotonic() - started, 0.0
    if not documents:
        return Measured(0, 0.0, 0.0)
    with TemporaryDirectory() as name:
        folder = Path(name)
        writes = 3 + (data.repeated_passages is not None)
        reads = 2 + (data.near_duplicates is not None) + 2 * (writes > 3) + (data.quality_model is not None)
        shared += writes * clock(partial(write_documents, documents, 0, 1, folder=folder))
        shared += reads * clock(lambda: list(read_documents(None, 0, 1, folder=folder)))
        if data.near_duplicates is not None:
            signature = MinHash(data.near_duplicates).signature
            shared += clock(lambda: [signature(document.text) for document in documents])
        if data.repeated_passages is not None:  # to count them and, for about as long, to remove them
            count = partial(count_passages, documents, 0, 1, folder=folder, settings=data.repeated_passages)
            shared += 2 * clock(count)
        if index is not None:
            shared += clock(lambda: [index.covered_parts(document.text) for document in documents])
        if data.family_containment is not None:
            texts = (document.text for document in documents)
            alone += clock(partial(find_families, texts, data.family_containment))
    return Measured(text_bytes, shared, alone)


def clock(work: Callable) -> float:
    """Return how many seconds some work takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started
