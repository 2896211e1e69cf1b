# SPDX-License-Identifier: Apache-2.0
"""Stage 3: turn documents into token shards that training reads at any position without searching.

In:   <run.output_dir>/documents/{train,validation}/<source>/*.parquet and <run.output_dir>/tokenizer/.
Out:  <run.output_dir>/tokens/<source>/<split>-00000.ds     tokens, little-endian uint16 or uint32
      <run.output_dir>/tokens/<source>/<split>-00000.index  one record a document (see DOCUMENT_RECORD)
      <run.output_dir>/tokens/manifest.json                 dtype, counts, tokenizer sha256, per-shard sha256

    python recipes/tokenize_corpus.py --config recipes/legal/quickstart.yaml

A shard is `<|endoftext|>`, then each document followed by `<|endoftext|>`. One token thus ends a document and begins
the next: it is what the last token of a document predicts, and what the first token of the next is predicted from.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipeline_executor import TaskProgress, run_pipeline
from recipe_config import Recipe, RecipeError, parse_command_line, run_command
from run_folder import discard, file_sha256, is_finished, new_output, require, write_json
from token_mixture import DOCUMENT_RECORD


MANIFEST_FORMAT = 1
SPLITS = ("train", "validation")

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
    ids = [tokenizer.encode(piece, add_special_tokens=False).ids for piece in cut_at_lines(text)]
    return np.concatenate([np.array(piece, dtype=np.int64) for piece in ids])


def write_shard(
    documents, rank: int, world_size: int, files: list[tuple[Path, Path]], tokenizer_folder, notes
) -> None:
    """Tokenize one Parquet file into one shard and its index."""
    source, target = files[rank]
    tokenizer = load_tokenizer(tokenizer_folder)
    end_of_text = tokenizer.token_to_id("<|endoftext|>")
    dtype = token_dtype(tokenizer.get_vocab_size())
    progress = TaskProgress(notes, rank)
    target.parent.mkdir(parents=True, exist_ok=True)
    records = []
    with target.open("wb") as shard:
        shard.write(np.array([end_of_text], dtype=dtype).tobytes())
        position = 1
        for batch in pq.ParquetFile(source).iter_batches(columns=["id", "text"], batch_size=64):
            for row in batch.to_pylist():
                tokens = encode(tokenizer, row["text"])
                if (tokens == end_of_text).any():
                    raise RecipeError(f"{source}: document {row['id']}: its text encodes to <|endoftext|>")
                shard.write(np.append(tokens, end_of_text).astype(dtype).tobytes())
                position += len(tokens) + 1
                num_bytes = len(row["text"].encode())
                records.append((position - 1, num_bytes, row["id"].encode()))
                progress.add(num_bytes)
    target.with_suffix(".index").write_bytes(np.array(records, dtype=DOCUMENT_RECORD).tobytes())
    progress.note()


def tokenize(recipe: Recipe) -> dict:
    """Run the stage and return tokens/manifest.json's content."""
    documents, tokenizer_folder = require(recipe, "prepare"), require(recipe, "tokenizer")
    with new_output(recipe, "tokenize") as output:
        files = []
        for source in recipe.data.sources:
            for split in SPLITS:
                parquet = sorted((documents / split / source.name).glob("*.parquet"))
                shards = [output / source.name / f"{split}-{number:05d}.ds" for number in range(len(parquet))]
                files += zip(parquet, shards, strict=True)
        total_bytes = sum(
            pc.sum(pc.binary_length(batch["text"])).as_py() or 0
            for file, _ in files
            for batch in pq.ParquetFile(file).iter_batches(columns=["text"], batch_size=1024)
        )
        logs = output / "logs"
        write = partial(write_shard, files=files, tokenizer_folder=tokenizer_folder, notes=logs / "progress")
        workers = recipe.data.workers or os.cpu_count()
        run_pipeline([write], len(files), workers, logs, "tokenize", total_bytes)
        discard(logs)

        tokenizer = load_tokenizer(tokenizer_folder)
        dtype = token_dtype(tokenizer.get_vocab_size())
        sources: dict[str, dict] = {}
        for _, shard in files:
            index = np.fromfile(shard.with_suffix(".index"), dtype=DOCUMENT_RECORD)
            split = shard.stem.rpartition("-")[0]
            entry = {
                "file": shard.relative_to(output).as_posix(),
                "tokens": shard.stat().st_size // dtype.itemsize,
                "documents": len(index),
                "bytes": int(index["num_bytes"].sum()),
                "sha256": file_sha256(shard),
                "index_sha256": file_sha256(shard.with_suffix(".index")),
            }
            empty = {"tokens": 0, "documents": 0, "bytes": 0, "shards": []}
            totals = sources.setdefault(shard.parent.name, {}).setdefault(split, empty)
            totals["shards"].append(entry)
            for count in ("tokens", "documents", "bytes"):
                totals[count] += entry[count]
        manifest = {
            "format": MANIFEST_FORMAT,
            "dtype": dtype.name,
            "vocab_size": tokenizer.get_vocab_size(),
            "eos_token_id": tokenizer.token_to_id("<|endoftext|>"),
            "tokenizer_sha256": file_sha256(tokenizer_folder / "tokenizer.json"),
            "sources": sources,
        }
        write_json(output / "manifest.json", manifest)
    return manifest


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    if is_finished(recipe, "tokenize", options.overwrite):
        print(f"tokenize: nothing to do, {recipe.run.output_dir}/tokens is up to date")
        return
    if options.dry_run:
        print(f"tokenize: would tokenize {require(recipe, 'prepare')} with {require(recipe, 'tokenizer')}")
        return
    manifest = tokenize(recipe)
    counts = ", ".join(f"{splits['train']['tokens']:,} {name}" for name, splits in manifest["sources"].items())
    print(f"tokenize: training tokens {counts}, as {manifest['dtype']}, in {recipe.run.output_dir}/tokens")


if __name__ == "__main__":
    run_command(main)
