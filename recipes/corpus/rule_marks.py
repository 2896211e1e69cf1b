# SPDX-License-Identifier: Apache-2.0
"""Find what in a text made a rule drop it: the places to mark, and the measured value beside the threshold."""

import re
from collections import Counter
from collections.abc import Iterator

from datatrove.pipeline.filters.c4_filters import POLICY_SUBSTRINGS
from datatrove.pipeline.filters.gopher_quality_filter import STOP_WORDS
from datatrove.utils.text import TERMINAL_PUNCTUATION

from corpus.language import excerpt, load_model
from corpus.text_quality import RULES, SHORT_LINE_CHARS, QualityFilter
from corpus.words import WORD


# A longer text is marked only so far.
MARKED_CHARACTERS = 200_000
STOPS = rf"\b(?:{'|'.join(sorted(STOP_WORDS))})\b"
# Rule -> pattern of what it counts; a document breaks a rule with min in its name by too few of them.
FORMS = {
    "gopher_max_mean_word_length": r"\w{11,}",
    "gopher_max_hashes": "#+",
    "gopher_max_ellipses": r"\.\.\.|\N{HORIZONTAL ELLIPSIS}",
    "gopher_max_bullet_lines": r"^[^\S\n]*[\N{BULLET}-].*",
    "gopher_max_ellipsis_lines": r"^.*(?:\.\.\.|\N{HORIZONTAL ELLIPSIS})[^\S\n]*$",
    "gopher_min_alphabetic_words": r"\b[\d_]+\b",
    "gopher_min_stop_words": STOPS,
    "c4_max_lorem_ipsum": "lorem ipsum",
    "c4_max_curly_brackets": r"\{",
    "fineweb_max_short_lines": rf"^(?=.*\S).{{1,{SHORT_LINE_CHARS}}}$",
    "domain_max_policy_phrases": "|".join(POLICY_SUBSTRINGS),
    "domain_min_common_words": rf"{STOPS}|\b\d+\b",
}


def explain_quality(rule: str, text: str, quality: QualityFilter) -> tuple[list[tuple[int, int, str]], str]:
    """Return (start, end, rule) of what a rule counts in a text, and its measured value and threshold in words."""
    known, limit, measured = RULES[rule], quality.limits[rule], quality.measure(text)[1][rule]()
    side = "at least" if "_min_" in rule else "at most"
    unit = "" if known.unit == "fraction" else f" {known.unit}"
    note = f"{known.meaning}: {measured:.3g}{unit}, where the profile allows {side} {limit:g}"
    return [(start, end, rule) for start, end in mark(rule, text[:MARKED_CHARACTERS])], note


def explain_language(text: str) -> str:
    """Return the likeliest languages of a text, by the model's own prior."""
    ranked = load_model().rank(excerpt(text))[:3]
    return "likeliest languages: " + ", ".join(f"{code} {probability:.2f}" for code, probability in ranked)


def mark(rule: str, text: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what a rule counts."""
    if rule in FORMS:
        yield from (found.span() for found in re.finditer(FORMS[rule], text, re.MULTILINE | re.IGNORECASE))
    elif rule == "fineweb_min_punctuated_lines":
        lines = re.finditer(r"^.*\S.*$", text, re.MULTILINE)
        yield from (line.span() for line in lines if line[0].endswith(tuple(TERMINAL_PUNCTUATION)))
    elif found := re.search(r"_repeated_(paragraph|line)", rule):
        form = r"[^\n](?:(?!\n\n)(?s:.))*" if found[1] == "paragraph" else r"^.*\S.*$"
        seen: set[str] = set()
        for part in re.finditer(form, text, re.MULTILINE):
            if part[0] in seen:
                yield part.span()
            seen.add(part[0])
    elif found := re.search(r"_(top|repeated)_(\d+)_gram", rule):
        yield from mark_ngrams(text, int(found[2]), only_top=found[1] == "top")


def mark_ngrams(text: str, n: int, only_top: bool) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the most frequent n-gram of words, or of those that occurred before."""
    words = list(WORD.finditer(text))
    grams = [tuple(word[0] for word in words[place : place + n]) for place in range(len(words) - n + 1)]
    top = max(Counter(grams).items(), key=lambda item: item[1], default=((), 0))[0]
    seen: set[tuple[str, ...]] = set()
    free = 0
    for place, gram in enumerate(grams):
        if place >= free:
            if gram == top if only_top else gram in seen:
                yield words[place].start(), words[place + n - 1].end()
                free = place + n
            seen.add(gram)
