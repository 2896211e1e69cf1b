# SPDX-License-Identifier: Apache-2.0
"""The date of an example, from the field that data.sources[].date_field names."""

import re
from datetime import date


DAY = re.compile(
    r"(\d{4})(-?)(\d\d)\2(\d\d)"
    r"([T ]\d\d:?\d\d(:?\d\d([.,]\d+)?)? ?(Z|UTC|GMT|[+-]\d\d(:?\d\d)?)?)?",
    re.ASCII,
)
MONTH_OR_YEAR = re.compile(r"(\d{4})(?:-(\d\d))?", re.ASCII)


def document_date(example: dict, field: str) -> str | None:
    """Return the day, month or year in a field of an example, as precise as the field: 2023-05-31, 2023-05 or 2023.

    The field may be a date or time of Python (as from Parquet), a year as a number, or a text: one of those three
    forms, 20230531, or a time, reduced to the day in its own time zone. Return None if the field is missing, null or
    blank.

    Raises: ValueError: anything else, such as 31/05/2023, whose form is ambiguous, or 2023-02-30.
    """
    value = example.get(field)
    if isinstance(value, date):  # also a datetime or a pandas Timestamp
        return date(value.year, value.month, value.day).isoformat()
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    text = value.strip() if isinstance(value, str) else repr(value)
    try:
        if found := DAY.fullmatch(text):
            return date(int(found[1]), int(found[3]), int(found[4])).isoformat()
        if found := MONTH_OR_YEAR.fullmatch(text):
            date(int(found[1]), int(found[2] or 1), 1)
            return text
    except ValueError:
        pass  # the right form, but no such day
    raise ValueError(f"{field}: {text[:40]!r} is not a day, month or year such as 2023-05-31, 2023-05 or 2023")
