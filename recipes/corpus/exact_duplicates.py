# SPDX-License-Identifier: Apache-2.0
"""Find exact duplicates with datatrove, and keep the text from the source named first in the recipe."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.dedup import ExactDedupConfig, ExactDedupFilter, ExactDedupSignature, ExactFindDedups

from corpus.accounting import count_documents
from corpus.dropped_samples import ExactSamples, no_samples


def find_exact_duplicates(
    run: Callable,
    documents: list,
    folder: Path,
    counts: Path,
    sources: list[str],
    name: str = "exact",
    new_samples: Callable = no_samples,
) -> list:
    """Run every pass of the search.

    Args:
        run: run(name, pipeline, tasks=..., total_bytes=...) of `prepare`.
        documents: steps that yield the documents.
        folder: for files that the passes and the returned steps exchange.
        counts: folder of the tallies; documents are counted before and after datatrove's filter, which does not count.
        sources: names, in the order of the recipe.
        name: of the search, to tell several apart; documents are counted as `<name>_in` and `<name>_out`.
        new_samples: new_samples(step, rank) returns the Samples of a task of the returned steps.

    Returns: steps that drop all copies but one, for the same documents divided among the same tasks.
    """
    config = ExactDedupConfig(
        content_getter=document_text, document_priority=partial(source_priority, sources=sources)
    )
    signatures, found = str(folder / "signatures"), str(folder / "found")
    run(f"{name} duplicates", [*documents, ExactDedupSignature(signatures, config)])
    run(f"{name} duplicates, find", [ExactFindDedups(signatures, found, config)], tasks=1)
    return [
        partial(count_documents, folder=counts, name=f"{name}_in"),
        ExactDedupFilter(found, config, ExactSamples(new_samples, name)),
        partial(count_documents, folder=counts, name=f"{name}_out"),
    ]


def document_text(document: Document) -> str:
    return document.text


def source_priority(document: Document, sources: list[str]) -> int:
    """Rank sources by their place in the recipe, the first highest, in datatrove's range of 1 to 65535."""
    return 65535 - sources.index(document.metadata["source"])
