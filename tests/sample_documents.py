# SPDX-License-Identifier: Apache-2.0
"""Documents with their exact text: contracts and opinions, rendered to PDF, Word, HTML, mail, RTF and EPUB."""

import random
import re
import struct
import textwrap
import zipfile
import zlib
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path


SUBJECTS = [
    "The licensee",
    "The court of appeal",
    "Each party",
    "No tenant",
    "The plaintiff",
    "An agent",
    "The lender",
]
VERBS = ["shall indemnify", "denies", "must repay", "never acknowledged", "may assign", "undertakes to inspect"]
OBJECTS = [
    "the licensor",
    "any outstanding claim",
    "the northern premises",
    "a reasonable fee",
    "the interlocutory appeal",
]
TAILS = ["without undue delay", "under section 12", "in the year 1848", "for good cause", "at its own expense"]
WIDTH, HEIGHT, CHARACTER = 595, 842, 0.6  # of A4 and of a Courier character (points, of its size)


def paragraph(seed: int, sentences: int = 4) -> str:
    choose = random.Random(seed).choice
    parts = [f"{choose(SUBJECTS)} {choose(VERBS)} {choose(OBJECTS)} {choose(TAILS)}." for _ in range(sentences)]
    return " ".join(parts)


@dataclass
class Sample:
    """A document: blocks in reading order, a text for a paragraph, a list of rows for a table."""

    title: str
    blocks: list[str | list[list[str]]]

    @property
    def words(self) -> list[str]:
        return words_of(" ".join(self.texts))

    @property
    def texts(self) -> list[str]:
        return [block if isinstance(block, str) else " ".join(map(" ".join, block)) for block in self.blocks]


TABLE = [["Item", "Quantity", "Price"], ["Licence", "12", "4,500"], ["Support", "3", "720"], ["Training", "1", "95"]]


def contract(seed: int = 0, paragraphs: int = 30) -> Sample:
    blocks: list[str | list[list[str]]] = []
    for number in range(paragraphs):
        blocks.append(f"{number + 1}. {paragraph(seed * 1000 + number)}")
        if number == paragraphs // 2:
            blocks.append(TABLE)
    return Sample("Licence Agreement", ["Licence Agreement", *blocks])


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+(?:[-.,]\w+)*", text.lower())


def word_error_rate(found: list[str], expected: list[str]) -> float:
    """Return the least number of words to insert, delete or replace, of the expected words."""
    distances = list(range(len(expected) + 1))
    for row, word in enumerate(found, start=1):
        previous, distances[0] = distances[0], row
        for column, wanted in enumerate(expected, start=1):
            previous, distances[column] = (
                distances[column],
                min(distances[column] + 1, distances[column - 1] + 1, previous + (word != wanted)),
            )
    return distances[-1] / len(expected)


def write_pdf(
    path: Path, pages: list[list[tuple[float, float, float, str]]], title: str = "", image: bytes = b""
) -> None:
    """Write a PDF: each page a list of (x, y, size, text) in Courier, and the same grey image of 8 x 8 on each."""
    objects: list[bytes] = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier >>",
    ]
    objects.append(f"<< /Title ({title}) >>".encode())
    objects.append(
        b"<< /Type /XObject /Subtype /Image /Width 8 /Height 8 /ColorSpace /DeviceGray /BitsPerComponent 8 "
        b"/Length 64 >>\nstream\n" + (image or bytes(64)) + b"\nendstream"
    )
    kids = []
    for page in pages:
        content = "".join(f"BT /F1 {size} Tf {x} {y} Td ({escape(text)}) Tj ET\n" for x, y, size, text in page).encode(
            "latin-1"
        )
        if image:
            content += f"q {WIDTH} 0 0 {HEIGHT} 0 0 cm /Im1 Do Q\n".encode()
        packed = zlib.compress(content)
        objects.append(b"<< /Length %d /Filter /FlateDecode >>\nstream\n" % len(packed) + packed + b"\nendstream")
        resources = b"/Resources << /Font << /F1 3 0 R >> /XObject << /Im1 5 0 R >> >>"
        box = b"/MediaBox [0 0 %d %d]" % (WIDTH, HEIGHT)
        objects.append(b"<< /Type /Page /Parent 2 0 R %s %s /Contents %d 0 R >>" % (box, resources, len(objects)))
        kids.append(len(objects))
    numbers = b" ".join(b"%d 0 R" % kid for kid in kids)
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (numbers, len(kids))
    written, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(written))
        written += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(written)
    written += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    written += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    written += b"trailer << /Size %d /Root 1 0 R /Info 4 0 R >>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start)
    path.write_bytes(written)


def escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def wrap(text: str, columns: int, hyphenate: bool) -> list[str]:
    """Return the lines of a paragraph; with hyphenate, long words are divided at the line's end."""
    if not hyphenate:
        return textwrap.wrap(text, columns, break_on_hyphens=False)
    lines, line = [], ""
    for word in text.split():
        if len(line) + 1 + len(word) <= columns:
            line = f"{line} {word}".strip()
            continue
        room = columns - len(line) - 2
        if word.isalpha() and len(word) >= 7 and 3 <= room <= len(word) - 3:
            lines.append(f"{line} {word[:room]}-")
            line = word[room:]
        else:
            lines.append(line)
            line = word
    return [*lines, line]


def render_pdf(
    path: Path,
    sample: Sample,
    columns: int = 1,
    hyphenate: bool = False,
    running: bool = True,
    by_height: bool = False,
) -> int:
    """Write a sample as a PDF with running heads and page numbers, and return its pages.

    Args:
        path: of the file.
        sample: what it says; its first block is the title, over all columns.
        columns: 1 or 2.
        hyphenate: whether words are divided at line ends.
        running: whether each page has a header, a footer and its number.
        by_height: whether the lines of two columns stand in the file by their height, as some programs write them.
    """
    size, leading, margin = 9.0, 12.0, 60.0
    room = (WIDTH - 2 * margin - (columns - 1) * 24) / columns
    per_line = int(room / (size * CHARACTER))
    pages: list[list[tuple[float, float, float, str]]] = [[]]
    pages[0].append((margin, HEIGHT - 90, 14, sample.blocks[0]))
    column, y = 0, HEIGHT - 120
    for block in sample.blocks[1:]:
        is_table = not isinstance(block, str)
        lines = block if is_table else wrap(block, per_line, hyphenate)
        for line in lines:
            if y < 80:
                column, y = column + 1, HEIGHT - (120 if len(pages) == 1 else 90)
                if column == columns:
                    pages.append([])
                    column, y = 0, HEIGHT - 90
            x = margin + column * (room + 24)
            cells = line if is_table else [line]
            pages[-1] += [(x + number * room / 3, y, size, cell) for number, cell in enumerate(cells)]
            y -= leading
        y -= leading * 0.6
    if by_height:
        pages = [sorted(page, key=lambda item: (-item[1], item[0])) for page in pages]
    if running:
        for number, page in enumerate(pages, start=1):
            page.insert(0, (margin, HEIGHT - 40, 8, f"Acme Ltd - {sample.title} - Confidential"))
            page.append((WIDTH / 2 - 20, 36, 8, f"Page {number} of {len(pages)}"))
    write_pdf(path, pages, sample.title)
    return len(pages)


def render_docx(path: Path, sample: Sample) -> None:
    import docx

    document = docx.Document()
    document.core_properties.title = sample.title
    for block in sample.blocks:
        if isinstance(block, str):
            document.add_paragraph(block)
        else:
            table = document.add_table(len(block), len(block[0]))
            for row, cells in zip(table.rows, block, strict=True):
                for cell, text in zip(row.cells, cells, strict=True):
                    cell.text = text
    document.sections[0].header.paragraphs[0].text = "Acme Ltd - Confidential"
    document.save(str(path))


def render_pptx(path: Path, sample: Sample) -> None:
    import pptx
    from pptx.util import Inches

    presentation = pptx.Presentation()
    presentation.core_properties.title = sample.title
    for block in sample.blocks:
        slide = presentation.slides.add_slide(presentation.slide_layouts[6])
        if isinstance(block, str):
            half = block.find(". ") + 1 or len(block)
            lower = slide.shapes.add_textbox(Inches(1), Inches(4), Inches(6), Inches(2))
            lower.text_frame.text = block[half:].strip()
            slide.shapes.add_textbox(Inches(1), Inches(1), Inches(6), Inches(2)).text_frame.text = block[:half]
        else:
            table = slide.shapes.add_table(len(block), len(block[0]), 0, 0, Inches(6), Inches(3)).table
            for row, cells in enumerate(block):
                for column, text in enumerate(cells):
                    table.cell(row, column).text = text
    presentation.save(str(path))


def html_of(sample: Sample) -> str:
    blocks = []
    for block in sample.blocks:
        if isinstance(block, str):
            blocks.append(f"<p>{block.replace('. ', '.<br>' if len(blocks) % 5 == 0 else '. ')}</p>")
        else:
            rows = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in block]
            blocks.append(f"<table>{''.join(rows)}</table>")
    menu = "<nav><a href='x'>Home</a></nav><script>var a = 'do not read';</script><style>p {}</style>"
    return f"<html><head><title>{sample.title}</title></head><body>{menu}<div>{''.join(blocks)}</div></body></html>"


def render_html(path: Path, sample: Sample) -> None:
    path.write_text(html_of(sample), encoding="utf-8")


def render_eml(path: Path, sample: Sample) -> None:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = sample.blocks[0], "a@example.com", "b@example.com"
    message["Date"] = "Fri, 31 May 2024 23:30:00 -0800"
    plain = "\n\n".join(b if isinstance(b, str) else "\n".join(map(" | ".join, b)) for b in sample.blocks[1:])
    message.set_content(plain, cte="quoted-printable")
    message.add_alternative(html_of(sample), subtype="html")
    message.add_attachment(b"%PDF-", maintype="application", subtype="pdf", filename="a.pdf")
    path.write_bytes(bytes(message))


def write_compound(path: Path, streams: dict[str, bytes]) -> None:
    """Write the file system in a file that Outlook uses (MS-CFB, version 3): `folder/name` -> content."""
    end, free, is_fat = 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD
    sectors: list[bytes] = []
    chain: list[int] = []

    def add(content: bytes) -> int:
        parts = [content[n : n + 512].ljust(512, b"\0") for n in range(0, len(content), 512)]
        first = len(sectors) if parts else end
        sectors.extend(parts)
        chain.extend([*range(first + 1, first + len(parts)), end] if parts else [])
        return first

    small, small_chain = b"", []
    places: dict[str, tuple[int, int]] = {}
    for name, content in streams.items():
        if len(content) >= 4096:
            places[name] = add(content), len(content)
        else:
            blocks = -(-len(content) // 64)
            first = len(small_chain)
            small_chain += [*range(first + 1, first + blocks), end] if blocks else []
            small += content.ljust(64 * blocks, b"\0")
            places[name] = first if blocks else end, len(content)
    names = sorted({*streams, *(name.rpartition("/")[0] for name in streams if "/" in name)})
    numbers = {name: number for number, name in enumerate(["", *names])}

    def entry(name: str, kind: int, place: int, size: int) -> bytes:
        inner = [other for other in names if other.rpartition("/")[0] == name]
        beside = [other for other in names if other.rpartition("/")[0] == name.rpartition("/")[0] and other > name]
        title = (name.rpartition("/")[2] or "Root Entry").encode("utf-16-le")
        following = numbers[beside[0]] if name and beside else free
        child = numbers[inner[0]] if kind in (1, 5) and inner else free
        links = struct.pack("<3I", free, following, child)
        return (
            title.ljust(64, b"\0")
            + struct.pack("<HBB", len(title) + 2, kind, 1)
            + links
            + bytes(36)
            + (struct.pack("<IQ", place, size))
        )

    directory = entry("", 5, add(small), len(small))
    for name in names:
        directory += entry(name, 2, *places[name]) if name in streams else entry(name, 1, 0, 0)
    first_directory = add(directory.ljust(-(-len(directory) // 512) * 512, b"\0"))
    packed = struct.pack(f"<{len(small_chain)}I", *small_chain)
    first_small = add(packed.ljust(-(-len(packed) // 512) * 512, b"\xff"))
    num_small = -(-len(packed) // 512)
    num_fat = next(n for n in range(1, 110) if 128 * n >= len(sectors) + n)
    fat = [*chain, *[is_fat] * num_fat]
    fat += [free] * (128 * num_fat - len(fat))
    header = bytes.fromhex("D0CF11E0A1B11AE1") + bytes(16) + struct.pack("<5H", 0x3E, 3, 0xFFFE, 9, 6) + bytes(6)
    header += struct.pack("<9I", 0, num_fat, first_directory, 0, 4096, first_small, num_small, end, 0)
    places_of_fat = [len(sectors) + n if n < num_fat else free for n in range(109)]
    header += struct.pack("<109I", *places_of_fat)
    path.write_bytes(header + b"".join(sectors) + struct.pack(f"<{len(fat)}I", *fat))


def write_msg(
    path: Path,
    texts: dict[int, str],
    sent: int | None = None,
    html: bytes = b"",
    attachments: int = 0,
    packed_rtf: bytes = b"",
):
    """Write a mail of Outlook (MS-OXMSG): property -> text, the time that it was sent (FILETIME), its HTML or RTF."""
    streams, properties = {}, b""
    for number, text in texts.items():
        content = text.encode("utf-16-le")
        streams[f"__substg1.0_{number:04X}001F"] = content
        properties += struct.pack("<HHIII", 0x001F, number, 6, len(content) + 2, 0)
    for number, content in ((0x1013, html), (0x1009, packed_rtf)):
        if content:
            streams[f"__substg1.0_{number:04X}0102"] = content
            properties += struct.pack("<HHIII", 0x0102, number, 6, len(content), 0)
    if sent is not None:
        properties += struct.pack("<HHIQ", 0x0040, 0x0039, 6, sent)
    properties += struct.pack("<HHIII", 0x0003, 0x3FDE, 6, 65001, 0)
    streams["__properties_version1.0"] = struct.pack("<8x4I8x", 0, attachments, 0, attachments) + properties
    for number in range(attachments):
        streams[f"__attach_version1.0_#{number:08X}/__properties_version1.0"] = bytes(8)
    write_compound(path, streams)


SUBJECT, BODY, HEADERS, SENT = 0x0037, 0x1000, 0x007D, 133_616_718_000_000_000  # on 31 May 2024, 23:30 in UTC


def render_msg(path: Path, sample: Sample) -> None:
    plain = "\r\n\r\n".join(b if isinstance(b, str) else "\r\n".join(map(" | ".join, b)) for b in sample.blocks[1:])
    texts = {SUBJECT: sample.blocks[0], BODY: plain}
    write_msg(path, texts, SENT, html_of(sample).encode(), attachments=1)


def render_rtf(path: Path, sample: Sample) -> None:
    lines = []
    for block in sample.blocks:
        if isinstance(block, str):
            escaped = "".join(c if c.isascii() else f"\\u{ord(c)}?" for c in block)
            lines.append(f"{escaped}\\par\n")
        else:
            lines += ["\\trowd " + "".join(f"{cell}\\cell " for cell in row) + "\\row\n" for row in block]
    path.write_text(
        "{\\rtf1\\ansi\\ansicpg1252{\\fonttbl\\f0 Courier;}\\f0\n" + "".join(lines) + "}", encoding="ascii"
    )


def render_epub(path: Path, sample: Sample) -> None:
    container = '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    container += '<rootfile full-path="OEBPS/content.opf"/></rootfiles></container>'
    half = len(sample.blocks) // 2
    parts = {"z": Sample("one", sample.blocks[:half]), "a": Sample("two", sample.blocks[half:])}
    items = "".join(f'<item id="{name}" href="text/{name}.xhtml"/>' for name in sorted(parts))
    package = f'<package xmlns="http://www.idpf.org/2007/opf"><metadata><title>{sample.title}</title></metadata>'
    package += f'<manifest>{items}</manifest><spine><itemref idref="z"/><itemref idref="a"/></spine></package>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("OEBPS/content.opf", package)
        for name, part in parts.items():
            archive.writestr(f"OEBPS/text/{name}.xhtml", html_of(part))


RENDERERS = {
    ".docx": render_docx,
    ".pptx": render_pptx,
    ".html": render_html,
    ".eml": render_eml,
    ".msg": render_msg,
    ".rtf": render_rtf,
    ".epub": render_epub,
}
# What a PDF is laid out like -> arguments of render_pdf.
LAYOUTS = {
    "one column": {},
    "one column, hyphenated": {"hyphenate": True},
    "two columns": {"columns": 2},
    "two columns, hyphenated": {"columns": 2, "hyphenate": True},
    "two columns, written by height": {"columns": 2, "by_height": True},
}
