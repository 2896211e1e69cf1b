# SPDX-License-Identifier: Apache-2.0
"""For each span of a text that stands in training documents: which ones, where, how often, and when in training."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from corpus.document_files import texts
from corpus.pages import page_of
from mixture.ledger import Ledger, describe_documents
from provenance.text_index import STRIDE, TextIndex
from recipe_config import Recipe
from vocabulary.token_bytes import token_bytes


DOCUMENTS_SHOWN = 10  # of a span
MOST_CHARACTERS_PER_TOKEN = 16
HELD_OUT_PASSAGES = 100  # that the baseline is measured on
AROUND_BYTES = 120  # of a document's text that are shown before and after a span


class Tracer:
    """The training documents of a run, open for the question where a text comes from.

    Args:
        run: the run folder.
        recipe: of the run, for the licences.
        index: of its training documents.
        tokenizer: of the run. It only counts tokens: those that lie wholly in a span.
        ledger: of the run; None before its first checkpoint.
        trained_steps: that the run has made.
        least_tokens: of the shortest span that counts.
    """

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        index: TextIndex,
        tokenizer: Tokenizer,
        ledger: Ledger | None,
        trained_steps: int,
        least_tokens: int,
    ):
        self.run, self.index, self.tokenizer, self.ledger = run, index, tokenizer, ledger
        self.trained_steps, self.least_tokens = trained_steps, least_tokens
        self.licences = {source.name: source.license for source in recipe.data.sources}
        self.table = token_bytes(tokenizer)
        self.byte_lengths = np.array([len(data) for data in self.table])

    def trace(self, text: str) -> dict:
        """Return which spans of a text stand in training documents, and where these are.

        Returns: text, tokens, covered_fraction (of its tokens in spans), spans, the longest first, each with begin and
            end (characters of text), tokens, count (places in the training documents) and the first documents; and
            pieces, see cut_at_spans.
        """
        traced = self.find_spans(text)
        for span in traced["spans"]:
            passage = text[span["begin"] : span["end"]].encode()
            span["count"] = self.index.count(passage)
            span["documents"] = self.describe_places(passage, self.index.find(passage, DOCUMENTS_SHOWN))
        return traced

    def find_spans(self, text: str) -> dict:
        """Return what trace does, without count and documents."""
        data, ends = text.encode(), self.byte_ends(text)
        starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        spans, covered = [], np.zeros(len(ends), bool)
        for begin, end in self.index.spans(data, max(STRIDE, self.least_tokens)):  # a token has at least one byte
            inside = (starts >= begin) & (ends <= end)
            if inside.sum() >= self.least_tokens:
                covered |= inside
                first = len(data[:begin].decode(errors="ignore"))  # of the characters that are whole
                first += len(data[:begin]) > len(text[:first].encode())
                last = len(data[:end].decode(errors="ignore"))
                spans.append({"begin": first, "end": last, "tokens": int(inside.sum())})
        spans.sort(key=lambda span: (-span["tokens"], span["begin"]))
        fraction = float(covered.mean()) if len(covered) else 0.0
        pieces = cut_at_spans(text, spans)
        return {"text": text, "tokens": len(ends), "covered_fraction": fraction, "spans": spans, "pieces": pieces}

    def byte_ends(self, text: str) -> np.ndarray:
        """Return the position in the text's bytes at which each of its tokens ends."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return np.cumsum(self.byte_lengths[ids]) if ids else np.empty(0, np.int64)

    def describe_places(self, passage: bytes, places: list[tuple[str, str, int]]) -> list[dict]:
        """Return the documents that hold a passage at (document id, source, first byte)."""
        ids = {document for document, *_ in places}
        texts_of, origins, described = read_documents(self.run, ids), describe_documents(self.run, ids), []
        for document, source, first in places:
            data, end = texts_of[document]["text"].encode(), first + len(passage)
            steps = self.steps_of(document, len(data), first, end)
            described.append(
                {
                    "document": document,
                    "source": source,
                    "license": self.licences.get(source),
                    "date": texts_of[document]["date"],
                    "places": origins[document]["places"],
                    "title": origins[document]["title"],
                    "page": page_of(origins[document]["page_starts"], len(data[:first].decode(errors="ignore"))),
                    "first_byte": first,
                    "document_bytes": len(data),
                    "before": data[max(0, first - AROUND_BYTES) : first].decode(errors="ignore"),
                    "after": data[end : end + AROUND_BYTES].decode(errors="ignore"),
                    "steps": steps,
                }
            )
        return described

    def steps_of(self, document: str, document_bytes: int, begin: int, end: int) -> list[int] | None:
        """Return the steps made in which bytes [begin, end) of a document were targets; None before training."""
        if self.ledger is None:
            return None
        shards, steps = self.ledger.shards, set()
        for source, shard, first, after in shards.find_documents([document])[document]:
            ends = np.cumsum(self.byte_lengths[shards.shards[source][shard][first : after - 1]])
            if len(ends) and ends[-1] == document_bytes:  # else the tokenizer is not byte-level: any of its tokens
                after = first + int(np.searchsorted(ends, end)) + 1
                first += int(np.searchsorted(ends, begin, side="right"))
            for visit in self.ledger.visits(source, shard, first, after):
                if visit["step"] <= self.trained_steps and not self.ledger.is_skipped(visit["step"], document):
                    steps.add(visit["step"])
        return sorted(steps)

    def measure_baseline(self, passage_tokens: int) -> dict:
        """Return how long the longest span of each of some held-out passages is.

        Training documents were not chosen to hold them, so a span that is no longer says nothing about its source.

        Args:
            passage_tokens: of each passage: as many as the text has that is compared with them.

        Returns: passages, and median_tokens, p95_tokens and most_tokens, None without held-out text; 0 stands for a
            passage without a span.
        """
        folders = [
            path for split in ("test", "validation") for path in sorted((self.run / "documents" / split).glob("*"))
        ]
        longest: list[int] = []
        for folder in folders:
            for _, text in zip(range(-(-HELD_OUT_PASSAGES // len(folders))), texts(folder), strict=False):
                ends = self.byte_ends(text[: passage_tokens * MOST_CHARACTERS_PER_TOKEN])[:passage_tokens]
                passage = text.encode()[: ends[-1]].decode(errors="ignore") if len(ends) else ""
                longest.append(max([span["tokens"] for span in self.find_spans(passage)["spans"]], default=0))
        if not longest:
            return {"passages": 0, "median_tokens": None, "p95_tokens": None, "most_tokens": None}
        median, p95 = np.quantile(longest, [0.5, 0.95], method="higher").tolist()
        return {"passages": len(longest), "median_tokens": median, "p95_tokens": p95, "most_tokens": max(longest)}


def cut_at_spans(text: str, spans: list[dict]) -> list[list]:
    """Divide a text where spans begin and end.

    Returns: [piece, position in `spans` of the longest span that holds it, or None] in order.
    """
    borders = sorted({0, len(text), *(span[end] for span in spans for end in ("begin", "end"))})
    pieces = []
    for begin, end in zip(borders[:-1], borders[1:], strict=True):
        holding = (number for number, span in enumerate(spans) if span["begin"] <= begin and end <= span["end"])
        pieces.append([text[begin:end], next(holding, None)])  # spans are sorted, the longest first
    return pieces


def read_documents(run: Path, ids: Iterable[str]) -> dict[str, dict]:
    """Return id -> text and date of training documents."""
    found: dict[str, dict] = {}
    for path in sorted((run / "documents" / "train").glob("*/*.parquet")):
        if wanted := [document for document in ids if document not in found]:
            table = pq.read_table(path, columns=["id", "text", "date"], filters=[("id", "in", wanted)])
            found |= {row["id"]: row for row in table.to_pylist()}
    return found
