# SPDX-License-Identifier: Apache-2.0
"""Choose the documents that are held out of training: by a hash of their content, by family, and by date.

The choice does not depend on a document's position, the order of its source or the number of workers, so the next run
holds out the same text. Memory does not grow with the corpus: only the documents with the smallest hashes, about as
many as can be held out, are kept in memory. Families are the exception; see document_families.py.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datatrove.data import Document
from tqdm import tqdm

from corpus.accounting import Tally
from corpus.document_families import find_families
from corpus.document_files import DocumentWriter, texts
from corpus.dropped_samples import no_samples
from corpus.finished_tasks import note_written
from recipe_config import Data, RecipeError, Splits


# What the choice needs of each document. The date is a day, a month, a year, or empty.
NOTE = np.dtype([("id", "S32"), ("source", "<u2"), ("num_bytes", "<u8"), ("date", "S10")])
# A source with up to this many documents is considered whole; of a larger one only the documents with the smallest
# hashes.
MIN_CANDIDATES = 10_000
SLOT_DIGITS = 4
SLOTS = 16**SLOT_DIGITS


class HeldOut(NamedTuple):
    """What is held out.

    Attributes:
        splits: document id -> validation or test.
        families: document id -> family, of the documents above and of the future split; None without families. A
            family has the lowest id of its documents as its name, so that it does not depend on their order.
        num_families: source -> number of families in all splits; None without families.
        num_divided: source -> how many of them have documents both in train and in the future split, which is by date
            alone; None without families.
    """

    splits: dict[str, str]
    families: dict[str, str] | None
    num_families: dict[str, int] | None
    num_divided: dict[str, int] | None


def note_documents(documents, rank: int, world_size: int, folder: Path, sources: list[str]) -> Iterator[Document]:
    """Yield the documents unchanged and write their NOTEs, in order, to folder/<rank>.npy."""
    notes = []
    for document in documents:
        date = (document.metadata.get("date") or "").encode()
        source = sources.index(document.metadata["source"])
        notes.append((document.id.encode(), source, len(document.text.encode()), date))
        yield document
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{rank:05d}.npy", np.array(notes, dtype=NOTE))
    note_written(folder / f"{rank:05d}.npy")


def is_future(date: str | None, splits: Splits) -> bool:
    """Return whether a date is splits.future_from or later. A month or year counts if one of its days is."""
    return bool(date and splits.future_from) and date >= splits.future_from[: len(date)]


def choose_held_out(notes: Path, documents: Path, data: Data) -> HeldOut:
    """Choose the documents of the validation and test split of each source.

    Families of documents (without data.family_containment, each document is one) are taken in the order of a hash of
    their content, until the split has its share of the source's bytes; a family larger than what is left stays in
    train. If even the smallest is larger than the share, the smallest is taken. At least one family of each source is
    left for each later split and for train. Documents from splits.future_from on are in neither split.

    Args:
        notes: folder that `note_documents` wrote.
        documents: folder with the documents in the same order; read for families only.
        data: sources, splits and family_containment.

    Raises: RecipeError: a source too small to give every split a family.
    """
    files = sorted(notes.glob("*.npy"))
    if data.family_containment is None:
        candidates, total_bytes = read_candidates(files, data)
        return HeldOut(fill_splits(candidates, np.arange(len(candidates)), total_bytes, data), None, None, None)
    every = np.concatenate([np.load(file) for file in files])
    progress = tqdm(texts(documents), total=len(every), desc="prepare: families", leave=False)
    labels = find_families(progress, data.family_containment)
    past = past_documents(every, data.splits)
    total_bytes = np.bincount(every["source"][past], weights=every["num_bytes"][past], minlength=len(data.sources))
    splits = fill_splits(every[past], labels[past], total_bytes, data)
    held_out = ~past | np.isin(every["id"], np.array(list(splits), dtype=every["id"].dtype))
    ids, names = (found[held_out].astype(str).tolist() for found in (every["id"], name_families(every["id"], labels)))
    divided = np.isin(labels, np.intersect1d(labels[~past], labels[~held_out]))
    return HeldOut(
        splits,
        dict(zip(ids, names, strict=True)),
        count_families(every, labels, data),
        count_families(every[divided], labels[divided], data),
    )


def past_documents(notes: np.ndarray, splits: Splits) -> np.ndarray:
    """Return a mask of the documents that are not in the future split."""
    if splits.future_from is None:
        return np.ones(len(notes), dtype=bool)
    return np.array([not is_future(date.decode(), splits) for date in notes["date"]], dtype=bool)


def read_candidates(files: list[Path], data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return the notes of the documents with the smallest hashes of each source, and each source's bytes.

    The candidates of a source have twice the bytes that can be held out of it, because documents larger than what is
    left of a share are skipped.
    """

    def past(file: Path) -> np.ndarray:
        notes = np.load(file)
        return notes[past_documents(notes, data.splits)]

    total_bytes = np.zeros(len(data.sources))
    for file in files:
        notes = past(file)
        total_bytes += np.bincount(notes["source"], weights=notes["num_bytes"], minlength=len(data.sources))
    candidates = [np.zeros(0, dtype=NOTE)] * len(data.sources)
    for file in files:
        notes = past(file)
        for source in np.unique(notes["source"]):
            own = np.concatenate([candidates[source], notes[notes["source"] == source]])
            own = own[np.argsort(own["id"], kind="stable")]
            preceding_bytes = np.cumsum(own["num_bytes"]) - own["num_bytes"]
            max_bytes = 2 * sum(split_bytes(total_bytes[source], data.splits).values())
            candidates[source] = own[(preceding_bytes < max_bytes) | (np.arange(len(own)) < MIN_CANDIDATES)]
    return np.concatenate(candidates), total_bytes


def split_bytes(total_bytes: float, splits: Splits) -> dict[str, float]:
    """Return the bytes of a source that each held-out split may take."""
    return {
        "test": min(splits.test_fraction * total_bytes, splits.max_bytes),
        "validation": min(splits.validation_fraction * total_bytes, splits.max_bytes),
    }


def fill_splits(candidates: np.ndarray, labels: np.ndarray, total_bytes: np.ndarray, data: Data) -> dict[str, str]:
    """Return document id -> split of the held-out documents, by the rules of `choose_held_out`.

    Args:
        candidates: NOTEs of the documents.
        labels: the family of each.
        total_bytes: of each source.
        data: sources and splits.
    """
    members: dict[int, list[int]] = {}
    for position in np.argsort(candidates["id"], kind="stable").tolist():
        members.setdefault(int(labels[position]), []).append(position)
    # A family may have documents of several sources: of each, so many families are left, and so many must be.
    sources_of = {family[0]: set(candidates["source"][family].tolist()) for family in members.values()}
    left = Counter(index for found in sources_of.values() for index in found)
    needed = dict.fromkeys(range(len(data.sources)), 3)  # for test, validation and train
    held_out: dict[int, str] = {}
    problems = []
    for index, source in enumerate(data.sources):
        # In the order of each family's smallest id, because `members` was filled in the order of ids.
        available = []
        for family in members.values():
            num_bytes = sum(int(candidates["num_bytes"][i]) for i in family if candidates["source"][i] == index)
            if num_bytes and family[0] not in held_out:
                available.append((num_bytes, family))
        if len(available) < 3:
            problems.append(
                f"data.sources: {source.name}: {len(available)} distinct documents are left after cleaning, and "
                "train, validation and test need one each. A text file is one document: put each in a file or row of "
                "its own, or set document_separator in the source; or add text, or lower data.min_document_bytes="
                f"{data.min_document_bytes}"
            )
            continue
        for split, left_bytes in split_bytes(total_bytes[index], data.splits).items():
            needed[index] -= 1
            chosen = take_families(available, left_bytes, sources_of, left, needed)
            if not chosen:
                smallest = sorted(available, key=lambda pair: pair[0])
                chosen = take_families(smallest, float("inf"), sources_of, left, needed, most=1)
            if not chosen:
                problems.append(
                    f"data.sources: {source.name}: no family of documents can be held out for {split}: another source "
                    "shares each of them and would have none left for a split of its own; join these sources, add "
                    f"text, or raise data.family_containment={data.family_containment}"
                )
                break
            held_out |= {position: split for _, family in chosen for position in family}
            available = [(num_bytes, family) for num_bytes, family in available if family[0] not in held_out]
    if problems:
        raise RecipeError(*problems)
    return {candidates["id"][position].decode(): split for position, split in held_out.items()}


def take_families(
    available: list[tuple[int, list[int]]],
    left_bytes: float,
    sources_of: dict[int, set[int]],
    left: Counter,
    needed: dict[int, int],
    most: float = float("inf"),
) -> list[tuple[int, list[int]]]:
    """Return the first families that fit, and count them out of those that are left of their sources.

    Args:
        available: bytes and members of families.
        left_bytes: that they may have together.
        sources_of: first member of a family -> sources of its members.
        left: source -> families that are in no split.
        needed: source -> how many of them must stay.
        most: families.
    """
    chosen = []
    for num_bytes, family in available:
        shared = sources_of[family[0]]
        if num_bytes <= left_bytes and len(chosen) < most and all(left[index] > needed[index] for index in shared):
            left_bytes -= num_bytes
            left.subtract(shared)
            chosen.append((num_bytes, family))
    return chosen


def lowest_training_ids(notes: Path, held_out: dict[str, str], refused: np.ndarray, data: Data) -> dict[str, str]:
    """Return source -> lowest document id that stays in train, for sources with more text than max_training_bytes.

    Documents are held out from the lowest id up and trained on from the highest id down, so a higher limit only adds
    documents to train. Those that the quality model refused do not count. Memory does not grow with the corpus.

    Raises: RecipeError: a limit below the size of the first document.
    """
    files, kept_out = sorted(notes.glob("*.npy")), np.array(list(held_out), dtype=NOTE["id"])

    def trainable(index: int, slot: int | None = None) -> Iterator[np.ndarray]:
        for found in map(np.load, files):
            own = found[(found["source"] == index) & past_documents(found, data.splits)]
            own = own[~np.isin(own["id"], kept_out) & ~np.isin(own["id"], refused)]
            yield own if slot is None else own[slots(own) == slot]

    lowest = {}
    for index, source in enumerate(data.sources):
        if source.max_training_bytes is None:
            continue
        # First how many bytes the ids with the same first characters have, so that only some are loaded together.
        in_slot = np.zeros(SLOTS)
        for own in trainable(index):
            in_slot += np.bincount(slots(own), weights=own["num_bytes"], minlength=SLOTS)
        from_slot = np.cumsum(in_slot[::-1])[::-1]
        if from_slot[0] <= source.max_training_bytes:
            continue
        last = int(np.flatnonzero(from_slot > source.max_training_bytes)[-1])
        own = np.sort(np.concatenate(list(trainable(index, last))), order="id")[::-1]
        left_bytes = source.max_training_bytes - (from_slot[last + 1] if last + 1 < SLOTS else 0)
        fits = np.cumsum(own["num_bytes"]) <= left_bytes
        if not fits[0] and left_bytes == source.max_training_bytes:
            raise RecipeError(
                f"data.sources: {source.name}: max_training_bytes={source.max_training_bytes:,} is less than the "
                f"{own['num_bytes'][0]:,} bytes of the first document; raise it"
            )
        # The lowest that fits; where none of this slot does, the next id above it.
        lowest[source.name] = own["id"][fits][-1].decode() if fits[0] else f"{last + 1:04x}"
    return lowest


def slots(notes: np.ndarray) -> np.ndarray:
    """Return the number that the first SLOT_DIGITS characters of each id are."""
    digits = (
        np.ascontiguousarray(notes["id"])
        .view("u1")
        .reshape(len(notes), NOTE["id"].itemsize)[:, :SLOT_DIGITS]
        .astype(np.int64)
    )
    return (digits - np.where(digits > ord("9"), ord("a") - 10, ord("0"))) @ 16 ** np.arange(SLOT_DIGITS)[::-1]


def is_among(document: str, ids: np.ndarray) -> bool:
    """Return whether sorted ids contain one."""
    place = np.searchsorted(ids, document.encode())
    return bool(place < len(ids) and ids[place] == document.encode())


def name_families(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the lowest id in the family of each document."""
    order = np.argsort(ids, kind="stable")
    _, first, inverse = np.unique(labels[order], return_index=True, return_inverse=True)
    names = np.empty_like(ids)
    names[order] = ids[order][first][inverse]
    return names


def count_families(notes: np.ndarray, labels: np.ndarray, data: Data) -> dict[str, int]:
    families = Counter(source for _, source in set(zip(labels.tolist(), notes["source"].tolist(), strict=True)))
    return {source.name: families[index] for index, source in enumerate(data.sources)}


def describe_dates(notes: Path, sources: list[str]) -> dict[str, dict]:
    """Return source -> dated_documents, first_date and last_date."""
    found = {name: {"dated_documents": 0, "first_date": None, "last_date": None} for name in sources}
    for file in sorted(notes.glob("*.npy")):
        dated = np.load(file)
        dated = dated[dated["date"] != b""]
        for index in np.unique(dated["source"]):
            dates, entry = np.sort(dated["date"][dated["source"] == index]), found[sources[index]]
            entry["dated_documents"] += len(dates)
            first, last = dates[0].decode(), dates[-1].decode()
            entry["first_date"] = min(first, entry["first_date"] or first)
            entry["last_date"] = max(last, entry["last_date"] or last)
    return found


def write_splits(
    documents,
    rank: int,
    world_size: int,
    folder: Path,
    held_out: Path,  # JSON file of the HeldOut that `choose_held_out` returns
    lowest_ids: dict[str, str],  # what `lowest_training_ids` returns
    refused: Path,  # sorted ids of the documents that the quality model refused
    splits: Splits,
    counts: Path,
    new_samples: Callable = no_samples,
) -> None:
    """Write each document to folder/<split>/<source>/<rank>.parquet; drop those of train below their lowest id.

    Held-out documents are written with their families, where these are known.
    """
    chosen = HeldOut(**json.loads(held_out.read_text()))
    refused_ids = np.load(refused)
    writers: dict[tuple[str, str], DocumentWriter] = {}
    tally, samples = Tally(counts, "split", rank), new_samples("split", rank)
    for document in documents:
        source = document.metadata["source"]
        future = is_future(document.metadata.get("date"), splits)
        split = "future" if future else chosen.splits.get(document.id, "train")
        if split == "train" and is_among(document.id, refused_ids):
            tally.add(f"{source}/dropped:quality_model", len(document.text.encode()))
            samples.add(source, "quality_model", document.id, document.text)
            continue
        if split == "train" and document.id < lowest_ids.get(source, ""):
            tally.add(f"{source}/dropped:max_training_bytes", len(document.text.encode()))
            samples.add(source, "max_training_bytes", document.id, document.text)
            continue
        if (split, source) not in writers:
            families = None if split == "train" else chosen.families
            writers[split, source] = DocumentWriter(folder / split / source / f"{rank:05d}.parquet", families)
        writers[split, source].write(document)
        tally.add(f"{source}/split:{split}", len(document.text.encode()))
    for writer in writers.values():
        writer.close()
    samples.write()
    tally.write()
