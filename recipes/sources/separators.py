# SPDX-License-Identifier: Apache-2.0
"""Divide a text that holds many documents at data.sources[].document_separator, and count markers left in texts."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain


# What models and corpora write between texts or turns.
MARKERS = re.compile(
    r"<\|(?:endoftext|end_of_text|begin_of_text|startoftext|endofprompt|im_start|im_end|eot_id|end|eom_id)\|>"
    r"|</?s>|<(?:eos|bos|pad|unk)>|\[(?:EOS|BOS|CLS|SEP)\]|<\N{FULLWIDTH VERTICAL LINE}end\N{LOWER ONE EIGHTH BLOCK}of"
    r"\N{LOWER ONE EIGHTH BLOCK}sentence\N{FULLWIDTH VERTICAL LINE}>"
)
# A match that ends nearer to the end of what was read may be longer in the whole text; no match is longer than this.
LOOKAHEAD_CHARACTERS = 1 << 12
# What a regular expression may look at before a document's start.
CONTEXT_CHARACTERS = 64


def compile_separator(separator: str) -> re.Pattern:
    """Return the pattern of a separator: a regular expression between slashes, or a text as it is."""
    if len(separator) > 2 and separator.startswith("/") and separator.endswith("/"):
        return re.compile(separator[1:-1], re.MULTILINE)
    return re.compile(re.escape(separator))


def split_text(pieces: Iterable[str], separator: re.Pattern, most_characters: int) -> Iterator[str | None]:
    """Yield the texts between separators that are more than blank; None for a text that is too long.

    Args:
        pieces: of the whole text, in order; only the current document is in memory.
        separator: what divides; it belongs to no document.
        most_characters: of a document.
    """
    text, start, searched, is_too_long = "", 0, 0, False
    for piece in chain(pieces, [None]):
        text += piece or ""
        end = len(text) if piece is None else len(text) - LOOKAHEAD_CHARACTERS
        for match in separator.finditer(text, searched):
            if match.end() > end:
                break
            yield from whole_document(text[start : match.start()], is_too_long)
            start = searched = match.end()
            is_too_long = False
        if piece is None:
            yield from whole_document(text[start:], is_too_long)
            return
        searched = max(searched, end - LOOKAHEAD_CHARACTERS)
        if searched - start > most_characters:
            start, is_too_long = searched, True
        dropped = max(start - CONTEXT_CHARACTERS, 0)
        text, start, searched = text[dropped:], start - dropped, searched - dropped


def whole_document(text: str, is_too_long: bool) -> list[str | None]:
    if is_too_long:
        return [None]
    return [text] if text.strip() else []


def count_markers(text: str) -> Counter:
    """Return how often each marker stands in a text."""
    return Counter(MARKERS.findall(text)) if "<" in text or "[" in text else Counter()
