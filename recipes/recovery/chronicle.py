# SPDX-License-Identifier: Apache-2.0
"""The event log of a run (the chronicle) and its present state (`status.json`).

| file | what it holds |
|---|---|
| `chronicle.jsonl` | one event a line: `time` (UTC), `event`, `step`, `text`, details of some events, and `chain`, |
|  | a hash of the line and of the `chain` before it: no line can change alone |
| `chronicle.md` | the same events as Markdown |
| `status.json` | `status` (running, preempted, failed, finished), `step`, `max_steps`, `checkpoint` (the newest), |
|  | `save_seconds` (that are allowed after a signal), `reason` and `exit_code` of the end, `pid`, `host`, |
|  | `started`, `updated` |

Events: start, resume, note, config_change, evaluation, save, skip, rollback, warning, preemption, failure, finish, in
the order in which they happened; the events of a step that was trained again after a kill appear twice. Scripts read
`status.json`, since a launcher exits with 1 whatever its processes return. "running" while no process holds the run's
lock means killed."""

import hashlib
import json
import os
import platform
import threading
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path

from atomic_files import StaleStageError, append_text, read_json, read_json_lines, replace_text, write_json


ENDED = ("failed", "preempted")
END = ("status", "exit_code", "reason")  # the values that say how a run ended
HEADER = "# Chronicle\n\nWhat happened to this run, in order; times are UTC. Written by training itself.\n\n"


class RunStatus:
    """`status.json` of a run.

    Args:
        run: the run folder.
        writes: whether this process keeps the file up to date; any process may record how the run ended.
    """

    def __init__(self, run: Path, writes: bool):
        self.path, self.writes, self.lock = run / "status.json", writes, threading.RLock()
        self.values: dict = {}

    def begin(self) -> None:
        self.values = {"status": "running", "pid": os.getpid(), "host": platform.node(), "started": utc_now()}
        self.write()

    def update(self, **values) -> None:
        """Change values and write the file, with the end that another process may have recorded meanwhile."""
        with self.lock:
            found = (read_json(self.path) or {}) if self.writes else {}
            ended = found.get("status") in ENDED
            self.values |= values | {key: found[key] for key in END if ended and key in found}
            self.write()

    def write(self) -> None:
        """Write the file, if this process keeps it up to date."""
        if self.writes:
            write_json(self.path, self.values | {"updated": utc_now()})

    def end(self, status: str, exit_code: int, reason: str, alone: bool = False) -> None:
        """Record how the run ended, unless a process of this launch already has: later failures follow from the first.

        Args: alone: this process ends without the others' agreement, so it writes even if it is not the main one.
        """
        with self.lock:
            found = read_json(self.path) or {}
            if (self.writes or alone) and found.get("status") == "running":
                self.values = found | {"status": status, "exit_code": exit_code, "reason": reason}
                own = self.path.with_name(f".status.{os.environ.get('RANK', '0')}.json")  # others may write at once
                write_json(own, self.values | {"updated": utc_now()})
                os.replace(own, self.path)

    def read_end(self) -> str | None:
        """Return why a process of this launch ended the run; None if none has recorded that."""
        found = read_json(self.path) or {}
        return found.get("reason") if found.get("status") in ENDED else None

    def is_preempted(self) -> bool:
        """Return whether a process of this launch has recorded that a signal ended the run."""
        return (read_json(self.path) or {}).get("status") == "preempted"


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Chronicle:
    """Appends to the event log of a run, one in a process: each line is chained to the last that it wrote.

    Args:
        run: the run folder.
        writes: whether this process writes; the others' notes are dropped.
    """

    def __init__(self, run: Path, writes: bool):
        self.lines, self.page, self.writes = run / "chronicle.jsonl", run / "chronicle.md", writes
        self.lock = threading.Lock()  # a thread notes what it saved
        if writes:
            entries = read_chronicle(run)  # a kill can leave half a line, and the page behind
            self.chain = reduce(link, entries, "")
            replace_text(self.lines, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
            replace_text(self.page, HEADER + "".join(map(describe, entries)))

    def note(self, event: str, step: int, text: str, **details) -> None:
        """Add an event; details are JSON values beside the text."""
        if not self.writes:
            return
        entry = {"time": utc_now(), "event": event, "step": step, "text": text, **details}
        with self.lock:
            chain = link(self.chain, entry)
            append_text(self.lines, json.dumps(entry | {"chain": chain}, ensure_ascii=False) + "\n")
            self.chain = chain
            append_text(self.page, describe(entry))


def read_chronicle(run: Path) -> list[dict]:
    """Return a run's events, without a truncated last line; empty where there is no file.

    Raises: StaleStageError: a line is not as it was written.
    """
    entries, chain = read_json_lines(run / "chronicle.jsonl", "time", "event", "step", "text"), ""
    first = next((number for number, entry in enumerate(entries) if "chain" in entry), len(entries))
    for number, entry in enumerate(entries):  # those before the first are of an earlier version
        chain = link(chain, entry)
        if number >= first and entry.get("chain") != chain:
            raise StaleStageError(
                f"{run / 'chronicle.jsonl'}:{number + 1} or a line before it is not as it was written. Restore the "
                "file from a copy, or move it away: training then starts a new one, and notes that"
            )
    return entries


def link(chain: str, entry: dict) -> str:
    """Return the hash of an entry and of the chain of those before it."""
    content = {key: value for key, value in entry.items() if key != "chain"}
    return hashlib.sha256((chain + json.dumps(content, ensure_ascii=False)).encode()).hexdigest()[:16]


def describe(entry: dict) -> str:
    text = " ".join(str(entry["text"]).split())
    return f"- {entry['time']}, step {entry['step']:,}, **{entry['event']}**: {text}\n"
