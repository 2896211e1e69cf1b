# SPDX-License-Identifier: Apache-2.0
"""Read and write documents: Parquet files of (id, source, text, date) whose bytes depend on the documents alone.

Files of held-out documents may have a fifth column, family, which evaluation reads.
"""

import json
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.data import Document

from atomic_files import read_record
from corpus.finished_tasks import note_written
from corpus.text_normalisation import in_document_form
from recipe_config import RecipeError


DOCUMENT_SCHEMA = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("text", pa.string()), ("date", pa.string())]
)
FAMILY = "family"
PLACE_FIELDS = [
    ("id", pa.string()),
    ("path", pa.string()),
    ("row", pa.int64()),
    ("title", pa.string()),
    ("page_starts", pa.list_(pa.int64())),
]
PLACE_SCHEMA, NOTED_PLACE_SCHEMA = pa.schema(PLACE_FIELDS), pa.schema([*PLACE_FIELDS, ("unit", pa.int64())])
PLACES = "places.parquet"  # in documents/; it stays on this machine, since names of files can be confidential
ROW_GROUP_BYTES = 32 << 20
FILE_BYTES = 256 << 20  # of text: so many tasks of later passes share what one task has read
BATCH_DOCUMENTS = 32


def in_form_of(documents: Path, text: str) -> str:
    """Return a text in the form of a folder's documents, to search for it there.

    Raises: RecipeError: it is not the documents/ folder of a finished run.
    """
    record = read_record(documents)
    if record is None or record["stage"] != "prepare":
        raise RecipeError(
            f"{documents} is not the documents/ folder of a finished run; name a run folder in which prepare has "
            "written them"
        )
    return in_document_form(text, record["settings"].get("normalise_text", True))


def document_id(text: str) -> str:
    """Return the id of a document: the first 128 bits of the sha256 of its text, in hex digits."""
    return sha256(text.encode()).hexdigest()[:32]


class DocumentWriter:
    """Write documents to one Parquet file in row groups of about 32 MB of text; no file for no documents.

    Args:
        path: of the file.
        families: document id -> family, for a column of them; None for no such column.
    """

    def __init__(self, path: Path, families: dict[str, str] | None = None):
        self.path, self.rows, self.num_bytes, self.file = path, [], 0, None
        self.written_bytes = 0
        self.families = families
        self.schema = DOCUMENT_SCHEMA if families is None else DOCUMENT_SCHEMA.append(pa.field(FAMILY, pa.string()))

    def write(self, document: Document) -> None:
        row = {"id": document.id, "text": document.text, FAMILY: (self.families or {}).get(document.id)}
        self.rows.append(row | {key: document.metadata.get(key) for key in ("source", "date")})
        self.num_bytes += len(document.text)
        if self.num_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = pq.ParquetWriter(self.path, self.schema, compression="zstd")
            self.file.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.written_bytes += self.num_bytes
            self.rows, self.num_bytes = [], 0

    def close(self) -> None:
        self.flush()
        if self.file is not None:
            self.file.close()
            note_written(self.path)


def write_documents(documents, rank: int, world_size: int, folder: Path, first_task: int = 0) -> None:
    """Write the documents of a task to folder/<task>-<number>.parquet, a new file after each FILE_BYTES.

    Args: first_task: the number of the task with rank 0.
    """
    number, writer = 0, None
    for document in documents:
        writer = writer or DocumentWriter(folder / f"{first_task + rank:05d}-{number:03d}.parquet")
        writer.write(document)
        if writer.written_bytes >= FILE_BYTES:
            writer.close()
            number, writer = number + 1, None
    if writer is not None:
        writer.close()


def document_files(folder: Path) -> list[Path]:
    """Return the files of a pass, in the order of their names."""
    return sorted(folder.glob("*.parquet"))


def count_tasks(folder: Path) -> int:
    """Return how many tasks read the files of a pass: one each, and one for no files."""
    return max(1, len(document_files(folder)))


def read_documents(documents, rank: int, world_size: int, folder: Path) -> Iterator[Document]:
    """Yield the documents of file number `rank` of a folder."""
    for path in document_files(folder)[rank : rank + 1]:
        for row in read_columns(path):
            yield Document(text=row.pop("text"), id=row.pop("id"), metadata=row)


def read_columns(path: Path, columns: list[str] | None = None) -> Iterator[dict]:
    """Yield the rows of a file of documents; in memory is one row group, never more.

    Args:
        path: of the file.
        columns: to read; None for all.
    """
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        for batch in file.iter_batches(BATCH_DOCUMENTS, row_groups=[group], columns=columns, use_threads=False):
            yield from batch.to_pylist()


class Place(NamedTuple):
    """Where a document was read: the file, the number of its unit in the task, and the row, counted from 1."""

    path: str
    unit: int
    row: int


class PlaceWriter:
    """Write the places of a task's documents to folder/<task>.parquet.

    folder/<task>.json gets {number of a unit: [file, rows]}, for the ranges whose first row is not known yet.
    """

    def __init__(self, folder: Path, task: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.places, self.ranges = folder / f"{task:05d}.parquet", [], {}
        self.file = pq.ParquetWriter(self.path, NOTED_PLACE_SCHEMA, compression="zstd")

    def write(self, document: str, place: Place, title: str | None, page_starts: list[int] | None) -> None:
        self.places.append({"id": document, **place._asdict(), "title": title, "page_starts": page_starts})
        if len(self.places) >= 1 << 16:
            self.flush()

    def flush(self) -> None:
        self.file.write_table(pa.Table.from_pylist(self.places, schema=NOTED_PLACE_SCHEMA))
        self.places = []

    def close(self) -> None:
        self.flush()
        self.file.close()
        self.path.with_suffix(".json").write_text(json.dumps(self.ranges))
        note_written(self.path, self.path.with_suffix(".json"))


def read_renamed(folder: Path) -> dict[str, str]:
    """Return id -> later id of the documents that lost passages, from the files of all tasks."""
    files = sorted(folder.glob("*.json"))
    return {old: new for file in files for old, new in json.loads(file.read_text()).items()}


def write_places(places: Path, renamed: dict[str, str], path: Path) -> None:
    """Write which file and row each document was read from, its title and its pages, whatever became of it later.

    Where its pages begin in the text is not known of a document that lost passages.

    Args:
        places: folder that `PlaceWriter` wrote; the rows of a range count from the range on.
        renamed: id -> later id, of documents that lost passages.
        path: Parquet file to write, in the order of reading.
    """
    old, new = pa.array(renamed.keys(), pa.string()), pa.array(renamed.values(), pa.string())
    rows_read: Counter = Counter()  # in the ranges so far of each file
    with pq.ParquetWriter(path, PLACE_SCHEMA, compression="zstd") as writer:
        for file in document_files(places):
            before = {}
            for unit, (name, rows) in json.loads(file.with_suffix(".json").read_text()).items():
                before[int(unit)] = rows_read[name]
                rows_read[name] += rows
            offsets = np.zeros(max(before, default=0) + 2, dtype=np.int64)
            offsets[list(before)] = list(before.values())
            for batch in pq.ParquetFile(file).iter_batches(1 << 16, use_threads=False):
                units = np.minimum(batch["unit"].to_numpy(), len(offsets) - 1)  # the last offset is 0
                later = new.take(pc.index_in(batch["id"], old))
                ids, rows = pc.coalesce(later, batch["id"]), batch["row"].to_numpy() + offsets[units]
                starts = pc.if_else(later.is_valid(), None, batch["page_starts"])
                columns = [ids, batch["path"], rows, batch["title"], starts]
                writer.write_batch(pa.record_batch(columns, schema=PLACE_SCHEMA))


def texts(folder: Path) -> Iterator[str]:
    """Yield the texts of a folder's files, in the order of their names."""
    for file in document_files(folder):
        yield from (row["text"] for row in read_columns(file, ["text"]))


def sampled_texts(folder: Path, ids: set[str]) -> dict[str, str]:
    """Return document id -> text of the documents of a folder that are in `ids`."""
    rows = (row for file in document_files(folder) for row in read_columns(file, ["id", "text"]))
    return {row["id"]: row["text"] for row in rows if row["id"] in ids}
