# SPDX-License-Identifier: Apache-2.0
"""Choose the documents that are held out of training: by a hash of their content, by family, and by date.

Nothing about a document's place, its source's order or the number of workers enters the choice, so the same text is
held out of the next run too. Memory does not grow with the corpus: only of the documents with the least hashes, about
as many as can be held out, is more known than a running sum. Families are the exception; see document_families.py.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from tqdm import tqdm

from corpus.accounting import Tally
from corpus.document_families import find_families
from corpus.document_files import DocumentWriter, texts
from recipe_config import Data, RecipeError, Splits


# What the choice needs of each document; the date may be a day, a month, a year, or nothing.
NOTE = np.dtype([("id", "S32"), ("source", "<u2"), ("num_bytes", "<u8"), ("date", "S10")])
# Of so many documents of a source all are looked at, of the rest only what the shares can need.
MIN_POOL_DOCUMENTS = 10_000


def note_documents(documents, rank: int, world_size: int, folder: Path, sources: list[str]) -> Iterator[Document]:
    """Pass documents on and write their NOTEs, in order, to folder/<rank>.npy."""
    notes = []
    for document in documents:
        date = (document.metadata.get("date") or "").encode()
        source = sources.index(document.metadata["source"])
        notes.append((document.id.encode(), source, len(document.text.encode()), date))
        yield document
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{rank:05d}.npy", np.array(notes, dtype=NOTE))


def is_future(date: str | None, splits: Splits) -> bool:
    """Return whether a date is of splits.future_from or later, or, of a month or year, may be."""
    return bool(date and splits.future_from) and date >= splits.future_from[: len(date)]


def plan_splits(notes: Path, documents: Path, data: Data) -> tuple[dict[str, str], dict[str, int] | None]:
    """Choose the documents of the validation and test split of each source.

    Families of documents (each document by itself unless data.family_containment is set) are taken in the order of
    a hash of their content, until the split's share of the source's bytes is reached; one that is larger than what
    is left stays in train. Where even the smallest is larger than the share, it is taken all the same. What is of
    the future is in none of them.

    Args:
        notes: folder that `note_documents` wrote.
        documents: folder with the documents in the same order; read for families only.
        data: sources, splits and family_containment.

    Returns: document id -> split for everything held out, and source -> number of families.
    Raises: RecipeError: a source too small to give every split a family.
    """
    files = sorted(notes.glob("*.npy"))
    if data.family_containment is None:
        pool, total_bytes = gather_pool(files, data)
        labels, families = np.arange(len(pool)), None
    else:
        pool = np.concatenate([np.load(file) for file in files])
        progress = tqdm(texts(documents), total=len(pool), desc="prepare: families", leave=False)
        labels = find_families(progress, data.family_containment)
        families = count_families(pool, labels, data)
        past = past_documents(pool, data.splits)
        pool, labels = pool[past], labels[past]
        total_bytes = np.bincount(pool["source"], weights=pool["num_bytes"], minlength=len(data.sources))
    return choose(pool, labels, total_bytes, data), families


def past_documents(notes: np.ndarray, splits: Splits) -> np.ndarray:
    return np.array([not is_future(date.decode(), splits) for date in notes["date"]], dtype=bool)


def gather_pool(files: list[Path], data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return the notes of the documents with the least hashes of each source, and each source's bytes.

    The pool of a source holds twice the bytes that can be held out of it, since the choice passes over documents that
    are too large for what is left of a share.
    """

    def past(file: Path) -> np.ndarray:
        notes = np.load(file)
        return notes[past_documents(notes, data.splits)]

    total_bytes = np.zeros(len(data.sources))
    for file in files:
        notes = past(file)
        total_bytes += np.bincount(notes["source"], weights=notes["num_bytes"], minlength=len(data.sources))
    pools = [np.zeros(0, dtype=NOTE)] * len(data.sources)
    for file in files:
        notes = past(file)
        for source in np.unique(notes["source"]):
            pool = np.concatenate([pools[source], notes[notes["source"] == source]])
            pool = pool[np.argsort(pool["id"], kind="stable")]
            before = np.cumsum(pool["num_bytes"]) - pool["num_bytes"]
            most_bytes = 2 * sum(split_bytes(total_bytes[source], data.splits).values())
            pools[source] = pool[(before < most_bytes) | (np.arange(len(pool)) < MIN_POOL_DOCUMENTS)]
    return np.concatenate(pools), total_bytes


def split_bytes(total_bytes: float, splits: Splits) -> dict[str, float]:
    """Return how many bytes of a source each held-out split takes."""
    return {
        "test": min(splits.test_fraction * total_bytes, splits.max_bytes),
        "validation": min(splits.validation_fraction * total_bytes, splits.max_bytes),
    }


def choose(pool: np.ndarray, labels: np.ndarray, total_bytes: np.ndarray, data: Data) -> dict[str, str]:
    """Return document id -> split of what is held out; `plan_splits` says how it is chosen."""
    members: dict[int, list[int]] = {}
    for position in np.argsort(pool["id"], kind="stable").tolist():
        members.setdefault(int(labels[position]), []).append(position)
    held_out: dict[int, str] = {}
    problems = []
    for index, source in enumerate(data.sources):
        # Families are in the order of their least id, since their members were entered in the order of ids.
        weighed = []
        for family in members.values():
            weight = sum(int(pool["num_bytes"][position]) for position in family if pool["source"][position] == index)
            if weight and family[0] not in held_out:
                weighed.append((weight, family))
        if len(weighed) < 3:
            problems.append(
                f"data.sources: {source.name}: {len(weighed)} distinct documents are left after cleaning, and train, "
                f"validation and test need one each; add text, or lower data.min_document_bytes="
                f"{data.min_document_bytes}"
            )
            continue
        for split, left_bytes in split_bytes(total_bytes[index], data.splits).items():
            chosen, rest = [], []
            for weight, family in weighed:
                taken = weight <= left_bytes
                left_bytes -= weight if taken else 0
                (chosen if taken else rest).append((weight, family))
            if not chosen:
                chosen = [min(rest, key=lambda pair: pair[0])]
                rest.remove(chosen[0])
            held_out |= {position: split for _, family in chosen for position in family}
            weighed = rest
    if problems:
        raise RecipeError(*problems)
    return {pool["id"][position].decode(): split for position, split in held_out.items()}


def least_trained(notes: Path, held_out: dict[str, str], data: Data) -> dict[str, str]:
    """Return, of each source with more text than its max_training_bytes, the least id that is trained on.

    Held-out text has the least ids and training begins at the greatest, so more bytes only add documents.
    """
    least = {}
    for index, source in enumerate(data.sources):
        if source.max_training_bytes is None:
            continue
        own = [found[found["source"] == index] for found in map(np.load, sorted(notes.glob("*.npy")))]
        own = np.sort(np.concatenate(own), order="id")[::-1]
        own = own[past_documents(own, data.splits) & [note.decode() not in held_out for note in own["id"]]]
        fits = np.cumsum(own["num_bytes"]) <= source.max_training_bytes
        if len(fits) and not fits[0]:
            raise RecipeError(
                f"data.sources: {source.name}: max_training_bytes={source.max_training_bytes:,} is less than the "
                f"{own['num_bytes'][0]:,} bytes of the document that comes first; allow more"
            )
        if not fits.all():
            least[source.name] = own["id"][fits][-1].decode()
    return least


def count_families(pool: np.ndarray, labels: np.ndarray, data: Data) -> dict[str, int]:
    pairs = Counter(source for _, source in set(zip(labels.tolist(), pool["source"].tolist(), strict=True)))
    return {source.name: pairs[index] for index, source in enumerate(data.sources)}


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
    held_out: Path,
    least_ids: dict[str, str],
    splits: Splits,
    counts: Path,
) -> None:
    """Write each document below its split and source, but those of train with an id below `least_trained`."""
    chosen: dict[str, str] = json.loads(held_out.read_text())
    writers: dict[tuple[str, str], DocumentWriter] = {}
    tally = Tally(counts, "split", rank)
    for document in documents:
        source = document.metadata["source"]
        future = is_future(document.metadata.get("date"), splits)
        split = "future" if future else chosen.get(document.id, "train")
        if split == "train" and document.id < least_ids.get(source, ""):
            tally.add(f"{source}/dropped:max_training_bytes", len(document.text.encode()))
            continue
        if (split, source) not in writers:
            writers[split, source] = DocumentWriter(folder / split / source / f"{rank:05d}.parquet")
        writers[split, source].write(document)
        tally.add(f"{source}/split:{split}", len(document.text.encode()))
    for writer in writers.values():
        writer.close()
    tally.write()
