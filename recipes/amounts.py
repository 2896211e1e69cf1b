# SPDX-License-Identifier: Apache-2.0
"""Amounts with units, such as 5GB, 7 days or $500, as numbers: bytes, hours, US dollars."""

import re
from fractions import Fraction
from typing import Any


NUMBER = r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
BYTE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BINARY_UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
HOUR_UNITS = {"MIN": 1 / 60, "MINUTE": 1 / 60, "H": 1, "HOUR": 1, "D": 24, "DAY": 24, "WEEK": 7 * 24}


def whole_number(value: Any) -> Any:
    """Convert `2e9`, a float in YAML, to an int; leave everything else to strict validation."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_amount(value: Any, units: dict[str, float], example: str) -> Any:
    """Return the number that a text such as `5GB` or `7 days` states; leave a number to strict validation."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(rf"{NUMBER} ?([A-Za-z]+)", value.strip().replace(",", "").replace("_", ""))
    unit = found and next((name for name in (found[2].upper(), found[2].upper().rstrip("S")) if name in units), None)
    if unit is None:
        raise ValueError(f"should be a number or an amount such as {example}")
    return float(Fraction(found[1]) * units[unit])  # exact, or 0.067GB would not be whole


def read_bytes(value: Any) -> Any:
    return whole_number(read_amount(value, BYTE_UNITS | BINARY_UNITS, "5GB"))


def read_hours(value: Any) -> Any:
    return read_amount(value, HOUR_UNITS, "'7 days'")


def read_money(value: Any) -> Any:
    return read_amount(
        f"{value[1:]} USD" if isinstance(value, str) and value[:1] == "$" else value, {"USD": 1}, "$500"
    )
