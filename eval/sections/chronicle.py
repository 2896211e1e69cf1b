# SPDX-License-Identifier: Apache-2.0
"""The chronicle, a log of the run's events in order: chronicle.jsonl."""

from collections import Counter

from run_files import RunFiles, Section


# Events that are listed. Saves and evaluations are only counted: they are the ordinary case.
LISTED = ("start", "resume", "note", "config_change", "skip", "rollback", "warning", "preemption", "failure", "finish")
MAX_LISTED = 200


def build(run: RunFiles) -> Section | None:
    entries = run.lines("chronicle.jsonl")
    if not entries:
        return None
    listed = [entry for entry in entries if entry["event"] in LISTED]
    values = {
        "counts": Counter(entry["event"] for entry in entries),
        "listed": listed[-MAX_LISTED:],
        "left_out": len(listed) - MAX_LISTED,
    }
    return Section("Event log", values)
