# SPDX-License-Identifier: Apache-2.0
"""Benchmark items in the training text: documents/decontamination.json, or why it was not checked."""

from run_files import RunFiles, Section


def build(run: RunFiles) -> Section | None:
    documents, decontamination = run.json("documents/stats.json"), run.json("documents/decontamination.json")
    if documents is None and decontamination is None:
        return None
    return Section("Benchmark items in the text", {"documents": documents or {}, "decontamination": decontamination})
