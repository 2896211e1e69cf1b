# SPDX-License-Identifier: Apache-2.0
"""Keep samples of the documents that prepare drops under each reason, and of some that it keeps, to look at.

Of each source and reason, the documents with the lowest hashes are sampled, so that any number of workers samples the
same ones. Together they have at most data.dropped_samples_bytes, in equal numbers for each reason.
<run.output_dir>/dropped_samples.jsonl has them; show_documents.py shows them. The file is not published, no stage
reads it, and it may be deleted.

With data.personal_data, characters of the values that it finds are hidden in a sample: `•••-••-••••`. Their form and
what is around them remain, by which one judges whether they are personal data. A sample has passed through redact of
data.py too.
"""

import json
import re
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import xxhash

from corpus.finished_tasks import note_written


SAMPLES = "dropped_samples.jsonl"
# Documents of a source under one reason; characters of each, from a little before the first mark.
PER_REASON, SAMPLE_CHARACTERS, LEAD_CHARACTERS = 50, 6000, 300
MOST_MARKS = 200
# Reasons of samples that are no reason to drop a document.
KEPT, PASSAGES_REMOVED = "kept", "passages_removed"


def sample_rank(document: str) -> int:
    """Return the number that orders documents for sampling; splits are chosen by another one."""
    return xxhash.xxh64_intdigest(document)


class Samples:
    """The samples of one task, written to `<folder>/<step>.<rank>.jsonl`.

    Args:
        folder: created when needed.
        max_bytes: data.dropped_samples_bytes; 0 keeps none.
        step: that drops the documents.
        rank: of the task.
    """

    def __init__(self, folder: Path, max_bytes: int, step: str, rank: int):
        self.file, self.is_on = folder / f"{step}.{rank:05d}.jsonl", max_bytes > 0
        self.lowest: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)

    def wants(self, source: str, reason: str, document: str) -> bool:
        """Return whether a document has one of the lowest hashes so far, so that `add` is of use."""
        own, rank = self.lowest[source, reason], sample_rank(document)
        has_room = len(own) < PER_REASON or rank < own[-1][0]
        return self.is_on and has_room and all(rank != other for other, _ in own)

    def add(
        self, source: str, reason: str, document: str, text: str, marks: Iterable[tuple[int, int, str]] = (), **fields
    ) -> None:
        """Keep a document, if it has one of the lowest hashes.

        Args:
            source: its name.
            reason: to drop it, or KEPT, or PASSAGES_REMOVED.
            document: its id.
            text: all of it.
            marks: (start, end, label) of what the reason refers to, in characters.
            fields: `note`, a sentence; `place`, the file and row; `before`, the text before cleaning; `near`, the
                document kept instead.
        """
        if not self.wants(source, reason, document):
            return
        marks = list(marks)[:MOST_MARKS]
        start = marks[0][0] - LEAD_CHARACTERS if marks and marks[0][0] > 2 * LEAD_CHARACTERS else 0
        end = start + SAMPLE_CHARACTERS
        entry = {"source": source, "reason": reason, "id": document, "characters": len(text), "start": start}
        entry["text"] = text[start:end]
        entry["marks"] = [
            [max(a, start) - start, min(b, end) - start, label] for a, b, label in marks if b > start and a < end
        ]
        if "before" in fields:
            fields["before"] = fields["before"][start:end]
        own = self.lowest[source, reason]
        insort(own, (sample_rank(document), json.dumps(entry | fields, ensure_ascii=False)))
        del own[PER_REASON:]

    def write(self) -> None:
        if self.is_on:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lines = [line + "\n" for own in self.lowest.values() for _, line in own]
            self.file.write_text("".join(lines), encoding="utf-8")
            note_written(self.file)


def no_samples(step: str, rank: int) -> Samples:
    """Return samples that keep nothing."""
    return Samples(Path(), 0, step, rank)


def write_samples(folder: Path, path: Path, max_bytes: int, renamed: dict[str, str], earlier: list[str]) -> None:
    """Write the samples of all tasks to one file of at most max_bytes; no file where max_bytes is 0.

    Args:
        folder: of the tasks' files.
        path: of the file.
        max_bytes: data.dropped_samples_bytes.
        renamed: id -> later id, of documents that lost passages.
        earlier: documents/ folders that near-duplicates were searched in too.
    """
    path.unlink(missing_ok=True)
    if not max_bytes:
        return
    groups: dict[tuple[str, str], dict[int, dict]] = defaultdict(dict)
    for file in sorted(folder.glob("*.jsonl")):
        for entry in map(json.loads, file.read_text(encoding="utf-8").split("\n")[:-1]):
            if entry["reason"] in (KEPT, PASSAGES_REMOVED):
                entry["id"] = renamed.get(entry["id"], entry["id"])
            if "near" in entry:
                entry |= {"near": renamed.get(entry["near"], entry["near"]), "near_in": earlier}
            groups[entry["source"], entry["reason"]].setdefault(sample_rank(entry["id"]), entry)
    chosen = []
    for group, entries in groups.items():
        lowest = sorted(entries.items())[:PER_REASON]
        chosen += [
            (place, *group, rank, json.dumps(entry, ensure_ascii=False)) for place, (rank, entry) in enumerate(lowest)
        ]
    lines, left = [], max_bytes
    for _, source, reason, rank, line in sorted(chosen):  # the first of every group, then the second of each
        left -= len(line.encode()) + 1
        if left < 0:
            break
        lines.append((source, reason, rank, line))
    path.write_text("".join(line + "\n" for *_, line in sorted(lines)), encoding="utf-8")


def hide(text: str, found: Iterable[tuple[int, int, str]]) -> str:
    """Return a text of the same length with the letters and digits of the values found in it as bullets."""
    for start, end, _ in found:
        text = text[:start] + re.sub(r"\w", "\N{BULLET}", text[start:end]) + text[end:]
    return text
