# SPDX-License-Identifier: Apache-2.0
"""One token begins a document and one ends it, wherever a model is trained, scored and used."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import RECIPES, TinyRun, make_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import document_ledger
import pretrain
import tokenize_corpus
import train_tokenizer
from bits_per_byte import start_token_id
from mixture.batches import document_positions
from mixture.validation_text import ValidationText
from model.summed_loss import SummedLoss
from recipe_config import RecipeError
from recipe_loading import load_recipe
from training import inputs
from training.inputs import read_inputs
from vocabulary.document_ends import DocumentEnds, document_ends, settle_document_ends


BOS, EOS = "<|start|>", "<|stop|>"


def make_tokenizer(template: str | None = None, **names: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with two control tokens; `template` is what encoding puts around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=[EOS, BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([make_text(seed) for seed in range(20)], trainer)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in (EOS, BOS)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_base(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a Llama model with random weights and a tokenizer."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def continue_from(base: Path, prepared: TinyRun, folder: Path) -> tuple[TinyRun, list[str]]:
    """Continue from a base on prepared documents; returns the run and its arguments."""
    run = TinyRun(prepared.texts, folder)
    shutil.copytree(prepared.output_dir / "documents", folder / "documents")
    argv = run.argv(f"--model.from_pretrained={base}", "--training.max_tokens=2560")
    for stage in (train_tokenizer, tokenize_corpus, pretrain):
        stage.main(argv)
    return run, argv


@pytest.fixture(scope="module")
def apart(tokenized_run, tmp_path_factory):
    """A run continued from a base whose bos is not its eos, as Llama 3's, and which encoding adds."""
    folder = tmp_path_factory.mktemp("apart")
    base = make_base(folder / "base", make_tokenizer(f"{BOS} $A", bos_token=BOS, eos_token=EOS))
    return continue_from(base, tokenized_run, folder / "run")


@pytest.mark.parametrize(
    ("template", "names", "message"),
    [
        (None, {"bos_token": BOS}, "the base has no eos token to end a document"),
        (
            f"{BOS} $A {EOS}",
            {"bos_token": BOS, "eos_token": EOS},
            r"encodes 'a' as <\|start\|> a <\|stop\|>; only",
        ),
        (f"{BOS} $A", {"eos_token": EOS}, r"only its bos token, <\|stop\|>, may stand before a text"),
    ],
    ids=["no end", "an end added", "another begin added"],
)
def test_a_tokenizer_that_cannot_begin_and_end_documents_is_refused(template, names, message):
    with pytest.raises(RecipeError, match=message):
        settle_document_ends(make_tokenizer(template, **names), "the base")


def test_shards_of_another_begin_are_refused_before_training(apart, monkeypatch, tmp_path):
    run, argv = apart
    folders = {"tokenize": tmp_path / "tokens", "tokenizer": run.output_dir / "tokenizer"}
    shutil.copytree(run.output_dir / "tokens", folders["tokenize"])
    manifest = json.loads((folders["tokenize"] / "manifest.json").read_text())
    del manifest["bos_token_id"]  # as an earlier version wrote it
    (folders["tokenize"] / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(inputs, "output_folder", lambda recipe, name: folders[name])
    with pytest.raises(RecipeError, match=r"documents begin and end with tokens \(0, 0\), but with <\|start\|> and"):
        read_inputs(load_recipe([RECIPES / "custom" / "base.yaml"], argv[3:]), 1)


def test_a_tokenizer_without_a_begin_gets_its_end_for_one(tokenized_run, tmp_path):
    base = make_base(tmp_path / "base", make_tokenizer(eos_token=EOS))
    run, _ = continue_from(base, tokenized_run, tmp_path / "run")
    assert document_ends(base) == document_ends(run.output_dir / "tokenizer") == (EOS, EOS)
    exported = run.output_dir / "model"
    assert AutoTokenizer.from_pretrained(exported).bos_token == EOS
    assert AutoConfig.from_pretrained(exported).bos_token_id == AutoConfig.from_pretrained(exported).eos_token_id == 0
    manifest = json.loads((run.output_dir / "tokens" / "manifest.json").read_text())
    assert manifest["bos_token_id"] == manifest["eos_token_id"] == 0


def test_shards_hold_each_document_between_its_begin_and_its_end(apart):
    tokens = apart[0].output_dir / "tokens"
    manifest = json.loads((tokens / "manifest.json").read_text())
    assert (manifest["bos_token_id"], manifest["eos_token_id"]) == (1, 0)
    shard = manifest["sources"]["law"]["train"]["shards"][0]
    stream = np.fromfile(tokens / shard["file"], dtype=manifest["dtype"])
    begins, ends = np.flatnonzero(stream == 1), np.flatnonzero(stream == 0)
    assert len(ends) == shard["documents"] > 10
    assert begins[0] == 0 and np.array_equal(begins[1:], ends + 1), "the last begin is of a document that never comes"
    tokenizer = AutoTokenizer.from_pretrained(apart[0].output_dir / "tokenizer")
    text = tokenizer.decode(stream[begins[3] + 1 : ends[3]].tolist())
    assert text[0].isupper() and text[-1] == ".", text


def test_positions_begin_with_the_begin_and_attention_does_not_pass_it():
    positions = document_positions(np.array([[5, 0, 1, 5, 6, 0, 1, 7]]), bos_token_id=1)
    assert positions.tolist() == [[0, 1, 0, 1, 2, 3, 0, 1]]
    assert DocumentEnds(1, 0).between == (0, 1) and DocumentEnds(0, 0).between == (0,)


def test_validation_evaluation_the_exported_tokenizer_and_both_configs_begin_alike(apart):
    exported = apart[0].output_dir / "model"
    tokenizer, config = AutoTokenizer.from_pretrained(exported), AutoConfig.from_pretrained(exported)
    generation = GenerationConfig.from_pretrained(exported)
    assert tokenizer("The court")["input_ids"][0] == tokenizer.bos_token_id == start_token_id(tokenizer) == 1
    assert (config.bos_token_id, config.eos_token_id) == (generation.bos_token_id, generation.eos_token_id) == (1, 0)
    text = ValidationText(apart[0].output_dir / "tokens", "law", 32, 1_000_000)
    assert text.input_ids[0, 0] == text.bos_token_id == 1 and not np.isin(text.labels, [0, 1]).any()
    positions = document_positions(text.input_ids, text.bos_token_id)
    module = SummedLoss(LlamaForCausalLM.from_pretrained(exported).eval(), compiled=False)
    with torch.no_grad():
        _, nats = module(*(torch.from_numpy(array) for array in (text.input_ids, positions, text.labels)))
    scored = (text.labels != -100).sum()
    assert float(nats) / scored == pytest.approx(apart[0].metrics()[-1]["eval/loss/law"], rel=1e-5)


def test_the_ledger_counts_the_tokens_of_a_text_from_its_first(apart):
    ledger = document_ledger.open_ledger(apart[0].output_dir)
    pieces = [piece for step in range(1, 11) for piece in ledger.documents_of(step)]
    assert all(0 <= piece["first_token"] < piece["end_token"] for piece in pieces)
    assert any(piece["first_token"] == 0 for piece in pieces)


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", None])
def test_the_stop_tokens_of_a_kept_chat_template_are_kept_beside_the_end(template, tokenized_run, tmp_path):
    """As Gemma's and Phi-3's instructed models list the end of a turn in their generation config alone."""
    tokenizer = make_tokenizer(f"{BOS} $A", bos_token=BOS, eos_token=EOS)
    tokenizer.chat_template = template
    base = make_base(tmp_path / "base", tokenizer)
    GenerationConfig(bos_token_id=1, eos_token_id=[0, 7]).save_pretrained(base)
    run, _ = continue_from(base, tokenized_run, tmp_path / "run")
    exported = run.output_dir / "model"
    assert GenerationConfig.from_pretrained(exported).eos_token_id == ([0, 7] if template else 0)
    assert AutoConfig.from_pretrained(exported).eos_token_id == 0
