# SPDX-License-Identifier: Apache-2.0
"""Write token shards: each document between the tokens that begin and end it, and an index of documents."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from corpus.pipeline_executor import TaskProgress
from mixture.shards import DOCUMENT_RECORD
from recipe_config import RecipeError
from vocabulary.document_ends import DocumentEnds, document_ends
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
    names, table = document_ends(tokenizer_folder), token_bytes(tokenizer)
    ends = DocumentEnds(*map(tokenizer.token_to_id, names))
    dtype = token_dtype(tokenizer.get_vocab_size())
    progress = TaskProgress(notes, rank)
    target.parent.mkdir(parents=True, exist_ok=True)
    records = []
    with target.open("wb") as shard:
        shard.write(np.array([ends.bos], dtype=dtype).tobytes())
        position = 1
        for batch in pq.ParquetFile(source).iter_batches(columns=["id", "text"], batch_size=64):
            for row in batch.to_pylist():
                tokens = encode(tokenizer, row["text"])
                if np.isin(tokens, ends).any():
                    raise RecipeError(f"{source}: document {row['id']}: its text encodes to one of {', '.join(names)}")
                refuse_changed_text(row["text"], tokens.tolist(), table, f"{source}: document {row['id']}")
                shard.write(np.append(tokens, ends.between).astype(dtype).tobytes())
                end = position + len(tokens)
                position = end + len(ends.between)
                num_bytes = len(row["text"].encode())
                records.append((end, num_bytes, row["id"].encode()))
                progress.add(num_bytes)
    target.with_suffix(".index").write_bytes(np.array(records, dtype=DOCUMENT_RECORD).tobytes())
    progress.note()
