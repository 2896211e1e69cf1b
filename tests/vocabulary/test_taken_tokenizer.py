# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a model that exists keeps every byte, whatever its kind, and AutoTokenizer reads it alike."""

import json

import pytest
from small_tokenizers import KINDS, byte_level, sentencepiece, wrap
from tiny_run import RECIPES
from tokenizers import normalizers
from transformers import AutoConfig, AutoTokenizer

import train_tokenizer
from mixture.shard_writer import load_tokenizer
from recipe_config import RecipeError
from recipe_loading import load_recipe
from vocabulary.bulk_encoding import encode
from vocabulary.document_ends import adds_at_most_bos, settle_document_ends
from vocabulary.taken_tokenizer import exact_tokenizer, save_taken
from vocabulary.token_bytes import refuse_changed_text, token_bytes
from vocabulary.tokenizer_training import TrainingSample


# kind: model_type and tokenizer_class as in the files on the Hub, and how the run's tokenizer differs
FILES = {
    "GPT-2": ("gpt2", "GPT2Tokenizer", []),
    "Llama 3": ("llama", "PreTrainedTokenizerFast", []),
    "Qwen": ("qwen2", "Qwen2Tokenizer", []),
    "Pythia": ("gpt_neox", "GPTNeoXTokenizer", []),
    "Llama 2": ("llama", "LlamaTokenizer", ["it puts no space before a text"]),
    "Mistral": ("mistral", "LlamaTokenizer", ["it puts no space before a text"]),
    "Gemma": ("gemma2", "GemmaTokenizer", []),
    "Phi-3": ("phi3", "LlamaTokenizer", ["it puts no space before a text", "it keeps the spaces beside <|note|>"]),
}
TEXTS = [
    "The court said \u201cno\u201d: \u00e9, 12,500\r\n\r\n  two  spaces,    four\tand a tab.",
    "\U0001f44d\U0001f3fd \ud55c\uae00 \ufffd\x00",
    " a text that begins with a space",
    "special tokens in it: <s> </s> <|endoftext|> <|note|> and so on",
    "<0x0A>\n",
    "x" * 300,
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_counted_once_and_the_export_encodes_as_training_did(kind, tmp_path):
    family, name, differs = FILES[kind]
    KINDS[kind]().save_pretrained(tmp_path / "base")
    config = tmp_path / "base" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": name}))
    for folder in ("base", "run"):  # AutoTokenizer looks at the model's config too
        AutoConfig.for_model(family).save_pretrained(tmp_path / folder)
    wrapped = AutoTokenizer.from_pretrained(tmp_path / "base")
    exact, changes = exact_tokenizer(wrapped, "base")
    assert changes == differs
    settle_document_ends(wrapped, "base")
    save_taken(wrapped, exact, tmp_path / "run", AutoConfig.for_model(family), "base")

    tokenizer, again = load_tokenizer(tmp_path / "run"), AutoTokenizer.from_pretrained(tmp_path / "run")
    table = token_bytes(tokenizer)
    for text in TEXTS:
        ids = encode(tokenizer, text).tolist()
        refuse_changed_text(text, ids, table, kind)
        assert sum(len(table[token]) for token in ids) == len(text.encode())
        assert again(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids
        assert again.decode(ids) == text
    assert adds_at_most_bos(again) and again.chat_template == wrapped.chat_template
    assert (again.bos_token, again.eos_token) == (wrapped.bos_token, wrapped.eos_token)
    ids = again.get_vocab()
    assert all(ids[token] == number for token, number in wrapped.get_vocab().items()), "rows of the embedding stay"


def test_a_long_document_is_encoded_piece_by_piece_without_a_space_between(tmp_path, monkeypatch):
    monkeypatch.setattr("vocabulary.bulk_encoding.MAX_PIECE_CHARACTERS", 16)
    wrapped = KINDS["Mistral"]()
    exact, _ = exact_tokenizer(wrapped, "base")
    text = "The court denies any claim without delay.\nThe licensee shall repay.\n"
    refuse_changed_text(text, encode(exact, text).tolist(), token_bytes(exact), "a document")


def test_a_vocabulary_without_all_bytes_is_refused():
    tokenizer = sentencepiece(None)
    content = json.loads(tokenizer.to_str())
    content["model"]["byte_fallback"] = False
    with pytest.raises(RecipeError, match="neither byte-level nor has it tokens for single bytes, so it loses text"):
        exact_tokenizer(wrap(type(tokenizer).from_str(json.dumps(content)), unk_token="<unk>"), "base")


@pytest.mark.parametrize("normalizer", [normalizers.Lowercase(), normalizers.NFKC(), normalizers.Strip()])
def test_a_tokenizer_that_loses_text_is_refused_before_text_is_tokenized(normalizer, tokenized_run, tmp_path):
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizer, normalizers.Replace("licensor", "LICENSOR")])
    wrap(tokenizer).save_pretrained(tmp_path / "base")
    argv = [f"--tokenizer.from_pretrained={tmp_path / 'base'}"]
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], tokenized_run.argv(*argv)[3:])
    with pytest.raises(RecipeError, match="the tokenizer changes the text: .*choose a tokenizer that keeps every"):
        sample = TrainingSample(recipe, tokenized_run.output_dir / "documents", [], tmp_path / "sample")
        train_tokenizer.take_tokenizer(recipe, str(tmp_path / "base"), sample, {}, tmp_path / "run")
