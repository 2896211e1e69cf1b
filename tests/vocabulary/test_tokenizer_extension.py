# SPDX-License-Identifier: Apache-2.0
"""New tokens for an old tokenizer and its model: old text is encoded and computed as before."""

import json

import pytest
import torch
from invented_texts import TEXTS, WORDS, unigram
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipe_config import RecipeError
from vocabulary.byte_level_bpe import train_bpe
from vocabulary.tokenizer_extension import extend_embeddings, extend_tokenizer, mean_of_pieces


NEW = [" estoppel", " caf\u00e9", "voir"]


def save(tokenizer: Tokenizer, folder):
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    if request.param == "bpe":
        return save(train_bpe(TEXTS, "gpt4", 600, num_reserved=2), folder / "bpe")
    return save(unigram(TEXTS, folder / "chunks", num_reserved=2), folder / "unigram")


@pytest.mark.parametrize(
    "entries, said",
    [
        ([" plea", " plea"], "listed twice"),
        ([" voir dire"], "would never be used"),
        (["a1"], "is split into"),
        ([""], "never"),
    ],
)
def test_new_tokens_that_would_not_be_used_or_are_listed_twice_are_refused(base, entries, said, tmp_path):
    with pytest.raises(RecipeError, match=said):
        extend_tokenizer(base, entries, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_over_characters_is_refused(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="<|endoftext|>"))
    with pytest.raises(RecipeError, match="WordLevel, not byte-level BPE or Unigram"):
        extend_tokenizer(save(tokenizer, tmp_path / "base"), [" estoppel"], tmp_path / "new")


def test_a_base_with_a_token_that_merges_do_not_reach_is_refused(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {entry: number for number, entry in enumerate([*alphabet, "ab", "bc", "abc", "<|endoftext|>"])}
    # "abc" is built in "xabc" only: alone it becomes "a" and "bc".
    tokenizer = Tokenizer(models.BPE(vocabulary, [("b", "c"), ("a", "b"), ("ab", "c")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(RecipeError, match="the text of 1 tokens, such as 'abc', is not encoded to them"):
        extend_tokenizer(save(tokenizer, tmp_path / "base"), [" estoppel"], tmp_path / "new")


def test_text_without_new_tokens_is_encoded_as_before_and_text_with_them_is_shorter(base, tmp_path):
    pieces = extend_tokenizer(base, NEW, tmp_path / "new")
    old, new = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "new")
    assert list(pieces) == [600, 601, 602] and len(new) == 603
    for text in [*TEXTS, *WORDS, "estop estoppe <|reserved_1|> caf\u00e8 \ubc95\uc740 <|endoftext|>"]:
        assert new(text).input_ids == old(text).input_ids
    for entry, (number, parts) in zip(NEW, pieces.items(), strict=True):
        assert new(entry).input_ids == [number] and old(entry).input_ids == parts and len(parts) > 1
        assert new.decode([number]) == entry and old.decode(parts) == entry
    text = "the estoppel, a caf\u00e9 and voir dire"
    assert {600, 601} < set(new(text).input_ids) and new.decode(new(text).input_ids) == text
    assert new.eos_token_id == old.eos_token_id == 0
    assert new.convert_tokens_to_ids("<|reserved_1|>") == old.convert_tokens_to_ids("<|reserved_1|>") == 599


def test_a_bpe_uses_a_new_token_as_a_whole_word_only(tmp_path):
    base = save(train_bpe(TEXTS, "gpt4", 600), tmp_path / "base")
    extend_tokenizer(base, [" estop"], tmp_path / "new")
    old, new = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "new")
    assert new(" estoppel").input_ids == old(" estoppel").input_ids and new(" estop").input_ids == [600]


def test_known_tokens_are_skipped_and_a_second_extension_continues_the_ids(base, tmp_path):
    known = AutoTokenizer.from_pretrained(base).decode([300])
    assert extend_tokenizer(base, [known], tmp_path / "same") == {}
    extend_tokenizer(base, [" estoppel"], tmp_path / "one")
    assert list(extend_tokenizer(tmp_path / "one", [" estoppel", " plea"], tmp_path / "two")) == [601]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "two")) == 602


def test_tokens_that_were_added_after_the_model_keep_their_ids(base, tmp_path):
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|user|>", special=True, normalized=False)])
    assert list(extend_tokenizer(save(tokenizer, tmp_path / "base"), NEW, tmp_path / "new")) == [601, 602, 603]
    new = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert new.convert_tokens_to_ids("<|user|>") == 600 and new(" estoppel").input_ids == [601]
    assert new("<|user|> hi").input_ids[0] == 600
    assert 600 not in new("<|user|> hi", split_special_tokens=True).input_ids


def test_a_new_row_is_the_mean_of_the_rows_of_its_pieces_in_the_matrixs_dtype():
    matrix = torch.arange(8, dtype=torch.bfloat16).reshape(4, 2)
    assert mean_of_pieces(matrix, [[0, 2], [3]]).tolist() == [[2, 3], [6, 7]]
    assert mean_of_pieces(matrix, [[0, 2]]).dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [600, 640])
def test_logits_of_old_tokens_on_old_text_are_as_before(base, tmp_path, tied, rows):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval()
    pieces = extend_tokenizer(base, NEW, tmp_path / "new")
    numbers = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "new")(TEXTS[0]).input_ids[:200]])
    with torch.no_grad():
        before = model(numbers).logits
        extend_embeddings(model, pieces)
        after = model(numbers).logits
    assert after.shape[-1] == max(603, rows) == model.config.vocab_size
    torch.testing.assert_close(after[..., :600], before[..., :600], rtol=0, atol=1e-6)
    # The logit of a new token is the mean of those of its pieces: as likely as they are, no more.
    for number, parts in pieces.items():
        torch.testing.assert_close(after[..., number], before[..., parts].mean(-1), rtol=0, atol=1e-5)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_a_model_without_new_tokens_is_left_alone(base, tmp_path):
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=600, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    extend_embeddings(model, {})
    assert model.config.vocab_size == 600


def test_the_written_tokenizer_differs_from_the_old_one_only_in_its_model(base, tmp_path):
    extend_tokenizer(base, NEW, tmp_path / "new")
    old, new = (json.loads((folder / "tokenizer.json").read_text()) for folder in (base, tmp_path / "new"))
    assert {name for name in old if old[name] != new[name]} == {"model"}
