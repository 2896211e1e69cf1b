# SPDX-License-Identifier: Apache-2.0
"""Convert a file of a repository to documents: (id, text), as the trials read them.

A converter takes the file's path in its repository and its content.
"""

import html
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from xml.etree import ElementTree


Documents = Iterator[tuple[str, str]]

USLM_LEVELS = ("subsection", "paragraph", "subparagraph", "clause", "subclause", "item", "subitem")
USLM_TEXTS = ("num", "heading", "chapeau", "content", "continuation")
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


def whole_file(path: str, content: bytes) -> Documents:
    """The file is one line, or its lines do not matter."""
    yield PurePosixPath(path).name, one_line(decode(content))


def wrapped_lines(path: str, content: bytes) -> Documents:
    """Paragraphs are divided by blank lines."""
    paragraphs = re.split(r"\n\s*\n", decode(content))
    yield path, "\n\n".join(filter(None, map(one_line, paragraphs)))


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


def local(element: ElementTree.Element) -> str:
    """Return an element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def inner(element: ElementTree.Element) -> str:
    """Return the text in an element; a paragraph in it begins a new word."""
    parts = [element.text or ""]
    for child in element:
        parts += [" " if local(child) == "p" else "", inner(child), child.tail or ""]
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
        *(whole_file, wrapped_lines, opinion, markdown, treebank, questions),
        *(dc_code, us_code, regulation),
    )
}
