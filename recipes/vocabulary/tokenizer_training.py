# SPDX-License-Identifier: Apache-2.0
"""Train a recipe's tokenizer on a sample of its documents, drawn by the sources' shares."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from corpus.document_files import texts
from corpus.local_executor import available_cores
from recipe_config import Recipe
from vocabulary.byte_level_bpe import train_bpe
from vocabulary.split_and_merge import train_unigram
from vocabulary.training_sample import draw_sample, write_chunks


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
    options = {"max_token_bytes": settings.max_token_bytes, "special_tokens": settings.special_tokens}
    options |= {"num_reserved": settings.num_reserved_tokens, "pad": pad}

    def sample(source: str) -> Iterator[str]:
        return draw_sample(lambda: read_texts(documents, "train", source), sizes[source], SAMPLE_SEED)

    with tqdm(desc=f"tokenizer: read, {name}", unit="B", unit_scale=True, leave=False) as bar:

        def counted(texts: Iterable[str]) -> Iterator[str]:
            for text in texts:
                bar.update(len(text.encode()))
                yield text

        if settings.algorithm == "bpe":
            texts = (text for source in sizes for text in counted(sample(source)))
            return train_bpe(
                texts, settings.pretokenization, vocab_size, min_frequency=settings.min_frequency, **options
            )
        with tempfile.TemporaryDirectory(prefix=".chunks.", dir=recipe.run.output_dir) as folder:
            chunks = {}
            for source, size_bytes in sizes.items():
                num_chunks = max(1, round(size_bytes / settings.chunk_bytes))
                chunks[source] = write_chunks(counted(sample(source)), num_chunks, Path(folder) / source, SAMPLE_SEED)
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
