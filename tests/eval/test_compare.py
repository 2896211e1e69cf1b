# SPDX-License-Identifier: Apache-2.0
"""Compare models: differences beyond and within noise, win rates, and evaluations without common items."""

import json
import re

import numpy as np
import pytest

from compare import compare, main, win_rates


def write_evaluation(folder, model, accuracy, bits, *, items=400, seed=0):
    """Write an evaluation of a model with a given accuracy and bits per byte."""
    generator = np.random.default_rng(seed)
    scored = [
        {"id": str(n), "gold": 0, "nats": [1.0, 2.0] if generator.random() < accuracy else [2.0, 1.0]}
        | {"bytes": [4, 4], "tokens": [1, 1], "characters": [4, 4]}
        for n in range(items)
    ]
    documents = [
        {"id": str(n), "nats": bits * np.log(2) * size * generator.uniform(0.9, 1.1), "bytes": size}
        for n, size in enumerate([100, 1000, 400] * 20)
    ]
    (folder / "items").mkdir(parents=True)
    for name, rows in (("legal_sense", scored), ("documents.law", documents)):
        (folder / "items" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"score": "acc", "chance": 0.5, "gold_bits_per_byte": {"value": 1.0}, "groups": []}
    results = {"model": model, "tasks": {"legal_sense": task}, "bits_per_byte": {"sources": {"law": {}}}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_difference_beyond_noise_is_marked_and_one_within_it_is_not(tmp_path, capsys):
    first = write_evaluation(tmp_path / "a", "weak", 0.5, 2.0)
    alike = write_evaluation(tmp_path / "b", "alike", 0.5, 2.0)
    better = write_evaluation(tmp_path / "run" / "eval", "strong", 0.8, 1.5, seed=2).parent
    main([str(first), str(alike), str(better), "--output", str(tmp_path / "out")])
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [each and each["beyond_noise"] for each in compared["tasks"]["legal_sense"]["against_first"]] == [
        None,
        False,
        True,
    ]
    law = compared["bits_per_byte"]["law"]["against_first"][2]
    assert law["interval"][0] < law["difference"] == pytest.approx(-0.5, abs=0.05) and law["beyond_noise"]
    assert compared["win_rates"][2] == 1.0 and sum(compared["win_rates"]) == pytest.approx(1.5)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    line = " ".join(next(words for words in lines if words[:2] == ["legal_sense", "acc"]))
    assert line.count("*") == 1
    assert (tmp_path / "out" / "figures" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_only_items_that_all_models_scored_are_compared(tmp_path, capsys):
    first = write_evaluation(tmp_path / "a", "a", 0.5, 2.0, items=50)
    write_evaluation(tmp_path / "b", "b", 0.5, 2.0, items=80)
    main([str(first), str(tmp_path / "b")])
    assert ["legal_sense", "acc", "50"] in [line.split()[:3] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": {"sha256": "b" * 64}}, f"items ({'a' * 12}, {'b' * 12})"),
        ({"dataset": {"revision": "new"}}, "items (old, new)"),
        ({"num_fewshot": 5}, "num_fewshot (0, 5)"),
        ({"version": 2.0, "num_fewshot": 5}, "num_fewshot (0, 5) and version (1.0, 2.0)"),
        ({}, None),
        ({"dataset": None, "num_fewshot": None}, None),
    ],
)
def test_a_task_whose_evaluations_are_of_other_items_is_not_compared_and_named(tmp_path, capsys, change, said):
    """Ids are numbers of rows, and so the same in other data."""
    stated = {"dataset": {"sha256": "a" * 64, "revision": "old"}, "num_fewshot": 0, "version": 1.0}
    folders = []
    for name, task in (("a", stated), ("b", stated | change)):
        folder = write_evaluation(tmp_path / name, name, 0.5, 2.0)
        results = json.loads((folder / "results.json").read_text())
        results["tasks"]["legal_sense"] |= task
        (folder / "results.json").write_text(json.dumps(results))
        folders.append(str(folder))
    main([*folders, "--output", str(tmp_path / "out")])
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert compared["not_compared"] == ({"legal_sense": said} if said else {}) and compared["bits_per_byte"]
    assert list(compared["tasks"]) == list(compared["gold_bits_per_byte"]) == ([] if said else ["legal_sense"])
    line = f"legal_sense is not compared, since the evaluations differ in {said}."
    for text in (capsys.readouterr().out, (tmp_path / "out" / "comparison.md").read_text()):
        assert (line in text) == bool(said)
    for folder in folders:
        (tmp_path / folder / "items" / "documents.law.jsonl").unlink()
    if said:
        with pytest.raises(SystemExit, match=f"(?s)no items in common.*{re.escape(line)}"):
            main(folders)


def test_ties_count_half():
    assert win_rates([[0.5, 0.5], [0.2, 0.1]], ["a", "b"]) == [0.75, 0.25]


def test_the_tasks_of_a_benchmark_count_as_one_in_the_win_rate():
    scores = [[0.9, 0.1]] * 67 + [[0.1, 0.9]] * 2
    assert win_rates(scores, ["blimp"] * 67 + ["arc", "piqa"]) == pytest.approx([1 / 3, 2 / 3])


def test_evaluations_that_cannot_be_compared_are_refused(tmp_path):
    first = write_evaluation(tmp_path / "a", "a", 0.5, 2.0, items=2)
    (tmp_path / "b" / "items").mkdir(parents=True)
    (tmp_path / "b" / "results.json").write_text((first / "results.json").read_text())
    with pytest.raises(SystemExit, match="no items in common"):
        main([str(first), str(tmp_path / "b")])
    with pytest.raises(SystemExit, match="no results.json in it nor in its eval/"):
        main([str(first), str(tmp_path)])


def test_of_many_tasks_without_a_difference_none_is_marked_and_a_real_one_is(tmp_path, capsys):
    """Twenty tasks of chance alone and one true difference; families count as one document."""
    folders = []
    for model, seed in (("first", 1), ("second", 2)):
        folder = write_evaluation(tmp_path / model, model, 0.8 if model == "second" else 0.5, 2.0, seed=seed)
        results = json.loads((folder / "results.json").read_text())
        results["tasks"] |= {f"blimp_{number}": BLIMP for number in range(20)}
        part = {"group": "blimp", "score": "acc", "num_tasks": 20, "num_members": 67}
        results["group_parts"] = {"blimp (20 of 67)": part}
        (folder / "results.json").write_text(json.dumps(results))
        generator = np.random.default_rng(seed)
        for number in range(20):
            rows = [
                {"id": str(n), "gold": 0, "nats": [1.0, 2.0] if generator.random() < 0.5 else [2.0, 1.0]}
                for n in range(200)
            ]
            path = folder / "items" / f"blimp_{number}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders.append(str(folder))
    main([*folders, "--output", str(tmp_path / "out")])
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    found = {name: entry["against_first"][1] for name, entry in compared["tasks"].items()}
    assert [name for name, each in found.items() if each["beyond_noise"]] == ["legal_sense"]
    assert all(each["p_value"] <= each["p_adjusted"] <= 1 for each in found.values())
    (mean,) = compared["groups"].values()
    differences = [each["difference"] for name, each in found.items() if name.startswith("blimp")]
    assert mean["against_first"][1]["difference"] == pytest.approx(np.mean(differences))
    assert mean["num_items"] == 4000 and not mean["against_first"][1]["beyond_noise"]
    assert "blimp (20 of 67)" in capsys.readouterr().out
    assert compared["win_rates"][1] == pytest.approx((1 + np.mean(np.sign(differences) / 2 + 0.5)) / 2)


BLIMP = {"score": "acc", "chance": 0.5, "gold_bits_per_byte": None, "groups": ["blimp"], "dataset": {"path": "blimp"}}


def test_documents_of_a_family_count_as_one(tmp_path):
    folders = [write_evaluation(tmp_path / name, name, 0.5, 2.0, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    widths = []
    for families in (False, True):
        for folder in folders:
            path = folder / "items" / "documents.law.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            rows = [row | {"family": int(row["id"]) // 10 if families else None} for row in rows]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        entry = compare(folders)["bits_per_byte"]["law"]["against_first"][1]
        widths.append(entry["stderr"])
    assert len(set(widths)) == 2


def write_families(folder, bits, families):
    """Write documents of a hundred bytes that need these bits per byte."""
    rows = [
        {"id": str(n), "nats": cost * 100 * np.log(2), "bytes": 100, "family": family}
        for n, (cost, family) in enumerate(zip(bits, families, strict=True))
    ]
    path = folder / "items" / "documents.law.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("families", [[None] * 4, [0, 0, 0, 0], [1, 0, 2, 0], [0, 1, 2, 3]])
def test_documents_are_paired_by_the_families_of_the_first_evaluation(tmp_path, families):
    folders = [write_evaluation(tmp_path / name, name, 0.5, 2.0) for name in ("a", "b")]
    write_families(folders[0], [1.0, 2.0, 4.0, 8.0], [0, 0, 1, 2])
    write_families(folders[1], [1.5, 2.5, 4.5, 8.5], families)
    entry = compare(folders)["bits_per_byte"]["law"]
    assert entry["scores"] == pytest.approx([15 / 4, 17 / 4])
    assert entry["against_first"][1]["interval"] == pytest.approx([0.5, 0.5]), "half a bit more in every family"


def test_documents_of_one_family_give_no_interval_and_no_star(tmp_path):
    folders = [write_evaluation(tmp_path / name, name, 0.5, 2.0) for name in ("a", "b")]
    for folder, bits in zip(folders, (1.0, 2.0), strict=True):
        write_families(folder, [bits] * 3, [7] * 3)
    main([*map(str, folders), "--output", str(tmp_path / "out")])
    entry = json.loads((tmp_path / "out" / "comparison.json").read_text())["bits_per_byte"]["law"]
    assert entry["scores"] == pytest.approx([1.0, 2.0])
    against = entry["against_first"][1]
    assert against["interval"] is None and not against["beyond_noise"]
