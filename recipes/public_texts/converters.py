# SPDX-License-Identifier: Apache-2.0
"""Convert a file of a repository to documents: (id, text), as the trials read them.

A converter takes the file's path in its repository and its content.
"""

import csv
import html
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import PurePosixPath
from xml.etree import ElementTree


Documents = Iterator[tuple[str, str]]

USLM_LEVELS = ("subsection", "paragraph", "subparagraph", "clause", "subclause", "item", "subitem")
USLM_TEXTS = ("num", "heading", "chapeau", "content", "continuation")
XHTML_BLOCKS = ("h1", "h2", "h3", "h4", "h5", "h6", "p", "cite", "tr", "subtitle")
# Files of a Standard Ebook that are not its text.
NOT_CHAPTERS = ("colophon", "endnotes", "halftitlepage", "imprint", "loi", "titlepage", "uncopyright")
JATS_LEFT_OUT = ("alt-title", "bibr", "fig", "fig-group", "ref-list", "table-wrap")
HTML_INLINE = (
    "a",
    "b",
    "em",
    "font",
    "i",
    "ix:nonfraction",
    "ix:nonnumeric",
    "s",
    "small",
    "span",
    "strong",
    "sub",
    "sup",
    "u",
)
HTML_LEFT_OUT = ("head", "ix:header", "script", "style", "table")
MAX_RUNNING_HEAD_CHARACTERS, MIN_RUNNING_HEADS = 120, 5
MAX_ITEM_BYTES = 140_000
# Shorter lines that end a sentence end a paragraph too: an address, a heading.
MAX_LAST_LINE_CHARACTERS = 24
# Answers that are tables of symptoms.
HPO_TABLE = "The Human Phenotype Ontology provides the following list"
MARKDOWN = (  # in this order: what is replaced, and by what
    (r"(?s)<!--.*?-->|<(figure|script|style)\b.*?</\1>|\{%.*?%\}|\{\{.*?\}\}", ""),
    (r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])", ""),
    (r"\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", r"\1"),
    (r"</?[a-zA-Z][^>]*>", ""),
    (r"https?://\S+", ""),
    (r"(?m)^[ \t]*(```.*|[-*_|: \t]{3,})$", ""),
    (r"(?m)^[ \t]*(>[ \t]?)+", ""),
    (r"(?m)^[ \t]*#+[ \t]+", ""),
    (r"(?m)^[ \t]*[*+-][ \t]+", "- "),
    (r"\*\*|__|`", ""),
    (r"(?<![\w*])[*_]([^*_\n]+)[*_](?![\w*])", r"\1"),
)


def one_line(text: str) -> str:
    return " ".join(text.split())


def decode(content: bytes) -> str:
    """Return the text of a file in UTF-8 or else Windows-1252, with newlines alone at the ends of lines."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n")


def stripped_lines(text: str) -> str:
    """Strip each line, and leave one blank line between paragraphs."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(map(one_line, text.split("\n")))).strip()


def is_prose(line: str) -> bool:
    """Whether more than half of a line's signs are letters: the rows of a table and dates are not."""
    signs = "".join(line.split())
    return sum(map(str.isalpha, signs)) > len(signs) / 2


def whole_file(path: str, content: bytes) -> Documents:
    """The file is one line, or its lines do not matter."""
    yield PurePosixPath(path).name, one_line(decode(content))


def wrapped_lines(path: str, content: bytes) -> Documents:
    """Paragraphs are divided by blank lines."""
    paragraphs = re.split(r"\n\s*\n", decode(content))
    yield path, "\n\n".join(filter(None, map(one_line, paragraphs)))


def zipped_lines(path: str, content: bytes) -> Documents:
    """A zip of text files, by name, whose lines stay as they are."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".txt") and not PurePosixPath(name).name.startswith((".", "README")):
                yield name, stripped_lines(decode(archive.read(name)))


def agreement(path: str, content: bytes) -> Documents:
    """Lines of about one width: joined to paragraphs, without the rows of tables.

    A paragraph ends at a blank line, or after a short line that ends with a full stop or a colon. A page may end in
    it: what begins with a small letter belongs to what comes before, unless that ends a sentence.
    """
    paragraphs: list[str] = []
    for block in re.split(r"\n\s*\n", decode(content)):
        ends = True
        for number, line in enumerate(one_line(line) for line in block.split("\n") if is_prose(line)):
            continues = paragraphs and line[0].islower() and paragraphs[-1][-1] not in '.:;!?”"'
            if paragraphs and (continues if number == 0 else not ends):
                paragraphs[-1] += f" {line}"
            else:
                paragraphs.append(line)
            ends = len(line) <= MAX_LAST_LINE_CHARACTERS and line.endswith((".", ":"))
    yield path, "\n\n".join(paragraphs)


def opinion(path: str, content: bytes) -> Documents:
    """Each line is a paragraph; the folder names the Justice."""
    text = decode(content).replace("Link to the text of the note", "")
    author = PurePosixPath(path).parent.name.removesuffix("Cleaned")
    yield f"{author}/{PurePosixPath(path).stem}", "\n\n".join(filter(None, map(one_line, text.splitlines())))


def markdown(path: str, content: bytes) -> Documents:
    """The title of the front matter, then the text without marks, pictures, templates and addresses."""
    text = decode(content)
    front = re.match(r"---\n(.*?)\n---[ \t]*(\n|$)", text, re.DOTALL)
    title = re.search(r"(?m)^title:[ \t]*(.+)$", front[1]) if front else None
    text = text[front.end() :] if front else text
    for pattern, replacement in MARKDOWN:
        text = re.sub(pattern, replacement, text)
    lines = [one_line(line) for line in html.unescape(text).split("\n")]
    body = re.sub(r"\n{2,}(?=- )", "\n", re.sub(r"\n{3,}", "\n\n", "\n".join(lines))).strip()
    yield path, "\n\n".join([*([title[1].strip().strip("'\"")] if title else []), body])


def treebank(path: str, content: bytes) -> Documents:
    """CoNLL-U: the sentences' texts, in paragraphs."""
    paragraphs: list[list[str]] = []
    for line in decode(content).splitlines():
        if line.startswith("# newpar") or not paragraphs:
            paragraphs.append([])
        if line.startswith("# text = "):
            paragraphs[-1].append(line.removeprefix("# text = "))
    name = "/".join(PurePosixPath(path).parts[-2:]).removesuffix(".conllu")
    yield name, "\n\n".join(" ".join(sentences) for sentences in paragraphs if sentences)


def questions(path: str, content: bytes) -> Documents:
    """Questions and answers on one topic, without answers that are missing or tables of symptoms."""
    pairs = []
    for pair in ElementTree.fromstring(content).iter("QAPair"):
        question, answer = (one_line(pair.findtext(tag) or "") for tag in ("Question", "Answer"))
        if answer and HPO_TABLE not in answer:
            question = question.replace(" (are) ", " ").replace(" ?", "?")
            pairs.append(f"{question}\n{answer.replace(' - ', chr(10) + '- ')}")
    yield path, "\n\n".join(pairs)


def encounters(path: str, content: bytes) -> Documents:
    """CSV: a dialogue and its note in each row."""
    for row in csv.DictReader(io.StringIO(decode(content))):
        parts = (stripped_lines(row[name]) for name in ("dialogue", "note"))
        yield f"{PurePosixPath(path).name}#{row['encounter_id']}", "\n\n".join(parts)


def factbook(path: str, content: bytes) -> Documents:
    """The sections of a country in JSON: a line for each field, then one for each of its parts."""
    sections = json.loads(content)
    name = sections.get("Government", {}).get("Country name", {}).get("conventional short form", {}).get("text", path)
    for title, fields in sections.items():
        if isinstance(fields, dict):
            found = (line for field, value in fields.items() for line in factbook_lines(field, value))
            yield f"{path}#{title}", "\n".join([f"{name} - {title}", *found])


def factbook_lines(field: str, value: str | dict) -> Iterator[str]:
    parts = {"text": value} if isinstance(value, str) else value
    text = re.sub(r"<br\s*/?>|</?p\b[^>]*>", "\n", str(parts.get("text", "")))
    yield f"{field}: {stripped_lines(html.unescape(re.sub('<[^>]+>', ' ', text)))}".strip()
    for part, below in parts.items():
        if part != "text":
            yield from factbook_lines(part, below)


def filing_items(path: str, content: bytes) -> Documents:
    """A zip of filings in JSON: each item with its lines, without those that are numbers."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".json") and not PurePosixPath(name).name.startswith("."):
                for item, text in json.loads(archive.read(name)).items():
                    if item.startswith("item_"):
                        kept = "\n".join(one_line(line) for line in text.split("\n") if is_prose(line))
                        text = kept.encode()[:MAX_ITEM_BYTES].decode(errors="ignore")
                        yield f"{PurePosixPath(name).stem}#{item}", text


class FilingParser(HTMLParser):
    """Divides HTML into the texts of its blocks, without tables and XBRL's header."""

    def __init__(self):
        super().__init__()
        self.blocks, self.left_out = [""], 0

    def handle_starttag(self, tag, attributes):
        self.left_out += tag in HTML_LEFT_OUT
        if tag not in HTML_INLINE:
            self.blocks.append("")

    def handle_endtag(self, tag):
        self.left_out = max(0, self.left_out - (tag in HTML_LEFT_OUT))
        if tag not in HTML_INLINE:
            self.blocks.append("")

    def handle_data(self, data):
        if not self.left_out:
            self.blocks[-1] += data


def filing(path: str, content: bytes) -> Documents:
    """A 10-K in HTML: its paragraphs, without tables, numbers and the lines that each page repeats."""
    parser = FilingParser()
    parser.feed(decode(content))
    blocks = [block for block in map(one_line, parser.blocks) if is_prose(block)]
    times = Counter(blocks)
    kept = [b for b in blocks if len(b) > MAX_RUNNING_HEAD_CHARACTERS or times[b] < MIN_RUNNING_HEADS]
    yield path, "\n\n".join(kept)


def disease_terms(path: str, content: bytes) -> Documents:
    """OBO: a paragraph for each term that has a definition, with up to four of its exact synonyms."""
    for stanza in decode(content).split("\n[Term]\n")[1:]:
        stanza = stanza.partition("\n[Typedef]")[0]
        definition = re.search(r'(?m)^def: "((?:[^"\\]|\\.)*)"', stanza)
        if definition and "\nis_obsolete: true" not in stanza:
            name = re.search(r"(?m)^name: (.+)$", stanza)[1]
            found = re.findall(r'(?m)^synonym: "((?:[^"\\]|\\.)*)" EXACT', stanza)
            others = [synonym for synonym in found if synonym.lower() != name.lower()][:4]
            also = f" Also called {', '.join(others)}." if others else ""
            text = f"{sentence(name, definition[1].replace('_', ' '))}{also}"
            yield re.search(r"(?m)^id: (\S+)", stanza)[1], re.sub(r"\\(.)", r"\1", text)


def sentence(term: str, definition: str) -> str:
    """Return a term and its definition, as a sentence."""
    return f"{term[:1].upper()}{term[1:]}: {definition}{'' if definition.endswith(('.', '?', '!')) else '.'}"


def financial_terms(path: str, content: bytes) -> Documents:
    """RDF/XML: a paragraph for each term that has a definition, with its explanatory notes."""
    paragraphs = []
    for element in ElementTree.fromstring(content):
        texts = {name: [] for name in ("label", "definition", "explanatoryNote")}
        for child in element:
            if local(child) in texts and one_line(child.text or ""):
                texts[local(child)].append(one_line(child.text))
        if texts["label"] and texts["definition"]:
            first = sentence(texts["label"][0], texts["definition"][0])
            paragraphs.append(" ".join([first, *texts["explanatoryNote"]]))
    yield path, "\n\n".join(paragraphs)


def chapter(path: str, content: bytes) -> Documents:
    """XHTML of a Standard Ebook: its headings and paragraphs, without the numbers of notes."""
    if PurePosixPath(path).stem not in NOT_CHAPTERS:
        blocks: list[str] = []
        add_blocks(ElementTree.fromstring(content), blocks)
        yield PurePosixPath(path).stem, "\n\n".join(filter(None, map(one_line, blocks)))


def add_blocks(element: ElementTree.Element, blocks: list[str]) -> None:
    """Add the text in an element to blocks: a new one for each heading, paragraph, citation, row and subtitle."""
    kinds = next((value for name, value in element.items() if name.endswith("}type")), "").split()
    is_block = local(element) in XHTML_BLOCKS or "subtitle" in kinds
    blocks.extend([""] if is_block or not blocks else [])
    if local(element) != "head" and "noteref" not in kinds:
        blocks[-1] += (element.text or "").replace("\u2060", "")
        for child in element:
            add_blocks(child, blocks)
            blocks[-1] += " " * (local(child) in ("br", "td"))
            blocks[-1] += (child.tail or "").replace("\u2060", "")
    blocks.extend([""] if is_block else [])


def article(path: str, content: bytes) -> Documents:
    """JATS: title, abstracts and body, without tables, figures and the numbers of references."""
    root = ElementTree.fromstring(content)
    parts = [root.find(".//title-group"), *root.iterfind("./front/article-meta/abstract"), *root.iterfind("./body")]
    texts = (text for part in parts if part is not None for text in article_texts(part))
    # What is left where the numbers were.
    cleaned = (re.sub(r"\s*[\[(][\s,;–-]*[\])]|\s+(?=[,;)\]])", "", one_line(text)) for text in texts)
    yield PurePosixPath(path).stem, "\n\n".join(filter(None, cleaned))


def article_texts(element: ElementTree.Element) -> Iterator[str]:
    """Yield the titles and paragraphs in an element."""
    for child in element:
        if local(child) in ("article-title", "title", "p"):
            yield inner(child, JATS_LEFT_OUT)
        elif local(child) not in JATS_LEFT_OUT:
            yield from article_texts(child)


def local(element: ElementTree.Element) -> str:
    """Return an element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def inner(element: ElementTree.Element, left_out: tuple[str, ...] = ()) -> str:
    """Return the text in an element without what is in those left out; a paragraph in it begins a new word."""
    parts = [element.text or ""]
    for child in element:
        kept = local(child) not in left_out and child.get("ref-type") not in left_out
        parts += [" " if local(child) == "p" else "", inner(child, left_out) if kept else "", child.tail or ""]
    return "".join(parts)


def dc_code(path: str, content: bytes) -> Documents:
    """A section of the DC Code: its number and heading, then a line for each text and paragraph."""
    section = ElementTree.fromstring(content)
    parts = {local(child): one_line(inner(child)) for child in section if local(child) in ("num", "heading")}
    lines = [f"§ {parts['num']}. {parts.get('heading', '')}".strip()]

    def add(element: ElementTree.Element) -> None:
        for child in element:
            if local(child) == "para":
                texts = [inner(part) for part in child if local(part) in ("num", "heading", "text")]
                lines.append(one_line(" ".join(texts)))
                add(child)
            elif element is section and local(child) == "text":
                lines.append(one_line(inner(child)))

    add(section)
    yield f"dc/{parts['num']}", "\n".join(lines)


def us_code(path: str, content: bytes) -> Documents:
    """The sections of a title of the US Code in USLM: a line for each level, without notes and sources."""
    for section in ElementTree.fromstring(content).iter("{http://xml.house.gov/schemas/uslm/1.0}section"):
        if section.get("identifier"):
            yield section.get("identifier").strip("/"), "\n".join(uslm_lines(section))


def uslm_lines(level: ElementTree.Element) -> Iterator[str]:
    """Yield the lines of a level: its own number, heading and text, then those of the levels below it."""
    yield one_line(" ".join(inner(child) for child in level if local(child) in USLM_TEXTS))
    for child in level:
        if local(child) in USLM_LEVELS:
            yield from uslm_lines(child)


def regulation(path: str, content: bytes) -> Documents:
    """The sections of a part of 12 CFR in the CFPB's XML, without appendices and interpretations."""
    place = PurePosixPath(path)
    for section in ElementTree.fromstring(content).iter("{eregs}section"):
        if section.get("label"):
            text = "\n".join([one_line(section.findtext("{eregs}subject") or ""), *regulation_lines(section)])
            yield f"12CFR{place.parent.name}/{place.stem}#{section.get('label')}", text


def regulation_lines(element: ElementTree.Element) -> Iterator[str]:
    for paragraph in element.findall("{eregs}paragraph"):
        parts = [inner(child) for child in paragraph if local(child) in ("title", "content")]
        yield one_line(" ".join([paragraph.get("marker", ""), *parts]))
        yield from regulation_lines(paragraph)


CONVERTERS: dict[str, Callable[[str, bytes], Documents]] = {
    function.__name__: function
    for function in (
        *(whole_file, zipped_lines, wrapped_lines, agreement, opinion, markdown, treebank, questions),
        *(encounters, factbook, filing, filing_items, disease_terms, financial_terms, chapter, article),
        *(dc_code, us_code, regulation),
    )
}
