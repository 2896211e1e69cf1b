# SPDX-License-Identifier: Apache-2.0
"""Time, memory and disk of the index behind trace_text.py, and how soon it answers, at a size of text.

    PYTHONPATH=recipes python tests/benchmarks/text_index.py FOLDER --megabytes 1000

FOLDER is as for data_stages.py. Text is repeated up to the size, each time with other words exchanged, so that no long
passage stands in two places by repetition alone. The index is built in a temporary folder.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from atomic_files import file_sha256, hash_files, write_json
from provenance.text_index import build_index


PASSAGES = 200
PASSAGE_BYTES = 100


def varied_texts(folder: Path, num_bytes: int) -> Iterator[str]:
    """Yield documents up to a size; from the second time on, one word in eight is exchanged for another."""
    files, left, repetition = sorted(folder.glob("*/*.jsonl")), num_bytes, 0
    while left > 0:
        draw = random.Random(repetition)
        for path in files:
            for line in path.open(encoding="utf-8"):
                text = json.loads(line)["text"]
                if repetition:
                    words = text.split(" ")
                    for place in range(draw.randrange(8), len(words), 8):
                        words[place] = words[draw.randrange(len(words))]
                    text = " ".join(words)
                yield text
                left -= len(text.encode())
                if left <= 0:
                    return
        repetition += 1


def write_documents(run: Path, folder: Path, num_bytes: int) -> list[bytes]:
    """Write the documents of a run as prepare_data.py would, and return passages of some of them."""
    train = run / "documents" / "train" / "text"
    train.mkdir(parents=True)
    passages, rows, files, draw = [], [], {}, random.Random(0)
    for number, text in enumerate(varied_texts(folder, num_bytes)):
        rows.append({"id": f"{number:032x}", "text": text})
        data = text.encode()
        if len(passages) < PASSAGES and len(data) > 2 * PASSAGE_BYTES and draw.random() < 0.02:
            start = draw.randrange(len(data) - PASSAGE_BYTES)
            passages.append(data[start : start + PASSAGE_BYTES])
        if len(rows) == 5_000:
            files |= write_file(train, rows, len(files))
            rows = []
    files |= write_file(train, rows, len(files))
    record = {"format": 1, "settings": {}, "inputs": {}, "sha256": hash_files(files), "files": files}
    write_json(run / "documents" / "stage.json", record)
    return passages


def write_file(train: Path, rows: list[dict], number: int) -> dict:
    path = train / f"{number:05d}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return {f"train/text/{path.name}": {"bytes": path.stat().st_size, "sha256": file_sha256(path)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary)
        passages = write_documents(run, options.folder, options.megabytes * 1_000_000)
        started, clock = time.process_time(), time.perf_counter()
        index = build_index(run)
        seconds, clock = time.process_time() - started, time.perf_counter() - clock
        disk = sum(path.stat().st_size for path in (run / "trace").rglob("*") if path.is_file())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        started = time.perf_counter()
        found = sum(bool(index.find(passage, 10)) for passage in passages)
        answer = (time.perf_counter() - started) / len(passages)
        print("megabytes,seconds,clock_seconds,peak_megabytes,disk_megabytes,passages,found,milliseconds_a_passage")
        print(
            f"{options.megabytes},{seconds:.0f},{clock:.0f},{peak / 1e6:.0f},{disk / 1e6:.0f},{len(passages)},{found},"
            f"{answer * 1e3:.1f}"
        )


if __name__ == "__main__":
    main()
