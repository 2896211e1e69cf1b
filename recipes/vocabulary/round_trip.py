# SPDX-License-Identifier: Apache-2.0
"""Test whether a tokenizer loses text: corner cases of Unicode and fuzzed texts, encoded and decoded."""

import random

from tokenizers import Tokenizer

from vocabulary.measures import NUM_EXAMPLES, byte_tokens, ratio


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


def round_trip(tokenizer: Tokenizer) -> dict:
    """Return which texts decode to themselves, which bytes have a token, and which texts yield special tokens.

    `tokenizers` takes text, not bytes. Fuzzed bytes are therefore read as Latin-1 and as UTF-8 with replacement
    characters. Fuzzed code points include lone marks and every plane.
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
    """Return NUM_FUZZED random texts of at most MAX_FUZZED_CHARACTERS, the same in every call."""
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
