# SPDX-License-Identifier: Apache-2.0
"""What prepare says about the time it takes: before it starts, from a sample, and while it runs, from what is done."""

import re
import time

import pytest
from invented_texts import TEXTS
from tiny_run import RECIPES, tiny_settings

from corpus import stage_progress
from corpus.estimate import estimate
from corpus.reading_plan import ReadingPlan
from corpus.stage_progress import StageProgress, weigh_steps
from recipe_loading import load_recipe
from sources.inventory import Inventory
from sources.units import Listing, Unit, list_all_sources


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stage_progress, "time", clock)
    return clock


def recipe_of(folder, *overrides: str):
    return load_recipe([RECIPES / "custom" / "base.yaml"], [*tiny_settings(folder, folder / "run"), *overrides])


def test_no_time_is_stated_until_enough_is_done(clock):
    stage = StageProgress({"read": 3.0, "split": 1.0})
    stage.begin("read")
    stage.move_to(0.0)
    clock.now += 60
    assert stage.seconds_left() is None and stage.describe() == "step 1 of 2", "nothing is done"
    clock.now -= 58
    stage.move_to(0.5)
    assert stage.seconds_left() is None, "two seconds say little"


def test_the_time_left_follows_from_the_rate_of_this_run_in_this_and_the_later_steps(clock):
    stage = StageProgress({"read": 3.0, "signatures": 2.0, "split": 1.0})
    stage.begin("read")
    stage.move_to(0.0)
    clock.now += 150
    stage.move_to(0.5)  # 100 seconds for a weight of 1
    assert stage.seconds_left() == pytest.approx(150 + 200 + 100)
    assert stage.describe() == "step 1 of 3, about 8 minutes left in all"
    clock.now += 150
    stage.begin("signatures")
    stage.move_to(0.0)
    assert stage.seconds_left() == pytest.approx(200 + 100)
    clock.now += 400
    stage.move_to(0.5)  # four times as slow as expected: 700 seconds for weights of 4
    assert stage.seconds_left() == pytest.approx(400 + 700 / 4)


def test_what_an_earlier_try_has_done_does_not_count_as_the_speed_of_this_one(clock):
    stage = StageProgress({"read": 3.0, "split": 1.0})
    stage.begin("read")
    stage.move_to(1.0)  # done before: the first thing that is known of it
    stage.begin("split")
    stage.move_to(0.6)
    clock.now += 20
    stage.move_to(0.8)
    assert stage.seconds_left() == pytest.approx(20)


def test_rounds_of_reading_are_parts_of_one_step(clock):
    stage = StageProgress({"read": 1.0, "split": 1.0})
    stage.begin("read", (0.0, 0.25))
    stage.move_to(0.0)
    clock.now += 100
    stage.move_to(1.0)
    assert stage.seconds_left() == pytest.approx(300 + 400)
    stage.begin("read", (0.25, 1.0))
    clock.now += 100
    stage.move_to(1 / 3)
    assert stage.describe() == "step 1 of 2, about 10 minutes left in all"


def test_the_steps_are_those_that_the_recipe_runs(tmp_path):
    steps = list(weigh_steps(recipe_of(tmp_path).data, 1, False))
    assert steps == ["read", "exact duplicates", "keep", "split"]
    given = ["--data.near_duplicates={}", '--data.repeated_passages={"min_documents": 5}', "--data.quality={}"]
    more = recipe_of(tmp_path, *given).data
    weights = weigh_steps(more, 4, True)
    assert list(weights)[1:5] == ["exact duplicates", "signatures", "near-duplicates", "clusters"]
    assert list(weights)[5:] == ["passages", "repeated passages", "cut", "cut_exact duplicates", "keep", "split"]
    assert weights["clusters"] == 4 * weigh_steps(more, 1, True)["clusters"], "one process does it"
    assert weights["read"] > weigh_steps(recipe_of(tmp_path).data, 4, True)["read"]


def test_a_dry_run_measures_the_text_and_the_steps_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr("corpus.estimate.SAMPLE_SECONDS", 1.0)
    (tmp_path / "web").mkdir()
    (tmp_path / "law.jsonl").touch()
    for number, text in enumerate(TEXTS):
        (tmp_path / "web" / f"{number}.txt").write_text(text)
    script = tmp_path / "data.py"
    given = [f"--data.extract_text={script}", "--data.near_duplicates={}", "--data.family_containment=0.5"]

    def megabytes_per_second(body: str) -> float:
        script.write_text(f"import time\n\n\ndef extract_text(example, source):\n    {body}\n")
        data = recipe_of(tmp_path, *given).data
        lines = estimate(ReadingPlan(data.sources, list_all_sources(data.sources)), data, 2, None)
        assert lines[0] == "law: 1 tasks read 0 bytes, about 0.00 GB of text"
        assert re.search(r"with 2 workers \(measured on 0\.[0-9] MB of this text\), and", lines[2])
        return float(re.search(r"([\d.]+) MB/s a worker", lines[1])[1])

    started = time.monotonic()
    slow = megabytes_per_second("time.sleep(0.1); return example['text']")
    fast = megabytes_per_second("return example['text']")
    assert slow < 0.05 and fast > 2 * slow and time.monotonic() - started < 30


def test_text_that_is_not_on_this_machine_is_not_fetched_to_measure_it(tmp_path):
    data = recipe_of(tmp_path).data.model_copy(update={"sources": recipe_of(tmp_path).data.sources[:1]})
    units = [Unit(f"https://example.com/{number}.parquet", size_bytes=10**9) for number in range(100)]
    plan = ReadingPlan(data.sources, {"law": Listing(units, Inventory(data.sources[0]))})
    lines = estimate(plan, data, 10, None)
    assert lines[0] == "law: 373 tasks read 100,000,000,000 bytes, about 250.00 GB of text"
    assert lines[1].startswith(
        "about 1.7 hours with 10 workers (4 MB/s a worker assumed for law), and 4e+02 GB of disk"
    )
