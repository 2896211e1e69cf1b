# SPDX-License-Identifier: Apache-2.0
"""What happened to the run, in order: chronicle.jsonl."""

from run_files import RunFiles, Shown


# Most entries are these, and the curves show them; the file has them all.
ROUTINE = ("evaluation", "save")


def show(run: RunFiles) -> Shown | None:
    entries = run.lines("chronicle.jsonl")
    if not entries:
        return None
    counts = {kind: sum(entry["event"] == kind for entry in entries) for kind in ROUTINE}
    values = {"entries": [entry for entry in entries if entry["event"] not in ROUTINE], "counts": counts}
    return Shown("What happened during training", values)
