# SPDX-License-Identifier: Apache-2.0
"""Whole runs that continue models of other families than Llama, each with a tokenizer of its kind."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from small_models import small_model
from small_tokenizers import KINDS
from tiny_run import TinyRun
from transformers import AutoModelForCausalLM, AutoTokenizer

import pretrain
import tokenize_corpus
import train_tokenizer
from bits_per_byte import start_token_id
from mixture.batches import document_positions
from mixture.shards import token_byte_lengths
from mixture.validation_text import ValidationText
from model.summed_loss import SummedLoss
from publishing.release_checks import check_tensors
from recipe_config import RecipeError


LONG = pytest.mark.long
PAIRS = [
    ("mistral", "Mistral"),
    pytest.param("gpt_neox", "Pythia", marks=LONG),
    pytest.param("gpt2", "GPT-2", marks=LONG),
    pytest.param("qwen2", "Qwen", marks=LONG),
    pytest.param("qwen3", "Qwen", marks=LONG),
    pytest.param("smollm3", "Llama 3", marks=LONG),
    pytest.param("phi3", "Phi-3", marks=LONG),
    pytest.param("gemma2", "Gemma", marks=LONG),
    pytest.param("gemma3_text", "Gemma", marks=LONG),
    pytest.param("olmo2", "GPT-2", marks=LONG),
    pytest.param("olmo3", "Llama 3", marks=LONG),
    pytest.param("granite", "GPT-2", marks=LONG),
]


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_a_model_of_another_family_is_continued_scored_and_exported(family, kind, tokenized_run, tmp_path):
    tokenizer = KINDS[kind]()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ends |= {"final_logit_softcapping": 30.0} if family == "gemma2" else {}  # as in the real one
    small_model(family, vocab_size=448, **ends).save_pretrained(tmp_path / "base")  # padded beyond the tokenizer
    tokenizer.save_pretrained(tmp_path / "base")
    run = TinyRun(tokenized_run.texts, tmp_path / "run")
    shutil.copytree(tokenized_run.output_dir / "documents", run.output_dir / "documents")
    argv = run.argv(f"--model.from_pretrained={tmp_path / 'base'}", f"--training.max_tokens={8 * 256}")
    for stage in (train_tokenizer, tokenize_corpus):
        stage.main(argv)
    with pytest.raises(RecipeError) as refused:
        pretrain.main([*argv, "--dry_run"])
    assert len(refused.value.problems) == 1 and "first loss" in str(refused.value), "the base knows nothing, of course"
    pretrain.main(argv)

    losses = run.losses()
    assert losses[8] < losses[1]
    exported = run.output_dir / "model"
    check_tensors(exported)
    again, model = AutoTokenizer.from_pretrained(exported), AutoModelForCausalLM.from_pretrained(exported).eval()
    start = start_token_id(again)
    assert model.config.bos_token_id == start == (tokenizer.bos_token_id or tokenizer.eos_token_id)
    assert again.chat_template == tokenizer.chat_template and model.config.vocab_size == 448

    text = ValidationText(run.output_dir / "tokens", "law", 32, 1_000_000)
    assert text.bos_token_id == start
    tensors = [text.input_ids, document_positions(text.input_ids, start), text.labels]
    with torch.no_grad():
        _, nats = SummedLoss(model, compiled=False)(*map(torch.from_numpy, tensors))
    last = run.metrics()[-1]
    assert float(nats) / math.log(2) / text.num_bytes == pytest.approx(last["eval/bits_per_byte/law"], rel=1e-4)

    manifest = json.loads((run.output_dir / "tokens" / "manifest.json").read_text())
    shard = manifest["sources"]["law"]["train"]["shards"][0]
    stream = np.fromfile(run.output_dir / "tokens" / shard["file"], dtype=manifest["dtype"])
    first = stream[1 : 1 + np.flatnonzero(stream[1:] == again.eos_token_id)[0]].tolist()
    assert stream[0] == start and again(again.decode(first), add_special_tokens=False)["input_ids"] == first
    assert token_byte_lengths(run.output_dir / "tokenizer")[stream].sum() == shard["bytes"]
