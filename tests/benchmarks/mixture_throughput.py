# SPDX-License-Identifier: Apache-2.0
"""How many tokens a second one process reads at random places, through the code that training reads with.

    PYTHONPATH=recipes python tests/benchmarks/mixture_throughput.py            # 1 GB of tokens, page cache warm
    PYTHONPATH=recipes python tests/benchmarks/mixture_throughput.py --gigabytes 8 --folder /mnt/disk

Prints, for each sequence length, the rate of the best of several runs (by the clock, and by the processor time that
the process got, which other work on the machine moves less), where a sequence's time goes, and how much memory the
process took beside the pages of the token files.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mixture.batches import MicroBatches, document_positions
from mixture.order import TokenMixture
from mixture.shards import TokenShards
from mixture.skips import SkippedDocuments


VOCAB_SIZE = 32_768
SHARD_TOKENS = 50_000_000
SHARES = {"domain": 0.51, "general": 0.49}
BATCH_SIZE = 8
RUNS = 9


def write_tokens(folder: Path, num_tokens: int) -> None:
    """Write random tokens with ends of text about as far apart as in web text: log-normal, median 400 tokens."""
    generator = np.random.default_rng(0)
    sources = {}
    for name in SHARES:
        (folder / name).mkdir(parents=True)
        shards = []
        for number in range(max(1, num_tokens // len(SHARES) // SHARD_TOKENS)):
            size = min(SHARD_TOKENS, num_tokens // len(SHARES))
            tokens = generator.integers(1, VOCAB_SIZE, size, dtype=np.uint16)
            ends = np.cumsum(generator.lognormal(np.log(400), 1.2, size // 300).astype(int) + 2)
            tokens[ends[ends < size]] = tokens[0] = 0
            file = folder / name / f"train-{number:05d}.ds"
            tokens.astype("<u2").tofile(file)
            shards.append({"file": f"{name}/{file.name}", "tokens": size})
        total = sum(shard["tokens"] for shard in shards)
        sources[name] = {"train": {"tokens": total, "bytes": int(total * 4.4), "shards": shards}}
    manifest = {"dtype": "uint16", "eos_token_id": 0, "vocab_size": VOCAB_SIZE, "sources": sources}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def best_seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    seconds = []
    for _ in range(RUNS):
        started = clock()
        run()
        seconds.append(clock() - started)
    return min(seconds)


def own_memory_mib() -> float:
    """Return the memory of this process that is no page of a file (MiB)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def measure(folder: Path, sequence_length: int) -> str:
    """Return one line of the table: the whole, and its parts one at a time."""
    before = own_memory_mib()
    shards = TokenShards(folder, list(SHARES), sequence_length)
    mixture = TokenMixture(shards, {0: SHARES}, seed=0)
    byte_lengths = np.full(VOCAB_SIZE, 4, dtype=np.uint16)
    batches = MicroBatches(mixture, SkippedDocuments(shards, []), byte_lengths, BATCH_SIZE, 0, 1)
    num_batches = max(20, (1 << 21) // (BATCH_SIZE * sequence_length))
    sequences = range(num_batches * BATCH_SIZE)
    locations = [mixture.locate(index) for index in sequences]
    tokens = np.stack([mixture.window(index) for index in range(BATCH_SIZE)])

    def read() -> None:
        for first in range(0, len(sequences), BATCH_SIZE):
            rows = np.empty_like(tokens)
            for row, location in zip(rows, locations[first : first + BATCH_SIZE], strict=True):
                row[:] = shards.read(location)

    def whole() -> None:
        for k in range(num_batches):
            batches[k]

    parts = (
        lambda: [mixture.locate(index) for index in sequences],
        read,
        lambda: [document_positions(tokens[:, :-1], shards.eos_token_id) for _ in range(num_batches)],
        lambda: [byte_lengths.take(tokens)[:, 1:].sum(axis=1) for _ in range(num_batches)],
    )
    rates = [
        len(sequences) * sequence_length / best_seconds(whole, c) / 1e6 for c in (time.perf_counter, time.process_time)
    ]
    per_sequence = [best_seconds(run) / len(sequences) * 1e6 for run in (whole, *parts)]
    figures = "".join(f"{rate:>12.1f}" for rate in rates) + "".join(f"{part:>11.1f}" for part in per_sequence)
    return f"{sequence_length:>8,}{figures}{own_memory_mib() - before:>9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the token files")
    parser.add_argument("--folder", help="where to put them; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_tokens(Path(folder), int(options.gigabytes * 1e9 / 2))
        print(f"{'sequence':>8}{'M tokens/s':>24}{'microseconds a sequence':>55}{'memory':>9}")
        print(f"{'length':>8}{'clock':>12}{'processor':>12}", end="")
        print("".join(f"{part:>11}" for part in ("all", "locate", "read", "positions", "bytes")), f"{'MiB':>8}")
        for sequence_length in (512, 2048, 8192):
            print(measure(Path(folder), sequence_length))


if __name__ == "__main__":
    main()
