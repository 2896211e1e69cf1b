# SPDX-License-Identifier: Apache-2.0
"""Measure a tokenizer on text: bytes per token, split words, whole terms, how numbers are split, unused tokens, speed.

How it is counted
- Bytes are UTF-8 bytes of the text before any normalisation. Tokens that a tokenizer adds around a text (bos, eos) are
  not counted.
- A word is a word of corpus/words.py without a digit. Its tokens are those that hold a part of it. It is
  split when there are two or more.
- A token with a digit holds a part of a number. The pre-tokenization decides how many there are.
- A term is read in a sentence, after "the ", and at the start of a text. Its tokens are those that hold a part of it
  or the space before it. It is whole when there is one.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from statistics import median

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from corpus.words import WORD
from recipe_config import RecipeError
from vocabulary.bulk_encoding import encode_all


MAX_SPEED_BYTES = 1_000_000
MIN_OCCURRENCES = 10
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


# Text


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


def word_spans(text: str) -> np.ndarray:
    """Return [start, end) in characters of the words without a digit: (words, 2) of int64."""
    spans = [match.span() for match in WORD.finditer(text) if not re.search(r"\d", match[0])]
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def count_tokens(tokenizer: Tokenizer, texts: list[str], words: list[np.ndarray]) -> Counter:
    """Count bytes, tokens, tokens with a digit, words, tokens of words, and split words over all texts."""
    counts = Counter(bytes=num_bytes(texts))
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    for text, encoding, spans in zip(texts, encodings, words, strict=True):
        # Normalisation may reorder characters within a word, and searchsorted needs ascending offsets.
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


# Tokens as text


def pieces(tokenizer: Tokenizer, encoding: Encoding, first_character: int = 0) -> list[str]:
    """Return the tokens of an encoding from a character on, as text; a part of a character is written as \\xc2."""
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
    """Return how a vocabulary spells bytes: "letters" for each byte, "fallback" for tokens such as <0x0A>, or None."""
    decoder = tokenizer.decoder.__getstate__() if tokenizer.decoder else b""
    if b'"ByteLevel"' in decoder:
        return "letters"
    return "fallback" if b'"ByteFallback"' in decoder else None


def byte_tokens(tokenizer: Tokenizer) -> set[str]:
    """Return the tokens of the vocabulary that stand for one byte each, at most 256."""
    spelling = byte_spelling(tokenizer)
    spelled = {"letters": set(BYTE_OF_LETTER), "fallback": {f"<0x{byte:02X}>" for byte in range(256)}}
    return spelled.get(spelling, set()) & tokenizer.get_vocab().keys()


# Terms and numbers


def read_terms(path: Path) -> list[str]:
    """Read a term list: one term a line; lines that begin with `#` are headings.

    Raises: RecipeError: there is no term, or one is listed twice, in whatever case.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    terms = [line for line in lines if line and not line.startswith("#")]
    twice = [term for term, number in Counter(term.casefold() for term in terms).items() if number > 1]
    if twice:
        raise RecipeError(f"{path}: listed more than once: {', '.join(twice)}; each term counts once")
    if not terms:
        raise RecipeError(f"{path}: no terms; write one a line")
    return terms


def term_integrity(tokenizer: Tokenizer, terms: list[str]) -> dict:
    """Return how many tokens a domain's terms take, and the terms with the fewest bytes per token as pieces."""
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
        # A tokenizer that splits at spaces can keep only these whole.
        "terms_without_space": len(one_word),
        "tokens_per_term_without_space": ratio(sum(one_word), len(one_word)),
        "whole_fraction_without_space": ratio(one_word.count(1), len(one_word)),
        "worst": [{"term": term, "pieces": in_context[term]} for term in worst],
    }


def number_cuts(tokenizer: Tokenizer) -> dict:
    """Return how numbers are split, and whether all whole numbers of one length are split in the same way."""
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


# Use and speed


def usage(tokenizer: Tokenizer, sample: dict[str, list[str]]) -> dict:
    """Count the tokens that training text never uses, or uses fewer than MIN_OCCURRENCES times, without added ones."""
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items()}
    ids, _ = encode_all(list(chain.from_iterable(sample.values())), tokenizer)
    counts = np.bincount(ids, minlength=max(vocabulary) + 1)
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
    """Measure one thread's speed on the first MAX_SPEED_BYTES: the median, in MB (10^6 bytes) a second.

    Speed differs from run to run, so it belongs in no file that a later stage reads.
    """
    some = first_bytes(texts, MAX_SPEED_BYTES)
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        for text in some:
            tokenizer.encode(text, add_special_tokens=False)
        seconds.append(time.perf_counter() - start)
    return {"bytes": num_bytes(some), "megabytes_per_second": round(num_bytes(some) / 1e6 / median(seconds), 2)}
