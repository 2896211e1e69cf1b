# SPDX-License-Identifier: Apache-2.0
"""Benchmarks in the text: documents/decontamination.json, or that it was not checked, and why."""

from run_files import RunFiles, Shown


def show(run: RunFiles) -> Shown | None:
    documents, decontamination = run.json("documents/stats.json"), run.json("documents/decontamination.json")
    if documents is None and decontamination is None:
        return None
    return Shown("Benchmarks in the text", {"documents": documents or {}, "decontamination": decontamination})
