# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning to summarise: data from a file and the Hub, both templates, adapters and all weights, scores, card."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from mini_hub import hub_environment, start_hub
from peft.tuners.lora import LoraLayer
from small_models import small_model
from small_tokenizers import KINDS
from tiny_run import RECIPES, ROOT, TinyRun, make_text
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import finetune
import pretrain
import verify_run
from atomic_files import RECORD
from model.continued import add_adapters
from model.families import projections
from recipe_config import Finetune, Lora, RecipeError
from recipe_loading import load_recipe
from recovery import tuning_checkpoints
from run_folder import write_record
from summaries import CHAT_TEMPLATE, build_prompt, encode, lead, summarise
from summary_page import describe_quality


PARTIES = ["tenant", "landlord", "plaintiff", "buyer", "seller", "bank"]


def write_cases(path, first: int, number: int) -> None:
    """Write made-up cases whose summary can be read off their last sentence, one JSON object a line."""
    rows = []
    for seed in range(first, first + number):
        party = random.Random(seed).choice(PARTIES)
        rows.append({"text": f"{make_text(seed, 1)}\nThe {party} wins.", "summary": f"The {party} wins."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class StoppedTrainer(finetune.SFTTrainer):
    """Ends like a process that is interrupted, right after a checkpoint."""

    def _save_checkpoint(self, *arguments, **options):
        super()._save_checkpoint(*arguments, **options)
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def tuned(tokenized_run, tmp_path_factory):
    """A tiny model that was tuned with adapters, stopped on the way, and the arguments it was tuned with."""
    folder = tmp_path_factory.mktemp("tuned")
    run = tokenized_run.copy(folder / "run")
    pretrain.main(run.argv(*LONGER))
    write_cases(folder / "train.jsonl", 0, 64)
    write_cases(folder / "test.jsonl", 1_000, 12)
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"text": "no summary"}\n{"text": "", "summary": "no text"}\nno JSON\n')
        file.write((folder / "test.jsonl").read_text().splitlines()[0] + "\n")
    argv = run.argv(*LONGER, *settings(folder))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finetune, "SFTTrainer", StoppedTrainer)
        with pytest.raises(KeyboardInterrupt):
            finetune.main(argv)
    assert not (run.output_dir / "finetuned").exists()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as a launch file of another machine says
        finetune.main(argv)
    return run, folder, argv


# Positions up to 128 are what fine-tuning needs here; the model need not be any good.
LONGER = ("--training.sequence_length=128", "--training.tokens_per_step=256", "--training.max_tokens=30720")


def settings(folder) -> list[str]:
    chosen = {
        "train": {"name": "cases", "path": str(folder / "train.jsonl")},
        "test": {"name": "held-out", "path": str(folder / "test.jsonl"), "license": "made up"},
        "sequence_length": 96,
        "max_summary_tokens": 16,
        "lora": {"rank": 4},
        "num_train_epochs": 8,
        "examples_per_step": 8,
        "learning_rate": 2e-2,
        "save_steps": 16,
    }
    return [f"--finetune.{key}={json.dumps(value)}" for key, value in chosen.items()]


def results(run: TinyRun) -> dict:
    return json.loads((run.output_dir / "finetuned" / "results.json").read_text())


def test_rows_without_a_document_or_a_summary_are_left_out_and_counted(tuned):
    documents = results(tuned[0])["documents"]
    assert documents == {
        "train": 64,
        "test": 12,
        "left_out": {"train": 3, "test": 0, "train_also_in_test": 1, "train_with_benchmark_items": None},
    }


def test_training_documents_that_hold_benchmark_items_are_left_out_and_counted(tmp_path):
    write_cases(tmp_path / "train.jsonl", 0, 12)
    write_cases(tmp_path / "test.jsonl", 1_000, 2)
    leaked = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[3])
    question = " ".join(make_text(900, 2).split())
    leaked["text"] = f"{make_text(500, 1)}\n{question}"
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps(leaked) + "\n")
    (tmp_path / "benchmarks").mkdir()
    item = {"id": 1, "context": f"Question: {question}\nAnswer:", "choices": [" yes", " no"], "gold": 0}
    (tmp_path / "benchmarks" / "task.jsonl").write_text(json.dumps(item) + "\n")
    overrides = [f"--data.decontamination={{benchmarks: {tmp_path / 'benchmarks'}}}", *settings(tmp_path)]
    recipe = load_recipe(
        [ROOT / "recipes" / "custom" / "base.yaml"], ["--data.sources=[{name: a, path: b}]", *overrides]
    )
    examples = finetune.choose_examples(recipe.finetune, *finetune.load_benchmarks(recipe))
    assert len(examples.train) == 12 and not any(question in document for document, _ in examples.train)
    assert examples.left_out["train_with_benchmark_items"] == 1


def test_the_tuned_model_is_scored_beside_the_one_before_and_the_first_sentences(tuned):
    scores = results(tuned[0])["rouge"]
    assert list(scores) == ["first 3 sentences", "before", "after"]
    for metrics in scores.values():
        for score in metrics.values():
            assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
    assert scores["after"]["rouge1"]["mean"] > scores["before"]["rouge1"]["mean"] + 0.2
    differences = results(tuned[0])["after_minus"]
    assert list(differences) == ["first 3 sentences", "before"]
    for name, metrics in differences.items():
        for metric, found in metrics.items():
            assert found["mean"] == pytest.approx(scores["after"][metric]["mean"] - scores[name][metric]["mean"])
            assert found["low"] <= found["mean"] <= found["high"]
    assert results(tuned[0])["model"]["trained"] < results(tuned[0])["model"]["parameters"]


def test_the_tuned_model_loads_merged_and_stops_by_itself(tuned):
    run, _, argv = tuned
    folder = run.output_dir / "finetuned"
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()) and not any("lora" in name for name, _ in model.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chosen = load_recipe([argv[1]], argv[2:]).finetune
    texts = [f"{make_text(seed, 1)}\nThe bank wins." for seed in range(2_000, 2_008)]
    summaries = summarise(texts, model, tokenizer, chosen)
    ended = [len(tokenizer(summary)["input_ids"]) < chosen.max_summary_tokens for summary in summaries]
    assert sum(ended) >= 6, f"the end was tuned too: {summaries}"
    assert summarise(texts[:1], model, tokenizer, chosen) == summaries[:1], "padding beside others changes nothing"


def test_the_card_has_the_scores_and_what_the_model_is_not_for(tuned):
    card = (tuned[0].output_dir / "finetuned" / "README.md").read_text()
    after = results(tuned[0])["rouge"]["after"]["rouge2"]
    assert f"{after['mean']:.3f} ({after['low']:.3f} to {after['high']:.3f})" in card
    assert "low-rank adapters (rank 4, merged;" in card and "made up" in card and "It is no legal advice" in card


BELOW = "**Its ROUGE-2 is below that of the first sentences.**"
LIKE_LEAD = "its ROUGE-2 cannot be distinguished from that of the first sentences"
LIKE_BEFORE = "its ROUGE-2 cannot be distinguished from that before fine-tuning"
RAISED, LOWERED = "Fine-tuning raised its ROUGE-2.", "**Fine-tuning lowered its ROUGE-2.**"


@pytest.mark.parametrize(
    ("against_lead", "against_before", "sentences"),
    [
        ((-0.09, -0.01), (0.01, 0.09), {BELOW, RAISED}),
        ((-0.01, 0.09), (-0.01, 0.09), {LIKE_LEAD, LIKE_BEFORE}),
        ((0.01, 0.09), (-0.09, -0.01), {LOWERED}),
    ],
)
def test_the_card_says_what_the_paired_differences_show(tuned, tmp_path, against_lead, against_before, sentences):
    run, _, argv = tuned
    model, tokenizer = (
        cls.from_pretrained(run.output_dir / "finetuned") for cls in (AutoModelForCausalLM, AutoTokenizer)
    )
    recipe = load_recipe([argv[1]], [*argv[2:], f"--run.output_dir={tmp_path}"])
    changed = results(run)
    for name, (low, high) in {"first 3 sentences": against_lead, "before": against_before}.items():
        changed["after_minus"][name]["rouge2"] = {"low": low, "mean": (low + high) / 2, "high": high}
    finetune.write_output(recipe, model, tokenizer, changed)
    card = (tmp_path / "finetuned" / "README.md").read_text()
    assert {text for text in (BELOW, LIKE_LEAD, LIKE_BEFORE, RAISED, LOWERED) if text in card} == sentences
    page = describe_quality(changed)
    assert ("Do not use it in their place" in page) == (BELOW in sentences)
    assert ("cannot be distinguished from that of the first 3 sentences" in page) == (LIKE_LEAD in sentences)
    low, high = against_before
    assert f"{(low + high) / 2:+.3f} ({low:+.3f} to {high:+.3f})" in card.replace("\\", "")
    assert str(tuned[1]) not in card and "local file or folder train.jsonl" in card


def test_one_test_document_gives_no_interval_and_no_claim(tuned, tmp_path):
    assert finetune.mean_with_interval(np.array([0.25])) == {"low": None, "mean": 0.25, "high": None}
    run, _, argv = tuned
    recipe = load_recipe([argv[1]], [*argv[2:], f"--run.output_dir={tmp_path}"])
    changed = results(run)
    changed["documents"]["test"] = 1
    for part in ("rouge", "after_minus"):
        for name in changed[part]:
            changed[part][name] = {
                metric: finetune.mean_with_interval(np.array([0.25])) for metric in finetune.METRICS
            }
    changed["examples"][0]["reference"] = "\u200b"
    card = finetune.write_card(recipe, changed)
    assert not [text for text in (BELOW, LIKE_LEAD, LIKE_BEFORE, RAISED, LOWERED, "95 %") if text in card]
    assert "One document does not show what fine-tuning changed" in card and "| 0.250 | 0.250 | 0.250 |" in card
    assert "| written | (nothing) |" in card
    assert describe_quality(changed).startswith("One test document does not show")


def test_a_difference_on_the_same_documents_is_found_where_separate_intervals_overlap():
    hard = np.random.default_rng(0).beta(1, 3, size=60)
    before, after = (finetune.mean_with_interval(values) for values in (hard, hard + 0.02))
    assert before["mean"] == hard.mean() and after["low"] < before["high"]
    gain = finetune.mean_with_interval(hard + np.random.default_rng(1).normal(0.02, 0.02, size=60) - hard)
    assert gain["low"] > 0
    assert finetune.mean_with_interval(np.zeros(5)) == {"low": 0, "mean": 0, "high": 0}


def test_the_interval_of_a_mean_difference_covers_it():
    generator, covered = np.random.default_rng(0), 0
    for _ in range(500):  # summaries that share no word with the reference score 0
        base = generator.beta(1, 4, size=80) * (generator.random(80) < 0.7)
        gain = np.where(generator.random(80) < 0.5, generator.beta(2, 6, size=80), 0) - 0.1 * base
        found = finetune.mean_with_interval(gain)
        covered += found["low"] <= 0.5 * 0.25 - 0.1 * 0.7 * 0.2 <= found["high"]
    assert 0.93 <= covered / 500 <= 0.97


def test_a_second_start_does_nothing_and_other_settings_are_refused(tuned, capsys):
    run, _, argv = tuned
    left = run.output_dir / ".trash.finetune_checkpoints"
    (left / "a").mkdir(parents=True)  # as by a kill while the checkpoints are deleted
    finetune.main(argv)
    assert "nothing to do" in capsys.readouterr().out and not left.exists()
    with pytest.raises(RecipeError, match="finetuned is out of date: .* Run with --overwrite"):
        finetune.main([*argv, "--finetune.learning_rate=1e-3"])


def test_edited_texts_and_replaced_weights_make_the_fine_tuned_model_out_of_date(tuned, capsys):
    run, folder, argv = tuned
    train, model = folder / "train.jsonl", run.output_dir / "model"
    before, weights, record = (path.read_bytes() for path in (train, model / "model.safetensors", model / RECORD))
    train.write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
    with pytest.raises(RecipeError, match=r"finetuned is out of date: texts.train was.* Run with --overwrite"):
        finetune.main(argv)
    train.write_bytes(before)
    (model / "model.safetensors").write_bytes(weights[:-3] + bytes([weights[-3] ^ 1]) + weights[-2:])
    with pytest.raises(RecipeError, match=r"model is damaged: model.safetensors: its sha256 is not the one"):
        finetune.main(argv)
    made_from = {key: json.loads(record)[key] for key in ("settings", "inputs", "once")}
    write_record(model, "pretrain", made_from)
    with pytest.raises(RecipeError, match=r"finetuned is out of date: model.content was.* Run with --overwrite"):
        finetune.main(argv)
    write_record(model, "pretrain", made_from | {"inputs": {"tokenize": "other", "tokenizer": "other"}})
    with pytest.raises(
        RecipeError, match=r"model is out of date: .*; rerun: python recipes/pretrain.py .*--overwrite"
    ):
        finetune.main(argv)
    (model / "model.safetensors").write_bytes(weights)
    (model / RECORD).write_bytes(record)
    finetune.main(argv)
    assert "nothing to do" in capsys.readouterr().out


def test_a_model_that_an_earlier_version_fine_tuned_is_recorded_and_stays(tuned, capsys):
    run, _, argv = tuned
    record = run.output_dir / "finetuned" / RECORD
    before = record.read_bytes()
    record.unlink()
    finetune.main(argv)
    assert "nothing to do" in capsys.readouterr().out and record.read_bytes() == before
    record.unlink()
    with pytest.raises(RecipeError, match="settings.learning_rate was"):
        finetune.main([*argv, "--finetune.learning_rate=1e-3"])
    assert verify_run.check_stage(run.output_dir, "finetune")[0][0].startswith("ok, ")


def test_fine_tuning_that_was_stopped_resumes_from_its_checkpoint(tuned):
    run = tuned[0]
    assert results(run)["resumed_from"] == "checkpoint-16" and results(run)["steps"] == 64
    assert results(run)["mixed_precision"] == "no", "as it began"
    assert not (run.output_dir / "finetune_checkpoints").exists(), "needed no more"


def test_a_damaged_record_of_the_precision_is_refused_and_an_earlier_version_has_none(tmp_path):
    assert tuning_checkpoints.kept_precision(tmp_path) is None
    tuning_checkpoints.write_precision(tmp_path, "no")
    assert tuning_checkpoints.kept_precision(tmp_path) == "no"
    whole = (tmp_path / tuning_checkpoints.PRECISION).read_text()
    for damaged in (whole.replace('"no"', '"nn"'), whole.replace("record_", "rekord_"), whole[1:]):
        (tmp_path / tuning_checkpoints.PRECISION).write_text(damaged)
        with pytest.raises(RecipeError, match=r"precision.json is not as it was written, .* Restore it from a copy"):
            tuning_checkpoints.kept_precision(tmp_path)


def test_a_checkpoint_that_is_damaged_or_half_made_is_deleted_and_an_earlier_one_taken(tmp_path, capfd):
    for step in (8, 16, 24):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(bytes([step] * 64))
        (folder / "trainer_state.json").write_text('{"global_step": 8}')
        os.utime(folder, (1e9 - step, 1e9 - step))  # as after the clock was set back
        arguments = finetune.SFTConfig(output_dir=str(tmp_path), report_to="none", bf16=False)
        state = finetune.TrainerState(global_step=step, is_world_process_zero=True)
        finetune.SealedCheckpoints().on_save(arguments, state, finetune.TrainerControl())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-16", "checkpoint-24"]
    assert tuning_checkpoints.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-24")
    (tmp_path / "checkpoint-24" / "adapter_model.safetensors").write_bytes(bytes([16] * 64))
    (tmp_path / "checkpoint-32").mkdir()
    (tmp_path / "checkpoint-32" / "adapter_model.safetensors").write_bytes(b"half")
    assert tuning_checkpoints.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-16")
    assert capfd.readouterr().err.count("finetune: does not resume from ") == 2
    (tmp_path / "checkpoint-16" / tuning_checkpoints.HASHES).unlink()  # as an earlier version left it
    assert tuning_checkpoints.newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-16")
    (tmp_path / "checkpoint-16" / "trainer_state.json").unlink()
    assert tuning_checkpoints.newest_checkpoint(tmp_path) is None


def test_every_weight_can_be_tuned_with_a_chat_template(tuned, tmp_path):
    run, argv = tuned[0].copy(tmp_path / "run"), tuned[2]
    more = ["--finetune.lora=null", "--finetune.template=chat", "--finetune.num_train_epochs=4", "--overwrite"]
    finetune.main([*argv, *more, f"--run.output_dir={run.output_dir}", "--finetune.learning_rate=1e-2"])
    found = results(run)
    assert found["model"]["trained"] == found["model"]["parameters"]
    assert found["rouge"]["after"]["rouge1"]["mean"] > found["rouge"]["before"]["rouge1"]["mean"] + 0.2
    assert AutoTokenizer.from_pretrained(run.output_dir / "finetuned").chat_template == CHAT_TEMPLATE


@pytest.mark.long
def test_two_processes_fine_tune_a_model_and_documents_of_the_hub(tuned, tmp_path):
    run, folder, argv = tuned[0].copy(tmp_path / "run"), tuned[1], tuned[2]
    with start_hub() as (_, endpoint):
        environment = os.environ | hub_environment(endpoint, tmp_path / "home") | {"HF_HUB_OFFLINE": "0"}
        upload = (
            "import sys; from huggingface_hub import HfApi; api = HfApi(); api.create_repo('fiscal/bills', "
            "repo_type='dataset'); [api.upload_file(path_or_fileobj=f'{sys.argv[1]}/{split}.jsonl', path_in_repo="
            "f'{split}.jsonl', repo_id='fiscal/bills', repo_type='dataset') for split in ('train', 'test')]; "
            "api.create_repo('base/model'); api.upload_folder(folder_path=sys.argv[2], repo_id='base/model')"
        )
        subprocess.run(
            [sys.executable, "-c", upload, str(folder), run.output_dir / "model"], env=environment, check=True
        )
        more = ["--finetune.model=base/model", "--hub.license=other"]  # the model has no card
        for split in ("train", "test"):
            source = {"name": split, "path": "fiscal/bills", "revision": "main", "split": split}
            more.append(f"--finetune.{split}={json.dumps(source)}")
        launch = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--mixed_precision",
            "no",
            "--num_processes",
            "2",
        ]
        launch += ["--config_file", str(ROOT / "accelerate_configs" / "ddp.yaml"), str(RECIPES / "finetune.py"), *argv]
        launch += [*more, "--overwrite", f"--run.output_dir={run.output_dir}"]
        done = subprocess.run(launch, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = results(run)
    assert found["documents"]["test"] == 12 and found["steps"] == 64
    assert found["rouge"]["after"]["rouge1"]["mean"] > found["rouge"]["before"]["rouge1"]["mean"] + 0.2


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_a_long_document_is_truncated_so_that_its_summary_fits_and_control_tokens_are_removed(tuned, template):
    tokenizer = AutoTokenizer.from_pretrained(tuned[0].output_dir / "tokenizer")
    tokenizer.chat_template = CHAT_TEMPLATE
    source = {"name": "a", "path": "a"}
    chosen = Finetune(train=source, test=source, sequence_length=96, max_summary_tokens=16, template=template)
    document = f"<|endoftext|>{make_text(3, 400)}"
    ids = encode(build_prompt(document, chosen, tokenizer), tokenizer)
    assert 70 <= len(ids) <= 80
    assert ids.count(tokenizer.eos_token_id) == 1, "only the one that begins a text"
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert make_text(3, 400)[:60] in text and text.endswith("Summary:" if template == "plain" else "Assistant:")


@pytest.mark.parametrize("spelled", ["<|endo<|endoftext|>ftext|>", "<|en<|endo<|endoftext|>ftext|>doftext|>"])
def test_a_control_token_put_together_by_removing_another_is_removed_too(tuned, spelled):
    tokenizer = AutoTokenizer.from_pretrained(tuned[0].output_dir / "tokenizer")
    source = {"name": "a", "path": "a"}
    chosen = Finetune(train=source, test=source, sequence_length=96, max_summary_tokens=16)
    prompt = build_prompt(f"The tenant{spelled} wins.", chosen, tokenizer)
    assert prompt == "<|endoftext|>The tenant wins.\n\nSummary:"


def test_an_added_token_that_is_text_stays_in_the_document(tokenized_run):
    tokenizer = AutoTokenizer.from_pretrained(tokenized_run.output_dir / "tokenizer")
    tokenizer.add_tokens(["estoppel"])
    source = {"name": "a", "path": "a"}
    prompt = build_prompt("The estoppel binds.", Finetune(train=source, test=source), tokenizer)
    assert prompt == "<|endoftext|>The estoppel binds.\n\nSummary:"


def test_the_lead_is_whole_sentences():
    text = "The court (Smith, J.) held so. See 12 U.S.C. 34. It was affirmed! Why? Nobody knows."
    assert lead(text, 2) == "The court (Smith, J.) held so. See 12 U.S.C. 34."
    assert lead("no end", 3) == "no end"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--finetune.max_summary_tokens=60"], "60 leaves less than half of sequence_length=96"),
        (["--finetune.examples_per_step=6"], "finetune.examples_per_step: 6 is not a multiple of per_device"),
        (["--finetune.lorra=1"], "finetune.lorra: unknown key, got 1; did you mean 'lora'?"),
        (["--finetune.sequence_length=4096"], "is more than the 128 tokens that"),
        (["--finetune.summary_field=headline"], "has texts in both fields 'text' and 'headline'"),
        (["--finetune.model=/nowhere"], "finetune.model='/nowhere': no such folder"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_trained(tuned, overrides, message, capsys):
    with pytest.raises((RecipeError, SystemExit)) as refused:
        finetune.main([*tuned[2], *overrides, "--overwrite"])
    assert message in str(refused.value) + capsys.readouterr().err


def test_a_recipe_without_the_section_says_where_to_see_one(tiny_run):
    with pytest.raises(RecipeError, match="finetune: missing; recipes/legal/summarise.yaml shows one"):
        finetune.main(tiny_run.argv())


def test_the_shipped_recipe_fits_the_model_of_the_run():
    recipe = load_recipe([RECIPES / "legal" / "summarise.yaml"])
    assert recipe.finetune.sequence_length <= recipe.training.sequence_length
    assert recipe.finetune.train.revision == recipe.finetune.test.revision


def test_a_model_with_code_of_its_own_is_refused(tmp_path):
    small_model("llama").save_pretrained(tmp_path)
    KINDS["Llama 3"]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["MyLlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    chosen = Finetune(train={"name": "a", "path": "b"}, test={"name": "a", "path": "b"}, sequence_length=32)
    with pytest.raises(RecipeError, match="names code of its own, MyLlamaForCausalLM"):
        finetune.load_model(chosen, str(tmp_path))


@pytest.mark.parametrize("family", ["bloom", "mpt", "gemma3"])
def test_a_model_of_another_family_is_refused_before_its_weights_are_read(family, tmp_path):
    AutoConfig.for_model(family).save_pretrained(tmp_path)  # there are no weights
    chosen = Finetune(train={"name": "a", "path": "b"}, test={"name": "a", "path": "b"}, sequence_length=32)
    with pytest.raises(RecipeError, match=f"finetune.model='.*' is of type '{family}'; choose a model of"):
        finetune.load_model(chosen, str(tmp_path))


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_default_adapters_are_on_every_projection_of_any_family(family):
    model = small_model(family)
    expected = len(projections(model))
    add_adapters(model, Lora(rank=2))
    assert sum(isinstance(part, LoraLayer) for part in model.modules()) == expected


def test_targets_that_a_model_lacks_are_refused_when_it_is_loaded(tmp_path):
    small_model("gpt2").save_pretrained(tmp_path)
    KINDS["GPT-2"]().save_pretrained(tmp_path)
    chosen = Finetune(
        train={"name": "a", "path": "b"},
        test={"name": "a", "path": "b"},
        sequence_length=32,
        lora={"targets": ["c_attn", "q_proj"]},
    )
    with pytest.raises(RecipeError, match=r"finetune.lora.targets: no q_proj; the layers have c_attn, c_fc, c_proj"):
        finetune.load_model(chosen, str(tmp_path))
