# SPDX-License-Identifier: Apache-2.0
"""The text of a row: in a field that text_field names, or in columns that text_template joins.

Where there is none, the message names the fields that are there and proposes one of them."""

import re

from recipe_config import Source
from sources.text_encoding import find_encoding


PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
# Names of fields that hold the text, likeliest first.
USUAL_FIELDS = ("text", "content", "contents", "body", "document", "article", "full_text", "messages", "conversations")
SHOWN_FIELDS, SHOWN_CHARACTERS, DEPTH = 12, 40, 3


def set_text(example: dict, source: Source) -> dict | str:
    """Return a row with its text, None if it has none, in `text`; or why what the source names is no text."""
    try:
        if source.text_field:
            if not {source.text_field, source.text_field.partition(".")[0]} & set(example):
                return f"no field {source.text_field}; {describe_fields(example)}"
            text = as_text(look_up(example, source.text_field), source.text_field)
        else:
            text = fill_template(example, source.text_template)
    except ValueError as error:
        reason, path = error.args
        return reason + (propose(look_up(example, path), path) or f"; {describe_fields(example)}")
    return {**example, "text": text}


def has_text(example: dict, source: Source) -> bool:
    """Return whether a row has a text where the source says it is, or else in `text`."""
    if source.text_field is None and source.text_template is None:
        return isinstance(example.get("text"), str)
    found = set_text(example, source)
    return isinstance(found, dict) and found["text"] is not None


def look_up(value: object, path: str) -> object:
    """Return the value at a dotted path, of each element where there is a list on the way; None if it is not there."""
    if isinstance(value, list | tuple):
        return [look_up(item, path) for item in value]
    if not isinstance(value, dict):
        return None
    if path in value:
        return value[path]
    first, _, rest = path.partition(".")
    return look_up(value.get(first), rest) if rest else None


def fill_template(example: dict, template: str) -> str | None:
    """Return a template with the fields of a row; None if the row has none of them. Numbers become text here."""
    values = {}
    for path in PLACEHOLDER.findall(template):
        value = look_up(example, path)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        values[path] = str(value) if is_number else as_text(value, path) or ""
    return PLACEHOLDER.sub(lambda found: values[found[1]], template) if any(values.values()) else None


def as_text(value: object, path: str) -> str | None:
    """Return a text, paragraphs or a conversation as one text; None for nothing.

    Raises: ValueError: another kind of value; with the reason and the path.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return decode_bytes(value, path)
    if isinstance(value, list | tuple):
        parts = [as_message(item) if isinstance(item, dict) else item for item in value if item is not None]
        parts = [as_text(part, path) if isinstance(part, list | tuple | bytes) else part for part in parts]
        if all(isinstance(part, str) for part in parts):
            return "\n\n".join(part for part in parts if part.strip()) or None
    raise ValueError(f"field {path} holds {kind_of(value)}", path)


def as_message(item: dict) -> object:
    """Return a message of a conversation as `role: content`, a paragraph as its text, anything else as it is."""
    content = item.get("content", item.get("value", item.get("text")))
    if isinstance(content, list):  # parts of a message, some of which are images
        content = "\n\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    role = item.get("role", item.get("from"))
    if not isinstance(content, str):
        return item
    return f"{role}: {content}" if isinstance(role, str) else content


def decode_bytes(content: bytes, path: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = find_encoding(content)
        if encoding.is_certain:
            return content.decode(encoding.name)
        perhaps = f"; perhaps {encoding.name}" if encoding.name else ""
        raise ValueError(f"field {path} holds bytes that are not UTF-8{perhaps}", path) from error


def kind_of(value: object) -> str:
    """Return what a value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, dict):
        return f"a mapping with {name_fields(value)}"
    if isinstance(value, list | tuple):
        if value and all(isinstance(item, dict) and isinstance(as_message(item), str) for item in value):
            return "a conversation or list of paragraphs"
        kinds = list(dict.fromkeys(kind_of(item).partition(" with ")[0] for item in value))
        return f"a list that holds {' and '.join(kinds[:3])}" if kinds else "an empty list"
    return f"a value of type {type(value).__name__}"


def name_fields(row: dict) -> str:
    names = [str(name)[:SHOWN_CHARACTERS] for name in row if name not in ("path", "converted_from")]
    more = f" and {len(names) - SHOWN_FIELDS} more" if len(names) > SHOWN_FIELDS else ""
    return f"the fields {', '.join(names[:SHOWN_FIELDS])}{more}" if names else "no field"


def describe_fields(row: dict) -> str:
    """Return which fields a row without text has and what they hold, with a proposal."""
    fields = {name: value for name, value in row.items() if name not in ("path", "converted_from")}
    shown = [
        f"{str(name)[:SHOWN_CHARACTERS]} ({kind_of(value)})"
        for name, value in fields.items()
        if value not in (None, "")
    ]
    more = f" and {len(shown) - SHOWN_FIELDS} more" if len(shown) > SHOWN_FIELDS else ""
    return f"the fields are {', '.join(shown[:SHOWN_FIELDS]) or 'all null'}{more}{propose(fields, '')}"


def propose(value: object, path: str) -> str:
    """Return `; set text_field: ...` for the likeliest text in a value, or nothing."""
    found = list(find_texts(value, path, DEPTH))
    if not found:
        return ""
    order = {name: rank for rank, name in enumerate(USUAL_FIELDS)}
    best = min(found, key=lambda entry: (order.get(entry[0].rpartition(".")[2], len(order)), -entry[1]))
    return f"; set text_field: {best[0]}"


def find_texts(value: object, path: str, depth: int):
    """Yield (path, length) of the texts in a value."""
    if isinstance(value, dict) and depth:
        for name, inner in value.items():
            yield from find_texts(inner, f"{path}.{name}".lstrip("."), depth - 1)
    elif (
        isinstance(value, list) and value and isinstance(value[0], dict) and not isinstance(as_message(value[0]), str)
    ):
        yield from find_texts(value[0], path, depth)
    elif path:
        try:
            text = as_text(value, path)
        except ValueError:
            return
        if text and text.strip():
            yield path, len(text)
