# SPDX-License-Identifier: Apache-2.0
"""A base that cannot be continued is refused before any text is read, with what to do."""

import json
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from small_models import small_model
from small_tokenizers import KINDS, byte_level, wrap
from tiny_run import RECIPES
from tokenizers import normalizers
from transformers import AutoTokenizer

import run_recipe
from model import base_checks
from model.base_checks import check_base
from model.continued import load_config, load_weights
from recipe_config import Model, Recipe, RecipeError
from recipe_loading import load_recipe


@pytest.fixture
def base(tmp_path) -> Path:
    small_model("olmo2", vocab_size=448).save_pretrained(tmp_path / "base")
    KINDS["Llama 3"]().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def recipe_of(base: Path | str, run, *overrides: str) -> Recipe:
    argv = run.argv(f"--model.from_pretrained={base}", *overrides)
    return load_recipe([RECIPES / "custom" / "base.yaml"], argv[3:])


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def without_projection(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, base / "model.safetensors", {"format": "pt"})


def lower_casing(base: Path) -> None:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Lowercase()
    wrap(tokenizer).save_pretrained(base)


def only_pickled(base: Path) -> None:
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()


FAULTS = {
    "no safetensors": (only_pickled, "has no model.safetensors, .*save_pretrained"),
    "damaged weights": (lambda base: (base / "model.safetensors").write_bytes(b"x" * 99), "cannot be read.*again"),
    "another family": (
        lambda base: change(base / "config.json", model_type="bloom"),
        "is of type 'bloom'; choose a model of one of: Llama, Mistral, .* Phi-3, GPT-2, GPT-NeoX and Pythia, Granite",
    ),
    "custom code": (
        lambda base: change(base / "config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"}),
        "names code of its own, Mine, in auto_map or architectures",
    ),
    "custom code that its architectures name too": (
        lambda base: change(
            base / "config.json",
            architectures=["MyLlamaForCausalLM"],
            auto_map={"AutoModelForCausalLM": "modeling_my.MyLlamaForCausalLM"},
            model_type="llama",
        ),
        "names code of its own, MyLlamaForCausalLM",
    ),
    "custom code of its config alone": (
        lambda base: change(base / "config.json", auto_map={"AutoConfig": "configuration_my.MyConfig"}),
        "names code of its own, MyConfig",
    ),
    "custom code of an unknown kind": (
        lambda base: change(base / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        "cannot be loaded: .*",
    ),
    "short context": (
        lambda base: change(base / "config.json", max_position_embeddings=16),
        "was made for 16 tokens, which is less than training.sequence_length=32; lower that",
    ),
    "untied without a projection": (without_projection, "tie_word_embeddings: false, and its files have no output"),
    "tied with a projection of its own": (
        lambda base: change(base / "config.json", tie_word_embeddings=True),
        "tie_word_embeddings: true, and its files have an output projection of their own; set it to false",
    ),
    "lower-casing": (lower_casing, "the tokenizer changes the text: .*choose a tokenizer that keeps every character"),
    "no tokenizer": (
        lambda base: [path.unlink() for path in (*base.glob("token*"), *base.glob("chat*"))],
        "its tokenizer cannot be loaded|neither byte-level|changes the text",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_base_is_refused_before_work_starts(fault, base, tokenized_run):
    spoil, message = FAULTS[fault]
    check_base(recipe_of(base, tokenized_run))
    spoil(base)
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        check_base(recipe_of(base, tokenized_run))


def test_tied_weights_that_the_files_hold_twice_alike_are_taken(base, tokenized_run):
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    change(base / "config.json", tie_word_embeddings=True)
    check_base(recipe_of(base, tokenized_run))


@pytest.mark.parametrize("kind", ["Llama 2", "Mistral", "Gemma", "Phi-3"])
def test_a_tokenizer_that_cannot_be_extended_is_refused_before_work_starts(kind, base, tokenized_run):
    KINDS[kind]().save_pretrained(base)
    check_base(recipe_of(base, tokenized_run))
    with pytest.raises(RecipeError, match="BPE, not byte-level BPE or Unigram, .*leave tokenizer.extend_by out, or"):
        check_base(recipe_of(base, tokenized_run, "--tokenizer.extend_by=8"))


def test_the_whole_recipe_refuses_a_base_before_its_first_stage(base, tokenized_run, tmp_path):
    only_pickled(base)
    run = tmp_path / "run"
    with pytest.raises(RecipeError, match=r"has no model.safetensors"):
        run_recipe.main(tokenized_run.argv(f"--model.from_pretrained={base}", f"--run.output_dir={run}"))
    assert not run.exists()


def test_the_whole_recipe_refuses_a_base_of_unknown_licence_before_its_first_stage(base, tokenized_run, tmp_path):
    run = tmp_path / "run"
    argv = tokenized_run.argv(f"--model.from_pretrained={base}", f"--run.output_dir={run}", "--hub.license=apache-2.0")
    with pytest.raises(RecipeError, match="hub.license=apache-2.0: the card of the local model base states"):
        run_recipe.main(argv)
    assert not run.exists()


def test_tied_weights_that_the_files_hold_twice_are_refused(base):
    change(base / "config.json", tie_word_embeddings=True)
    settings = Model(from_pretrained=str(base))
    with pytest.raises(RecipeError, match="tie_word_embeddings: true, and its files have an output projection of"):
        load_weights(settings, load_config(settings, 32))


@pytest.fixture
def gated(monkeypatch) -> str:
    """A model whose terms were not accepted, as the Hub answers for it."""

    def refuse(*_, **__):
        request = httpx2.Request("GET", "https://huggingface.co/org/gated/resolve/main/config.json")
        response = httpx2.Response(403, headers={"X-Error-Code": "GatedRepo"}, request=request)
        raise GatedRepoError("403 Client Error. Access to model org/gated is restricted.", response=response)

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", refuse)
    return "org/gated"


def test_a_gated_model_is_refused_with_where_to_accept_its_terms(gated, tokenized_run):
    with pytest.raises(RecipeError, match="accept its terms on https://huggingface.co/org/gated, then run `hf auth"):
        check_base(recipe_of(gated, tokenized_run))


def test_a_hub_that_cannot_be_asked_for_the_tensors_leaves_them_to_training(base, tokenized_run, monkeypatch):
    """HF_HUB_OFFLINE is set in these tests; the small files are there, as from an earlier download."""
    recipe = recipe_of("org/base", tokenized_run)
    monkeypatch.setattr(
        base_checks, "load_config", lambda settings, *rest: load_config(Model(from_pretrained=str(base)), *rest)
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    monkeypatch.setattr(base_checks.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.setattr("vocabulary.taken_tokenizer.AutoTokenizer.from_pretrained", lambda *_, **__: tokenizer)
    check_base(recipe)

    def unreachable(*_, **__):
        raise httpx2.ConnectError("no network")

    monkeypatch.setattr(HfApi, "get_safetensors_metadata", unreachable)
    check_base(recipe)
