# SPDX-License-Identifier: Apache-2.0
"""Samples: eval/results.json."""

import textwrap

from run_files import RunFiles, Shown
from wording import heading, plain


SAMPLE_CHARACTERS = 300  # of a sample in summary.txt


def show(run: RunFiles) -> Shown | None:
    results = run.json("eval/results.json")
    if results is None or not results["samples"]:
        return None
    lines = heading("Samples")
    for sample in results["samples"][:3]:
        lines += textwrap.wrap(f"[{shortened(sample['prompt'])}] {shortened(sample['text'])}", 100) + [""]
    return Shown("Samples", {"samples": results["samples"]}, summary=lines[:-1])


def shortened(text: str) -> str:
    text = " ".join(plain(text).split())
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS].rsplit(" ", 1)[0] + " ..."
