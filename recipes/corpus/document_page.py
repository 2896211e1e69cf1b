# SPDX-License-Identifier: Apache-2.0
"""The page that show_documents.py writes: documents with marks, in one file that holds no script and loads nothing.

Documents may be hostile, so all of their text is escaped, and the page's policy lets nothing run or load.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path

from card_text import render_html
from corpus.dropped_samples import PASSAGES_REMOVED
from corpus.personal_data import KINDS
from corpus.text_normalisation import ODD
from corpus.text_quality import RULES


# Reason -> what it says of its documents, in the order of the steps; those of rules and languages are made.
REASONS = {
    "unreadable": "Unreadable",
    "no_text": "Without text",
    "too_short": "Too short",
    "redact": "Dropped by redact of data.py, and not sampled",
    "personal_data": "With personal data of a kind that drops the document",
    "exact_duplicate": "Exact duplicates",
    "near_duplicate_of_earlier": "Near-duplicates of an earlier corpus",
    "near_duplicate": "Near-duplicates",
    "repeated_passages": "Too short without repeated passages",
    PASSAGES_REMOVED: "Kept without repeated passages",
    "benchmark_overlap": "With benchmark items",
    "quality_model": "Quality model: less like the good documents",
    "max_training_bytes": "Over the source's max_training_bytes",
}
GROUPS = ("quality", "language")  # of reasons that have names of their own


@dataclass
class View:
    """A text as it is shown: what it is, and its pieces, each (text, class, label)."""

    caption: str
    pieces: list[tuple[str, str, str]]
    more: str = ""


@dataclass
class Shown:
    """A document on the page.

    Attributes:
        source: its name.
        document: its id.
        place: where it was read, empty if that was not noted.
        note: what was measured, or what is worth a sentence.
        views: one text, or two side by side.
        folded: a text that opens on a click.
    """

    source: str
    document: str
    place: str
    note: str
    views: list[View]
    folded: list[View] = field(default_factory=list)


@dataclass
class Section:
    """The documents of one reason or split: its name, title, number of documents in the run, and some of them."""

    name: str
    title: str
    documents: int
    shown: list[Shown]


def group_of(reason: str) -> str:
    """Return what --dropped names a reason by: quality, language, or the reason itself."""
    if reason in (*RULES, "quality_model"):
        return "quality"
    return "language" if reason.startswith("language_") else reason


def title_of(reason: str) -> str:
    if reason in RULES:
        return f"Quality, {reason}: {RULES[reason].meaning}"
    if reason.startswith("language_"):
        code = reason.removeprefix("language_")
        return "Language unsure" if code == "unsure" else f"Language {code}"
    return REASONS.get(reason, reason.replace("_", " ").capitalize())


def in_order(reasons: Iterable[str]) -> list[str]:
    """Return reasons in the order of the steps, those of one group beside each other."""
    order = ["unreadable", "no_text", "too_short", *GROUPS, *REASONS]
    places = {reason: order.index(group_of(reason)) if group_of(reason) in order else len(order) for reason in reasons}
    return sorted(places, key=lambda reason: (places[reason], reason))


def view_text(
    caption: str, text: str, marks: Iterable[tuple[int, int, str]] = (), characters: int = 0, first: int = 0
) -> View:
    """Return a text with its marks; where two overlap, the first.

    Args:
        caption: what the text is.
        text: or its beginning, of a longer one of `characters`.
        marks: (start, end, label).
        characters: of the whole text.
        first: place of the text's first character in it.
    """
    chosen, end = [], 0
    for mark in sorted(marks):
        if mark[0] >= end and mark[0] < mark[1]:
            chosen.append(mark)
            end = mark[1]
    borders = [0, *(place for start, stop, _ in chosen for place in (start, stop)), len(text)]
    labels = ["", *(label for _, _, name in chosen for label in (name, ""))]
    pieces = []
    for (start, stop), label in zip(pairwise(borders), labels, strict=True):
        kind = "" if not label else "personal" if label in KINDS else "found" if label == "grep" else "rule"
        pieces += show_odd(text[start:stop], kind, label)
    return View(caption, pieces, shortened(len(text), characters, first))


def view_pair(captions: tuple[str, str], texts: tuple[str, str], characters: tuple[int, int]) -> list[View]:
    """Return two texts with the words marked that only one of them has."""
    words = [re.findall(r"\S+\s*|\s+", text) for text in texts]
    sides: tuple[list, list] = ([], [])
    matcher = SequenceMatcher(None, *words, autojunk=False)
    for operation, *places in matcher.get_opcodes():
        for side, pieces, (start, stop) in zip((0, 1), sides, (places[:2], places[2:]), strict=True):
            kind = "" if operation == "equal" else ("gone", "new")[side]
            pieces += show_odd("".join(words[side][start:stop]), kind, kind and "only here")
    return [
        View(caption, pieces, shortened(len(text), whole))
        for caption, pieces, text, whole in zip(captions, sides, texts, characters, strict=True)
    ]


def show_odd(text: str, kind: str, label: str) -> list[tuple[str, str, str]]:
    """Return the pieces of a text, with characters that cannot be seen as their names."""
    pieces, start = [], 0
    for odd in ODD.finditer(text):
        pieces += [(text[start : odd.start()], kind, label), (f"U+{ord(odd[0][0]):04X}", "odd", "cannot be seen")]
        start = odd.end()
    pieces.append((text[start:], kind, label))
    return [piece for piece in pieces if piece[0]]


def shortened(shown: int, characters: int, first: int = 0) -> str:
    """Return which part of a text is shown; nothing where it is all."""
    return f"characters {first + 1:,} to {first + shown:,} of {characters:,}" if characters > shown else ""


def render_page(path: Path, run: str, sources: dict, kept: list[Section], dropped: list[Section], notes: list) -> None:
    """Write the page.

    Args:
        path: of the file.
        run: its folder.
        sources: of stats.json.
        kept: documents of each split.
        dropped: documents of each reason.
        notes: what is worth knowing first.
    """
    page = render_html(
        Path(__file__).with_name("document_page.html.jinja"),
        run=run,
        sources=sources,
        kept=kept,
        dropped=dropped,
        notes=notes,
        title_of=title_of,
        in_order=in_order,
    )
    path.write_text(page, encoding="utf-8")
