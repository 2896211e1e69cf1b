# SPDX-License-Identifier: Apache-2.0
"""Write token shards: each document between the tokens that begin and end it, and an index of documents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from corpus.finished_tasks import note_written
from corpus.pipeline_executor import TaskProgress
from mixture.shards import DOCUMENT_RECORD
from recipe_config import RecipeError
from vocabulary.bulk_encoding import EncodersDiffer, encode_batch, load_fastokens
from vocabulary.document_ends import DocumentEnds, document_ends
from vocabulary.token_bytes import refuse_changed_text, token_bytes


ROWS_READ = 1024
BATCH_BYTES = 1 << 20  # of text encoded at once; a longer document is a batch of its own


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


def read_batches(source: Path) -> Iterator[pa.RecordBatch]:
    """Yield the id and text of documents, BATCH_BYTES of text at a time or one longer document."""
    # Without Arrow's threads: where memory allows no new one, Arrow waits for it for ever.
    for rows in pq.ParquetFile(source).iter_batches(ROWS_READ, columns=["id", "text"], use_threads=False):
        sizes = pc.binary_length(rows["text"]).to_numpy()
        start = 0
        while start < len(rows):
            fitting = int(np.searchsorted(np.cumsum(sizes[start:], dtype=np.int64), BATCH_BYTES, side="right"))
            yield rows.slice(start, max(1, fitting))
            start += max(1, fitting)


def write_shard(
    documents, rank: int, world_size: int, files: list[tuple[Path, Path]], tokenizer_folder, notes
) -> None:
    """Tokenize one Parquet file into one shard, its index, and a note of what encoded it."""
    source, target = files[rank]
    tokenizer = load_tokenizer(tokenizer_folder)
    fast, encoder = load_fastokens(tokenizer)
    progress = TaskProgress(notes, rank)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_documents(source, target, tokenizer, fast, tokenizer_folder, progress)
    except EncodersDiffer as error:
        encoder = f"tokenizers: {encoder} {error}"
        progress.done = 0
        write_documents(source, target, tokenizer, None, tokenizer_folder, progress)
    target.with_suffix(".encoder").write_text(encoder, encoding="utf-8")
    note_written(target, target.with_suffix(".index"), target.with_suffix(".encoder"))
    progress.note()


def write_documents(
    source: Path, target: Path, tokenizer: Tokenizer, fast: Any, tokenizer_folder: Path, progress: TaskProgress
) -> None:
    """Write the shard and the index of one Parquet file.

    Raises: EncodersDiffer: of encode_batch, with the document's id. RecipeError: a document encodes to a token that
        ends documents, or the tokenizer changes it.
    """
    names, table = document_ends(tokenizer_folder), token_bytes(tokenizer)
    ends = DocumentEnds(*map(tokenizer.token_to_id, names))
    between = np.array(ends.between)
    dtype = token_dtype(tokenizer.get_vocab_size())
    spellings = pa.array(table, pa.large_binary())
    position = 1
    with target.open("wb") as shard, target.with_suffix(".index").open("wb") as index:
        shard.write(np.array([ends.bos], dtype=dtype).tobytes())
        for batch in read_batches(source):
            ids, texts = batch["id"].to_pylist(), batch["text"].to_pylist()
            try:
                tokens, token_ends = encode_batch(texts, tokenizer, fast)
            except EncodersDiffer as error:
                raise EncodersDiffer(error.index, f"{error} for document {ids[error.index]}") from error
            num_bytes = pc.binary_length(batch["text"]).to_numpy()
            if np.isin(tokens, ends).any() or not spell(tokens, token_ends, spellings, texts, num_bytes):
                refuse_document(source, ids, texts, np.split(tokens, token_ends[:-1]), ends, names, table)
            # The tokens of each document and those that end it, in one array.
            documents = np.arange(len(texts))
            written = np.empty(len(tokens) + len(texts) * len(between), dtype=dtype)
            is_text = np.ones(len(written), dtype=bool)
            for offset, token in enumerate(between):
                places = token_ends + documents * len(between) + offset
                written[places], is_text[places] = token, False
            written[is_text] = tokens
            shard.write(written.tobytes())
            records = np.empty(len(texts), dtype=DOCUMENT_RECORD)
            records["end"] = position + token_ends + documents * len(between)
            records["num_bytes"] = num_bytes
            records["id"] = ids
            index.write(records.tobytes())
            position += len(written)
            progress.add(int(num_bytes.sum()))


def spell(
    tokens: np.ndarray, token_ends: np.ndarray, spellings: pa.Array, texts: list[str], num_bytes: np.ndarray
) -> bool:
    """Return whether the tokens of each text have the bytes of that text."""
    _, offsets, spelled = pc.take(spellings, pa.array(tokens)).buffers()
    byte_ends = np.frombuffer(offsets, dtype=np.int64)[token_ends]
    return np.array_equal(byte_ends, np.cumsum(num_bytes)) and bytes(spelled or b"") == "".join(texts).encode()


def refuse_document(
    source: Path, ids: list[str], texts: list[str], tokens: list[np.ndarray], ends: DocumentEnds, names, table
) -> None:
    """Refuse the first document of a batch whose tokens end a document or spell another text."""
    for document, text, some in zip(ids, texts, tokens, strict=True):
        if np.isin(some, ends).any():
            raise RecipeError(f"{source}: document {document}: its text encodes to one of {', '.join(names)}")
        refuse_changed_text(text, some.tolist(), table, f"{source}: document {document}")
