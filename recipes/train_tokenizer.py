# SPDX-License-Identifier: Apache-2.0
"""Stage 2: train a byte-level BPE tokenizer on the training split, and measure what it gains on the domain.

In:   <run.output_dir>/documents/train/<source>/*.parquet (and validation for the report), tokenizer.* of the recipe.
Out:  <run.output_dir>/tokenizer/, which AutoTokenizer loads, and tokenizer/report.json.

    python recipes/train_tokenizer.py --config recipes/legal/quickstart.yaml

Every byte string can be encoded and decodes to itself. `<|endoftext|>` is the only special token: it stands between
documents, begins a text (bos) and ends it (eos). The sample it is trained on is drawn by the sources' shares; beside
the tokenizer of the recipe one of the same size is trained on the sources of other domains only, as the yardstick.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from mixture_shares import average_shares, resolve_shares
from recipe_config import Recipe, RecipeError, Source
from recipe_loading import parse_command_line, run_command
from run_folder import is_finished, new_output, require, write_json


END_OF_TEXT = "<|endoftext|>"
BYTES = 256
# Runs of letters with the space before them, single digits, runs of punctuation, line ends, other space: GPT-4's cut
# with the digits taken singly, so that amounts and section numbers are always read the same way.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# BPE training is quadratic in the longest piece, and a run of this length without a space is a dump, not a word.
# Longer ones are cut, in training only.
MAX_PIECE_CHARACTERS = 1_000
MIN_BYTES_PER_ENTRY = 100


def train_tokenizer(texts: Iterable[str], vocab_size: int, min_frequency: int) -> Tokenizer:
    """Train byte-level BPE. The same texts in the same order give the same tokenizer.

    Returns: a tokenizer with at most vocab_size entries: fewer when no pair is left that occurs min_frequency times.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(END_OF_TEXT, special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=64,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def as_transformers(tokenizer: Tokenizer, sequence_length: int) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer so that AutoTokenizer loads it, adding nothing to what it encodes."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=sequence_length,
        clean_up_tokenization_spaces=False,
    )


def read_texts(documents: Path, split: str, source: str, max_bytes: int | None = None) -> Iterator[str]:
    """Yield the texts of a split of a source in the order of their files, until max_bytes are reached."""
    taken = 0
    for file in sorted((documents / split / source).glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=["text"], batch_size=64):
            for text in batch["text"].to_pylist():
                if max_bytes is not None and taken >= max_bytes:
                    return
                taken += len(text.encode())
                yield text


def training_sample(documents: Path, shares: dict[str, float], max_bytes: int, bar: tqdm) -> Iterator[str]:
    """Yield the sample, source by source: of each its share of max_bytes, or all there is."""
    total_share = sum(shares.values())
    for name, share in shares.items():
        for text in read_texts(documents, "train", name, int(max_bytes * share / total_share)):
            bar.update(len(text.encode()))
            yield from cut_pieces(text)


def cut_pieces(text: str) -> Iterator[str]:
    """Cut a text that has a run of more than MAX_PIECE_CHARACTERS without a space."""
    if max(map(len, text.split()), default=0) <= MAX_PIECE_CHARACTERS:
        yield text
        return
    for word in text.split():
        yield from (word[start : start + MAX_PIECE_CHARACTERS] for start in range(0, len(word), MAX_PIECE_CHARACTERS))


def bytes_per_token(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """Return UTF-8 bytes per token over all texts; higher is shorter sequences for the same text."""
    num_bytes = num_tokens = 0
    for text in texts:
        num_bytes += len(text.encode())
        num_tokens += len(tokenizer.encode(text, add_special_tokens=False).ids)
    return num_bytes / num_tokens


def pieces(tokenizer: Tokenizer, term: str) -> list[str]:
    """Return how a term is cut where it stands in a sentence, after a space, as readable pieces."""
    encoding = tokenizer.encode(f" {term}", add_special_tokens=False)
    return [f" {term}"[start:end] for start, end in encoding.offsets]


def make_tokenizer(recipe: Recipe) -> dict:
    """Run the stage and return tokenizer/report.json's content."""
    documents = require(recipe, "prepare")
    settings, sources = recipe.tokenizer, recipe.data.sources
    with new_output(recipe, "tokenizer") as output:
        stats = json.loads((documents / "stats.json").read_text(encoding="utf-8"))["sources"]
        train_bytes = {source.name: stats[source.name]["kept"]["train"]["bytes"] for source in sources}
        shares = average_shares(recipe.data, resolve_shares(recipe.data, train_bytes))
        vocab_size = settings.vocab_size
        if recipe.data.fit_to_corpus:
            carried = BYTES + 1 + min(sum(train_bytes.values()), settings.max_train_bytes) // MIN_BYTES_PER_ENTRY
            vocab_size = min(vocab_size, max(BYTES + 64, carried // 64 * 64))
            if vocab_size < settings.vocab_size:
                print(
                    f"tokenizer: note: {sum(train_bytes.values()):,} bytes carry about {vocab_size:,} entries, "
                    f"not the {settings.vocab_size:,} of tokenizer.vocab_size"
                )

        def train(chosen: list[Source], description: str) -> Tokenizer:
            total = min(sum(train_bytes[source.name] for source in chosen), settings.max_train_bytes)
            with tqdm(total=total, desc=f"tokenizer: {description}", unit="B", unit_scale=True, leave=False) as bar:
                shares_chosen = {source.name: shares[source.name] for source in chosen}
                sample = training_sample(documents, shares_chosen, settings.max_train_bytes, bar)
                return train_tokenizer(sample, vocab_size, settings.min_frequency)

        tokenizers = {"domain tokenizer": train(sources, "read")}
        general = [source for source in sources if source.label == "general" and shares[source.name]]
        if general and len(general) < len(sources):
            tokenizers["general tokenizer"] = train(general, "read general text")
        tokenizer = tokenizers["domain tokenizer"]
        reached = tokenizer.get_vocab_size()
        if reached < vocab_size:
            short = (
                f"the text has only {reached:,} entries that occur {settings.min_frequency} times, not {vocab_size:,}"
            )
            if not recipe.data.fit_to_corpus:
                raise RecipeError(
                    f"tokenizer.vocab_size={settings.vocab_size}: {short}; "
                    "lower it, add text, or set data.fit_to_corpus=true"
                )
            print(f"tokenizer: note: {short}")

        report = {
            "vocab_size": reached,
            "train_bytes": train_bytes,
            "bytes_per_token": {
                name: {s.name: bytes_per_token(t, read_texts(documents, "validation", s.name)) for s in sources}
                for name, t in tokenizers.items()
            },
            "terms": {term: {name: pieces(t, term) for name, t in tokenizers.items()} for term in settings.terms},
        }
        as_transformers(tokenizer, recipe.training.sequence_length).save_pretrained(output)
        write_json(output / "report.json", report)
    return report


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    if is_finished(recipe, "tokenizer", options.overwrite):
        print(f"tokenizer: nothing to do, {recipe.run.output_dir}/tokenizer is up to date")
        return
    if options.dry_run:
        require(recipe, "prepare")
        print(f"tokenizer: would train {recipe.tokenizer.vocab_size:,} entries")
        return
    report = make_tokenizer(recipe)
    ratios = ", ".join(
        f"{ratio:.2f} on {name}" for name, ratio in report["bytes_per_token"]["domain tokenizer"].items()
    )
    print(
        f"tokenizer: {report['vocab_size']:,} entries, bytes per token {ratios}, in {recipe.run.output_dir}/tokenizer"
    )


if __name__ == "__main__":
    run_command(main)
