# SPDX-License-Identifier: Apache-2.0
"""Compare the keys of run files that a test writes by hand with those that the stages write."""

import json
import re
from pathlib import Path


# Below these, keys are names of data: of sources, tasks, reasons and the like.
NAMES = re.compile(
    r"\.(sources|domains|months|context_lengths|mixture|converted|reasons|dropped|kept|personal_data|removed|not_checkable|sha256"
    r"|tasks|metrics|by_overlap|groups|group_parts|train_bytes|sample_bytes|samples|(bytes_per_token|terms)(\.\*)?)$"
)


# In a key of metrics.jsonl, the part that is the name of a source or a task.
NAMES_IN_KEY = re.compile(
    r"(?<=^eval/)(?!loss|bits_per_byte)[^/]+(?=/)|(?<=^data/share/).+|(?<=^data/asked/).+|(?<=^data/repetitions/).+"
    r"|(?<=^eval/bits_per_byte/).+|(?<=^eval/loss/).+"
)


# Entries of the same form; the real run has only those on the left.
ALIKE = {".group_parts.": ".groups.", ".kept.": ".dropped.", ".dropped.": ".reasons."}


def key_paths(value: object, place: str = "") -> set[str]:
    """Return the places of all keys in a file, such as `.tasks.*.metrics.*.value`."""
    if isinstance(value, list):
        return set().union(*(key_paths(part, place) for part in value))
    if not isinstance(value, dict):
        return set()
    places = {key: f"{place}.{'*' if NAMES.search(place) else NAMES_IN_KEY.sub('*', key)}" for key in value}
    keys = {path for path in places.values() if not path.endswith("*")}
    return keys.union(*(key_paths(value[key], places[key]) for key in value))


def read(path: Path) -> object:
    """Return the content of a JSON file, or the list of a file of JSON lines."""
    text = path.read_text()
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def unknown_keys(written: Path, real: Path, files: list[str]) -> dict[str, list[str]]:
    """Return the keys of a hand-written run folder's files that the files of a real one lack, by file."""
    unknown = {}
    for name in files:
        by_hand, known = (key_paths(read(folder / name)) for folder in (written, real))
        for there, alike in ALIKE.items():
            known |= {place.replace(there, alike) for place in known}
        if lacking := by_hand - known:
            unknown[name] = sorted(lacking)
    return unknown
