# SPDX-License-Identifier: Apache-2.0
"""The items that come with the repository: no duplicates, no position or length that gives the answer away."""

import json
from collections import Counter

import pytest

from benchmark_tasks import TASKS_DIR, read_benchmarks


OWN = {name: benchmark for name, benchmark in read_benchmarks().items() if benchmark.dataset_path == "json"}


def read_items(name):
    path = OWN[name].file.parent / OWN[name].data_files["test"]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", OWN)
def test_items_are_distinct_and_well_formed(name):
    items = read_items(name)
    assert len({item["id"] for item in items}) == len(items)
    assert len({(item.get("context", ""), *sorted(item["choices"])) for item in items}) == len(items)
    for item in items:
        assert len(set(item["choices"])) == len(item["choices"]) >= 2
        assert 0 <= item["gold"] < len(item["choices"])
        for text in (item.get("context", "x"), *item["choices"]):
            assert text == text.strip() and "  " not in text and text.isascii()
        assert all(choice.endswith((".", "?")) for choice in item["choices"])


@pytest.mark.parametrize(
    ("name", "least"), [("legal_sense", 100), ("general_agreement", 80), ("dosing_shorthand", 40)]
)
def test_answers_stand_in_every_position_equally_often(name, least):
    items = read_items(name)
    counts = Counter(item["gold"] for item in items)
    assert len(items) >= least
    assert len(counts) == max(len(item["choices"]) for item in items)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("pick", [min, max])
def test_length_alone_does_not_find_the_answer(name, pick):
    items = read_items(name)
    chance = sum(1 / len(item["choices"]) for item in items) / len(items)
    found = 0.0
    for item in items:
        lengths = [len(choice) for choice in item["choices"]]
        best = [index for index, length in enumerate(lengths) if length == pick(lengths)]
        found += (item["gold"] in best) / len(best)
    assert found / len(items) == pytest.approx(chance, abs=0.1)


def test_legal_choices_have_similar_length():
    for item in read_items("legal_sense"):
        lengths = [len(choice) for choice in item["choices"]]
        assert max(lengths) / min(lengths) < 1.36, item["id"]


def test_minimal_pairs_share_all_but_a_few_characters_of_their_words():
    for item in read_items("general_agreement"):
        first, second = (choice.rstrip(".?").split() for choice in item["choices"])
        differing = (Counter(first) - Counter(second)) + (Counter(second) - Counter(first))
        assert sum(differing.values()) <= 4, item["id"]


@pytest.mark.parametrize("name", OWN)
def test_suite_readme_states_items_licence_and_chance(name):
    items = read_items(name)
    readme = (OWN[name].file.parent / "README.md").read_text(encoding="utf-8")
    chance = sum(1 / len(item["choices"]) for item in items) / len(items)
    for stated in (name, f"{len(items)} ", "Apache-2.0", f"Chance level: {chance:g}"):
        assert stated in readme
    for kind, count in Counter(item["kind"] for item in items).items():
        assert kind in readme and str(count) in readme


def test_every_suite_folder_has_a_task_and_a_readme():
    for folder in (path for path in TASKS_DIR.iterdir() if path.is_dir()):
        assert (folder / "README.md").is_file() and list(folder.glob("*.yaml"))
