# SPDX-License-Identifier: Apache-2.0
"""Personal data in the text: documents/stats.json."""

from run_files import RunFiles, Section


def build(run: RunFiles) -> Section | None:
    documents = run.json("documents/stats.json")
    if documents is None:
        return None
    kinds = sorted({kind for entry in documents["sources"].values() for kind in entry.get("personal_data", {})})
    return Section("Personal data in the text", {"documents": documents, "kinds": kinds})
