# SPDX-License-Identifier: Apache-2.0
"""Remove the passages that very many documents share, such as notices, disclaimers and the text of a form.

In:   documents without exact and near-duplicates; the recipe's data.repeated_passages.
Out:  the documents without these passages, with new ids, and the counts of the most frequent passages.

A passage is the text between blank lines or, in a text without any, a line. Two passages are equal if their words are,
whatever the case, punctuation and spacing. Numbers count as words: "raised by 25 basis points" does not repeat "raised
by 50". Smaller units do harm: in hard-wrapped text a line is half a sentence, and in answers to patients the lines
that most documents share are the content.

Duplicates are dropped first: fifty copies of one document share all of its passages and would all lose them. Documents
that differed only in removed passages become equal, so exact duplicates are dropped again afterwards.

Use it for crawled pages, filings and blog posts with the same notice below each. Do not use it where repetition is the
content: licences, contracts, statements of a committee, statutes whose lists begin with the same words. Check the
passages and their counts before training, and name the sources to search.

datatrove's sentence and substring steps keep the first of any two occurrences, so the text that remains depends on the
order of documents, and quotations are removed too. The first needs a sentence splitter for each language, the second a
suffix array of all tokens, built by a program outside Python.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from datatrove.data import Document

from corpus.accounting import Tally
from corpus.document_files import document_id
from corpus.dropped_samples import PASSAGES_REMOVED, Samples, no_samples
from corpus.finished_tasks import note_written
from corpus.words import WORD
from recipe_config import RepeatedPassages


BLANK_LINES = re.compile(r"(\n\s*\n\s*)")
# A longer passage is no boilerplate, and its words would take too much memory.
MAX_PASSAGE_CHARACTERS = 100_000
HASHES_IN_MEMORY = 1 << 23
LISTED_PASSAGES = 100
SAMPLE_CHARACTERS = 500


def find_repeated_passages(
    run: Callable,
    documents: list,
    folder: Path,
    counts: Path,
    settings: RepeatedPassages,
    min_document_bytes: int,
    total_bytes: int | None = None,
    new_samples: Callable[[str, int], Samples] = no_samples,
) -> Callable:
    """Count passages and choose those to remove.

    Args:
        run: run(name, pipeline, tasks=..., total_bytes=...) of `prepare`.
        documents: steps that yield the documents.
        folder: for files that the passes and the returned step exchange.
        counts: folder of the tallies of the returned step.
        settings: when a passage counts as repeated, and in which sources.
        min_document_bytes: documents that become shorter are dropped.
        total_bytes: of the documents, for the progress bar.
        new_samples: new_samples(step, rank) returns the Samples of a task of the returned step.

    Returns: the step that removes the passages. It counts under `<source>/`: `cut`, the documents that lost passages
    and the bytes they lost; `cut_passages`; `dropped:repeated_passages`, the documents that became too short.
    """
    run("passages", [*documents, partial(count_passages, folder=folder, settings=settings)], total_bytes=total_bytes)
    choose = partial(choose_passages, folder=folder, min_documents=settings.min_documents)
    run("repeated passages", [choose], tasks=1)
    return partial(
        remove_passages,
        folder=folder,
        counts=counts,
        settings=settings,
        min_document_bytes=min_document_bytes,
        new_samples=new_samples,
    )


def split_passages(text: str) -> list[str]:
    """Return the passages at even indices and their separators at odd ones."""
    parts = BLANK_LINES.split(text)
    return parts if len(parts) > 1 else re.split("(\n)", text)


def passage_hashes(passages: list[str], min_words: int) -> np.ndarray:
    """Return a uint64 a passage, 0 for passages that are too short or too long."""
    hashes = np.zeros(len(passages), dtype=np.uint64)
    for place, passage in enumerate(passages):
        if min_words <= len(passage) <= MAX_PASSAGE_CHARACTERS:
            words = WORD.findall(passage.casefold())
            if len(words) >= min_words:
                hashes[place] = xxhash.xxh64_intdigest(" ".join(words))
    return hashes


def is_chosen(document: Document, settings: RepeatedPassages) -> bool:
    return settings.sources is None or document.metadata["source"] in settings.sources


class RunWriter:
    """Collect the passages of a task's documents and write them in runs that fit into memory.

    A run has the hashes, ascending, and for each the number of documents that have it.
    """

    def __init__(self, folder: Path, rank: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.number = folder / f"{rank:05d}", 0
        self.waiting, self.num_waiting = [np.zeros(0, dtype=np.uint64)], 0

    def add(self, hashes: np.ndarray) -> None:
        self.waiting.append(hashes)
        self.num_waiting += len(hashes)
        if self.num_waiting >= HASHES_IN_MEMORY:
            self.write()

    def write(self) -> None:
        hashes, documents = np.unique(np.concatenate(self.waiting), return_counts=True)
        for kind, values in (("hashes", hashes), ("documents", documents)):
            path = Path(f"{self.path}.{self.number:05d}.{kind}.npy")
            np.save(path, values)
            note_written(path)
        self.number += 1
        self.waiting, self.num_waiting = [np.zeros(0, dtype=np.uint64)], 0


def count_passages(documents, rank: int, world_size: int, folder: Path, settings: RepeatedPassages) -> None:
    writer = RunWriter(folder / "runs", rank)
    for document in documents:
        if is_chosen(document, settings):
            hashes = np.unique(passage_hashes(split_passages(document.text)[::2], settings.min_words))
            writer.add(hashes[hashes > 0])
    writer.write()


def choose_passages(documents, rank: int, world_size: int, folder: Path, min_documents: int) -> None:
    """Write the hashes (uint64, ascending) of the passages in at least min_documents, and counts of the most frequent.

    The runs are merged in ranges of about HASHES_IN_MEMORY hashes, so memory does not grow with the corpus. One
    file is open at a time: there may be more runs than files that a process may open.
    """
    runs = sorted((folder / "runs").glob("*.hashes.npy"))
    counts = sorted((folder / "runs").glob("*.documents.npy"))
    ranges = sum(len(np.load(run, mmap_mode="r")) for run in runs) // HASHES_IN_MEMORY + 1
    inner = np.array([(number << 64) // ranges for number in range(1, ranges)], dtype=np.uint64)
    bounds = [[0, *np.searchsorted(np.load(run, mmap_mode="r"), inner), None] for run in runs]
    repeated, repeated_in = [], []
    for number in range(ranges):
        parts = [slice(*bound[number : number + 2]) for bound in bounds]
        hashes = np.concatenate([read_slice(run, part) for run, part in zip(runs, parts, strict=True)])
        order = np.argsort(hashes)
        hashes, first = np.unique(hashes[order], return_index=True)
        weights = np.concatenate([read_slice(count, part) for count, part in zip(counts, parts, strict=True)])
        in_documents = np.add.reduceat(weights[order], first)
        repeated.append(hashes[in_documents >= min_documents])
        repeated_in.append(in_documents[in_documents >= min_documents])
    hashes, in_documents = np.concatenate(repeated), np.concatenate(repeated_in)
    np.save(folder / "repeated.npy", hashes)
    most = np.lexsort((hashes, -in_documents))[:LISTED_PASSAGES]
    listed = [[int(hashes[place]), int(in_documents[place])] for place in most]
    (folder / "listed.json").write_text(json.dumps(listed))
    note_written(folder / "repeated.npy", folder / "listed.json")


def read_slice(file: Path, part: slice) -> np.ndarray:
    return np.array(np.load(file, mmap_mode="r")[part])


def remove_passages(
    documents,
    rank: int,
    world_size: int,
    folder: Path,
    counts: Path,
    settings: RepeatedPassages,
    min_document_bytes: int,
    new_samples: Callable = no_samples,
) -> Iterator[Document]:
    """Yield the documents without the repeated passages; write the text of the most frequent to folder/samples."""
    repeated = np.load(folder / "repeated.npy")
    listed = {number for number, _ in json.loads((folder / "listed.json").read_text())}
    samples: dict[int, str] = {}
    renamed: dict[str, str] = {}
    tally, cut_documents = Tally(counts, "repeated_passages", rank), new_samples("repeated_passages", rank)
    for document in documents:
        if not is_chosen(document, settings):
            yield document
            continue
        parts, source = split_passages(document.text), document.metadata["source"]
        hashes = passage_hashes(parts[::2], settings.min_words)
        is_repeated = np.searchsorted(repeated, hashes, "right") > np.searchsorted(repeated, hashes, "left")
        if not is_repeated.any():
            yield document
            continue
        for place in np.flatnonzero(is_repeated):
            if (number := int(hashes[place])) in listed:
                # The first wording in alphabetical order, whatever the order of documents and tasks.
                sample = parts[2 * place][:SAMPLE_CHARACTERS]
                samples[number] = min(sample, samples.get(number, sample))
        tally.documents[f"{source}/cut_passages"] += int(is_repeated.sum())
        text, num_bytes = join_passages(parts, ~is_repeated), len(document.text.encode())
        left_bytes = len(text.encode())
        is_dropped = not text or left_bytes < min_document_bytes
        ends = np.cumsum([len(part) for part in parts])[::2]
        marks = [(int(ends[n]) - len(parts[2 * n]), int(ends[n]), "repeated") for n in np.flatnonzero(is_repeated)]
        reason = "repeated_passages" if is_dropped else PASSAGES_REMOVED
        cut_documents.add(source, reason, document.id, document.text, marks)
        if is_dropped:
            tally.add(f"{source}/dropped:repeated_passages", num_bytes)
            continue
        tally.add(f"{source}/cut", num_bytes - left_bytes)
        before, document.text, document.id = document.id, text, document_id(text)
        renamed[before] = document.id
        yield document
    cut_documents.write()
    for kind, values in (("renamed", renamed), ("samples", samples)):
        path = folder / kind / f"{rank:05d}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values))
        note_written(path)
    tally.write()


def join_passages(parts: list[str], kept: np.ndarray) -> str:
    """Return the kept passages, each but the first after its preceding separator."""
    places = 2 * np.flatnonzero(kept)
    return "".join(parts[place] if place == places[0] else parts[place - 1] + parts[place] for place in places).strip()


def summarise(folder: Path) -> dict:
    """Return the number of repeated passages and, for the most frequent, their documents and beginnings."""
    samples: dict[str, str] = {}
    for file in sorted((folder / "samples").glob("*.json")):
        for number, sample in json.loads(file.read_text()).items():
            samples[number] = min(sample, samples.get(number, sample))
    listed = json.loads((folder / "listed.json").read_text())
    return {
        "repeated_passages": len(np.load(folder / "repeated.npy", mmap_mode="r")),
        "most_frequent": [{"documents": documents, "text": samples[str(number)]} for number, documents in listed],
    }
