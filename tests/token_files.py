# SPDX-License-Identifier: Apache-2.0
"""Token folders made for a test: real shards of a few tokens, or sparse ones of any size."""

import json
from pathlib import Path

import numpy as np

from mixture.shards import DOCUMENT_RECORD, TokenShards


def write_tokens(
    folder: Path,
    sources: dict[str, list[np.ndarray | int]],
    bytes_per_token: dict[str, float] | None = None,
    documents_per_shard: int = 0,
) -> Path:
    """Write a tokens/ folder.

    Args:
        folder: to make.
        sources: name -> its training shards, each its tokens or how many there are: then a file without content.
        bytes_per_token: UTF-8 bytes of a token of each source; 4 where nothing is said.
        documents_per_shard: length of each shard's document index, a file without content too.
    """
    manifest = {"dtype": "uint16", "eos_token_id": 0, "sources": {}}
    for name, shards in sources.items():
        (folder / name).mkdir(parents=True)
        entries = []
        for number, tokens in enumerate(shards):
            file = folder / name / f"train-{number:05d}.ds"
            size = tokens if isinstance(tokens, int) else len(tokens)
            with file.open("wb") as shard, file.with_suffix(".index").open("wb") as index:
                if not isinstance(tokens, int):
                    shard.write(tokens.astype("<u2").tobytes())
                shard.truncate(2 * size)
                index.truncate(documents_per_shard * DOCUMENT_RECORD.itemsize)
            entries.append({"file": f"{name}/{file.name}", "tokens": size})
        total = sum(entry["tokens"] for entry in entries)
        num_bytes = round(total * (bytes_per_token or {}).get(name, 4.0))
        manifest["sources"][name] = {"train": {"tokens": total, "bytes": num_bytes, "shards": entries}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def open_shards(folder: Path, sequence_length: int) -> TokenShards:
    names = json.loads((folder / "manifest.json").read_text())["sources"]
    return TokenShards(folder, list(names), sequence_length)
