# SPDX-License-Identifier: Apache-2.0
"""Steps that would harm the model are skipped and counted, and the recipe's policy follows, the same each time."""

import json
import math
import platform
import re

import pytest
import torch

import pretrain
from document_ledger import open_ledger
from model import summed_loss
from model.probe import find_warnings
from recipe_config import RecipeError, Stability
from recovery.chronicle import read_chronicle
from recovery.stored_tensors import list_checkpoints, load_state
from training.prepared import PreparedModel
from training.stability import StabilityMonitor, Verdict


def monitor(**settings) -> StabilityMonitor:
    return StabilityMonitor(Stability(**settings), torch.device("cpu"))


def judge(watched: StabilityMonitor, losses, norms=None, first: int = 1) -> list[bool]:
    norms = norms or [1.0 + 0.01 * (step % 3) for step in range(len(losses))]
    pairs = enumerate(zip(losses, norms, strict=True), start=first)
    return [bool(watched.judge(step, torch.tensor(loss), torch.tensor(norm))) for step, (loss, norm) in pairs]


CALM = [2.0 + 0.01 * (step % 5) for step in range(16)]


def test_a_loss_or_gradient_norm_of_more_than_six_sigma_is_a_spike_once_half_the_window_is_there():
    assert judge(monitor(window_steps=16), [2.0, 50.0, 2.0]) == [True] * 3, "too few to say"
    watched = monitor(window_steps=16)
    assert all(judge(watched, CALM))
    mean, deviation = torch.tensor(CALM).mean(), torch.tensor(CALM).std()
    assert judge(watched, [float(mean + 5 * deviation)]) == [True]
    assert judge(watched, [9.0], [1.0]) == [False], "the loss"
    watched = monitor(window_steps=16)
    assert all(judge(watched, CALM)) and judge(watched, [2.0], [9.0]) == [False], "the gradient"
    assert judge(watched, [0.1], [0.1]) == [True], "a value that falls is no spike"
    unwatched = monitor(window_steps=16, max_sigmas=None)
    assert all(judge(unwatched, CALM)) and judge(unwatched, [9.0]) == [True]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_skipped_from_the_first_step_on_and_leaves_the_statistics_alone(value):
    watched = monitor(window_steps=8)
    assert judge(watched, [value, 2.0], [1.0, value]) == [False, False]
    assert watched.state()["window"] == []


def test_one_spike_does_not_hide_the_next():
    watched = monitor(window_steps=16)
    assert judge(watched, [*CALM, 90.0, 2.0, 90.0, 60.0, 2.0]) == [True] * 16 + [False, True, False, False, True]


def test_a_level_that_stays_becomes_the_new_normal():
    watched = monitor(window_steps=16)
    judge(watched, CALM)
    taken = judge(watched, [4.0] * 16)
    assert taken[0] is False and taken[-1] is True


def test_a_verdict_is_read_a_step_later_and_survives_a_checkpoint():
    watched = monitor(window_steps=16)
    judge(watched, [*CALM, 9.0], first=1)
    assert [v.kind for v in watched.read_verdicts()] == ["taken"] * 16
    stored = json.loads(json.dumps(watched.state()))
    resumed = StabilityMonitor(Stability(window_steps=16), torch.device("cpu"), stored)
    assert torch.equal(resumed.window, watched.window)
    for one in (watched, resumed):
        judge(one, [2.0], first=18)
        assert [(v.step, v.kind) for v in one.read_verdicts()] == [(17, "spike")]
        assert [(v.step, v.kind) for v in one.read_verdicts(last=True)] == [(18, "taken")]


def test_a_state_is_saved_only_when_its_verdicts_have_arrived_from_the_device():
    class Arrival:
        def synchronize(self):
            values.copy_(torch.tensor([1.0, 1.0, 2.0, 0.5]))

    watched, values = monitor(), torch.zeros(4, dtype=torch.float64)
    watched.unread.append((3, values, Arrival()))
    assert watched.state()["unread"] == [[3, [1.0, 1.0, 2.0, 0.5]]]


def decide(watched: StabilityMonitor, *verdicts: tuple[int, str], rollbacks: int = 0):
    return [watched.decide(Verdict(step, kind, 1.0, 1.0), rollbacks) for step, kind in verdicts]


def test_consecutive_steps_that_are_not_finite_stop_the_run():
    bad, good = "not_finite", "taken"
    assert decide(monitor(max_nonfinite_steps=3), (1, bad), (2, bad), (3, good), (4, bad), (5, bad)) == [None] * 5
    *_, decision = decide(monitor(max_nonfinite_steps=3), (4, bad), (5, bad), (6, bad))
    assert decision.action == "abort" and decision.steps == (4, 5, 6)


def test_several_skipped_steps_in_the_window_roll_the_run_back_and_too_many_rollbacks_stop_it():
    settings = {"window_steps": 20, "rollback": {"after_skips": 2, "skip_before": 3, "skip_after": 1}}
    spikes = (40, "spike"), (70, "spike"), (75, "spike")
    first, second, decision = decide(monitor(**settings), *spikes)
    assert first is second is None, "40 and 70 are further apart than the window"
    assert (decision.action, decision.first, decision.last) == ("rollback", 67, 76)
    assert decide(monitor(**settings), *spikes, rollbacks=3)[-1].action == "abort"
    assert decide(monitor(window_steps=20), *spikes) == [None] * 3, "without a policy they are only skipped"


# --- in training, with the loss of chosen steps poisoned


def poison(monkeypatch, harm: dict[int, float], times: int = 99) -> None:
    """Have the loss of steps, which have four micro-steps each in the tiny run, multiplied by a factor.

    A step is known by its data, as it is when it is computed again, after a rollback or a resume. Only the first
    `times` that it is computed are poisoned.
    """
    visits: dict[int, int] = {}
    real = pretrain.seed_step

    def note_step(seed, step, process):
        visits[step] = visits.get(step, 0) + 1
        Poisoned.factor = harm[step] if step in harm and visits[step] <= times else 1.0
        real(seed, step, process)

    class Poisoned(summed_loss.SummedLoss):
        factor = 1.0

        def forward(self, *batch, **named):
            return super().forward(*batch, **named) * (Poisoned.factor if self.training else 1.0)

    monkeypatch.setattr(pretrain, "seed_step", note_step)
    monkeypatch.setattr(summed_loss, "SummedLoss", Poisoned)


def skipped_in(run) -> list[int]:
    return [entry["step"] for entry in read_chronicle(run.output_dir) if entry["event"] == "skip"]


LONG = ["--training.max_tokens=10240", "--training.stability.window_steps=16", "--training.eval_steps=100"]
POLICY = "{after_skips: 2, skip_before: 2, skip_after: 1, learning_rate_factor: 0.5}"


def test_a_step_with_nan_is_skipped_counted_and_named_and_the_logged_loss_stays_finite(tiny_run, monkeypatch):
    poison(monkeypatch, {7: math.nan})
    pretrain.main(tiny_run.argv("--training.logging_steps=4"))
    assert skipped_in(tiny_run) == [7]
    lines = {line["step"]: line for line in tiny_run.metrics() if "train/loss" in line}
    assert all(math.isfinite(line["train/loss"]) for line in lines.values())
    assert lines[4]["train/skipped_steps"] == 0 and lines[12]["train/skipped_steps"] == 1
    assert (tiny_run.output_dir / "model").exists()


def test_a_skipped_step_is_computed_again_and_only_what_is_equal_is_blamed_on_the_data(
    tokenized_run, tmp_path, monkeypatch
):
    """The last step too; the steps between are as if nothing had been computed twice."""
    poison(monkeypatch, {7: math.nan, 20: math.nan})
    runs = [tokenized_run.copy(tmp_path / name) for name in ("twice", "once")]
    pretrain.main(runs[0].argv())
    skips = [entry["text"] for entry in read_chronicle(runs[0].output_dir) if entry["event"] == "skip"]
    assert len(skips) == 2 and all("computed a second time, with the same result: the data" in skip for skip in skips)
    monkeypatch.setattr(pretrain.Pretraining, "newest_skipped", lambda _: None)
    pretrain.main(runs[1].argv())
    assert runs[0].losses() == runs[1].losses()


@pytest.mark.parametrize("step", [7, 20])
def test_a_step_that_a_device_computed_wrongly_stops_the_run_and_names_it(tiny_run, monkeypatch, step):
    """A bit of a gradient flips once, and the loss is as it should be."""
    real, flips = PreparedModel.add_gradients, []

    def flip(prepared, batch, factor, last):
        nats = real(prepared, batch, factor, last)
        if last and flip.step == step and not flips:
            gradient = next(prepared.module.parameters()).grad
            gradient.view(torch.int32).flatten()[3] ^= 1 << 30  # the highest bit of the exponent
            flips.append(step)
        return nats

    def note_step(seed, number, process):
        flip.step = number
        seed_step(seed, number, process)

    seed_step = pretrain.seed_step
    monkeypatch.setattr(PreparedModel, "add_gradients", flip)
    monkeypatch.setattr(pretrain, "seed_step", note_step)
    with pytest.raises(RecipeError, match=rf"step {step} .* computed a second time .* on {platform.node()}"):
        pretrain.main(tiny_run.argv())
    monkeypatch.undo()
    assert json.loads((tiny_run.output_dir / "status.json").read_text())["status"] == "failed"
    pretrain.main(tiny_run.argv())
    assert not skipped_in(tiny_run) and len(tiny_run.losses()) == 20


def test_a_run_stops_after_several_such_steps_and_names_their_documents(tiny_run, monkeypatch):
    poison(monkeypatch, dict.fromkeys((6, 7, 8), math.inf))
    with pytest.raises(FloatingPointError) as stopped:
        pretrain.main(tiny_run.argv())
    documents = {
        piece["document"] for step in (6, 7, 8) for piece in open_ledger(tiny_run.output_dir).documents_of(step)
    }
    assert all(document in str(stopped.value) for document in documents)
    status = json.loads((tiny_run.output_dir / "status.json").read_text())
    assert status["status"] == "failed" and "3 consecutive steps" in status["reason"]
    assert read_chronicle(tiny_run.output_dir)[-1]["event"] == "failure"
    advised = re.search(r"--data.skip.steps=(.*) and (--run.resume=\S*step_00000004), or start", str(stopped.value))
    pretrain.main(tiny_run.argv(f"--data.skip.steps={advised[1]}", advised[2]))
    assert set(tiny_run.losses()) == set(range(1, 21)) - {6, 7, 8}


def test_spikes_roll_a_run_back_past_their_data_at_half_the_rate_and_a_resumed_run_does_the_same(
    tokenized_run, tmp_path, monkeypatch
):
    overrides = [*LONG, f"--training.stability.rollback={POLICY}"]
    runs = [tokenized_run.copy(tmp_path / name) for name in ("straight", "killed")]
    poison(monkeypatch, {25: 50.0, 27: 50.0})
    pretrain.main(runs[0].argv(*overrides))
    (entry,) = [entry for entry in read_chronicle(runs[0].output_dir) if entry["event"] == "rollback"]
    assert entry["skipped_steps"] == [23, 28] and entry["at_step"] == 28 and entry["to_step"] == 20
    assert skipped_in(runs[0]) == [25, 27]
    lines = {line["step"]: line for line in runs[0].metrics() if "train/loss" in line}
    assert set(lines) == set(range(1, 41)) - set(range(23, 29))
    recipe = pretrain.parse_command_line("", runs[0].argv(*overrides))[0]
    assert lines[22]["train/learning_rate"] == pretrain.learning_rate_at(22, 40, recipe.training) / 2
    ledger = open_ledger(runs[0].output_dir)
    skipped = {step for step in range(1, 41) if all(piece["skipped"] for piece in ledger.documents_of(step))}
    assert skipped == set(range(23, 29))
    state = load_state(list_checkpoints(runs[0].output_dir / "checkpoints")[0][1])
    assert state["learning_rate_factor"] == 0.5 and len(state["rollbacks"]) == 1

    real = pretrain.seed_step

    def die(seed, step, process):
        if step == die.at:
            raise KeyboardInterrupt
        real(seed, step, process)

    monkeypatch.setattr(pretrain, "seed_step", die)
    for die.at in (26, 30, 0):  # between the two spikes, after the rollback, and never
        try:
            pretrain.main(runs[1].argv(*overrides))
        except KeyboardInterrupt:
            assert die.at
    assert runs[1].losses() == runs[0].losses()
    assert (runs[1].output_dir / "model").exists()


def test_a_rollback_without_an_earlier_checkpoint_is_an_error(tiny_run, monkeypatch):
    poison(monkeypatch, {12: 50.0, 14: 50.0})
    overrides = [*LONG, f"--training.stability.rollback={POLICY}", "--training.save_steps=50"]
    with pytest.raises(RecipeError, match="no checkpoint is from before step 10"):
        pretrain.main(tiny_run.argv(*overrides))


# --- the probe


def test_each_evaluation_probes_the_model(tiny_run):
    pretrain.main(tiny_run.argv("--training.max_tokens=512", "--training.warmup_steps=0", "--training.eval_steps=1"))
    looks = [line for line in tiny_run.metrics() if "probe/logit_rms" in line]
    assert [line["step"] for line in looks] == [1, 2]
    for line in looks:
        assert line["probe/first_norm_gain_mean"] == pytest.approx(1, abs=0.1)
        # Of a position k the entropy is at most ln(k); the mean over the first 32 is below ln(32).
        assert 0 < line["probe/attention_entropy_min"] <= line["probe/attention_entropy_mean"] < math.log(32)
        assert 0 < line["probe/attention_max"] <= 1 and line["probe/logit_max"] >= line["probe/logit_rms"] > 0
        assert line["probe/dead_unit_fraction"] < 0.1
    assert looks[0]["probe/logit_rms"] != looks[1]["probe/logit_rms"], "the same batch, another model"


def test_a_probe_that_looks_wrong_gives_a_warning():
    calm = dict.fromkeys(
        (f"probe/{n}" for n in ("hidden_rms_first", "hidden_rms_last", "hidden_rms_max", "attention_entropy_min")), 1.0
    ) | {"probe/dead_unit_fraction": 0.0, "probe/logit_max": 9.0, "probe/logit_rms": 1.0}
    calm |= {"probe/first_norm_gain_mean": 1.0, "probe/first_norm_gain_max": 1.0}
    assert find_warnings(calm, calm) == find_warnings(calm, None) == []
    for change, text in (
        ({"probe/hidden_rms_max": 5000.0}, "exploding"),
        ({"probe/dead_unit_fraction": 0.9}, "90% of a layer's feed-forward units are dead"),
        ({"probe/attention_entropy_min": 1e-4}, "collapsed"),
        ({"probe/logit_max": 500.0}, "logits have grown to 500"),
        ({"probe/first_norm_gain_mean": 4.0}, "first_norm_gain_mean went from 1 to 4"),
        ({"probe/logit_rms": math.nan}, "probe/logit_rms not finite"),
    ):
        assert any(text in warning for warning in find_warnings(calm | change, calm)), text
