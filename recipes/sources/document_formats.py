# SPDX-License-Identifier: Apache-2.0
"""The text of documents of Word, PowerPoint, the web, mail, RTF and EPUB, in reading order. pdf_text.py reads PDF.

Paragraphs are divided by blank lines; a row of a table is a line with its cells divided by ` | `. A reader takes a
path and returns {"text", "title"}; it runs in a process with limits (conversion.py).
"""

import email.policy
import email.utils
import posixpath
import re
import zipfile
from pathlib import Path
from urllib.parse import unquote, urldefrag
from xml.etree import ElementTree

from sources.word_numbering import WORD, Numbering


FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
MOVED = f"{WORD}moveFrom"  # text at the place from where a tracked change moves it
# Elements of HTML that hold no text to read, and those that begin a paragraph or line.
UNREAD = ("script", "style", "template", "noscript", "svg", "head", "nav", "iframe", "object", "select", "button")
PARAGRAPHS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "blockquote", "pre", "section") + (
    *("article", "header", "footer", "aside", "main", "figure", "form", "hr", "address", "details"),
)
LINES = ("div", "li", "dt", "dd", "tr", "caption", "figcaption", "option", "summary")
PACKED_RTF = 0x1009  # of a mail of Outlook: PidTagRtfCompressed of MS-OXPROPS


def tidy(text: str) -> str:
    """Return a text without spaces at the ends of lines and with at most one blank line between paragraphs."""
    lines = [" ".join(line.split()) for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def read_docx(path: str) -> dict:
    """Read Word: paragraphs with their numbers, tables, text boxes, then footnotes; with tracked changes accepted."""
    import docx

    document = docx.Document(path)
    parts = {
        relation.reltype.rpartition("/")[2]: docx.oxml.parse_xml(relation.target_part.blob)
        for relation in document.part.rels.values()
        if relation.reltype.endswith(("/footnotes", "/endnotes", "/numbering"))
    }
    numbering = Numbering(parts.pop("numbering", None), document.styles.element)
    blocks = word_blocks(document.element.body, numbering)
    for notes in parts.values():
        noted = [note for note in notes if note.get(f"{WORD}type") is None]
        blocks += [block for note in noted for block in word_blocks(note, numbering)]
    return {"text": tidy("\n\n".join(blocks)), "title": document.core_properties.title or ""}


def word_blocks(parent, numbering: Numbering) -> list[str]:
    """Return the paragraphs and tables below an element of Word; a paragraph without text has no number either."""
    blocks = []
    for child in parent:
        if child.tag == f"{WORD}p":
            boxes: list[str] = []
            number, text = numbering.label(child), word_text(child, boxes, numbering)
            blocks += [number + text if text.strip() else "", *boxes]
        elif child.tag == f"{WORD}tbl":
            rows = []
            for row in own_parts(child, "tr"):
                own = [" ".join(word_blocks(cell, numbering)) for cell in own_parts(row, "tc")]
                rows.append(" | ".join(" ".join(cell.split()) for cell in own))
            blocks.append("\n".join(rows))
        elif isinstance(child.tag, str) and child.tag not in (FALLBACK, MOVED):
            blocks += word_blocks(child, numbering)
    return [block for block in blocks if block.strip()]


def own_parts(parent, name: str) -> list:
    """Return the rows of a table or the cells of a row, also those in a content control, without those of a table
    inside of it."""
    return [part for part in parent.iter(WORD + name) if next(part.iterancestors(parent.tag)) is parent]


def word_text(element, boxes: list[str], numbering: Numbering) -> str:
    """Return the text of a paragraph; that of its text boxes is added to `boxes`."""
    parts = []
    for child in element:
        if child.tag == f"{WORD}t":
            parts.append(child.text or "")
        elif child.tag == f"{WORD}tab":
            parts.append("\t")
        elif child.tag in (f"{WORD}br", f"{WORD}cr"):
            parts.append("\n")
        elif child.tag == f"{WORD}noBreakHyphen":
            parts.append("-")
        elif child.tag == f"{WORD}txbxContent":
            boxes += word_blocks(child, numbering)
        elif isinstance(child.tag, str) and child.tag not in (FALLBACK, MOVED, f"{WORD}pPr", f"{WORD}rPr"):
            parts.append(word_text(child, boxes, numbering))
    return "".join(parts)


def read_pptx(path: str) -> dict:
    """Read PowerPoint: the slides in order, their shapes from top to bottom, tables, and the notes."""
    import pptx

    presentation = pptx.Presentation(path)
    slides = []
    for slide in presentation.slides:
        blocks = [block for shape in slide.shapes for block in shape_blocks(shape)]
        texts = [text for _, text in sorted(blocks, key=lambda block: block[0])]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            texts.append(slide.notes_slide.notes_text_frame.text)
        slides.append(tidy("\n\n".join(texts)))
    starts, place = [], 0
    for slide in slides:
        starts.append(place)
        place += len(slide) + 2 if slide else 0
    text = "\n\n".join(filter(None, slides))
    return {"text": text, "title": presentation.core_properties.title or "", "page_starts": starts}


def shape_blocks(shape) -> list[tuple[tuple[int, int], str]]:
    """Return (top, left) and text of a shape or of those in a group."""
    place = (shape.top or 0, shape.left or 0)
    if hasattr(shape, "shapes"):
        return [(place, text) for inner in shape.shapes for _, text in shape_blocks(inner)]
    if getattr(shape, "has_table", False):
        rows = [" | ".join(" ".join(cell.text.split()) for cell in row.cells) for row in shape.table.rows]
        return [(place, "\n".join(rows))]
    return [(place, shape.text_frame.text.replace("\v", "\n"))] if shape.has_text_frame else []


def read_html(path: str) -> dict:
    """Read HTML in the encoding that it states, or UTF-8, or the one that its text is certainly in."""
    return html_text(Path(path).read_bytes())


def html_text(content: bytes | str) -> dict:
    """Return the text of HTML: all that a browser would show, without scripts and menus."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(content if isinstance(content, str) else decode_html(content))
    title, parts = tree.css_first("title"), []
    heading = " ".join(title.text().split()) if title is not None else ""
    for element in tree.css(", ".join(UNREAD)):
        element.decompose()
    if tree.body is not None:
        add_html(tree.body, parts)
    return {"text": tidy("".join(parts)), "title": heading}


def add_html(root, parts: list[str]) -> None:
    """Add the text below an element, with line ends where elements begin and end; without recursion, which a page of
    a thousand nested elements would exhaust."""
    waiting = [(root, False)]
    while waiting:
        node, is_end = waiting.pop()
        name = node.tag
        if name == "-text":
            parts.append(re.sub(r"\s+", " ", node.text_content or ""))
            continue
        if name in ("-comment", "-doctype"):
            continue
        if name == "br":
            parts.append("\n")
        elif name in ("td", "th") and is_end and next_cell(node):
            parts.append(" | ")
        elif name in PARAGRAPHS:
            parts.append("\n\n")
        elif name in LINES:
            parts.append("\n")
        if is_end:
            continue
        waiting.append((node, True))
        children = []
        child = node.child
        while child is not None:
            children.append((child, False))
            child = child.next
        waiting += reversed(children)


def next_cell(node) -> bool:
    node = node.next
    while node is not None and node.tag not in ("td", "th"):
        node = node.next
    return node is not None


def decode_html(content: bytes) -> str:
    """Decode HTML; what it states counts only where all of it can be decoded so."""
    from sources.text_encoding import find_encoding, find_mark

    stated = re.search(rb"""charset\s*=\s*["']?\s*([\w-]+)""", content[:4096], re.IGNORECASE)
    names = [find_mark(content), "utf-8-sig", stated[1].decode() if stated else ""]
    for name in filter(None, names):
        # Browsers read pages that say Latin-1 as Windows-1252.
        name = "cp1252" if name.lower() in ("iso-8859-1", "latin1", "us-ascii", "ascii") else name
        try:
            return content.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    encoding = find_encoding(content)
    if not encoding.is_certain:
        raise ValueError(f"not UTF-8{'; perhaps ' * bool(encoding.name)}{encoding.name}")
    return content.decode(encoding.name)


def read_eml(path: str) -> dict:
    """Read a mail: its subject and its text, or HTML where it has no text; attachments are counted, not read."""
    message = email.message_from_bytes(Path(path).read_bytes(), policy=email.policy.default)
    body = message.get_body(("plain", "html"))
    if body is None:
        raise ValueError("no text in this mail")
    content = body.get_content()
    text = html_text(content)["text"] if body.get_content_type() == "text/html" else content
    subject = str(message["subject"] or "")
    found = {"text": tidy(f"{subject}\n\n{text}"), "title": subject}
    found["attachments"] = sum(1 for _ in message.iter_attachments())
    # Raw, since the email library fails on a year that no machine counts.
    stated = next((str(value).strip() for name, value in message.raw_items() if name.lower() == "date"), "")
    return found | ({"date": mail_day(stated)} if stated else {})


def mail_day(stated: str) -> str:
    """Return the day of a mail's Date in the sender's own time, or what it says where that is no date: the text counts
    as one whose date has an unknown form."""
    try:
        return email.utils.parsedate_to_datetime(stated).date().isoformat()
    except (ValueError, OverflowError):
        return stated


def read_msg(path: str) -> dict:
    """Read a mail of Outlook: its subject and its text, or HTML, or else the RTF that Outlook compresses."""
    import compressed_rtf
    import oxmsg

    message = oxmsg.Message.load(path)
    text = message.body or ""
    if not text.strip() and message.html_body:
        text = html_text(message.html_body)["text"]
    if not text.strip() and (packed := message.properties.binary_prop_value(PACKED_RTF)):
        text = rtf_text(compressed_rtf.decompress(packed))
    if not text.strip():
        raise ValueError("no text in this mail")
    found = {"text": tidy(f"{message.subject}\n\n{text}"), "title": message.subject}
    found["attachments"] = len(message.attachments)
    # The header has the sender's own time, where the message was sent over the internet; Outlook's is in UTC.
    stated = next((value for name, value in message.message_headers.items() if name.lower() == "date"), None)
    if stated:
        return found | {"date": mail_day(stated)}
    return found | ({"date": message.sent_date.date().isoformat()} if message.sent_date else {})


def read_rtf(path: str) -> dict:
    return {"text": tidy(rtf_text(Path(path).read_bytes())), "title": ""}


def rtf_text(content: bytes) -> str:
    from striprtf.striprtf import rtf_to_text

    if not content.startswith(b"{\\rtf"):
        raise ValueError("not RTF")
    return rtf_to_text(content.decode("cp1252", errors="replace"))


def read_epub(path: str) -> dict:
    """Read a book: its chapters in the order of its spine."""
    with zipfile.ZipFile(path) as archive:
        container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
        package = next(element.get("full-path") for element in container.iter() if local_name(element) == "rootfile")
        root = ElementTree.fromstring(archive.read(package))
        hrefs = {item.get("id"): item.get("href") for item in root.iter() if local_name(item) == "item"}
        title = next((element.text or "" for element in root.iter() if local_name(element) == "title"), "")
        chapters, names = [], set(archive.namelist())
        for reference in root.iter():
            if local_name(reference) == "itemref" and (href := hrefs.get(reference.get("idref"))):
                path = urldefrag(href).url  # of a URL, in which a space is %20; some books have the name itself
                places = [posixpath.join(posixpath.dirname(package), part) for part in (unquote(path), path)]
                found = [name for name in map(posixpath.normpath, places) if name in names]
                chapters.append(html_text(archive.read(found[0] if found else places[0]))["text"])
    return {"text": tidy("\n\n".join(chapters)), "title": title}


def local_name(element) -> str:
    return element.tag.rpartition("}")[2]


READERS = {
    ".docx": read_docx,
    ".pptx": read_pptx,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".eml": read_eml,
    ".msg": read_msg,
    ".rtf": read_rtf,
    ".epub": read_epub,
}
