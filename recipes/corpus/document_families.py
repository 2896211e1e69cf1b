# SPDX-License-Identifier: Apache-2.0
"""Find families: documents that share long runs of words, such as the versions of one licence or one statute.

A family is held out as a whole; otherwise the model would be trained on parts of the held-out text.
"""

import re
from collections.abc import Iterable

import numpy as np
import xxhash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


FAMILY_NGRAM_WORDS = 13
# Chinese and Japanese are written without spaces, so there each character counts as a word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def word_ngrams(text: str, words: int = FAMILY_NGRAM_WORDS) -> np.ndarray:
    """Return the distinct hashes (uint64) of a text's case-folded word n-grams, empty for a shorter text."""
    found = WORD.findall(text.casefold())
    hashes = [xxhash.xxh64_intdigest(" ".join(found[i : i + words]).encode()) for i in range(len(found) - words + 1)]
    return np.unique(np.array(hashes, dtype=np.uint64))


def find_families(texts: Iterable[str], containment: float) -> np.ndarray:
    """Label each text with its family.

    Two texts are related if they share at least the fraction `containment` of the n-grams of the one that has fewer.
    A family is a connected component of this relation.

    Args:
        texts: the documents, read once; each distinct n-gram of each takes 8 bytes of memory.
        containment: 0 to 1.

    Returns: one int32 label a text.
    """
    ngrams = [word_ngrams(text) for text in texts]
    sizes = np.array([len(hashes) for hashes in ngrams], dtype=np.int64)
    if not sizes.sum():
        return np.arange(len(sizes), dtype=np.int32)
    documents = np.repeat(np.arange(len(sizes)), sizes)
    distinct, columns, occurrences = np.unique(np.concatenate(ngrams), return_inverse=True, return_counts=True)
    shared = occurrences[columns] > 1  # an n-gram of one document relates it to no other
    incidence = coo_array(
        (np.ones(shared.sum(), dtype=np.int32), (documents[shared], columns[shared])),
        shape=(len(sizes), len(distinct)),
    ).tocsr()
    common = (incidence @ incidence.T).tocoo()  # (documents, documents): n-grams in common
    smaller = np.minimum(sizes[common.row], sizes[common.col])
    related = common.data >= containment * smaller
    graph = coo_array(
        (np.ones(related.sum(), dtype=np.int8), (common.row[related], common.col[related])), shape=common.shape
    )
    return connected_components(graph, directed=False)[1]
