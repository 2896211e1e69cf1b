# SPDX-License-Identifier: Apache-2.0
"""Train a recipe's tokenizer on a sample of its documents, drawn by the sources' shares."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from corpus.document_files import texts
from corpus.local_executor import available_cores
from recipe_config import Recipe
from vocabulary.byte_level_bpe import train_bpe
from vocabulary.pretokenization import splitter
from vocabulary.rare_words import FrequentWords
from vocabulary.split_and_merge import train_unigram
from vocabulary.training_sample import draw_documents, write_chunks


SAMPLE_SEED = 0  # not run.seed: models of different seeds share one tokenizer


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


def read_samples(
    recipe: Recipe, documents: Path, shares: dict[str, float], words: PreTokenizer, name: str
) -> dict[str, Iterator[str]]:
    """Return source -> its part of the sample, without the words that tokenizer.min_documents leaves out.

    Args:
        recipe: whose settings it follows.
        documents: the prepared documents.
        shares: source -> its part of the sample.
        words: the pre-tokenization, whose pieces are the words.
        name: of the tokenizer, in the note about what is left out.
    """
    sizes = sample_sizes(recipe, shares, training_bytes(documents))

    def draw(source: str) -> Iterator[list[str]]:
        return draw_documents(partial(read_texts, documents, "train", source), sizes[source], SAMPLE_SEED)

    if recipe.tokenizer.min_documents is None:
        return {source: chain.from_iterable(draw(source)) for source in sizes}
    drawn = tqdm(chain.from_iterable(map(draw, sizes)), f"tokenizer: words, {name}", unit=" documents", leave=False)
    frequent = FrequentWords(drawn, words, recipe.tokenizer.min_documents)
    tqdm.write(
        f"tokenizer: note: {name}: {frequent.left_out:,} of {frequent.left_out + len(frequent.words):,} different "
        f"words are in fewer than {recipe.tokenizer.min_documents} documents and were left out"
    )
    return {
        source: chain.from_iterable(map(frequent.stretches, chain.from_iterable(draw(source)))) for source in sizes
    }


def train_tokenizer(
    recipe: Recipe, documents: Path, shares: dict[str, float], vocab_size: int, pad: bool, name: str
) -> Tokenizer:
    """Train one tokenizer on the sources that have a share; the same documents give the same one.

    Args:
        recipe: whose settings it follows.
        documents: the prepared documents.
        shares: source -> its part of the sample, of which max_train_bytes are drawn.
        vocab_size: tokens in all.
        pad: fill up with reserved tokens where the text is too small for the size.
        name: in the progress bar.

    Raises: RecipeError: the text is too small for the size and `pad` is not set; a special token could be text.
    """
    settings = recipe.tokenizer
    sizes = sample_sizes(recipe, shares, training_bytes(documents))
    samples = read_samples(recipe, documents, shares, splitter(settings.pretokenization), name)
    options = {"max_token_bytes": settings.max_token_bytes, "special_tokens": settings.special_tokens}
    options |= {"num_reserved": settings.num_reserved_tokens, "pad": pad}

    with tqdm(desc=f"tokenizer: read, {name}", unit="B", unit_scale=True, leave=False) as bar:

        def counted(texts: Iterable[str]) -> Iterator[str]:
            for text in texts:
                bar.update(len(text.encode()))
                yield text

        if settings.algorithm == "bpe":
            texts = (text for sample in samples.values() for text in counted(sample))
            return train_bpe(
                texts, settings.pretokenization, vocab_size, min_frequency=settings.min_frequency, **options
            )
        for left in Path(recipe.run.output_dir).glob(".chunks.*"):  # by a try that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=".chunks.", dir=recipe.run.output_dir) as folder:
            chunks = {}
            for source, size_bytes in sizes.items():
                num_chunks = max(1, round(size_bytes / settings.chunk_bytes))
                chunks[source] = write_chunks(counted(samples[source]), num_chunks, Path(folder) / source, SAMPLE_SEED)
            workers = recipe.data.workers or available_cores()
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
