# SPDX-License-Identifier: Apache-2.0
"""Stage 3: turn documents into token shards, which training reads at any position without searching.

In:   <run.output_dir>/documents/{train,validation}/<source>/*.parquet and <run.output_dir>/tokenizer/.
Out:  <run.output_dir>/tokens/<source>/<split>-00000.ds     tokens, little-endian uint16 or uint32
      <run.output_dir>/tokens/<source>/<split>-00000.index  one record a document (see DOCUMENT_RECORD)
      <run.output_dir>/tokens/manifest.json                 dtype, counts, tokenizer sha256, per-shard sha256
      <run.output_dir>/tokens/encoders.json                 {encoder, with why it is not fastokens: shards}

    python recipes/tokenize_corpus.py --config recipes/legal/quickstart.yaml

A shard is `<|endoftext|>`, then each document followed by `<|endoftext|>`. One token thus ends a document and begins
the next: the last token of a document predicts it, and the first token of the next is predicted from it.
"""

import json
from functools import partial

import numpy as np

from atomic_files import discard, file_sha256, write_json
from corpus.pipeline_executor import check_executor, run_pipeline
from mixture.shard_writer import load_tokenizer, token_dtype, write_shard
from mixture.shards import DOCUMENT_RECORD
from recipe_config import Recipe
from recipe_loading import parse_command_line, run_command
from recovery.run_lock import stage_lock
from run_folder import is_finished, new_output, require
from vocabulary.document_ends import document_ends


MANIFEST_FORMAT = 1
SPLITS = ("train", "validation")


def tokenize(recipe: Recipe) -> dict:
    """Run the stage and return tokens/manifest.json's content."""
    check_executor(recipe.data)
    documents, tokenizer_folder = require(recipe, "prepare"), require(recipe, "tokenizer")
    with new_output(recipe, "tokenize") as output:
        files = []
        for source in recipe.data.sources:
            for split in SPLITS:
                parquet = sorted((documents / split / source.name).glob("*.parquet"))
                shards = [output / source.name / f"{split}-{number:05d}.ds" for number in range(len(parquet))]
                files += zip(parquet, shards, strict=True)
        stats = json.loads((documents / "stats.json").read_text(encoding="utf-8"))["sources"]
        total_bytes = sum(source["kept"][split]["bytes"] for source in stats.values() for split in SPLITS)
        logs = output / "logs"
        write = partial(write_shard, files=files, tokenizer_folder=tokenizer_folder, notes=logs / "progress")
        run_pipeline([write], len(files), recipe.data, logs, "tokenize", total_bytes)
        discard(logs)

        tokenizer = load_tokenizer(tokenizer_folder)
        bos, eos = map(tokenizer.token_to_id, document_ends(tokenizer_folder))
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
        encoders: dict[str, list[str]] = {}
        for _, shard in files:
            note = shard.with_suffix(".encoder")
            encoders.setdefault(note.read_text(encoding="utf-8"), []).append(shard.relative_to(output).as_posix())
            note.unlink()
        write_json(output / "encoders.json", encoders)
        for encoder, shards in encoders.items():
            if not encoder.startswith("fastokens"):
                print(f"tokenize: note: {len(shards)} of {len(files)} shards by {encoder}")
        manifest = {
            "format": MANIFEST_FORMAT,
            "dtype": dtype.name,
            "vocab_size": tokenizer.get_vocab_size(),
            "bos_token_id": bos,
            "eos_token_id": eos,
            "tokenizer_sha256": file_sha256(tokenizer_folder / "tokenizer.json"),
            "sources": sources,
        }
        write_json(output / "manifest.json", manifest)
    return manifest


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    if options.dry_run and not is_finished(recipe, "tokenize", options.overwrite):
        print(f"tokenize: would tokenize {require(recipe, 'prepare')} with {require(recipe, 'tokenizer')}")
        return
    with stage_lock(recipe, "tokenize", options.overwrite) as has_work:
        if not has_work:
            print(f"tokenize: nothing to do, {recipe.run.output_dir}/tokens is up to date")
            return
        manifest = tokenize(recipe)
    counts = ", ".join(f"{splits['train']['tokens']:,} {name}" for name, splits in manifest["sources"].items())
    print(f"tokenize: training tokens {counts}, as {manifest['dtype']}, in {recipe.run.output_dir}/tokens")


if __name__ == "__main__":
    run_command(main)
