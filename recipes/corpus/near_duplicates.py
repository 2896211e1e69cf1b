# SPDX-License-Identifier: Apache-2.0
"""Find near-duplicates by MinHash, across all sources, and keep the best document of each cluster.

In:   distinct documents, and the documents/ folders of earlier runs that the recipe names.
Out:  for each reason to drop, the ids of its documents; steps that drop them.

Documents whose sets of word n-grams have the Jaccard similarity s share one of b buckets of r hashes with probability
1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4). Matches are transitive: A~B and B~C put
A and C in one cluster. A cluster keeps the document of the source named first in the recipe, among those the longest,
then the one with the lowest id. A cluster with an earlier document keeps none. Words are compared without case and
accents; a text shorter than an n-gram is compared as a whole.

datatrove has these steps too. These replace them for three reasons:

- It treats all numbers as equal, and so drops a quarter of a collection of fact sheets that differ in their figures.
- It keeps an arbitrary document of a cluster.
- Its signatures take eight times as long, even with words by regular expression: most of the time goes into accents,
  character by character, and 112 products an n-gram. They hold 112 numbers for each word of a document at once (14 GB
  for 100 MB of text), and fill 952 bytes of disk a document. Here a document fills 8 bytes a bucket, and 42 for the
  fields that decide which document is kept.

At 1 TB in 170 million documents of 6 kB: 26 GB of disk; each bucket's task sorts them in about 5 GB of memory. One
task finds the clusters in some minutes, with about 250 bytes for each document in a cluster: 14 GB if a third are. All
other tasks take some MB, whatever the length of a document.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from datatrove.data import Document
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from atomic_files import read_record
from corpus.accounting import Tally
from corpus.document_files import PLACES, read_columns
from corpus.dropped_samples import Samples, no_samples
from corpus.finished_tasks import note_written
from corpus.words import BASE, mix, ngram_hashes, word_hashes
from recipe_config import NearDuplicates, RecipeError


NEAR, NEAR_EARLIER = "near_duplicate", "near_duplicate_of_earlier"
EARLIER = 0  # priority before every source of the recipe
EARLIER_TASKS = 64
RECORD = np.dtype([("id", "S32"), ("bytes", "<u8"), ("priority", "<u2")])
HIGHEST = np.iinfo(np.uint64).max
# A block may end inside a word, which changes 5 of about 10,000 n-grams. It fits into a core's cache.
BLOCK_CHARACTERS = 1 << 16
# Of a text with empty places after the first round, so many hashes are computed together.
ROUND_HASHES = 1000


def list_earlier_documents(folders: list[str]) -> list[Path]:
    """Return the Parquet files of earlier runs, of every split.

    Raises: RecipeError: a folder is not a complete documents/ folder of a finished run.
    """
    files, problems = [], []
    for index, folder in enumerate(folders):
        where = f"data.near_duplicates.against.{index}: {folder}"
        try:
            record = read_record(Path(folder))
        except (OSError, ValueError) as error:
            record = None
            where += f" ({error})"
        if record is None or record["stage"] != "prepare":
            problems.append(
                f"{where} is not the documents/ folder of a finished run; name one that prepare has written"
            )
            continue
        own = [Path(folder) / name for name in sorted(record["files"]) if name.endswith(".parquet") and name != PLACES]
        if missing := [str(path) for path in own if not path.is_file()]:
            problems.append(f"{where} lacks {len(missing)} of its files, such as {missing[0]}; copy the whole folder")
        files += own
    if problems:
        raise RecipeError(*problems)
    return files


def find_near_duplicates(
    run: Callable,
    documents: list,
    folder: Path,
    counts: Path,
    settings: NearDuplicates,
    sources: list[str],
    earlier: list[Path],
    total_bytes: int | None = None,
    new_samples: Callable[[str, int], Samples] = no_samples,
) -> list[Callable]:
    """Run every pass of the search.

    Args:
        run: run(name, pipeline, tasks=..., total_bytes=...) of `prepare`.
        documents: steps that yield the documents, no two of them with the same text.
        folder: for files that the passes and the returned steps exchange.
        counts: folder of the tallies of the returned steps.
        settings: n-grams and buckets.
        sources: names, in the order of the recipe.
        earlier: files that `list_earlier_documents` returns.
        total_bytes: of the documents, for the progress bar.
        new_samples: new_samples(step, rank) returns the Samples of a task of the returned steps.

    Returns: steps that drop and count the near-duplicates, for the same documents divided among the same tasks.
    """
    minhash = MinHash(settings)
    priorities = {name: number for number, name in enumerate(sources, start=EARLIER + 1)}
    sign = partial(sign_documents, folder=folder / "new", minhash=minhash, priorities=priorities)
    run("signatures", [*documents, sign], total_bytes=total_bytes)
    if earlier:
        parts = [earlier[task::EARLIER_TASKS] for task in range(min(EARLIER_TASKS, len(earlier)))]
        sign = partial(sign_earlier, folder=folder / "earlier", minhash=minhash, parts=parts)
        run("signatures of earlier documents", [sign], tasks=len(parts))
    run("near-duplicates", [partial(pair_documents, folder=folder)], tasks=settings.num_buckets)
    run("clusters", [partial(choose_documents, folder=folder)], tasks=1)
    reasons = [NEAR_EARLIER, NEAR] if earlier else [NEAR]
    drop = partial(drop_near_duplicates, folder=folder, counts=counts, new_samples=new_samples)
    return [partial(drop, reason=reason) for reason in reasons]


class MinHash:
    """Compute signatures of texts: one number a bucket, equal if all hashes of the bucket are equal.

    Fast similarity sketching (Dahlgaard, Knudsen, Thorup, FOCS 2017, arXiv 1704.04370): an n-gram is hashed once, to a
    place of the signature and a number, of which each place keeps the lowest. Places that stay empty, in a short text,
    are filled in further rounds, with other hashes of the same n-grams. As with a permutation a place, each place of
    two texts is equal with the probability of their Jaccard similarity.
    """

    def __init__(self, settings: NearDuplicates):
        self.n_grams, self.num_buckets = settings.n_grams, settings.num_buckets
        self.num_places = settings.num_buckets * settings.hashes_per_bucket
        self.powers = np.multiply.accumulate(np.full(settings.hashes_per_bucket, BASE))

    def signature(self, text: str) -> np.ndarray:
        """Return the signature, (num_buckets,) uint64."""
        lowest, seen = np.full(self.num_places, HIGHEST, dtype=np.uint64), []
        for ngrams in self.ngrams(text):
            self.lower(lowest, ngrams, np.arange(1))
            if (lowest == HIGHEST).any():
                seen = [np.unique(np.concatenate([*seen, ngrams]))]  # few distinct ones, or no place would be empty
        first_round, empty = 1, lowest == HIGHEST
        if empty.any():
            ngrams = seen[0]
            rounds = max(1, ROUND_HASHES // len(ngrams))
        while empty.any():
            filled = np.full(self.num_places, HIGHEST, dtype=np.uint64)
            self.lower(filled, ngrams, np.arange(first_round, first_round + rounds))
            lowest[empty] = filled[empty]
            first_round, empty = first_round + rounds, lowest == HIGHEST
        # Combined as the words of an n-gram are: different hashes give equal numbers in 1 of 2^64 cases.
        return lowest.reshape(self.num_buckets, -1) @ self.powers

    def lower(self, lowest: np.ndarray, ngrams: np.ndarray, rounds: np.ndarray) -> None:
        """Lower each place of a signature to the least that n-grams give it; those of an earlier round are less."""
        numbers = rounds.astype(np.uint64)[:, None]
        hashes = mix(ngrams + numbers * BASE)
        places = (hashes >> np.uint64(32)) * np.uint64(self.num_places) >> np.uint64(32)
        values = numbers << np.uint64(48) | hashes & np.uint64((1 << 48) - 1)
        np.minimum.at(lowest, places.ravel().view(np.int64), values.ravel())

    def ngrams(self, text: str) -> Iterator[np.ndarray]:
        """Yield the uint64 hashes of all n-grams, at least one, block by block."""
        waiting, complete = np.zeros(0, dtype=np.uint64), False
        for start in range(0, len(text), BLOCK_CHARACTERS):
            words = np.concatenate([waiting, word_hashes(text[start : start + BLOCK_CHARACTERS])])
            if len(words) >= self.n_grams:
                yield mix(ngram_hashes(words, self.n_grams))
                complete = True
            waiting = words[max(0, len(words) - self.n_grams + 1) :]
        if not complete:
            whole = waiting if len(waiting) else np.array([xxhash.xxh64_intdigest(text)], dtype=np.uint64)
            yield mix(ngram_hashes(whole, self.n_grams))


class SignatureWriter:
    """Write the signatures of a task's documents, in order.

    folder/<task>.documents has a RECORD for each document, folder/<task>.<bucket> its number in one bucket.
    """

    def __init__(self, folder: Path, rank: int, minhash: MinHash):
        self.folder, self.rank, self.minhash = folder, rank, minhash
        self.records, self.signatures = [], []

    def write(self, text: str, document_id: str, priority: int) -> None:
        self.records.append((document_id.encode(), len(text.encode()), priority))
        self.signatures.append(self.minhash.signature(text))

    def __enter__(self) -> "SignatureWriter":
        return self

    def __exit__(self, *error) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        signatures = np.array(self.signatures, dtype="<u8").reshape(-1, self.minhash.num_buckets)
        columns = {f"{bucket:03d}": signatures[:, bucket] for bucket in range(self.minhash.num_buckets)}
        for ending, column in {"documents": np.array(self.records, dtype=RECORD), **columns}.items():
            path = self.folder / f"{self.rank:05d}.{ending}"
            np.ascontiguousarray(column).tofile(path)
            note_written(path)


def sign_documents(
    documents, rank: int, world_size: int, folder: Path, minhash: MinHash, priorities: dict[str, int]
) -> None:
    with SignatureWriter(folder, rank, minhash) as writer:
        for document in documents:
            writer.write(document.text, document.id, priorities[document.metadata["source"]])


def sign_earlier(
    documents, rank: int, world_size: int, folder: Path, minhash: MinHash, parts: list[list[Path]]
) -> None:
    with SignatureWriter(folder, rank, minhash) as writer:
        for file in parts[rank]:
            for row in read_columns(file, ["id", "text"]):
                writer.write(row["text"], row["id"], EARLIER)


def signature_files(folder: Path, suffix: str) -> list[Path]:
    """Return the files of all tasks with a suffix, in the order that numbers the documents."""
    return [file for part in ("new", "earlier") for file in sorted((folder / part).glob(f"*.{suffix}"))]


def pair_documents(documents, rank: int, world_size: int, folder: Path) -> None:
    """Write pairs of documents whose numbers in bucket `rank` are equal, each with the next one."""
    numbers = np.concatenate([np.fromfile(file, dtype="<u8") for file in signature_files(folder, f"{rank:03d}")])
    order = np.argsort(numbers)
    numbers = numbers[order]
    equal = np.flatnonzero(numbers[1:] == numbers[:-1])
    path = folder / "pairs" / f"{rank:03d}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.stack([order[equal], order[equal + 1]], axis=1))
    note_written(path)


def connect(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the documents (n,) that occur in pairs, ascending, and the cluster (n,) of each, counted from 0."""
    edges = np.zeros((0, 2), dtype=np.int64)
    for file in files:
        documents, ends = np.unique(np.concatenate([edges, np.load(file)]), return_inverse=True)
        first, second = ends.reshape(-1, 2).T
        graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(len(documents),) * 2)
        clusters = connected_components(graph, directed=False)[1]
        # Each document keeps one edge for the next file, so memory grows with the documents, not with their pairs.
        representatives = documents[np.unique(clusters, return_index=True)[1]]
        edges = np.stack([representatives[clusters], documents], axis=1)
    return documents, clusters


def choose_documents(documents, rank: int, world_size: int, folder: Path) -> None:
    """Write folder/<reason>/<task>.npy, the ids (S32) of the documents to drop, and <task>.best.npy, of those kept
    instead."""
    numbers, clusters = connect(sorted((folder / "pairs").glob("*.npy")))
    files = signature_files(folder, "documents")
    starts = np.cumsum([0, *(file.stat().st_size // RECORD.itemsize for file in files)])
    bounds = np.searchsorted(numbers, starts)
    known = np.zeros(len(numbers), dtype=RECORD)
    for file, start, first, last in zip(files, starts, bounds, bounds[1:], strict=False):
        if first < last:
            known[first:last] = np.memmap(file, dtype=RECORD, mode="r")[numbers[first:last] - start]
    new = known["priority"] != EARLIER
    if len(np.unique(known["id"][new])) < new.sum():
        raise ValueError("two documents have the same id: drop exact duplicates before searching for near-duplicates")

    order = np.lexsort((known["id"], HIGHEST - known["bytes"], known["priority"], clusters))
    best = order[np.flatnonzero(np.diff(clusters[order], prepend=-1))][clusters]  # in each document's cluster
    of_earlier = known["priority"][best] == EARLIER
    duplicate = new & (best != np.arange(len(best)))
    for reason, dropped in ((NEAR_EARLIER, duplicate & of_earlier), (NEAR, duplicate & ~of_earlier)):
        (folder / reason).mkdir(exist_ok=True)
        for file, first, last in zip(files, bounds, bounds[1:], strict=False):
            if dropped[first:last].any():
                chosen = np.flatnonzero(dropped[first:last]) + first
                for name, ids in ((file.stem, chosen), (f"{file.stem}.best", best[chosen])):
                    np.save(folder / reason / f"{name}.npy", known["id"][ids])
                    note_written(folder / reason / f"{name}.npy")


def drop_near_duplicates(
    documents, rank: int, world_size: int, folder: Path, reason: str, counts: Path, new_samples: Callable = no_samples
) -> Iterator[Document]:
    """Yield the documents that are not listed in folder/<reason>/<rank>.npy; count and sample the others."""
    tally, samples = Tally(counts, reason, rank), new_samples(reason, rank)
    files = [folder / reason / f"{rank:05d}{end}.npy" for end in ("", ".best")]
    ids, best = (np.load(file).tolist() if file.exists() else [] for file in files)
    kept_instead = dict.fromkeys(ids, b"") | dict(zip(ids, best, strict=False))
    for document in documents:
        if (kept := kept_instead.get(document.id.encode())) is not None:
            source = document.metadata["source"]
            tally.add(f"{source}/dropped:{reason}", len(document.text.encode()))
            samples.add(source, reason, document.id, document.text, near=kept.decode())
        else:
            yield document
    samples.write()
    tally.write()
