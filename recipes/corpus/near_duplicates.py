# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates by MinHash: of the documents that resemble each other the best copy stays, whatever its source.

In:   distinct documents, and the documents/ folders of earlier runs that the recipe names.
Out:  for each reason to drop, the ids of the documents it is about; steps that leave them out.

Documents whose sets of word n-grams have the Jaccard similarity s share one of b buckets of r hashes with probability
1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4). Sharing is closed into clusters, so a
chain of revisions is one cluster although its ends differ. Of a cluster stays the document of the source named first
in the recipe, among those the longest, then the one whose id is lowest; none where it has an earlier document in it.
Words are the same in any case and with or without accents; a text shorter than an n-gram is compared as a whole.

datatrove has these steps too, and here they are done over for three reasons. It takes every number for the same, and
so drops a quarter of a collection of fact sheets, whose figures are what they say. Of a cluster an arbitrary document
stays. Its signatures take three times as long, even with words by regular expression (most of it goes into
accents, character by character, and a remainder after each of 112 products an n-gram), hold 112 numbers for each word
of a document at once (14 GB for 100 MB of text), and fill 952 bytes of disk a document. Here a document fills 8 bytes
a bucket, and 42 with what decides which one stays.

At 1 TB of documents of 6 kB, 170 million: 26 GB of disk; each bucket's task sorts them in about 5 GB of memory. The
clusters are found by one task, which holds about 250 bytes for each document that is in one, 14 GB if a third are,
and takes some minutes. All else is some MB a task, whatever the length of a document.
"""

import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import xxhash
from datatrove.data import Document
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from atomic_files import read_record
from corpus.accounting import Tally
from corpus.benchmark_overlap import BASE, ngram_hashes
from corpus.document_families import WORD
from recipe_config import NearDuplicates, RecipeError


NEAR, NEAR_EARLIER = "near_duplicate", "near_duplicate_of_earlier"
EARLIER = 0  # before every source of the recipe
EARLIER_TASKS = 64
RECORD = np.dtype([("id", "S32"), ("bytes", "<u8"), ("priority", "<u2")])
HIGHEST = np.iinfo(np.uint64).max
# Seams between blocks may cut a word in two, which changes 5 of about 170,000 n-grams.
BLOCK_CHARACTERS = 1 << 20
# N-grams whose permutations fit into a core's cache together.
CHUNK_NGRAMS = 512
MAX_CACHED_WORDS = 1 << 20


def list_earlier_documents(folders: list[str]) -> list[Path]:
    """Return the Parquet files of earlier runs, of every split.

    Raises: RecipeError: for each folder that is no finished and whole documents/ folder.
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
            problems.append(f"{where} is no documents/ folder of a finished run; name one that prepare has written")
            continue
        own = [Path(folder) / name for name in sorted(record["files"]) if name.endswith(".parquet")]
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
) -> list[Callable]:
    """Run every pass of the search.

    Args:
        run: run(name, pipeline, tasks=..., total_bytes=...) of `prepare`.
        documents: the steps that give the documents, no two of them with the same text.
        folder: for what the passes leave each other and the returned steps.
        counts: folder of the tallies, where the returned steps write theirs.
        settings: n-grams and buckets.
        sources: names, in the order of the recipe.
        earlier: what `list_earlier_documents` gives.
        total_bytes: of the documents, where their steps note progress.

    Returns: steps for the same documents, divided among the same tasks, that leave out and count those with a reason.
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
    return [partial(leave_out, folder=folder, reason=reason, counts=counts) for reason in reasons]


class WordHashes(dict):
    """Word -> uint64, the same for a word in any case, with or without accents."""

    def __missing__(self, word: str) -> int:
        plain = word.casefold()
        if not plain.isascii():
            plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
        self[word] = number = xxhash.xxh64_intdigest(plain)
        return number


class MinHash:
    """Signatures of texts: one number a bucket, equal where all hashes of the bucket are.

    The permutations of the n-grams' hashes are x -> a x + b modulo 2^64 with odd a, after the bits of x are mixed.
    """

    def __init__(self, settings: NearDuplicates):
        self.n_grams, self.num_buckets = settings.n_grams, settings.num_buckets
        count = settings.num_buckets * settings.hashes_per_bucket
        draw = np.random.RandomState(1)  # NumPy has promised never to change its numbers
        self.factors = draw.randint(0, HIGHEST, size=count, dtype=np.uint64) | np.uint64(1)
        self.terms = draw.randint(0, HIGHEST, size=count, dtype=np.uint64)
        self.powers = np.multiply.accumulate(np.full(settings.hashes_per_bucket, BASE))
        self.words = WordHashes()

    def signature(self, text: str) -> np.ndarray:
        """Return (num_buckets,) uint64."""
        lowest = np.full(len(self.factors), HIGHEST)
        for ngrams in self.ngrams(text):
            for start in range(0, len(ngrams), CHUNK_NGRAMS):
                permuted = ngrams[start : start + CHUNK_NGRAMS, None] * self.factors
                permuted += self.terms
                np.minimum(lowest, permuted.min(axis=0), out=lowest)
        # As in an n-gram of words: digits of one number, which differ by chance in all but 1 of 2^64 cases.
        return lowest.reshape(self.num_buckets, -1) @ self.powers

    def ngrams(self, text: str) -> Iterator[np.ndarray]:
        """Yield uint64 hashes of all n-grams, at least one, block by block."""
        waiting, complete = np.zeros(0, dtype=np.uint64), False
        for start in range(0, len(text), BLOCK_CHARACTERS):
            found = WORD.findall(text[start : start + BLOCK_CHARACTERS])
            hashes = np.fromiter(map(self.words.__getitem__, found), dtype=np.uint64, count=len(found))
            words = np.concatenate([waiting, hashes])
            if len(words) >= self.n_grams:
                yield mix(ngram_hashes(words, self.n_grams))
                complete = True
            waiting = words[max(0, len(words) - self.n_grams + 1) :]
            if len(self.words) > MAX_CACHED_WORDS:
                self.words.clear()
        if not complete:
            whole = waiting if len(waiting) else np.array([xxhash.xxh64_intdigest(text)], dtype=np.uint64)
            yield mix(ngram_hashes(whole, self.n_grams))


def mix(hashes: np.ndarray) -> np.ndarray:
    """Make every bit depend on all others; the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


class SignatureWriter:
    """Write what is known of a task's documents, in their order: folder/<task>.documents has a RECORD each,
    folder/<task>.<bucket> their signatures' numbers in one bucket."""

    def __init__(self, folder: Path, rank: int, minhash: MinHash):
        folder.mkdir(parents=True, exist_ok=True)
        self.minhash = minhash
        self.records = (folder / f"{rank:05d}.documents").open("wb")
        self.buckets = [(folder / f"{rank:05d}.{bucket:03d}").open("wb") for bucket in range(minhash.num_buckets)]

    def write(self, text: str, document_id: str, priority: int) -> None:
        record = np.array((document_id.encode(), len(text.encode()), priority), dtype=RECORD)
        self.records.write(record.tobytes())
        for file, number in zip(self.buckets, self.minhash.signature(text), strict=True):
            file.write(number.tobytes())

    def __enter__(self) -> "SignatureWriter":
        return self

    def __exit__(self, *error) -> None:
        for file in (self.records, *self.buckets):
            file.close()


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
            for batch in pq.ParquetFile(file).iter_batches(columns=["text"], batch_size=64):
                for text in batch["text"].to_pylist():
                    writer.write(text, "", EARLIER)


def signature_files(folder: Path, suffix: str) -> list[Path]:
    """Return a suffix' files of all tasks; the documents in them are numbered through in this order."""
    return [file for part in ("new", "earlier") for file in sorted((folder / part).glob(f"*.{suffix}"))]


def pair_documents(documents, rank: int, world_size: int, folder: Path) -> None:
    """Write the pairs of neighbours among the documents whose numbers in bucket `rank` are equal."""
    numbers = np.concatenate([np.fromfile(file, dtype="<u8") for file in signature_files(folder, f"{rank:03d}")])
    order = np.argsort(numbers)
    numbers = numbers[order]
    equal = np.flatnonzero(numbers[1:] == numbers[:-1])
    (folder / "pairs").mkdir(exist_ok=True)
    np.save(folder / "pairs" / f"{rank:03d}.npy", np.stack([order[equal], order[equal + 1]], axis=1))


def connect(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the documents (n,) that occur in pairs, ascending, and the cluster (n,) of each, from 0."""
    edges = np.zeros((0, 2), dtype=np.int64)
    for file in files:
        documents, ends = np.unique(np.concatenate([edges, np.load(file)]), return_inverse=True)
        first, second = ends.reshape(-1, 2).T
        graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(len(documents),) * 2)
        clusters = connected_components(graph, directed=False)[1]
        # One edge a document goes on to the next file, so that memory follows the documents and not their pairs.
        representatives = documents[np.unique(clusters, return_index=True)[1]]
        edges = np.stack([representatives[clusters], documents], axis=1)
    return documents, clusters


def choose_documents(documents, rank: int, world_size: int, folder: Path) -> None:
    """Write folder/<reason>/<task>.npy, the ids (S32) of the documents that their clusters do without."""
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
        raise ValueError("two documents have the same id: drop exact duplicates before near-duplicates are looked for")

    order = np.lexsort((known["id"], HIGHEST - known["bytes"], known["priority"], clusters))
    best = order[np.flatnonzero(np.diff(clusters[order], prepend=-1))][clusters]  # of each document's cluster
    of_earlier = known["priority"][best] == EARLIER
    superfluous = new & (best != np.arange(len(best)))
    for reason, dropped in ((NEAR_EARLIER, superfluous & of_earlier), (NEAR, superfluous & ~of_earlier)):
        (folder / reason).mkdir(exist_ok=True)
        for file, first, last in zip(files, bounds, bounds[1:], strict=False):
            if dropped[first:last].any():
                np.save(folder / reason / f"{file.stem}.npy", known["id"][first:last][dropped[first:last]])


def leave_out(documents, rank: int, world_size: int, folder: Path, reason: str, counts: Path) -> Iterator[Document]:
    tally = Tally(counts, reason, rank)
    file = folder / reason / f"{rank:05d}.npy"
    ids = frozenset(np.load(file).tolist()) if file.exists() else frozenset()
    for document in documents:
        if document.id.encode() in ids:
            tally.add(f"{document.metadata['source']}/dropped:{reason}", len(document.text.encode()))
        else:
            yield document
    tally.write()
