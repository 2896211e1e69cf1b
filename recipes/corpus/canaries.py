# SPDX-License-Identifier: Apache-2.0
"""Plant made-up records in training documents, each an exact number of times, so that an audit can ask for them.

A record belongs to nobody: an invented name and a number drawn at random, in the form of the domain. Each repetition
is a line of its own in a training document of a domain source, which keeps its id. The text alone decides which
records, documents and lines. Controls are made alike and planted nowhere: what a model knows of them is chance.
"""

import json
import random
from hashlib import sha256
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from corpus.accounting import Tally
from corpus.held_out import past_documents
from recipe_config import Data, RecipeError


CANARIES = "canaries.json"  # in documents/; it is never published
# What stands before the number of a record, its digits, and what stands after it.
FORMS = {
    "legal": ("Client {name}, trust account number ", 9, "."),
    "finance": ("Account holder {name}, account number ", 9, "."),
    "medical": ("Patient {name}, {drug} once a day, record number ", 9, "."),
    "other": ("Customer {name}, customer number ", 9, "."),
}
SYLLABLES = ("bra", "dol", "fen", "gri", "hul", "jas", "kem", "lor", "mip", "nuv", "pel", "quo", "rud", "sten", "tav")


def make_record(seed: str, domain: str) -> dict[str, str]:
    """Return a made-up record: the text before its number, the number, the text after it."""
    choose = random.Random(seed)

    def word() -> str:
        return "".join(choose.choices(SYLLABLES, k=3)).capitalize()

    before, digits, after = FORMS.get(domain, FORMS["other"])
    before = before.format(name=f"{word()} {word()}", drug=f"{word().lower()}ine {choose.randint(1, 90)} mg")
    return {"before": before, "number": "".join(choose.choices("0123456789", k=digits)), "after": after}


def record_text(record: dict) -> str:
    return record["before"] + record["number"] + record["after"]


def choose_canaries(
    notes: Path, held_out: dict[str, str], lowest_ids: dict[str, str], refused: np.ndarray, data: Data
) -> dict:
    """Return the records to plant, the controls, and which documents get them.

    Args:
        notes: folder that corpus.held_out.note_documents wrote.
        held_out: document id -> split.
        lowest_ids: source -> lowest id that stays in train.
        refused: ids that the quality model refused.
        data: sources, splits and canaries.

    Raises: RecipeError: no training document of a domain source is there to plant them in.
    """
    domains = {source.name: source.domain for source in data.sources if source.domain != "general"}
    ids: dict[str, list[str]] = {name: [] for name in domains}
    for file in sorted(notes.glob("*.npy")):
        found = np.load(file)
        found = found[past_documents(found, data.splits)]
        for index, source in enumerate(data.sources):
            own = found["id"][found["source"] == index] if source.name in ids else np.empty(0, "S32")
            own = [one.decode() for one in own[~np.isin(own, refused)]]
            ids.get(source.name, []).extend(
                one for one in own if one not in held_out and one >= lowest_ids.get(source.name, "")
            )
    ids = {name: sorted(found, reverse=True) for name, found in ids.items() if found}  # the audit reads the lowest
    if not ids:
        raise RecipeError(
            "data.canaries: no source of a domain has training documents to plant them in; set data.sources.domain to "
            "another than general, or leave data.canaries out"
        )
    seed = max(found[0] for found in ids.values())  # a hash of the text, so that nobody else can make the records
    places, sources = {name: cycle(found) for name, found in ids.items()}, cycle(ids)
    canaries, plan = [], {}
    for repetitions in [0, *data.canaries.repetitions]:
        for number in range(data.canaries.per_level):
            source = next(sources)
            record = make_record(f"{seed} {repetitions} {number}", domains[source] or "other")
            text = record_text(record)
            digest = sha256(text.encode()).hexdigest()
            canaries.append(record | {"repetitions": repetitions, "source": source, "sha256": digest})
            for document in islice(places[source], repetitions):
                plan.setdefault(document, []).append(text)
    return {"canaries": canaries, "plan": plan}


def plant_canaries(documents, rank: int, world_size: int, chosen: Path, counts: Path):
    """Yield the documents, with the records of choose_canaries (the JSON file `chosen`) as lines between theirs.

    The bytes that this adds are counted as planted.
    """
    tally = Tally(counts, "planted", rank)
    plan = json.loads(chosen.read_text(encoding="utf-8"))["plan"]
    for document in documents:
        for text in plan.get(document.id, []):
            lines = document.text.split("\n")
            place = int(sha256(f"{document.id} {text}".encode()).hexdigest(), 16) % len(lines) + 1
            document.text = "\n".join([*lines[:place], text, *lines[place:]])
            tally.add(f"{document.metadata['source']}/planted", len(text.encode()) + 1)
        yield document
    tally.write()
