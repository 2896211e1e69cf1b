# SPDX-License-Identifier: Apache-2.0
"""The report card of a tokenizer: what it does to held-out text, terms and numbers, beside other tokenizers.

    card = report_card({"domain tokenizer": ours, "Mistral": load_tokenizer("mistralai/...")}, held_out, domains,
                       terms={"legal": read_terms(Path("recipes/legal/terms.txt"))}, sample=training_text)
    write_tokenizer_card(recipe, card, folder)    # README.md, to publish the tokenizer alone

The same input gives the same card; speed, which does not repeat, is measured apart, by encoding_speed().

How it is counted
- Bytes are UTF-8 bytes of the text as it was before any normalisation; no token that a tokenizer would add around a
  text (bos, eos) is counted.
- A word is what corpus/document_families.py calls one, without those that have a digit. Its tokens are those that
  hold a part of it; it is split when there are two or more.
- A token with a digit is one that holds a part of a number: how many there are is a choice of the pre-tokenisation.
- A term is read in a sentence, after "the ", and at the start of a text. Its tokens are those that hold a part of it
  or the space before it; it is whole when there is one.
"""

import random
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import chain, islice
from pathlib import Path
from statistics import median

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from card_text import render_card
from corpus.document_families import WORD
from recipe_config import Recipe, RecipeError


MAX_HELD_OUT_BYTES = 2_000_000
MAX_SAMPLE_BYTES = 2_000_000
MAX_SPEED_BYTES = 1_000_000
MIN_OCCURRENCES = 10
MAX_VOCAB_SIZE = 131_072  # of the general tokenizers that ours has to beat
NUM_WORST_TERMS = 15
NUM_EXAMPLES = 10
CONTEXT = "the"
BYTE_OF_LETTER = {letter: byte for byte, letter in bytes_to_unicode().items()}
NUMBERS = (
    "7",
    "42",
    "365",
    "2023",
    "12345",
    "1,234.56",
    "12,500,000",
    "$1.2 billion",
    "$3.75",
    "5.25%-5.50%",
    "0.5 mg",
    "120/80 mmHg",
    "1999-12-31",
    "28 U.S.C. § 1331",
    "(4.5)",
    "1.2e-5",
)
MAX_NUMBERS_PER_LENGTH = 500
NUM_FUZZED = 500
MAX_FUZZED_CHARACTERS = 64
CORNER_CASES = {
    "empty text": "",
    "NUL": "a\0b",
    "control characters": "\x01\x07\x1b[0m\x7f\x85",
    "lone combining mark": "\u0301",
    "combining mark after a space": "a \u0301b",
    "stacked combining marks": "Z\u0351\u036b\u0343\u036aa\u0327\u0321l\u0322g\u0337o",
    "composed and decomposed é": "\u00e9 e\u0301",
    "decomposed Hangul": "\u1112\u1161\u11ab\u1100\u1173\u11af 한글",
    "joined emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "flag, variation selector, skin tone": "\U0001f1f0\U0001f1f7 \u2764\ufe0f \U0001f44d\U0001f3fd",
    "right to left with marks": "\u200fשלום\u200e \u202bمرحبا\u202c 123",
    "byte order mark": "\ufefftext",
    "replacement character": "\ufffd\ufffd",
    "noncharacters": "\ufffe\uffff\U0010ffff",
    "private use": "\ue000\U000f0000",
    "line ends": "a\r\nb\rc\n\n\nd\u2028e\u2029f\x0bg\x0ch",
    "tabs and runs of spaces": "\t\ta    b \t c",
    "space at the start": " a",
    "spaces at the end": "a   ",
    "only spaces": "    ",
    "uncommon spaces": "1\u00a0000\u2009m\u3000n\u200bo",
    "compatibility characters": "ﬁ ² Å ｆｕｌｌ １２３ ½ №",
    "astral letters": "𝐀𝒷 𐍈 𠮷野家",
    "Thai and Devanagari": "ภาษาไทย क्षत्रिय",
    "Chinese and Japanese": "判例法は、法律である。合同法",
    "capitals": "ǅ İstanbul STRASSE straße ΣΊΣΥΦΟΣ",
    "mark of SentencePiece": "\u2581a\u2581\u2581b",
    "letters of byte-level tokens": "ĠaĊbĉ",
    "text like a byte token": "<0x0A><0xFF>",
    "text like special tokens": "<|endoftext|></s><s>[INST]<unk>",
    "long run of a letter": "a" * 5_000,
    "long run of spaces": " " * 5_000,
}


def read_terms(path: Path) -> list[str]:
    """Read a term list: one term a line; lines that begin with `#` are headings.

    Raises: RecipeError: a term is there twice, were it in another case, or there is none.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    terms = [line for line in lines if line and not line.startswith("#")]
    twice = [term for term, number in Counter(term.casefold() for term in terms).items() if number > 1]
    if twice:
        raise RecipeError(f"{path}: listed more than once: {', '.join(twice)}; each term counts once")
    if not terms:
        raise RecipeError(f"{path}: no terms; write one a line")
    return terms


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
        tokenizers: by name; the first is the one the card is about.
        held_out: source -> texts that no tokenizer was trained on, of which the first MAX_HELD_OUT_BYTES are read.
        domains: source -> the domain it is added up under.
        terms: domain -> its terms.
        sample: source -> training texts, of which the first MAX_SAMPLE_BYTES are read, to count each token's use.
        general: domains that are not the tokenizer's own.

    Returns: JSON: what was read; of each tokenizer its measures; and the verdict over its own domains.

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


def first_bytes(texts: Iterable[str], max_bytes: int) -> list[str]:
    """Return the texts up to max_bytes (UTF-8), the last one truncated between two characters."""
    taken = []
    left = max_bytes
    for text in texts:
        encoded = text.encode()
        if len(encoded) >= left:
            return [*taken, encoded[:left].decode(errors="ignore")]
        left -= len(encoded)
        taken.append(text)
    return taken


def num_bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)


# Text


def word_spans(text: str) -> np.ndarray:
    """Return [start, end) of the words that have no digit, in characters: (words, 2) of int64."""
    spans = [match.span() for match in WORD.finditer(text) if not re.search(r"\d", match[0])]
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def count_tokens(tokenizer: Tokenizer, texts: list[str], words: list[np.ndarray]) -> Counter:
    """Count bytes, tokens, those with a digit, words, the tokens of words, and the split words, over all texts."""
    counts = Counter(bytes=num_bytes(texts))
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    for text, encoding, spans in zip(texts, encodings, words, strict=True):
        # Normalisation may reorder characters within a word; what is searched must rise.
        starts, ends = np.maximum.accumulate(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)).T
        digits = np.array([match.start() for match in re.finditer(r"\d", text)], dtype=np.int64)
        touching = np.searchsorted(starts, spans[:, 1]) - np.searchsorted(ends, spans[:, 0], side="right")
        counts["tokens"] += len(encoding.ids)
        counts["digit_tokens"] += int((np.searchsorted(digits, ends) > np.searchsorted(digits, starts)).sum())
        counts["words"] += len(spans)
        counts["word_tokens"] += int(touching.sum())
        counts["split_words"] += int((touching > 1).sum())
    return counts


def ratios(counts: Counter) -> dict:
    return {
        "bytes": counts["bytes"],
        "tokens": counts["tokens"],
        "bytes_per_token": ratio(counts["bytes"], counts["tokens"]),
        "digit_tokens_fraction": ratio(counts["digit_tokens"], counts["tokens"]),
        "words": counts["words"],
        "tokens_per_word": ratio(counts["word_tokens"], counts["words"]),
        "split_words_fraction": ratio(counts["split_words"], counts["words"]),
    }


def ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


# Terms and numbers


def pieces(tokenizer: Tokenizer, encoding: Encoding, first_character: int = 0) -> list[str]:
    """Return the tokens of an encoding from a character on, as text; bytes that are no text alone as \\xc2."""
    ids = [index for index, (_, end) in zip(encoding.ids, encoding.offsets, strict=True) if end > first_character]
    return [shown(tokenizer, tokenizer.id_to_token(index)) for index in ids]


def shown(tokenizer: Tokenizer, token: str) -> str:
    spelling = byte_spelling(tokenizer)
    if spelling == "letters" and all(letter in BYTE_OF_LETTER for letter in token):
        return bytes(BYTE_OF_LETTER[letter] for letter in token).decode(errors="backslashreplace")
    if spelling == "fallback" and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes.fromhex(token[3:5]).decode(errors="backslashreplace")
    return token if spelling == "letters" else token.replace("\u2581", " ")


def byte_spelling(tokenizer: Tokenizer) -> str | None:
    """Return how bytes are spelled: each as a letter, as <0x0A> where others fail, or (None) not at all."""
    decoder = tokenizer.decoder.__getstate__() if tokenizer.decoder else b""
    if b'"ByteLevel"' in decoder:
        return "letters"
    return "fallback" if b'"ByteFallback"' in decoder else None


def byte_tokens(tokenizer: Tokenizer) -> set[str]:
    """Return the tokens that stand for one byte each, of those 256 that the vocabulary has."""
    spelling = byte_spelling(tokenizer)
    spelled = {"letters": set(BYTE_OF_LETTER), "fallback": {f"<0x{byte:02X}>" for byte in range(256)}}
    return spelled.get(spelling, set()) & tokenizer.get_vocab().keys()


def term_integrity(tokenizer: Tokenizer, terms: list[str]) -> dict:
    """Return how whole a domain's terms stay, and those with the fewest bytes per token, as pieces."""
    in_context = {
        term: pieces(tokenizer, tokenizer.encode(f"{CONTEXT} {term}", add_special_tokens=False), len(CONTEXT))
        for term in terms
    }
    at_start = [len(tokenizer.encode(term, add_special_tokens=False).ids) for term in terms]
    one_word = [len(cut) for term, cut in in_context.items() if not re.search(r"\s", term)]
    cuts = [len(cut) for cut in in_context.values()]
    worst = sorted(terms, key=lambda term: (len(term.encode()) / len(in_context[term]), term))[:NUM_WORST_TERMS]
    return {
        "terms": len(terms),
        "tokens_per_term": ratio(sum(cuts), len(cuts)),
        "whole_fraction": ratio(cuts.count(1), len(cuts)),
        "tokens_per_term_at_start": ratio(sum(at_start), len(at_start)),
        "whole_fraction_at_start": ratio(at_start.count(1), len(at_start)),
        # A tokenizer that cuts at spaces can keep only these whole.
        "terms_without_space": len(one_word),
        "tokens_per_term_without_space": ratio(sum(one_word), len(one_word)),
        "whole_fraction_without_space": ratio(one_word.count(1), len(one_word)),
        "worst": [{"term": term, "pieces": in_context[term]} for term in worst],
    }


def number_cuts(tokenizer: Tokenizer) -> dict:
    """Return how numbers are split, and whether whole numbers of the same length are always split in the same way."""
    start = len(CONTEXT) + 1
    lengths = {}
    for digits in range(1, 7):
        numbers = range(10 ** (digits - 1), 10**digits, max(1, 9 * 10 ** (digits - 1) // MAX_NUMBERS_PER_LENGTH))
        encodings = tokenizer.encode_batch([f"{CONTEXT} {number}" for number in numbers], add_special_tokens=False)
        cuts = Counter(
            "+".join(str(end - max(begin, start)) for begin, end in encoding.offsets if end > start)
            for encoding in encodings
        )
        cut, number = min(cuts.items(), key=lambda item: (-item[1], item[0]))
        lengths[str(digits)] = {"commonest_cut": cut, "fraction": ratio(number, len(numbers)), "cuts": len(cuts)}
    examples = {
        text: pieces(tokenizer, tokenizer.encode(f"{CONTEXT} {text}", add_special_tokens=False), len(CONTEXT))
        for text in NUMBERS
    }
    return {
        "consistent": all(length["cuts"] == 1 for length in lengths.values()),
        "by_digits": lengths,
        "examples": examples,
    }


# Losslessness


def round_trip(tokenizer: Tokenizer) -> dict:
    """Return which texts decode to themselves, whether each byte has a token, and which text yields special tokens.

    `tokenizers` takes text, so fuzzed bytes come as Latin-1 text and as what is left of them after UTF-8 decoding
    with replacement; any code points at all, lone marks among them, come as fuzzed Unicode.
    """
    fuzzed = {kind: fuzz(kind) for kind in ("code points", "bytes as Latin-1", "bytes read as UTF-8")}
    vocabulary = tokenizer.get_vocab()
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    yielding = [
        content
        for content in sorted(special)
        if vocabulary[content] in tokenizer.encode(f"a {content} b", add_special_tokens=False).ids
    ]
    failures = {kind: [text for text in texts if not survives(tokenizer, text)] for kind, texts in fuzzed.items()}
    corner_failures = [name for name, text in CORNER_CASES.items() if not survives(tokenizer, text)]
    return {
        "exact": not corner_failures and not any(failures.values()),
        "fuzzed": {
            kind: {
                "texts": NUM_FUZZED,
                "exact_fraction": ratio(NUM_FUZZED - len(failures[kind]), NUM_FUZZED),
                "shortest_failure": ascii(min(failures[kind], key=len)) if failures[kind] else None,
            }
            for kind in fuzzed
        },
        "corner_cases": len(CORNER_CASES),
        "corner_failures": corner_failures,
        "bytes_with_a_token": len(byte_tokens(tokenizer)),
        "special_tokens": len(special),
        "special_tokens_yielded_by_text": len(yielding),
        "yielded_examples": yielding[:NUM_EXAMPLES],
    }


def survives(tokenizer: Tokenizer, text: str) -> bool:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return tokenizer.decode(ids, skip_special_tokens=False) == text


def fuzz(kind: str) -> list[str]:
    """Return NUM_FUZZED random texts of up to MAX_FUZZED_CHARACTERS, the same ones always."""
    generator = random.Random(0)
    sizes = [generator.randint(1, MAX_FUZZED_CHARACTERS) for _ in range(NUM_FUZZED)]
    if kind == "bytes as Latin-1":
        return [generator.randbytes(size).decode("latin-1") for size in sizes]
    if kind == "bytes read as UTF-8":
        return [generator.randbytes(size).decode(errors="replace") for size in sizes]
    # Each text from one of: ASCII, combining marks among letters, the basic plane, all planes.
    alphabets = [
        lambda: chr(generator.randrange(0x80)),
        lambda: chr(generator.choice([generator.randrange(0x250), generator.randrange(0x300, 0x370)])),
        lambda: chr(generator.choice([generator.randrange(0xD800), generator.randrange(0xE000, 0x10000)])),
        lambda: chr(generator.choice([generator.randrange(0xD800), generator.randrange(0xE000, 0x110000)])),
    ]
    return ["".join(alphabets[index % 4]() for _ in range(size)) for index, size in enumerate(sizes)]


# Use and speed


def usage(tokenizer: Tokenizer, sample: dict[str, list[str]]) -> dict:
    """Count the tokens that training text never uses, or uses fewer than MIN_OCCURRENCES times; without added
    tokens."""
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
    counts = np.zeros(max(vocabulary) + 1, dtype=np.int64)
    for texts in sample.values():
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), dtype=np.int64)
        counts += np.bincount(ids, minlength=len(counts))
    entries = sorted(vocabulary.keys() - tokenizer.get_added_tokens_decoder().keys())
    single_bytes = byte_tokens(tokenizer)
    never = [index for index in entries if not counts[index]]
    others = (vocabulary[index] for index in never if vocabulary[index] not in single_bytes)
    rare = [index for index in entries if 0 < counts[index] < MIN_OCCURRENCES]
    return {
        "sample_tokens": int(counts.sum()),
        "entries": len(entries),
        "never_used": len(never),
        "never_used_fraction": ratio(len(never), len(entries)),
        "never_used_single_bytes": sum(vocabulary[index] in single_bytes for index in never),
        "min_occurrences": MIN_OCCURRENCES,
        "under_trained": len(rare),
        "under_trained_fraction": ratio(len(rare), len(entries)),
        "never_used_examples": [shown(tokenizer, token) for token in islice(others, NUM_EXAMPLES)],
    }


def encoding_speed(tokenizer: Tokenizer, texts: Iterable[str], repetitions: int = 3) -> dict:
    """Measure one thread's speed on the first MAX_SPEED_BYTES, text by text: the median, in MB (10^6 bytes) a second.

    It differs from run to run, so it belongs in no file that a later stage is made from.
    """
    some = first_bytes(texts, MAX_SPEED_BYTES)
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        for text in some:
            tokenizer.encode(text, add_special_tokens=False)
        seconds.append(time.perf_counter() - start)
    return {"bytes": num_bytes(some), "megabytes_per_second": round(num_bytes(some) / 1e6 / median(seconds), 2)}


# Verdict


def verdict(measured: dict[str, dict], general: Collection[str]) -> dict:
    """Compare the first tokenizer with the others in bytes per token, domain by domain.

    Those it has to beat, on its own domains, have its size or a larger one up to MAX_VOCAB_SIZE; that a smaller or a
    larger one is better is included.
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
                # Of the tokens that the other takes for the same text; below 0 where ours takes more.
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
            return [f"{start}, not its own domain, and still more than every other here; next is {named(rows[0])}."]
        listed = "; ".join(f"{named(row)}, {saved(row)} with ours" for row in better)
        return [f"{start}. It is not its own domain, and there these are at least as good: {listed}."]
    required = [row for row in rows if row["has_to_beat"]]
    sizes = f"of sizes {size:,} to {MAX_VOCAB_SIZE:,}"
    lost = [row for row in required if not row["beats"]]
    if not required:
        sentences = [f"{start}; no other tokenizer {sizes} was measured."]
    elif not lost:
        sentences = [
            f"{start} beats every other measured one {sizes} ({len(required)}); the next best is "
            f"{named(required[0])}: {saved(required[0])}."
        ]
    else:
        listed = "; ".join(f"{named(row)}, {saved(row)} with ours" for row in lost)
        sentences = [
            f"{start} does NOT beat {len(lost)} of the {len(required)} other measured ones {sizes}: {listed}."
        ]
        by_digits = [row for row in lost if row["tokens_without_digits_saved_fraction"] > 0]
        if by_digits:
            listed = "; ".join(
                f"{row['other']}, {100 * row['tokens_without_digits_saved_fraction']:.1f} % fewer" for row in by_digits
            )
            sentences.append(
                f"{domain}: that is the numbers, which ours cuts finer; of tokens without a digit it takes fewer than "
                f"these: {listed}."
            )
    outside = [row for row in better if not row["has_to_beat"]]
    if outside:
        listed = "; ".join(f"{named(row)}, {saved(row)} with ours" for row in outside)
        sentences.append(f"{domain}: at least as good outside these sizes: {listed}.")
    return sentences


# The card to publish


def write_tokenizer_card(recipe: Recipe, card: dict, folder: Path) -> None:
    """Render tokenizer_card.md into README.md of a folder that holds the tokenizer alone."""
    own = card["tokenizers"][card["about"]]
    front_matter = {
        "license": recipe.hub.license,
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
