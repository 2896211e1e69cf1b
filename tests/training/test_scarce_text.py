# SPDX-License-Identifier: Apache-2.0
"""What little text is trained with: dropout, repacking, averaged weights, and models that another learns from."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_run import RECIPES, ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

import pretrain
import run_recipe
from document_ledger import open_ledger
from mixture.fitting import decide_length
from mixture.phases import make_mixture, schedule_phases
from mixture.shards import TokenShards
from model.summed_loss import build_summed_loss
from recipe_config import Average, RecipeError
from recipe_loading import load_recipe, parse_command_line
from recovery.stored_tensors import load_tensors
from stages import STAGES
from training.average import WeightAverage
from training.inputs import read_inputs
from training.progress import tracker_name


DIVIDED = f"""
import sys
sys.path[:0] = [{str(RECIPES)!r}, {str(ROOT / "tests")!r}]
import divided_models, pretrain
from training import accelerators

if sys.argv.pop(1) == "fsdp2":
    accelerators.Accelerator = divided_models.fsdp2
pretrain.main()
"""
SCARCE = [
    *("--training.dropout=0.1", "--model.attention_dropout=0.1", "--data.repack=true", "--training.average.ema=0.8"),
    *("--training.save_steps=8", "--training.keep_every_steps=8"),
]


@pytest.fixture(scope="module")
def scarce_run(tokenized_run, tmp_path_factory):
    run = tokenized_run.copy(tmp_path_factory.mktemp("scarce") / "run")
    pretrain.main(run.argv(*SCARCE))
    return run


def tensors(run, stem: str, step: int = 20) -> dict[str, torch.Tensor]:
    return load_file(run.output_dir / "checkpoints" / f"step_{step:08d}" / f"{stem}.safetensors")


def resumed_from(step: int, run, folder):
    """Return a copy of a finished run as a kill after the checkpoint of a step had left it."""
    copy = run.copy(folder)
    shutil.rmtree(copy.output_dir / "model")
    for checkpoint in (copy.output_dir / "checkpoints").glob("step_*"):
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)
    return copy


def test_a_run_that_reads_its_text_often_is_told_the_decay_and_dropout_for_it(tokenized_run):
    def notes(*overrides: str) -> list[str]:
        recipe = load_recipe([RECIPES / "custom" / "base.yaml"], tokenized_run.argv(*overrides)[2:])
        return [note for note in read_inputs(recipe, 1).notes if "#little-text" in note]

    often = ("--data.max_repetitions=100", "--training.max_tokens=2e6")
    decay, dropout = notes(*often)
    for note, key, value in ((decay, "weight_decay=0.1", "0.5"), (dropout, "dropout=None", "0.1")):
        assert note.startswith(f"training.{key}, and a source is read "), note
        assert f"times: for so little text the rule gives {value} (" in note
    assert not notes() and not notes(*often, "--training.weight_decay=0.5", "--training.dropout=0.2")


def test_a_resumed_run_drops_packs_and_averages_as_the_uninterrupted_one(scarce_run, tmp_path):
    resumed = resumed_from(8, scarce_run, tmp_path / "run")
    pretrain.main(resumed.argv(*SCARCE))
    assert resumed.losses() == scarce_run.losses()
    for stem in ("model", "average", "optimizer"):
        for name, tensor in tensors(scarce_run, stem).items():
            assert torch.equal(tensor, tensors(resumed, stem)[name]), (stem, name)


def test_a_compiled_run_drops_the_same_where_it_recomputes_and_where_it_resumes(tokenized_run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    chosen = [*SCARCE, "--training.torch_compile=true", "--training.max_tokens=1024"]
    chosen += ["--training.save_steps=2", "--training.keep_every_steps=2"]

    def train(run, recomputed: str) -> None:
        torch.compiler.reset()
        pretrain.main(run.argv(*chosen, f"--training.gradient_checkpointing={recomputed}"))
        assert json.loads((run.output_dir / "training.json").read_text())["compiled"]

    plain, recomputed = (tokenized_run.copy(tmp_path / name) for name in ("plain", "recomputed"))
    train(plain, "false")
    train(recomputed, "true")
    assert recomputed.losses() == pytest.approx(plain.losses(), abs=1e-5)
    train(resumed := resumed_from(2, recomputed, tmp_path / "resumed"), "true")
    assert resumed.losses() == recomputed.losses()
    weights = tensors(recomputed, "model", 4)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tensors(resumed, "model", 4).items())


def test_both_the_averaged_and_the_last_weights_are_exported_and_scored(scarce_run):
    folder, scores = scarce_run.output_dir, scarce_run.metrics()[-1]
    ids = torch.arange(32)[None]
    for name, stem in (("model", "average"), ("model_final", "model")):
        config = json.loads((folder / name / "config.json").read_text())
        assert {key: value for key, value in config.items() if "drop" in key} == {"attention_dropout": 0.1}
        model = AutoModelForCausalLM.from_pretrained(folder / name, attention_dropout=0.0)
        assert load_file(folder / name / "model.safetensors").keys() <= model.state_dict().keys()
        assert torch.equal(model.train()(ids).logits, model(ids).logits), "training.dropout is of the run alone"
        stored = tensors(scarce_run, stem)
        for key, tensor in model.state_dict().items():
            assert key == "lm_head.weight" or torch.equal(tensor, stored[key]), (name, key)
        assert AutoTokenizer.from_pretrained(folder / name).eos_token == "<|endoftext|>"
    assert scores["average/bits_per_byte/law"] != scores["eval/bits_per_byte/law"]
    assert scores["average/bits_per_byte"] == pytest.approx(scores["eval/bits_per_byte"], rel=0.2)


def test_the_mean_over_the_last_steps_is_that_of_their_weights(tiny_run):
    run = tiny_run
    pretrain.main(
        run.argv("--training.average.last_fraction=0.1", "--training.save_steps=1", "--training.keep_every_steps=1")
    )
    for name, average in tensors(run, "average").items():
        steps = [tensors(run, "model", step)[name] for step in (19, 20)]
        assert torch.allclose(average, sum(steps) / 2, atol=1e-7), name


def test_a_mean_over_the_last_steps_begins_anew_where_the_length_of_the_run_changes():
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, Average(last_fraction=0.2))

    def train(steps: range, state: dict) -> float:
        for step in steps:
            with torch.no_grad():
                model.weight.fill_(step)
            average.add(step, state)
        return float(average.values["weight"])

    fresh = {"max_steps": 100, "averaged": None}
    assert train(range(1, 101), state := {**fresh}) == pytest.approx(90.5), "the mean of 81 to 100"
    assert train(range(101, 111), state | {"max_steps": 110}) == pytest.approx(105.5), "extended: of 101 to 110"
    assert train(range(81, 91), state := {**fresh}) == pytest.approx(85.5)
    del state["averaged"]  # as in a checkpoint of an earlier version
    assert train(range(91, 101), state) == pytest.approx(90.5)
    shortened = {"max_steps": 15, "averaged": None}  # while it is in its last fifth, as by max_seconds
    assert train(range(14, 16), shortened) == pytest.approx(14.5)


def test_an_exponential_average_is_a_plain_mean_until_the_latest_weights_count_as_ema_says():
    model = torch.nn.Linear(1, 1, bias=False)
    average, state = WeightAverage(model, Average(ema=0.6)), {"max_steps": 100, "averaged": None}
    expected = [1, 1.5, 0.6 * 1.5 + 0.4 * 4, 0.6 * 2.5 + 0.4 * 8]
    for step, (weight, value) in enumerate(zip((1, 2, 4, 8), expected, strict=True), 1):
        with torch.no_grad():
            model.weight.fill_(weight)
        average.add(step, state)
        assert float(average.values["weight"]) == pytest.approx(value), step


def test_the_ledger_of_repacked_text_answers_from_step_to_document_and_back(scarce_run):
    ledger = open_ledger(scarce_run.output_dir)
    by_step = {step: list(ledger.documents_of(step)) for step in range(1, 21)}
    document = by_step[7][0]["document"]
    expected = [
        {key: piece[key] for key in ("sequence", "first_token", "end_token")} | {"step": step}
        for step, pieces in by_step.items()
        for piece in pieces
        if piece["document"] == document
    ]
    found = [{key: visit[key] for key in expected[0]} for visit in ledger.steps_of(document)]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_the_recipe_for_little_text_reads_all_of_it_as_often_as_it_says(tokenized_run):
    given = [one for one in tokenized_run.argv()[2:] if "max_tokens" not in one and "max_repetitions" not in one]
    given = [*given, "--data.fit_to_corpus=true", "--training.learning_rate=4e-3"]
    recipe = load_recipe([RECIPES / "custom" / "scarce.yaml"], given)
    shards = TokenShards(tokenized_run.output_dir / "tokens", ["law", "web"], 32, recipe.data.repack)
    training, shares, _ = decide_length(recipe, shards)
    sequences = training.tokens_per_step // 32
    mixture = make_mixture(shards, schedule_phases(recipe.data, shares, training.max_steps), sequences, seed=0)
    times = mixture.repetitions(training.max_steps * sequences)
    assert 0.95 * recipe.data.max_repetitions < max(times.values()) <= recipe.data.max_repetitions
    assert recipe.training.distillation.members == 4 and recipe.data.repack and recipe.training.dropout


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_a_step_minimises_nats_of_the_labels_and_of_the_mean_of_the_models_learned_from(weight, scarce_run):
    folders = [str(scarce_run.output_dir / name) for name in ("model", "model_final")]
    distillation = (
        f"--training.distillation.weight={weight}",
        f"--training.distillation.teachers={json.dumps(folders)}",
    )
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], scarce_run.argv(*distillation)[2:])
    folder, accelerator = scarce_run.output_dir / "tokenizer", Accelerator()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    student = build_summed_loss(recipe, recipe.training, tokenizer, folder, accelerator, False).train()
    tokens = torch.randint(1, 384, (2, 33), generator=torch.Generator().manual_seed(0))
    batch = tokens[:, :-1], torch.arange(32).repeat(2, 1), tokens[:, 1:]
    minimised, nats = student(*batch)
    minimised.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()

    models = [AutoModelForCausalLM.from_pretrained(place).eval() for place in folders]
    with torch.no_grad():
        mean = sum(model(batch[0]).logits.softmax(-1) for model in models) / 2
    logs = student.language_model(batch[0]).logits.log_softmax(-1)
    of_labels = -logs.gather(-1, batch[2][..., None]).sum()
    expected = (1 - weight) * of_labels - weight * (mean * logs).sum()
    expected.backward()
    assert nats.item() == pytest.approx(of_labels.item(), rel=1e-6)
    assert minimised.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in student.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4), name
    with torch.no_grad():
        assert torch.equal(*student.eval()(*batch)), "it is scored by the labels alone"


LEARN = ["--training.save_steps=8", "--training.keep_every_steps=8", "--training.distillation.weight=0.5"]


def test_a_student_learns_from_two_models_and_resumes_bit_for_bit(scarce_run, tiny_run, tmp_path):
    teachers = json.dumps([str(scarce_run.output_dir / name) for name in ("model", "model_final")])
    learn = [*LEARN, f"--training.distillation.teachers={teachers}"]
    pretrain.main(tiny_run.argv(*learn))
    scores = tiny_run.metrics()[-1]
    single = scarce_run.metrics()[-1]
    both = [single[f"{kind}/bits_per_byte/law"] for kind in ("eval", "average")]
    assert scores["teachers/bits_per_byte/law"] <= sum(both) / 2 + 1e-6, "a mean of probabilities, by Jensen"
    resumed = resumed_from(8, tiny_run, tmp_path / "resumed")
    pretrain.main(resumed.argv(*learn))
    for name, tensor in tensors(tiny_run, "model").items():
        assert torch.equal(tensor, tensors(resumed, "model")[name]), name
    assert not [name for name in tensors(tiny_run, "model") if "teacher" in name]


def test_members_are_trained_once_with_seeds_of_their_own_before_the_model_that_learns_from_them(tiny_run, capsys):
    short = ["--training.max_tokens=1024", "--training.distillation.members=2"]
    with pytest.raises(RecipeError, match="members/0/model: no model there; run_recipe.py trains members"):
        pretrain.main(tiny_run.argv(*short))
    arguments = tiny_run.argv(*short)
    recipe, options = parse_command_line("", arguments)
    run_recipe.train_members(recipe, options, [sys.executable])
    folders = [tiny_run.output_dir / "members" / str(number) for number in range(2)]
    made = [(folder / "model" / "model.safetensors").stat().st_mtime_ns for folder in folders]
    seeds = [load_recipe([folder / "recipe.yaml"]).run.seed for folder in folders]
    losses = [
        json.loads((folder / "metrics.jsonl").read_text().partition("\n")[0])["train/loss"] for folder in folders
    ]
    assert seeds == [recipe.run.seed + 1, recipe.run.seed + 2] and losses[0] != losses[1]
    assert not [folder for folder in folders if (folder / "checkpoints").exists()], "nothing resumes from them"
    assert run_recipe.kept_precision(recipe, overwrite=False) == "no", "that of the members"
    pieces = [list(open_ledger(folder).documents_of(4)) for folder in folders]
    assert pieces[0] and pieces[0] != pieces[1], "each read the text in an order of its own"
    run_recipe.train_members(recipe, options, [sys.executable])
    assert made == [(folder / "model" / "model.safetensors").stat().st_mtime_ns for folder in folders]
    with pytest.raises(
        RecipeError, match="members/0/model is out of date: training.weight_decay was 0.1, is 0.2; run"
    ):
        pretrain.main([*arguments, "--training.weight_decay=0.2"])
    pretrain.main(arguments)
    assert "teachers/bits_per_byte" in tiny_run.metrics()[-1]
    trained, member = (json.loads((at / "training.json").read_text()) for at in (tiny_run.output_dir, folders[0]))
    assert trained["flops"] == pytest.approx(member["flops"] * (1 + 2 / 3)), "two forward passes beside it"
    assert trained["members_flops"] == 2 * member["flops"]
    assert [one["tokens_seen"] for one in trained["members"]] == [1024, 1024]
    assert trained["members"][0]["device_hours"] == pytest.approx(member["seconds"] / 3600)
    line = tiny_run.metrics()[0]
    used, mfu = (line[f"train/{key}_fraction"] for key in ("utilisation_hardware", "mfu"))
    assert used == pytest.approx(mfu * (1 + 2 / 3)), "two forward passes of as many FLOPs"
    shutil.rmtree(tiny_run.output_dir / "members")
    pretrain.main(arguments)
    assert "nothing to do" in capsys.readouterr().out, "it needs them no more"


def test_only_the_model_that_learns_sends_revisions_to_the_repository(tiny_run, monkeypatch):
    commands = []
    monkeypatch.setattr(run_recipe, "run_script", lambda _, command, *rest: commands.append(command))
    hub = ["--hub.repo_id=me/model", "--hub.revision_steps=4", "--training.distillation.members=2"]
    recipe, options = parse_command_line("", tiny_run.argv(*hub))
    run_recipe.train_members(recipe, options, [sys.executable])
    members = [parse_command_line("", command[command.index("--config") :])[0] for command in commands]
    assert recipe.hub.revision_steps == 4 and [member.hub.revision_steps for member in members] == [None, None]


def test_a_checkpoint_that_is_named_to_resume_from_is_given_to_the_run_that_holds_it(tiny_run, monkeypatch):
    commands, run = [], tiny_run.output_dir
    monkeypatch.setattr(run_recipe, "run_script", lambda _, command, *rest: commands.append(command))
    for holder in ("members/1", ".", "../elsewhere"):
        commands.clear()
        checkpoint = str(run / holder / "checkpoints" / "step_00000004")
        named = [f"--run.resume={checkpoint}", "--training.distillation.members=2"]
        recipe, options = parse_command_line("", tiny_run.argv(*named))
        run_recipe.train_members(recipe, options, [sys.executable])
        run_recipe.run_stage(recipe, "pretrain", options, [sys.executable])
        given = [parse_command_line("", command[command.index("--config") :])[0] for command in commands]
        own = 1 if holder == "members/1" else 2
        resumed = ["auto", "auto", "auto"]
        resumed[own] = checkpoint
        assert [one.run.resume for one in given] == resumed, holder


def test_a_member_that_is_started_as_the_page_says_is_the_one_that_is_learned_from(tiny_run):
    recipe, _ = parse_command_line("", tiny_run.argv("--training.distillation.members=2"))
    page = (ROOT / "accelerate_configs" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"(mkdir -p runs/custom-scarce/members/0 && ln .*)\n", page)
    (given,) = re.findall(r"slurm.sh .*\n +(--run.seed=1 --training.distillation=null --hub.*)", page)
    folder, member = recipe.member_folder(0), recipe.member(0)
    own = [f"--run.output_dir={folder}", *given.replace("seed=1", f"seed={recipe.run.seed + 1}").split()]
    started, _ = parse_command_line("", tiny_run.argv("--training.distillation.members=2", *own))
    subprocess.run(["bash", "-c", command.replace("runs/custom-scarce", str(tiny_run.output_dir))], check=True)
    for stage in ("prepare", "tokenizer", "tokenize"):
        assert (folder / STAGES[stage].output).resolve() == (tiny_run.output_dir / STAGES[stage].output).resolve()
    assert STAGES["pretrain"].settings(started) == STAGES["pretrain"].settings(member)


def test_a_disk_without_room_for_all_members_is_refused_before_the_first(tiny_run, monkeypatch):
    commands = []
    monkeypatch.setattr(run_recipe, "run_script", lambda _, command, *rest: commands.append(command))
    # Of 32,928 parameters: a model in fp32 takes 131,712 bytes, a checkpoint three times as much.
    room = 5 * 131_712 + 3 * 3 * 131_712
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=room))
    for members, fits in ((4, False), (3, True)):
        arguments = tiny_run.argv(f"--training.distillation.members={members}", "--training.save_total_limit=2")
        recipe, options = parse_command_line("", arguments)
        if fits:
            run_recipe.train_members(recipe, options, [sys.executable])
            assert len(commands) == 3
        else:
            with pytest.raises(RecipeError, match="4 models to learn from, the one that learns, and 3 checkpoints"):
                run_recipe.train_members(recipe, options, [sys.executable])
            assert not commands


def test_a_model_without_an_average_leaves_no_last_weights_of_an_earlier_one(scarce_run, tmp_path):
    again = scarce_run.copy(tmp_path / "run")
    assert (again.output_dir / "model_final").exists()
    pretrain.main(again.argv("--training.max_tokens=512", "--training.warmup_steps=1", "--overwrite"))
    assert not (again.output_dir / "model_final").exists()


def test_trackers_name_a_member_after_the_run_that_learns_from_it():
    names = [tracker_name(Path(run)) for run in ("runs/law", "runs/law/members/0", "runs/medicine/members/0")]
    assert names == ["law", "law-member-0", "medicine-member-0"]


def test_a_teacher_that_is_missing_or_changed_or_has_another_tokenizer_is_refused(scarce_run, tiny_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(scarce_run.output_dir / "model", other)
    content = json.loads((other / "tokenizer.json").read_text())
    first, second = list(content["model"]["vocab"])[-2:]
    content["model"]["vocab"][first], content["model"]["vocab"][second] = 383, 382
    (other / "tokenizer.json").write_text(json.dumps(content))
    recorded = shutil.copytree(other, tmp_path / "recorded")
    (other / "stage.json").unlink()
    for folder, problem in (
        (tmp_path / "none", "no model there"),
        (recorded, "recorded' is damaged: tokenizer.json: .*Restore it from a copy, or train it again"),
        (other, "tokenizer is not that of this run"),
    ):
        with pytest.raises(RecipeError, match=problem):
            pretrain.main(tiny_run.argv(f'--training.distillation.teachers=["{folder}"]'))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_average_and_learn_as_one(kind, scarce_run, tokenized_run, tmp_path):
    chosen = [
        *("--training.max_tokens=1536", "--training.average.ema=0.5", "--data.repack=true"),
        *("--training.save_steps=3", "--training.keep_every_steps=3"),
        f'--training.distillation.teachers=["{scarce_run.output_dir / "model"}"]',
    ]
    alone, together = (tokenized_run.copy(tmp_path / name) for name in ("alone", "together"))
    pretrain.main(alone.argv(*chosen))
    script = tmp_path / "divided.py"
    script.write_text(DIVIDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}

    def train(run) -> None:
        arguments = [*command, kind, *run.argv(*chosen)]
        result = subprocess.run(arguments, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]

    train(together)
    if kind == "fsdp2":  # its average is in parts
        train(resumed := resumed_from(3, together, tmp_path / "resumed"))
        assert resumed.losses() == together.losses()
        for name in ("average", "model"):
            first, second = (
                load_tensors(run.output_dir / "checkpoints" / "step_00000006", name) for run in (together, resumed)
            )
            assert all(torch.equal(first[key], second[key]) for key in first), name
    for name in ("average", "model"):
        whole = load_tensors(together.output_dir / "checkpoints" / "step_00000006", name)
        for key, tensor in tensors(alone, name, 6).items():
            assert torch.allclose(whole[key], tensor, atol=1e-5), (name, key)
    for name in ("model", "model_final"):
        one, two = (load_file(run.output_dir / name / "model.safetensors") for run in (alone, together))
        assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one), name
    first, second = alone.metrics()[-1], together.metrics()[-1]
    for key in ("eval/bits_per_byte", "average/bits_per_byte", "teachers/bits_per_byte"):
        assert first[key] == pytest.approx(second[key], abs=1e-5), key
