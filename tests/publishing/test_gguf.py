# SPDX-License-Identifier: Apache-2.0
"""GGUF files: the same tokens and tensors as the release's, or a refusal by name; and what llama.cpp makes of them."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import make_text
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from publishing import gguf_file
from publishing.gguf_checks import check_gguf, hostile_texts
from publishing.gguf_file import build_gguf, gguf_bytes, refuse_unwritable, write_gguf
from recipe_config import Hub, RecipeError
from vocabulary.byte_level_bpe import train_bpe
from vocabulary.tokenizer_training import as_transformers


gguf = pytest.importorskip("gguf", reason="needs pip install gguf==0.19.0")
TEXTS = [make_text(seed) for seed in range(20)]
RECIPE = SimpleNamespace(  # what is read of a recipe
    hub=Hub(repo_id="firm/tiny", license="apache-2.0", language=["en"], gguf=["f16", "q8_0"]),
    run=SimpleNamespace(output_dir="runs/tiny"),
    data=SimpleNamespace(sources=[SimpleNamespace(label="legal")]),
    model=SimpleNamespace(from_pretrained=None),
)


def write_model(folder: Path, style: str = "qwen2", qk_norm: bool = False, **settings) -> Path:
    tokenizer = as_transformers(train_bpe(TEXTS, style, 400, num_reserved=2), "<|endoftext|>", 128)
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": 402, "max_position_embeddings": 128, "head_dim": 16}
    torch.manual_seed(0)
    config, model_class = (Qwen3Config, Qwen3ForCausalLM) if qk_norm else (LlamaConfig, LlamaForCausalLM)
    model = model_class(config(**shape, bos_token_id=0, eos_token_id=0, **settings))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model with tied embeddings and two more rows than its tokenizer has tokens."""
    return write_model(tmp_path_factory.mktemp("model"), tie_word_embeddings=True)


@pytest.fixture
def copy(model, tmp_path) -> Path:
    return shutil.copytree(model, tmp_path / "model")


def change_tokenizer(folder: Path, change) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("style", ["multiword", "neutral", "gpt4"])
def test_a_pre_tokenization_without_a_name_is_refused_by_name(style, copy):
    train_bpe(TEXTS, style, 400).save(str(copy / "tokenizer.json"))
    with pytest.raises(
        RecipeError, match=f"llama.cpp has no pre-tokenization {style}; train the tokenizer with .*qwen2"
    ):
        refuse_unwritable(copy)


def test_a_tokenizer_that_llama_cpp_would_run_otherwise_is_refused(copy):
    refused = {
        "as in tokenizer.json": lambda c: c["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+|\W+"),
        "no byte-level Unigram": lambda c: c.update(model={"type": "Unigram"}),
        "changes text before": lambda c: c.update(normalizer={"type": "NFC"}),
        "looks up whole pieces": lambda c: c["model"].update(ignore_merges=True),
    }
    original = (copy / "tokenizer.json").read_text()
    for message, change in refused.items():
        change_tokenizer(copy, change)
        with pytest.raises(RecipeError, match=message):
            refuse_unwritable(copy)
        (copy / "tokenizer.json").write_text(original)
    assert refuse_unwritable(copy) == "qwen2"


def test_another_model_and_a_missing_package_are_refused(copy, monkeypatch):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neox"}))
    with pytest.raises(RecipeError, match="type 'gpt_neox'; only llama and qwen3 are written"):
        refuse_unwritable(copy)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="gguf is not installed; pip install gguf"):
        refuse_unwritable(copy)


def test_a_full_disk_ends_in_one_line_and_leaves_no_file(copy, monkeypatch):
    def full(self, tensor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(RecipeError, match=r"a.gguf: cannot be written: No space left on device; make room there"):
        write_gguf(copy, copy / "a.gguf", "f16", RECIPE)
    assert not (copy / "a.gguf").exists()


def test_a_file_with_another_tensor_or_another_tokenizer_is_refused(copy):
    path = copy / "a.gguf"
    for kind, change in (("f16", 0.002), ("q8_0", 0.02)):
        write_gguf(copy, path, kind, RECIPE)
        check_gguf(copy, path, kind, TEXTS[:1])
        tensors = load_file(copy / "model.safetensors")
        name = "model.layers.1.self_attn.k_proj.weight"
        tensors[name] = tensors[name].clone()
        tensors[name][3, 5] += change
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RecipeError, match=f"tensor {name} differs by .*, more than {kind} rounds it"):
            check_gguf(copy, path, kind, TEXTS[:1])

    change_tokenizer(copy, lambda content: content["model"]["merges"].pop(5))
    with pytest.raises(RecipeError, match="transformers encodes .* at token .*, AutoTokenizer as"):
        check_gguf(copy, path, "q8_0", TEXTS[:1])


def test_control_tokens_in_text_are_part_of_the_comparison(model):
    texts = hostile_texts(Tokenizer.from_file(str(model / "tokenizer.json")))
    assert {"<|endoftext|>", "a <|reserved_1|>b<|reserved_1|>"} <= set(texts) and len(texts) > 1500


def test_the_files_hold_the_model_its_description_and_how_a_prompt_starts(copy):
    build_gguf(RECIPE, copy, TEXTS)
    record = json.loads((copy / "gguf.json").read_text())
    assert list(record["files"]) == ["tiny-f16.gguf", "tiny-q8_0.gguf"] and record["pre_tokenizer"] == "qwen2"
    for entry in record["files"].values():
        assert "and every tensor" in entry["checked"]["transformers"]
    assert (copy / "Modelfile").read_text() == 'FROM ./tiny-f16.gguf\nTEMPLATE """<|endoftext|>{{ .Prompt }}"""\n'
    reader = gguf.GGUFReader(copy / "tiny-q8_0.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama" and fields["general.license"] == "apache-2.0"
    assert fields["general.author"] == "firm" and fields["general.languages"] == ["en"]
    assert fields["tokenizer.ggml.pre"] == "qwen2" and fields["tokenizer.ggml.model"] == "gpt2"
    assert not fields["tokenizer.ggml.add_bos_token"] and not fields["tokenizer.ggml.add_eos_token"]
    assert fields["llama.rope.freq_base"] == 10000 and fields["llama.attention.key_length"] == 16
    kinds = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    assert kinds["<|endoftext|>"] == kinds["<|reserved_1|>"] == gguf.TokenType.CONTROL
    assert kinds["[PAD401]"] == gguf.TokenType.UNUSED
    assert not any(tensor.name == "output.weight" for tensor in reader.tensors), "tied embeddings are stored once"
    sizes = sum((copy / name).stat().st_size for name in record["files"])
    assert gguf_bytes(copy, ["f16", "q8_0"]) < sizes < gguf_bytes(copy, ["f16", "q8_0"]) + 60_000


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}
        | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_stretched_positions_and_untied_embeddings_are_written(rope, tmp_path):
    rope |= {"rope_theta": 5000.0}
    folder = write_model(tmp_path, style="qwen35", rope_parameters=rope, tie_word_embeddings=False)
    write_gguf(folder, folder / "a.gguf", "f16", RECIPE)
    check_gguf(folder, folder / "a.gguf", "f16", TEXTS[:2])
    reader = gguf.GGUFReader(folder / "a.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    names = {tensor.name for tensor in reader.tensors}
    assert fields["tokenizer.ggml.pre"] == "qwen35" and "output.weight" in names
    if rope["rope_type"] == "llama3":
        factors = next(tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
        assert factors[0] == pytest.approx(1) and factors[-1] == pytest.approx(8)
    else:
        assert fields["llama.rope.scaling.type"] == rope["rope_type"] and fields["llama.rope.scaling.factor"] == 4


def test_a_model_with_a_norm_of_queries_and_keys_is_written_as_qwen3(tmp_path):
    folder = write_model(tmp_path, qk_norm=True, tie_word_embeddings=True)
    for kind in ("f16", "q8_0"):
        write_gguf(folder, folder / "a.gguf", kind, RECIPE)
        check_gguf(folder, folder / "a.gguf", kind, TEXTS[:2])
    reader = gguf.GGUFReader(folder / "a.gguf")
    assert reader.fields["general.architecture"].contents() == "qwen3"
    assert {"blk.0.attn_q_norm.weight", "blk.1.attn_k_norm.weight"} <= {tensor.name for tensor in reader.tensors}


@pytest.mark.parametrize("changed", [{"attention_bias": True}, {"use_sliding_window": True}], ids=str)
def test_a_qwen3_that_llama_cpp_cannot_run_is_refused(changed, tmp_path):
    folder = write_model(tmp_path, qk_norm=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(RecipeError, match=f"llama.cpp has no qwen3 with .*{next(iter(changed))}"):
        refuse_unwritable(folder)


@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
@pytest.mark.parametrize("style", ["qwen2", "qwen35", "llama-bpe"])
def test_llama_cpp_gives_the_same_tokens_scores_and_text(style, qk_norm, tmp_path):
    pytest.importorskip("xllamacpp", reason="needs pip install xllamacpp")
    folder = write_model(tmp_path, style=style, qk_norm=qk_norm, tie_word_embeddings=style == "qwen2")
    build_gguf(RECIPE, folder, TEXTS)
    for entry in json.loads((folder / "gguf.json").read_text())["files"].values():
        assert "bits per byte" in entry["checked"]["llama.cpp"] and "generated" in entry["checked"]["llama.cpp"]
    assert gguf_file.NAMES[style]
