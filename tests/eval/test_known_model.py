# SPDX-License-Identifier: Apache-2.0
"""The tables of a known model hold the numbers of eval/smollm2.json, which runs wrote, and of rows of it continued."""

import csv
import json
import re
from pathlib import Path


EVAL = Path(__file__).resolve().parents[2] / "eval"
RECIPES = EVAL.parent / "recipes"
RECORD = json.loads((EVAL / "smollm2.json").read_text(encoding="utf-8"))
KNOWN, OURS = RECORD["models"]["SmolLM2-135M-Instruct"], RECORD["models"]["legal-quickstart"]


def with_interval(value: float, interval: list[float]) -> str:
    return f"{value:.3f} ({interval[0]:.2f}–{interval[1]:.2f})"


def table() -> str:
    lines = ["| score | SmolLM2-135M-Instruct | quickstart | baseline |", "|---|--:|--:|--:|"]
    for context, sources in KNOWN["held_out"].items():
        for source, known in sources.items():
            ours = OURS["held_out"].get(context, {}).get(source)
            pair = [
                with_interval(each["bits_per_byte"], each["confidence_interval"]) if each else ""
                for each in (known, ours)
            ]
            lines.append(f"| {source}, {int(context):,} tokens | {pair[0]} | {pair[1]} | |".replace("|  |", "| |"))
    for task, known in KNOWN["tasks"].items():
        pair = [with_interval(each["value"], each["interval"]) for each in (known, OURS["tasks"][task])]
        lines.append(f"| {task}, {known['score']} | {pair[0]} | {pair[1]} | {known['baseline']:.3f} |")
    return "\n".join(lines)


def test_the_table_shows_what_the_runs_wrote():
    page = (EVAL / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- smollm2 -->\n(.*?)\n<!-- /smollm2 -->", page, re.DOTALL)
    assert shown and shown[1] == table()
    assert f"saw {OURS['tokens_seen'] / 1e6:.2f} million tokens" in page
    texts = [model["held_out"]["256"] for model in (KNOWN, OURS)]
    sizes = [{name: (each["documents"], each["bytes"]) for name, each in sources.items()} for sources in texts]
    assert sizes[0] == sizes[1] and all(40_000 < size <= 60_000 for _, size in sizes[0].values()), "the same text"


def test_the_page_says_how_many_items_lm_eval_scored_alike():
    page = " ".join((EVAL / "README.md").read_text(encoding="utf-8").split())
    with_start = [task["with_start"] for task in RECORD["lm_eval"].values()]
    without = [task["default"] for task in RECORD["lm_eval"].values() if "default" in task]
    assert all(not task["different_acc"] and not task.get("different_acc_norm") for task in with_start)
    items, tasks = sum(task["items"] for task in with_start), len(with_start)
    assert f"{items} items of {tasks} tasks" in page
    differ, of = sum(task["different_acc"] for task in without), sum(task["items"] for task in without)
    assert f"{differ} of {of}" in page


def test_the_table_of_the_continued_model_shows_its_rows():
    lines, domains = [], set()
    rows = list(csv.DictReader((RECIPES / "experiments" / "continued_smollm2.csv").open(encoding="utf-8")))
    for row in rows:
        first = "" if row["domain"] in domains else f"{row['domain']}: "
        domains.add(row["domain"])
        cells = [first + row["model"], f"{int(row['tokens']):,}"]
        for text in ("domain", "general"):
            bits = row[f"{text}_bits_per_byte"]
            least = min(one[f"{text}_bits_per_byte"] for one in rows if one["domain"] == row["domain"])
            number = f"**{bits}**" if bits == least else bits
            cells.append(f"{number} ({row[f'{text}_low']} to {row[f'{text}_high']})")
        lines.append(f"| {' | '.join([*cells, row['accuracy']])} |".replace("|  |", "| |"))
        continued = int(row["tokens"]) > 0 and row["context_tokens"] == "8192"
        assert row["interval_of"] == ("difference" if continued else "score")
    page = (RECIPES / "custom" / "README.md").read_text(encoding="utf-8")
    assert "\n".join(["|---|--:|--:|--:|--:|", *lines, "", ""]) in page
