# SPDX-License-Identifier: Apache-2.0
"""Find exact duplicates by their ids, which are hashes of the text, and keep the copy of the source named first.

Only the column of ids is read. Of copies in one source the first stays. The same pass drops what is too much of a
source with max_bytes, before it chooses among copies. It takes about 50 bytes of memory a document.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datatrove.data import Document

from corpus.accounting import Tally
from corpus.document_files import document_files
from corpus.dropped_samples import Samples, no_samples
from corpus.finished_tasks import note_written


KEPT, COPY, SURPLUS = range(3)
REASONS = {COPY: "exact_duplicate", SURPLUS: "max_bytes"}


def find_exact_duplicates(
    run: Callable,
    documents: Path,
    folder: Path,
    counts: Path,
    sources: list[str],
    surplus: dict[str, str] | None = None,
    name: str = "exact",
    new_samples: Callable[[str, int], Samples] = no_samples,
) -> list[Callable]:
    """Choose the documents to drop.

    Args:
        run: run(name, pipeline, tasks=..., total_bytes=...) of `prepare`.
        documents: folder of their files.
        folder: for files that the pass and the returned step exchange.
        counts: folder of the tallies of the returned step.
        sources: names, in the order of the recipe.
        surplus: source -> the lowest id that is too much.
        name: of the search, to tell several apart.
        new_samples: new_samples(step, rank) returns the Samples of a task of the returned step.

    Returns: a step that drops them, for the documents of a file in their order.
    """
    choose = partial(choose_copies, texts=documents, folder=folder, sources=sources, surplus=surplus or {})
    run(f"{name} duplicates", [choose], tasks=1)
    return [partial(drop_copies, folder=folder, counts=counts, name=name, new_samples=new_samples)]


def read_ids(file: Path) -> tuple[np.ndarray, str]:
    """Return the ids of a file's documents, (n, 2) uint64, and their source."""
    parquet = pq.ParquetFile(file)
    # Without Arrow's threads: where memory allows no new one, Arrow waits for it for ever.
    ids = bytes.fromhex("".join(parquet.read(columns=["id"], use_threads=False)["id"].to_pylist()))
    source = next(parquet.iter_batches(1, columns=["source"], use_threads=False))["source"][0].as_py()
    return np.frombuffer(ids, dtype=">u8").astype(np.uint64).reshape(-1, 2), source


def choose_copies(
    documents, rank: int, world_size: int, texts: Path, folder: Path, sources: list[str], surplus: dict[str, str]
) -> None:
    """Write KEPT, COPY or SURPLUS for each document of file n, (documents,) uint8, to folder/<n>.npy."""
    folder.mkdir(parents=True, exist_ok=True)
    ids, names = zip(*map(read_ids, document_files(texts)), strict=True) if document_files(texts) else ([], [])
    bounds = np.cumsum([0, *map(len, ids)])
    fates = np.full(bounds[-1], KEPT, dtype=np.uint8)
    priorities = np.repeat(np.array([sources.index(name) for name in names], dtype=np.uint16), np.diff(bounds))
    for name, lowest in surplus.items():
        for number in (number for number, other in enumerate(names) if other == name):
            own = slice(*bounds[number : number + 2])
            fates[own][ids[number][:, 0] >> np.uint64(48) >= int(lowest, 16)] = SURPLUS
    high, low = np.concatenate(ids).T
    wanted = np.flatnonzero(fates == KEPT)
    order = wanted[np.lexsort((priorities[wanted], low[wanted], high[wanted]))]  # equal ones in the order of reading
    equal = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    fates[order[1:][equal]] = COPY
    for number, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        np.save(folder / f"{number:05d}.npy", fates[start:stop])
        note_written(folder / f"{number:05d}.npy")


def drop_copies(
    documents, rank: int, world_size: int, folder: Path, counts: Path, name: str, new_samples: Callable = no_samples
) -> Iterator[Document]:
    """Yield the documents that are kept; count the others."""
    tally, samples = Tally(counts, name, rank), new_samples(name, rank)
    for fate, document in zip(np.load(folder / f"{rank:05d}.npy").tolist(), documents, strict=True):
        if fate == KEPT:
            yield document
        else:
            source = document.metadata["source"]
            tally.add(f"{source}/dropped:{REASONS[fate]}", len(document.text.encode()))
            samples.add(source, REASONS[fate], document.id, document.text)
    samples.write()
    tally.write()
