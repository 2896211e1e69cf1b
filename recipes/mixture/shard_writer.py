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


# The tokenizer takes about 200 bytes of memory a byte of text, so longer documents are encoded piece by piece.
MAX_PIECE_CHARACTERS = 1_000_000


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest unsigned type that holds every token; a cast to a smaller one would wrap in silence."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer such that control tokens in a document's text are text, not control."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_of_text(folder: Path) -> str:
    """Return the token between documents: what the tokenizer calls its eos token, such as `<|endoftext|>`."""
    token = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["eos_token"]
    return token if isinstance(token, str) else token["content"]


def cut_at_lines(text: str) -> Iterator[str]:
    """Cut a long text into pieces of at most MAX_PIECE_CHARACTERS, after the last line end in each if there is one."""
    start = 0
    while start < len(text):
        end = start + MAX_PIECE_CHARACTERS
        if end < len(text):
            line_end = text.rfind("\n", start, end)
            end = line_end + 1 if line_end > start else end
        yield text[start:end]
        start = end


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return a document's tokens as int64, without any that the text does not hold."""
    # A fourth faster than `encode`, which notes where in the text each token stands; of one piece, so without threads.
    found = [tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0].ids for piece in cut_at_lines(text)]
    return np.concatenate([np.array(ids, dtype=np.int64) for ids in found])


def write_shard(
    documents, rank: int, world_size: int, files: list[tuple[Path, Path]], tokenizer_folder, notes
) -> None:
    """Tokenize one Parquet file into one shard and its index."""
    source, target = files[rank]
    tokenizer = load_tokenizer(tokenizer_folder)
    end = end_of_text(tokenizer_folder)
    end_id = tokenizer.token_to_id(end)
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
                shard.write(np.append(tokens, end_id).astype(dtype).tobytes())
                position += len(tokens) + 1
                num_bytes = len(row["text"].encode())
                records.append((position - 1, num_bytes, row["id"].encode()))
                progress.add(num_bytes)
    target.with_suffix(".index").write_bytes(np.array(records, dtype=DOCUMENT_RECORD).tobytes())
    progress.note()
