# SPDX-License-Identifier: Apache-2.0
"""Training: the same experiment on one process and two, uninterrupted and killed; the exported model."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from host_waits import Waits
from safetensors.torch import load_file
from tiny_run import RECIPES, ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, pipeline

import pretrain
import tokenize_corpus
import train_tokenizer
from document_ledger import open_ledger
from mixture.batches import document_positions
from mixture.labels import IGNORED_LABEL
from mixture.order import TokenMixture
from mixture.shards import TokenShards
from model import summed_loss
from model.llama import build_model
from model.summed_loss import SummedLoss
from planning.model_shape import count_parameters
from recipe_config import RecipeError, Training
from recipe_loading import load_recipe
from recovery.chronicle import read_chronicle
from recovery.preemption import Preemption
from recovery.stored_tensors import find_damage, newest_checkpoint
from stages import STAGES
from training import accelerators
from training.optimizers import build_optimizers
from training.schedule import learning_rate_at


@pytest.fixture(scope="module")
def trained_run(tokenized_run, tmp_path_factory):
    """Return the uninterrupted run of one process, with which others are compared."""
    run = tokenized_run.copy(tmp_path_factory.mktemp("trained") / "run")
    write_phrases(run.output_dir / "benchmarks")
    pretrain.main(run.argv(*SCORED))
    return run


SCORED = ["--training.eval_tasks=[phrases, elsewhere]", "--training.max_eval_items=7"]


def write_phrases(folder: Path) -> None:
    """Write a benchmark as eval/ exports it: choices, of which one is of the text, and single continuations."""
    folder.mkdir()
    items = [
        {"id": f"{number}", "context": f"{subject} shall", "choices": [" repay river", " indemnify the licensor"]}
        | {"gold": 1}
        for number, subject in enumerate(["The licensee", "Each party", "The court", "No tenant", "The plaintiff"] * 2)
    ]
    items += [{"id": "last", "context": "", "choices": ["The court denies any claim for good cause."], "gold": 0}]
    (folder / "phrases.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def weights(run, checkpoint="step_00000020") -> dict[str, torch.Tensor]:
    return load_file(run.output_dir / "checkpoints" / checkpoint / "model.safetensors")


def launch(run, *overrides, processes=1, script=RECIPES / "pretrain.py") -> subprocess.CompletedProcess:
    config = ROOT / "accelerate_configs" / ("ddp.yaml" if processes > 1 else "cpu.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", str(script)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    return subprocess.run([*command, *run.argv(*overrides)], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "overrides",
    [
        ["--training.optimizer=muon", "--training.goldfish={k: 3, context: 4}"],
        ["--training.document_masking=false"],
    ],
    ids=["muon, goldfish, a mask", "adamw, no mask"],
)
def test_the_host_waits_in_a_step_for_the_verdict_on_the_step_before_alone(overrides, tiny_run, monkeypatch):
    train_step, found = pretrain.Pretraining.train_step, {}

    def watched(self, step):
        self.accelerator.unwrap_model(self.prepared.module).makes_masks = True  # as on a GPU
        with Waits() as waits:
            train_step(self, step)
        found[step] = waits.found

    monkeypatch.setattr(pretrain.Pretraining, "train_step", watched)
    pretrain.main(tiny_run.argv("--training.max_tokens=1792", *overrides))  # 7 steps: the last one waits
    assert [found[step] for step in (4, 5, 6)] == [["tolist in read_verdict"]] * 3


def test_training_lowers_the_loss_from_that_of_a_uniform_model(trained_run):
    losses = trained_run.losses()
    assert abs(losses[1] - math.log(384)) < 0.1
    assert losses[20] < losses[1] - 1


@pytest.mark.parametrize(("optimizer", "tolerance"), [("adamw", 1e-5), ("muon", 1e-3)])  # Muon iterates in bf16
def test_two_processes_give_the_losses_of_one(optimizer, tolerance, trained_run, tokenized_run, tmp_path):
    alone, together = trained_run, tokenized_run.copy(tmp_path / "together")
    chosen = [f"--training.optimizer={optimizer}"]
    if optimizer != "adamw":
        alone = tokenized_run.copy(tmp_path / "alone")
        pretrain.main(alone.argv(*chosen))
    else:
        chosen += SCORED
        write_phrases(together.output_dir / "benchmarks")
    result = launch(together, *chosen, processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((together.output_dir / "training.json").read_text())["num_processes"] == 2
    one, two = alone.losses(), together.losses()
    assert list(one) == list(two) == list(range(1, 21))
    assert one[20] < one[1] - 1, "the comparison is of steps that really move"
    assert max(abs(one[step] - two[step]) for step in one) < tolerance
    evaluations = [[line for line in run.metrics() if "eval/bits_per_byte" in line] for run in (alone, together)]
    for first, second in zip(*evaluations, strict=True):
        assert first["train/bytes_seen"] == second["train/bytes_seen"]
        assert first["eval/bits_per_byte"] == pytest.approx(second["eval/bits_per_byte"], abs=tolerance)
        assert ("eval/phrases/accuracy" in first) == (optimizer == "adamw")
        for key in (key for key in first if key.startswith("eval/phrases/")):
            assert first[key] == pytest.approx(second[key], abs=tolerance), key
    samples = [(run.output_dir / "samples.jsonl").read_text() for run in (alone, together)]
    assert samples[0] == samples[1] or optimizer != "adamw"


def test_tasks_are_scored_and_prompts_continued_at_each_evaluation(trained_run, capsys):
    evaluations = [line for line in trained_run.metrics() if "eval/bits_per_byte" in line]
    assert [line["step"] for line in evaluations] == [10, 20]
    for line in evaluations:
        assert line["eval/phrases/num_items"] == 7 and line["eval/phrases/chance"] == pytest.approx(3 / 7)
        assert not [key for key in line if "elsewhere" in key]
    first, last = (line["eval/phrases/gold_bits_per_byte"] for line in evaluations)
    assert last < first
    lines = [json.loads(line) for line in (trained_run.output_dir / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == [(10, "The court"), (20, "The court")]
    notes = [entry["text"] for entry in read_chronicle(trained_run.output_dir) if entry["event"] == "note"]
    assert len([note for note in notes if "elsewhere" in note and "lacks" in note]) == 1
    # Greedily: what transformers' own generation writes after the exported model's prompt.
    folder = trained_run.output_dir / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer("The court")["input_ids"]]])
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_length=32, pad_token_id=0)
    assert lines[-1]["text"] == tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True) != ""


def test_processes_whose_weights_drift_apart_are_stopped_before_they_are_saved(tiny_run, tmp_path):
    script = tmp_path / "drifting.py"
    script.write_text(
        f"""
import os, sys
sys.path.insert(0, {str(RECIPES)!r})
import torch
import pretrain
from model import summed_loss

class Drifting(summed_loss.SummedLoss):
    def forward(self, *args, **batch):
        if os.environ["RANK"] == "1":
            with torch.no_grad():
                self.language_model.model.norm.weight[0] += 1e-7
        return super().forward(*args, **batch)

summed_loss.SummedLoss = Drifting
pretrain.main()
"""
    )
    result = launch(tiny_run, processes=2, script=script)
    assert result.returncode != 0
    assert "processes [0] and [1] hold different weights" in result.stderr
    assert not list(tiny_run.output_dir.glob("checkpoints/step_*"))


def test_a_killed_run_resumes_and_equals_the_uninterrupted_one_loss_for_loss(trained_run, tiny_run):
    command = [sys.executable, str(RECIPES / "pretrain.py"), *tiny_run.argv()]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tiny_run.output_dir.glob("checkpoints/step_00000008")):
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tiny_run.output_dir / "model").exists()
    pretrain.main(tiny_run.argv())
    assert tiny_run.losses() == trained_run.losses()
    samples = [(run.output_dir / "samples.jsonl").read_text() for run in (tiny_run, trained_run)]
    assert samples[0] == samples[1]
    assert (
        json.loads((tiny_run.output_dir / "training.json").read_text())["mixture"]
        == (json.loads((trained_run.output_dir / "training.json").read_text())["mixture"])
    )
    for name, tensor in weights(trained_run).items():
        assert torch.equal(tensor, weights(tiny_run)[name]), name


def test_a_run_that_left_between_two_lines_of_its_log_counts_all_the_text_it_read(tiny_run, trained_run, monkeypatch):
    seldom, asked = "--training.logging_steps=7", []
    with monkeypatch.context() as patched:
        patched.setattr(Preemption, "requested", lambda self: asked.append(1) or len(asked) > 5)
        with pytest.raises(SystemExit):
            pretrain.main(tiny_run.argv(seldom))
    assert [path.name for path in (tiny_run.output_dir / "checkpoints").iterdir()][-1:] == ["step_00000005"]
    pretrain.main(tiny_run.argv(seldom))
    mixtures = [
        json.loads((run.output_dir / "training.json").read_text())["mixture"] for run in (tiny_run, trained_run)
    ]
    assert mixtures[0] == mixtures[1]


def test_training_resumes_from_the_checkpoint_before_a_damaged_one_and_says_so(trained_run, tmp_path, capsys):
    run = trained_run.copy(tmp_path / "run")
    shutil.rmtree(run.output_dir / "model")
    newest = run.output_dir / "checkpoints" / "step_00000020" / "optimizer.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    pretrain.main(run.argv())
    printed = capsys.readouterr().out
    assert "skipped a damaged checkpoint" in printed and "step_00000020: optimizer.safetensors: its sha256" in printed
    assert run.losses() == trained_run.losses()
    for name, tensor in weights(trained_run).items():
        assert torch.equal(tensor, weights(run)[name]), name


def test_a_run_whose_checkpoints_are_all_damaged_stops_instead_of_starting_again(trained_run, tmp_path):
    run = trained_run.copy(tmp_path / "run")
    shutil.rmtree(run.output_dir / "model")
    for checkpoint in (run.output_dir / "checkpoints").iterdir():
        (checkpoint / "state.json").write_text("{}")
    with pytest.raises(RecipeError, match="no checkpoint can be used.*state.json"):
        pretrain.main(run.argv())


def test_a_checkpoint_of_another_experiment_is_refused_with_the_difference(trained_run, tmp_path):
    run = trained_run.copy(tmp_path / "run")
    shutil.rmtree(run.output_dir / "model")
    with pytest.raises(RecipeError, match=r"training.learning_rate was 0.01, is 0.02"):
        pretrain.main(run.argv("--training.learning_rate=0.02"))


def test_a_finished_model_of_another_recipe_is_refused_and_rebuilt_with_overwrite(trained_run, tmp_path, capsys):
    run = trained_run.copy(tmp_path / "run")
    pretrain.main(run.argv())
    assert "nothing to do" in capsys.readouterr().out
    shorter = run.argv("--training.max_tokens=1280")
    with pytest.raises(RecipeError, match="training.max_tokens was 5120, is 1280"):
        pretrain.main(shorter)
    pretrain.main([*shorter, "--overwrite"])
    assert max(run.losses()) == 5


def test_resume_never_refuses_to_resume(trained_run, tmp_path):
    run = trained_run.copy(tmp_path / "run")
    shutil.rmtree(run.output_dir / "model")
    with pytest.raises(RecipeError, match="run.resume=never, but there is"):
        pretrain.main(run.argv("--run.resume=never"))


def test_only_the_newest_checkpoints_are_kept_and_they_are_whole(trained_run):
    kept = sorted(path.name for path in (trained_run.output_dir / "checkpoints").iterdir())
    assert kept == ["step_00000016", "step_00000020"]
    assert newest_checkpoint(trained_run.output_dir / "checkpoints")[0].name == "step_00000020"
    assert find_damage(trained_run.output_dir / "checkpoints" / "step_00000016") is None


def test_the_model_folder_loads_with_the_same_logits_and_no_tensor_missing_or_unexpected(trained_run):
    folder = trained_run.output_dir / "model"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], trained_run.argv()[2:])
    in_memory = build_model(recipe, 384)
    stored = weights(trained_run)
    in_memory.load_state_dict(stored | {"lm_head.weight": stored["model.embed_tokens.weight"]})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = torch.tensor([tokenizer("The court shall indemnify the licensee.").input_ids])
    assert torch.equal(model.eval()(tokens).logits, in_memory.eval()(tokens).logits)
    text = pipeline("text-generation", model=str(folder))("The court", max_new_tokens=5)[0]["generated_text"]
    assert text.startswith("The court") and len(text) > len("The court")


def test_a_model_with_normalised_queries_and_keys_loads_as_qwen_3_with_the_logits_it_was_trained_to(tiny_run):
    overrides = ("--model.qk_norm=true", "--model.num_attention_heads=4", "--model.num_key_value_heads=2")
    pretrain.main(tiny_run.argv(*overrides, "--training.max_tokens=1024"))
    model, info = AutoModelForCausalLM.from_pretrained(tiny_run.output_dir / "model", output_loading_info=True)
    assert type(model).__name__ == "Qwen3ForCausalLM" and not any(info.values()), info
    recipe, stored = recipe_of(tiny_run, *overrides), weights(tiny_run, "step_00000004")
    assert not torch.equal(stored["model.layers.1.self_attn.k_norm.weight"], torch.ones(8)), "it is trained"
    in_memory = build_model(recipe, 384)
    in_memory.load_state_dict({"lm_head.weight": stored["model.embed_tokens.weight"]} | stored)
    tokens = torch.tensor([[5, 17, 3, 99, 7]])
    assert torch.equal(model.eval()(tokens).logits, in_memory.eval()(tokens).logits)
    plain = build_model(recipe_of(tiny_run, *overrides[1:]), 384)
    assert not torch.allclose(model(tokens).logits, plain.eval()(tokens).logits)
    total = json.loads((tiny_run.output_dir / "training.json").read_text())["parameters"]["total"]
    assert count_parameters(recipe.model, 384)["total"] == total
    assert "qk_norm" not in STAGES["pretrain"].settings(recipe_of(tiny_run))["model"], (
        "records of earlier runs lack it"
    )


def test_the_summed_loss_leaves_out_ignored_labels(trained_run):
    model = AutoModelForCausalLM.from_pretrained(trained_run.output_dir / "model").eval()
    tokens = torch.randint(1, 384, (2, 9), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(8).expand(2, 8)
    labels = tokens[:, 1:].clone()
    labels[0] = IGNORED_LABEL
    logits = model(tokens[1:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits[0], tokens[1, 1:], reduction="sum")
    assert torch.allclose(SummedLoss(model, compiled=False)(tokens[:, :-1], positions, labels)[1], expected)


def test_residual_outputs_start_smaller_and_norm_gains_do_not_decay(tiny_run):
    overrides = ["--model.hidden_size=128", "--model.intermediate_size=256"]
    recipe = load_recipe([RECIPES / "custom" / "base.yaml"], [*tiny_run.argv()[2:], *overrides])
    torch.manual_seed(0)
    model = build_model(recipe, 384)
    layer = model.model.layers[0]
    assert layer.self_attn.q_proj.weight.detach().std() == pytest.approx(0.02, rel=0.05)
    for output in (layer.self_attn.o_proj, layer.mlp.down_proj):
        assert output.weight.detach().std() == pytest.approx(0.02 / math.sqrt(2 * 2), rel=0.05)
    unscaled = recipe.model_copy(update={"model": recipe.model.model_copy(update={"scaled_residual_init": False})})
    output = build_model(unscaled, 384).model.layers[0].self_attn.o_proj
    assert output.weight.detach().std() == pytest.approx(0.02, rel=0.05)
    for optimizer in ("adamw", "muon"):
        training = recipe.training.model_copy(update={"optimizer": optimizer})
        groups = [g for o in build_optimizers(SummedLoss(model, False), training) for g in o.param_groups]
        assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
        for group in groups:
            assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] > 0}
        training.decay_gains = True
        groups = [g for o in build_optimizers(SummedLoss(model, False), training) for g in o.param_groups]
        assert {group["weight_decay"] for group in groups} == {training.weight_decay}


@pytest.mark.parametrize("shape", ["warmup_stable_decay", "cosine"])
def test_the_learning_rate_rises_holds_and_falls(shape):
    training = Training(
        max_tokens=100,
        tokens_per_step=1,
        sequence_length=1 + 1,
        learning_rate=1.0,
        warmup_steps=10,
        decay_fraction=0.2,
        min_learning_rate_fraction=0.1,
        lr_scheduler_type=shape,
    )
    rates = [learning_rate_at(step, 100, training) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and max(rates) == 1.0
    assert all(late <= early for early, late in zip(rates[9:], rates[10:], strict=False))
    if shape == "warmup_stable_decay":
        assert set(rates[9:80]) == {1.0} and rates[99] == pytest.approx(0.1 + 0.9 / 20)
    else:
        assert rates[54] == pytest.approx(0.1 + 0.9 / 2) and rates[99] == pytest.approx(0.1)


def test_more_repetitions_than_allowed_are_refused_with_the_longest_run(tiny_run):
    with pytest.raises(RecipeError, match=r"data.max_repetitions=0.1; at most [\d,]+ tokens"):
        pretrain.main(tiny_run.argv("--data.max_repetitions=0.1"))


def test_processes_that_accelerate_does_not_count_are_refused(tiny_run, monkeypatch):
    whole = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in whole.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        accelerators, "Accelerator", lambda **_: type("Alone", (), {"num_processes": 1, "device": torch.device("cpu")})
    )
    with pytest.raises(RecipeError, match="2 processes were launched but Accelerate counts 1"):
        pretrain.main(tiny_run.argv())


def test_without_a_compiler_training_says_which_package_to_install_and_runs_uncompiled(tiny_run):
    command = [sys.executable, str(RECIPES / "pretrain.py"), *tiny_run.argv("--training.torch_compile=true")]
    environment = os.environ | {"PATH": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "runs uncompiled" in result.stdout and "apt-get install g++" in result.stdout
    assert json.loads((tiny_run.output_dir / "training.json").read_text())["compiled"] is False


def test_a_time_limit_shortens_training_once_and_the_schedule_with_it(tiny_run, capsys):
    pretrain.main(tiny_run.argv("--training.max_seconds=1e-6"))
    training = json.loads((tiny_run.output_dir / "training.json").read_text())
    assert training["max_steps"] == 15  # 12 to measure the speed, and a fifth of the run for the decay
    assert "training.max_seconds=1e-06 gives 15 steps, not the 20" in capsys.readouterr().out
    rates = [line["train/learning_rate"] for line in tiny_run.metrics() if "train/loss" in line]
    assert rates[-1] < rates[5]


def test_gradients_that_are_not_finite_stop_training_before_the_weights_change(tiny_run, monkeypatch):
    class Poisoned(SummedLoss):
        def forward(self, *args, **batch):
            return super().forward(*args, **batch) * float("nan")

    monkeypatch.setattr(summed_loss, "SummedLoss", Poisoned)
    with pytest.raises(FloatingPointError, match=r"3 consecutive steps .* documents of the steps: \w{32} \((law|web)"):
        pretrain.main(tiny_run.argv())
    assert not (tiny_run.output_dir / "model").exists()


def test_the_parameter_count_is_the_one_of_the_config(trained_run):
    counted = json.loads((trained_run.output_dir / "training.json").read_text())["parameters"]
    config = LlamaConfig.from_pretrained(trained_run.output_dir / "model")
    width, inner = config.hidden_size, config.intermediate_size
    layers = config.num_hidden_layers * (4 * width * width + 3 * width * inner + 2 * width)
    assert counted == {
        "total": 384 * width + layers + width,
        "embedding": 384 * width,
        "non_embedding": layers + width,
        "trained": 384 * width + layers + width,
        "adapters": 0,
    }


def test_bytes_seen_are_the_bytes_of_the_text_that_was_read(trained_run):
    training = json.loads((trained_run.output_dir / "training.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(trained_run.output_dir / "tokenizer")
    shares = {"law": 0.6, "web": 0.4}
    mixture = TokenMixture(TokenShards(trained_run.output_dir / "tokens", list(shares), 32), {0: shares}, seed=0)
    sequences = [mixture.window(index)[1:] for index in range(20 * 256 // 32)]
    texts = [tokenizer.decode(sequence[sequence != 0]) for sequence in np.array(sequences)]
    seen = sum(part["bytes_seen"] for part in training["mixture"].values())
    assert seen == sum(len(text.encode()) for text in texts)


def test_every_file_of_a_run_is_there(trained_run):
    names = {path.name for path in Path(trained_run.output_dir).iterdir() if not path.name.startswith(".")}
    assert names >= {"model", "checkpoints", "metrics.jsonl", "training.json", "recipe.yaml", "environment.json"}
    assert "samples.jsonl" in names
    hidden = {path.name for path in Path(trained_run.output_dir).iterdir()} - names
    assert hidden <= {".hashes", ".hashes.lock"}


# --- phases, and skipped steps and documents


def record_batches(monkeypatch, seen: list) -> None:
    """Record the inputs of each forward pass of training, without those of validation."""

    class Recording(SummedLoss):
        def forward(self, input_ids, position_ids, labels, by_token=False, **named):
            if self.training:
                seen.append((input_ids.clone(), labels.clone()))
            return super().forward(input_ids, position_ids, labels, by_token, **named)

    monkeypatch.setattr(summed_loss, "SummedLoss", Recording)


def batches_of(monkeypatch, run, *overrides) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Train, and return the inputs and labels of each micro-step; a step of the tiny run has four."""
    seen = []
    with monkeypatch.context() as context:
        record_batches(context, seen)
        pretrain.main(run.argv(*overrides))
    return seen


@pytest.fixture(scope="module")
def skipping(tokenized_run, trained_run, tmp_path_factory):
    """Return overrides that skip steps 5 to 6 and a document of step 1, that document, their run and its batches."""
    document = min(piece["document"] for piece in open_ledger(trained_run.output_dir).documents_of(1))
    overrides = ["--data.skip.steps=[[5, 6], [19, 40]]", f"--data.skip.documents=[{document}]"]
    run = tokenized_run.copy(tmp_path_factory.mktemp("skipping") / "run")
    with pytest.MonkeyPatch.context() as context:
        batches = batches_of(context, run, *overrides, "--training.save_total_limit=9")
    return overrides, document, run, batches


def test_tasks_keep_their_rows_in_a_phase_of_longer_sequences(tiny_run, monkeypatch):
    shapes = set()

    class Recording(SummedLoss):
        def forward(self, input_ids, position_ids, labels, by_token=False, **named):
            shapes.add((by_token, *input_ids.shape))
            return super().forward(input_ids, position_ids, labels, by_token, **named)

    monkeypatch.setattr(summed_loss, "SummedLoss", Recording)
    phase = {"start_fraction": 0.5, "shares": {"web": 1.0}, "sequence_length": 64}
    phases = [f"--data.phases={json.dumps([phase])}", "--training.document_masking=false"]
    train_tokenizer.main(tiny_run.argv(*phases, "--overwrite"))
    tokenize_corpus.main(tiny_run.argv(*phases, "--overwrite"))
    write_phrases(tiny_run.output_dir / "benchmarks")
    pretrain.main(tiny_run.argv(*SCORED, *phases, "--evaluation.prompts=[]"))
    assert shapes == {(False, 2, 32), (False, 1, 64), (True, 2, 32)}
    scored = [line for line in tiny_run.metrics() if "eval/phrases/accuracy" in line]
    assert [line["step"] for line in scored] == [10, 20]
    tokenizer = AutoTokenizer.from_pretrained(tiny_run.output_dir / "model")
    config = LlamaConfig.from_pretrained(tiny_run.output_dir / "model")
    assert tokenizer.model_max_length == config.max_position_embeddings == 64


def test_an_unknown_document_to_skip_is_refused_by_name(tiny_run):
    with pytest.raises(RecipeError, match="data.skip.documents: 0123: not in the training split"):
        pretrain.main(tiny_run.argv("--data.skip.documents=['0123']"))


def test_skipping_leaves_the_data_of_every_other_step_as_it_was(skipping, tiny_run, monkeypatch):
    _, document, run, batches = skipping
    whole = batches_of(monkeypatch, tiny_run)
    kept = [step for step in range(1, 21) if step not in (5, 6, 19, 20)]
    expected = [batch for step in kept for batch in whole[4 * (step - 1) : 4 * step]]
    assert len(batches) == len(expected) == 4 * 16
    ignored = 0
    for (inputs, labels), (whole_inputs, whole_labels) in zip(batches, expected, strict=True):
        assert torch.equal(inputs, whole_inputs)
        scored = labels != IGNORED_LABEL
        assert torch.equal(labels[scored], whole_labels[scored])
        ignored += int((~scored).sum())
    pieces = [p for step in kept for p in open_ledger(run.output_dir).documents_of(step) if p["document"] == document]
    assert ignored == sum(piece["end_token"] - piece["first_token"] for piece in pieces) > 0
    assert all(piece["skipped"] for piece in pieces)

    lines = {line["step"]: line for line in run.metrics() if "train/loss" in line}
    assert set(lines) == set(kept) and any(
        line["step"] == 20 and "eval/bits_per_byte" in line for line in run.metrics()
    )
    assert lines[7]["train/learning_rate"] == learning_rate_at(7, 20, recipe_of(run).training)
    training = json.loads((run.output_dir / "training.json").read_text())
    assert training["tokens_seen"] == 16 * 256 - ignored == lines[18]["train/tokens_seen"]
    assert training["skips"] == [{"after_step": 0, "steps": [[5, 6], [19, 40]], "documents": [document]}]
    tokenizer = AutoTokenizer.from_pretrained(run.output_dir / "tokenizer")
    text = "".join(tokenizer.decode(row[row > 0]) for _, labels in batches for row in labels)
    assert sum(part["bytes_seen"] for part in training["mixture"].values()) == len(text.encode())


def recipe_of(run, *overrides):
    return load_recipe([RECIPES / "custom" / "base.yaml"], run.argv(*overrides)[2:])


def test_the_loss_is_the_mean_over_the_remaining_labels(skipping):
    overrides, _, run, batches = skipping
    torch.manual_seed(0)
    model = SummedLoss(build_model(recipe_of(run, *overrides), 384), compiled=False)
    step = batches[:4]
    assert any((labels == IGNORED_LABEL).any() for _, labels in step)
    nats = sum(model(i, torch.from_numpy(document_positions(i.numpy(), 0)), labels)[1] for i, labels in step)
    targets = sum(int((labels != IGNORED_LABEL).sum()) for _, labels in step)
    sum(model(i, torch.from_numpy(document_positions(i.numpy(), 0)), labels)[0] for i, labels in step).backward()
    torch._foreach_div_([parameter.grad for parameter in model.parameters()], targets)
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    line = run.metrics()[0]
    assert line["train/loss"] == pytest.approx(nats.item() / targets, rel=1e-5)
    assert line["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_a_run_that_skips_resumes_from_a_checkpoint_as_if_it_had_not_stopped(skipping, tmp_path):
    overrides, _, uninterrupted, _ = skipping
    run = uninterrupted.copy(tmp_path / "run")
    shutil.rmtree(run.output_dir / "model")
    for step in (8, 12, 16, 20):
        shutil.rmtree(run.output_dir / "checkpoints" / f"step_{step:08d}")
    pretrain.main(run.argv(*overrides))
    assert run.losses() == uninterrupted.losses()
    records = [json.loads((r.output_dir / "training.json").read_text()) for r in (run, uninterrupted)]
    assert records[0]["mixture"] == records[1]["mixture"] and records[0]["skips"] == records[1]["skips"]
    for name, tensor in weights(uninterrupted).items():
        assert torch.equal(tensor, weights(run)[name]), name


def test_data_skip_may_change_on_resume_and_the_record_says_when(skipping, trained_run, tmp_path, capsys):
    overrides, document, _, _ = skipping
    run = trained_run.copy(tmp_path / "run")
    with pytest.raises(RecipeError, match="model is out of date: skip"):
        pretrain.main(run.argv("--data.skip.steps=[[15, 18]]"))
    earlier = run.output_dir / "checkpoints" / "step_00000016"
    skip = ["--data.skip.steps=[[15, 18]]", f"--data.skip.documents=[{document}]"]
    pretrain.main(run.argv(*skip, f"--run.resume={earlier}", "--overwrite"))
    printed = capsys.readouterr().out
    assert "data.skip.steps was [], is [[15, 18]] after step 16" in printed
    assert "steps 15 to 16 are already trained on; to leave them out start again with --overwrite" in printed
    assert "data.skip.documents has 1 more and 0 fewer after step 16" in printed
    assert "data.skip.documents: steps up to 16 may have trained on those added now" in printed
    training = json.loads((run.output_dir / "training.json").read_text())
    assert [entry["after_step"] for entry in training["skips"]] == [0, 16]
    changes = [entry["text"] for entry in read_chronicle(run.output_dir) if entry["event"] == "config_change"]
    assert any("already trained on" in text for text in changes)
    before, after = trained_run.losses(), run.losses()
    assert {step for step in before if step not in after} == {17, 18}
    assert [after[step] for step in range(1, 17)] == [before[step] for step in range(1, 17)]
    ledger = open_ledger(run.output_dir)
    skipped = {step for step in range(1, 21) if all(piece["skipped"] for piece in ledger.documents_of(step))}
    assert skipped == {17, 18}, "steps 15 and 16 were trained on"
    assert {visit["skipped"] for visit in ledger.steps_of(document) if visit["step"] <= 16} == {False}
    assert all(visit["skipped"] for visit in ledger.steps_of(document) if visit["step"] > 16)
    assert (run.output_dir / "checkpoints" / "step_00000020.replaced").is_dir(), (
        "the later checkpoint, which was not resumed from"
    )


def test_two_processes_skip_a_document_with_the_losses_of_one(skipping, tokenized_run, tmp_path):
    overrides, _, alone, _ = skipping
    together = tokenized_run.copy(tmp_path / "together")
    result = launch(together, *overrides, processes=2)
    assert result.returncode == 0, result.stderr[-3000:]
    one, two = alone.losses(), together.losses()
    assert list(one) == list(two) and max(abs(one[step] - two[step]) for step in one) < 1e-5
    records = [json.loads((run.output_dir / "training.json").read_text()) for run in (alone, together)]
    assert records[0]["mixture"] == records[1]["mixture"]


def test_a_phase_of_a_run_limited_in_time_begins_where_the_record_and_the_ledger_say(tiny_run, monkeypatch, capsys):
    phases = json.dumps([{"start_fraction": 0.5, "shares": {"web": 1.0}}])
    limited = [f"--data.phases={phases}", "--training.max_seconds=1e-6"]
    train_tokenizer.main(tiny_run.argv(*limited, "--overwrite"))
    tokenize_corpus.main(tiny_run.argv(*limited, "--overwrite"))
    batches = batches_of(monkeypatch, tiny_run, *limited)
    training = json.loads((tiny_run.output_dir / "training.json").read_text())
    assert training["max_steps"] == 15
    assert "from step 13 on, 100.00 % web (of the bytes)" in capsys.readouterr().out
    assert [phase["after_step"] for phase in training["phases"]] == [0, 12]  # half of 15, but 12 were done
    assert training["mixture"]["web"]["asked_fraction"] == pytest.approx(0.4 * 12 / 15 + 3 / 15, abs=0.02)
    ledger = open_ledger(tiny_run.output_dir)
    for step in range(1, 16):
        rows = [ledger.mixture.window(8 * (step - 1) + row) for row in range(8)]
        read = torch.cat([inputs for inputs, _ in batches[4 * (step - 1) : 4 * step]])
        assert np.array_equal(np.array(rows)[:, :-1], read.numpy()), step
        sources = {piece["source"] for piece in ledger.documents_of(step)}
        assert sources == {"web"} if step > 12 else "law" in sources
