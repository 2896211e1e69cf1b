# SPDX-License-Identifier: Apache-2.0
"""Stage 1: from the sources of the recipe to clean, de-duplicated documents in three disjoint splits.

In:   data.sources, and extract_text(example, source) of the recipe's data.py.
Out:  <run.output_dir>/documents/<train|validation|test>/<source>/*.parquet with id, source, text, date;
      documents/stats.json with the documents and bytes read, kept, and dropped under each reason;
      documents/quarantine.jsonl with the place and the reason of everything that could not be read.

    python recipes/prepare_data.py --config recipes/legal/quickstart.yaml
    python recipes/prepare_data.py --config recipes/legal/base.yaml --data.workers=32

The steps are datatrove's where it has them. Each task reads a part of one source that depends only on the names of
its files, so the output is the same, byte for byte, whatever the number of workers.
"""

import importlib.util
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.readers import ParquetReader
from datatrove.utils.word_tokenizers import WordTokenizer
from huggingface_hub import HfApi
from tqdm import tqdm

from benchmark_overlap import BenchmarkIndex, drop_overlapping, write_report
from document_families import WORD, find_families
from personal_data import Redactor
from pipeline_executor import TaskProgress, run_pipeline, track
from recipe_config import Data, Recipe, RecipeError, Source, parse_command_line, run_command
from run_folder import discard, is_finished, new_output, write_json
from source_readers import Unit, Unreadable, is_hub_dataset, list_all_units, named_errors, read_unit


SPLITS = ("train", "validation", "test")
TASKS_PER_SOURCE = 8
DOCUMENT_SCHEMA = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("text", pa.string()), ("date", pa.string())]
)
ROW_GROUP_BYTES = 32 << 20


def prepare(recipe: Recipe) -> dict:
    """Run the stage and return documents/stats.json's content."""
    index = load_benchmarks(recipe.data)
    data = pin_revisions(recipe.data)
    workers = data.workers or os.cpu_count()
    with new_output(recipe, "prepare") as output:
        work = output / "work"
        parts = plan_parts(data)
        tasks = len(parts)
        total_bytes = sum(unit.size_bytes for _, units in parts for unit in units)

        def run(name: str, pipeline: list, tasks: int = tasks, total_bytes: int | None = None) -> None:
            run_pipeline(pipeline, tasks, workers, work / "logs" / name, f"prepare: {name}", total_bytes)

        read = partial(read_part, data=data, parts=parts, work=work)
        run("read", [read, partial(write_documents, folder=work / "read")], total_bytes=total_bytes or None)
        counts = sum_counts(work / "counts", "read")
        if empty := [source.name for source in data.sources if f"{source.name}/read" not in counts]:
            raise RecipeError(*(explain_empty(name, counts) for name in empty))
        read_bytes = sum(num_bytes for label, (_, num_bytes) in counts.items() if label.endswith("/read"))

        # Exact duplicates: of equal texts the one from the source named first in the recipe stays.
        exact = ExactDedupConfig(
            content_getter=document_text, document_priority=partial(source_priority, sources=data.sources)
        )
        documents = ParquetReader(str(work / "read"))
        run("exact duplicates", [documents, ExactDedupSignature(str(work / "exact"), exact)])
        run(
            "exact duplicates, find", [ExactFindDedups(str(work / "exact"), str(work / "exact_found"), exact)], tasks=1
        )
        distinct = [documents, ExactDedupFilter(str(work / "exact_found"), exact)]

        # Near-duplicates: signatures, pairs in each bucket, clusters of pairs, one document kept of each cluster.
        if data.near_duplicates is not None:
            minhash = MinhashConfig(**data.near_duplicates.model_dump())
            followed = partial(track, notes=work / "logs" / "signatures" / "progress")
            signatures = MinhashDedupSignature(str(work / "signatures"), minhash, language=Words())
            run("signatures", [*distinct, partial(tracked, track=followed), signatures], total_bytes=read_bytes)
            buckets = MinhashDedupBuckets(str(work / "signatures"), str(work / "pairs"), config=minhash)
            run("near-duplicates", [buckets], tasks=minhash.num_buckets)
            run("clusters", [MinhashDedupCluster(str(work / "pairs"), str(work / "clusters"), minhash)], tasks=1)
            near = [MinhashDedupFilter(str(work / "clusters"))]
        else:
            near = []
        count = partial(count_documents, folder=work / "counts")
        unique = [*distinct, partial(count, name="distinct"), *near, partial(count, name="unique")]

        # Benchmark items are looked for last, in the text that is left, so that the report is about just that text.
        clean = []
        if index is not None:
            fraction, notes = data.decontamination.min_overlap_fraction, work / "overlaps"
            clean = [partial(drop_overlapping, index=index, min_overlap_fraction=fraction, folder=notes)]
        run("keep", [*unique, *clean, partial(count, name="kept"), partial(write_documents, folder=work / "kept")])
        if index is not None:
            write_report(output / "decontamination.json", index, fraction, notes)

        held_out, families = plan_splits(work / "kept", data)
        write = partial(write_splits, folder=output, held_out=held_out, counts=work / "counts")
        run("split", [ParquetReader(str(work / "kept")), write])

        stats = gather_stats(data.sources, work / "counts", families)
        write_json(output / "stats.json", stats)
        refused = [path.read_text(encoding="utf-8") for path in sorted((work / "quarantine").iterdir())]
        (output / "quarantine.jsonl").write_text("".join(refused), encoding="utf-8")
        discard(work)
    return stats


def pin_revisions(data: Data) -> Data:
    """Resolve the head of each Hub dataset without a revision to its commit, so that one commit is read throughout."""
    sources = []
    for source in data.sources:
        if is_hub_dataset(source) and source.revision is None:
            with named_errors(source):
                source = source.model_copy(update={"revision": HfApi().dataset_info(source.path).sha})
        sources.append(source)
    return data.model_copy(update={"sources": sources})


def plan_parts(data: Data) -> list[tuple[Source, list[Unit]]]:
    """Divide each source into the parts that one task reads."""
    all_units, parts = list_all_units(data.sources), []
    for source in data.sources:
        units = all_units[source.name]
        # A limit on the bytes of a source is one counter, so one task does the reading.
        tasks = 1 if source.max_bytes else min(TASKS_PER_SOURCE, len(units))
        parts += [(source, units[task::tasks]) for task in range(tasks)]
    return parts


def load_benchmarks(data: Data) -> BenchmarkIndex | None:
    """Index the benchmarks that the text is checked against; None where the recipe names none."""
    if data.decontamination is None:
        return None
    try:
        return BenchmarkIndex(Path(data.decontamination.benchmarks), data.decontamination.ngram_words)
    except (OSError, ValueError) as error:
        raise RecipeError(f"data.decontamination.benchmarks: {error}") from error


def load_extract_text(path: str) -> Callable[[dict, str], str | None]:
    """Import extract_text from the recipe's data.py, which is no package."""
    spec = importlib.util.spec_from_file_location("recipe_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.extract_text


def read_part(documents, rank: int, world_size: int, data: Data, parts, work: Path) -> Iterator[Document]:
    """Read one part of a source: yield its documents, count every example as read or dropped for a reason."""
    source, units = parts[rank]
    extract_text = load_extract_text(data.extract_text)
    progress = TaskProgress(work / "logs" / "read" / "progress", rank)
    tally = Tally(work / "counts", "read", rank, source.name)
    redactor = data.personal_data and Redactor(data.personal_data.profile, data.personal_data.actions)
    quarantine = work / "quarantine" / f"{rank:05d}.jsonl"
    quarantine.parent.mkdir(parents=True, exist_ok=True)
    with quarantine.open("w", encoding="utf-8") as refused:
        for unit, example in read_until(source, units, tally, progress):
            text = None if isinstance(example, Unreadable) else extract_text(example, source.name)
            if not isinstance(text, str | None):
                size_bytes = len(repr(text).encode())
                example = Unreadable(unit.name, f"extract_text gives {type(text).__name__}, not text", size_bytes)
            if isinstance(example, Unreadable):
                tally.add("dropped:unreadable", example.size_bytes)
                entry = {"source": source.name, "position": example.position, "reason": example.reason}
                refused.write(json.dumps(entry, ensure_ascii=False) + "\n")
                continue
            text = (text or "").replace("\r\n", "\n").strip()
            num_bytes = len(text.encode())
            if not unit.size_bytes:
                progress.add(num_bytes)
            if num_bytes < data.min_document_bytes:
                tally.add("dropped:too_short" if text else "dropped:no_text", num_bytes)
                continue
            if redactor is not None:
                text, found = redactor.apply(text)
                tally.documents.update({f"personal_data:{kind}": number for kind, number in found.items()})
                if text is None:
                    tally.add("dropped:personal_data", num_bytes)
                    continue
                num_bytes = len(text.encode())
            tally.add("read", num_bytes)
            date = example.get("date")
            yield Document(
                text=text,
                id=sha256(text.encode()).hexdigest()[:32],
                metadata={"source": source.name, "date": date if isinstance(date, str) else None},
            )
    progress.note()
    tally.write()


def read_until(source: Source, units: list[Unit], tally: "Tally", progress: TaskProgress) -> Iterator[tuple]:
    """Yield (unit, example) until the source's max_bytes of documents have been read."""
    for unit in units:
        for example in read_unit(source, unit):
            if source.max_bytes and tally.num_bytes["read"] >= source.max_bytes:
                return
            yield unit, example
        progress.add(unit.size_bytes)


class Tally:
    """Documents and bytes under each label for one task, written to `<folder>/<name>.<rank>.json`.

    Args:
        folder: created when needed.
        name: the step that counts.
        rank: the task.
        source: what the labels are about; None counts documents under the source each of them names.
    """

    def __init__(self, folder: Path, name: str, rank: int, source: str | None = None):
        self.file = folder / f"{name}.{rank:05d}.json"
        self.source = source
        self.documents: Counter = Counter()
        self.num_bytes: Counter = Counter()

    def add(self, label: str, num_bytes: int) -> None:
        self.documents[label] += 1
        self.num_bytes[label] += num_bytes

    def write(self) -> None:
        prefix = f"{self.source}/" if self.source else ""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        counts = {prefix + label: [self.documents[label], self.num_bytes[label]] for label in sorted(self.documents)}
        self.file.write_text(json.dumps(counts))


class Words(WordTokenizer):
    """The words of a text by one regular expression: those of datatrove need spaCy, at a twentieth of the speed."""

    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError("near-duplicates are found by words alone")

    span_tokenize = sent_tokenize


def document_text(document: Document) -> str:
    return document.text


def source_priority(document: Document, sources: list[Source]) -> int:
    """Rank sources by their place in the recipe, the first highest, in datatrove's range of 1 to 65535."""
    return 65535 - [source.name for source in sources].index(document.metadata["source"])


def tracked(documents, rank: int, world_size: int, track: Callable) -> Iterator[Document]:
    return track(documents, rank=rank)


def count_documents(documents, rank: int, world_size: int, folder: Path, name: str) -> Iterator[Document]:
    """Pass documents on, counting those of each source."""
    tally = Tally(folder, name, rank)
    for document in documents:
        tally.add(f"{document.metadata['source']}/{name}", len(document.text.encode()))
        yield document
    tally.write()


class DocumentWriter:
    """Write documents to one Parquet file in row groups of about 32 MB of text; without documents, no file."""

    def __init__(self, path: Path):
        self.path, self.rows, self.num_bytes, self.file = path, [], 0, None

    def write(self, document: Document) -> None:
        self.rows.append({"id": document.id, "text": document.text, **document.metadata})
        self.num_bytes += len(document.text)
        if self.num_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = pq.ParquetWriter(self.path, DOCUMENT_SCHEMA, compression="zstd")
            self.file.write_table(pa.Table.from_pylist(self.rows, schema=DOCUMENT_SCHEMA))
            self.rows, self.num_bytes = [], 0

    def close(self) -> None:
        self.flush()
        if self.file is not None:
            self.file.close()


def document_columns(document: Document) -> Document:
    """Keep of a document that datatrove read back only what the schema names."""
    document.metadata = {key: document.metadata.get(key) for key in ("source", "date")}
    return document


def write_documents(documents, rank: int, world_size: int, folder: Path) -> None:
    writer = DocumentWriter(folder / f"{rank:05d}.parquet")
    for document in documents:
        writer.write(document_columns(document))
    writer.close()


def plan_splits(folder: Path, data: Data) -> tuple[dict[str, str], Counter | None]:
    """Choose the held-out documents of each source.

    Families of documents (each document by itself unless data.family_containment is set) are taken in the order of
    a hash of their content, until the split's share of the source's bytes is reached; one that is larger than what
    is left stays in train. Where even the smallest is larger than the share, it is taken all the same.

    Returns: document id -> split for everything held out, and the number of families of each source.
    Raises: RecipeError: a source too small to give every split a family.
    """
    table = pq.read_table(folder, columns=["id", "source"])
    ids, sources = table["id"].to_pylist(), table["source"].to_pylist()
    files = sorted(folder.glob("*.parquet"))
    sizes = np.concatenate([text_bytes(file) for file in files]) if files else np.array([])
    if data.family_containment is None:
        labels = np.arange(len(ids))
    else:
        labels = find_families(
            tqdm(texts(files), total=len(ids), desc="prepare: families", leave=False), data.family_containment
        )
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(int(label), []).append(index)
    by_hash = sorted(members.values(), key=lambda family: min(ids[index] for index in family))

    held_out: dict[str, str] = {}
    problems = []
    for source in data.sources:
        own = {index for index, name in enumerate(sources) if name == source.name}
        families = [f for f in by_hash if not own.isdisjoint(f) and ids[f[0]] not in held_out]
        weighed = [(sum(int(sizes[index]) for index in own.intersection(family)), family) for family in families]
        if len(weighed) < len(SPLITS):
            problems.append(
                f"data.sources: {source.name}: {len(weighed)} distinct documents are left after cleaning, and train, "
                f"validation and test need one each; add text, or lower data.min_document_bytes="
                f"{data.min_document_bytes}"
            )
            continue
        total_bytes = sum(int(sizes[index]) for index in own)
        for split, fraction in (("test", data.splits.test_fraction), ("validation", data.splits.validation_fraction)):
            left_bytes = min(fraction * total_bytes, data.splits.max_bytes)
            chosen, rest = [], []
            for weight, family in weighed:
                taken = weight <= left_bytes
                left_bytes -= weight if taken else 0
                (chosen if taken else rest).append((weight, family))
            if not chosen:
                chosen = [min(rest, key=lambda pair: pair[0])]
                rest.remove(chosen[0])
            held_out |= {ids[index]: split for _, family in chosen for index in family}
            weighed = rest
    if problems:
        raise RecipeError(*problems)
    if data.family_containment is None:
        return held_out, None
    return held_out, Counter(name for family in by_hash for name in {sources[index] for index in family})


def texts(files: list[Path]) -> Iterator[str]:
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=["text"], batch_size=256):
            yield from batch["text"].to_pylist()


def text_bytes(file: Path) -> np.ndarray:
    """Return the bytes of each text of a Parquet file, which Arrow knows without decoding it."""
    batches = pq.ParquetFile(file).iter_batches(columns=["text"], batch_size=1024)
    return np.concatenate([pc.binary_length(batch["text"]).to_numpy() for batch in batches])


def write_splits(documents, rank: int, world_size: int, folder: Path, held_out: dict[str, str], counts: Path) -> None:
    """Write each document below its split and source."""
    writers: dict[tuple[str, str], DocumentWriter] = {}
    tally = Tally(counts, "split", rank)
    for document in documents:
        document = document_columns(document)
        split, source = held_out.get(document.id, "train"), document.metadata["source"]
        if (split, source) not in writers:
            writers[split, source] = DocumentWriter(folder / split / source / f"{rank:05d}.parquet")
        writers[split, source].write(document)
        tally.add(f"{source}/{split}", len(document.text.encode()))
    for writer in writers.values():
        writer.close()
    tally.write()


def explain_empty(source: str, counts: dict[str, tuple[int, int]]) -> str:
    """Say of a source without documents where its examples went."""
    reasons = {label.split(":")[1]: n for label, (n, _) in counts.items() if label.startswith(f"{source}/dropped:")}
    found = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items()) or "no example was found"
    return f"data.sources: {source}: no document is left of it ({found}); look at its files and at data.extract_text"


def sum_counts(folder: Path, name: str) -> dict[str, tuple[int, int]]:
    """Add up what the tasks of a step counted: label -> (documents, bytes)."""
    totals: dict[str, tuple[int, int]] = {}
    for file in sorted(folder.glob(f"{name}.*.json")):
        for label, (documents, num_bytes) in json.loads(file.read_text()).items():
            before = totals.get(label, (0, 0))
            totals[label] = (before[0] + documents, before[1] + num_bytes)
    return totals


def gather_stats(sources: list[Source], counts: Path, families: Counter | None) -> dict:
    """Account for every document read: it is in one split, or dropped under one reason."""
    totals: dict[str, tuple[int, int]] = {}
    for name in ("read", "distinct", "unique", "kept", "split"):
        totals |= sum_counts(counts, name)
    stats = {}
    for source in sources:

        def total(label: str, source: str = source.name) -> np.ndarray:
            return np.array(totals.get(f"{source}/{label}", (0, 0)))

        dropped = {
            label.split(":")[1]: np.array(value)
            for label, value in totals.items()
            if label.startswith(f"{source.name}/dropped:")
        }
        everything = total("read") + sum(dropped.values(), np.zeros(2, dtype=int))
        dropped["exact_duplicate"] = total("read") - total("distinct")
        dropped["near_duplicate"] = total("distinct") - total("unique")
        dropped["benchmark_overlap"] = total("unique") - total("kept")
        kept = {split: total(split) for split in SPLITS}
        assert (everything == sum(kept.values()) + sum(dropped.values())).all(), f"{source.name}: {dropped} {kept}"
        stats[source.name] = {
            "domain": source.label,
            "license": source.license,
            "url": source.url,
            "path": source.path,
            "revision": source.revision,
            "documents_in": int(everything[0]),
            "bytes_in": int(everything[1]),
            "dropped": {reason: counted(value) for reason, value in sorted(dropped.items()) if value[0]},
            "kept": {split: counted(value) for split, value in kept.items()},
            "families": families and families[source.name],
            "personal_data": {
                label.split(":")[1]: number
                for label, (number, _) in sorted(totals.items())
                if label.startswith(f"{source.name}/personal_data:")
            },
        }
    return {"sources": stats}


def counted(value: Iterable[int]) -> dict[str, int]:
    documents, num_bytes = value
    return {"documents": int(documents), "bytes": int(num_bytes)}


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    if options.dry_run:
        for source, units in plan_parts(recipe.data):
            print(f"{source.name}: {len(units)} files, {sum(unit.size_bytes for unit in units):,} bytes")
        return
    if is_finished(recipe, "prepare", options.overwrite):
        print(f"prepare: nothing to do, {recipe.run.output_dir}/documents is up to date")
        return
    stats = prepare(recipe)["sources"]
    kept = [split for source in stats.values() for split in source["kept"].values()]
    print(
        f"prepare: kept {sum(k['documents'] for k in kept):,} of "
        f"{sum(source['documents_in'] for source in stats.values()):,} documents, "
        f"{sum(k['bytes'] for k in kept) / 1e6:.1f} MB of {len(stats)} sources, "
        f"in {recipe.run.output_dir}/documents"
    )


if __name__ == "__main__":
    run_command(main)
