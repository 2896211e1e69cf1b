# SPDX-License-Identifier: Apache-2.0
"""The report card of a tokenizer: what it does to held-out text, terms and numbers, beside other tokenizers.

    card = report_card({"domain tokenizer": ours, "Mistral": load_tokenizer("mistralai/...")}, held_out, domains,
                       terms={"legal": read_terms(Path("recipes/legal/terms.txt"))}, sample=training_text)
    write_tokenizer_card(recipe, card, folder)    # README.md, to publish the tokenizer alone

The same input gives the same card. measures.py says how things are counted. Speed, which does not repeat, is measured
apart by `encoding_speed`.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from tokenizers import Tokenizer

from card_text import render_card
from recipe_config import Recipe, RecipeError
from vocabulary.measures import (
    count_tokens,
    first_bytes,
    num_bytes,
    number_cuts,
    ratios,
    term_integrity,
    usage,
    word_spans,
)
from vocabulary.round_trip import round_trip
from vocabulary.verdict import verdict


MAX_HELD_OUT_BYTES = 2_000_000
MAX_SAMPLE_BYTES = 2_000_000


def report_card(
    tokenizers: dict[str, Tokenizer],
    held_out: dict[str, Iterable[str]],
    domains: dict[str, str],
    terms: dict[str, list[str]],
    sample: dict[str, Iterable[str]],
    general: Collection[str] = ("general",),
) -> dict:
    """Measure tokenizers on the same text.

    Args:
        tokenizers: by name; the card is about the first.
        held_out: source -> texts that no tokenizer was trained on; the first MAX_HELD_OUT_BYTES are read.
        domains: source -> its domain.
        terms: domain -> its terms.
        sample: source -> training texts to count each token's use; the first MAX_SAMPLE_BYTES are read.
        general: domains that are not the tokenizer's own.

    Returns: a dict for JSON: the text read, the measures of each tokenizer, and the verdict.

    Raises: RecipeError: a source has no held-out text.
    """
    texts = {source: first_bytes(some, MAX_HELD_OUT_BYTES) for source, some in held_out.items()}
    for source in texts:
        if not any(texts[source]):
            raise RecipeError(f"{source}: no held-out text; raise data.splits.validation_fraction or add text")
    words = {source: [word_spans(text) for text in some] for source, some in texts.items()}
    trained_on = {source: first_bytes(some, MAX_SAMPLE_BYTES) for source, some in sample.items()}
    measured = {}
    for name, tokenizer in tokenizers.items():
        counts = {source: count_tokens(tokenizer, texts[source], words[source]) for source in texts}
        by_domain: dict[str, Counter] = {}
        for source, count in counts.items():
            by_domain.setdefault(domains[source], Counter()).update(count)
        measured[name] = {
            "vocab_size": tokenizer.get_vocab_size(),
            "algorithm": type(tokenizer.model).__name__,
            "sources": {source: ratios(count) for source, count in counts.items()},
            "domains": {domain: ratios(count) for domain, count in by_domain.items()},
            "terms": {domain: term_integrity(tokenizer, some) for domain, some in terms.items()},
            "numbers": number_cuts(tokenizer),
            "round_trip": round_trip(tokenizer),
            "usage": usage(tokenizer, trained_on),
        }
    return {
        "about": next(iter(tokenizers)),
        "held_out": {
            source: {"domain": domains[source], "documents": len(some), "bytes": num_bytes(some)}
            for source, some in texts.items()
        },
        "sample_bytes": {source: num_bytes(some) for source, some in trained_on.items()},
        "tokenizers": measured,
        "verdict": verdict(measured, general),
    }


def write_tokenizer_card(recipe: Recipe, card: dict, folder: Path) -> None:
    """Render tokenizer_card.md into README.md of a folder that holds the tokenizer alone."""
    own = card["tokenizers"][card["about"]]
    front_matter = {
        "license": recipe.hub.shown_license,
        "language": recipe.hub.language,
        "library_name": "transformers",
        "tags": ["tokenizer", *own["domains"]],
    }
    text = render_card(
        Path(__file__).with_name("tokenizer_card.md"),
        front_matter,
        title=f"{', '.join(own['terms'] or own['domains'])} tokenizer",
        card=card,
        own=own,
        recipe=recipe,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
