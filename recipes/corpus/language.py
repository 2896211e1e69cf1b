# SPDX-License-Identifier: Apache-2.0
"""Refuse documents that are not in one of the wanted languages.

In:   the text of one document, ISO 639-1 codes of the languages to keep, their minimum probability.
Out:  the reason to refuse the document, such as language_fr, or None.

    languages = LanguageFilter(["en"], min_probability=0.5)
    reason = languages.refuse(text)

py3langid classifies byte n-grams; its model comes with the package, so nothing is downloaded. Its prior is uniform
over 139 languages, which rejects drug lists, citations and Latin phrases. We give the wanted languages half of the
prior. Its own code walks an automaton from byte to byte; here all bytes of a text are walked to at once.

Still, only four excerpts of a longer text are read, which also gives a foreign title, quotation or table less
weight; if the beginnings of the four leave no doubt about a wanted language, no more. Numbers and punctuation,
frequent in tables and citations, are removed. Text mostly in capitals is lower-cased, because the model knows few
words in capitals.
"""

import math
import re
import unicodedata
from collections.abc import Collection
from difflib import get_close_matches
from functools import cache

import numpy as np
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from recipe_config import RecipeError


EXCERPTS, EXCERPT_CHARS = 4, 250
BEGINNING_CHARS, NO_DOUBT = 64, 0.99
LONGEST_FEATURE = 6  # bytes of the model's n-grams
# Not \W, which matches the vowel signs of Indic scripts.
NOT_LETTERS = re.compile(r"[\x00-@\[-`{-\xbf\u2010-\u206f]+")


class LanguageFilter:
    """Keep documents that are probably in one of some languages; pickles without the model.

    Args:
        keep: ISO 639-1 codes, such as en.
        min_probability: 0 to 1, for the languages of keep together.

    Raises: RecipeError: a code that the model does not know.
    """

    def __init__(self, keep: Collection[str], min_probability: float = 0.5):
        known = load_model().labels
        problems = []
        for index, code in enumerate(keep):
            if code not in known:
                nearest = get_close_matches(code, known, n=1, cutoff=0)[0]
                problems.append(
                    f"data.languages.keep.{index}: unknown language {code!r}; did you mean {nearest!r}? "
                    f"The languages: {', '.join(sorted(known))}"
                )
        if problems:
            raise RecipeError(*problems)
        self.keep, self.min_probability = frozenset(keep), min_probability
        self.places = [place for place, code in enumerate(load_model().labels) if code in self.keep]

    def refuse(self, text: str) -> str | None:
        """Return None for a wanted language, else language_<code>, or language_unsure if no language is likely."""
        enough = max(NO_DOUBT, self.min_probability)
        if len(text) > EXCERPTS * BEGINNING_CHARS and self.rate(excerpt(text, BEGINNING_CHARS))[0] >= enough:
            return None
        words = excerpt(text)
        if not words.strip():
            return None  # numbers alone fit every language
        wanted, likeliest, probability = self.rate(words)
        if wanted >= self.min_probability:
            return None
        return f"language_{likeliest}" if probability >= 0.5 and likeliest not in self.keep else "language_unsure"

    def rate(self, words: str) -> tuple[float, str, float]:
        """Return the probability of the kept languages together, the likeliest language and its own probability."""
        labels, probabilities = load_model().labels, rate_languages(words)
        kept = sum([probabilities[place] for place in self.places])
        others = 1 - kept
        weight = max(len(labels) - len(self.keep), 1) / len(self.keep)  # gives the kept languages half of the prior
        highest = max(probabilities)
        return kept * weight / (kept * weight + others), labels[probabilities.index(highest)], highest


def rate_languages(text: str) -> list[float]:
    """Return the probability of each of the model's labels: what its method `rank` gives, in half the time."""
    model, weights, moves, rows, features, columns = load_arrays()
    encoded = unicodedata.normalize("NFC", text.lower() if text.isupper() else text).encode()
    # The automaton is in the state of the longest feature, or beginning of one, that ends at a byte: no byte further
    # back than LONGEST_FEATURE matters. No feature has the byte that stands before the text.
    padded = np.frombuffer(b"\xff" * (LONGEST_FEATURE - 1) + encoded, dtype=np.uint8)
    states = np.zeros(len(encoded), dtype=np.int64)
    for step in range(LONGEST_FEATURE):
        states = moves[rows[states] + padded[step : step + len(states)]]
    found, counts = np.unique(features[states], return_counts=True)
    found, counts = found[found >= 0], counts[found >= 0].astype(np.float32)
    scores = np.log1p(counts) @ weights[found] + model.nb_pc * bool(len(found))
    scores = scores / math.sqrt(max(len(encoded), 1))
    probabilities = np.bincount(columns, np.exp(scores - scores.max()))
    return (probabilities / probabilities.sum()).tolist()


@cache
def load_model() -> LanguageIdentifier:
    """Load the model once a process; takes about 1 second and 110 MB."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def load_arrays() -> tuple:
    """Return the model; its weights in fp32; its automaton's moves, where each state's begin, and the feature that
    ends in it or -1; the number of each column's label, because a language in two scripts has two columns."""
    model = load_model()
    rows = np.array(model.tk_row, dtype=np.int64) << 8
    columns = [model.labels.index(code) for code in model.nb_classes]
    weights = model.nb_ptc.astype(np.float32)
    return model, weights, np.asarray(model.tk_nextmove), rows, np.array(model.tk_output), np.array(columns)


def excerpt(text: str, chars: int = EXCERPT_CHARS) -> str:
    """Return the words of a text or, of a longer one, those of excerpts of so many characters spread over it."""
    if len(text) > EXCERPTS * chars:
        step = (len(text) - chars) // (EXCERPTS - 1)
        text = " ".join(text[start : start + chars] for start in range(0, EXCERPTS * step, step))
    words = NOT_LETTERS.sub(" ", text)
    capitals = sum(map(str.isupper, words))
    return words.lower() if capitals > len(words) / 3 else words
