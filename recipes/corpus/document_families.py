# SPDX-License-Identifier: Apache-2.0
"""Find families: documents that share long runs of words, such as the versions of one licence or one statute.

A family is held out as a whole; otherwise the model would be trained on parts of the held-out text.
"""

from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from corpus.words import ngram_hashes, word_hashes


FAMILY_NGRAM_WORDS = 13
# A document is compared with at most so many of the next larger ones that share one of its n-grams. In a family they
# are its members; a sentence that all documents share would otherwise make a pair of any two.
MAX_PARTNERS = 32
PAIRED_NGRAMS = 1 << 22  # of the pairs that are compared at a time


def word_ngrams(text: str, words: int = FAMILY_NGRAM_WORDS) -> np.ndarray:
    """Return the distinct hashes (uint64) of a text's word n-grams; none of a text with too few words."""
    hashes = word_hashes(text)
    return np.unique(ngram_hashes(hashes, words)) if len(hashes) >= words else np.zeros(0, dtype=np.uint64)


def find_families(texts: Iterable[str], containment: float) -> np.ndarray:
    """Label each text with its family.

    Two texts are related if they share at least the fraction `containment` of the n-grams of the one that has fewer.
    A family is a connected component of this relation.

    Args:
        texts: the documents, read once; each distinct n-gram of each takes about 50 bytes of memory at the peak.
        containment: 0 to 1.

    Returns: one int32 label a text.
    """
    ngrams = [word_ngrams(text) for text in texts]
    sizes = np.array([len(hashes) for hashes in ngrams], dtype=np.int64)
    labels = np.arange(len(sizes), dtype=np.int32)
    if not sizes.sum():
        return labels
    by_size = np.lexsort((labels, sizes))  # from here on a document's number is its place in this order
    sizes, documents = sizes[by_size], np.repeat(labels, sizes[by_size])
    _, columns, occurrences = np.unique(
        np.concatenate([ngrams[place] for place in by_size]), return_inverse=True, return_counts=True
    )
    del ngrams
    occurrences = occurrences[columns]
    is_shared = occurrences > 1  # an n-gram of one document relates it to no other
    incidence = csr_array(
        (np.ones(is_shared.sum(), dtype=np.int32), (documents[is_shared], columns[is_shared])),
        shape=(len(sizes), columns.max() + 1),
    )
    # Of n-grams in the order of their rarity, a related text has one of the first of the smaller one's: the others are
    # fewer than what is shared. Where documents share a common sentence alone, none of these is of it.
    first = sizes - np.maximum(np.ceil(containment * sizes), 1).astype(np.int64) + 1
    rarest = np.lexsort((columns, occurrences, documents))
    place = np.arange(len(rarest)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    probes = np.zeros(len(rarest), dtype=bool)
    probes[rarest[(place < first[documents]) & is_shared[rarest]]] = True

    # The documents of each n-gram, smallest first, one n-gram after the other.
    order = np.flatnonzero(is_shared)[np.lexsort((documents[is_shared], columns[is_shared]))]
    listed, of_ngram, is_probe = documents[order], columns[order], probes[order]
    edges = np.zeros((0, 2), dtype=np.int64)
    for step in range(1, min(MAX_PARTNERS, len(sizes) - 1) + 1):
        partners = np.flatnonzero(is_probe[:-step] & (of_ngram[:-step] == of_ngram[step:]))
        if not len(partners):
            break
        pairs = np.stack([listed[partners], listed[partners + step]], axis=1)
        pairs = np.unique(pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]], axis=0)
        edges = np.concatenate([edges, pairs[are_related(pairs, incidence, sizes, containment)]])
        graph = coo_array((np.ones(len(edges), dtype=np.int8), tuple(edges.T)), shape=(len(sizes),) * 2)
        labels = connected_components(graph, directed=False)[1]
    families = np.empty_like(labels)
    families[by_size] = labels
    return families


def are_related(pairs: np.ndarray, incidence: csr_array, sizes: np.ndarray, containment: float) -> np.ndarray:
    """Return a mask of the pairs (smaller, larger) that share enough n-grams."""
    related = np.zeros(len(pairs), dtype=bool)
    lengths = np.diff(incidence.indptr)
    ends = np.cumsum(lengths[pairs].sum(axis=1))
    start = 0
    while start < len(pairs):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + PAIRED_NGRAMS, side="right")), start + 1)
        smaller, larger = pairs[start:stop].T
        common = incidence[smaller].multiply(incidence[larger]).sum(axis=1)
        related[start:stop] = common >= containment * sizes[smaller]
        start = stop
    return related
