# SPDX-License-Identifier: Apache-2.0
"""The documents of a leak audit: some that were trained on, and some of the same sources that were held out.

Both are those with the lowest ids. An id is a hash of the text, so neither their place nor their content decides.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from mixture.ledger import Ledger


HELD_OUT_SPLITS = ("test", "validation")  # future is of another time, so its loss differs for that alone
# Of a run that read a part of its text once, most documents of the training split were not trained on.
MOST_CANDIDATES = 20_000  # of a source, that the ledger is asked about
MOST_CHARACTERS_PER_TOKEN = 16
CANDIDATE = np.dtype([("id", "S32"), ("shard", "<u4"), ("start", "<u8"), ("end", "<u8")])


class AuditedDocument(NamedTuple):
    """The beginning of a document.

    Attributes:
        document: its id.
        source: its source.
        times_trained: steps that had its beginning among their targets, the fewest of any token; 0: held out.
        tokens: its first tokens, int64, without the token that begins a document.
    """

    document: str
    source: str
    times_trained: int
    tokens: np.ndarray


def choose_trained(ledger: Ledger, per_source: int, least_tokens: int, most_tokens: int) -> list[AuditedDocument]:
    """Choose documents of which every one of the first least_tokens tokens was trained on.

    Args:
        ledger: of the run, which is finished.
        per_source: documents of each source; fewer where there are not as many.
        least_tokens: of a document.
        most_tokens: of a document that are read.
    """
    chosen: list[AuditedDocument] = []
    for source, name in enumerate(ledger.shards.names):
        own: list[AuditedDocument] = []
        for candidate in find_candidates(ledger, source, least_tokens):
            document, shard = candidate["id"].decode(), int(candidate["shard"])
            start, end = int(candidate["start"]), int(candidate["end"])
            if times := times_trained(ledger, document, source, shard, start, start + least_tokens):
                tokens = ledger.shards.shards[source][shard][start : min(end, start + most_tokens)]
                own.append(AuditedDocument(document, name, times, tokens.astype(np.int64)))
            if len(own) == per_source:
                break
        chosen += own
    return chosen


def find_candidates(ledger: Ledger, source: int, least_tokens: int) -> np.ndarray:
    """Return the CANDIDATEs of a source with the lowest ids, in their order."""
    lowest = np.empty(0, CANDIDATE)
    for shard in range(len(ledger.shards.files[source])):
        index = ledger.shards.index(source, shard)
        own = np.empty(len(index), CANDIDATE)
        own["id"], own["shard"], own["end"] = index["id"], shard, index["end"]
        own["start"][:1], own["start"][1:] = 1, index["end"][:-1] + len(ledger.shards.ends.between)
        own = own[own["end"] >= own["start"] + least_tokens]
        lowest = np.sort(np.concatenate([lowest, own]), order="id")[:MOST_CANDIDATES]
    return lowest


def times_trained(ledger: Ledger, document: str, source: int, shard: int, start: int, end: int) -> int:
    """Return in how many steps a document's tokens [start, end) of a shard were targets: the fewest of any token."""
    length, counts = ledger.sequence_length, []
    while start < end:
        until = min(end, (start - 1) // length * length + length + 1)  # where the next window's targets begin
        visits = ledger.visits(source, shard, start, until)
        counts.append(sum(not ledger.is_skipped(visit["step"], document) for visit in visits))
        start = until
    return min(counts)


def choose_held_out(
    documents: Path, tokenizer: Tokenizer, names: list[str], per_source: int, least_tokens: int, most_tokens: int
) -> list[AuditedDocument]:
    """Choose documents of the validation and test splits.

    Args:
        documents: folder of the run.
        tokenizer: of the run, as mixture.shard_writer.load_tokenizer loads it.
        names: the sources.
        per_source: as in choose_trained, like the last two.
        least_tokens: of a document.
        most_tokens: of a document that are read.
    """
    chosen: list[AuditedDocument] = []
    for name in names:
        files = [path for split in HELD_OUT_SPLITS for path in sorted((documents / split / name).glob("*.parquet"))]
        rows = [row for path in files for row in pq.read_table(path, columns=["id", "text"]).to_pylist()]
        own: list[AuditedDocument] = []
        for row in sorted(rows, key=lambda row: row["id"]):
            beginning = row["text"][: MOST_CHARACTERS_PER_TOKEN * most_tokens]
            ids = tokenizer.encode(beginning, add_special_tokens=False).ids[:most_tokens]
            if len(ids) >= least_tokens:
                own.append(AuditedDocument(row["id"], name, 0, np.array(ids, np.int64)))
            if len(own) == per_source:
                break
        chosen += own
    return chosen
