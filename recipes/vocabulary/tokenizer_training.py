# SPDX-License-Identifier: Apache-2.0
"""Train a recipe's tokenizer on a sample of its documents, drawn by the sources' shares."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from itertools import chain, groupby
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from corpus.document_files import document_files, read_columns, texts
from corpus.finished_tasks import note_written
from corpus.local_executor import available_cores
from corpus.pipeline_executor import TaskProgress, run_pipeline
from recipe_config import Recipe
from vocabulary.byte_level_bpe import train_bpe
from vocabulary.pretokenization import splitter
from vocabulary.rare_words import FrequentWords
from vocabulary.split_and_merge import train_unigram
from vocabulary.training_sample import SLOTS, copied_slots, copy_pieces, count_slots, read_copies, write_chunks


SAMPLE_SEED = 0  # not run.seed: models of different seeds share one tokenizer
BYTES_PER_TASK = 128 << 20  # of document files that one task reads


def read_texts(documents: Path, split: str, source: str) -> Iterator[str]:
    """Yield the texts of a split of a source, file by file."""
    return texts(documents / split / source)


def training_bytes(documents: Path) -> dict[str, int]:
    """Return source -> bytes of its training split."""
    stats = json.loads((documents / "stats.json").read_text(encoding="utf-8"))["sources"]
    return {name: entry["kept"]["train"]["bytes"] for name, entry in stats.items()}


def sample_sizes(recipe: Recipe, shares: dict[str, float], available: dict[str, int]) -> dict[str, int]:
    """Return how many bytes of each source with a share are in the sample: as many as the shares and the text allow.

    It has tokenizer.max_train_bytes, or fewer where a source has too little text for its share of them: more of the
    others would be another mixture than the model is trained on.
    """
    total = sum(shares.values())
    fractions = {source: share / total for source, share in shares.items() if share and available[source]}
    sample = min([recipe.tokenizer.max_train_bytes, *(available[name] / part for name, part in fractions.items())])
    return {name: min(round(sample * part), available[name]) for name, part in fractions.items()}


class TrainingSample:
    """The training text of the tokenizers of a recipe, all from one reading of the documents, when it is needed first.

    Args:
        recipe: whose settings it follows.
        documents: the prepared documents.
        mixtures: source -> share, of each tokenizer that may be trained.
        folder: for a copy of at most the largest sample of each source, and a few percent more.

    Attributes:
        drawn: tokenizer -> source -> documents and bytes of the text it was trained on.
    """

    def __init__(self, recipe: Recipe, documents: Path, mixtures: list[dict[str, float]], folder: Path):
        self.recipe, self.documents, self.folder = recipe, documents, folder
        self.available = training_bytes(documents)
        self.largest: Counter = Counter()
        for shares in mixtures:
            self.largest |= Counter(sample_sizes(recipe, shares, self.available))
        self.drawn: dict[str, dict[str, dict[str, int]]] = {}

    @cached_property
    def copies(self) -> Path:
        """The folder of the copies, by source; the first use reads the documents, on data.executor."""
        slots = {source: copied_slots(size, self.available[source]) for source, size in self.largest.items()}
        files = [(source, file) for source in slots for file in document_files(self.documents / "train" / source)]
        sizes = np.cumsum([0, *(file.stat().st_size for _, file in files)])
        parts = [list(part) for _, part in groupby(range(len(files)), lambda number: sizes[number] // BYTES_PER_TASK)]
        tasks = [[files[number] for number in part] for part in parts]
        total_bytes = sum(self.available[source] for source in slots)
        for attempt in ("copies", "whole"):
            folder, logs = self.folder / attempt, self.folder / "logs" / attempt
            for source in slots:
                (folder / source).mkdir(parents=True, exist_ok=True)
            copy = partial(copy_task, tasks=tasks, slots=slots, folder=folder, notes=logs / "progress")
            run_pipeline([copy], len(tasks), self.recipe.data, logs, "tokenizer: sample", total_bytes)
            if all(count_slots(folder / source, size) is not None for source, size in self.largest.items()):
                break
            slots = dict.fromkeys(slots, SLOTS)
        return folder

    def draw(self, name: str, source: str, max_bytes: int) -> Iterator[list[str]]:
        """Yield the pieces of a tokenizer's sample of a source, those of one document together."""
        documents, num_bytes = 0, 0
        folder = self.copies / source
        for pieces in read_copies(folder, count_slots(folder, max_bytes)):
            documents, num_bytes = documents + 1, num_bytes + sum(len(piece.encode()) for piece in pieces)
            yield pieces
        self.drawn.setdefault(name, {})[source] = {"documents": documents, "bytes": num_bytes}

    def read(self, shares: dict[str, float], words: PreTokenizer, name: str) -> dict[str, Iterator[str]]:
        """Return source -> its part of a sample, without the words that tokenizer.min_documents leaves out.

        Args:
            shares: source -> its part of the sample.
            words: the pre-tokenization, whose pieces are the words.
            name: of the tokenizer.
        """
        sizes, least = sample_sizes(self.recipe, shares, self.available), self.recipe.tokenizer.min_documents
        parts = {source: partial(self.draw, name, source, size) for source, size in sizes.items()}
        if least is None:
            return {source: chain.from_iterable(draw()) for source, draw in parts.items()}
        drawn = chain.from_iterable(draw() for draw in parts.values())
        frequent = FrequentWords(
            tqdm(drawn, f"tokenizer: words, {name}", unit=" documents", leave=False), words, least
        )
        tqdm.write(
            f"tokenizer: note: {name}: {frequent.left_out:,} of {frequent.left_out + len(frequent.words):,} different "
            f"words are in fewer than {least} documents and were left out"
        )
        return {
            source: chain.from_iterable(map(frequent.stretches, chain.from_iterable(draw())))
            for source, draw in parts.items()
        }


def copy_task(
    documents,
    rank: int,
    world_size: int,
    tasks: list[list[tuple[str, Path]]],
    slots: dict[str, int],
    folder: Path,
    notes: Path,
) -> None:
    """Copy the pieces of a task's files, those of each source to folder/<source>/<task>.jsonl."""
    progress = TaskProgress(notes, rank)

    def read(files: Iterable[Path]) -> Iterator[str]:
        for file in files:
            for row in read_columns(file, ["text"]):
                progress.add(len(row["text"].encode()))
                yield row["text"]

    for source, files in groupby(tasks[rank], lambda pair: pair[0]):
        copy = folder / source / f"{rank:05d}.jsonl"
        copy_pieces(read(file for _, file in files), slots[source], SAMPLE_SEED, copy)
        note_written(copy, copy.with_suffix(".npy"))
    progress.note()


def train_tokenizer(
    recipe: Recipe, sample: TrainingSample, shares: dict[str, float], vocab_size: int, pad: bool, name: str
) -> Tokenizer:
    """Train one tokenizer on the sources that have a share; the same documents give the same one.

    Args:
        recipe: whose settings it follows.
        sample: of the recipe's documents.
        shares: source -> its part of the sample, of which max_train_bytes are drawn.
        vocab_size: tokens in all.
        pad: fill up with reserved tokens where the text is too small for the size.
        name: of the tokenizer, in the progress bar and in sample.drawn.

    Raises: RecipeError: the text is too small for the size and `pad` is not set; a special token could be text.
    """
    settings = recipe.tokenizer
    samples = sample.read(shares, splitter(settings.pretokenization), name)
    options = {"max_token_bytes": settings.max_token_bytes, "special_tokens": settings.special_tokens}
    options |= {"num_reserved": settings.num_reserved_tokens, "pad": pad}

    with tqdm(desc=f"tokenizer: read, {name}", unit="B", unit_scale=True, leave=False) as bar:

        def counted(texts: Iterable[str]) -> Iterator[str]:
            for text in texts:
                bar.update(len(text.encode()))
                yield text

        if settings.algorithm == "bpe":
            texts = (text for part in samples.values() for text in counted(part))
            return train_bpe(
                texts, settings.pretokenization, vocab_size, min_frequency=settings.min_frequency, **options
            )
        for left in Path(recipe.run.output_dir).glob(".chunks.*"):  # by a try that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=".chunks.", dir=recipe.run.output_dir) as folder:
            chunks = {}
            for source, size_bytes in sample_sizes(recipe, shares, sample.available).items():
                num_chunks = max(1, round(size_bytes / settings.chunk_bytes))
                chunks[source] = write_chunks(counted(samples[source]), num_chunks, Path(folder) / source, SAMPLE_SEED)
            own = recipe.data.workers if recipe.data.executor == "local" else None  # these run on this machine
            workers = own or available_cores()
            return train_unigram(chunks, settings.pretokenization, vocab_size, workers=workers, **options)


def as_transformers(tokenizer: Tokenizer, end_of_text: str, sequence_length: int) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer so that AutoTokenizer loads it, adding nothing to what it encodes."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end_of_text,
        eos_token=end_of_text,
        model_max_length=sequence_length,
        clean_up_tokenization_spaces=False,
    )
