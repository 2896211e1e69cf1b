# SPDX-License-Identifier: Apache-2.0
"""The text of a PDF: pages in order, columns one after the other, without what repeats at the top or foot of pages.

PDFium gives the characters with their places. Its lines are divided at wide gaps, so that two columns on one height
are two segments; segments are read by column where a page has columns, else by row. Words that a hyphen divides at a
line's end are joined. A page without characters is an image: `tesseract` reads it where it is installed. Pages that
it does not read are counted, and a document of mostly such pages is refused as a scan.
"""

import re
import shutil
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


MOST_PAGES = 5000
# A gap inside a line that divides columns or cells (of the height of its characters).
WIDE_GAP = 1.5
# Columns: at least so many segments on each side of a gutter, of so many characters on average, and at most this share
# of all segments across it, which are headings over both columns.
COLUMN_SEGMENTS, COLUMN_CHARACTERS, MOST_ACROSS = 5, 16, 0.35
# A line at the top or foot of a page repeats if it is on this share of the pages, and on at least three.
EDGE_LINES, REPEATED_SHARE, REPEATED_PAGES = 3, 0.3, 3
# A page with fewer characters has no text of its own.
SCAN_CHARACTERS = 16
OCR_SCALE, OCR_SECONDS = 200 / 72, 50
HYPHENS = "-\N{SOFT HYPHEN}\N{HYPHEN}\x02\ufffe"


@dataclass
class Segment:
    """A piece of a line: its text and its place on the page, in points from the lower left."""

    text: str
    left: float
    right: float
    bottom: float
    top: float

    @property
    def height(self) -> float:
        return self.top - self.bottom


@dataclass
class Line:
    """A line as it is read.

    Attributes:
        text: of its segments.
        left, right, bottom, top: its place.
        column: number of its column on the page, from its top to its foot.
        is_row: whether it has several segments, as a row of a table has.
    """

    text: str
    left: float
    right: float
    bottom: float
    top: float
    column: int
    is_row: bool


def read_pdf(path: str, say_alive: Callable[[], None]) -> dict:
    """Return {"text", "title", "pages", "page_starts", "ocr_pages", "unread_pages"}, or {"error": why it has no text}.

    Args:
        path: of the file.
        say_alive: called after each page.
    """
    import pypdfium2

    document = pypdfium2.PdfDocument(path)
    try:
        if len(document) > MOST_PAGES:
            return {"error": f"{len(document):,} pages, more than {MOST_PAGES:,}"}
        pages, scans, unread = [], 0, 0
        for page in document:
            lines = read_lines(page)
            if sum(len(line.text) for line in lines) < SCAN_CHARACTERS and has_image(page):
                scans += 1
                recognised = recognise(page)
                unread += recognised is None
                lines = recognised if recognised is not None else lines
            pages.append(lines)
            page.close()
            say_alive()
        title = document.get_metadata_dict().get("Title", "")
    finally:
        document.close()
    text, starts = join_pages(remove_repeated(pages))
    if scans and 2 * scans > len(pages) and len(text) < SCAN_CHARACTERS * len(pages):
        installed = shutil.which("tesseract") is not None
        remedy = f"tesseract read {scans - unread:,} of them" if installed else "install tesseract to read them"
        return {"error": f"a scan: {scans:,} of {len(pages):,} pages have no text; {remedy}"}
    found = {"text": text, "title": title, "pages": len(pages), "page_starts": starts}
    return found | {"ocr_pages": scans - unread, "unread_pages": unread}


def has_image(page) -> bool:
    import pypdfium2.raw

    return any(True for _ in page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE], max_depth=3))


def recognise(page) -> list[Line] | None:
    """Return the lines of an image of a page by tesseract, None where it is not installed, fails or takes
    longer than OCR_SECONDS."""
    program = shutil.which("tesseract")
    if program is None:
        return None
    pixels = page.render(scale=OCR_SCALE, grayscale=True).to_numpy()
    pixels = np.ascontiguousarray(pixels.reshape(pixels.shape[0], pixels.shape[1]))
    image = f"P5 {pixels.shape[1]} {pixels.shape[0]} 255\n".encode() + pixels.tobytes()
    try:
        result = subprocess.run([program, "-", "-"], input=image, capture_output=True, timeout=OCR_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    texts = result.stdout.decode(errors="replace").splitlines()
    height = page.get_height() / (len(texts) + 1)
    lines = []
    for number, text in enumerate(texts):
        top = page.get_height() - number * height
        if text.strip():
            lines.append(Line(text.strip(), 0, 1, top - height / 2, top, 0, is_row=False))
    return lines


def read_lines(page) -> list[Line]:
    """Return the lines of a page in reading order."""
    segments = read_segments(page)
    return [line for column, part in enumerate(split_columns(segments)) for line in by_row(part, column)]


def read_segments(page) -> list[Segment]:
    """Return the pieces of text of a page: characters in PDFium's order, divided at line ends and wide gaps."""
    textpage = page.get_textpage()
    text = textpage.get_text_range()
    segments: list[Segment] = []
    characters: list[tuple[str, tuple]] = []
    spaced = False

    def finish() -> None:
        if characters:
            boxes = [box for _, box in characters]
            joined = "".join(character for character, _ in characters)
            left, bottom, right, top = (f(b[i] for b in boxes) for i, f in enumerate((min, min, max, max)))
            segments.append(Segment(joined, left, right, bottom, top))
            characters.clear()

    if len(text) != textpage.count_chars():  # pairs of surrogates and hidden characters have no place of their own
        text = "".join(textpage.get_text_range(index, 1)[:1] or " " for index in range(textpage.count_chars()))
    for index, character in enumerate(text):
        if character in "\r\n":
            finish()
            spaced = False
        elif character.isspace():
            spaced = True
        else:
            box = textpage.get_charbox(index, loose=True)
            if characters:
                before = characters[-1][1]
                height = max(before[3] - before[1], box[3] - box[1], 1)
                on_line = min(before[3], box[3]) - max(before[1], box[1]) > 0.3 * min(
                    before[3] - before[1], box[3] - box[1]
                )
                gap = box[0] - before[2]
                if not on_line or gap > WIDE_GAP * height or gap < -2 * height:
                    finish()
                elif spaced:
                    characters.append((" ", before))
            characters.append((character, box))
            spaced = False
    finish()
    textpage.close()
    return segments


def split_columns(segments: list[Segment]) -> list[list[Segment]]:
    """Divide the segments of a page at its gutter, if it has one: what is above, left and right, what is across."""
    gutter = find_gutter(segments)
    if gutter is None:
        return [segments] if segments else []
    across = [segment for segment in segments if segment.left < gutter < segment.right]
    sides = [segment for segment in segments if not segment.left < gutter < segment.right]
    parts: list[list[Segment]] = []
    bounds = sorted((segment.bottom for segment in across), reverse=True)
    rest = sides
    for bottom in [*bounds, float("-inf")]:
        heading = [segment for segment in across if segment.bottom == bottom]
        above = [segment for segment in rest if heading and segment.bottom > heading[0].bottom]
        band = above if heading else rest
        rest = [segment for segment in rest if segment not in band]
        for side in (
            [segment for segment in band if segment.right <= gutter],
            [segment for segment in band if segment.left >= gutter],
        ):
            parts += split_columns(side)
        if heading:
            parts.append(heading)
    return merge_across(parts, gutter)


def merge_across(parts: list[list[Segment]], gutter: float) -> list[list[Segment]]:
    """Join headings of several lines that follow each other, so that they are one paragraph."""
    merged: list[list[Segment]] = []
    for part in parts:
        is_across = all(segment.left < gutter < segment.right for segment in part)
        if merged and is_across and all(segment.left < gutter < segment.right for segment in merged[-1]):
            merged[-1] = merged[-1] + part
        elif part:
            merged.append(part)
    return merged


def find_gutter(segments: list[Segment]) -> float | None:
    """Return where a blank strip divides two columns of text; None where there is none."""
    if len(segments) < 2 * COLUMN_SEGMENTS:
        return None
    left, right = min(s.left for s in segments), max(s.right for s in segments)
    best = None
    for x in np.arange(left + 0.15 * (right - left), left + 0.85 * (right - left), 2):
        across = sum(s.left < x < s.right for s in segments)
        if across > MOST_ACROSS * len(segments) or (best is not None and across >= best[0]):
            continue
        sides = [[s for s in segments if s.right <= x], [s for s in segments if s.left >= x]]
        if all(
            len(side) >= COLUMN_SEGMENTS and statistics.mean(len(s.text) for s in side) >= COLUMN_CHARACTERS
            for side in sides
        ):
            best = (across, x)
    return best and float(best[1])


def by_row(segments: list[Segment], column: int) -> list[Line]:
    """Return the lines of a part of a page from top to bottom; segments on one height are a row."""
    lines: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda s: (-s.top, s.left)):
        row = lines[-1] if lines else None
        if row and min(row[0].top, segment.top) - max(row[0].bottom, segment.bottom) > 0.5 * min(
            row[0].height, segment.height
        ):
            row.append(segment)
        else:
            lines.append([segment])
    found = []
    for row in lines:
        row.sort(key=lambda segment: segment.left)
        found.append(
            Line(
                (" | " if len(row) > 1 else "").join(segment.text for segment in row),
                row[0].left,
                max(segment.right for segment in row),
                min(segment.bottom for segment in row),
                max(segment.top for segment in row),
                column,
                len(row) > 1,
            )
        )
    return found


def remove_repeated(pages: list[list[Line]]) -> list[list[Line]]:
    """Drop headers, footers and page numbers: lines at an edge that are the same on many pages, but for a number that
    grows by one a page. A row of figures or a numbered heading, which do not, stays."""
    edges = [edge_lines(lines, number) for number, lines in enumerate(pages)]
    counts = Counter(key for shapes in edges for key in {key for keys in shapes.values() for key in keys})
    needed = max(REPEATED_PAGES, REPEATED_SHARE * len(pages))
    return [
        [line for number, line in enumerate(lines) if all(counts[key] < needed for key in shapes.get(number, ()))]
        for lines, shapes in zip(pages, edges, strict=True)
    ]


def edge_lines(lines: list[Line], page: int) -> dict[int, list[tuple[str, str]]]:
    """Return number of a line -> (edge, wording) in each reading, for the lines at the top and foot of a page."""
    order = sorted(range(len(lines)), key=lambda number: -lines[number].top)
    top, foot = order[:EDGE_LINES], order[-EDGE_LINES:]
    edges = {number: "foot" for number in foot} | {number: "top" for number in top}
    return {number: [(edge, words) for words in wordings(lines[number].text, page)] for number, edge in edges.items()}


def wordings(text: str, page: int) -> list[str]:
    """Return a line in small letters, as it is and with each of its first numbers as its distance from the page's."""
    words = " ".join(text.lower().split())
    found = list(re.finditer(r"(?<![\d.,])\d{1,4}(?![\d.,]*\d)", words))[:2]
    readings = [words]
    for number in found:
        distance = f"<{int(number[0]) - page}>"
        readings.append(words[: number.start()] + distance + words[number.end() :])
    return readings


def join_pages(pages: list[list[Line]]) -> tuple[str, list[int]]:
    """Return the lines of all pages as paragraphs, and where in that text each page begins."""
    lines = [(number, line) for number, page in enumerate(pages) for line in page]
    words = Counter(re.findall(r"\w+(?:-\w+)*", " ".join(line.text for _, line in lines).lower()))
    spacing = usual_spacing(pages)
    paragraphs: list[str] = []
    starts: list[int] = []
    finished = 0  # characters of the paragraphs before the last
    before: tuple[int, Line] | None = None
    for number, line in lines:
        if before is None or starts_paragraph(before, (number, line), spacing):
            finished += len(paragraphs[-1]) + 2 if paragraphs else 0
            paragraphs.append(line.text)
        elif line.is_row or before[1].is_row:
            paragraphs[-1] += "\n" + line.text
        else:
            paragraphs[-1] = join_lines(paragraphs[-1], line.text, words)
        place = finished + len(paragraphs[-1]) - len(line.text)
        starts += [place] * (number + 1 - len(starts))
        before = number, line
    text = "\n\n".join(paragraphs)
    return text, starts + [len(text)] * (len(pages) - len(starts))


def usual_spacing(pages: list[list[Line]]) -> float:
    """Return the usual distance from one line to the next (points)."""
    steps = [a.top - b.top for page in pages for a, b in zip(page, page[1:], strict=False) if a.column == b.column]
    positive = [step for step in steps if step > 1]
    return statistics.median(positive) if positive else 12.0


def starts_paragraph(before: tuple[int, Line], now: tuple[int, Line], spacing: float) -> bool:
    """Return whether a line begins a paragraph, by its distance and indent and by how the line before it ends."""
    (page, last), (next_page, line) = before, now
    ends_sentence = last.text.rstrip().endswith((".", "!", "?", ":", ";", "\N{RIGHT DOUBLE QUOTATION MARK}"))
    if page != next_page or last.column != line.column:
        return line.is_row or ends_sentence or not line.text[:1].islower()
    if last.top - line.top > 1.25 * spacing or line.is_row != last.is_row:
        return True
    if line.is_row:
        return False
    height = max(line.top - line.bottom, 1)
    is_indented = line.left - last.left > 0.8 * height and ends_sentence
    return is_indented or abs((last.top - last.bottom) / height - 1) > 0.25


def join_lines(text: str, line: str, words: Counter) -> str:
    """Join a line to the text before it; a word that a hyphen divides becomes one, unless the document has it with the
    hyphen elsewhere."""
    if text[-1:] not in HYPHENS or not text[-2:-1].isalpha() or not line[:1].islower():
        return f"{text} {line}"
    first, second = re.search(r"(\w*)\W$", text)[1], re.match(r"\w*", line)[0]
    is_compound = words[f"{first}-{second}".lower()] > words[f"{first}{second}".lower()]
    return text[:-1] + ("-" if is_compound else "") + line
