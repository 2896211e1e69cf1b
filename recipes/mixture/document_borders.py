# SPDX-License-Identifier: Apache-2.0
"""Where the documents of a batch begin, as attention without a mask takes it: cumulative lengths.

A kernel starts blocks for every document of the list, empty ones included, so the list is not as long as a batch has
tokens. Nearly all batches of a corpus need the same length of it, which compiles once; a batch with more documents
doubles it.
"""

import numpy as np
import torch
from torch import Tensor


TOKENS_PER_DOCUMENT = 128  # room for one document in so many tokens, beside one in each row


def cumulative_lengths(position_ids: np.ndarray, padded: bool = False) -> Tensor:
    """Return the tokens before each document of a batch whose rows follow each other, and before its end.

    Args:
        position_ids: (batch_size, sequence_length), 0 where a document begins, as at the beginning of each row.
        padded: documents of one token that follow each other in a row are padding, which nothing scores: count them
            as one document.

    Returns: int32; empty documents at the end fill it up.
    """
    begins = position_ids == 0
    if padded:
        alone = begins & np.pad(begins[:, 1:], ((0, 0), (0, 1)), constant_values=True)
        begins[:, 1:] &= ~(alone[:, 1:] & alone[:, :-1])
    starts = np.flatnonzero(begins)
    room = len(position_ids) + position_ids.size // TOKENS_PER_DOCUMENT
    while room < len(starts):
        room *= 2
    lengths = np.full(room + 1, position_ids.size, dtype=np.int32)
    lengths[: len(starts)] = starts
    return torch.from_numpy(lengths)
