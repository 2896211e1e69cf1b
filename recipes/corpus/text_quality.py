# SPDX-License-Identifier: Apache-2.0
"""Refuse documents that are hardly text: the rules of Gopher, C4 and FineWeb, with thresholds that a recipe can set.

In:   the text of one document, the name of a profile, thresholds that override the profile's.
Out:  the text, without the lines that C4's rules remove, and the name of the first rule that it breaks, or None.

    quality = QualityFilter("professional", {"gopher_min_words": 40, "gopher_max_hashes": False})
    text, broken_rule = quality.apply(text)

    web            the published thresholds, combined as in FineWeb: made for web pages
    professional   passes statutes, contracts, filings, abstracts and notes: their lines are short, repeat by design
                   and end in commas or in nothing, and they have many numbers and may have no sentence. It removes no
                   lines

RULES has every rule with its threshold in each profile. The first word of a rule is its source:

    gopher     Rae et al. 2021, arXiv 2112.11446, appendix A.1.1 and table A1
    c4         Raffel et al. 2020, JMLR 21, section 2.2, and the code published with it
    fineweb    Penedo et al. 2024, arXiv 2406.17557, section 3.6, which omits C4's rule on unpunctuated lines
    domain     ours, for what the professional profile has to refuse

The rules are made for English. For another language set gopher_min_stop_words and domain_min_common_words to false;
for one without spaces, where each character counts as a word, gopher_min_mean_word_length too.

With the profile web, the results equal those of datatrove's filters on the same words, as tests show, except that the
text of a removed line no longer counts. Those filters build every n-gram as a string and take about 1 MB/s together;
here words are hashed and the hashes sorted, which is six times as fast (tests/benchmarks/README.md).
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from datatrove.pipeline.filters.c4_filters import CITATION_REGEX, ELLIPSIS, END_PUNCTUATION, POLICY_SUBSTRINGS
from datatrove.pipeline.filters.gopher_quality_filter import STOP_WORDS
from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION

from corpus.words import find_words, ngram_hashes, words_apart
from recipe_config import RecipeError


class Rule(NamedTuple):
    """One rule: its threshold in each profile (False: not used), and what it measures."""

    web: float | bool
    professional: float | bool
    unit: Literal["fraction", "per word", "words", "characters", "times", "sentences", "switch"]
    meaning: str


# In the order of the checks: a document counts under the first rule that it breaks. In a name, min and max say on
# which side of the threshold a document is refused; cut says that only lines are removed.
RULES = {
    "gopher_max_repeated_paragraphs": Rule(0.3, 0.6, "fraction", "repeated paragraphs"),
    "gopher_max_repeated_paragraph_chars": Rule(0.2, 0.5, "fraction", "characters in repeated paragraphs"),
    "gopher_max_repeated_lines": Rule(0.3, 0.6, "fraction", "repeated lines"),
    "gopher_max_repeated_line_chars": Rule(0.2, 0.5, "fraction", "characters in repeated lines"),
    "gopher_max_top_2_gram": Rule(0.2, 0.4, "fraction", "characters in the most frequent 2-word sequence"),
    "gopher_max_top_3_gram": Rule(0.18, 0.4, "fraction", "characters in the most frequent 3-word sequence"),
    "gopher_max_top_4_gram": Rule(0.16, 0.4, "fraction", "characters in the most frequent 4-word sequence"),
    **{
        f"gopher_max_repeated_{n}_grams": Rule(web, 0.6, "fraction", f"characters in repeated {n}-word sequences")
        for n, web in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))
    },
    "gopher_min_words": Rule(50, 20, "words", "length"),
    "gopher_max_words": Rule(100_000, False, "words", "length"),
    "gopher_min_mean_word_length": Rule(3, 2, "characters", "mean length of the words"),
    "gopher_max_mean_word_length": Rule(10, 10, "characters", "mean length of the words"),
    "gopher_max_hashes": Rule(0.1, 0.1, "per word", "#"),
    "gopher_max_ellipses": Rule(0.1, False, "per word", "ellipses, which dot leaders are too"),
    "gopher_max_bullet_lines": Rule(0.9, False, "fraction", "lines that begin with a bullet or a dash"),
    "gopher_max_ellipsis_lines": Rule(0.3, 0.5, "fraction", "lines that end in an ellipsis"),
    "gopher_min_alphabetic_words": Rule(0.8, 0.2, "fraction", "words with a letter"),
    "gopher_min_stop_words": Rule(2, False, "words", f"distinct words of: {' '.join(STOP_WORDS)}"),
    "c4_cut_long_word_lines": Rule(1000, False, "characters", "remove lines with a longer word"),
    "c4_cut_citations": Rule(True, False, "switch", "remove [1], [edit] and [citation needed]"),
    "c4_cut_unpunctuated_lines": Rule(
        False, False, "switch", "remove lines that do not end in . ? ! or a quotation mark"
    ),
    "c4_cut_short_lines": Rule(3, False, "words", "remove shorter lines"),
    "c4_cut_javascript_lines": Rule(True, False, "switch", "remove lines that name JavaScript"),
    "c4_cut_policy_lines": Rule(True, False, "switch", "remove lines on cookies, terms of use and privacy policies"),
    "c4_max_lorem_ipsum": Rule(0, 2, "times", "lorem ipsum"),
    "c4_max_curly_brackets": Rule(0, 0.03, "per word", "opening curly brackets"),
    "c4_min_sentences": Rule(5, False, "sentences", "length"),
    "fineweb_min_punctuated_lines": Rule(0.12, False, "fraction", "lines that end in terminal punctuation"),
    "fineweb_max_short_lines": Rule(0.67, False, "fraction", "lines of at most 30 characters"),
    "fineweb_max_repeated_line_chars": Rule(0.01, False, "fraction", "characters in repeated lines"),
    "fineweb_max_newlines": Rule(0.3, 0.7, "per word", "line ends"),
    "domain_max_policy_phrases": Rule(False, 0.04, "per word", "mentions of cookies, terms of use, privacy policies"),
    "domain_min_common_words": Rule(False, 0.03, "fraction", "words that are numbers or stop words, in any case"),
}
TOP_NGRAMS = tuple(f"gopher_max_top_{n}_gram" for n in range(2, 5))
REPEATED_NGRAMS = tuple(f"gopher_max_repeated_{n}_grams" for n in range(5, 11))
SHORT_LINE_CHARS = 30
# Only this many characters of a text, or of a line, are measured, which bounds the memory for its words.
MEASURED_CHARS = 4_000_000

STOPS = tuple(sorted(STOP_WORDS))
COMMON = tuple(sorted({form for word in STOP_WORDS for form in (word, word.capitalize(), word.upper())}))
TERMINALS = tuple(sorted(TERMINAL_PUNCTUATION))
BULLETS, ELLIPSES = ("•", "-"), (ELLIPSIS, "…")
# A full stop before a lower-case letter ends an abbreviation.
SENTENCE_END = re.compile(r"[.!?。！？][\"'”’)\]]*(?:[ \t]+|(?<=[。！？]))(?![a-z])")
LENGTH = np.uint64(255)  # the bits of a word's key that are its length
ODD = bytes(not (i == 32 or 65 <= i < 128 and chr(i).isalnum()) for i in range(256))  # no ASCII letter, no space


class NgramLimits(NamedTuple):
    """The lowest thresholds on the most frequent n-grams of 2 to 4 words, and on repeated ones of 5 to 10."""

    top: float
    repeated: float


class QualityFilter:
    """Apply the rules of a profile, with the thresholds that a recipe overrides.

    Args:
        profile: gives the thresholds that overrides does not.
        overrides: rule -> threshold, in the rule's unit. False turns a rule off; True turns it on with its threshold
            in the profile or, if that has none, in the other profile.

    Raises: RecipeError: an unknown rule, or a threshold that the rule cannot have.
    """

    def __init__(
        self,
        profile: Literal["web", "professional"] = "professional",
        overrides: Mapping[str, float | bool] | None = None,
    ):
        overrides = overrides or {}
        wrong = {name: explain_override(name, value) for name, value in overrides.items()}
        if problems := [f"data.quality.overrides.{name}: {problem}" for name, problem in wrong.items() if problem]:
            raise RecipeError(*problems)
        limits = {name: getattr(rule, profile) for name, rule in RULES.items()}
        for name, value in overrides.items():
            known = (limits[name], RULES[name].web, RULES[name].professional)
            limits[name] = next((limit for limit in known if limit is not False), True) if value is True else value
        used = {name: limit for name, limit in limits.items() if limit is not False}
        self.cuts = {name: limit for name, limit in used.items() if "_cut_" in name}
        self.limits = {name: limit for name, limit in used.items() if "_cut_" not in name}
        self.ngram_limits = NgramLimits(
            min(self.limits.get(name, 1) for name in TOP_NGRAMS),
            min(self.limits.get(name, 1) for name in REPEATED_NGRAMS),
        )

    def apply(self, text: str) -> tuple[str, str | None]:
        """Return the text without removed lines, and the first rule that it breaks or None."""
        kept, measures = self.measure(text)
        for name, limit in self.limits.items():
            measured = measures[name]()
            if measured < limit if "_min_" in name else measured > limit:
                return text, name
        return kept, None

    def measure(self, text: str) -> tuple[str, dict[str, Callable[[], float]]]:
        """Return the text without removed lines, and rule -> function that measures it."""
        measured_text = text[:MEASURED_CHARS]
        words = CountedWords(measured_text)
        measures = measure_words(measured_text, words, self.ngram_limits)
        kept = text
        if self.cuts:
            kept = cut_lines(text, self.cuts)
            measured_text = kept[:MEASURED_CHARS]
            words = CountedWords(measured_text)
        return kept, measures | measure_lines(measured_text, len(words))


def explain_override(name: str, value: float | bool) -> str | None:
    """Return why a rule cannot have this threshold, or None."""
    if name not in RULES:
        nearest = get_close_matches(name, RULES, n=1, cutoff=0)[0]
        return f"unknown rule; did you mean {nearest}? The rules: {', '.join(RULES)}"
    unit = RULES[name].unit
    if isinstance(value, bool):
        return None
    if unit == "switch":
        return f"the rule is on or off, got {value:g}; write true or false"
    if value < 0 or (unit == "fraction" and value > 1):
        possible = "a fraction from 0 to 1" if unit == "fraction" else "a number of at least 0"
        return f"got {value:g}; write {possible}, or false to turn the rule off"
    return None


class CountedWords:
    """The words of a text, and how often each occurs.

    Attributes:
        hashes: of each word.
        lengths: of each word, in characters.
        keys: as `word_keys` gives them, ascending.
        odd: words that are not letters alone -> how often they occur.
    """

    def __init__(self, text: str):
        apart = words_apart(text, plain=False)
        starts, num_bytes, self.hashes = find_words(apart)
        self.lengths = num_bytes
        if not text.isascii():  # without the bytes after a character's first
            continued = np.flatnonzero(np.frombuffer(apart, dtype=np.int8) < -64)
            of_word = np.searchsorted(starts, continued, side="right") - 1
            self.lengths = num_bytes - np.bincount(of_word, minlength=len(starts))
        self.keys = np.sort(word_keys(self.hashes, self.lengths))
        odd_bytes = np.flatnonzero(np.frombuffer(apart.translate(ODD), dtype=bool))
        is_odd = np.zeros(len(starts), dtype=bool)
        is_odd[np.searchsorted(starts, odd_bytes, side="right") - 1] = True
        spans = zip(starts[is_odd].tolist(), (starts + num_bytes)[is_odd].tolist(), strict=True)
        words = b" ".join([apart[start:end] for start, end in spans]).decode().split()
        self.odd = {word: times for word, times in Counter(words).items() if not word.isalpha()}

    def __len__(self) -> int:
        return len(self.hashes)

    def count(self, keys: np.ndarray) -> np.ndarray:
        """Return how often each of some words occurs."""
        return np.searchsorted(self.keys, keys, side="right") - np.searchsorted(self.keys, keys)

    def most_chars(self) -> int:
        """Return the most characters that one of the words takes, each time with a space."""
        is_first = np.ones(len(self) + 1, dtype=bool)
        np.not_equal(self.keys[1:], self.keys[:-1], out=is_first[1:-1])
        bounds = np.flatnonzero(is_first)
        times = (bounds[1:] - bounds[:-1]).astype(np.uint64)
        return int((times * ((self.keys[bounds[:-1]] & LENGTH) + np.uint64(1))).max(initial=0))


def word_keys(hashes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return a number for each word: its hash, with its length, of up to 255 characters, in place of the last bits."""
    return hashes & ~LENGTH | np.minimum(lengths, LENGTH.astype(np.int64)).astype(np.uint64)


@cache
def keys_of(words: tuple[str, ...]) -> np.ndarray:
    """Return the keys of distinct words of ASCII letters."""
    _, lengths, hashes = find_words(" ".join(words).encode())
    return word_keys(hashes, lengths)


def measure_words(text: str, words: CountedWords, limits: NgramLimits) -> dict[str, Callable[[], float]]:
    """Return rule -> function that measures it, for Gopher's rules and for domain_min_common_words."""
    odd = words.odd.items()
    marks = {word: times for word, times in odd if not word.isalnum() and PUNCTUATION_SET.issuperset(word)}
    num_words = len(words) - sum(marks.values())
    num_word_chars = int(words.lengths.sum()) - sum([times * len(word) for word, times in marks.items()])
    each_word = max(len(words), 1)

    @cache
    def lines() -> list[str]:
        return text.splitlines()

    def per_line(count: int) -> float:
        return count / max(len(lines()), 1)

    @cache
    def ellipses() -> int:
        return sum(map(text.count, ELLIPSES))

    def ellipsis_lines() -> int:
        return sum([line.rstrip().endswith(ELLIPSES) for line in lines()]) if ellipses() else 0

    def letterless() -> int:
        return sum([times for word, times in odd if not any(map(str.isalpha, word))])

    def common() -> int:
        numbers = sum([times for word, times in odd if any(map(str.isdigit, word))])
        return numbers + int(words.count(keys_of(COMMON)).sum())

    return measure_repetition(text, words, limits) | {
        "gopher_min_words": lambda: num_words,
        "gopher_max_words": lambda: num_words,
        "gopher_min_mean_word_length": lambda: num_word_chars / max(num_words, 1),
        "gopher_max_mean_word_length": lambda: num_word_chars / max(num_words, 1),
        "gopher_max_hashes": lambda: text.count("#") / each_word,
        "gopher_max_ellipses": lambda: ellipses() / each_word,
        "gopher_max_bullet_lines": lambda: per_line(sum([line.lstrip().startswith(BULLETS) for line in lines()])),
        "gopher_max_ellipsis_lines": lambda: per_line(ellipsis_lines()),
        "gopher_min_alphabetic_words": lambda: (len(words) - letterless()) / each_word,
        "gopher_min_stop_words": lambda: int((words.count(keys_of(STOPS)) > 0).sum()),
        "domain_min_common_words": lambda: common() / each_word,
    }


def count_repeated(parts: list[str]) -> tuple[int, int]:
    """Return how many parts of a text occurred before, and their characters."""
    distinct = set(parts)
    return len(parts) - len(distinct), sum(map(len, parts)) - sum(map(len, distinct))


def measure_repetition(text: str, words: CountedWords, limits: NgramLimits) -> dict[str, Callable[[], float]]:
    """Return rule -> function that measures it, for Gopher's rules on repetition.

    For example, in "a b a b a b" the 2-gram "a b" occurs three times and "b a" twice. The most frequent is "a b": 3
    characters each time with its space, so gopher_max_top_2_gram is 3 * 3 / 11.

    Args:
        text: a document.
        words: its words.
        limits: the lowest thresholds. If an upper bound of what n-grams cover, as a fraction of the text, is no
            higher, the bound is returned for all of them: no rule is broken.
    """
    num_chars = max(len(text), 1)

    @cache
    def repeated_parts(separator: str) -> tuple[float, float]:
        """Return the fractions of the parts, and of the characters, that are in repeated parts."""
        parts = text.split(separator)
        if separator == "\n\n":  # a third line end belongs to no paragraph
            parts = [part.lstrip("\n") for part in parts]
        parts = list(filter(None, parts))
        repeated, repeated_chars = count_repeated(parts)
        return repeated / max(len(parts), 1), repeated_chars / num_chars

    @cache
    def ngrams() -> dict[str, float]:
        return measure_ngrams(num_chars, words, limits)

    return {
        "gopher_max_repeated_paragraphs": lambda: repeated_parts("\n\n")[0],
        "gopher_max_repeated_paragraph_chars": lambda: repeated_parts("\n\n")[1],
        "gopher_max_repeated_lines": lambda: repeated_parts("\n")[0],
        "gopher_max_repeated_line_chars": lambda: repeated_parts("\n")[1],
    } | {name: lambda name=name: ngrams()[name] for name in (*TOP_NGRAMS, *REPEATED_NGRAMS)}


def measure_ngrams(num_chars: int, words: CountedWords, limits: NgramLimits) -> dict[str, float]:
    """Return the measured values of the rules on repeated n-grams; arguments as in measure_repetition."""
    measured: dict[str, float] = {}
    lengths, longest = words.lengths, int(words.lengths.max(initial=0))
    # An n-gram is no more frequent than each of its words.
    top_at_most = 4 * words.most_chars() / num_chars
    are_bounded = top_at_most <= limits.top and longest < LENGTH
    codes = ngram_hashes(words.hashes, 5) if len(words) >= 5 else words.hashes[:0]
    if are_bounded:
        measured |= dict.fromkeys(TOP_NGRAMS, top_at_most)
        ordered = np.sort(codes)
        # Of a 5-gram that occurs n times, n - 1 are counted here, so at most two places for each one counted.
        at_most = 2 * 5 * longest * int(np.count_nonzero(ordered[1:] == ordered[:-1])) / num_chars
        if at_most <= limits.repeated:
            return measured | dict.fromkeys(REPEATED_NGRAMS, at_most)
    starts = np.concatenate(([0], lengths.cumsum()))  # of the words, in characters, separators not counted
    distinct, numbers = np.unique(words.hashes, return_inverse=True)
    # Ten unique words after the end: an n-gram that reaches them is never repeated.
    base = len(distinct) + 10
    numbers = np.concatenate((numbers, np.arange(len(distinct), base)))
    # A repeated n-gram begins with a repeated (n-1)-gram, so each round looks at fewer positions.
    positions, grams = np.arange(len(words)), numbers[: len(words)]
    for n in range(5 if are_bounded else 2, 11):
        if n == 5 and are_bounded:  # the first round
            positions, grams = keep_recurring(positions[: len(codes)], codes)
        else:
            positions, grams = keep_recurring(positions, grams * base + numbers[positions + (n - 1)])
        if n <= 4 and not are_bounded:
            most, first = 1, 0
            if len(grams):
                times = np.bincount(grams)
                most = times.max()
                first = positions[times[grams] == most].min()
            top_chars = most * (starts[first + n] - starts[first] + n - 1) if n <= len(words) else 0
            measured[f"gopher_max_top_{n}_gram"] = top_chars / num_chars
            continue
        # A repeated (n+1)-gram contains repeated n-grams, so what these cover bounds all longer ones.
        covered = np.zeros(len(words), bool)
        for k in range(n):
            covered[positions + k] = True
        at_most = lengths[covered].sum() / num_chars
        if at_most <= limits.repeated:
            return measured | {f"gopher_max_repeated_{longer}_grams": at_most for longer in range(max(n, 5), 11)}
        if n <= 4:
            continue
        repeated = find_repeated(positions, grams, n)
        measured[f"gopher_max_repeated_{n}_grams"] = (starts[repeated + n] - starts[repeated]).sum() / num_chars
    return measured


def keep_recurring(positions: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions whose code is not unique, in any order, and a number for each that equal codes share."""
    order = codes.argsort()
    codes = codes[order]
    as_before = np.zeros(len(codes) + 1, bool)
    np.equal(codes[1:], codes[:-1], out=as_before[1:-1])
    recurs = as_before[:-1] | as_before[1:]
    return positions[order[recurs]], (~as_before[:-1]).cumsum()[recurs]


def find_repeated(positions: np.ndarray, grams: np.ndarray, n: int) -> np.ndarray:
    """Return the positions of n-grams that occurred before, each after the end of the previous one."""
    order = positions.argsort()
    seen, repeated, free = set(), [], 0
    for position, gram in zip(positions[order].tolist(), grams[order].tolist(), strict=True):
        if position >= free:
            if gram in seen:
                repeated.append(position)
                free = position + n
            seen.add(gram)
    return np.array(repeated, dtype=np.int64)


def cut_lines(text: str, cuts: Mapping[str, float]) -> str:
    """Return the lines that C4's rules keep, stripped of surrounding spaces."""
    kept = []
    longest, fewest = cuts.get("c4_cut_long_word_lines", len(text)), cuts.get("c4_cut_short_lines", 0)
    for line in text.splitlines():
        line = line.strip()
        words = line[:MEASURED_CHARS].split()
        if len(words) < fewest or (len(line) > longest and max(map(len, words)) > longest):
            continue
        if "c4_cut_citations" in cuts:
            line = CITATION_REGEX.sub("", line)
        if "c4_cut_unpunctuated_lines" in cuts and (not line.endswith(END_PUNCTUATION) or line.endswith(ELLIPSIS)):
            continue
        lower = line.lower()
        if "c4_cut_javascript_lines" in cuts and "javascript" in lower:
            continue
        if "c4_cut_policy_lines" in cuts and any(phrase in lower for phrase in POLICY_SUBSTRINGS):
            continue
        kept.append(line)
    return "\n".join(kept).strip()


def measure_lines(text: str, num_words: int) -> dict[str, Callable[[], float]]:
    """Return rule -> function that measures it, for C4's and FineWeb's rules and for domain_max_policy_phrases."""
    each_word = max(num_words, 1)

    @cache
    def lines() -> list[str]:
        return [line for line in text.split("\n") if line.strip()]

    @cache
    def lower() -> str:
        return text.lower()

    def per_line(count: int) -> float:
        return count / max(len(lines()), 1)

    def repeated_chars() -> float:
        return count_repeated(lines())[1] / max(len(text) - text.count("\n"), 1)

    return {
        "c4_max_lorem_ipsum": lambda: lower().count("lorem ipsum"),
        "c4_max_curly_brackets": lambda: text.count("{") / each_word,
        "c4_min_sentences": lambda: len(lines()) + sum(1 for _ in SENTENCE_END.finditer(text)),
        "fineweb_min_punctuated_lines": lambda: per_line(sum([line.endswith(TERMINALS) for line in lines()])),
        "fineweb_max_short_lines": lambda: per_line(sum([len(line) <= SHORT_LINE_CHARS for line in lines()])),
        "fineweb_max_repeated_line_chars": repeated_chars,
        "fineweb_max_newlines": lambda: text.count("\n") / each_word,
        "domain_max_policy_phrases": lambda: sum(map(lower().count, POLICY_SUBSTRINGS)) / each_word,
    }
