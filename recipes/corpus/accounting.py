# SPDX-License-Identifier: Apache-2.0
"""Account for every document: it is in one split, or dropped for one reason."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document

from corpus.finished_tasks import note_written
from recipe_config import Source
from sources.row_checks import AS_ROW


SPLITS = ("train", "validation", "test", "future")
# Steps that drop documents without counting them: the labels counted before and after the step, and the reason.
DIFFERENCES = (("overlap_in", "overlap_out", "benchmark_overlap"),)
WORDED = ("unreadable", "no_text")  # reasons to drop a document that are counted by their wording too
MOST_REASONS = 50  # of one kind, that a task counts apart: a reason may quote what is in a file
NOTHING = np.zeros(2, dtype=np.int64)


class Tally:
    """Count documents and bytes under labels for one task; written to `<folder>/<name>.<rank>.json`.

    Args:
        folder: created when needed.
        name: of the step that counts.
        rank: of the task.
        source: prefix of every label; None if the labels already start with a source.
    """

    def __init__(self, folder: Path, name: str, rank: int, source: str | None = None):
        self.file = folder / f"{name}.{rank:05d}.json"
        self.source = source
        self.documents: Counter = Counter()
        self.num_bytes: Counter = Counter()

    def add(self, label: str, num_bytes: int) -> None:
        self.documents[label] += 1
        self.num_bytes[label] += num_bytes

    def add_reason(self, kind: str, reason: str, num_bytes: int) -> None:
        """Count a document under the wording of its reason, `<kind>:<reason>`."""
        label = f"{kind}:{reason}"
        counted = sum(known.startswith(f"{kind}:") for known in self.documents) if label not in self.documents else 0
        self.add(label if counted < MOST_REASONS else f"{kind}:other reasons", num_bytes)

    def write(self) -> None:
        prefix = f"{self.source}/" if self.source else ""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        counts = {prefix + label: [self.documents[label], self.num_bytes[label]] for label in sorted(self.documents)}
        self.file.write_text(json.dumps(counts))
        note_written(self.file)


def count_documents(documents, rank: int, world_size: int, folder: Path, name: str) -> Iterator[Document]:
    """Yield the documents unchanged, counting those of each source under `<source>/<name>`."""
    tally = Tally(folder, name, rank)
    for document in documents:
        tally.add(f"{document.metadata['source']}/{name}", len(document.text.encode()))
        yield document
    tally.write()


def sum_counts(folder: Path, name: str, num_tasks: int | None = None) -> dict[str, np.ndarray]:
    """Return label -> (documents, bytes), summed over the first tasks of a step; None: over all."""
    totals: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob(f"{name}.*.json"))[:num_tasks]:
        for label, counted in json.loads(file.read_text()).items():
            totals[label] = totals.get(label, np.zeros(2, dtype=np.int64)) + counted
    return totals


def explain_empty(source: str, counts: dict[str, np.ndarray]) -> str:
    """Return the message for a source without documents: how many examples were dropped for which reason."""
    reasons = labelled(counts, f"{source}/dropped")
    found = ", ".join(f"{number:,} {reason}" for reason, (number, _) in reasons.items()) or "no examples found"
    wordings = [entry for kind in WORDED for entry in list_reasons(counts, f"{source}/{kind}")]
    why = "".join(f"; {number:,}: {reason}" for reason, number in wordings)
    return f"data.sources: {source}: no document is left ({found}){why}; check its files and data.extract_text"


def list_reasons(counts: dict[str, np.ndarray], prefix: str, most: int = 5) -> list[tuple[str, int]]:
    """Return the most frequent wordings of a kind of reason, with their documents."""
    found = [(reason, int(number)) for reason, (number, _) in labelled(counts, prefix).items()]
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))[:most]


def describe_dropped(name: str, entry: dict, first: dict[str, str]) -> list[str]:
    """Return the lines for the terminal: the documents of a source that were dropped, under each reason.

    Args:
        name: of the source.
        entry: of stats.json.
        first: wording of a reason -> position of the first document that could not be read for it.
    """
    lines = []
    dropped = ", ".join(f"{count['documents']:,} {reason}" for reason, count in entry["dropped"].items())
    if dropped:
        lines.append(f"prepare: {name}: dropped of {entry['documents_in']:,} documents: {dropped}")
    reasons = sorted(entry["reasons"].items(), key=lambda item: -item[1]["documents"])
    for reason, count in reasons[:5]:
        where = next((position for wording, position in first.items() if mask(wording) == reason), None)
        lines.append(f"prepare: {name}:   {count['documents']:,}: {reason}" + (f" ({where})" if where else ""))
    if len(reasons) > 5:
        lines.append(f"prepare: {name}:   and {len(reasons) - 5} more reasons; quarantine.jsonl has all")
    for encoding, number in entry["converted"].items():
        lines.append(f"prepare: {name}: note: {number:,} documents were converted from {encoding}")
    if entry["unread_pages"]["pages"]:
        count = entry["unread_pages"]
        lines.append(
            f"prepare: {name}: note: {count['documents']:,} documents lack the text of {count['pages']:,} pages, "
            "which are images; install tesseract, which may also have failed on them or taken too long"
        )
    for marker, count in entry["markers"].items():
        lines.append(
            f"prepare: {name}: note: {count['documents']:,} documents have {marker} in their text, "
            f"{count['occurrences']:,} times, and it is trained on as characters; to divide there, set "
            f"document_separator: {marker!r}"
        )
    return lines


def mask(reason: str) -> str:
    """Return a reason without what it quotes of a document: stats.json may be published.

    A text that has an apostrophe is quoted in double quotes, and the wording of an error may have any.
    """
    advice = AS_ROW * reason.endswith(AS_ROW)  # whose quotation marks are its own
    return re.sub(r"""['"].*['"]""", "'...'", reason.removesuffix(advice), flags=re.DOTALL) + advice


def gather_stats(
    sources: list[Source],
    counts: Path,
    files: dict[str, list[dict]],
    dates: dict[str, dict],
    families: dict[str, int] | None,
    divided: dict[str, int] | None,
) -> dict:
    """Return the content of documents/stats.json, from what the tasks of every step counted.

    Args:
        sources: of the recipe, with pinned revisions.
        counts: folder of the tallies. Labels are `<source>/` and `read`, `dropped:<reason>`, those of DIFFERENCES,
            `split:<name>`, `personal_data:<kind>`, `redacted`, `unreadable:<wording>`, `no_text:<wording>`,
            `converted:<encoding>`, `unread_pages` (documents and their pages), `marker:<marker>` (documents and
            occurrences), `cut` (documents that lost passages, and the bytes they lost).
        files: source -> its files by ending, read and not read.
        dates: source -> dated_documents, first_date and last_date.
        families: source -> number of families; None if families were not computed.
        divided: source -> how many of them are both in train and in the future split; None as above.
    """
    totals = sum_counts(counts, "*")
    stats = {}
    for source in sources:
        own = {label.partition("/")[2]: n for label, n in totals.items() if label.startswith(f"{source.name}/")}
        dropped = labelled(own, "dropped")
        for before, after, reason in DIFFERENCES:
            gone = own.get(before, NOTHING) - own.get(after, NOTHING)
            dropped[reason] = dropped.get(reason, NOTHING) + gone
        cut, unread = own.get("cut", NOTHING), own.get("unread_pages", NOTHING)
        at_reading = labelled(sum_counts(counts, "read"), f"{source.name}/dropped")
        everything = own["read"] + sum(at_reading.values(), NOTHING)
        kept = labelled(own, "split")
        reasons: dict[str, np.ndarray] = {}
        for reason, number in sorted(entry for kind in WORDED for entry in labelled(own, kind).items()):
            reasons[mask(reason)] = reasons.get(mask(reason), NOTHING) + number
        markers = sorted(labelled(own, "marker").items())
        planted = own.get("planted", NOTHING)  # its bytes are kept, and were not read
        accounted = sum([*kept.values(), *dropped.values()], (cut - planted) * [0, 1])
        assert (everything == accounted).all(), f"{source.name}: of {everything}, {dropped} and {kept}"
        stats[source.name] = {
            "domain": source.label,
            "license": source.license,
            "url": source.url,
            "path": source.path,
            "revision": source.revision,
            "max_bytes": source.max_bytes,
            "files": files[source.name],
            "converted": {encoding: int(n[0]) for encoding, n in sorted(labelled(own, "converted").items())},
            "unread_pages": {"documents": int(unread[0]), "pages": int(unread[1])},
            "documents_in": int(everything[0]),
            "bytes_in": int(everything[1]),
            "dropped": {reason: counted(n) for reason, n in sorted(dropped.items()) if n.any()},
            "reasons": {reason: counted(n) for reason, n in reasons.items()},
            "markers": {marker: {"documents": int(n[0]), "occurrences": int(n[1])} for marker, n in markers},
            "cut": counted(cut),
            "kept": {
                split: counted(kept.get(split, NOTHING)) for split in SPLITS if split != "future" or split in kept
            },
            "families": families and families[source.name],
            "families_in_train_and_future": divided and divided[source.name],
            "redacted": int(own.get("redacted", NOTHING)[0]),
            "personal_data": {kind: int(n[0]) for kind, n in sorted(labelled(own, "personal_data").items())},
            **dates[source.name],
        }
    return {"sources": stats}


def labelled(counts: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return rest -> count for the labels `<prefix>:<rest>`."""
    return {label.partition(":")[2]: n for label, n in counts.items() if label.startswith(f"{prefix}:")}


def counted(value: np.ndarray) -> dict[str, int]:
    return {"documents": int(value[0]), "bytes": int(value[1])}
