# SPDX-License-Identifier: Apache-2.0
"""A recipe that trains in seconds, its made-up text, and the run folder it makes."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"

SUBJECTS = ["the licensee", "the court", "each party", "a river", "the old town", "no tenant", "the plaintiff"]
VERBS = ["shall indemnify", "denies", "crosses", "was built by", "must repay", "never saw", "may assign"]
OBJECTS = ["the licensor", "any claim", "the northern hills", "its first mayor", "a reasonable fee", "the appeal"]
TAILS = ["without delay", "under section 12", "in the year 1848", "for good cause", "at its own cost"]


def make_text(seed: int, sentences: int = 40) -> str:
    """Return a document of its own for each seed: grammatical, repetitive enough to be learned, with numbers."""
    choose = random.Random(seed).choice
    return "\n".join(
        f"{choose(SUBJECTS).capitalize()} {choose(VERBS)} {choose(OBJECTS)} {choose(TAILS)}, {seed * 37 % 1000}."
        for _ in range(sentences)
    )


def tiny_settings(texts: Path, output_dir: Path) -> list[str]:
    """Return the overrides of a recipe that trains in seconds on the text of `write_tiny_texts`."""
    sources = [
        {"name": "law", "path": str(texts / "law.jsonl"), "domain": "legal", "share": 0.6},
        {"name": "web", "path": str(texts / "web"), "domain": "general", "share": 0.4},
    ]
    settings = {
        "run.output_dir": str(output_dir),
        "data.sources": sources,
        "data.near_duplicates": None,
        "data.workers": 1,
        "data.max_repetitions": 100,
        "data.splits.validation_fraction": 0.1,
        "data.splits.test_fraction": 0.1,
        "tokenizer.vocab_size": 384,
        "tokenizer.terms": ["indemnify"],
        "model.hidden_size": 32,
        "model.intermediate_size": 64,
        "model.num_hidden_layers": 2,
        "model.num_attention_heads": 2,
        "training.sequence_length": 32,
        "training.per_device_train_batch_size": 2,
        "training.tokens_per_step": 256,
        "training.max_tokens": 20 * 256,
        "training.optimizer": "adamw",
        "training.learning_rate": 1e-2,
        "training.warmup_steps": 3,
        "training.logging_steps": 1,
        "training.eval_steps": 10,
        "training.save_steps": 4,
        "training.torch_compile": False,
        "training.eval_tasks": [],
        "evaluation.tasks": [],
        "evaluation.prompts": ["The court"],
    }
    return [f"--{key}={json.dumps(value)}" for key, value in settings.items()]


def write_tiny_texts(folder: Path) -> None:
    """Write 40 rows of JSON lines and 30 text files."""
    (folder / "web").mkdir(parents=True)
    rows = [json.dumps({"text": make_text(seed)}) for seed in range(40)]
    (folder / "law.jsonl").write_text("\n".join(rows) + "\n")
    for seed in range(100, 130):
        (folder / "web" / f"{seed}.txt").write_text(make_text(seed, sentences=25))


@dataclass(frozen=True)
class TinyRun:
    """A run folder that is tokenized and ready to train.

    Attributes:
        texts: its sources.
        output_dir: the run folder.
    """

    texts: Path
    output_dir: Path

    def argv(self, *overrides: str) -> list[str]:
        """Return the arguments of a stage script for this run; later overrides win."""
        config = ["--config", str(RECIPES / "custom" / "base.yaml"), "--data.fit_to_corpus=false"]
        return [*config, *tiny_settings(self.texts, self.output_dir), *overrides]

    def copy(self, folder: Path) -> "TinyRun":
        """Return the same run in another folder, with nothing to prepare or tokenize there."""
        shutil.copytree(self.output_dir, folder)
        return TinyRun(self.texts, folder)

    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.output_dir / "metrics.jsonl").read_text().splitlines()]

    def losses(self) -> dict[int, float]:
        """Return step -> training loss."""
        return {line["step"]: line["train/loss"] for line in self.metrics() if "train/loss" in line}
