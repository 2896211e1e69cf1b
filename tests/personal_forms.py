# SPDX-License-Identifier: Apache-2.0
"""Measure the patterns for personal data on letterheads, charts, statements and captions of many countries.

    PYTHONPATH=recipes python tests/personal_forms.py

The forms of personal_forms.txt were written, and what is personal marked as {{kind:value}}, before the patterns were
looked at. Prints a row a kind: of the marked values, the fraction covered by what is found, whatever kind that is; of
what is found under a kind, the fraction that touches a marked value.
"""

import csv
import re
import sys
from collections import Counter
from pathlib import Path

from corpus.personal_data import KINDS, Redactor


FORMS = Path(__file__).with_name("personal_forms.txt")


def read_forms() -> dict[str, tuple[str, list[tuple[int, int, str]]]]:
    """Return title -> (text, (start, end, kind) of each marked value)."""
    forms = {}
    for form in FORMS.read_text(encoding="utf-8").split("=== ")[1:]:
        title, marked = form.split("\n", 1)
        text, spans, position = "", [], 0
        for mark in re.finditer(r"\{\{([a-z_]+):(.+?)\}\}", marked):
            text += marked[position : mark.start()]
            spans.append((len(text), len(text) + len(mark[2]), mark[1]))
            text += mark[2]
            position = mark.end()
        forms[title] = (text + marked[position:], spans)
    return forms


def measure_forms() -> dict[str, dict]:
    """Return kind -> marked, recall, found, precision."""
    redactor = Redactor("general", dict.fromkeys(KINDS, "replace"))
    marked, covered, found, right = Counter(), Counter(), Counter(), Counter()
    for text, spans in read_forms().values():
        hidden, personal = set(), {place for start, end, _ in spans for place in range(start, end)}
        for start, end, kind in redactor.find(text):
            hidden.update(range(start, end))
            found[kind] += 1
            right[kind] += not personal.isdisjoint(range(start, end))
        for start, end, kind in spans:
            marked[kind] += 1
            covered[kind] += hidden.issuperset(place for place in range(start, end) if text[place].isalnum())
    marked["all"], covered["all"] = marked.total(), covered.total()
    found["all"], right["all"] = found.total(), right.total()
    return {
        kind: {
            "marked": marked[kind],
            "recall": round(covered[kind] / marked[kind], 3) if marked[kind] else "",
            "found": found[kind],
            "precision": round(right[kind] / found[kind], 3) if found[kind] else "",
        }
        for kind in [*sorted((marked | found).keys() - {"all"}), "all"]
    }


if __name__ == "__main__":
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["kind", "marked", "recall", "found", "precision"])
    for kind, row in measure_forms().items():
        table.writerow([kind, *row.values()])
