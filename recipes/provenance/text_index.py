# SPDX-License-Identifier: Apache-2.0
"""Find every place where a passage stands in the training documents, whatever its length.

A shard of the index holds the text of some training documents and its suffixes in the order of their bytes, only those
that begin at every STRIDE-th byte. A passage of at least STRIDE bytes holds such a byte wherever it stands, so it is
found by looking up its first STRIDE suffixes and comparing the bytes before them. Bytes decide: how the tokenizer
splits the text does not matter.

On disk a byte of text takes 1 + 4 / STRIDE bytes, 1.5; while a shard is sorted, 5 times its text is in memory.
"""

import mmap
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pydivsufsort import divsufsort
from tqdm import tqdm

from atomic_files import discard, read_json, read_record, sync, write_json


STRIDE = 8  # bytes; a shorter passage is not found
SHARD_BYTES = 256 << 20  # of text, but for a longer document
SEPARATOR = b"\xff"  # after each document; no UTF-8 text has this byte, so no passage runs across
DOCUMENT = np.dtype([("start", "<u8"), ("id", "S32"), ("source", "<u2")])
WINDOW = 512  # bytes of a suffix that are looked up before the whole passage is
PLACES_AT_ONCE = 1 << 20  # whose preceding bytes are compared at once


def build_index(run: Path) -> "TextIndex":
    """Return the index of a run's training documents, after building what is missing of it.

    Each shard appears when it is whole, so a build that was stopped continues.

    Raises: OSError: disk full.
    """
    record = read_record(run / "documents")
    folder = run / "trace" / "index"
    made_from = {"documents": record["sha256"], "stride": STRIDE, "shard_bytes": SHARD_BYTES}
    if not (folder / "made_from.json").exists() or read_json(folder / "made_from.json") != made_from:
        if folder.exists():
            discard(folder)
        folder.mkdir(parents=True)
        write_json(folder / "made_from.json", made_from)
    if not (folder / "index.json").exists():
        total = sum(file["bytes"] for name, file in record["files"].items() if name.startswith("train/"))
        names, shards = sorted({path.parent.name for path in (run / "documents").glob("train/*/*.parquet")}), 0
        with tqdm(total=total, unit="B", unit_scale=True, desc="trace: index (compressed bytes)") as bar:
            for shards, documents in enumerate(divide(run / "documents" / "train", bar), start=1):
                write_shard(folder / f"{shards - 1:05d}", documents, names)
        write_json(folder / "index.json", {"sources": names, "shards": shards})
    return TextIndex(folder)


def divide(documents: Path, bar: tqdm) -> Iterator[list[tuple[str, str, bytes]]]:
    """Yield the (id, source, text) of the documents of each shard."""
    shard, size = [], 0
    for path in sorted(documents.glob("*/*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=["id", "text"])
            for document, text in zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True):
                data = text.encode()
                if shard and size + len(data) > SHARD_BYTES:
                    yield shard
                    shard, size = [], 0
                shard.append((document, path.parent.name, data))
                size += len(data) + 1
            bar.update(path.stat().st_size / file.num_row_groups)
    if shard:
        yield shard


def write_shard(folder: Path, documents: list[tuple[str, str, bytes]], names: list[str]) -> None:
    """Write one shard, unless it is there."""
    if folder.exists():
        return
    partial = folder.with_name(f".{folder.name}.tmp")
    if partial.exists():
        discard(partial)
    partial.mkdir()
    text = SEPARATOR.join([data for *_, data in documents] + [b""])
    starts = np.cumsum([0] + [len(data) + 1 for *_, data in documents])[:-1]
    records = [
        (start, document.encode(), names.index(source))
        for start, (document, source, _) in zip(starts, documents, strict=True)
    ]
    np.array(records, DOCUMENT).tofile(partial / "documents.bin")
    suffixes = divsufsort(text)
    suffixes[suffixes % STRIDE == 0].astype("<u4").tofile(partial / "suffixes.bin")
    (partial / "text.bin").write_bytes(text)
    for path in partial.iterdir():
        sync(path)
    partial.rename(folder)
    sync(folder.parent)


class Shard:
    """The text of some training documents and its sorted suffixes, mapped."""

    def __init__(self, folder: Path):
        with (folder / "text.bin").open("rb") as file:
            self.text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bytes = np.frombuffer(self.text, np.uint8)
        self.suffixes = np.memmap(folder / "suffixes.bin", "<u4", mode="r")
        self.documents = np.fromfile(folder / "documents.bin", DOCUMENT)

    def suffix(self, place: int, length: int) -> bytes:
        return self.text[int(place) : int(place) + length]

    def longest_suffix_match(self, passage: bytes) -> int:
        """Return how many first bytes of a passage stand at an indexed byte."""
        length = len(passage)
        after = bisect_left(self.suffixes, passage, key=lambda place: self.suffix(place, length))
        neighbours = self.suffixes[max(0, after - 1) : after + 1]
        found = (os.path.commonprefix([passage, self.suffix(place, length)]) for place in neighbours)
        return max(map(len, found), default=0)

    def places(self, passage: bytes) -> Iterator[np.ndarray]:
        """Yield arrays of the positions in the text at which a passage begins."""
        for skipped in range(STRIDE):
            rest, before = passage[skipped:], np.frombuffer(passage[:skipped], np.uint8)
            length = len(rest)

            def start_of(place: int, length: int = length) -> bytes:
                return self.suffix(place, length)

            first = bisect_left(self.suffixes, rest, key=start_of)
            last = bisect_right(self.suffixes, rest, lo=first, key=start_of)
            for begin in range(first, last, PLACES_AT_ONCE):
                found = self.suffixes[begin : min(last, begin + PLACES_AT_ONCE)].astype(np.int64) - skipped
                found = found[found >= 0]
                for offset, byte in enumerate(before):
                    found = found[self.bytes[found + offset] == byte]
                if len(found):
                    yield found

    def locate(self, places: np.ndarray) -> list[tuple[str, int, int]]:
        """Return (document id, number of its source, position of the byte in the document) of each place."""
        numbers = np.searchsorted(self.documents["start"], places, side="right") - 1
        documents = self.documents[numbers]
        positions = places - documents["start"].astype(np.int64)
        return [(d["id"].decode(), int(d["source"]), int(p)) for d, p in zip(documents, positions, strict=True)]


class TextIndex:
    """The index of a run's training documents, open for questions. Passages are bytes of UTF-8."""

    def __init__(self, folder: Path):
        about = read_json(folder / "index.json")
        self.sources = about["sources"]
        self.shards = [Shard(folder / f"{number:05d}") for number in range(about["shards"])]

    def holds(self, passage: bytes) -> bool:
        """Return whether a passage of at least STRIDE bytes stands in a training document."""
        return any(True for shard in self.shards for _ in shard.places(passage))

    def count(self, passage: bytes) -> int:
        """Return how often a passage of at least STRIDE bytes stands in the training documents."""
        return sum(len(found) for shard in self.shards for found in shard.places(passage))

    def find(self, passage: bytes, limit: int) -> list[tuple[str, str, int]]:
        """Return (document id, source, position in its text in bytes) of the first `limit` places of a passage."""
        located: list = []
        for shard in self.shards:
            places = np.sort(np.concatenate([np.empty(0, np.int64), *shard.places(passage)]))
            located += shard.locate(places[: limit - len(located)])
            if len(located) >= limit:
                break
        return [(document, self.sources[source], position) for document, source, position in located]

    def spans(self, text: bytes, least: int) -> list[tuple[int, int]]:
        """Return the longest passages of a text that stand in training documents, none within another.

        Args:
            text: any bytes.
            least: bytes of the shortest passage that counts, at least STRIDE.

        Returns: (begin, end) of each in bytes, in order.
        """
        starts = range(len(text))
        reach = [max(s.longest_suffix_match(text[start : start + WINDOW]) for s in self.shards) for start in starts]
        found, end = [], 0
        for begin in range(len(text) - least + 1):
            # What stands from here on holds an indexed byte within its first STRIDE bytes, so it reaches no further.
            limit = max(skipped + length for skipped, length in enumerate(reach[begin : begin + STRIDE]))
            limit = len(text) - begin if limit >= WINDOW else limit
            if limit < least or begin + limit <= end or not self.holds(text[begin : max(end, begin + least - 1) + 1]):
                continue
            low, high = max(end, begin + least - 1) + 1, begin + limit  # the passage ends at one of these
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if self.holds(text[begin:middle]) else (low, middle - 1)
            found.append((begin, low))
            end = low
        return found
