# SPDX-License-Identifier: Apache-2.0
"""convert_gguf.py refuses what it does not know, and splits text as llama.cpp does."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import make_text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from convert_gguf import PRE_TOKENIZERS, check_gguf, convert
from publishing.base_model import base_of


def write_gguf(path: Path, architecture: str = "llama", kind: str = "gpt2", pre: str = "smollm") -> Path:
    """Write a GGUF file (version 3) without tensors: a count of keys, then each key, type 8 (text) and its value."""
    keys = {"general.architecture": architecture, "tokenizer.ggml.model": kind, "tokenizer.ggml.pre": pre}
    packed = [struct.pack(f"<Q{len(text)}s", len(text), text.encode()) for pair in keys.items() for text in pair]
    pairs = [key + struct.pack("<I", 8) + value for key, value in zip(packed[::2], packed[1::2], strict=True)]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs))
    return path


def test_a_known_file_is_named_by_its_pre_tokenizer(tmp_path):
    assert check_gguf(write_gguf(tmp_path / "model.gguf"))["tokenizer.ggml.pre"] == "smollm"


@pytest.mark.parametrize("wrong", [{"architecture": "qwen2"}, {"kind": "llama"}, {"pre": "llama-bpe"}])
def test_another_architecture_or_tokenizer_is_refused(tmp_path, wrong):
    with pytest.raises(SystemExit, match=f"is '{next(iter(wrong.values()))}'; known: "):
        check_gguf(write_gguf(tmp_path / "model.gguf", **wrong))


def test_a_file_that_is_not_gguf_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"PK" + bytes(64))
    with pytest.raises(SystemExit, match="not a GGUF file"):
        check_gguf(tmp_path / "model.gguf")


def test_smollm_splits_digits_before_anything_else():
    def pieces(name: str) -> list[str]:
        return [piece for piece, _ in PRE_TOKENIZERS[name].pre_tokenize_str("\n\n12")]

    assert pieces("smollm") == ["ĊĊ", "1", "2"]
    assert pieces("gpt-2") == ["Ċ", "Ċ", "12"]


def write_whole_gguf(path: Path, licence: str | None) -> tuple[LlamaForCausalLM, object]:
    """Write a tiny model and its tokenizer as a GGUF file with 8-bit weights."""
    gguf = pytest.importorskip("gguf", reason="needs pip install gguf==0.19.0")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = PRE_TOKENIZERS["gpt-2"], decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([make_text(seed) for seed in range(9)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(**shape, vocab_size=len(tokenizer), max_position_embeddings=128, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    if licence:
        writer.add_license(licence)
    for add, value in (
        (writer.add_block_count, 1),
        (writer.add_context_length, 128),
        (writer.add_embedding_length, 64),
        (writer.add_feed_forward_length, 96),
        (writer.add_head_count, 2),
        (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-6),
        (writer.add_rope_freq_base, 10_000.0),
        (writer.add_vocab_size, len(tokenizer)),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_tokenizer_pre, "gpt-2"),
        (writer.add_token_list, tokenizer.convert_ids_to_tokens(range(len(tokenizer)))),
        (writer.add_token_types, [3, *[1] * (len(tokenizer) - 1)]),
        (writer.add_token_merges, merges_of(tokenizer)),
        (writer.add_bos_token_id, 0),
        (writer.add_eos_token_id, 0),
        (writer.add_chat_template, "{{ messages }}"),
    ):
        add(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = tensor.numpy().astype(np.float32)
        if array.ndim == 1 or "q_proj" in name or "k_proj" in name:  # of another order of rows in GGUF
            writer.add_tensor(names.get_name(name, (".weight",)), np.zeros_like(array) + (array.ndim == 1))
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(names.get_name(name, (".weight",)), gguf.quantize(array, kind), raw_dtype=kind)
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    return model, tokenizer


def merges_of(tokenizer) -> list[str]:
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]


@pytest.mark.parametrize(("stated", "given", "expected"), [("apache-2.0", None, "apache-2.0"), (None, "mit", "mit")])
def test_the_converted_folder_has_the_weights_and_a_card_with_licence_and_origin(tmp_path, stated, given, expected):
    model, tokenizer = write_whole_gguf(tmp_path / "tiny.gguf", stated)
    convert(tmp_path / "tiny.gguf", tmp_path / "tiny", licence=given, base_model="org/tiny")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny").state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(again[name], model.state_dict()[name], atol=1e-3)
    text = "The tenant owes 12 dollars."
    assert AutoTokenizer.from_pretrained(tmp_path / "tiny")(text)["input_ids"] == tokenizer(text)["input_ids"]
    card = (tmp_path / "tiny" / "README.md").read_text()
    assert "The weights were quantised" in card and "It has a chat template, so it was probably tuned" in card
    base = base_of(str(tmp_path / "tiny"))
    assert (base.licence, base.quantised, base.hub_id()) == (expected, True, "org/tiny")
