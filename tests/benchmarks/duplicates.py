# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates and repeated passages: speed, memory, pairs found, and what is cut out of real text.

    PYTHONPATH=recipes python tests/benchmarks/duplicates.py speed legal/*.jsonl        # beside datatrove's signatures
    PYTHONPATH=recipes python tests/benchmarks/duplicates.py passages finance/*.jsonl   # cut at 5, 10, 50 documents
    PYTHONPATH=recipes python tests/benchmarks/duplicates.py pairs
    PYTHONPATH=recipes python tests/benchmarks/duplicates.py clusters --documents 2_000_000

The files hold JSON lines with `text`. Speeds are megabytes of text a second of processor time, one process; memory is
the most that a process held that did nothing else.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.utils.word_tokenizers import WordTokenizer
from loguru import logger

from corpus.accounting import sum_counts
from corpus.document_files import document_id
from corpus.near_duplicates import RECORD, MinHash, choose_documents, find_near_duplicates, pair_documents
from corpus.repeated_passages import find_repeated_passages, summarise
from corpus.words import WORD
from recipe_config import NearDuplicates, RepeatedPassages


TASKS = 8


class Words(WordTokenizer):
    """The words that the recipe's own steps see, for datatrove's."""

    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    span_tokenize = sent_tokenize


def read(files: list[Path]) -> list[Document]:
    """Return the documents, no two with the same text."""
    documents = {}
    for file in files:
        for line in file.open(encoding="utf-8"):
            text = json.loads(line)["text"]
            name = document_id(text)
            documents[name] = Document(text=text, id=name, metadata={"source": file.stem})
    return list(documents.values())


def give(documents, rank: int, world_size: int, everything: list[Document]):
    for one in everything[rank::world_size]:
        yield Document(text=one.text, id=one.id, metadata=one.metadata)


def run_quietly(name: str, pipeline: list, tasks: int = TASKS, total_bytes: int | None = None) -> None:
    for rank in range(tasks):
        passed_on = None
        for step in pipeline:
            passed_on = step(passed_on, rank, tasks)
        deque(passed_on or (), maxlen=0)


def run_timed(name: str, pipeline: list, tasks: int = TASKS, total_bytes: int | None = None) -> None:
    started = time.process_time()
    run_quietly(name, pipeline, tasks)
    seconds = time.process_time() - started
    speed = f"{total_bytes / 1e6 / seconds:8.1f} MB/s" if total_bytes else ""
    print(f"{name:32}{seconds:8.2f} s{speed}")


def measure_speed(documents: list[Document], folder: Path) -> None:
    total_bytes = sum(len(one.text.encode()) for one in documents)
    print(f"{len(documents):,} documents, {total_bytes / 1e6:.1f} MB")
    start = [partial(give, everything=documents)]
    sources = sorted({one.metadata["source"] for one in documents})
    logger.disable("datatrove")
    theirs = MinhashDedupSignature(str(folder / "theirs"), language=Words())
    run_timed("datatrove's signatures", [*start, theirs], 1, total_bytes)
    run = partial(run_timed, total_bytes=total_bytes)
    minhash = NearDuplicates()
    near = find_near_duplicates(run, start, folder / "near", folder / "counts", minhash, sources, [], total_bytes)
    run("leave out near-duplicates", [*start, *near])
    passages = RepeatedPassages(min_documents=10)
    cut = find_repeated_passages(run, start, folder / "passages", folder / "counts", passages, 200, total_bytes)
    run("cut passages", [*start, cut])


def measure_passages(documents: list[Document], folder: Path) -> None:
    """Print for each source by itself what is dropped and cut, and the most frequent of the passages."""
    for source in sorted({one.metadata["source"] for one in documents}):
        own = [one for one in documents if one.metadata["source"] == source]
        total_bytes = sum(len(one.text.encode()) for one in own)
        start = [partial(give, everything=own)]
        counts = folder / source / "counts"
        near = find_near_duplicates(run_quietly, start, folder / source, counts, NearDuplicates(), [source], [])
        for limit in (5, 10, 50):
            passages, work = RepeatedPassages(min_documents=limit), folder / source / str(limit)
            cut = find_repeated_passages(run_quietly, [*start, *near], work, counts, passages, 200)
            run_quietly("cut", [*start, *near, cut])
            found = {label.partition("/")[2]: n for label, n in sum_counts(counts, "*").items()}
            gone, dropped, nearly = (
                found.get(label, (0, 0)) for label in ("cut", "dropped:repeated_passages", "dropped:near_duplicate")
            )
            summary = summarise(work)
            print(
                f"{source:24} {len(own):5} documents, {nearly[0]:4} near-duplicates; in {limit:2}: "
                f"{summary['repeated_passages']:5} passages, {gone[0]:5} documents cut, {dropped[0]:4} dropped, "
                f"{100 * (gone[1] + dropped[1]) / total_bytes:6.2f} % of bytes"
            )
            if limit == 5:
                for passage in summary["most_frequent"][:12]:
                    print(f"    {passage['documents']:5}  {passage['text'][:150]!r}")


def measure_pairs(num_pairs: int = 2000, num_ngrams: int = 300) -> None:
    """Print how many pairs of a similarity are found, beside the formula."""
    settings = NearDuplicates()
    minhash, choose = MinHash(settings), random.Random(0)
    for similarity in (0.5, 0.6, 0.7, 0.72, 0.8, 0.85, 0.9):
        found = 0
        shared = round(2 * num_ngrams * similarity / (1 + similarity)) + settings.n_grams - 1
        for _ in range(num_pairs):
            words = [f"w{choose.getrandbits(60):x}" for _ in range(2 * (num_ngrams + settings.n_grams - 1) - shared)]
            half = len(words) - (len(words) - shared) // 2
            one, other = words[:half], words[:shared] + words[half:]
            found += bool((minhash.signature(" ".join(one)) == minhash.signature(" ".join(other))).any())
        expected = 1 - (1 - similarity**settings.hashes_per_bucket) ** settings.num_buckets
        print(f"similarity {similarity:4}: found {found / num_pairs:.3f}, formula {expected:.3f}")


def measure_clusters(num_documents: int, folder: Path, cluster_size: int = 3, sharing: float = 0.6) -> None:
    """Print seconds and memory where a third of the documents are in clusters and share buckets at random."""
    generator = np.random.default_rng(0)
    (folder / "new").mkdir()
    records = np.zeros(num_documents, dtype=RECORD)
    records["id"] = [b"%032x" % number for number in range(num_documents)]
    records["bytes"], records["priority"] = 6000, 1
    records.tofile(folder / "new" / "00000.documents")
    clusters = np.arange(num_documents)
    clusters[: num_documents // 3] //= cluster_size
    buckets = NearDuplicates().num_buckets
    for bucket in range(buckets):
        numbers = generator.integers(0, 2**63, num_documents, dtype=np.uint64)
        same = generator.random(num_documents) < sharing
        numbers[same] = clusters[same]
        numbers.tofile(folder / "new" / f"00000.{bucket:03d}")
    steps = [(pair_documents, bucket) for bucket in range(buckets)] + [(choose_documents, 0)]
    for step, rank in steps:
        with ProcessPoolExecutor(1) as pool:
            before, seconds, after = pool.submit(alone, step, rank, folder).result()
        if rank == 0:
            print(f"{step.__name__}: {num_documents:,} documents, {seconds:.1f} s, {after - before:.0f} MB")


def alone(step: Callable, rank: int, folder: Path) -> tuple[float, float, float]:
    def peak_megabytes() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

    before, started = peak_megabytes(), time.process_time()
    step(None, rank, 1, folder=folder)
    return before, time.process_time() - started, peak_megabytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "passages", "pairs", "clusters"])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--documents", type=int, default=2_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "speed":
            measure_speed(read(options.files), Path(folder))
        elif options.what == "passages":
            measure_passages(read(options.files), Path(folder))
        elif options.what == "pairs":
            measure_pairs()
        else:
            measure_clusters(options.documents, Path(folder))


if __name__ == "__main__":
    main()
