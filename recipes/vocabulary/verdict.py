# SPDX-License-Identifier: Apache-2.0
"""Compare a tokenizer with others in bytes per token, in numbers and in sentences."""

from collections.abc import Collection

from vocabulary.measures import ratio


MAX_VOCAB_SIZE = 131_072  # of the tokenizers that ours has to beat


def verdict(measured: dict[str, dict], general: Collection[str]) -> dict:
    """Compare the first tokenizer with the others in bytes per token, domain by domain.

    On its own domains it has to beat those of its size up to MAX_VOCAB_SIZE. The sentences also name smaller and
    larger ones that are better.
    """
    about, *others = measured
    size = measured[about]["vocab_size"]
    comparisons, sentences = [], []
    for domain, own in measured[about]["domains"].items():
        rows = [
            {
                "domain": domain,
                "other": name,
                "vocab_size": measured[name]["vocab_size"],
                "bytes_per_token": own["bytes_per_token"],
                "others_bytes_per_token": measured[name]["domains"][domain]["bytes_per_token"],
                # Of the other's tokens for the same text; negative where ours takes more.
                "tokens_saved_fraction": ratio(
                    measured[name]["domains"][domain]["tokens"] - own["tokens"],
                    measured[name]["domains"][domain]["tokens"],
                ),
                "tokens_without_digits_saved_fraction": ratio(
                    without_digits(measured[name]["domains"][domain]) - without_digits(own),
                    without_digits(measured[name]["domains"][domain]),
                ),
                "has_to_beat": domain not in general and size <= measured[name]["vocab_size"] <= MAX_VOCAB_SIZE,
                "beats": own["tokens"] < measured[name]["domains"][domain]["tokens"],
            }
            for name in others
        ]
        comparisons += rows
        sentences += domain_sentences(domain, own["bytes_per_token"], size, rows, domain in general)
    required = [row for row in comparisons if row["has_to_beat"]]
    return {
        "beats_all_it_has_to": all(row["beats"] for row in required) if required else None,
        "sentences": sentences,
        "comparisons": comparisons,
    }


def without_digits(measures: dict) -> float:
    return measures["tokens"] * (1 - measures["digit_tokens_fraction"])


def domain_sentences(domain: str, own: float, size: int, rows: list[dict], is_general: bool) -> list[str]:
    def named(row: dict) -> str:
        return f"{row['other']} (vocabulary {row['vocab_size']:,}, {row['others_bytes_per_token']:.3f})"

    def saved(row: dict) -> str:
        share = 100 * row["tokens_saved_fraction"]
        return f"{abs(share):.1f} % {'fewer' if share >= 0 else 'more'} tokens for the same text"

    start = f"{domain}: {own:.3f} bytes per token with a vocabulary of {size:,}"
    if not rows:
        return [f"{start}; no other tokenizer was measured."]
    rows = sorted(rows, key=lambda row: (-row["others_bytes_per_token"], row["other"]))
    better = [row for row in rows if not row["beats"]]
    if is_general:
        if not better:
            return [f"{start}. This is not its own domain, and it still beats every other; next is {named(rows[0])}."]
        listed = "; ".join(f"{named(row)}, {saved(row)} with ours" for row in better)
        return [f"{start}. This is not its own domain, and these are at least as good on it: {listed}."]
    required = [row for row in rows if row["has_to_beat"]]
    sizes = f"of sizes {size:,} to {MAX_VOCAB_SIZE:,}"
    lost = [row for row in required if not row["beats"]]
    if not required:
        sentences = [f"{start}; no other tokenizer {sizes} was measured."]
    elif not lost:
        sentences = [
            f"{start} beats every other tokenizer {sizes} ({len(required)} measured); the next best is "
            f"{named(required[0])}: {saved(required[0])}."
        ]
    else:
        listed = "; ".join(f"{named(row)}, {saved(row)} with ours" for row in lost)
        sentences = [f"{start} does NOT beat {len(lost)} of the {len(required)} other tokenizers {sizes}: {listed}."]
        by_digits = [row for row in lost if row["tokens_without_digits_saved_fraction"] > 0]
        if by_digits:
            listed = "; ".join(
                f"{row['other']}, {100 * row['tokens_without_digits_saved_fraction']:.1f} % fewer" for row in by_digits
            )
            sentences.append(
                f"{domain}: numbers make the difference, since ours splits them finer; it takes fewer tokens without "
                f"a digit than these: {listed}."
            )
    outside = [row for row in better if not row["has_to_beat"]]
    if outside:
        listed = "; ".join(f"{named(row)}, {saved(row)} with ours" for row in outside)
        sentences.append(f"{domain}: tokenizers outside these sizes that are at least as good: {listed}.")
    return sentences
