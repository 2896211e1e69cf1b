# SPDX-License-Identifier: Apache-2.0
"""convert_gguf.py refuses what it does not know, and splits text as llama.cpp does."""

import struct
from pathlib import Path

import pytest

from convert_gguf import PRE_TOKENIZERS, check_gguf


def write_gguf(path: Path, architecture: str = "llama", kind: str = "gpt2", pre: str = "smollm") -> Path:
    """Write a GGUF file (version 3) without tensors: a count of keys, then each key, type 8 (text) and its value."""
    keys = {"general.architecture": architecture, "tokenizer.ggml.model": kind, "tokenizer.ggml.pre": pre}
    packed = [struct.pack(f"<Q{len(text)}s", len(text), text.encode()) for pair in keys.items() for text in pair]
    pairs = [key + struct.pack("<I", 8) + value for key, value in zip(packed[::2], packed[1::2], strict=True)]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs))
    return path


def test_a_known_file_is_named_by_its_pre_tokenizer(tmp_path):
    assert check_gguf(write_gguf(tmp_path / "model.gguf")) == "smollm"


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
