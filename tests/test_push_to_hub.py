# SPDX-License-Identifier: Apache-2.0
"""The release of a small run: what may go in, what is refused, what its card says, and what the Hub gets."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.hf_api import RepoFile
from mini_hub import ask_hub, git_oid, hub_environment, start_hub
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import push_to_hub
from card_text import escape_markdown
from model_card import write_card
from push_to_hub import build_release, is_same_file, main, publish, upload
from recipe_config import Recipe, RecipeError
from recipe_loading import load_recipe
from run_folder import file_sha256, output_folder, record_stage, write_json


TOKEN = "hf_" + "aB3" * 11  # put together here, so that this file holds none
HOSTILE = "CC <script>alert(1)</script> | --- | ![x](http://evil.example/y.png)\n---\n# heading `code` [a](b)"
SOURCES = {"contracts": "legal", "stories": "general"}
KINDS = ("xz_documents", "xz_stream", "xz_primed")


# A run folder as the stages leave it


def write_model(folder: Path) -> LlamaForCausalLM:
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
        **shape, vocab_size=len(vocabulary), max_position_embeddings=128, bos_token_id=0, eos_token_id=0
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
        "notes": [f"passed over {run.absolute()}/checkpoints/step_00000010"],
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
        "contracts": entry | {"domain": "legal", "bits_per_byte": 1.412, **dict.fromkeys(KINDS, 1.777)},
        "stories": entry | {"domain": "general", "bits_per_byte": 2.13, **dict.fromkeys(KINDS)},
    }
    task = {"metrics": {"acc": {"value": 0.27, "stderr": 0.044}}, "chance": 0.25, "num_items": 96, "version": 1.0}
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
    return build_release(load(workspace))


@pytest.fixture(scope="module")
def card(release) -> str:
    return (release / "README.md").read_text()


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def rewrite(path: Path, change) -> None:
    content = read(path)
    change(content)
    write_json(path, content)


# What is refused


@pytest.mark.parametrize("name", [".env", "training_args.bin", "model.pkl", "notes.txt", "modeling_custom.py"])
def test_a_model_folder_with_anything_else_in_it_is_refused(recipe, name):
    (Path(recipe.run.output_dir) / "model" / name).write_text("x")
    with pytest.raises(RecipeError, match=f"{name} does not belong to a release"):
        build_release(recipe)
    assert not output_folder(recipe, "publish").exists()


@pytest.mark.parametrize("name", ["model/config.json", "training.json", "figures/bits_per_byte.png", "eval"])
def test_a_link_is_refused_even_where_it_leads_to_the_right_file(recipe, tmp_path, name):
    path = Path(recipe.run.output_dir) / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match=f"{Path(name).name}.* is a link"):
        build_release(recipe)


@pytest.mark.parametrize("name", ["model/model.safetensors", "eval/results.json", "documents/stats.json"])
def test_a_file_that_changed_since_its_stage_is_refused(recipe, name):
    path = Path(recipe.run.output_dir) / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=f"{name} is not the file that its stage wrote"):
        build_release(recipe)


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
    rewrite(Path(recipe.run.output_dir) / "training.json", lambda content: content["notes"].append(f"with {secret}"))
    with pytest.raises(RecipeError) as refused:
        build_release(recipe)
    assert "training.json, byte" in str(refused.value)
    assert kind in str(refused.value)
    assert secret not in str(refused.value)
    assert not output_folder(recipe, "publish").exists()


def test_a_secret_in_a_binary_file_is_found(recipe):
    with (Path(recipe.run.output_dir) / "figures" / "bits_per_byte.png").open("ab") as file:
        file.write(b"\0\xff" + TOKEN.encode() + b"\0")
    record_stage(recipe, "report")
    with pytest.raises(RecipeError, match="figures/bits_per_byte.png, byte 10: looks like a Hugging Face token"):
        build_release(recipe)


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


def test_a_model_that_lacks_a_tensor_is_refused(recipe):
    run = Path(recipe.run.output_dir)
    weights = load_file(run / "model" / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, run / "model" / "model.safetensors", metadata={"format": "pt"})
    for stage in ("pretrain", "evaluate", "report"):
        record_stage(recipe, stage)
    with pytest.raises(RecipeError, match=r"missing_keys: \['model.norm.weight'\]"):
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


def test_a_parameter_count_that_is_not_the_models_is_refused(recipe):
    rewrite(Path(recipe.run.output_dir) / "training.json", lambda content: content["parameters"].update(total=7))
    with pytest.raises(RecipeError, match="parameters, not the 7 of training.json"):
        build_release(recipe)


def test_a_release_that_was_changed_after_the_checks_is_not_uploaded(recipe):
    release = build_release(recipe)
    with (release / "README.md").open("a") as file:
        file.write("one more line\n")
    with pytest.raises(RecipeError, match="was changed after it was checked"):
        upload(recipe, release)


# What is made


def test_the_release_holds_the_allowed_files_and_their_hashes(release):
    model = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    records = ["data_stats.json", "tokenizer_report.json", "training.json", "metrics.jsonl", "results.json"]
    expected = {*model, *records, "README.md", "recipe.yaml", "report.html", "figures/bits_per_byte.png"}
    expected |= {"data_card.md", "decontamination.json"}
    files = read(release / "manifest.json")["files"]
    assert files.keys() == expected
    assert all(file["sha256"] == file_sha256(release / name) for name, file in files.items())
    assert all(file["bytes"] == (release / name).stat().st_size for name, file in files.items())


def test_the_reports_links_lead_to_the_files_of_the_release_or_nowhere(release):
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


def test_a_release_of_text_that_nothing_was_looked_for_in_says_so(recipe, workspace):
    (Path(recipe.run.output_dir) / "documents" / "decontamination.json").unlink()
    recipe.data.personal_data = None
    run = Path(recipe.run.output_dir)
    rewrite(run / "documents" / "stats.json", lambda content: content.update(unchecked="evaluation.tasks names none"))
    rewrite(run / "eval" / "results.json", lambda content: content["tasks"]["legal_sense"].update(by_overlap=None))
    for stage in ("prepare", "tokenizer", "tokenize", "pretrain", "evaluate", "report"):
        record_stage(recipe, stage)
    release = build_release(recipe)
    card = (release / "README.md").read_text()
    assert "not checked against any benchmark: evaluation.tasks names none." in card
    assert "scores on public ones may be too high" in card
    assert "Personal data was not looked for" in card and "it was not checked against them" in card
    assert not (release / "decontamination.json").exists()


def test_paths_below_the_home_folder_are_shown_relative(workspace, monkeypatch, tmp_path):
    shutil.copytree(workspace, tmp_path / "home" / "work", symlinks=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "work")
    recipe = load(workspace, tmp_path / "home" / "work" / "run", license="mit")
    note = f"passed over {tmp_path}/home/work/run/checkpoints/step_00000010"
    rewrite(Path(recipe.run.output_dir) / "training.json", lambda content: content.update(notes=[note]))
    release = build_release(recipe)
    assert load_recipe([release / "recipe.yaml"]).run.output_dir == "run"
    training = read(release / "training.json")
    assert training["notes"] == ["passed over run/checkpoints/step_00000010"]


def test_a_second_call_makes_nothing_and_a_changed_input_makes_it_anew(recipe):
    publish(recipe)
    release = output_folder(recipe, "publish")
    made = (release / "manifest.json").stat().st_ino
    publish(recipe)
    assert (release / "manifest.json").stat().st_ino == made
    recipe.hub.license = "apache-2.0"
    publish(recipe)
    assert (release / "manifest.json").stat().st_ino != made
    assert metadata_load(release / "README.md")["license"] == "apache-2.0"


def test_a_dry_run_says_in_one_line_what_would_publish_it(workspace, recipe, capsys):
    config = str(workspace / "recipe.yaml")
    main(["--config", config, f"--run.output_dir={recipe.run.output_dir}", "--dry_run"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert str(Path(recipe.run.output_dir) / "release" / "README.md") in out
    output_dir = f"--run.output_dir={recipe.run.output_dir}"
    assert out.endswith(f"python recipes/push_to_hub.py --config {config} {output_dir} --hub.repo_id=YOUR_NAME/run\n")


def test_without_an_evaluation_the_card_claims_nothing(recipe, capsys):
    run = Path(recipe.run.output_dir)
    (run / "eval" / "stage.json").unlink()
    shutil.rmtree(run / "figures")
    release = build_release(recipe)
    assert f"note: {run / 'eval'} is left out" in capsys.readouterr().out
    files = read(release / "manifest.json")["files"]
    assert not {"results.json", "report.html"} & files.keys()
    card = (release / "README.md").read_text()
    assert "made without an evaluation" in card
    assert "95 %" not in card and "figures/" not in card and "report.html" not in card
    assert "model-index" not in metadata_load(release / "README.md")


# What the card says


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
        "| stories | general | not stated in the recipe | 31 | 31,000 | 40.0 % | 40.0 % | 9,000 | 0.29 |",
        "[contracts](<https://example.org/contracts_v1>)",
        "near\\_duplicate: 4 documents, 4,000 bytes; too\\_short: 1 documents, 1,000 bytes",
        "| contracts | 4.42 | 2.79 |",
        "5,120 in 20 steps of 256",
        "1.4e+09 FLOPs (6 \\* parameters \\* tokens)",
        "| contracts | legal | 2 | 2,000 | 1.412 | 1.310 to 1.520 | 1.777 | 1.777 | 1.777 |",
        "| stories | general | 2 | 2,000 | 2.130 | 1.310 to 1.520 | not measured | not measured | not measured |",
        "| legal\\_sense | 96 | 0.250 | acc | 0.270 | 0.044 | not distinguishable |",
        "| legal\\_sense | 96 | none | bits per byte of the right answer | 1.234 | 0.056 | not comparable |",
        "| contracts | 21 | 0 | 0 | 0 | 0 | 0 |",
        "| ip (left) |",
        "7 documents. What is reworded is not found.",
        "| legal\\_sense | 96 | 80 | 42 | 7 | 40 |",
        "| legal\\_sense | clean | 40 | acc | 0.240 | 0.070 |",
        "| legal\\_sense | overlapping with the text | 40 | acc | 0.330 | 0.070 |",
        "| legal\\_sense | too short or common to be checked | 16 | not scored | none | none |",
        "validation: 3 documents; test: 2 documents",
        "is **unknown**: no licence that is known here is named",
        "2.345 bits per byte",
        "![bits per byte](figures/bits_per_byte.png)",
        "python recipes/run_recipe.py --config recipe.yaml\n",
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


def test_an_empty_field_is_an_error_and_not_a_hole(release, workspace, tmp_path):
    shutil.copytree(release, tmp_path / "release")
    rewrite(tmp_path / "release" / "training.json", lambda content: content.update(device=" \n"))
    with pytest.raises(ValueError, match="empty field"):
        write_card(load(workspace), tmp_path / "release")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# a\n---\nb", "\\# a --- b"),
        ("<b>&amp;</b>", "&lt;b&gt;&amp;amp;&lt;/b&gt;"),
        ("a | b\\", "a \\| b\\\\"),
        ("x\x1b[31m\u202ey", "x \\[31m y"),
    ],
)
def test_escaped_text_stands_for_itself(text, shown):
    assert escape_markdown(text) == shown


def test_the_cards_code_runs_in_the_release(release, card, monkeypatch, capsys):
    monkeypatch.chdir(release)
    exec(compile(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("In general, the")


# The Hub


def hub_session(workspace: str, out: str) -> None:
    """Publish in every way, in a process whose Hub is the double from the start; write what happened as JSON."""
    workspace = Path(workspace)
    run = workspace / "published"
    tiny = load(workspace, run, repo_id="me/tiny")
    seen: dict[str, object] = {}

    def attempt(name: str, recipe: Recipe = tiny, **options) -> None:
        try:
            release, published, is_new = publish(recipe, **options)
            seen[name] = {"release": str(release), "published": published, "is_new": is_new}
        except RecipeError as error:
            seen[name] = str(error)

    def attempt_with(name: str, *faults: dict, recipe: Recipe = tiny) -> None:
        ask_hub("/_faults", list(faults))
        attempt(name, recipe)
        ask_hub("/_faults", [])

    attempt("dry run", dry_run=True)
    token = os.environ.pop("HF_TOKEN")
    attempt("no token")
    seen["requests so far"] = ask_hub("/_state")["log"]
    os.environ["HF_TOKEN"] = token
    attempt_with("bad token", {"match": "POST /api/repos/create", "status": 401})
    attempt_with("no storage", {"match": "PUT /_lfs/", "status": 403})
    attempt_with("read-only token", {"match": "POST .*/commit/", "status": 403})
    attempt_with("other commit", {"match": "POST .*/commit/", "status": 412})
    push_to_hub.REQUEST_TIMEOUT_SECONDS = 0.3
    attempt_with("hanging", {"match": "POST /api/repos/create", "action": "hang", "seconds": 1})
    push_to_hub.REQUEST_TIMEOUT_SECONDS = 60
    seen["before"] = [ask_hub("/_state")["repositories"]["models/me/tiny"], (run / "publish.json").exists()]

    attempt("first")
    seen["after first"] = [ask_hub("/_state")["repositories"]["models/me/tiny"], read(run / "publish.json")]
    attempt("second")
    seen["after second"] = ask_hub("/_state")["repositories"]["models/me/tiny"]
    inputs = AutoTokenizer.from_pretrained("me/tiny")("The court", return_tensors="pt")
    logits = [AutoModelForCausalLM.from_pretrained(name)(**inputs).logits for name in ("me/tiny", run / "model")]
    seen["same logits"] = torch.equal(*logits)

    api = push_to_hub.HfApi()
    for repo_id, names in {"me/tiny": ["stray.txt", ".gitattributes"], "me/other": ["pytorch_model.bin"]}.items():
        api.create_repo(repo_id, exist_ok=True)
        operations = [push_to_hub.CommitOperationAdd(name, b"by someone else") for name in names]
        api.create_commit(repo_id, operations, commit_message="another hand")
    attempt("after another hand")
    seen["files after another hand"] = ask_hub("/_state")["repositories"]["models/me/tiny"]["files"]
    attempt("other model", load(workspace, run, repo_id="me/other"))
    seen["files of the other model"] = ask_hub("/_state")["repositories"]["models/me/other"]["files"]
    lost = {"match": "GET .*/tree/", "status": 200, "answer": [], "times": 2}
    attempt_with("lost files", lost, recipe=load(workspace, run, repo_id="me/lost"))
    seen["record after lost files"] = read(run / "publish.json")["repo_id"]
    os.kill(int(os.environ["HUB_PID"]), signal.SIGKILL)
    attempt("no hub")
    Path(out).write_text(json.dumps(seen))


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


def test_without_a_repository_or_a_token_nothing_is_asked_of_the_hub(session):
    assert session["dry run"]["published"] is None
    assert re.search("no Hub token: run `hf auth login`, or set HF_TOKEN", session["no token"])
    assert session["requests so far"] == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("bad token", "the Hub answered 401 .*the token is wrong or has expired: .*hf auth login"),
        ("read-only token", "the Hub answered 403 .*the token may not write there"),
        ("no storage", "the Hub answered 403 .*the token may not write there"),
        ("other commit", "the Hub answered 412 .*someone else committed meanwhile"),
        ("hanging", "cannot be reached .ReadTimeout.*check the connection"),
        ("no hub", "http://127.0.0.1:[0-9]+ cannot be reached .ConnectError.*check the connection"),
    ],
)
def test_a_fault_of_the_hub_is_one_message_with_what_to_do(session, fault, message):
    assert re.search(message, session[fault])
    assert session[fault].startswith("hub.repo_id=me/tiny: ")
    assert session[fault].endswith("published/release is kept")
    assert "hf_test" not in session[fault]


def test_a_failed_upload_leaves_neither_a_commit_nor_a_record(session):
    repository, has_record = session["before"]
    assert [commit["message"] for commit in repository["commits"]] == ["initial commit"]
    assert not has_record


def test_a_release_is_published_in_one_commit_with_every_file(session):
    repository, record = session["after first"]
    release = Path(session["first"]["release"])
    sizes = {name: file["bytes"] for name, file in read(release / "manifest.json")["files"].items()}
    assert repository["private"]
    assert [commit["message"] for commit in repository["commits"]] == ["initial commit", "Publish the release"]
    assert repository["files"].keys() == {*sizes, "manifest.json"}
    assert record.keys() == {"repo_id", "url", "commit", "manifest_sha256"}
    assert record == session["first"]["published"] and session["first"]["is_new"]
    assert record["commit"] == repository["head"] and record["url"].endswith("/me/tiny")
    card = (release / "README.md").read_text()
    assert 'model_id = "me/tiny"' in card and "--config recipe.yaml --hub.repo_id=null" in card
    assert load_recipe([release / "recipe.yaml"]).hub.repo_id == "me/tiny"


def test_publishing_the_same_release_again_does_nothing(session):
    assert not session["second"]["is_new"]
    assert session["second"]["published"] == session["first"]["published"]
    assert session["after second"] == session["after first"][0]


def test_the_published_model_gives_the_same_logits(session):
    assert session["same logits"]


def test_what_does_not_belong_to_the_release_is_deleted_from_its_repository(session):
    assert session["after another hand"]["is_new"]
    assert session["files after another hand"].keys() == {*session["after first"][0]["files"], ".gitattributes"}


def test_a_repository_that_holds_another_model_is_left_alone(session):
    assert re.search(
        "me/other holds files that this command did not publish .*pytorch_model.bin", session["other model"]
    )
    assert session["files of the other model"].keys() == {"pytorch_model.bin"}


def test_a_file_of_the_right_size_and_other_content_is_not_the_same(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    blob = {"path": "file", "size": 7, "oid": git_oid(b"content")}
    large = blob | {"lfs": {"oid": file_sha256(path), "size": 7, "pointerSize": 134}}
    assert all(is_same_file(path, RepoFile(**entry)) for entry in (blob, large))
    path.write_bytes(b"contenu")
    assert not any(is_same_file(path, RepoFile(**entry)) for entry in (blob, large))


def test_an_upload_that_does_not_read_back_is_an_error_and_not_recorded(session):
    assert re.search("me/lost does not hold what was uploaded: README.md, config.json", session["lost files"])
    assert session["record after lost files"] == "me/tiny"
