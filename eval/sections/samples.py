# SPDX-License-Identifier: Apache-2.0
"""Generated text, of the finished model (eval/results.json) and during training (samples.jsonl).

With trace/samples.json, of recipes/trace_text.py, what stands word for word in training documents is underlined.
"""

import textwrap

from run_files import RunFiles, Section
from wording import heading, plain


SAMPLE_CHARACTERS = 300  # of a sample in summary.txt
MAX_STEPS = 6  # of training whose samples are shown, spread evenly


def build(run: RunFiles) -> Section | None:
    results = run.json("eval/results.json")
    samples = results["samples"] if results else []
    growth = by_prompt(run.lines("samples.jsonl"))
    if not samples and not growth:
        return None
    traced = run.json("trace/samples.json") or {"texts": []}
    sources = {(entry["prompt"], entry["text"]): entry for entry in traced["texts"]}
    samples = [sample | {"traced": sources.get((sample["prompt"], sample["text"]))} for sample in samples]
    lines = heading("Samples")
    for sample in samples[:3]:
        lines += textwrap.wrap(f"[{shortened(sample['prompt'])}] {shortened(sample['text'])}", 100) + [""]
    values = {"samples": samples, "growth": growth, "baseline": traced.get("baseline")}
    return Section("Samples", values, summary=lines[:-1] if samples else [])


def by_prompt(lines: list[dict]) -> dict[str, list[dict]]:
    """Return {prompt: its lines} at the first step, the last, and a few between."""
    steps = sorted({line["step"] for line in lines})
    last = len(steps) - 1
    chosen = {steps[round(last * part / (MAX_STEPS - 1))] for part in range(MAX_STEPS)} if steps else set()
    growth: dict[str, list[dict]] = {}
    for line in lines:
        if line["step"] in chosen:
            growth.setdefault(line["prompt"], []).append(line)
    return growth


def shortened(text: str) -> str:
    text = " ".join(plain(text).split())
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS].rsplit(" ", 1)[0] + " ..."
