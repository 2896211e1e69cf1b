# SPDX-License-Identifier: Apache-2.0
"""Redact what a model wrote before it is published: a model can repeat personal data of its training text.

The samples of results.json and of report.html pass through the recipe's data.personal_data and the `redact` of its
data.py, as its documents did; the model card takes its samples from results.json. Files of the run stay as they are.
"""

import html
import re
from collections.abc import Callable
from pathlib import Path

from corpus.personal_data import Redactor
from corpus.reading import load_redact
from recipe_config import Recipe, RecipeError


SOURCE = "generated"  # what redact(text, source) is given as the source of a sample
LEFT_OUT = "(left out: personal data)"
# The continuations in report.html: after a prompt, perhaps with passages underlined, and in the table of steps.
IN_REPORT = re.compile(
    r'(?P<start><blockquote><strong>[^<]*</strong>|<td class="text long">)'
    r"(?P<text>(?:[^<]|</?u>)*)(?P<end></blockquote>|</td>)"
)


def sample_redactor(recipe: Recipe) -> Callable[[str], str]:
    """Return what redacts a sample.

    Raises: RecipeError: data.py cannot be imported.
    """
    settings, script = recipe.data.personal_data, recipe.data.extract_text
    patterns = settings and Redactor(settings.profile, settings.actions)
    defines_redact = script and re.search(r"\bredact\b", Path(script).read_text(encoding="utf-8"))
    own = load_redact(script) if defines_redact else None

    def redact(text: str) -> str:
        text = patterns.apply(text)[0] if patterns else text
        if text and own:
            try:
                text = own(text, SOURCE)
            except Exception as error:  # whatever a user's file raises
                raise RecipeError(f"{script}: redact raises {type(error).__name__}: {error}, on a sample") from error
        return LEFT_OUT if text is None else text

    return redact


def redact_results(results: dict, redact: Callable[[str], str]) -> int:
    """Redact the samples of results.json in place, and return how many changed."""
    changed = 0
    for sample in results["samples"]:
        before, sample["text"] = sample["text"], redact(sample["text"])
        changed += sample["text"] != before
    return changed


def redact_report(page: str, redact: Callable[[str], str]) -> str:
    """Return report.html with its samples redacted; one that changes loses its underlined passages."""

    def replace(match: re.Match) -> str:
        text = html.unescape(re.sub("</?u>", "", match["text"]))
        redacted = redact(text)
        return match[0] if redacted == text else match["start"] + html.escape(redacted) + match["end"]

    return IN_REPORT.sub(replace, page)
