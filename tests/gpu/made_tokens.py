# SPDX-License-Identifier: Apache-2.0
"""A run folder of made-up text, ready to train on: its documents, tokenizer and tokens, by the project's own writers.

The documents have as many lengths as real ones: log-normal, most below a training sequence and some far above.
"""

import json
import random
from pathlib import Path

import tokenize_corpus
from corpus.document_files import Document, DocumentWriter, document_id, texts
from recipe_loading import load_recipe
from run_folder import new_output
from vocabulary.byte_level_bpe import train_bpe
from vocabulary.tokenizer_training import as_transformers


ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "recipes" / "custom" / "base.yaml"
SYLLABLES = [consonants + vowel for consonants in ("b", "d", "gh", "k", "l", "n", "pr", "st") for vowel in "aeiou"]


def make_texts(num_documents: int, median_words: int) -> list[str]:
    """Return documents of words that follow Zipf's law."""
    generator = random.Random(0)
    words = ["".join(generator.choices(SYLLABLES, k=generator.randint(1, 4))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    made = []
    for _ in range(num_documents):
        length = max(8, round(generator.lognormvariate(0, 1.0) * median_words))
        made.append(" ".join(generator.choices(words, weights, k=length)).capitalize() + ".")
    return made


def overrides(folder: Path, vocab_size: int) -> list[str]:
    """Return the overrides of CONFIG for a run on the tokens of a folder; later ones may change the rest."""
    source = {"name": "made", "path": str(folder / "made.jsonl"), "domain": "general"}
    settings = {
        "run.output_dir": str(folder),
        "data.sources": [source],
        "data.fit_to_corpus": False,
        "data.max_repetitions": 1e9,
        "data.near_duplicates": None,
        "data.decontamination": None,
        "data.personal_data": None,
        "data.workers": 1,
        "tokenizer.vocab_size": vocab_size,
        "tokenizer.pad_vocabulary": True,
        "training.max_tokens": 1 << 30,
        "training.warmup_steps": 2,
        "training.eval_steps": 1_000_000,
        "training.save_steps": 1_000_000,
        "training.max_eval_bytes": 20_000,
    }
    return [f"--{key}={json.dumps(value)}" for key, value in settings.items()]


def make_run(folder: Path, num_documents: int, median_words: int, vocab_size: int) -> None:
    """Write a run folder's documents, tokenizer and tokens."""
    folder.mkdir(parents=True)
    made = make_texts(num_documents, median_words)
    (folder / "made.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in made))
    argv = ["--config", str(CONFIG), *overrides(folder, vocab_size)]
    recipe = load_recipe([CONFIG], argv[2:])
    splits = {"validation": made[: num_documents // 20], "train": made[num_documents // 20 :]}
    with new_output(recipe, "prepare") as output:
        for split, documents in splits.items():
            writer = DocumentWriter(output / split / "made" / "00000.parquet")
            for text in documents:
                writer.write(Document(text=text, id=document_id(text), metadata={"source": "made"}))
            writer.close()
        kept = {split: {"bytes": sum(map(len, documents))} for split, documents in splits.items()}
        (output / "stats.json").write_text(json.dumps({"sources": {"made": {"kept": kept}}}))
    with new_output(recipe, "tokenizer") as output:
        train = texts(folder / "documents" / "train" / "made")
        tokenizer = train_bpe(train, recipe.tokenizer.pretokenization, vocab_size, pad=True)
        end_of_text = recipe.tokenizer.special_tokens[0]
        as_transformers(tokenizer, end_of_text, recipe.training.sequence_length).save_pretrained(output)
    tokenize_corpus.main(argv)
