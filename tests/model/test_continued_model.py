# SPDX-License-Identifier: Apache-2.0
"""Continuing from a model: strict loading, the old tokenizer or an extended one, every weight or adapters only."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import RECIPES, ROOT, TinyRun
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import pretrain
import tokenize_corpus
import train_tokenizer
from mixture.batches import document_positions
from mixture.validation_text import ValidationText
from model.continued import load_model
from model.summed_loss import SummedLoss
from publishing.revision_queue import queue_revision
from recipe_config import Lora, Model, RecipeError
from recipe_loading import load_recipe
from recovery.checkpoints import checkpoint_bytes, describe_file
from recovery.stored_tensors import load_tensors


SHORT = (f"--training.max_tokens={8 * 256}", "--training.learning_rate=3e-3", "--training.eval_steps=8")


@pytest.fixture(scope="module")
def base(tokenized_run, tmp_path_factory):
    """A run whose model others continue from."""
    run = tokenized_run.copy(tmp_path_factory.mktemp("base") / "run")
    pretrain.main(run.argv())
    return run


def continue_from(
    base: TinyRun, folder, *overrides: str, stages=(train_tokenizer, tokenize_corpus, pretrain)
) -> TinyRun:
    """Continue from the base's model in a new run folder, with the base's documents."""
    run = TinyRun(base.texts, folder)
    shutil.copytree(base.output_dir / "documents", folder / "documents")
    for stage in stages:
        stage.main(run.argv(*continuing(base, *overrides)))
    return run


def continuing(base: TinyRun, *overrides: str) -> tuple[str, ...]:
    return (f"--model.from_pretrained={base.output_dir / 'model'}", *SHORT, *overrides)


ADAPTERS = "--model.lora={rank: 2, targets: [q_proj, down_proj]}"


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    return continue_from(base, tmp_path_factory.mktemp("adapted") / "run", ADAPTERS, "--training.save_steps=4")


@pytest.fixture(scope="module")
def extended(base, tmp_path_factory):
    return continue_from(base, tmp_path_factory.mktemp("extended") / "run", "--tokenizer.extend_by=10")


def test_training_begins_where_the_base_ended_and_with_its_tokenizer(base, tmp_path):
    run = continue_from(base, tmp_path / "run")
    tokenizers = [
        json.loads((folder.output_dir / "tokenizer" / "tokenizer.json").read_text()) for folder in (base, run)
    ]
    assert tokenizers[0]["model"] == tokenizers[1]["model"]
    assert abs(run.losses()[1] - base.losses()[20]) < 0.15, "not from new weights, which begin at 5.95"
    assert run.losses()[8] < run.losses()[1]
    shape = (run.output_dir / "recipe.yaml").read_text()
    assert "hidden_size: 32" in shape and f"from_pretrained: {base.output_dir / 'model'}" in shape


def test_training_records_the_commit_that_a_base_of_the_hub_was_loaded_at(base, tmp_path, monkeypatch):
    """A recipe may pin none. The cache holds one commit of the model, as after a download."""
    commit = "c" * 40
    cached = tmp_path / "hub" / "models--org--base"
    shutil.copytree(base.output_dir / "model", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    run = TinyRun(base.texts, tmp_path / "run")
    shutil.copytree(base.output_dir / "documents", run.output_dir / "documents")
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    arguments = run.argv("--model.from_pretrained=org/base", *SHORT)
    for stage in (train_tokenizer, tokenize_corpus, pretrain):
        subprocess.run([sys.executable, stage.__file__, *arguments], check=True, env=environment)
    assert json.loads((run.output_dir / "training.json").read_text())["base_commit"] == commit


def test_an_extended_tokenizer_shortens_the_text_and_leaves_other_encodings_and_rows_alone(base, extended):
    before, after = (AutoTokenizer.from_pretrained(run.output_dir / "tokenizer") for run in (base, extended))
    pieces = json.loads((extended.output_dir / "tokenizer" / "new_entries.json").read_text())
    assert len(after) == len(before) + 10 and list(map(int, pieces)) == list(range(len(before), len(after)))
    assert before.decode(before(" zebra-crossing 12")["input_ids"]) == " zebra-crossing 12"
    assert after(" zebra-crossing 12")["input_ids"] == before(" zebra-crossing 12")["input_ids"]
    report = json.loads((extended.output_dir / "tokenizer" / "report.json").read_text())["bytes_per_token"]
    for source, ratio in report["domain tokenizer"].items():
        assert ratio > 1.05 * report["general tokenizer"][source]

    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], extended.argv(*continuing(base))[3:])
    fresh = load_model(recipe.model, after, extended.output_dir / "tokenizer", 32)
    old = AutoModelForCausalLM.from_pretrained(base.output_dir / "model").get_input_embeddings().weight
    rows = fresh.get_input_embeddings().weight
    assert torch.equal(rows[: len(before)], old)
    number, parts = next(iter(pieces.items()))
    assert torch.allclose(rows[int(number)], old[parts].mean(dim=0))
    model = AutoModelForCausalLM.from_pretrained(extended.output_dir / "model")
    assert model.config.vocab_size == len(after) and not torch.equal(model.get_input_embeddings().weight, rows)


def test_the_checkpoint_of_adapters_is_as_large_as_the_disk_is_asked_for(adapted):
    trained = json.loads((adapted.output_dir / "training.json").read_text())["parameters"]["trained"]
    checkpoint = adapted.output_dir / "checkpoints" / "step_00000004"
    stored = [tensor for stem in ("model", "optimizer") for tensor in load_tensors(checkpoint, stem).values()]
    assert sum(tensor.nbytes for tensor in stored if tensor.ndim) == checkpoint_bytes(trained, False, in_muon=0)


def test_adapters_change_their_targets_by_a_matrix_of_their_rank_and_nothing_else(base, adapted):
    before, after = (load_file(run.output_dir / "model" / "model.safetensors") for run in (base, adapted))
    assert before.keys() == after.keys(), "the release has the base's names, adapters merged"
    for name, weight in before.items():
        rank = torch.linalg.matrix_rank(after[name] - weight, rtol=1e-3) if weight.ndim == 2 else 0
        if "q_proj" in name or "down_proj" in name:
            assert 1 <= rank <= 2, name
        else:
            assert torch.equal(after[name], weight), name
    summary = json.loads((adapted.output_dir / "training.json").read_text())
    trained = 2 * (2 * (32 + 32) + 2 * (64 + 32))  # layers * (rank * (in + out) of q_proj and of down_proj)
    counted = summary["parameters"]
    assert counted["trained"] == counted["adapters"] == trained
    assert counted["total"] == sum(weight.numel() for weight in before.values()), "of the exported model"
    assert counted["total"] == counted["embedding"] + counted["non_embedding"]


@pytest.mark.parametrize("run", ["base", "adapted", "extended"])
def test_the_files_of_a_model_agree_on_its_tokens_its_length_its_numbers_and_its_size(run, request):
    folder = request.getfixturevalue(run).output_dir
    tokenizer, config, generation = (
        kind.from_pretrained(folder / "model") for kind in (AutoTokenizer, AutoConfig, GenerationConfig)
    )
    for name in ("bos_token_id", "eos_token_id"):
        assert getattr(config, name) == getattr(generation, name) == getattr(tokenizer, name), name
    assert tokenizer.model_max_length == config.max_position_embeddings == 32
    assert config.vocab_size == len(tokenizer)
    weights = load_file(folder / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {config.dtype}
    counted = json.loads((folder / "training.json").read_text())["parameters"]["total"]
    assert counted == sum(weight.numel() for weight in weights.values())


def test_the_merged_model_has_the_losses_of_the_trained_one(adapted):
    validation = adapted.metrics()[-1]
    model = AutoModelForCausalLM.from_pretrained(adapted.output_dir / "model").eval()
    text = ValidationText(adapted.output_dir / "tokens", "law", 32, 1_000_000)
    positions = document_positions(text.input_ids, text.bos_token_id)
    with torch.no_grad():
        module = SummedLoss(model, compiled=False)
        _, nats = module(*(torch.from_numpy(array) for array in (text.input_ids, positions, text.labels)))
    assert float(nats) / (text.labels != -100).sum() == pytest.approx(validation["eval/loss/law"], rel=1e-5)


@pytest.mark.parametrize("made", ["now", "by the code before"])
def test_adapters_resume_from_a_checkpoint_as_if_they_had_not_stopped(made, base, adapted, tmp_path):
    run = stopped(adapted, tmp_path / "run")
    if made == "by the code before":
        hold_the_base(run.output_dir / "checkpoints" / "step_00000004", base)
    pretrain.main(run.argv(*continuing(base, ADAPTERS, "--training.save_steps=4")))
    assert run.losses() == adapted.losses()
    after, again = (load_file(r.output_dir / "model" / "model.safetensors") for r in (adapted, run))
    assert all(torch.equal(after[name], again[name]) for name in after)


def stopped(adapted: TinyRun, folder) -> TinyRun:
    """Return a copy of a run that was stopped in the middle."""
    run = adapted.copy(folder)
    shutil.rmtree(run.output_dir / "model")
    shutil.rmtree(run.output_dir / "checkpoints" / "step_00000008")
    return run


def hold_the_base(checkpoint, base: TinyRun) -> None:
    """Write a checkpoint of adapters as it once was: with the frozen weights, and without their checksum."""
    frozen = {
        name.replace(target, f"{target}.base_layer"): weight
        for name, weight in load_file(base.output_dir / "model" / "model.safetensors").items()
        for target in [next((part for part in ("q_proj", "down_proj") if part in name), "none")]
    }
    save_file(load_file(checkpoint / "model.safetensors") | frozen, checkpoint / "model.safetensors")
    change_state(checkpoint, lambda state: state.pop("frozen_weights"))


def change_state(checkpoint, change) -> None:
    """Change the state of a checkpoint, which stays whole."""
    state = json.loads((checkpoint / "state.json").read_text())
    change(state)
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] |= {name: describe_file(checkpoint / name) for name in ("model.safetensors", "state.json")}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_a_checkpoint_of_adapters_holds_no_weight_that_is_not_trained_and_is_no_revision(base, adapted, extended):
    checkpoint = adapted.output_dir / "checkpoints" / "step_00000008"
    assert all(".lora_" in name for name in load_file(checkpoint / "model.safetensors"))
    whole = load_file(extended.output_dir / "checkpoints" / "step_00000008" / "model.safetensors")
    assert "model.norm.weight" in whole and not any(".lora_" in name for name in whole)
    hub = ("--hub.repo_id=me/tiny", "--hub.revision_steps=4", "--training.save_steps=4")
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], adapted.argv(*continuing(base, ADAPTERS, *hub))[3:])
    assert "step-0000008 is not published: a checkpoint holds the adapters" in queue_revision(recipe, checkpoint, None)


def test_a_base_with_other_weights_than_the_adapters_were_trained_on_is_refused(base, adapted, tmp_path):
    """A folder's content is in the run's settings; the branch of a Hub repository can move between two starts."""
    run = stopped(adapted, tmp_path / "run")
    checkpoint = run.output_dir / "checkpoints" / "step_00000004"
    change_state(checkpoint, lambda state: state.update(frozen_weights="of other weights"))
    with pytest.raises(RecipeError, match="step_00000004: its adapters were trained on other weights than those that"):
        pretrain.main(run.argv(*continuing(base, ADAPTERS, "--training.save_steps=4")))


@pytest.mark.long  # tests/test_run_recipe.py has the same, up to a release
def test_two_processes_train_adapters_and_new_tokens_with_the_losses_of_one(base, tmp_path):
    overrides = ("--tokenizer.extend_by=10", ADAPTERS)
    alone = continue_from(base, tmp_path / "alone", *overrides)
    together = continue_from(base, tmp_path / "together", *overrides, stages=(train_tokenizer, tokenize_corpus))
    config = ["--config_file", str(ROOT / "accelerate_configs" / "ddp.yaml"), "--num_processes", "2"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *config, "--mixed_precision", "no"]
    command += [str(RECIPES / "pretrain.py"), *together.argv(*continuing(base, *overrides))]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = alone.losses(), together.losses()
    assert one.keys() == two.keys() and all(abs(one[step] - two[step]) < 1e-5 for step in one)
    model = AutoModelForCausalLM.from_pretrained(together.output_dir / "model")
    kept = load_file(base.output_dir / "model" / "model.safetensors")["model.embed_tokens.weight"]
    assert not torch.equal(model.get_input_embeddings().weight[: len(kept)], kept), "with new tokens they are trained"


def refusal(base: TinyRun, tmp_path, **settings) -> str:
    tokenizer = AutoTokenizer.from_pretrained(base.output_dir / "tokenizer")
    model = Model(from_pretrained=str(tmp_path / "model"), **settings)
    with pytest.raises(RecipeError) as refused:
        load_model(model, tokenizer, base.output_dir / "tokenizer", 32)
    return str(refused.value)


def test_a_model_that_does_not_fit_its_config_is_refused_with_the_tensors(base, tmp_path):
    shutil.copytree(base.output_dir / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    gate = weights.pop("model.layers.1.mlp.gate_proj.weight")
    save_file(weights | {"model.layers.7.mlp.gate_proj.weight": gate}, tmp_path / "model" / "model.safetensors")
    message = refusal(base, tmp_path)
    assert "missing keys: model.layers.1.mlp.gate_proj.weight" in message
    assert "unexpected keys: model.layers.7.mlp.gate_proj.weight" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bloom"}, "is of type 'bloom'; choose a model of one of: Llama, Mistral, Qwen2, Qwen3"),
        ({"max_position_embeddings": 16}, "was made for 16 tokens, which is less than training.sequence_length=32"),
        ({"intermediate_size": 48}, "does not fit its config.json: mismatched keys"),
    ],
)
def test_a_model_that_cannot_be_continued_is_refused(change, message, base, tmp_path):
    shutil.copytree(base.output_dir / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    assert message in refusal(base, tmp_path)


def test_adapters_for_projections_that_are_not_there_are_refused_with_those_that_are(base, tmp_path):
    shutil.copytree(base.output_dir / "model", tmp_path / "model")
    message = refusal(base, tmp_path, lora=Lora(targets=["query", "q_proj"]))
    assert "model.lora.targets: no query; the layers have down_proj, gate_proj" in message


def test_a_folder_without_a_model_is_refused(base, tmp_path):
    (tmp_path / "model").mkdir()
    assert "cannot be loaded" in refusal(base, tmp_path)


def test_another_base_makes_its_tokenizer_stale(base, adapted, tmp_path):
    shutil.copytree(base.output_dir / "model", tmp_path / "model")
    (tmp_path / "model" / "stage.json").unlink()
    argv = adapted.argv(f"--model.from_pretrained={tmp_path / 'model'}", *SHORT, ADAPTERS, "--training.save_steps=4")
    with pytest.raises(RecipeError, match=r"base.from_pretrained was .*; base.content was .*--overwrite"):
        train_tokenizer.main(argv)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--model.from_pretrained=x", "--training.learning_rate=null"],
            "training.learning_rate: missing; the rule that sets it is for new models",
        ),
        (["--model.lora={}"], "model.lora: needs a model to apply to; set model.from_pretrained"),
        (["--tokenizer.extend_by=5"], "tokenizer.extend_by: there is no tokenizer to extend"),
        (["--model.hidden_size=null"], "model.hidden_size: missing; it says: Width. Or set model.from_pretrained"),
        (["--model.from_pretrained=x", "--model.lora={}"], "training.optimizer: muon is for full matrices"),
        (
            ["--model.from_pretrained=x", "--model.lora.rank=0"],
            "lora.rank: input should be greater than or equal to 1",
        ),
    ],
)
def test_settings_that_cannot_go_together_are_refused(overrides, message):
    with pytest.raises(RecipeError) as refused:
        load_recipe([RECIPES / "custom" / "base.yaml"], overrides)
    assert message in str(refused.value)
