# SPDX-License-Identifier: Apache-2.0
"""Refuse documents that are not in one of the wanted languages.

In:   the text of one document, ISO 639-1 codes of the languages to keep, their minimum probability.
Out:  the reason to refuse the document, such as language_fr, or None.

    languages = LanguageFilter(["en"], min_probability=0.5)
    reason = languages.refuse(text)

py3langid classifies byte n-grams; its model comes with the package, so nothing is downloaded. Its prior is uniform
over 139 languages, which rejects drug lists, citations and Latin phrases. We give the wanted languages half of the
prior.

It is slow, so only four excerpts of a longer text are read, which also gives a foreign title, quotation or table less
weight; if the beginnings of the four leave no doubt about a wanted language, no more. Numbers and punctuation,
frequent in tables and citations, are removed. Text mostly in capitals is lower-cased, because the model knows few
words in capitals.
"""

import re
from collections.abc import Collection
from difflib import get_close_matches
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from recipe_config import RecipeError


EXCERPTS, EXCERPT_CHARS = 4, 250
BEGINNING_CHARS, NO_DOUBT = 64, 0.99
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
        ranked = load_model().rank(words)
        kept = sum(probability for code, probability in ranked if code in self.keep)
        others = 1 - kept
        weight = max(len(ranked) - len(self.keep), 1) / len(self.keep)  # gives the kept languages half of the prior
        return kept * weight / (kept * weight + others), *ranked[0]


@cache
def load_model() -> LanguageIdentifier:
    """Load the model once a process; takes about 1 second and 110 MB."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def excerpt(text: str, chars: int = EXCERPT_CHARS) -> str:
    """Return the words of a text or, of a longer one, those of excerpts of so many characters spread over it."""
    if len(text) > EXCERPTS * chars:
        step = (len(text) - chars) // (EXCERPTS - 1)
        text = " ".join(text[start : start + chars] for start in range(0, EXCERPTS * step, step))
    words = NOT_LETTERS.sub(" ", text)
    capitals = sum(map(str.isupper, words))
    return words.lower() if capitals > len(words) / 3 else words
