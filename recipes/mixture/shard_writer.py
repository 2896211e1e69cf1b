# SPDX-License-Identifier: Apache-2.0
"""Write token shards: the end-of-text token, then each document followed by it, and an index of documents."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from corpus.pipeline_executor import TaskProgress
from mixture.shards import DOCUMENT_RECORD
from recipe_config import RecipeError
from vocabulary.token_bytes import refuse_changed_text, token_bytes


# The tokenizer needs about 200 bytes of memory a byte of text, so longer documents are encoded in pieces.
MAX_PIECE_CHARACTERS = 1_000_000


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest unsigned type that holds every token id; a smaller one would wrap without an error."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer so that it encodes documents whole, and a control token spelled out in one as text."""
    return encode_as_text(Tokenizer.from_file(str(folder / "tokenizer.json")))


def encode_as_text(tokenizer: Tokenizer) -> Tokenizer:
    """Set a tokenizer to encode every text whole, and control tokens spelled out in it as text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_of_text(folder: Path) -> str:
    """Return the token between documents, the tokenizer's eos token, such as `<|endoftext|>`."""
    token = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"]
    return token if isinstance(token, str) else token["content"]


def split_at_lines(text: str) -> Iterator[str]:
    """Split a text into pieces of at most MAX_PIECE_CHARACTERS, each at its last line end if it has one."""
    start = 0
    while start < len(text):
        end = start + MAX_PIECE_CHARACTERS
        if end < len(text):
            line_end = text.rfind("\n", start, end)
            end = line_end + 1 if line_end > start else end
        yield text[start:end]
        start = end


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return a document's tokens as int64, without special tokens."""
    # A fourth faster than `encode`, which records offsets; batches of one, so that no threads start.
    found = [tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0].ids for piece in split_at_lines(text)]
    return np.concatenate([np.array(ids, dtype=np.int64) for ids in found])


def write_shard(
    documents, rank: int, world_size: int, files: list[tuple[Path, Path]], tokenizer_folder, notes
) -> None:
    """Tokenize one Parquet file into one shard and its index."""
    source, target = files[rank]
    tokenizer = load_tokenizer(tokenizer_folder)
    end = end_of_text(tokenizer_folder)
    end_id, table = tokenizer.token_to_id(end), token_bytes(tokenizer)
    dtype = token_dtype(tokenizer.get_vocab_size())
    progress = TaskProgress(notes, rank)
    target.parent.mkdir(parents=True, exist_ok=True)
    records = []
    with target.open("wb") as shard:
        shard.write(np.array([end_id], dtype=dtype).tobytes())
        position = 1
        for batch in pq.ParquetFile(source).iter_batches(columns=["id", "text"], batch_size=64):
            for row in batch.to_pylist():
                tokens = encode(tokenizer, row["text"])
                if (tokens == end_id).any():
                    raise RecipeError(f"{source}: document {row['id']}: its text encodes to {end}")
                refuse_changed_text(row["text"], tokens.tolist(), table, f"{source}: document {row['id']}")
                shard.write(np.append(tokens, end_id).astype(dtype).tobytes())
                position += len(tokens) + 1
                num_bytes = len(row["text"].encode())
                records.append((position - 1, num_bytes, row["id"].encode()))
                progress.add(num_bytes)
    target.with_suffix(".index").write_bytes(np.array(records, dtype=DOCUMENT_RECORD).tobytes())
    progress.note()
