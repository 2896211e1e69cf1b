# SPDX-License-Identifier: Apache-2.0
"""The validation text of a source, in windows that score each token once."""

import json
from pathlib import Path

import numpy as np

from mixture.labels import IGNORED_LABEL
from mixture.shards import DOCUMENT_RECORD, manifest_ends, open_shard


class ValidationText:
    """The first documents of a source's validation split, in sequences; each token is predicted once.

    The tokens that begin and end documents are not scored; the first of them pads the last sequence. A document that
    does not fit continues in the next sequence without its earlier tokens as context, so bits per byte are a little
    above those of eval/bits_per_byte.py, whose window slides.

    Attributes:
        input_ids, labels: (num_sequences, sequence_length), int64; labels are IGNORED_LABEL where nothing is scored.
        bos_token_id: the token that begins a document.
        num_bytes: UTF-8 bytes of the documents.
    """

    def __init__(self, tokens: Path, source: str, sequence_length: int, max_bytes: int):
        manifest = json.loads((tokens / "manifest.json").read_text(encoding="utf-8"))
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        ends, self.num_bytes = manifest_ends(manifest), 0
        self.bos_token_id = ends.bos
        parts = []
        for shard in manifest["sources"][source]["validation"]["shards"]:
            index = np.fromfile((tokens / shard["file"]).with_suffix(".index"), dtype=DOCUMENT_RECORD)
            below = np.cumsum(index["num_bytes"]) - index["num_bytes"] < max_bytes - self.num_bytes
            index = index[below]
            if len(index):
                parts.append(open_shard(tokens, shard, dtype)[: int(index["end"][-1])].astype(np.int64))
                self.num_bytes += int(index["num_bytes"].sum())
        stream = np.concatenate(parts)
        num_sequences = -(-len(stream) // sequence_length)
        padded = np.full(num_sequences * sequence_length + 1, ends.bos)
        padded[: len(stream)] = stream
        self.input_ids = padded[:-1].reshape(num_sequences, sequence_length)
        labels = padded[1:].reshape(num_sequences, sequence_length)
        self.labels = np.where(np.isin(labels, ends), IGNORED_LABEL, labels)
