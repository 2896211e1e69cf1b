# SPDX-License-Identifier: Apache-2.0
"""A tiny tokenizer and model like those of the recipes, and a small run folder, for the tests of eval/."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


TRAINING_TEXT = [
    "The parties agree that each of them shall indemnify the other against any loss.",
    "In consideration of the payment, the seller shall deliver the goods to the buyer.",
    "The keys to the old house are on the table, and the children play in the garden.",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE; <|endoftext|> is bos and eos, and nothing is added to a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def model(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def model_folder(model, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_documents(folder: Path, texts: list[str]) -> None:
    """Write a source's documents with ids in the reverse order of the rows."""
    folder.mkdir(parents=True)
    ids = [f"{len(texts) - index:032x}" for index in range(len(texts))]
    columns = {"id": ids, "source": [folder.name] * len(texts), "text": texts, "date": [None] * len(texts)}
    pq.write_table(pa.table(columns), folder / "00000.parquet")


@pytest.fixture(scope="session")
def documents(tmp_path_factory) -> Path:
    """Two sources of one domain, and one that stats.json does not list."""
    folder = tmp_path_factory.mktemp("run") / "documents"
    for split in ("train", "test"):
        for source in ("contracts", "statutes", "stories"):
            texts = [f"{text} In {split}, {source} number {number}." for number in range(3) for text in TRAINING_TEXT]
            write_documents(folder / split / source, texts)
    sources = {name: {"domain": "legal"} for name in ("contracts", "statutes")}
    (folder / "stats.json").write_text(json.dumps({"sources": sources}))
    return folder
