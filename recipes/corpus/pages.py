# SPDX-License-Identifier: Apache-2.0
"""Where the pages of a document begin in its text, so that a passage can be cited by its page."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice


WORDS_TO_FIND, TRIES = 6, 12
# How far from where it is expected a page may begin, since text was removed or inserted before it; near comes first.
SHIFTS = (300, 3000, 30_000)


def move_starts(before: str, after: str, starts: Sequence[int]) -> list[int]:
    """Return where pages begin in a text that cleaning changed.

    A page's first words are searched for around where it is expected, or, where these were changed, the words that
    follow them; a page without any of them keeps its distance from the one before it.

    Args:
        before: the text that the starts are of.
        after: the text after cleaning.
        starts: of the pages, in characters, ascending.
    """
    if before == after:
        return list(starts)
    moved, last, shift = [], 0, 0
    for start in starts:
        expected = max(last, start + shift)
        found = find_start(before, after, start, expected, last)
        place = min(len(after), expected) if found is None else max(last, found)
        moved.append(place)
        last, shift = place, place - start
    return moved


def find_start(before: str, after: str, start: int, expected: int, last: int) -> int | None:
    """Return where the page that begins at `start` begins in the later text, not before `last`; None: unknown."""
    words = list(islice(re.finditer(r"\w+", before[start : start + 2000]), WORDS_TO_FIND + TRIES))
    for shift in SHIFTS:
        for first in range(max(0, min(TRIES, len(words) - 2))):
            sought = r"\W+".join(re.escape(word[0]) for word in words[first : first + WORDS_TO_FIND])
            offset = words[first].start() - words[0].start()
            window = re.compile(sought).finditer(after, max(last, expected - shift), expected + shift)
            places = [match.start() - offset for match in window]
            if places:
                return min(places, key=lambda place: abs(place - expected))
    return None


def page_of(starts: Sequence[int] | None, position: int) -> int | None:
    """Return the page, from 1 on, of a place in a text; None where the starts of its pages are not known."""
    return max(1, bisect_right(starts, position)) if starts else None
