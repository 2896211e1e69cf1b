# SPDX-License-Identifier: Apache-2.0
"""Experiments of arms: the grid, its cost, what identifies a run, and one that is trained and continued."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from tiny_run import RECIPES, write_tiny_texts

import compare_arms
from child_processes import EXIT_STOPPED
from recipe_config import RecipeError
from sweeps.arm_results import draw, draw_lines, draw_worth, text_factor, write_factors, write_means
from sweeps.arms import flops_per_token, load_experiment
from sweeps.runs import read_rows


EXPERIMENTS = sorted((RECIPES / "experiments").glob("*.yaml"))
EXPERIMENTS.remove(RECIPES / "experiments" / "scaling_law.yaml")  # of fit_scaling_law.py, which has its own tests
TINY = """
results: results
x: domain_bytes
flops: [2e8]
domain_bytes: [60_000]
bases:
  general: {flops: 4e8, data: {shares: {law: 0.0, web: 1.0}}}
arms:
  scratch: {}
  continued-extended:
    model: {from_pretrained: "base:general"}
    tokenizer: {extend_by: 4}
recipe:
  run: {output_dir: RUNS}
  data:
    sources:
      - {name: law, path: TEXTS/law.jsonl, domain: legal, share: 0.75}
      - {name: web, path: TEXTS/web, domain: general, share: 0.25}
    near_duplicates: null
    workers: 1
    max_repetitions: 100
    splits: {validation_fraction: 0.1, test_fraction: 0.1}
  tokenizer: {vocab_size: 384}
  model: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2}
  training: {sequence_length: 32, tokens_per_step: 256, learning_rate: 1e-2, torch_compile: false, warmup_steps: 2,
    eval_tasks: [general_agreement]}
"""


@pytest.fixture
def tiny(tmp_path):
    write_tiny_texts(tmp_path / "texts")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("TEXTS", str(tmp_path / "texts")).replace("RUNS", str(tmp_path / "runs")))
    return path


def test_the_shipped_experiments_give_every_arm_the_same_compute():
    for name, arms in (("mixture_share", 5), ("scratch_or_adapt", 5), ("scratch_or_adapt_legal", 5)):
        experiment, bases, runs = load_experiment(RECIPES / "experiments" / f"{name}.yaml")
        seeds = [len(over.get("seeds", experiment.seeds)) for over in experiment.arms.values()]
        assert len(seeds) == arms
        assert len(runs) == sum(seeds) * len(experiment.flops) * max(1, len(experiment.domain_bytes))
        assert len({run.key for run in runs}) == len(runs)
        for run in runs:
            spent = flops_per_token(run.recipe) * run.recipe.training.max_tokens
            assert spent == pytest.approx(run.flops, rel=0.02)
            assert run.base in (None, *bases)
    shares = {
        run.arm: run.recipe.data.sources[0].share
        for run in load_experiment(RECIPES / "experiments" / "mixture_share.yaml")[2]
    }
    assert list(shares.values()) == [0, 0.25, 0.51, 0.75, 1]


def test_the_ablations_change_one_thing_at_a_time_at_two_sizes():
    experiment, _, runs = load_experiment(RECIPES / "experiments" / "ablations.yaml")
    assert len({run.key for run in runs}) == len(runs) and {run.size for run in runs} == {"small", "medium"}
    assert sum(run.flops for run in runs) < 180 * 60 * 50e9, "180 minutes of a core that multiplies at 50 GFLOP/s"
    for size in experiment.sizes:
        settings = {run.arm: flat(run.recipe.model_dump()) for run in runs if run.size == size}
        base = settings.pop("muon-4e-3")
        changed = {arm: {key for key in base if base[key] != values[key]} for arm, values in settings.items()}
        assert changed["cosine"] == {"training.lr_scheduler_type"}
        assert changed["unscaled-init"] == {"model.scaled_residual_init"}
        assert changed["z-loss"] == {"training.z_loss"}
        assert changed["no-document-masking"] == {"training.document_masking"}
        assert changed["decaying-gains"] == {"training.decay_gains"}
        assert {key for keys in changed.values() for key in keys} <= {
            "training.decay_gains",
            *("training.optimizer", "training.learning_rate", "training.lr_scheduler_type", "training.z_loss"),
            *("training.document_masking", "model.scaled_residual_init"),
            *("training.warmup_steps", "training.decay_fraction"),
        }


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_committed_rows_are_recognised_and_give_the_committed_tables(path, tmp_path):
    folder = path.with_suffix("")
    shutil.copytree(folder, tmp_path / path.stem, ignore=shutil.ignore_patterns("means.csv", "factors.csv"))
    shutil.copy(path, tmp_path)
    compare_arms.main(["--config", str(tmp_path / path.name), "--max_runs", "0"])
    written = {file.name: file.read_bytes() for file in (tmp_path / path.stem).glob("*.csv")}
    assert written == {file.name: file.read_bytes() for file in folder.glob("*.csv")}
    rows = read_rows(folder / "runs.csv")
    assert {run.key for run in load_experiment(path)[2]} == rows.keys()
    for table in (read_rows(folder / name) for name in ("test.csv", "leaks.csv")):
        for key, row in table.items():
            assert all(row[column] == rows[key][column] for column in row.keys() & rows[key].keys()), row


def flat(values: dict, prefix: str = "") -> dict:
    pairs = {f"{prefix}{key}": value for key, value in values.items()}
    nested = [flat(value, f"{key}.") for key, value in pairs.items() if isinstance(value, dict)]
    return {key: value for part in (pairs, *nested) for key, value in part.items() if not isinstance(value, dict)} | {
        "run.seed": None
    }


def test_a_row_is_keyed_by_what_the_experiment_states_and_not_by_where_it_runs(tiny):
    keys = [run.key for run in load_experiment(tiny)[2]]
    tiny.write_text(tiny.read_text().replace("warmup_steps: 2", "warmup_steps: 2, optimizer: adamw"))
    stated = [run.key for run in load_experiment(tiny)[2]]
    assert stated[0] != keys[0], "a default may change, what is stated does not"
    scratch = load_experiment(tiny)[2][0]
    tiny.write_text(tiny.read_text().replace("output_dir: ", "output_dir: elsewhere/"))
    assert load_experiment(tiny)[2][0].key == scratch.key


def test_an_arm_is_trained_where_its_at_says_and_learns_from_the_models_of_an_earlier_arm(tiny):
    usual = "  scratch: {at: [{flops: 2e8, domain_bytes: 60e3, seeds: [0, 1]}, {flops: 4e8, seeds: [3]}]}"
    student = (
        "  student: {training: {distillation: {teachers: ['arm:scratch']}}, at: [{domain_bytes: 90e3, flops: 2e8}]}"
    )
    text = tiny.read_text().replace("flops: [2e8]", "flops: [2e8, 4e8]").replace("[60_000]", "[60_000, 90_000]")
    tiny.write_text(text.replace("  scratch: {}", f"{usual}\n{student}"))
    *_, runs = load_experiment(tiny)
    scratch = [run for run in runs if run.arm == "scratch"]
    places = [(run.flops, run.domain_bytes, run.recipe.run.seed) for run in scratch]
    assert places == [(2e8, 60_000, 0), (2e8, 60_000, 1), (4e8, 60_000, 3), (4e8, 90_000, 3)]
    (learning,) = [run for run in runs if run.arm == "student"]
    assert learning.teachers == (scratch[3],)
    assert learning.recipe.training.distillation.teachers == [str(scratch[3].folder(scratch[3].key) / "model")]
    tiny.write_text(tiny.read_text().replace("arm:scratch", "arm:absent"))
    with pytest.raises(RecipeError, match="arms.student: no arm 'absent' on as many domain bytes before this one"):
        load_experiment(tiny)
    tiny.write_text(tiny.read_text().replace("teachers: ['arm:absent']", "members: 2"))
    message = "arms.student: training.distillation.members: only run_recipe.py trains them; .* `teachers: .'arm:NAME'"
    with pytest.raises(RecipeError, match=message):
        load_experiment(tiny)


def test_the_means_of_an_experiment_state_how_far_the_seeds_are_apart(tmp_path):
    shared = {"parameters": "1000", "tokens": "2000", "domain_bytes": "all", "size": "small"}
    rows = [
        shared
        | {"arm": arm, "seed": str(seed), "legal_bits_per_byte": bits, "general_bits_per_byte": "2.0"}
        | {"budget_flops": "1e9", "sense_accuracy": "0.25", "sense_gold_bits_per_byte": "3.0"}
        for arm, seed, bits in (("cosine", 0, "1.50"), ("cosine", 1, "1.60"), ("z-loss", 0, "1.40"))
    ]
    draw(rows, "arm", tmp_path / "curve.png")
    write_means(rows, tmp_path / "means.csv")
    cosine, z_loss = csv.DictReader((tmp_path / "means.csv").read_text().splitlines())
    assert (cosine["arm"], cosine["parameters"], cosine["tokens"], cosine["seeds"]) == ("cosine", "1000", "2000", "2")
    assert (cosine["legal_bits_per_byte"], cosine["legal_bits_per_byte_range"]) == ("1.550", "0.100")
    assert (z_loss["legal_bits_per_byte"], z_loss["legal_bits_per_byte_range"]) == ("1.400", "")
    assert z_loss["sense_accuracy"] == "0.250"
    assert (tmp_path / "curve.png").stat().st_size > 1000
    rows = [row | {"domain_bytes": str(number * 1000)} for number, row in enumerate(rows, 1)]
    draw(rows + [row | {"budget_flops": "4e9"} for row in rows], "domain_bytes", tmp_path / "budgets.png")
    assert (tmp_path / "budgets.png").stat().st_size > (tmp_path / "curve.png").stat().st_size, "a row a budget"


def rows_of(*measured: tuple[str, float, float, float]) -> list[dict]:
    columns = ("arm", "budget_flops", "domain_bytes", "law_bits_per_byte")
    return [dict(zip(columns, (arm, *map(str, values)), strict=True)) for arm, *values in measured]


def test_the_figure_of_worth_has_the_usual_arms_best_as_a_line_and_each_other_arm_at_its_best_budget():
    rows = rows_of(("usual", 1, 1e6, 2.0), ("usual", 2, 1e6, 2.3), ("usual", 2, 2e6, 1.9), ("usual", 4, 2e6, 1.8))
    rows += rows_of(("decay", 2, 1e6, 1.95), ("decay", 4, 1e6, 1.9), ("decay", 4, 1e6, 1.7), ("wide", 4, 2e6, 1.75))
    rows += [row | {"law_of_teachers": "1.65"} for row in rows_of(("student", 4, 1e6, 1.72))]
    (panel,) = draw_worth(rows, "usual").axes
    assert panel.lines[0].get_xydata().tolist() == [[1e6, 2.0], [2e6, 1.8]]
    points = [bar.lines[0].get_xydata().tolist() for bar in panel.containers]
    assert [pytest.approx(point) for (point,) in points] == [
        [1e6, 1.8],
        [1e6, 1.72],
        [1e6, 1.65],
        [2e6, 1.75],
    ]
    names = {text.get_text(): text.xy for text in panel.texts}
    assert list(names) == ["decay", "student", "teachers of student", "wide"] and names["wide"] == (2e6, 1.75)
    (spread,) = [bar.lines[2][0] for bar in panel.containers if bar.has_yerr]
    assert spread.get_segments()[0][:, 1] == pytest.approx([1.7, 1.9])


def test_an_arm_has_one_colour_in_all_panels_and_stands_in_a_legend():
    rows = rows_of(("usual", 1, 1e6, 2.0), ("usual", 2, 1e6, 2.3), ("decay", 2, 1e6, 1.9), ("wide", 4, 1e6, 1.7))
    panels = draw_lines(rows_of(("usual", 1, 1e6, 2.0)) + rows, "domain_bytes").axes
    colors = [{line.get_label(): line.get_color() for line in panel.lines[::2]} for panel in panels]
    assert colors == [{"usual": "C0"}, {"usual": "C0", "decay": "C1"}, {"wide": "C2"}]
    listed = [[text.get_text() for text in panel.get_legend().get_texts()] for panel in panels if panel.get_legend()]
    assert listed == [["usual"], ["usual", "decay"], ["wide"]]
    assert sum(panel.get_legend() is not None for panel in draw_lines(rows[:2], "domain_bytes").axes) == 1


def test_what_text_an_arm_is_worth_is_read_off_the_usual_arms_best_runs(tmp_path):
    measured = [("usual", 1, 1, 2.0), ("usual", 2, 1, 2.3), ("usual", 2, 2, 1.8), ("usual", 4, 4, 1.6)]
    measured += [("decay", 2, 1, 1.8), ("decay", 4, 1, 1.9), ("decay", 4, 1, 1.5), ("student", 4, 1, 1.9)]
    rows = rows_of(*measured)
    for row in rows:
        row["law_of_teachers"] = "1.59" if row["arm"] == "student" else ""
    write_factors(rows, "usual", tmp_path / "factors.csv")
    table = list(csv.DictReader((tmp_path / "factors.csv").open()))
    factors = {(row["arm"], row["budget_flops"], row["domain_bytes"]): row["factor"] for row in table}
    assert factors["usual", "1", "1"] == "1.00" and factors["usual", "2", "1"] == "<1"
    assert factors["decay", "2", "1"] == "2.00"
    assert factors["decay", "4", "1"] == f"{2**1.5:.2f}", "of the mean of its seeds, 1.7"
    assert factors["student", "4", "1"] == f"{2**0.5:.2f}" and factors["teachers of student", "4", "1"] == ">4"
    seeds = [(row["lowest"], row["highest"]) for row in table if row["arm"] == "decay"]
    assert seeds == [("2.00", "2.00"), (f"{2**0.5:.2f}", ">4")]
    assert text_factor({1: 2.0, 2: 2.1, 4: 1.8}, 1, 1.9) == f"{2**1.5:.2f}", "more text never counts as worse"


def test_a_usual_arm_that_is_none_is_refused(tiny):
    tiny.write_text("usual_arm: nobody\n" + tiny.read_text())
    with pytest.raises(RecipeError) as refused:
        load_experiment(tiny)
    assert "usual_arm: no arm 'nobody'; there are scratch, continued-extended" in str(refused.value)
    assert "usual_arm: a curve needs two or more domain_bytes" in str(refused.value)


def test_adapters_buy_more_tokens_and_new_tokens_cost_some():
    _, _, runs = load_experiment(RECIPES / "experiments" / "scratch_or_adapt.yaml")
    tokens = {run.arm: run.recipe.training.max_tokens for run in runs if run.flops == 1e12}
    assert tokens["adapters"] == pytest.approx(1.5 * tokens["continued"], rel=0.02)
    assert tokens["continued-extended"] < tokens["continued"] == tokens["scratch-general-tokenizer"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"base:general"', '"base:specific"', "arms.continued-extended: no base 'specific'; there are general"),
        ("extend_by: 4", "extend_bye: 4", "arms.continued-extended: recipe: tokenizer.extend_bye: unknown key"),
        ("flops: [2e8]", "flops: []", "flops: give either flops or sizes, which have their own"),
        ("flops: [2e8]", "sizes: {small: {}}", "sizes.small.flops: missing; the compute of each run of this size"),
        ("x: domain_bytes\n", "", "x: Field required"),
        ("domain_bytes: [60_000]\n", "", "x: domain_bytes is the axis, but there are none"),
    ],
)
def test_an_experiment_that_cannot_be_run_is_refused_with_the_arm(tiny, before, after, message):
    assert before in tiny.read_text()
    tiny.write_text(tiny.read_text().replace(before, after))
    with pytest.raises(RecipeError) as refused:
        load_experiment(tiny)
    assert message in str(refused.value)


@pytest.mark.long
def test_a_row_a_run_and_a_second_start_trains_nothing(tiny, capsys):
    compare_arms.main(["--config", str(tiny), "--max_runs", "1"])
    compare_arms.main(["--config", str(tiny)])
    with (tiny.parent / "results" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == ["scratch", "continued-extended"]
    assert float(rows[1]["general_bits_per_byte"]) < float(rows[0]["general_bits_per_byte"]), "it had read such text"
    assert 0 <= float(rows[1]["general_agreement_accuracy"]) <= 1
    assert (tiny.parent / "results" / "curve.png").exists()
    written = (tiny.parent / "results" / "runs.csv").read_bytes()
    capsys.readouterr()
    compare_arms.main(["--config", str(tiny)])
    shown = capsys.readouterr().out
    assert "2 runs, 2 with a row; the others and 0 base models take 0 FLOPs" in shown
    assert float(shown.split("without the rows it is ")[1].split()[0]) > 0
    assert (tiny.parent / "results" / "runs.csv").read_bytes() == written
    base = json.loads(next((tiny.parent / "runs" / "runs").glob("*/training.json")).read_text())
    assert base["parameters"]["total"] > 0


def test_an_experiment_that_is_no_text_or_no_file_is_refused_and_not_waited_for(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, reason in (("bytes.yaml", "not UTF-8 text"), ("pipe.yaml", "no file, but a folder, pipe or device")):
        with pytest.raises(RecipeError, match=f"{name}: cannot be read: {reason}"):
            load_experiment(tmp_path / name)


def test_what_an_experiment_started_is_stopped_with_it(tmp_path):
    log = tmp_path / "log.txt"
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    code = f"""import sys; from pathlib import Path; sys.path.insert(0, {str(RECIPES)!r})
from sweeps.runs import run_logged
run_logged([sys.executable, "-c", {child!r}], Path({str(log)!r}), "one arm")"""
    experiment = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (log.exists() and log.read_text().endswith("\n")) and time.monotonic() < until:
        time.sleep(0.05)
    experiment.terminate()
    assert "one arm stopped on SIGTERM" in experiment.communicate(timeout=30)[1]
    assert experiment.returncode == EXIT_STOPPED
    assert not psutil.pid_exists(int(log.read_text()))
