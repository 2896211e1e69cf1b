# SPDX-License-Identifier: Apache-2.0
"""The chronicle: what happened to the run, in order. chronicle.jsonl."""

from collections import Counter

from run_files import RunFiles, Shown


# Told in full, of however many there are. Of saves and evaluations only the number is: they are the ordinary case.
TOLD = ("start", "resume", "config_change", "skip", "rollback", "warning", "preemption", "failure", "finish")
MOST = 200


def show(run: RunFiles) -> Shown | None:
    entries = run.lines("chronicle.jsonl")
    if not entries:
        return None
    told = [entry for entry in entries if entry["event"] in TOLD]
    values = {
        "counts": Counter(entry["event"] for entry in entries),
        "told": told[-MOST:],
        "left_out": len(told) - MOST,
    }
    return Shown("Chronicle", values)
