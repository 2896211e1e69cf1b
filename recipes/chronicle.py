# SPDX-License-Identifier: Apache-2.0
"""The chronicle of a training run: what was done to it, when, and why, as BloombergGPT's appendix C kept it by hand.

In:   events, as they happen.
Out:  <run>/chronicle.jsonl, a line an event: `time` (UTC), `event`, `step`, `text`, and what else the event is about;
      <run>/chronicle.md, the same for a person.

Events: start, resume, config_change, evaluation, save, skip, rollback, warning, preemption, failure, finish. They
stand in the order in which they happened, so a step that was trained twice, before and after a kill, is there twice.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

from run_folder import read_json_lines, replace_text


HEADER = "# Chronicle\n\nWhat happened to this run, in order; times are UTC. Written by training itself.\n\n"


class Chronicle:
    """Appends to the chronicle of a run.

    Args:
        run: the run folder.
        writes: whether this process is the one that writes; the others' notes go nowhere.
    """

    def __init__(self, run: Path, writes: bool):
        self.lines, self.page, self.writes = run / "chronicle.jsonl", run / "chronicle.md", writes
        if writes:
            entries = read_chronicle(run)  # a kill can leave half a line, and the page behind
            replace_text(self.lines, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
            replace_text(self.page, HEADER + "".join(map(describe, entries)))

    def note(self, event: str, step: int, text: str, **details) -> None:
        """Add an event; details are JSON values beside the text."""
        if not self.writes:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        entry = {"time": now, "event": event, "step": step, "text": text, **details}
        for path, line in ((self.lines, json.dumps(entry, ensure_ascii=False) + "\n"), (self.page, describe(entry))):
            with path.open("a", encoding="utf-8") as file:
                file.write(line)


def read_chronicle(run: Path) -> list[dict]:
    """Return the entries of a run's chronicle without a last line that was cut short; empty where there is none."""
    return read_json_lines(run / "chronicle.jsonl")


def describe(entry: dict) -> str:
    text = " ".join(str(entry["text"]).split())
    return f"- {entry['time']}, step {entry['step']:,}, **{entry['event']}**: {text}\n"
