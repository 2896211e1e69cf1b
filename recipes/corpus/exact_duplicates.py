# SPDX-License-Identifier: Apache-2.0
"""Exact duplicates, with datatrove: of equal texts the one from the source named first in the recipe stays."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.dedup import ExactDedupConfig, ExactDedupFilter, ExactDedupSignature, ExactFindDedups

from corpus.accounting import count_documents


def find_exact_duplicates(
    run: Callable, documents: list, folder: Path, counts: Path, sources: list[str], name: str = "exact"
) -> list:
    """Run every pass of the search.

    Args:
        run: run(name, pipeline, tasks=..., total_bytes=...) of `prepare`.
        documents: the steps that give the documents.
        folder: for what the passes leave each other and the returned steps.
        counts: folder of the tallies; datatrove's filter does not count, so documents are counted before and after.
        sources: names, in the order of the recipe.
        name: of the search, where there is more than one; documents are counted as `<name>_in` and `<name>_out`.

    Returns: steps for the same documents, divided among the same tasks, that leave out all copies but one.
    """
    config = ExactDedupConfig(
        content_getter=document_text, document_priority=partial(source_priority, sources=sources)
    )
    signatures, found = str(folder / "signatures"), str(folder / "found")
    run(f"{name} duplicates", [*documents, ExactDedupSignature(signatures, config)])
    run(f"{name} duplicates, find", [ExactFindDedups(signatures, found, config)], tasks=1)
    return [
        partial(count_documents, folder=counts, name=f"{name}_in"),
        ExactDedupFilter(found, config),
        partial(count_documents, folder=counts, name=f"{name}_out"),
    ]


def document_text(document: Document) -> str:
    return document.text


def source_priority(document: Document, sources: list[str]) -> int:
    """Rank sources by their place in the recipe, the first highest, in datatrove's range of 1 to 65535."""
    return 65535 - sources.index(document.metadata["source"])
