# SPDX-License-Identifier: Apache-2.0
"""The release of a small run: its files, what is refused, its card, and what the Hub gets."""

import importlib
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import torch
from datasets import load_dataset
from datatrove.data import Document
from huggingface_hub import ModelCard, metadata_load, parse_eval_result_entries
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from mini_hub import ask_hub, git_oid, hub_environment, start_hub
from ruamel.yaml import YAML
from run_file_keys import unknown_keys
from safetensors.torch import load_file, save_file
from small_models import FAMILY_CONFIGS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import ROOT, TinyRun
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import pretrain
import verify_run
from atomic_files import file_sha256, write_json
from audit_leaks import measure_membership, measure_verbatim
from card_text import escape_markdown
from corpus.canaries import CANARIES
from corpus.document_files import DocumentWriter, write_documents
from corpus.dropped_samples import SAMPLES
from corpus.reading import load_extract_text
from file_hashes import MEMORY, checksum, identify, load_memory
from provenance.audit_record import describe_inputs
from provenance.audited_documents import AuditedDocument
from provenance.leak_findings import describe_findings, describe_limits
from provenance.leak_measures import Reading
from publishing import base_model, release_checks, revision_queue
from publishing.base_licence import check_licence, refuse_licence
from publishing.base_model import find_base
from publishing.extra_releases import build_dataset_release, build_tokenizer_release, why_withheld
from publishing.hub_transfer import git_sha1, is_same_file
from publishing.leak_limits import refuse_leaks
from publishing.local_paths import remove_words, shorten_paths
from publishing.model_card import sum_checked, write_card
from publishing.notice import write_notice
from publishing.release_checks import refuse_odd_files, refuse_secrets, refuse_secrets_in_text
from publishing.release_files import build_release
from publishing.repositories import check_repositories
from publishing.revision_queue import queue_revision, take_weights
from push_to_hub import build, main
from recipe_config import Average, Distillation, Lora, Recipe, RecipeError
from recipe_loading import load_recipe
from recorded_files import RUN_FILES, record_run_files
from run_folder import record_stage
from stages import output_folder


TOKEN = "hf_" + "aB3" * 11  # built here, so that this file contains none
HOSTILE = "CC <script>alert(1)</script> | --- | ![x](http://evil.example/y.png)\n---\n# heading `code` [a](b)"
SOURCES = {"contracts": "legal", "stories": "general"}
KINDS = ("xz_documents", "xz_stream", "xz_primed")
PLANNED_HOURS = {"expected": 2.0, "least": 1.0, "most": 4.0}
TRAINING = ["--training.save_steps=4", "--training.max_tokens=4096"]


# A run folder as the stages leave it


def write_model(folder: Path, **settings: object) -> LlamaForCausalLM:
    """Write a model of 2 layers and a tokenizer of the 256 bytes and <|endoftext|>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|endoftext|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        **shape, **settings, vocab_size=len(vocabulary), max_position_embeddings=128, bos_token_id=0, eos_token_id=0
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model


def write_run(run: Path) -> None:
    """Write what the stages write, with a hostile licence and sample."""
    parameters = sum(parameter.numel() for parameter in write_model(run / "model").parameters())
    embedding = 257 * 32

    def counted(documents: int) -> dict:
        return {"documents": documents, "bytes": 1000 * documents}

    splits = {"train": counted(31), "validation": counted(3), "test": counted(2)}
    source = {"url": None, "revision": None, "documents_in": 41, "bytes_in": 41000, "families": None}
    source |= {"dated_documents": 12, "first_date": "1999-01-02", "last_date": "2023-05-31"}
    source |= {"dropped": {"near_duplicate": counted(4), "too_short": counted(1)}, "kept": splits}
    source["personal_data"] = {"email": 21}
    stats = {name: source | {"domain": domain, "license": None, "path": name} for name, domain in SOURCES.items()}
    report = {"vocab_size": 257, "train_bytes": dict.fromkeys(SOURCES, 31000), "terms": {}}
    ratios = {"domain tokenizer": {"contracts": 4.42, "stories": 3.71}, "general tokenizer": {"contracts": 2.79}}
    ratios["general tokenizer"]["stories"] = 3.96
    training = {
        "parameters": {"total": parameters, "embedding": embedding, "non_embedding": parameters - embedding},
        "sequence_length": 128,
        "tokens_per_step": 256,
        "max_steps": 20,
        "tokens_seen": 5120,
        "seconds": 61.5,
        "tokens_per_second": 83.3,
        "flops": 1.4e9,
        "flops_convention": "6 * parameters * tokens",
        "device": "cpu, 2 threads",
        "num_processes": 1,
        "mixed_precision": "no",
        "compiled": False,
        "mixture": {
            name: {"asked_fraction": share, "delivered_fraction": share, "bytes_seen": 9000, "tokens_seen": 2560}
            | {"repetitions": 0.29}
            for name, share in (("contracts", 0.6), ("stories", 0.4))
        },
    }
    metrics = [{"step": 20, "train/loss": 2.5}, {"step": 20, "eval/bits_per_byte": 2.345}]
    metrics[1] |= {"eval/bits_per_byte/contracts": 2.123, "eval/bits_per_byte/stories": 2.567}
    entry = {"documents": 2, "bytes": 2000, "tokens": 2000, "nats": 2000.0, "confidence_interval": [1.31, 1.52]}
    scores = {
        "contracts": entry
        | {"domain": "legal", "bits_per_byte": 1.412, "documents": 9, "families": 2, **dict.fromkeys(KINDS, 1.777)},
        "stories": entry | {"domain": "general", "bits_per_byte": 2.13, **dict.fromkeys(KINDS)},
    }
    score = {"value": 0.27, "stderr": 0.044, "interval": [0.191, 0.366], "chance": 0.25}
    score |= {"constant": 0.292, "constant_answer": "no | doubt", "baseline": 0.292}
    task = {"metrics": {"acc": score}, "chance": 0.25, "num_items": 96, "version": 1.0}
    task["gold_bits_per_byte"] = {"value": 1.234, "stderr": 0.056}
    apart = {"clean": 0.24, "overlapping": 0.33}
    task["by_overlap"] = {
        group: {"num_items": 40, "chance": 0.25, "metrics": {"acc": {"value": value, "stderr": 0.07}}}
        for group, value in apart.items()
    }
    task["by_overlap"]["not_checkable"] = {"num_items": 16, "chance": 0.25, "metrics": None}
    checked = {"items": 96, "checkable": 80, "not_checkable": {"too_short": [], "template": []}, "overlaps": []}
    checked |= {"overlapping_items": 42, "overlapping_items_after_removal": 40, "removed": {"contracts": counted(7)}}
    settings = {"min_overlap_fraction": 0.5, "ngram_words": 13, "sha256": {"legal_sense": "0" * 64}}
    decontamination = {"settings": settings, "removed": {"contracts": counted(7)}, "tasks": {"legal_sense": checked}}
    results = {
        "format": 1,
        "model": str(run / "model"),
        "settings": {"split": "test", "context_length": 128},
        "bits_per_byte": {"sources": scores, "domains": {}},
        "tasks": {"legal_sense": task},
        "samples": [{"prompt": "The court", "text": HOSTILE}],
    }
    contents = {"documents/stats.json": {"sources": stats}, "tokenizer/report.json": report, "training.json": training}
    contents |= {"eval/results.json": results, "tokens/manifest.json": {"format": 1}}
    contents["documents/decontamination.json"] = decontamination
    report["bytes_per_token"] = ratios
    for name, content in contents.items():
        (run / name).parent.mkdir(exist_ok=True)
        write_json(run / name, content)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    for name in SOURCES:
        rows = [Document(f"A story, {index}.", f"{index:032x}", metadata={"source": name}) for index in range(3)]
        for split in ("train", "validation", "test"):
            (run / "documents" / split / name).mkdir(parents=True)
            write_documents(rows, 0, 1, run / "documents" / split / name)
    (run / "tokenizer" / "README.md").write_text("---\nlicense: mit\n---\n# A tokenizer\n")
    for path in (run / "model").glob("tokenizer*.json"):
        shutil.copyfile(path, run / "tokenizer" / path.name)
    (run / "figures").mkdir()
    (run / "figures" / "bits_per_byte.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    linked = ("documents/stats.json", "documents/decontamination.json", "eval/results.json", "documents/other.json")
    links = "".join(f'<a href="{path}"><code>{path}</code></a>' for path in linked)
    (run / "report.html").write_text(f"<!DOCTYPE html><title>run</title>{links}")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with a recipe, its texts and its run in `run/`, complete up to the report."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in SOURCES:
        (folder / f"{name}.txt").write_text(f"The text of {name}.")
    (folder / "data.py").write_text("def extract_text(example, source):\n    return example['text']\n")
    shares = zip(SOURCES.items(), (0.6, 0.4), strict=True)
    sources = [{"name": n, "path": str(folder / f"{n}.txt"), "domain": d, "share": s} for (n, d), s in shares]
    sources[list(SOURCES).index("contracts")] |= {"license": HOSTILE, "url": "https://example.org/contracts_v1"}
    recipe = {
        "run": {"output_dir": str(folder / "run")},
        "data": {"sources": sources, "personal_data": {"profile": "general", "actions": {"ip": "leave"}}},
        "model": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        "training": {"max_tokens": 5120, "tokens_per_step": 256, "sequence_length": 128, "learning_rate": 0.01},
        "hub": {"license": "mit", "language": ["no", "en"]},
    }
    recipe["training"] |= {"per_device_train_batch_size": 2, "warmup_steps": 2}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    write_run(folder / "run")
    for name in (SAMPLES, "documents.html"):
        (folder / "run" / name).write_text("a dropped document")
    for stage in ("prepare", "tokenizer", "tokenize", "pretrain", "evaluate", "report"):
        record_stage(load(folder), stage)
    return folder


def load(workspace: Path, run: Path | None = None, **hub: object) -> Recipe:
    overrides = [f"--run.output_dir={run}"] if run else []
    overrides += [f"--hub.{key}={json.dumps(value)}" for key, value in hub.items()]
    return load_recipe([workspace / "recipe.yaml"], overrides)


@pytest.fixture
def recipe(workspace, tmp_path) -> Recipe:
    """The recipe of a copy of the run that a test may spoil."""
    shutil.copytree(workspace / "run", tmp_path / "run")
    return load(workspace, tmp_path / "run")


@pytest.fixture(scope="module")
def release(workspace) -> Path:
    return made(load(workspace))


@pytest.fixture(scope="module")
def card(release) -> str:
    return (release / "README.md").read_text()


def made(recipe: Recipe) -> Path:
    """Make the release and return its folder."""
    build_release(recipe)
    return output_folder(recipe, "publish")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def rewrite(path: Path, change) -> None:
    content = read(path)
    change(content)
    write_json(path, content)


def test_the_files_written_by_hand_here_have_the_keys_that_the_stages_write(evaluated_run, workspace):
    files = ["documents/stats.json", "documents/decontamination.json", "tokenizer/report.json", "training.json"]
    assert unknown_keys(workspace / "run", evaluated_run.output_dir, [*files, "eval/results.json"]) == {}


def test_a_finished_run_is_released_with_gguf_files_that_the_card_explains(workspace, tmp_path, capsys):
    pytest.importorskip("gguf", reason="needs pip install gguf==0.19.0")
    shutil.copytree(workspace / "run", tmp_path / "run")
    argv = ["--config", str(workspace / "recipe.yaml"), f"--run.output_dir={tmp_path / 'run'}"]
    with pytest.raises(RecipeError, match="hub.gguf: .* has no merges"):
        main([*argv, "--gguf", "f16"])

    def merge_once(content: dict) -> None:
        content["model"]["vocab"]["\u0120t"] = content["model"]["vocab"].pop("\u00ff")  # a byte that UTF-8 has not
        content["model"]["merges"] = [["\u0120", "t"]]

    rewrite(tmp_path / "run" / "model" / "tokenizer.json", merge_once)
    record_stage(load(workspace, tmp_path / "run"), "pretrain")
    for stage in ("evaluate", "report"):
        record_stage(load(workspace, tmp_path / "run"), stage)
    with pytest.raises(RecipeError, match="--gguf f16,q4: q4 is not f16 or q8_0"):
        main([*argv, "--gguf", "f16,q4"])
    main([*argv, "--gguf", "f16,q8_0"])
    assert "--gguf f16,q8_0" in capsys.readouterr().out
    release = tmp_path / "run" / "release"
    assert {"run-f16.gguf", "run-q8_0.gguf", "Modelfile", "gguf.json"} <= read(release / "manifest.json")[
        "files"
    ].keys()
    card = (release / "README.md").read_text()
    assert "ollama create run -f Modelfile" in card and "llama-completion -m run-f16.gguf" in card
    assert "| run-q8\\_0.gguf | q8\\_0 | transformers" in card and "every tensor" in card


# Refusals


@pytest.mark.parametrize("name", [".env", "training_args.bin", "model.pkl", "notes.txt", "modeling_custom.py"])
def test_a_model_folder_with_anything_else_in_it_is_refused(recipe, name):
    (Path(recipe.run.output_dir) / "model" / name).write_text("x")
    with pytest.raises(RecipeError, match=f"{name} does not belong to a release"):
        build_release(recipe)
    assert not output_folder(recipe, "publish").exists()


@pytest.mark.parametrize("name", ["model/config.json", "training.json", "figures/bits_per_byte.png", "eval"])
def test_a_link_is_refused_even_if_it_points_to_the_right_file(recipe, tmp_path, name):
    path = Path(recipe.run.output_dir) / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match=f"{Path(name).name}.*( is a link|: outside of the folder)"):
        build_release(recipe)


def test_where_a_run_was_before_it_was_moved_is_not_published(recipe, workspace):
    assert read(Path(recipe.run.output_dir) / "eval" / "results.json")["model"] == str(workspace / "run" / "model")
    release = made(recipe)
    assert read(release / "results.json")["model"] == "run/model"
    texts = [path for path in release.rglob("*") if path.suffix in (".json", ".jsonl", ".html", ".md", ".yaml")]
    assert not [path.name for path in texts if str(workspace / "run") in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", ["model/model.safetensors", "eval/results.json", "documents/stats.json"])
def test_a_file_that_changed_since_its_stage_is_refused(recipe, name):
    path = Path(recipe.run.output_dir) / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=f"{path.parent} is damaged: {path.name}: its sha256 is not the one"):
        build_release(recipe)


@pytest.mark.parametrize("name", ["training.json", "metrics.jsonl", "report.html", "samples.jsonl"])
def test_a_file_of_the_run_folder_that_changed_since_it_was_recorded_is_refused(recipe, name):
    run = Path(recipe.run.output_dir)
    (run / "samples.jsonl").write_text('{"text": "a run"}\n')  # which the report shows
    record_run_files(run, ("training.json", "metrics.jsonl", "report.html", "samples.jsonl"))
    text = (run / name).read_text()
    (run / name).write_text(text.replace("5120", "5121").replace("2.123", "0.123").replace("run", "ran"))
    with pytest.raises(RecipeError, match=f"{name}: its sha256 is not the recorded one; restore it from a copy"):
        build_release(recipe)
    (run / name).write_text(text)
    (run / RUN_FILES).write_text("{")
    with pytest.raises(RecipeError, match=f"{RUN_FILES} cannot be read. Restore {RUN_FILES} from a copy"):
        build_release(recipe)
    (run / RUN_FILES).unlink()
    (run / "status.json").write_text('{"status": "finished"}')
    with pytest.raises(RecipeError, match=f"{RUN_FILES} lacks the files of training, which is finished. Restore"):
        build_release(recipe)


def rot(run: Path, name: str) -> Path:
    """Flip a bit as a disk does, which keeps the size and times under which the file's hash is remembered."""
    path = run / name
    memory, sha256, content = run / MEMORY, file_sha256(path), bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    text = json.dumps(load_memory(memory) | {str(path): [*identify(path), sha256]})
    memory.write_text(f"{checksum(text)}\n{text}")
    return path


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", "model/config.json", "figures/bits_per_byte.png", "eval/results.json"]
)
def test_a_bit_that_flipped_on_the_disk_is_seen_in_what_is_published(recipe, name):
    path = rot(Path(recipe.run.output_dir), name)
    with pytest.raises(RecipeError, match=f"{path}: its sha256 is not the recorded one; restore it from a copy, or"):
        build_release(recipe)
    assert not output_folder(recipe, "publish").exists()


def test_a_bit_that_flipped_on_the_disk_is_seen_in_the_tokenizer_and_the_text_that_are_published(recipe):
    run = Path(recipe.run.output_dir)
    recipe.hub.repo_id, recipe.hub.tokenizer_repo_id, recipe.hub.dataset_repo_id = "me/a", "me/words", "me/stories"
    recipe.data.sources[1].license, recipe.hub.dataset_text = "Public Domain", True
    rot(run, "tokenizer/tokenizer.json")
    with pytest.raises(RecipeError, match=r"tokenizer.json: its sha256 is not the recorded one"):
        build_tokenizer_release(recipe)
    (text,) = (run / "documents" / "test" / "stories").glob("*.parquet")
    rot(run, str(text.relative_to(run)))
    with pytest.raises(RecipeError, match=rf"{text}: its sha256 is not the recorded one"):
        build_dataset_release(recipe)
    assert not list(run.glob("release_*"))


def test_results_of_other_weights_are_refused(recipe):
    model = Path(recipe.run.output_dir) / "model" / "model.safetensors"
    weights = load_file(model)
    weights["model.norm.weight"] += 1
    save_file(weights, model, metadata={"format": "pt"})
    record_stage(recipe, "pretrain")
    with pytest.raises(RecipeError, match="eval is out of date: the output of pretrain changed"):
        build_release(recipe)


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        ("a Hugging Face token", TOKEN),
        ("an AWS access key", "AKIA" + "Z9" * 8),
        ("a private key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
        ("a password in a URL", "https://someone:" + "opensesame@example.org/x"),
    ],
)
def test_a_secret_is_refused_by_kind_and_never_shown(recipe, kind, secret):
    rewrite(Path(recipe.run.output_dir) / "training.json", lambda content: content.update(device=f"with {secret}"))
    with pytest.raises(RecipeError) as refused:
        build_release(recipe)
    assert "training.json, byte" in str(refused.value)
    assert kind in str(refused.value)
    assert secret not in str(refused.value)
    assert not output_folder(recipe, "publish").exists()


HEX, MIXED, UUID = (
    "0123456789abcdef" * 3,
    "aB3dE6gH9jK2mN5pQ8rS1tU4vW7xY0zA" * 4,
    "0123abcd-4567-89ef-0123-456789abcdef",
)
FORMS = {  # in pieces, so that this file contains none
    "a JSON web token": "eyJ" + MIXED[:20] + ".eyJ" + MIXED[:30] + "." + MIXED[:43],
    "a GitLab token": "glp" + "at-" + MIXED[:20],
    "an npm token": ["npm" + "_" + MIXED[:36], "//registry.example/:_auth" + f"Token={UUID}"],
    "a Stripe key": "sk" + "_live_" + MIXED[:24],
    "a Weights & Biases key": [
        "WANDB_API" + f"_KEY={HEX[:40]}",
        "wandb" + f"_v1_{MIXED[:77]}",
        'os.environ["WANDB_API' + f'_KEY"] = "{HEX[:40]}"',
        'os.environ.setdefault("WANDB_API' + f'_KEY", "{HEX[:40]}")',
        'wandb_api_key: str | None = "' + f'{HEX[:40]}"',
        "ENV WANDB_API" + f"_KEY {HEX[:40]}",
        "wandb " + f"login {HEX[:40]}",
        "wandb " + f"login --relogin --host https://wandb.example.org {HEX[:40]}",
        'wandb.login(relogin=True, host="https://wandb.example.org", ' + f'key="{HEX[:40]}")',
    ],
    "a Slack webhook": "https://hooks.slack" + ".com/services/T00000000/B00000000/" + MIXED[:24],
    "a Slack token": [
        "xapp" + "-1-A0000000000-" + MIXED[:20],
        "xo" + "xc-1234567890-1234567890-" + MIXED[:32],
        "xo" + "xd-" + f"{MIXED[:12]}%2B{MIXED[:12]}%3D",
    ],
    "a Bearer token": "Authorized as Bea" + f"rer {MIXED[:32]}",
    "a password in an Authorization header": [
        "Author" + f"ization: Basic {MIXED[:24]}==",
        'headers["Author' + f'ization"] = "Bearer {HEX[:40]}"',
        'headers.set("author' + f'ization", f"Token {HEX[:40]}")',
    ],
    "an Azure shared access signature": "https://x.blob.example/c?sv=2022&si" + f"g={MIXED[:43]}%3D&se=2030",
    "an Azure storage key": [f"Account{'Key'}={MIXED[:86]}==", f'"Account{"Key"}": "{MIXED[:86]}=="'],
    "a Google client secret": "GOC" + f"SPX-{MIXED[:28]}",
    "a Google access token": "ya" + f"29.{MIXED[:60]}",
    "an AWS secret key": [
        '"Secret' + f'AccessKey": "{MIXED[:38]}/+"',
        "aws_secret" + f"_access_key = {MIXED[:40]}",
        'os.environ["AWS_SECRET' + f'_ACCESS_KEY"] = "{MIXED[:40]}"',
        "aws configure set aws_secret" + f"_access_key {MIXED[:40]}",
        "<Secret" + f"AccessKey>{MIXED[:40]}</SecretAccessKey>",
        "AWS_SEC" + f"RET={MIXED[:40]}",
    ],
    "a password in a URL": ["redis://:" + "hunter2@cache.example.org:6379/0", "amqp://me:" + "hunter2@mq.example.org"],
    "the value of a secret setting": [
        'DB_PASS="' + 'hunter2hunter2"',
        'OPENAI_KEY = "' + f'{HEX[:32]}"',
        "MY_CREDENTIAL=" + MIXED[:24],
        'api_key: str = "' + f'{HEX[:32]}"',
        'api_key: SecretStr = SecretStr("' + f'{HEX[:32]}")',
        '{"apiKey": "' + f'{HEX[:32]}"' + "}",
        "db_password: " + "hunter2-hunter2",
        "export SERVICE_TOKEN=" + HEX[:32],
        'client = Client(access_token="' + f'{HEX[:32]}", timeout=3)',
        "<clientSecret>" + f"{HEX[:32]}</clientSecret>",
    ],
}


@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind, f in FORMS.items() for form in np.atleast_1d(f)])
def test_the_forms_of_services_are_found_in_files_and_in_json(tmp_path, kind, form):
    (tmp_path / "chronicle.md").write_text(f"A line.\n{form}\n")
    (tmp_path / "plan.json").write_text(json.dumps({"notes": json.dumps({"text": str(form)})}))
    with pytest.raises(RecipeError) as refused:
        refuse_secrets(tmp_path, set())
    for name in ("chronicle.md", "plan.json"):
        assert f"looks like {kind}; " in next(line for line in refused.value.problems if line.startswith(name))
    with pytest.raises(RecipeError, match=f"document 7: looks like {kind}; "):
        refuse_secrets_in_text([f"The log says {form}."], ["7"], "x.parquet", set())


@pytest.mark.parametrize(
    "text",
    [
        "The bearer http://www.sec.gov/rules/final/33-8518.htm or the bearer of-the-instrument-registered-in-1999",
        "Authorization: basic responsibilities of counsel; authorization = token classification",
        "The secret key to the matter is 0123456789. Secret key: none",
        "MAX_TOKENS=1_000_000_000 CACHE_PASSES = 1000000000000 HF_TOKEN_PATH=/opt/v2/token SSH_KEY=~/.ssh/id_ed25519",
        "TOKEN = read_token_of_version2(path); API_KEY=${OPENAI_KEY_2_OF_3} secret_key = $SECRET_KEY_OF_2024",
        'API_KEY = os.environ["API_KEY_NUMBER_2"]; password: at least 8 characters; ("f1_per_token", "f1_calibrated")',
        f'wandb login, then revision {HEX[:40]}; "cache_key": "v2-{HEX[:40]}", "token": "a1b2c3d4e5f6a7b8"',
        '{"bits_per_token": "gpt4-like-words", "PER_SECRET": 1.234567890123e-05, "access_token": 9.8765432101e+7}',
        "The Secretary: 17CFR240.12b-2, and secrets: see 15U.S.C.78dd-1; the password, 8-characters-or-more",
        "http://[2001:db8::1]:8080/ and https://example.org:443/a@b and a://:8080/x",
        "npm_config_registry, wandb 0.19.1, sk_learn_test_suite, npm_lifecycle_script_of_the_package_manager",
        f"wandb/run-20240101 at revision {HEX[:40]}",
        "data:image/png;base64," + MIXED * 4,
    ],
)
def test_plain_text_gives_no_false_alarm(tmp_path, text):
    (tmp_path / "chronicle.md").write_text(text)
    refuse_secrets(tmp_path, set())


def test_the_files_of_a_real_run_and_its_release_give_no_false_alarm(evaluated_run, tmp_path):
    refuse_secrets(evaluated_run.output_dir, set())
    run = evaluated_run.copy(tmp_path / "run")
    (run.output_dir / "documents" / "decontamination.json").unlink()  # written by no stage here
    overrides = run.argv("--training.sequence_length=128", "--hub.license=mit")[2:]
    released = made(load_recipe([ROOT / "recipes" / "custom" / "base.yaml"], overrides))
    assert {"training.json", "metrics.jsonl", "chronicle.jsonl", "recipe.yaml"} <= {p.name for p in released.iterdir()}


def test_only_the_header_of_weights_is_searched(tmp_path):
    noise = np.frombuffer(TOKEN.encode().ljust(40, b"x"), dtype=np.uint8)
    save_file({"weight": torch.from_numpy(noise.copy())}, tmp_path / "model.safetensors")
    refuse_secrets(tmp_path, set())
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"note": TOKEN})
    with pytest.raises(RecipeError, match="model.safetensors, byte .* a Hugging Face token"):
        refuse_secrets(tmp_path, set())


def test_a_secret_in_a_binary_file_is_found(recipe):
    with (Path(recipe.run.output_dir) / "figures" / "bits_per_byte.png").open("ab") as file:
        file.write(b"\0\xff" + TOKEN.encode() + b"\0")
    record_stage(recipe, "report")
    with pytest.raises(RecipeError, match="figures/bits_per_byte.png, byte 10: looks like a Hugging Face token"):
        build_release(recipe)


@pytest.mark.parametrize(
    ("user", "host", "text", "refused"),
    [
        ("mary-ann", "box", "trained by mary-ann", "your user name"),
        ("alice", "box", "read from /data/alice/texts", "your user name"),
        ("alice", "box", "alice@cluster", "your user name"),
        ("alice", "box", "a text about alice in wonderland", None),
        ("root", "gpu-node-17", "on gpu-node-17, 8 devices", "this machine's name"),
        ("root", "localhost", "on localhost, in /root-cause", None),
        ("me", "box", "https://huggingface.co/me/tiny", None),
    ],
)
def test_the_names_of_user_and_machine_are_not_published(tmp_path, monkeypatch, user, host, text, refused):
    monkeypatch.setattr(release_checks, "user_name", lambda: user)
    monkeypatch.setattr("socket.gethostname", lambda: host)
    (tmp_path / "training.json").write_text(json.dumps({"notes": [text]}))
    if refused is None:
        return refuse_secrets(tmp_path, set())
    with pytest.raises(RecipeError, match=f"training.json, byte .*looks like {refused}"):
        refuse_secrets(tmp_path, set())
    refuse_secrets(tmp_path, {user, host})  # the name under which it is published


@pytest.mark.parametrize(
    "name",
    [
        *("WANDB_API_KEY", "MY_SECRET", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"),
        *("DB_PASS", "MY_CREDENTIAL", "OPENAI_KEY", "DB_PWD", "SLACK_WEBHOOK"),
    ],
)
def test_the_value_of_a_secret_variable_is_refused_whatever_it_looks_like(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "correct horse battery")
    (tmp_path / "chronicle.md").write_text("logged in with correct horse battery")
    with pytest.raises(RecipeError, match=f"looks like the value of {name}") as refused:
        refuse_secrets(tmp_path, set())
    assert "horse" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.json", pickle.dumps({"a": 1}), "config.json is not what its name says"),
        ("metrics.jsonl", b'{"step": 1}\n{"step": ', "metrics.jsonl is not what its name says"),
        ("figures/loss.png", b"PK\x03\x04", "figures/loss.png is of a kind that is not published, or not what"),
        ("model.safetensors", b"\xff" * 64, "model.safetensors is not safetensors"),
        ("training_args.bin", b"", "training_args.bin is of a kind that is not published"),
        (".env", b"", ".env is a hidden file"),
        ("runs/events.out.tfevents.0", pickle.dumps(1), "is not a TensorBoard log"),
        ("notes/.git/config", b"", "notes/.git is a hidden file"),
    ],
)
def test_a_file_that_is_hidden_or_does_not_match_its_name_is_refused(tmp_path, name, content, problem):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=re.escape(problem)):
        refuse_odd_files(tmp_path)


def test_code_that_a_config_names_is_refused(recipe):
    rewrite(Path(recipe.run.output_dir) / "model" / "config.json", lambda config: config.update(auto_map={"a": "b.c"}))
    for stage in ("pretrain", "evaluate", "report"):
        record_stage(recipe, stage)
    with pytest.raises(RecipeError, match="auto_map names code to run"):
        build_release(recipe)


def test_the_data_py_of_a_recipe_is_published_and_checked_without_being_run_but_prepare_runs_it(recipe, tmp_path):
    ran, script = tmp_path / "ran", tmp_path / "data.py"
    script.write_text(
        f"open({str(ran)!r}, 'w').close()\ndef extract_text(example, source):\n    return example['text']\n"
    )
    recipe.data.extract_text = str(script)
    record_stage(recipe, "prepare")
    for stage in ("tokenizer", "tokenize", "pretrain", "evaluate", "report"):
        record_stage(recipe, stage)
    release = made(recipe)
    verify_run.main([recipe.run.output_dir])
    assert (release / "data.py").read_bytes() == script.read_bytes() and not ran.exists()
    load_extract_text(str(script))
    assert ran.exists()


def test_a_secret_in_a_document_is_refused_by_its_id(recipe):
    run = Path(recipe.run.output_dir)
    recipe.hub.repo_id, recipe.hub.dataset_repo_id, recipe.hub.dataset_text = "me/a", "me/b", True
    recipe.data.sources[1].license = "Public Domain"
    folder = run / "documents" / "train" / "stories"
    shutil.rmtree(folder)
    folder.mkdir()
    write_documents([Document(f"The key is {TOKEN}.", "ab" * 16, metadata={"source": "stories"})], 0, 1, folder)
    record_stage(recipe, "prepare")
    with pytest.raises(RecipeError, match="document (ab){16}: looks like a Hugging Face token") as refused:
        build_dataset_release(recipe)
    assert TOKEN not in str(refused.value) and not (run / "release_dataset").exists()


def test_published_text_has_the_same_columns_in_every_split(recipe, tmp_path):
    recipe.data.sources[1].license, recipe.hub.dataset_text = "Public Domain", True
    recipe.hub.repo_id, recipe.hub.dataset_repo_id = "me/a", "me/stories"
    documents = Path(recipe.run.output_dir) / "documents"
    for split in ("validation", "test"):
        (path,) = (documents / split / "stories").glob("*.parquet")
        writer = DocumentWriter(path, families={f"{1:032x}": f"{0:032x}"})
        for index in range(3):
            writer.write(Document(f"A {split} story, {index}.", f"{index:032x}", metadata={"source": "stories"}))
        writer.close()
    record_stage(recipe, "prepare")
    assert len(build_dataset_release(recipe)) == 1, "the other source's licence forbids it"
    folder = str(Path(recipe.run.output_dir) / "release_dataset")
    found = load_dataset(folder, cache_dir=str(tmp_path / "cache"))
    assert {tuple(rows.column_names) for rows in found.values()} == {("id", "source", "text", "date")}
    assert found["test"]["text"] == [f"A test story, {index}." for index in range(3)]
    published = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert not any(b"a dropped document" in path.read_bytes() for path in published)
    described = read(Path(folder) / "croissant.json")
    assert described["url"] == "https://huggingface.co/datasets/me/stories"
    assert [records["@id"] for records in described["recordSet"]] == [f"documents-{split}" for split in found]
    columns = {
        field["source"]["extract"]["column"] for records in described["recordSet"] for field in records["field"]
    }
    assert columns == {"id", "source", "text", "date"}
    hashes = {entry["@id"]: entry.get("sha256") for entry in described["distribution"]}
    assert hashes["stats.json"] == file_sha256(Path(folder) / "stats.json")
    croissant = pytest.importorskip("mlcroissant", reason="pip install mlcroissant checks the description")
    dataset = croissant.Dataset(described, mapping={"repository": folder})
    assert not dataset.metadata.ctx.issues.errors
    rows = [row["documents-test/text"].decode() for row in dataset.records("documents-test")]
    assert sorted(rows) == [f"A test story, {index}." for index in range(3)]


@pytest.mark.parametrize(
    ("licence", "change", "reason"),
    [
        ("CC BY-NC 4.0", None, 'a licence of the kind "non-commercial"'),
        ("CC BY 4.0 and a licence of our own", None, 'a licence of the kind "unknown"'),
        ("CC BY 4.0", {"personal_data": None}, "personal data was not looked for"),
        ("CC BY 4.0", {"found": {"ip": 3}}, "personal data was found in it and left: ip"),
        ("CC BY 4.0", {"found": {"email": 3}}, None),
        ("Public Domain", None, None),
    ],
)
def test_text_is_withheld_for_its_licence_and_for_personal_data_that_was_left(recipe, licence, change, reason):
    recipe.data.sources[1].license = licence
    if change == {"personal_data": None}:
        recipe.data.personal_data = None
    stats = {"sources": {"stories": {"personal_data": (change or {}).get("found", {})}}}
    withheld = why_withheld(recipe, "stories", stats)
    assert withheld is None if reason is None else reason in withheld


def test_a_run_folder_that_is_itself_a_link_is_released(recipe, tmp_path):
    run = Path(recipe.run.output_dir)
    run.rename(tmp_path / "scratch")
    run.symlink_to(tmp_path / "scratch", target_is_directory=True)
    build_release(recipe)
    assert (output_folder(recipe, "publish") / "model.safetensors").is_file()


def test_a_release_is_made_where_there_is_neither_a_home_nor_an_account(recipe, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    with pytest.raises(RuntimeError):
        Path.home()
    assert release_checks.home_folder() is None
    build_release(recipe)
    assert (output_folder(recipe, "publish") / "model.safetensors").is_file()


def test_the_home_folder_in_a_file_is_refused(recipe, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    with (Path(recipe.run.output_dir) / "figures" / "bits_per_byte.png").open("ab") as file:
        file.write(b"/home/somebody")
    record_stage(recipe, "report")
    with pytest.raises(RecipeError, match="bits_per_byte.png, byte 8: looks like the path of your home folder"):
        build_release(recipe)


def test_a_recipe_that_shows_the_home_folder_is_refused_by_its_key(workspace, recipe, monkeypatch):
    monkeypatch.setenv("HOME", str(workspace))
    monkeypatch.chdir("/")
    with pytest.raises(RecipeError, match=r"data\.sources\.0\.path=.*lies below your home folder.*set the new path"):
        build_release(recipe)


@pytest.mark.parametrize(
    ("home", "path", "shown"),
    [
        ("/root", "/mnt/root_causes/texts", "mnt/root_causes/texts"),
        ("/root", "/mnt/grassroots", "mnt/grassroots"),
        ("/home/me", "/home/members/texts", "home/members/texts"),
        ("/root", "/root/texts", None),
        ("/home/me", "zip://a.txt::/home/me/texts.zip", None),
    ],
)
def test_the_home_folder_is_known_by_whole_names_of_folders(recipe, monkeypatch, home, path, shown):
    monkeypatch.setenv("HOME", home)
    monkeypatch.chdir("/")
    recipe.data.sources[0].path = recipe.data.sources[1].path = path
    recipe.run.output_dir = "/runs/mine"
    if shown is None:
        with pytest.raises(RecipeError, match=r"data\.sources\.0\.path=.*lies below your home folder"):
            shorten_paths(recipe)
    else:
        assert shorten_paths(recipe).data.sources[0].path == shown


def test_a_model_that_lacks_a_tensor_is_refused(recipe):
    run = Path(recipe.run.output_dir)
    weights = load_file(run / "model" / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, run / "model" / "model.safetensors", metadata={"format": "pt"})
    for stage in ("pretrain", "evaluate", "report"):
        record_stage(recipe, stage)
    with pytest.raises(RecipeError, match=r"the weights are not .*missing \['model.norm.weight'\]"):
        build_release(recipe)


def test_weights_that_are_not_numbers_are_refused(recipe):
    run = Path(recipe.run.output_dir)
    weights = load_file(run / "model" / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, run / "model" / "model.safetensors", metadata={"format": "pt"})
    for stage in ("pretrain", "evaluate", "report"):
        record_stage(recipe, stage)
    with pytest.raises(RecipeError, match="logits differ, or are not numbers"):
        build_release(recipe)


def test_a_parameter_count_other_than_the_models_is_refused(recipe):
    rewrite(Path(recipe.run.output_dir) / "training.json", lambda content: content["parameters"].update(total=7))
    with pytest.raises(RecipeError, match="parameters, not the 7 of training.json"):
        build_release(recipe)


def test_adapters_that_were_merged_do_not_count_as_parameters_of_the_release(recipe):
    def add_adapters(training: dict) -> None:
        training["parameters"]["trained"] = 640
        for part in ("total", "non_embedding"):
            training["parameters"][part] += 640

    training = Path(recipe.run.output_dir) / "training.json"
    exported = read(training)["parameters"]
    rewrite(training, add_adapters)
    card = (made(recipe) / "README.md").read_text()
    assert f"language model with {exported['total']:,} parameters" in card
    assert (
        f"| parameters | {exported['total']:,}: 8,224 in the input embedding, {exported['non_embedding']:,} " in card
    )
    rewrite(training, lambda content: content["parameters"].update(total=exported["total"] + 641))
    with pytest.raises(RecipeError, match="parameters, not the"):
        recipe.hub.license = "apache-2.0"
        build_release(recipe)


def test_a_release_that_was_changed_after_the_checks_is_not_uploaded(recipe):
    release = made(recipe)
    with (release / "README.md").open("a") as file:
        file.write("one more line\n")
    with pytest.raises(RecipeError, match="was changed after it was checked"):
        build(recipe, ["model"])


# The release


def test_the_release_holds_the_allowed_files_and_their_hashes(release):
    model = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    records = ["data_stats.json", "tokenizer_report.json", "training.json", "metrics.jsonl", "results.json"]
    expected = {*model, *records, "README.md", "recipe.yaml", "report.html", "figures/bits_per_byte.png"}
    expected |= {"data_card.md", "decontamination.json", "data.py", "NOTICE.md", "tokenizer_card.md"}
    files = read(release / "manifest.json")["files"]
    assert files.keys() == expected
    assert all(file["sha256"] == file_sha256(release / name) for name, file in files.items())
    assert all(file["bytes"] == (release / name).stat().st_size for name, file in files.items())
    assert not any(b"a dropped document" in path.read_bytes() for path in release.rglob("*") if path.is_file())


def test_the_reports_links_point_to_the_files_of_the_release_or_become_text(release):
    page = (release / "report.html").read_text()
    links = dict(re.findall(r'<a href="([^"]*)"><code>([^<]*)</code></a>', page))
    assert links == {
        "data_stats.json": "documents/stats.json",
        "decontamination.json": "documents/decontamination.json",
        "results.json": "eval/results.json",
    }
    assert all((release / name).is_file() for name in links) and "<code>documents/other.json</code>" in page


def test_the_release_has_the_data_card_without_text_of_the_sources(release, card):
    data_card = (release / "data_card.md").read_text()
    assert "Samples" not in data_card and "configs" not in metadata_load(release / "data_card.md")
    assert "is **unknown** (contracts, stories)" in data_card and "`data_stats.json`" in data_card
    assert "`data_card.md` says how that is derived" in card


def test_the_card_says_that_text_was_not_checked(recipe, workspace):
    (Path(recipe.run.output_dir) / "documents" / "decontamination.json").unlink()
    recipe.data.personal_data = None
    run = Path(recipe.run.output_dir)
    rewrite(run / "documents" / "stats.json", lambda content: content.update(unchecked="evaluation.tasks names none"))
    rewrite(run / "eval" / "results.json", lambda content: content["tasks"]["legal_sense"].update(by_overlap=None))
    for stage in ("prepare", "tokenizer", "tokenize", "pretrain", "evaluate", "report"):
        record_stage(recipe, stage)
    release = made(recipe)
    card = (release / "README.md").read_text()
    assert "not checked against any benchmark: evaluation.tasks names none." in card
    assert "scores on public ones may be too high" in card
    assert "Personal data was not looked for" in card and "it was not checked against them" in card
    assert not (release / "decontamination.json").exists()


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_are_too_large_are_sharded_and_load_as_before(recipe, tied):
    run = Path(recipe.run.output_dir)
    write_model(run / "model", tie_word_embeddings=tied)
    count = 0 if not tied else 257 * 32
    rewrite(
        run / "training.json",
        lambda content: content["parameters"].update(total=content["parameters"]["total"] - count),
    )
    for stage in ("pretrain", "evaluate", "report"):
        record_stage(recipe, stage)
    recipe.hub.max_shard_size = "20KB"
    release = made(recipe)
    shards = sorted(path.name for path in release.glob("*.safetensors"))
    assert len(shards) > 3 and f"-of-{len(shards):05d}.safetensors" in shards[0]
    assert all((release / name).stat().st_size < 40_000 for name in shards)  # a tensor is never cut
    index = read(release / "model.safetensors.index.json")["weight_map"]
    assert set(index.values()) == set(shards) and ("lm_head.weight" in index) != tied


def test_a_large_group_of_tasks_is_in_the_card_by_its_mean_and_a_small_one_task_by_task(recipe):
    run = Path(recipe.run.output_dir)

    def grow(content):
        task = content["tasks"]["legal_sense"]
        for group, size in (("legalbench", 12), ("mmlu_legal", 3)):
            content["tasks"] |= {f"{group}_{number}": task | {"groups": [group]} for number in range(size)}
        mean = {"score": "balanced_acc", "value": 0.512, "interval": [0.49, 0.53], "chance": 0.48, "baseline": 0.5}
        content["groups"] = {"legalbench": mean | {"num_tasks": 12}, "mmlu_legal": mean | {"num_tasks": 3}}
        dataset = {"path": "org/bench", "name": "law", "revision": "0" * 40}
        content["tasks"]["legal_sense"] = task | {"dataset": dataset}
        content["group_parts"] = {"mmlu (3 of 57)": mean | {"num_tasks": 3, "baseline": 0.54}}

    rewrite(run / "eval" / "results.json", grow)
    for stage in ("evaluate", "report"):
        record_stage(recipe, stage)
    release = made(recipe)
    card = (release / "README.md").read_text()
    assert (
        "| legalbench | 12 | 0.480 | 0.500 | balanced\\_acc | 0.512 | 0.490 to 0.530 | above, within noise |" in card
    )
    assert "legalbench\\_1" not in card and "| mmlu\\_legal\\_2 | 96 | 0.250 |" in card
    parts = card[card.index("Means over parts of groups") : card.index("Of groups of many tasks")]
    assert "| mmlu (3 of 57) | 3 | 0.480 | 0.540 | balanced\\_acc | 0.512 | 0.490 to 0.530 | below |" in parts
    assert "are no scores of the groups" in parts and "legalbench" not in parts
    found = json.loads((run / "documents" / "decontamination.json").read_text())["tasks"]["legal_sense"]
    tasks = {f"legalbench_{number}": found for number in range(12)} | {"legal_sense": found}
    rows = sum_checked({"tasks": tasks}, {f"legalbench_{number}": "legalbench" for number in range(12)})
    one = {"items": 96, "checkable": 80, "overlapping_items": 42, "documents": 7, "left": 40}
    assert rows == {"legalbench": {key: 12 * value for key, value in one.items()}, "legal_sense": one}
    assert "mean of 12 tasks" in card and "the tasks one by one are in the [report](report.html)." in card
    (model,) = metadata_load(release / "README.md")["model-index"]
    published = {entry["dataset"]["type"] for entry in model["results"]}
    assert {"legalbench", "mmlu_legal", "mmlu_legal_1"} <= published and not {"mmlu", "mmlu (3 of 57)"} & published
    assert [path.name for path in (release / ".eval_results").iterdir()] == ["legal_sense.yaml"]


def test_a_release_has_the_runs_optional_files_and_the_recipes_settings(recipe, tmp_path):
    run = Path(recipe.run.output_dir)
    (run / "chronicle.md").write_text("# What happened\n")
    (run / "chronicle.jsonl").write_text('{"event": "resumed", "step": 4}\n{"event": "saved", "step": 8}\n')
    hours = {name: {"device_hours": value, "kilowatt_hours": 9.0} for name, value in PLANNED_HOURS.items()}
    plan = {"parameters": {"total": 30_000}, "tokens": 6e3, "flops": {"training": 2e9}, "law": "chinchilla_3"}
    plan["verdict"] = {"choice": "from scratch", "reason": "there is none"}
    write_json(run / "plan.json", plan | {"cost": hours | {"meaning": "without the reserve"}})
    write_json(run / "environment.json", {"python": "3.11", "packages": {"torch": "2.13.0+cpu", "zlib": "1"}})
    dataset = {"path": "org/bench", "name": "law", "revision": "0" * 40, "sha256": "1" * 64}
    task = {"dataset": dataset, "num_fewshot": 5, "by_overlap": None}
    rewrite(run / "eval" / "results.json", lambda content: content["tasks"]["legal_sense"].update(task))
    for stage in ("evaluate", "report"):
        record_stage(recipe, stage)
    recipe.hub.license, recipe.hub.tensorboard, recipe.hub.contact = "apache-2.0", True, "data@example.org"
    release = made(recipe)
    names = read(release / "manifest.json")["files"].keys()
    assert {"chronicle.md", "chronicle.jsonl", "plan.json", "environment.json", "LICENSE", "NOTICE.md"} <= names
    (entry,) = parse_eval_result_entries(YAML(typ="safe").load(release / ".eval_results" / "legal_sense.yaml"))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("org/bench", "law", 0.27)
    assert entry.notes == "task legal_sense, acc, 5-shot, standard error 0.044", "not every task is one of lm-eval"
    events = EventAccumulator(str(release / "runs"), size_guidance={"scalars": 0}).Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("eval/bits_per_byte")] == [(20, 2.345)]
    card, notice = ((release / name).read_text() for name in ("README.md", "NOTICE.md"))
    assert "resumed 1, saved 1" in card and "to data@example.org, with its title" in card
    assert "pip install torch==2.13.0\n" in card
    assert "30,000 parameters and 6,000 tokens for 2e+09 FLOPs by the law `chinchilla\\_3`" in card
    assert "2 hours of a device (1 to 4)" in card and "planned: 9 kWh, without the reserve" in card
    assert "torch 2.13.0" in notice and "| stories | not stated | unknown |" in notice and "<script" not in notice


def write_audit(run: Path, continued_tokens: int) -> None:
    """Write the audit of a run with 200 trained and 200 held-out documents; three trained ones are continued."""
    documents = [AuditedDocument(f"{n:032x}", "contracts", int(n < 200), np.arange(150)) for n in range(400)]
    readings = [Reading(*[continued_tokens if number < 3 else 0] * 2, 100.0, 150, 600) for number in range(400)]
    settings = {"prompt_tokens": 50, "least_tokens": 150, "lengths_left_out": [], "window_tokens": 1024}
    audit = {"format": 1, "made_from": describe_inputs(run), "settings": settings}
    audit["verbatim"] = measure_verbatim(documents, readings, [20, 50, 100]) | {"held_out_in_training_text": 0}
    audit["personal_data"] = {"kinds": ["email"], "samples": 1, "values": [], "in_training_text": 0}
    audit["canaries"] = None
    audit["membership"] = measure_membership(documents, readings, seed=1)
    audit["flags"] = {"verbatim": False, "personal_data": False, "membership": False}
    audit |= {"findings": describe_findings(audit), "cannot_be_concluded": describe_limits(audit)}
    write_json(run / "audit.json", audit)
    record_run_files(run, ("audit.json",))


def test_a_release_with_limits_on_leaks_needs_an_audit_of_its_own_weights(recipe, workspace, capsys):
    run = Path(recipe.run.output_dir)
    limited = load(workspace, run, leak_audit={"max_verbatim_50_fraction": 0.04})
    (run / "documents" / CANARIES).write_text("{}")
    with pytest.raises(RecipeError, match=r"audit.json is missing, and hub.leak_audit requires it; run: python"):
        made(limited)
    write_audit(run, continued_tokens=20)
    record_stage(recipe, "report")
    card = (made(limited) / "README.md").read_text()
    assert "Of 200 documents that were trained on, 3 are continued word for word for 20 tokens" in card
    assert "of 200 never trained on, none" in card
    assert not list(made(limited).rglob(CANARIES))
    assert read(made(limited) / "audit.json") == read(run / "audit.json")
    write_audit(run, continued_tokens=50)
    record_stage(recipe, "report")
    with pytest.raises(RecipeError, match=r"0_fraction=0.04: 3 of 200 trained documents .* up to 0.043 of all"):
        made(limited)
    rewrite(run / "audit.json", lambda audit: audit["made_from"].update(model="0" * 64))
    record_run_files(run, ("audit.json",))
    record_stage(recipe, "report")
    with pytest.raises(RecipeError, match="is of another model than this run's, and hub.leak_audit requires it"):
        made(limited)
    assert not (made(recipe) / "audit.json").exists()
    assert "What it gives away" not in (made(recipe) / "README.md").read_text()
    with pytest.raises(RecipeError, match="publishes weights before leak_audit can check them"):
        load(workspace, run, leak_audit={}, repo_id="me/tiny", revision_steps=500)
    write_audit(run, continued_tokens=20)
    with pytest.raises(RecipeError, match="no records were planted; set data.canaries"):
        refuse_leaks(load(workspace, run, leak_audit={"max_verbatim_50_fraction": 0.04, "max_exposure_bits": 3}))


@pytest.mark.parametrize(("was", "becomes"), [('"interval"', '"intervbl"'), ("0.04", "0.00"), ("{", "[")])
def test_an_audit_with_a_flipped_bit_meets_no_limit_and_is_not_published(recipe, workspace, was, becomes):
    run = Path(recipe.run.output_dir)
    write_audit(run, continued_tokens=50)
    limited = load(workspace, run, leak_audit={"max_verbatim_50_fraction": 0.04})
    audit = (run / "audit.json").read_text()
    (run / "audit.json").write_text(audit.replace(was, becomes, 1))
    record_stage(recipe, "report")
    with pytest.raises(RecipeError, match=r"audit.json is damaged: its sha256 is not the recorded one, and hub.leak"):
        refuse_leaks(limited)
    with pytest.raises(RecipeError, match=r"audit.json: its sha256 is not the recorded one"):
        made(recipe)
    (run / "audit.json").write_text(audit)
    (run / RUN_FILES).unlink()
    with pytest.raises(RecipeError, match=r"audit.json has no recorded sha256, as where .* earlier version, and"):
        refuse_leaks(limited)
    (run / RUN_FILES).write_text("{")
    with pytest.raises(RecipeError, match=rf"audit.json cannot be checked: {RUN_FILES} cannot be read, and"):
        refuse_leaks(limited)


def test_paths_below_the_home_folder_are_shown_relative(workspace, monkeypatch, tmp_path):
    shutil.copytree(workspace, tmp_path / "home" / "work", symlinks=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "work")
    recipe = load(workspace, tmp_path / "home" / "work" / "run", license="mit")
    note = f"skipped {tmp_path}/home/work/run/checkpoints/step_00000010"
    rewrite(Path(recipe.run.output_dir) / "training.json", lambda content: content.update(notes=[note]))
    release = made(recipe)
    assert load_recipe([release / "recipe.yaml"]).run.output_dir == "run"
    training = read(release / "training.json")
    assert training["notes"] == ["skipped run/checkpoints/step_00000010"]


def test_no_file_of_a_release_names_a_local_folder(workspace, tmp_path):
    matter = tmp_path / "matters" / "acme_v_smith"
    shutil.copytree(workspace / "run", matter / "run")
    shutil.copyfile(workspace / "contracts.txt", matter / "contracts.txt")
    recipe = load(workspace, matter / "run", repo_id="me/a", tokenizer_repo_id="me/b", dataset_repo_id="me/c")
    recipe.data.sources[0].path = str(matter / "contracts.txt")
    recipe.tokenizer.compare_with = [f"zip://tekken.json::{matter}/other.whl"]
    recipe.evaluation.prompts = ["/s/ Jane Roe, for the"]
    recipe.tokenizer.terms = ["estoppel", "Wächter & Co"]
    recipe.hub.confidential = ["Wächter & Co", "old"]
    paths = {
        "contracts": str(matter / "contracts.txt"),
        "stories": str(tmp_path / "matters" / "acme_v_smith_2" / "old"),
    }
    rewrite(
        matter / "run" / "documents" / "stats.json",
        lambda stats: [stats["sources"][name].update(path=path) for name, path in paths.items()],
    )
    notes = [f"skipped {matter}/run/checkpoints/step_00000010", f"read {matter}/contracts.txt:7"]
    notes += ["prompted by WÄCHTER & CO, of older and old_name"]
    rewrite(matter / "run" / "training.json", lambda training: training.update(notes=notes))
    for stage in ("prepare", "tokenizer", "tokenize", "pretrain", "evaluate", "report"):
        record_stage(recipe, stage)
    folders = [*build(recipe, ["model", "tokenizer", "dataset"]).values()]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != "stage.json"]
    assert len(folders) == 3 and not [path for path in files if b"acme_v_smith" in path.read_bytes()]
    spellings = ("Wächter & Co", "WÄCHTER", json.dumps("Wächter & Co")[1:-1], "W&auml;chter")
    assert not [path for path in files if any(spelling.encode() in path.read_bytes() for spelling in spellings)]
    shown = load_recipe([folders[0] / "recipe.yaml"])
    assert (shown.run.output_dir, shown.data.sources[0].path) == ("run", "contracts.txt")
    assert shown.tokenizer.compare_with == ["zip://tekken.json::other.whl"]
    assert shown.evaluation.prompts == recipe.evaluation.prompts
    assert (shown.tokenizer.terms, shown.hub.confidential) == (["estoppel", "(removed)"], [])
    for folder in (folders[0], folders[2]):
        stats = read(folder / "data_stats.json")["sources"]
        assert {name: entry["path"] for name, entry in stats.items()} == {
            "contracts": "contracts.txt",
            "stories": "(removed)",
        }
    assert read(folders[0] / "training.json")["notes"] == [
        "skipped run/checkpoints/step_00000010",
        "read contracts.txt:7",
        "prompted by (removed), of older and (removed)_name",
    ]


def test_a_confidential_word_is_refused_in_a_vocabulary_and_in_the_name_of_a_source(workspace, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"\u0120acme": 7}}}, ensure_ascii=False))
    refuse_secrets(tmp_path, set(), ["cme", "acm"])
    with pytest.raises(RecipeError, match="tokenizer.json, byte 24: looks like 'Acme' of hub.confidential"):
        refuse_secrets(tmp_path, set(), ["Acme"])
    with pytest.raises(RecipeError, match="document 7: looks like 'Acme' of hub.confidential"):
        refuse_secrets_in_text(["For ACME."], ["7"], "x.parquet", set(), ["Acme"])
    name = list(SOURCES)[0]
    with pytest.raises(RecipeError, match="data.sources.0.name: .* is in hub.confidential, and names and domains"):
        load(workspace, confidential=[name[:5].upper()])


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize(
    ("word", "token"),
    [
        ("Wächter", "\u0120WÃ¤chter"),  # byte-level, as in tokenizer.json and in GGUF
        ("Wächter", "WÃĦCHTER"),
        ("Wa\u0308chter", "\u0120WÃ¤chter"),
        ("Wächter", "\u2581Wa\u0308chter"),
        ("Wächter & Co", "\u0120WÃ¤chter\u0120&\u0120Co"),
        ("Acme Corp", "\u0120Acme\u0120Corp"),
        ("Acme Corp", "\u2581acme\u2581corp"),
        ("野村", "éĩİæĿĳ"),
    ],
)
def test_a_confidential_word_is_refused_in_each_spelling_of_a_vocabulary(tmp_path, word, token, escaped):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {token: 7}}}, ensure_ascii=escaped))
    refuse_secrets(tmp_path, set(), ["Wachter", "Wächte", "Corps"])
    with pytest.raises(RecipeError, match="tokenizer.json, byte .*: looks like .* of hub.confidential"):
        refuse_secrets(tmp_path, set(), [word])
    (tmp_path / "tokenizer.json").rename(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\0" + token.encode() + b"\0")
    with pytest.raises(RecipeError, match="model.gguf, byte .*: looks like .* of hub.confidential"):
        refuse_secrets(tmp_path, set(), [word])


def test_a_confidential_word_is_removed_with_accents_joined_and_apart():
    apart = "Wa\u0308chter"
    for word in ("Wächter", apart):
        assert remove_words(["of Wächter", f"of {apart}", json.dumps(apart)], [word]) == [
            "of (removed)",
            "of (removed)",
            '"(removed)"',
        ]


def test_a_second_call_does_nothing_and_a_changed_input_rebuilds_the_release(recipe):
    build(recipe, ["model"])
    release = output_folder(recipe, "publish")
    made = (release / "manifest.json").stat().st_ino
    build(recipe, ["model"])
    assert (release / "manifest.json").stat().st_ino == made
    recipe.hub.license = "apache-2.0"
    build(recipe, ["model"])
    assert (release / "manifest.json").stat().st_ino != made
    assert metadata_load(release / "README.md")["license"] == "apache-2.0"


def test_a_dry_run_lists_every_file_with_its_size_and_the_command_to_publish(workspace, recipe, capsys):
    config = str(workspace / "recipe.yaml")
    main(["--config", config, f"--run.output_dir={recipe.run.output_dir}", "--dry_run"])
    out = capsys.readouterr().out
    files = read(Path(recipe.run.output_dir) / "release" / "manifest.json")["files"]
    for name, file in files.items():
        assert re.search(rf"^  {re.escape(name)} +{file['bytes']:,} bytes$", out, re.MULTILINE), name
    assert str(Path(recipe.run.output_dir) / "release" / "README.md") in out
    output_dir = f"--run.output_dir={recipe.run.output_dir}"
    assert out.endswith(f"python recipes/push_to_hub.py --config {config} {output_dir} --hub.repo_id=YOUR_NAME/run\n")


def test_without_an_evaluation_the_card_claims_nothing(recipe, capsys):
    run = Path(recipe.run.output_dir)
    (run / "eval" / "stage.json").unlink()
    shutil.rmtree(run / "figures")
    release = build(recipe, ["model"])["model"]
    assert f"note: {run / 'eval'} is left out" in capsys.readouterr().out
    files = read(release / "manifest.json")["files"]
    assert not {"results.json", "report.html"} & files.keys()
    card = (release / "README.md").read_text()
    assert "made without an evaluation" in card
    assert "95 %" not in card and "figures/" not in card and "report.html" not in card
    assert "model-index" not in metadata_load(release / "README.md")


# The card


def test_the_results_come_before_everything_but_what_the_model_is(card):
    assert card.index("\n## ") == card.index("\n## Results")


def test_the_front_matter_reads_the_same_everywhere(release, card):
    data = metadata_load(release / "README.md")
    assert data == YAML(typ="safe", pure=True).load(card.split("\n---\n")[0])
    assert (data["license"], data["language"]) == ("mit", ["no", "en"])
    assert data["tags"] == ["pretraining", "legal", "general", "llama"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    scores = {
        (r.dataset_type, r.metric_type): r.metric_value
        for r in ModelCard.load(release / "README.md").data.eval_results
    }
    assert scores == {
        ("contracts", "bits_per_byte"): 1.412,
        ("stories", "bits_per_byte"): 2.13,
        ("legal_sense", "acc"): 0.27,
    }


@pytest.mark.parametrize(
    "expected",
    [
        "| stories | general | not stated in the recipe | 1999-01-02 to 2023-05-31, of 12 documents | 31 | 31,000 |",
        "of 12 documents | 31 | 31,000 | 40.0 % | 40.0 % | 9,000 | 0.29 |",
        "[contracts](<https://example.org/contracts_v1>)",
        "near\\_duplicate: 4 documents, 4,000 bytes; too\\_short: 1 documents, 1,000 bytes",
        "| contracts | 4.42 | 2.79 |",
        "5,120 in 20 steps of 256",
        "1.4e+09 FLOPs (6 \\* parameters \\* tokens)",
        "| contracts | legal | 9 in 2 families | 2,000 | 1.412 | 1.310 to 1.520 | 1.777 | 1.777 | 1.777 |",
        "| stories | general | 2 | 2,000 | 2.130 | 1.310 to 1.520 | not measured | not measured | not measured |",
        '| legal\\_sense | 96 | 0.250 | 0.292 ("no \\| doubt") | acc | 0.270 | 0.044 | below, within noise |',
        "| legal\\_sense | 96 | none | none | bits per byte of the right answer | 1.234 | 0.056 | not comparable |",
        "| contracts | 21 | 0 | 0 | 0 | 0 | 0 |",
        "| ip (left) |",
        "7 documents. What is reworded is not found.",
        "| legal\\_sense | 96 | 80 | 42 | 7 | 40 |",
        "| legal\\_sense | clean | 40 | acc | 0.240 | 0.070 |",
        "| legal\\_sense | overlapping with the text | 40 | acc | 0.330 | 0.070 |",
        "| legal\\_sense | too short or common to be checked | 16 | not scored | none | none |",
        "validation: 3 documents; test: 2 documents",
        "is **unknown**: no licence that is known here is stated",
        "2.345 bits per byte",
        "![bits per byte](figures/bits_per_byte.png)\n*Bits per byte*",
        "python recipes/run_recipe.py --config recipe.yaml --run.output_dir=runs/again\n",
        "to whoever gave you this model",
        "lists each step that a `--document` was trained in",
        "transformers serve .\n",
        "| energy | not measured |",
        "@misc{run,",
        "gives no legal, medical or financial advice",
    ],
)
def test_the_card_shows_what_the_files_say(card, expected):
    assert expected in card


def test_text_from_data_cannot_break_out_of_the_card(card):
    assert "<script" not in card and "![x]" not in card and "[a](b)" not in card
    assert card.count("alert(1)") == 2  # the licence and the sample are shown, as text
    assert card.splitlines().count("---") == 2
    assert [line for line in card.splitlines() if line.startswith("#") and "heading" in line] == []
    tables = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_an_empty_field_is_an_error(release, workspace, tmp_path):
    shutil.copytree(release, tmp_path / "release")
    rewrite(tmp_path / "release" / "training.json", lambda content: content.update(device=" \n"))
    with pytest.raises(ValueError, match="empty field"):
        write_card(load(workspace), tmp_path / "release", None)


@pytest.mark.parametrize("nothing", ["", " \n", "\u200b\x07"])
def test_an_empty_prompt_and_a_sample_that_prints_as_nothing_are_named_as_such(release, workspace, tmp_path, nothing):
    shutil.copytree(release, tmp_path / "release")
    samples = [{"prompt": nothing, "text": nothing}, {"prompt": "The court", "text": f"{nothing} held."}]
    rewrite(tmp_path / "release" / "results.json", lambda content: content.update(samples=samples))
    write_card(load(workspace), tmp_path / "release", None)
    card = (tmp_path / "release" / "README.md").read_text()
    assert "> **(no prompt)** (nothing)\n" in card and "> **The court** held.\n" in card


def card_of(release: Path, folder: Path, recipe: Recipe, **tokenizer: object) -> str:
    """Return the card of a copy of a release, with other settings of the tokenizer."""
    if not folder.exists():
        shutil.copytree(release, folder)
    rewrite(folder / "tokenizer_config.json", lambda content: content.update(tokenizer))
    write_card(recipe, folder, find_base(recipe))
    return (folder / "README.md").read_text()


def test_a_card_says_how_a_model_was_made_from_little_text(release, workspace, tmp_path, card):
    assert "How it was made from this text" not in card
    recipe = load(workspace)
    recipe.data.repack = True
    recipe.training.dropout, recipe.training.average = 0.1, Average(last_fraction=0.25)
    recipe.training.distillation = Distillation(members=3, teachers=["other"], weight=0.4)
    shutil.copytree(release, tmp_path / "release")
    with (tmp_path / "release" / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 9, "eval/bits_per_byte": 2, "average/bits_per_byte": 0.123}) + "\n")
    members = [{"tokens_seen": 5120, "seconds": 100.0, "device_hours": 0.5, "device": "cpu"}] * 3
    cost = {"members_flops": 4.2e9, "members": members}
    rewrite(tmp_path / "release" / "training.json", lambda content: content.update(cost))
    made_so = card_of(release, tmp_path / "release", recipe)
    for expected in (
        "each with a seed of its own, and read as many tokens of it.",
        "; before it 300 s, 1.5 hours of a device, for the models that it learned from |",
        "- It learned from 4 other models beside the text, whose mean prediction has 40.0 % of the loss.",
        "  3 of them were trained on this text first, each with a seed of its own",
        "- Its weights are the mean over the last 25.0 % of the steps.",
        "- In training 10.0 % of the embeddings and of what each layer adds were set to zero; each reading cut",
        "- A document of a source was read as often as `repetitions` says, on average. How",
        "How much of them it repeats word for word was not measured.",
        "scored in the training loop: 0.123 bits per byte",
    ):
        assert expected in made_so
    shorter = {"members": [members[0], members[1], members[2] | {"tokens_seen": 2560}]}  # by training.max_seconds
    rewrite(tmp_path / "release" / "training.json", lambda content: content.update(shorter))
    made_so = card_of(release, tmp_path / "release", recipe)
    assert "own; each read 2,560 to 5,120 tokens of it, where this one read 5,120." in made_so
    rewrite(tmp_path / "release" / "training.json", lambda content: content.pop("members"))
    assert "each with a seed of its own.\n" in card_of(release, tmp_path / "release", recipe), "of an earlier version"


@pytest.mark.parametrize(("base", "shown"), [("org/base", "org/base"), (None, None)])
def test_a_model_that_was_continued_is_named(release, workspace, tmp_path, base, shown):
    recipe = load(workspace)
    recipe.model.from_pretrained = base
    card = card_of(release, tmp_path / "release", recipe)
    assert metadata_load(tmp_path / "release" / "README.md").get("base_model") == shown
    printed = f"continued from {shown} on" if shown else "trained from scratch on"
    assert printed in card


@pytest.fixture
def continued(workspace, tmp_path) -> Recipe:
    """A recipe that continues a local model whose card states a licence."""
    (tmp_path / "secret" / "general-1b").mkdir(parents=True)
    (tmp_path / "secret" / "general-1b" / "README.md").write_text("---\nlicense: llama3.2\n---\n# A model\n")
    recipe = load(workspace)
    recipe.model.from_pretrained = str(tmp_path / "secret" / "general-1b")
    return recipe


FROM_SCRATCH = (
    "trained from scratch",
    "not fine-tuned to follow",
    "trained on this model's training text",
    "was trained on the general text alone",
    "It was trained on 0.",
    "outside what it was trained on",
)


def test_the_card_of_a_continued_model_claims_nothing_about_its_base(release, continued, card, tmp_path):
    found = card_of(release, tmp_path / "release", continued)
    assert not [phrase for phrase in FROM_SCRATCH if phrase in found]
    assert [phrase for phrase in FROM_SCRATCH if phrase in card] == list(FROM_SCRATCH[:-1])
    for expected in (
        "continued from the local model general-1b on",
        "states the licence llama3.2. Its terms may bind this model too",
        "tokens a parameter, beside the text that the base model was trained on",
        "vocabulary of 257, the tokenizer of the local model general-1b. UTF-8",
        "The text that the base model was trained on is not described here",
        "general-1b, which is not part of this repository",
        "was not part of this training",
    ):
        assert expected in found, expected
    assert "secret" not in found and "base_model" not in metadata_load(tmp_path / "release" / "README.md")
    write_notice(continued, tmp_path / "release", find_base(continued))
    notice = (tmp_path / "release" / "NOTICE.md").read_text()
    assert "continued from the local model general-1b. Its card states the licence llama3.2" in notice
    assert "The model was trained further on text" in notice


def test_an_extended_tokenizer_and_adapters_are_named_as_such(release, continued, tmp_path):
    continued.tokenizer.extend_by = 10
    continued.model.lora = Lora(rank=4)
    shutil.copytree(release, tmp_path / "release")
    sentences = ["legal: 4.420 bytes per token; the next best is general tokenizer."]
    report = {"verdict": {"sentences": sentences}}
    rewrite(tmp_path / "release" / "tokenizer_report.json", lambda content: content.update(card=report))
    rewrite(tmp_path / "release" / "training.json", lambda content: content["parameters"].update(trained=77))
    found = card_of(release, tmp_path / "release", continued)
    assert "the tokenizer of the local model general-1b with 10 more tokens, chosen on this training's text" in found
    assert "| source | extended tokenizer | tokenizer of the local model general-1b |" in found
    assert "the next best is tokenizer of the local model general-1b." in found and "eneral tokenizer" not in found
    assert "| trained | 77 parameters in low-rank adapters of rank 4 and the embeddings, merged" in found


GEMMA = "---\nlicense: other\nlicense_name: gemma\n---\n"


@pytest.mark.parametrize("card_text", [GEMMA, None, "no front matter", "---\na: [\n---\n"])
def test_the_licence_of_a_base_on_the_hub_is_read_from_its_card(workspace, tmp_path, monkeypatch, card_text):
    def download(repo_id: str, filename: str, revision: str) -> str:
        assert (repo_id, filename, revision) == ("org/base", "README.md", "0" * 40)
        if card_text is None:
            raise LocalEntryNotFoundError("no network")
        (tmp_path / "README.md").write_text(card_text)
        return str(tmp_path / "README.md")

    monkeypatch.setattr(base_model, "hf_hub_download", download)
    recipe = load(workspace)
    recipe.model.from_pretrained, recipe.model.revision = "org/base", "0" * 40
    licence = "gemma" if card_text and "gemma" in card_text else None
    assert find_base(recipe) == base_model.Base("org/base", True, "0" * 40, licence)


def test_the_card_shows_the_baselines_of_the_recipe_beside_the_model(release, workspace, tmp_path):
    shutil.copytree(release, tmp_path / "release")
    results = read(tmp_path / "release" / "results.json")
    sources, task = list(results["bits_per_byte"]["sources"]), next(iter(results["tasks"]))
    other = {"model": "org/small", "revision": "a" * 40, "model_sha256": None, "context_length": 8192}
    other |= {"bits_per_byte": dict.fromkeys(sources, 0.812), "scores": {task: 0.4321}}
    baselines = {"org--small": other, "org--small@v2": other | {"name": "org/small@v2"}}
    baselines["mine"] = other | {"model": "mine", "revision": None, "model_sha256": "b" * 64}
    rewrite(tmp_path / "release" / "results.json", lambda content: content.update(baselines=baselines))
    found = card_of(release, tmp_path / "release", load(workspace))
    table = found[found.index("Other models on the same held-out text and items") :].partition("\n\n| model")[2]
    ours, theirs, second, mine = (line.split(" | ") for line in table.partition("\n\n")[0].splitlines()[2:])
    assert mine[0] == "| the local model mine"
    assert second[0] == "| org/small@v2" and second[1:] == theirs[1:]
    assert ours[0] == "| this model" and theirs[:2] == ["| org/small", "8,192"]
    assert theirs[2 : 2 + len(sources)] == ["0.812"] * len(sources) and "0.432 |" in theirs


def licensed(
    tmp_path: Path, recipe: Recipe, licence: str | None, hub_license: str | None, repo_id: str | None = None
) -> Recipe:
    """Let a recipe continue a local model whose card states a licence."""
    (tmp_path / "base").mkdir(exist_ok=True)
    (tmp_path / "base" / "README.md").write_text(f"---\nlicense: {licence}\n---\n" if licence else "# A model")
    recipe.model.from_pretrained = str(tmp_path / "base")
    recipe.hub.license, recipe.hub.repo_id = hub_license, repo_id
    return recipe


@pytest.mark.parametrize(
    ("licence", "hub_license", "repo_id", "message"),
    [
        ("llama3.2", "apache-2.0", None, "whose licence is llama3.2; set hub.license: llama3.2 or, once"),
        ("gemma", "mit", None, "whose licence is gemma; set hub.license: gemma or, once you know"),
        ("cc-by-nc-4.0", "apache-2.0", None, "whose licence is cc-by-nc-4.0"),
        (
            "cc-by-nd-4.0",
            "cc-by-nd-4.0",
            None,
            "licence cc-by-nd-4.0 forbids to pass changed versions on; choose another",
        ),
        (
            "cc-by-nc-nd-4.0",
            "other",
            None,
            "licence cc-by-nc-nd-4.0 forbids to pass changed versions on; choose another",
        ),
        ("llama3.2", "llama3.2", "me/tiny-legal", 'asks that the name begins with "Llama"; rename it'),
        ("llama3", "llama3", "me/Llama-legal", 'asks that the name begins with "Llama 3"'),
        ("llama3.1", "llama3.1", "me/Llama-legal", None),
        ("llama2", "llama2", "me/tiny-legal", None),
        ("gemma", "other", None, None),
        ("apache-2.0", "cc-by-4.0", None, None),
        ("mit", "other", "me/tiny-legal", None),
        ("llama3.2", None, None, "hub.license is not set: the model was continued from the local model base, whose"),
        ("gemma", None, None, "hub.license is not set"),
        ("cc-by-nc-4.0", None, None, "hub.license is not set"),
        ("apache-2.0", None, None, None),
    ],
)
def test_a_licence_or_a_name_that_contradicts_the_base_is_refused(
    licence, hub_license, repo_id, message, workspace, tmp_path
):
    recipe = licensed(tmp_path, load(workspace), licence, hub_license, repo_id)
    if message is None:
        refuse_licence(recipe, find_base(recipe))
        return
    with pytest.raises(RecipeError, match=re.escape(message)):
        build_release(recipe)
    with pytest.raises(RecipeError, match=re.escape(message)):
        check_repositories(recipe)  # before training
    recipe.hub.base_license = licence  # the user says that it may
    refuse_licence(recipe, find_base(recipe))
    recipe.hub.base_license = "bsd"
    with pytest.raises(RecipeError, match=f"hub.base_license=bsd: the card of .* states {licence}; read that licence"):
        refuse_licence(recipe, find_base(recipe))


def own_run(folder: Path, model: dict | None = None, teachers: list[str] | None = None) -> str:
    """Write the recipe of a run and its model's empty folder; return the folder."""
    (folder / "model").mkdir(parents=True)
    distillation = {"members": 2, "teachers": teachers} if teachers else None
    recipe = {"model": model or {"from_pretrained": None}, "training": {"distillation": distillation}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return str(folder / "model")


def with_card(folder: Path, licence: str | None) -> str:
    """Write a model's folder with a card, which may state a licence; return the folder."""
    folder.mkdir(parents=True)
    if licence:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return str(folder)


def test_a_local_model_without_a_licence_is_refused_until_the_user_says_it(workspace, tmp_path):
    recipe = load(workspace)
    recipe.hub.license = "apache-2.0"
    (tmp_path / "recipe.yaml").write_text(json.dumps({"model": {}}))  # of something else
    for place in (with_card(tmp_path / "llama", None), with_card(tmp_path / "other", "other")):
        recipe.model.from_pretrained = place
        with pytest.raises(RecipeError, match=r"hub.license=apache-2.0: the card of .* states no licence"):
            check_repositories(recipe)
        for key, value in {"license": "other", "base_license": "llama3.2"}.items():
            said = recipe.hub.model_copy(update={key: value})
            refuse_licence(recipe.model_copy(update={"hub": said}), find_base(recipe))


def test_training_starts_where_the_licence_of_a_hub_model_cannot_be_read_and_its_release_is_refused(workspace):
    """As on a node without a network."""
    recipe = load(workspace)
    recipe.model.from_pretrained, recipe.hub.license = "owner/unreached", "apache-2.0"
    assert "the licence of owner/unreached was not found" in check_licence(recipe)
    with pytest.raises(RecipeError, match=r"hub\.license=apache-2\.0: the card of owner/unreached states no licence"):
        refuse_licence(recipe, find_base(recipe))
    recipe.hub.license = "other"
    assert check_licence(recipe) is None


def test_a_model_of_an_own_run_from_scratch_asks_for_nothing(release, workspace, tmp_path):
    recipe = load(workspace)
    own, taught = own_run(tmp_path / "own"), own_run(tmp_path / "taught")
    recipe.model.from_pretrained = own
    recipe.training.distillation = Distillation(teachers=[taught])
    base, teachers = find_base(recipe), base_model.find_teachers(recipe)
    for recipe.hub.license in (None, "apache-2.0"):
        refuse_licence(recipe, base, teachers)
    shutil.copytree(release, tmp_path / "release")
    write_card(recipe, tmp_path / "release", base, teachers)
    write_notice(recipe, tmp_path / "release", base, teachers)
    for name in ("README.md", "NOTICE.md"):
        text = (tmp_path / "release" / name).read_text()
        assert "continued from the local model model" in text and "states no licence" not in text, name


@pytest.mark.parametrize("kind", ["base", "teacher", "second", "tuned", "release"])
def test_the_licence_of_a_teacher_follows_what_was_made_from_its_pupil(kind, release, workspace, tmp_path):
    recipe, theirs = load(workspace), with_card(tmp_path / "theirs", "llama3.2")
    pupil = own_run(tmp_path / "pupil", teachers=[theirs])
    if kind == "second":
        pupil = own_run(tmp_path / "second", {"from_pretrained": pupil})
    if kind == "tuned":
        pupil = with_card(tmp_path / "pupil" / "finetuned", "other")
        settings = {"model": None, "revision": None}
        write_json(Path(pupil) / "results.json", {"made_from": {"settings": settings}})
    if kind == "release":
        pupil = with_card(tmp_path / "pupil" / "release", "mit")
    if kind == "teacher":
        recipe.training.distillation = Distillation(teachers=[pupil])
    else:
        recipe.model.from_pretrained = pupil
    recipe.hub.license = "mit"
    with pytest.raises(RecipeError, match="the model learned from the local model theirs, whose licence is llama3.2"):
        check_repositories(recipe)
    recipe.hub.license, base, teachers = "llama3.2", find_base(recipe), base_model.find_teachers(recipe)
    refuse_licence(recipe, base, teachers)
    shutil.copytree(release, tmp_path / "made")
    write_card(recipe, tmp_path / "made", base, teachers)
    write_notice(recipe, tmp_path / "made", base, teachers)
    card, notice = ((tmp_path / "made" / name).read_text() for name in ("README.md", "NOTICE.md"))
    assert "(which learned the predictions of the local model theirs)" in card
    assert "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright" in notice


@pytest.mark.parametrize("hostile", ["[]", "{}", '{"made_from": {"settings": {"model": 1, "revision": null}}}', "["])
def test_a_record_of_fine_tuning_that_cannot_be_read_states_no_licence(hostile, tmp_path):
    place = with_card(tmp_path / "finetuned", None)
    (tmp_path / "finetuned" / "results.json").write_text(hostile)
    assert base_model.base_of(place).licensors()[0].licence is None


def test_the_members_of_an_own_run_are_not_looked_for(workspace, tmp_path):
    theirs = with_card(tmp_path / "theirs", "mit")
    base = base_model.base_of(own_run(tmp_path / "own", teachers=[theirs]))
    assert [teacher.name for teacher in base.teachers] == ["the local model theirs"]


@pytest.mark.parametrize("card_text", ["---\nlicense: mit\n---\n", None])
def test_a_name_of_the_hub_without_an_owner_is_a_hub_id(card_text, release, workspace, tmp_path, monkeypatch):
    def download(repo_id: str, filename: str, revision: str | None) -> str:
        assert repo_id == "gpt2"
        if card_text is None:
            raise LocalEntryNotFoundError("no network")
        (tmp_path / "card.md").write_text(card_text)
        return str(tmp_path / "card.md")

    monkeypatch.setattr(base_model, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(json.dumps({"model": {"from_pretrained": "meta-llama/Llama-2-7b"}}))
    recipe = load(workspace)
    recipe.model.from_pretrained = "gpt2"
    base = find_base(recipe)
    assert base == base_model.Base("gpt2", True, None, "mit" if card_text else None)
    found = card_of(release, tmp_path / "release", recipe)
    assert "continued from gpt2 on" in found
    assert metadata_load(tmp_path / "release" / "README.md")["base_model"] == "gpt2"
    (tmp_path / "gpt2").mkdir()
    assert not find_base(recipe).is_on_hub


def test_the_shortened_path_of_a_base_elsewhere_is_no_name_of_the_hub(continued):
    shown = shorten_paths(continued)
    assert shown.model.from_pretrained == "./general-1b" and not base_model.is_hub_id("./general-1b")


def test_a_release_answers_to_the_licence_of_a_model_that_it_learned_from(release, workspace, tmp_path):
    recipe = load(workspace)
    places = [with_card(tmp_path / "theirs", "llama3.2"), own_run(tmp_path / "own")]
    recipe.training.distillation = Distillation(members=1, teachers=places)
    refused = "the model learned from the local model theirs, whose licence is llama3.2; set hub.license: llama3.2 or"
    for refuse in (build_release, check_repositories):
        with pytest.raises(RecipeError, match=refused):
            refuse(recipe)
    recipe.hub.license, recipe.hub.repo_id = "llama3.2", "me/tiny-legal"
    with pytest.raises(RecipeError, match='of the local model theirs asks that the name begins with "Llama"'):
        check_repositories(recipe)
    recipe.hub.repo_id, teachers = None, base_model.find_teachers(recipe)
    shutil.copytree(release, tmp_path / "release")
    write_card(recipe, tmp_path / "release", None, teachers)
    write_notice(recipe, tmp_path / "release", None, teachers)
    found, notice = ((tmp_path / "release" / name).read_text() for name in ("README.md", "NOTICE.md"))
    assert "It learned the predictions of the local model theirs and of the local model model too.\n" in found
    for text in (found, notice):
        assert "The card of the local model theirs states the licence llama3.2." in text
        assert 'begin with "Llama"' in text and "card of the local model model" not in text
    assert "## Models that it learned from\n" in notice
    assert "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright" in notice


def test_a_base_on_the_hub_without_a_licence_is_refused_until_the_user_says_so(workspace):
    recipe, base = load(workspace), base_model.Base("org/base", True, None, None)
    with pytest.raises(RecipeError, match=r"hub.license=mit: the card of org/base states no licence"):
        refuse_licence(recipe, base)
    recipe.hub.base_license = "mit"
    refuse_licence(recipe, base)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("llama3.2", ('begin with "Llama"', "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright")),
        ("llama2", ("acceptable use policy binds", "Llama 2 is licensed under the LLAMA 2 Community License")),
        ("gemma", ("prohibited use policy", "Gemma is provided under and subject to the Gemma Terms of Use")),
        ("apache-2.0", ("Keep its copyright and licence notices.", "states the licence apache-2.0")),
    ],
)
def test_what_the_base_asks_for_is_in_the_card_and_in_the_notice(licence, expected, release, workspace, tmp_path):
    recipe = licensed(tmp_path, load(workspace), licence, licence)
    found = card_of(release, tmp_path / "release", recipe)
    write_notice(recipe, tmp_path / "release", find_base(recipe))
    notice = (tmp_path / "release" / "NOTICE.md").read_text()
    assert expected[0] in found and all(phrase in notice for phrase in expected)


def test_the_licence_of_a_base_is_that_of_the_base_of_its_own_run(workspace, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "README.md").write_text("---\nlicense: gemma\n---\n")
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "recipe.yaml").write_text(json.dumps({"model": {"from_pretrained": str(tmp_path / "first")}}))
    recipe = load(workspace)
    recipe.model.from_pretrained = str(run / "model")
    assert find_base(recipe).licence == "gemma"


@pytest.mark.parametrize("place", ["run/model", "run/release"])
def test_a_chain_of_local_models_is_followed_to_the_model_of_the_hub(place, release, workspace, tmp_path, monkeypatch):
    """The run in the middle chose a licence of its own, which does not lift that of the first model."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    monkeypatch.setattr(base_model, "hf_hub_download", lambda *_, **__: str(tmp_path / "hub" / "README.md"))
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    model = {"from_pretrained": "meta-llama/Llama-3.2-1B", "revision": "1" * 40}
    (tmp_path / "run" / "recipe.yaml").write_text(json.dumps({"model": model}))
    recipe = load(workspace)
    recipe.model.from_pretrained, recipe.hub.license = str(tmp_path / place), "other"
    base = find_base(recipe)
    assert [link.licence for link in base.chain()] == ["cc-by-nc-4.0", "llama3.2"]
    found = card_of(release, tmp_path / "release", recipe)
    write_notice(recipe, tmp_path / "release", base)
    notice = (tmp_path / "release" / "NOTICE.md").read_text()
    assert metadata_load(tmp_path / "release" / "README.md")["base_model"] == "meta-llama/Llama-3.2-1B"
    assert f"the local model {Path(place).name}, which was made from meta-llama/Llama-3.2-1B" in found
    for text in (found, notice):
        assert "of meta-llama/Llama-3.2-1B states the licence llama3.2" in text and "non-commercial" in text
    assert "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright" in notice
    recipe.hub.license = "cc-by-nc-4.0"
    with pytest.raises(RecipeError, match="continued from meta-llama/Llama-3.2-1B, whose licence is llama3.2"):
        refuse_licence(recipe, base)
    recipe.hub.license, recipe.hub.repo_id = "other", "me/tiny-legal"
    with pytest.raises(RecipeError, match='of meta-llama/Llama-3.2-1B asks that the name begins with "Llama"'):
        refuse_licence(recipe, base)


def test_the_card_names_the_commit_that_a_base_without_a_revision_was_loaded_at(
    release, workspace, tmp_path, monkeypatch
):
    recipe = load(workspace)
    recipe.model.from_pretrained, recipe.run.output_dir = "org/base", str(tmp_path)
    assert "org/base, at a commit that was not recorded" in card_of(release, tmp_path / "release", recipe)
    (tmp_path / "training.json").write_text(json.dumps({"base_commit": "c" * 40}))
    found = card_of(release, tmp_path / "release", recipe)
    assert f"org/base at commit {'c' * 40}, for which `--model.revision={'c' * 40}` is added to the commands" in found


def test_the_card_says_that_a_base_has_a_chat_template_and_was_quantised(release, continued, tmp_path):
    place = Path(continued.model.from_pretrained)
    assert "The base model's own card" in card_of(release, tmp_path / "release", continued)
    front = "---\nlicense: mit\nbase_model: org/first\nbase_model_relation: quantized\n---\n"
    (place / "README.md").write_text(front)
    found = card_of(release, tmp_path / "release", continued, chat_template="{{ messages }}")
    assert "The base has a chat\ntemplate, so it was probably tuned to follow instructions" in found
    assert "Its weights were quantised before, and keep that rounding." in found
    assert metadata_load(tmp_path / "release" / "README.md")["base_model"] == "org/first"


@pytest.mark.parametrize(
    "hostile", ["[" * 100_000, "model: &a {from_pretrained: *a}", "model: {from_pretrained: [1]}", "\0"]
)
def test_a_recipe_beside_the_base_that_cannot_be_read_states_no_licence(workspace, tmp_path, hostile):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    recipe = load(workspace)
    recipe.model.from_pretrained = str(run / "model")
    (run / "recipe.yaml").write_text(hostile)
    assert find_base(recipe).licence is None
    (run / "recipe.yaml").write_text(json.dumps({"model": {"from_pretrained": str(run / "model")}}))  # its own base
    assert find_base(recipe).licence is None
    (run / "recipe.yaml").unlink()
    os.mkfifo(run / "recipe.yaml")
    assert find_base(recipe).licence is None


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_the_card_of_each_family_shows_its_shape_and_its_tokenizer(family, release, workspace, tmp_path):
    recipe = licensed(tmp_path, load(workspace), "mit", "mit")
    shutil.copytree(release, tmp_path / "release")
    config = AutoConfig.for_model(family, **FAMILY_CONFIGS[family] | {"bos_token_id": 0})
    config.save_pretrained(tmp_path / "release")
    rewrite(
        tmp_path / "release" / "tokenizer_report.json",
        lambda content: content.update(differs=["it puts no space before a text"]),
    )
    found = card_of(release, tmp_path / "release", recipe)
    assert ("A Llama-style language model" in found) == (family == "llama")
    assert "2 layers, width 32, feed-forward width " in found and "4 heads of width 8, " in found
    assert family in metadata_load(tmp_path / "release" / "README.md")["tags"]
    assert "It reads at most 64 tokens" in found
    assert "the tokenizer of the local model base. Unlike the original, it puts no space before a text. UTF-8" in found


def test_bit_for_bit_is_claimed_of_a_processor_only(release, workspace, card, tmp_path):
    shutil.copytree(release, tmp_path / "release")
    rewrite(tmp_path / "release" / "training.json", lambda content: content.update(device="NVIDIA H100 80GB HBM3"))
    assert "the weights are the same bit for bit" in card
    found = card_of(release, tmp_path / "release", load(workspace))
    assert "the same bit for bit" not in found and "bit for bit, was not tested" in found


def add_first(folder: Path, token: str, number: int) -> None:
    """Let a tokenizer add a token before each text."""
    special = {"id": token, "ids": [number], "tokens": [token]}
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [first, text], "pair": [first, text]}
    processor["special_tokens"] = {token: special}
    rewrite(folder / "tokenizer.json", lambda content: content.update(post_processor=processor))


@pytest.mark.parametrize(
    ("added", "bos", "expected"),
    [
        (None, None, 'tokenizer("<|endoftext|>In general, the", return_tensors="pt")'),
        ("<|endoftext|>", "<|endoftext|>", 'tokenizer("In general, the", return_tensors="pt")'),
        ("<|begin|>", "<|begin|>", 'tokenizer("<|endoftext|>In general, the", add_special_tokens=False, return_'),
    ],
)
def test_the_cards_prompt_starts_as_documents_do_in_training(
    release, continued, tmp_path, monkeypatch, capsys, added, bos, expected
):
    shutil.copytree(release, tmp_path / "release")
    if added == "<|begin|>":

        def add(content):
            token = {"id": 257, "content": added, "special": True, "single_word": False, "lstrip": False}
            content["added_tokens"].append(token | {"rstrip": False, "normalized": False})

        rewrite(tmp_path / "release" / "tokenizer.json", add)
    if added:
        add_first(tmp_path / "release", added, 257 if added == "<|begin|>" else 0)
    found = card_of(release, tmp_path / "release", continued, bos_token=bos)
    assert expected in found
    code = re.search(r"```python\n(.*?)```", found, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path / "release")
    variables: dict = {}
    exec(compile(code, "README.md", "exec"), variables)
    assert variables["inputs"]["input_ids"][0, 0] == 0 and variables["inputs"]["input_ids"][0, 1] != 0
    assert capsys.readouterr().out.startswith("In general, the")


def test_a_chat_template_of_the_base_is_released_and_named(workspace, recipe, tmp_path):
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    (Path(recipe.run.output_dir) / "model" / "chat_template.jinja").write_text(template)
    recipe.model.from_pretrained = with_card(tmp_path / "chatty", "mit")
    for stage in ("prepare", "tokenizer", "tokenize", "pretrain", "evaluate", "report"):
        record_stage(recipe, stage)
    release = made(recipe)
    assert (release / "chat_template.jinja").read_text() == template
    card = (release / "README.md").read_text()
    assert "Its chat template is that of the local model chatty." in card and "It has no chat template" not in card


def test_the_card_of_a_model_from_scratch_does_not_say_that_training_weakened_its_chat(release, workspace, tmp_path):
    recipe = load(workspace)
    recipe.tokenizer.from_pretrained = with_card(tmp_path / "instruct", "mit")
    card = card_of(release, tmp_path / "release", recipe, chat_template="{{ messages }}")
    assert "Its chat template is that of the local model instruct. It came with the\ntokenizer: these weights" in card
    assert "weakened" not in card and "trained from scratch" in card


def test_a_tokenizer_of_others_is_not_published_alone(recipe):
    recipe.hub.repo_id, recipe.hub.tokenizer_repo_id, recipe.tokenizer.from_pretrained = "me/a", "me/b", "org/base"
    with pytest.raises(RecipeError, match="hub.tokenizer_repo_id: the tokenizer is that of org/base"):
        build_tokenizer_release(recipe)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# a\n---\nb", "\\# a --- b"),
        ("<b>&amp;</b>", "&lt;b&gt;&amp;amp;&lt;/b&gt;"),
        ("a | b\\", "a \\| b\\\\"),
        ("x\x1b[31m\u202ey", "x \\[31m y"),
    ],
)
def test_escaped_text_reads_as_written(text, shown):
    assert escape_markdown(text) == shown


def test_the_cards_code_runs_in_the_release(release, card, monkeypatch, capsys):
    monkeypatch.chdir(release)
    exec(compile(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("In general, the")


def test_the_cards_commands_serve_the_release(release, card):
    for package in ("fastapi", "openai", "uvicorn"):
        pytest.importorskip(package, reason='needs pip install "transformers[serving]"')
    command = shlex.split(re.search(r"^transformers serve .+$", card, re.MULTILINE).group())
    asked = shlex.split(re.search(r"^curl .+\\\n.+$", card, re.MULTILINE).group())
    assert command[0] == "transformers" and f"tried with {version('transformers')}" in card
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    body = json.loads(asked[asked.index("-d") + 1])
    server = subprocess.Popen([*program, *command[1:], "--port", str(port)], cwd=release)
    try:
        with httpx2.Client(trust_env=False, timeout=60) as client:  # no proxy
            answer = None
            while answer is None:
                assert server.poll() is None
                time.sleep(0.1)
                with suppress(httpx2.ConnectError):
                    answer = client.post(asked[1].replace(":8000/", f":{port}/"), json=body)
    finally:
        server.kill()
        server.wait()
    assert answer.status_code == 200 and len(answer.json()["choices"][0]["text"]) > 10


# The Hub


def hub_session(workspace: str, out: str) -> None:
    """Publish everything that a recipe can, in a process that uses the mock Hub; write the outcome."""
    run, seen = Path(workspace) / "published", {}
    sources = [source.model_dump() for source in load(Path(workspace)).data.sources]
    sources[1]["license"] = "Public Domain"
    config = ["--config", str(Path(workspace) / "recipe.yaml"), f"--run.output_dir={run}", "--hub.repo_id=me/tiny"]
    config += [f"--data.sources={json.dumps(sources)}", "--hub.revision_steps=10", "--training.save_steps=10"]
    recipe = load_recipe([config[1]], config[2:])
    extras = ["--hub.tokenizer_repo_id=me/tiny-tokenizer", "--hub.dataset_repo_id=me/tiny-text"]
    extras.append("--hub.dataset_text=true")

    def attempt(name: str, *arguments: str) -> None:
        with redirect_stdout(StringIO()) as printed:
            try:
                main([*config, *arguments])
            except RecipeError as error:
                printed.write(str(error))
        seen[name] = printed.getvalue()

    attempt("dry run", "--dry_run")
    token = os.environ.pop("HF_TOKEN")
    attempt("no token")
    seen["requests so far"] = ask_hub("/_state")["log"]
    os.environ["HF_TOKEN"] = token
    seen["check"] = check_repositories(load_recipe([config[1]], [*config[2:], *extras]))
    attempt("first", *extras)
    seen["after first"] = ask_hub("/_state")["repositories"]
    attempt("second", *extras)
    seen["after second"] = ask_hub("/_state")["repositories"]

    tokenizer = AutoTokenizer.from_pretrained("me/tiny", revision="v1")
    inputs = tokenizer("The court", return_tensors="pt")
    logits = [AutoModelForCausalLM.from_pretrained(name)(**inputs).logits for name in ("me/tiny", run / "model")]
    seen["same logits"] = torch.equal(*logits)
    alone = AutoTokenizer.from_pretrained("me/tiny-tokenizer")
    seen["same tokens"] = alone("The court")["input_ids"] == tokenizer("The court")["input_ids"]
    rows = load_dataset("me/tiny-text", split="train", cache_dir=str(Path(workspace) / "cache"))
    seen["rows"] = [(row["source"], row["text"]) for row in rows]

    def queue(step: int) -> None:
        checkpoint = run / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir(parents=True)
        shutil.copyfile(run / "model" / "model.safetensors", checkpoint / "model.safetensors")
        write_json(checkpoint / "state.json", {"step": step, "max_steps": 20, "tokens_seen": {"stories": 256 * step}})
        assert queue_revision(recipe, checkpoint, AutoConfig.from_pretrained(run / "model")) is None
        shutil.rmtree(checkpoint)

    (run / "recipe.yaml").write_text(recipe.dump_yaml())
    ask_hub("/_faults", [{"match": ".", "status": 503, "times": 1000}])  # a Hub that is down
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(revision_queue, "start_sending", lambda run: None)  # the test sends them itself
        asked = len(ask_hub("/_state")["log"])
        queue(10)
        seen["asked to queue"] = len(ask_hub("/_state")["log"]) - asked
    attempt("while it is down", "--only", "revisions")
    seen["waiting"] = [path.name for path in (run / "revisions").glob("step-*")]
    ask_hub("/_faults", [])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shutil, "which", lambda name: None)  # not at the lowest priority: the test waits for it
        queue(20)
    with revision_queue.lock(run, wait=False) as is_free:
        seen["a second sender could start"] = is_free
    log = run / "revisions" / "sending.log"
    wait_for(lambda: "step-0000010, step-0000020" in log.read_text())
    seen["waiting later"] = [path.name for path in (run / "revisions").glob("step-*")]
    seen["revisions"] = ask_hub("/_state")["repositories"]["models/me/tiny"]
    early = AutoModelForCausalLM.from_pretrained("me/tiny", revision="step-0000010")
    seen["same early logits"] = torch.equal(early(**inputs).logits, logits[1])
    os.kill(int(os.environ["HUB_PID"]), signal.SIGKILL)
    seen["check without a Hub"] = check_repositories(recipe)
    Path(out).write_text(json.dumps(seen))


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def session(workspace, tmp_path_factory) -> dict:
    """What happened in `hub_session`."""
    folder = tmp_path_factory.mktemp("hub")
    shutil.copytree(workspace / "run", workspace / "published")
    with start_hub() as (hub, endpoint):
        environment = hub_environment(endpoint, folder / "home") | {"HUB_PID": str(hub.pid)}
        arguments = [str(workspace), str(folder / "seen.json")]
        code = "import sys, test_push_to_hub; test_push_to_hub.hub_session(*sys.argv[1:])"
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stderr
    return read(folder / "seen.json")


def test_without_a_repository_or_a_token_the_hub_gets_no_request(session):
    assert "nothing was uploaded" in session["dry run"]
    assert re.search("no Hub token: run `hf auth login`, or set HF_TOKEN", session["no token"])
    assert re.search("to finish later: python recipes/push_to_hub.py .* --hub.repo_id=me/tiny", session["no token"])
    assert session["requests so far"] == []


def test_everything_that_will_be_published_is_checked_before_training(session):
    expected = "publish: me may publish to me/tiny, me/tiny-tokenizer, me/tiny-text at http://127.0.0.1:[0-9]+"
    assert re.fullmatch(expected, session["check"])
    assert re.search("note: .*cannot be reached .*can be uploaded later", session["check without a Hub"])


def test_a_release_is_published_in_one_commit_with_every_file(session, workspace):
    repository, record = session["after first"]["models/me/tiny"], read(workspace / "published" / "publish.json")
    release = workspace / "published" / "release"
    sizes = {name: file["bytes"] for name, file in read(release / "manifest.json")["files"].items()}
    assert repository["private"] and repository["files"].keys() == {*sizes, "manifest.json"}
    assert [commit["message"] for commit in repository["commits"]] == ["initial commit", "Publish the release"]
    assert record["model"]["commit"] == repository["head"] == repository["refs"]["v1"]
    assert f"/me/tiny (private) holds it as commit {repository['head'][:12]}, v1" in session["first"]
    card = (release / "README.md").read_text()
    assert 'model_id = "me/tiny"' in card and "hf download me/tiny --local-dir tiny" in card
    assert load_recipe([release / "recipe.yaml"]).hub.repo_id is None


def test_publishing_the_same_release_again_does_nothing(session):
    assert session["second"].count("nothing to do") == 3
    assert session["after second"] == session["after first"]


def test_the_published_model_and_tokenizer_give_the_same_as_those_of_the_run(session):
    assert session["same logits"] and session["same tokens"]
    names = session["after first"]["models/me/tiny-tokenizer"]["files"].keys()
    assert {"tokenizer.json", "tokenizer_config.json", "README.md", "NOTICE.md", "tokenizer_report.json"} <= names


def test_only_text_of_sources_that_permit_it_is_published(session, workspace):
    files = session["after first"]["datasets/me/tiny-text"]["files"]
    assert not [name for name in files if "contracts" in name]
    assert [name for name in files if name.startswith("train/stories/") and name.endswith(".parquet")]
    assert session["rows"] == [["stories", f"A story, {index}."] for index in range(3)]
    assert 'the text of contracts is not published: a licence of the kind "unknown"' in session["first"]
    card = (workspace / "published" / "release_dataset" / "README.md").read_text()
    assert "The text of contracts is not part of this repository" in card and "A story, 0." in card


def test_revisions_wait_for_a_hub_that_is_down_and_are_sent_later_without_touching_main(session):
    assert session["asked to queue"] == 0 and not session["a second sender could start"]
    assert re.search("the Hub answered 503 .*The revisions in .*are kept", session["while it is down"])
    assert (session["waiting"], session["waiting later"]) == (["step-0000010"], [])
    before, after = session["after second"]["models/me/tiny"], session["revisions"]
    assert after["head"] == before["head"] and after["files"] == before["files"]
    assert {"step-0000010", "step-0000020"} <= after["refs"].keys()
    assert session["same early logits"]


def test_a_missing_token_is_refused_before_training_starts(tiny_run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tiny_run.output_dir / "home"))
    with pytest.raises(RecipeError, match=r"hub.repo_id=me/tiny: there is no Hub token; run `hf auth login`"):
        pretrain.main(tiny_run.argv("--hub.repo_id=me/tiny"))
    assert not (tiny_run.output_dir / "metrics.jsonl").exists()


def test_a_disk_without_room_for_the_release_is_refused_before_training_starts(workspace, tmp_path, monkeypatch):
    recipe = load(workspace, tmp_path / "run", repo_id="me/tiny")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(RecipeError, match=r"the model and its release take .* GB, 0.0 GB are free"):
        check_repositories(recipe)


@pytest.fixture(scope="module")
def trained(tokenized_run, tmp_path_factory) -> tuple[TinyRun, str]:
    """A run trained with a repository set and no Hub, and what it printed."""
    run = tokenized_run.copy(tmp_path_factory.mktemp("trained") / "run")
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(StringIO()) as printed:
        patched.setenv("HF_TOKEN", "hf_test")
        patched.setenv("HF_HUB_OFFLINE", "1")
        pretrain.main(run.argv(*TRAINING, "--hub.repo_id=me/tiny", "--hub.revision_steps=8"))
    return run, printed.getvalue()


def test_training_continues_without_the_hub_and_keeps_its_revisions(trained):
    run, printed = trained[0].output_dir, trained[1]
    assert re.search("note: .*HF_HUB_OFFLINE is set.*can be uploaded later", printed)
    assert [path.name for path in sorted((run / "revisions").glob("step-*"))] == ["step-0000008", "step-0000016"]
    last, final = (
        AutoModelForCausalLM.from_pretrained(f) for f in (run / "revisions" / "step-0000016", run / "model")
    )
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), final.parameters(), strict=True))


def test_weights_that_several_processes_wrote_in_parts_are_joined(workspace, tmp_path):
    whole = load_file(workspace / "run" / "model" / "model.safetensors")
    for rank in range(2):
        parts, places = {}, {}
        for name, tensor in whole.items():
            first, last = (len(tensor) * part // 2 for part in (rank, rank + 1))
            parts[name] = tensor[first:last].contiguous()
            places[name] = [[first] + [0] * (tensor.ndim - 1), list(tensor.shape)]
        metadata = {"format": "pt", "places": json.dumps(places)}
        save_file(parts, tmp_path / f"model-{rank + 1:05d}-of-00002.safetensors", metadata=metadata)
    take_weights(tmp_path, tmp_path / "model.safetensors")
    together = load_file(tmp_path / "model.safetensors")
    assert together.keys() == whole.keys() and all(torch.equal(together[name], whole[name]) for name in whole)


def test_a_release_is_enough_to_train_the_model_again_bit_for_bit(trained, tmp_path, monkeypatch):
    run = trained[0]
    build(load_recipe([run.argv()[1]], run.argv()[2:] + TRAINING), ["model"])
    shutil.copytree(run.output_dir / "release", tmp_path / "tiny")
    card = (tmp_path / "tiny" / "README.md").read_text()
    commands = [
        shlex.split(line) for line in card.replace("\\\n", "").splitlines() if "--run.output_dir=runs/again" in line
    ]
    stages = {Path(word).stem: command for command in commands for word in command if word.startswith("recipes/")}
    monkeypatch.chdir(tmp_path)
    for source in ("law.jsonl", "web"):  # where recipe.yaml names them
        (tmp_path / source).symlink_to(run.texts / source)
    monkeypatch.setattr(sys, "argv", ["pretrain.py"])
    for name in ("prepare_data", "train_tokenizer", "tokenize_corpus", "pretrain"):
        command = stages[name]
        arguments = command[command.index(f"recipes/{name}.py") + 1 :]
        assert arguments == ["--config", "recipe.yaml", "--run.output_dir=runs/again"]
        importlib.import_module(name).main(["--config", "tiny/recipe.yaml", *arguments[2:]])
    again, first = (folder / "model" / "model.safetensors" for folder in (Path("runs/again"), run.output_dir))
    assert file_sha256(again) == file_sha256(first)
    assert read(tmp_path / "tiny" / "manifest.json")["files"]["model.safetensors"]["sha256"] == file_sha256(again)


def test_a_file_of_the_right_size_and_other_content_is_not_the_same(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    blob = {"path": "file", "size": 7, "oid": git_oid(b"content")}
    large = blob | {"lfs": {"oid": file_sha256(path), "size": 7, "pointerSize": 134}}
    files = [{"bytes": 7, "sha256": file_sha256(path), "sha1": git_sha1(path)}]
    path.write_bytes(b"contenu")
    files += [{"bytes": 7, "sha256": file_sha256(path), "sha1": git_sha1(path)}]
    for entry in (blob, large):
        assert [is_same_file(file, RepoFile(**entry)) for file in files] == [True, False]
