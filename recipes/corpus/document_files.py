# SPDX-License-Identifier: Apache-2.0
"""Read and write documents: Parquet files of (id, source, text, date) whose bytes depend on the documents alone.

Files of held-out documents may have a fifth column, family, which evaluation reads.
"""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document


DOCUMENT_SCHEMA = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("text", pa.string()), ("date", pa.string())]
)
FAMILY = "family"
PLACE_SCHEMA = pa.schema(
    [("id", pa.string()), ("path", pa.string()), ("row", "int64")]
    + [("title", pa.string()), ("page_starts", pa.list_(pa.int64()))]
)
PLACES = "places.parquet"  # in documents/; it stays on this machine, since names of files can be confidential
ROW_GROUP_BYTES = 32 << 20


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
            self.rows, self.num_bytes = [], 0

    def close(self) -> None:
        self.flush()
        if self.file is not None:
            self.file.close()


def write_documents(documents, rank: int, world_size: int, folder: Path) -> None:
    """Write the documents of a task to folder/<rank>.parquet."""
    writer = DocumentWriter(folder / f"{rank:05d}.parquet")
    for document in documents:
        writer.write(document)
    writer.close()


def read_renamed(folder: Path) -> dict[str, str]:
    """Return id -> later id of the documents that lost passages, from the files of all tasks."""
    files = sorted(folder.glob("*.json"))
    return {old: new for file in files for old, new in json.loads(file.read_text()).items()}


def write_places(places: Path, renamed: dict[str, str], path: Path) -> None:
    """Write which file and row each document was read from, its title and its pages, whatever became of it later.

    Where its pages begin in the text is not known of a document that lost passages.

    Args:
        places: folder of JSON lines [id, file, row, title, starts of pages]; the last two may be absent or null.
        renamed: id -> later id, of documents that lost passages.
        path: Parquet file to write, in the order of reading.
    """
    with pq.ParquetWriter(path, PLACE_SCHEMA, compression="zstd") as writer:
        for file in sorted(places.glob("*.jsonl")):
            rows = []
            with file.open(encoding="utf-8") as lines:
                for document, name, row, *of_document in map(json.loads, lines):
                    title, starts = of_document or (None, None)
                    starts = None if document in renamed else starts
                    entry = {"id": renamed.get(document, document), "path": name, "row": row}
                    rows.append(entry | {"title": title, "page_starts": starts})
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema=PLACE_SCHEMA))


def texts(folder: Path) -> Iterator[str]:
    """Yield the texts of a folder's files, in the order of their names."""
    for file in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=["text"], batch_size=256):
            yield from batch["text"].to_pylist()


def sampled_texts(folder: Path, ids: set[str]) -> dict[str, str]:
    """Return document id -> text of the documents of a folder that are in `ids`."""
    found = {}
    for file in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=["id", "text"], batch_size=256):
            found |= {row["id"]: row["text"] for row in batch.to_pylist() if row["id"] in ids}
    return found
