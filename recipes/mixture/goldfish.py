# SPDX-License-Identifier: Apache-2.0
"""Goldfish loss: the tokens that are left out of the loss, so that no passage is learned word for word.

Whether a token is left out follows from a hash of the tokens before it alone. So it is left out each time that its
passage is read: in every epoch and copy, however sequences are packed, and on any number of processes. Source: Hans et
al. 2024 (https://arxiv.org/abs/2406.10209).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mixture.permutation import mix
from mixture.shards import Location, TokenShards
from recipe_config import Goldfish


def left_out(shards: TokenShards, location: Location, sequence_length: int, goldfish: Goldfish) -> np.ndarray:
    """Return which labels of a sequence are left out, bool of shape (sequence_length,).

    The hash needs `context` tokens of the label's own document. The first labels of a document have fewer before
    them, so they always count: the first would otherwise be left out of every document or of none.
    """
    context, ends = goldfish.context, shards.ends
    first = location.start + 1  # the place of the first label in the shard
    begin = max(0, first - context)
    tokens = shards.shards[location.source][location.shard][begin : location.start + sequence_length]
    tokens = np.pad(tokens.astype(np.uint64), (context - (first - begin), 0), constant_values=ends.bos)
    in_document = ~sliding_window_view(np.isin(tokens, ends), context).any(axis=1)
    weights = np.array([mix(place) for place in range(context)], dtype=np.uint64)
    hashes = mix(sliding_window_view(tokens, context) @ weights)  # sums and products wrap at 64 bits
    return in_document & (hashes % goldfish.k == 0)
