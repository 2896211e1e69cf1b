# SPDX-License-Identifier: Apache-2.0
"""Bits per byte by hand, sliding windows, difficult texts for a tokenizer, and xz against the xz format."""

import json
import lzma
import math
import shutil
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bits_per_byte import (
    bits_per_byte,
    encode_text,
    load_model,
    main,
    score_documents,
    sliding_windows,
    start_token_id,
    text_pieces,
    xz_baselines,
    xz_bytes,
)


LONG_TEXT = "The seller shall deliver the goods, and the buyer shall pay. " * 20


@pytest.fixture(scope="module")
def uniform_model(model):
    """All logits are zero, so that every token costs ln(vocab_size)."""
    uniform = deepcopy(model)
    torch.nn.init.zeros_(uniform.lm_head.weight)
    return uniform


def test_one_bit_a_byte_is_ln_2_nats_a_byte():
    assert bits_per_byte(math.log(2) * 80, 80) == pytest.approx(1.0)


def test_no_bytes_are_refused():
    with pytest.raises(ValueError, match="total_bytes=0"):
        bits_per_byte(1.0, 0)


@pytest.mark.parametrize("text", ["Plain words.", "Zinß, 保証, naïve \U0001f600", LONG_TEXT])
def test_uniform_model_costs_log2_of_the_vocabulary_per_token_over_utf8_bytes(uniform_model, tokenizer, text):
    (score,) = score_documents(uniform_model, tokenizer, [text], context_length=64)
    tokens = len(tokenizer(text)["input_ids"])
    assert (score.bytes, score.tokens) == (len(text.encode("utf-8")), tokens)
    expected = math.log2(len(tokenizer)) * tokens / len(text.encode("utf-8"))
    assert bits_per_byte(score.nats, score.bytes) == pytest.approx(expected, rel=1e-6)


def test_score_is_the_models_own_loss_on_start_token_and_text(model, tokenizer):
    text = LONG_TEXT[:120]
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    (score,) = score_documents(model, tokenizer, [text], context_length=128)
    assert score.nats == pytest.approx(loss * (ids.shape[1] - 1), rel=1e-5)


@pytest.mark.parametrize(("tokens", "context", "stride"), [(1, 8, 4), (8, 8, 4), (9, 8, 4), (50, 8, 3), (50, 8, 8)])
def test_windows_score_each_token_once_from_at_least_the_stated_context(tokens, context, stride):
    scored = []
    for begin, end, count in sliding_windows(tokens, context, stride):
        assert begin >= 0 and end - begin <= context
        scored += range(end - count, end)
        if begin:
            assert end - count - begin >= context - stride
    assert scored == list(range(tokens))


def test_windows_agree_with_one_window_if_the_text_fits_and_differ_if_it_does_not(model, tokenizer):
    text = LONG_TEXT[:120]
    tokens = len(tokenizer(text)["input_ids"])
    (whole,) = score_documents(model, tokenizer, [text], context_length=128)
    (fitting,) = score_documents(model, tokenizer, [text], context_length=tokens, stride=1)
    (cut,) = score_documents(model, tokenizer, [text], context_length=16, stride=8)
    assert fitting.nats == pytest.approx(whole.nats, rel=1e-6)
    assert cut.tokens == whole.tokens
    assert cut.nats != pytest.approx(whole.nats, rel=1e-4)


def test_windows_equal_token_by_token_prediction_from_the_same_context(model, tokenizer):
    ids = tokenizer(LONG_TEXT[:100])["input_ids"]
    sequence = [tokenizer.bos_token_id, *ids]
    nats = 0.0
    for position, token in enumerate(ids):  # stride 1: each token sees the 16 positions before it
        with torch.no_grad():
            logits = model(torch.tensor([sequence[max(0, position - 15) : position + 1]])).logits[0, -1]
        nats -= torch.log_softmax(logits, -1)[token].item()
    (score,) = score_documents(model, tokenizer, [LONG_TEXT[:100]], context_length=16, stride=1)
    assert score.nats == pytest.approx(nats, rel=1e-5)


def test_batch_size_and_company_do_not_change_a_score(model, tokenizer):
    texts = ["Short.", LONG_TEXT, "", "A text of middling length about goods.", LONG_TEXT[:200]]
    together = score_documents(model, tokenizer, texts, context_length=32, batch_size=4)
    alone = [score_documents(model, tokenizer, [text], context_length=32, batch_size=1)[0] for text in texts]
    assert [score.nats for score in together] == pytest.approx([score.nats for score in alone], rel=1e-5)
    assert together[2].nats == 0 and together[2].bytes == 0


def test_special_token_written_in_a_text_is_scored_as_its_characters(tokenizer):
    text = "before <|endoftext|> after"
    tokens, restored = encode_text(tokenizer, text)
    assert tokenizer.eos_token_id not in tokens
    assert restored and len(tokens) > len(encode_text(tokenizer, "before  after")[0]) + 1


@pytest.mark.parametrize("template", ["$A <|endoftext|>", "<|endoftext|> $A"])
def test_tokenizer_that_adds_bos_or_eos_by_itself_gives_the_same_score(model, tokenizer, template):
    adding = deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<|endoftext|>", tokenizer.eos_token_id)]
    )
    assert len(adding("The goods.")["input_ids"]) == len(tokenizer("The goods.")["input_ids"]) + 1
    assert score_documents(model, adding, ["The goods."], context_length=32) == score_documents(
        model, tokenizer, ["The goods."], context_length=32
    )


def test_text_that_its_tokens_do_not_restore_is_reported(model, tokenizer):
    lower = deepcopy(tokenizer)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    scores = score_documents(model, lower, ["THE GOODS", "the goods"], context_length=32)
    assert [score.restored for score in scores] == [False, True]


def test_text_with_unknown_tokens_is_reported():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "goods": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>")
    assert encode_text(tokenizer, "goods")[1]
    assert not encode_text(tokenizer, "gold")[1]


def test_pieces_are_bounded_whole_and_split_at_newlines_or_characters():
    text = "line one\nline two\n" + "é保\U0001f600" * 20 + "\nend"
    pieces = list(text_pieces(text, max_bytes=16))
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= 16
    assert pieces[0] == "line one\n"


def test_stride_beyond_the_context_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="stride=33 must be between 1 and context_length=32"):
        score_documents(model, tokenizer, ["a"], context_length=32, stride=33)


def test_loss_that_is_not_finite_is_refused(model, tokenizer):
    broken = deepcopy(model)
    broken.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="document 0: the loss is nan"):
        score_documents(broken, tokenizer, ["The goods."], context_length=32)


def test_tokenizer_without_bos_and_eos_is_refused(model, tokenizer):
    bare = deepcopy(tokenizer)
    bare.bos_token = bare.eos_token = None
    with pytest.raises(ValueError, match="neither a bos nor an eos"):
        score_documents(model, bare, ["The goods."], context_length=32)


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
def test_weights_that_do_not_fit_the_config_are_refused(model_folder, tmp_path, change):
    model = LlamaForCausalLM.from_pretrained(model_folder)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        weights["model.layers.9.extra"] = torch.zeros(2)
    else:
        weights[name] = torch.zeros(3, 5)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"do not fit the model.*{change}"):
        load_model(str(tmp_path))


def test_xz_size_is_that_of_the_xz_format_at_preset_9e():
    for data in (b"x", LONG_TEXT.encode(), bytes(range(256)) * 500):
        packed = lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
        assert packed.startswith(b"\xfd7zXZ\x00")
        assert xz_bytes(data) == len(packed)


def test_xz_baselines_see_nothing_one_another_and_the_training_text():
    documents = [f"{LONG_TEXT[:300]} Contract number {number}.".encode() for number in range(5)]
    sizes = xz_baselines(documents, iter([LONG_TEXT[:300].encode()]))
    assert sizes["xz_documents"] == sum(len(lzma.compress(d, preset=9 | lzma.PRESET_EXTREME)) for d in documents)
    assert sizes["xz_stream"] == len(lzma.compress(b"".join(documents), preset=9 | lzma.PRESET_EXTREME))
    assert sizes["xz_primed"] < sizes["xz_stream"] < sizes["xz_documents"]
    assert xz_baselines(documents)["xz_primed"] is None


def test_training_text_is_read_only_as_far_as_the_dictionary_reaches(monkeypatch):
    monkeypatch.setattr("bits_per_byte.XZ_DICTIONARY_BYTES", 8192)
    taken = []

    def training():
        for number in range(1000):
            taken.append(number)
            yield b"%04d" % number * 256

    xz_baselines([b"a held-out document"], training())
    assert len(taken) == 9  # 1 KiB each


def test_command_prints_a_line_a_file(model_folder, tmp_path, capsys):
    (tmp_path / "contract.txt").write_text(LONG_TEXT)
    main(["--model", str(model_folder), "--xz", "--context_length", "64", str(tmp_path / "contract.txt")])
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["documents", "bytes", "tokens"]
    assert line.split()[:2] == ["1", f"{len(LONG_TEXT):,}"]
    assert float(line.split()[4]) == pytest.approx(8 * xz_bytes(LONG_TEXT.encode()) / len(LONG_TEXT), abs=1e-3)


def test_several_models_are_scored_by_the_mean_of_their_probabilities(model_folder, tmp_path, capsys):
    """By hand, over the tokens of a text that fits the context."""
    model, tokenizer = load_model(str(model_folder))
    other = deepcopy(model)
    torch.nn.init.normal_(other.lm_head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "contract.txt").write_text(LONG_TEXT[:100])
    names = ["--model", str(model_folder), "--model", str(tmp_path / "other")]
    main([*names, str(tmp_path / "contract.txt")])
    ids = torch.tensor([[start_token_id(tokenizer), *encode_text(tokenizer, LONG_TEXT[:100])[0]]])
    with torch.inference_mode():
        mean = sum(one(ids).logits.float().softmax(-1) for one in (model, other))[0, :-1] / 2
    nats = -mean.gather(1, ids[0, 1:, None]).log().sum().item()
    _, line = capsys.readouterr().out.splitlines()
    assert float(line.split()[3]) == pytest.approx(bits_per_byte(nats, 100), abs=1e-3)
    alone = [
        bits_per_byte(
            score_documents(one, tokenizer, [LONG_TEXT[:100]], context_length=64, description=None)[0].nats, 100
        )
        for one in (model, other)
    ]
    assert abs(alone[0] - alone[1]) > 0.01 and bits_per_byte(nats, 100) < sum(alone) / 2


def test_models_with_other_tokens_are_not_averaged(model_folder, tmp_path):
    model, tokenizer = load_model(str(model_folder))
    model.save_pretrained(tmp_path / "other")
    tokenizer.add_tokens(["estoppel"])
    tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "contract.txt").write_text(LONG_TEXT)
    with pytest.raises(SystemExit, match=f"--model {tmp_path}/other: its tokens are not those of"):
        main(["--model", str(model_folder), "--model", str(tmp_path / "other"), str(tmp_path / "contract.txt")])


def test_command_names_missing_files():
    with pytest.raises(SystemExit, match="no such file: absent.txt"):
        main(["--model", "anything", "absent.txt"])


@pytest.mark.parametrize("value", [{"architectures": ["MyLlama"]}, {"auto_map": {"AutoModel": "modeling_my.MyLlama"}}])
def test_a_model_with_code_of_its_own_is_not_scored_as_if_it_were_transformers_own(value, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | value
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="names code of its own, MyLlama, in auto_map or architectures"):
        load_model(str(tmp_path / "model"))
