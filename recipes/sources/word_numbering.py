# SPDX-License-Identifier: Apache-2.0
"""The numbers that Word puts before paragraphs (1., 1.1, (a), IV.), which stand nowhere in its text.

Clauses are cited by them. The rules are those of ECMA-376, part 1, 17.9: a paragraph or its style names a list and a
level; a level has a format and a text such as `%1.%2`; it starts again after a paragraph of a higher level.
"""

import re


WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl")) + (
    *((10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")),
)


class Numbering:
    """Count the numbered paragraphs of a document.

    Args:
        numbering: root element of word/numbering.xml; None: nothing is numbered.
        styles: root element of word/styles.xml.
    """

    def __init__(self, numbering, styles):
        self.styles = {style.get(f"{WORD}styleId"): style for style in styles.iter(f"{WORD}style")}
        self.default_style = next((name for name, style in self.styles.items() if is_default(style)), None)
        self.lists = (
            {} if numbering is None else {num.get(f"{WORD}numId"): num for num in numbering.iter(f"{WORD}num")}
        )
        abstract = [] if numbering is None else list(numbering.iter(f"{WORD}abstractNum"))
        self.abstract = {element.get(f"{WORD}abstractNumId"): element for element in abstract}
        self.levels: dict[str, dict[int, dict]] = {}
        self.counters: dict[str, dict[int, int]] = {}
        self.restarted: set[tuple[str, int]] = set()

    def label(self, paragraph) -> str:
        """Return the number of the next paragraph with the space after it; empty where it has none."""
        if not self.lists:
            return ""
        number, level = self.find_list(paragraph)
        if number not in self.lists:
            return ""
        if number not in self.levels:
            self.levels[number] = self.read_levels(number)
        levels = self.levels[number]
        if level not in levels:
            return ""
        counters = self.count(number, level)
        this = levels[level]
        if this["format"] in ("bullet", "none"):
            return ""

        def written(found: re.Match) -> str:
            other = int(found[1]) - 1
            form = levels[other]["format"] if other in levels and not this["is_legal"] else "decimal"
            return write_number(counters.get(other, 1), form)

        text = re.sub(r"%([1-9])", written, this["text"])
        return text + " " * (bool(text) and this["suffix"] != "nothing")

    def count(self, number: str, level: int) -> dict[int, int]:
        """Count a paragraph of a list at a level, and return the counters of all levels."""
        levels = self.levels[number]
        counters = self.counters.setdefault(levels[level]["counters"], {})
        restart = levels[level]["override"]
        if restart is not None and (number, level) not in self.restarted:
            self.restarted.add((number, level))
            counters[level] = restart
        else:
            counters[level] = counters.get(level, levels[level]["start"] - 1) + 1
        for other in levels:
            if other < level:
                counters.setdefault(other, levels[other]["start"])
            elif other > level and level < levels[other]["restart"]:
                counters.pop(other, None)
        return counters

    def find_list(self, paragraph) -> tuple[str | None, int]:
        """Return the list and the level that a paragraph names, or its style, or the one that this is based on."""
        properties = paragraph.find(f"{WORD}pPr")
        number, level = read_list(properties)
        style = value(properties, "pStyle") or self.default_style
        seen: set[str] = set()
        while (number is None or level is None) and style in self.styles and style not in seen:
            seen.add(style)
            own, own_level = read_list(self.styles[style].find(f"{WORD}pPr"))
            if number is None and own is not None:
                number, own_level = own, self.level_of_style(own, style) if own_level is None else own_level
            level = own_level if level is None else level
            style = value(self.styles[style], "basedOn")
        return number, level or 0

    def level_of_style(self, number: str, style: str) -> int | None:
        """Return the level of a list that names a style."""
        if number not in self.lists:
            return None
        for level in self.definition(number).iter(f"{WORD}lvl"):
            if value(level, "pStyle") == style:
                return int(level.get(f"{WORD}ilvl"))
        return None

    def definition(self, number: str):
        """Return the abstract list behind a list, also behind the style that the abstract one refers to."""
        element = self.abstract[value(self.lists[number], "abstractNumId")]
        style = self.styles.get(value(element, "numStyleLink"))
        linked = read_list(style.find(f"{WORD}pPr"))[0] if style is not None else None
        if linked in self.lists and linked != number:
            return self.abstract[value(self.lists[linked], "abstractNumId")]
        return element

    def read_levels(self, number: str) -> dict[int, dict]:
        """Return level -> its format, text, start and when it starts again, with what the list overrides."""
        element = self.definition(number)
        levels = {int(level.get(f"{WORD}ilvl")): level for level in element.iter(f"{WORD}lvl")}
        overrides: dict[int, int] = {}
        for override in self.lists[number].iter(f"{WORD}lvlOverride"):
            place, start = int(override.get(f"{WORD}ilvl")), value(override, "startOverride")
            if start is not None:
                overrides[place] = int(start)
            if (own := override.find(f"{WORD}lvl")) is not None:
                levels[place] = own
        legal = {place: level.find(f"{WORD}isLgl") for place, level in levels.items()}
        return {
            place: {
                "format": value(level, "numFmt") or "decimal",
                "text": value(level, "lvlText") or "",
                "start": int(value(level, "start") or 1),
                "restart": int(value(level, "lvlRestart") or place),
                "suffix": value(level, "suff") or "tab",
                "is_legal": legal[place] is not None and legal[place].get(f"{WORD}val") not in ("0", "false"),
                "override": overrides.get(place),
                "counters": element.get(f"{WORD}abstractNumId"),
            }
            for place, level in levels.items()
        }


def value(element, name: str) -> str | None:
    """Return the value of a child of an element."""
    child = None if element is None else element.find(f"{WORD}{name}")
    return None if child is None else child.get(f"{WORD}val")


def read_list(properties) -> tuple[str | None, int | None]:
    """Return the list and level that properties of a paragraph name."""
    named = None if properties is None else properties.find(f"{WORD}numPr")
    level = value(named, "ilvl")
    return value(named, "numId"), None if level is None else int(level)


def is_default(style) -> bool:
    return style.get(f"{WORD}type") == "paragraph" and style.get(f"{WORD}default") in ("1", "true")


def write_number(number: int, form: str) -> str:
    """Return a number as Word writes it in a format; in one that is not known here, in digits."""
    if form == "decimalZero":
        return f"{number:02}"
    if form == "ordinal":
        last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        return f"{number}{last}"
    if form in ("lowerLetter", "upperLetter") and number > 0:
        letters = "abcdefghijklmnopqrstuvwxyz"[(number - 1) % 26] * ((number - 1) // 26 + 1)
        return letters.upper() if form == "upperLetter" else letters
    if form in ("lowerRoman", "upperRoman") and number > 0:
        digits = ""
        for size, digit in ROMAN:
            digits += digit * (number // size)
            number %= size
        return digits.upper() if form == "upperRoman" else digits
    return str(number)
