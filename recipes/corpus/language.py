# SPDX-License-Identifier: Apache-2.0
"""Refuse documents in other languages than those wanted.

In:   the text of one document, ISO 639-1 codes of the languages to keep, the probability they must reach.
Out:  why the document is refused, such as language_fr, or None.

    languages = LanguageFilter(["en"], min_probability=0.5)
    reason = languages.refuse(text)

py3langid counts byte sequences that are typical of 139 languages; its model comes with the package, so nothing is
downloaded. It takes all of them for equally likely, so that lists of drugs or citations and Latin phrases, which are
like no language much, would be lost: here the languages to keep are taken to be as likely as all others together.

It is slow, so of a longer text four excerpts are read; a foreign title, quotation or table then decides less, too.
Numbers and punctuation, in which tables and citations are rich, are left out, and capitals are made small where they
prevail, as the model knows few words in capitals.
"""

import re
from collections.abc import Collection
from difflib import get_close_matches
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from recipe_config import RecipeError


EXCERPTS, EXCERPT_CHARS = 4, 250
# Not \W, which takes the vowel signs of Indic scripts for no part of a word.
NOT_LETTERS = re.compile(r"[\x00-@\[-`{-\xbf\u2010-\u206f]+")


class LanguageFilter:
    """Keeps documents that are probably in one of some languages; pickles without the model.

    Args:
        keep: ISO 639-1 codes, such as en.
        min_probability: 0 to 1, of all languages of keep together.

    Raises: RecipeError: a language that the model does not know.
    """

    def __init__(self, keep: Collection[str], min_probability: float = 0.5):
        known = load_model().labels
        problems = []
        for index, code in enumerate(keep):
            if code not in known:
                nearest = get_close_matches(code, known, n=1, cutoff=0)[0]
                problems.append(
                    f"data.languages.keep.{index}: no language is known as {code!r}, did you mean {nearest!r}? "
                    f"Known are {', '.join(sorted(known))}"
                )
        if problems:
            raise RecipeError(*problems)
        self.keep, self.min_probability = frozenset(keep), min_probability

    def refuse(self, text: str) -> str | None:
        """Return language_ and the code of what the document is in, or language_unsure where nothing is likely."""
        words = excerpt(text)
        if not words.strip():
            return None  # numbers alone are in every language
        ranked = load_model().rank(words)
        kept = sum(probability for code, probability in ranked if code in self.keep)
        others = 1 - kept
        weight = max(len(ranked) - len(self.keep), 1) / len(self.keep)  # of a kept language against another
        if kept * weight >= self.min_probability * (kept * weight + others):
            return None
        likeliest, probability = ranked[0]
        return f"language_{likeliest}" if probability >= 0.5 and likeliest not in self.keep else "language_unsure"


@cache
def load_model() -> LanguageIdentifier:
    """Load the model once a process: about 1 second and 110 MB."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def excerpt(text: str) -> str:
    """Return the words of a short text, or of excerpts from its beginning, its middle and its end."""
    if len(text) > EXCERPTS * EXCERPT_CHARS:
        step = (len(text) - EXCERPT_CHARS) // (EXCERPTS - 1)
        text = " ".join(text[start : start + EXCERPT_CHARS] for start in range(0, EXCERPTS * step, step))
    words = NOT_LETTERS.sub(" ", text)
    capitals = sum(map(str.isupper, words))
    return words.lower() if capitals > len(words) / 3 else words
