# SPDX-License-Identifier: Apache-2.0
"""What a run holds of documents that have to be removed: the step that first read them, and what shows them."""

import html
import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
from tokenizers import Tokenizer

from corpus.document_files import read_columns
from mixture.ledger import Ledger
from vocabulary.token_bytes import token_bytes


PASSAGE_WORDS = 8  # in common with a document make a text show it
LEAST_CHARACTERS = 4  # of a vocabulary entry that could name somebody
SHOWN = ("*.json", "*.jsonl", "*.md", "*.html", "*.yaml")  # files of a run and of a release that hold text


def first_step(ledger: Ledger, documents: Iterable[str]) -> int | None:
    """Return the first step that was or will be trained on one of the documents; None if none is.

    Raises: RecipeError: a document is not in the training split.
    """
    steps = (visit["step"] for document in documents for visit in ledger.steps_of(document) if not visit["skipped"])
    return min(steps, default=None)


def read_removed(run: Path, documents: set[str]) -> list[str]:
    """Return the texts of training documents."""
    return [
        row["text"]
        for path in sorted((run / "documents" / "train").glob("*/*.parquet"))
        for row in read_columns(path, ["id", "text"])
        if row["id"] in documents
    ]


def find_entries(run: Path, documents: set[str], texts: list[str]) -> list[str]:
    """Return the tokenizer's entries that occur in the documents and in no other training document.

    All training text is read. Entries of fewer than LEAST_CHARACTERS are left out.
    """
    tokenizer = Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json"))
    decoded = {data.decode(errors="ignore") for data in token_bytes(tokenizer)}
    left = {
        entry for entry in decoded if len(entry.strip()) >= LEAST_CHARACTERS and any(entry in text for text in texts)
    }
    for path in sorted((run / "documents" / "train").glob("*/*.parquet")):
        for row in read_columns(path, ["id", "text"]):
            if row["id"] not in documents:
                left = {entry for entry in left if entry not in row["text"]}
    return sorted(left)


def passages(text: str) -> set[tuple[str, ...]]:
    """Return each PASSAGE_WORDS consecutive words of a text, whatever stands between them."""
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[start:] for start in range(PASSAGE_WORDS)), strict=False))


def find_mentions(run: Path, documents: set[str], texts: list[str]) -> list[dict]:
    """Return the files of a run and its releases, without documents/ and tokens/, that show the documents.

    Each has `file` and `shows`: the id of a document, words (PASSAGE_WORDS in a row) or, in a dataset, the document.
    """
    known = set().union(*map(passages, texts))
    found, places = [], [run, run / "eval", run / "trace", *run.glob("release*"), *run.glob("revisions/*")]
    for path in sorted({path for place in places for kind in SHOWN for path in place.glob(kind)}):
        written = path.read_text(encoding="utf-8", errors="replace")
        if any(document in written for document in documents):
            found.append({"file": str(path), "shows": "its id"})
        elif not known.isdisjoint(passages(plain_text(path.suffix, written))):
            found.append({"file": str(path), "shows": "its words"})
    for path in sorted(run.glob("release_dataset/*/*/*.parquet")):
        if documents & set(pq.read_table(path, columns=["id"])["id"].to_pylist()):
            found.append({"file": str(path), "shows": "the document"})
    return found


def plain_text(suffix: str, written: str) -> str:
    """Return the text of a file without the marks of its format that would stand between words."""
    if suffix == ".html":
        return html.unescape(re.sub(r"<[^>]*>", " ", written))
    return re.sub(r"\\[nrt]", " ", written) if suffix in (".json", ".jsonl") else written
