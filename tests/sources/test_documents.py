# SPDX-License-Identifier: Apache-2.0
"""Documents of Word, PDF and other formats: their exact text in reading order, and no harm from a hostile file."""

import http.server
import importlib.util
import json
import os
import socketserver
import struct
import threading
import zipfile
from pathlib import Path

import pytest
import sample_documents
from sample_documents import (
    BODY,
    HEADERS,
    LAYOUTS,
    RENDERERS,
    SUBJECT,
    Sample,
    contract,
    render_pdf,
    word_error_rate,
    words_of,
    write_msg,
    write_pdf,
)
from tiny_run import TinyRun, make_text, write_tiny_texts

import document_ledger
import prepare_data
from recipe_config import RecipeError, Source
from sources import conversion, file_kinds
from sources.file_kinds import DOCUMENTS
from sources.inventory import INSTALL
from sources.readers import read_unit
from sources.row_checks import Unreadable
from sources.units import list_units
from sources.word_numbering import write_number


LACKING = sorted(
    {module for modules in DOCUMENTS.values() for module in modules if not importlib.util.find_spec(module)}
)
NEEDS_LIBRARIES = pytest.mark.skipif(bool(LACKING), reason=f"needs {', '.join(LACKING)}: {INSTALL}")


@pytest.fixture
def converter():
    """A new process for the conversions of a test, ended after it."""
    conversion.start_converter.cache_clear()
    yield
    conversion.start_converter(os.getpid()).stop()
    conversion.start_converter.cache_clear()


def read_all(path: Path, **settings) -> list[dict | Unreadable]:
    source = Source(name="a", path=str(path), **settings)
    return [example for unit in list_units(source) for example in read_unit(source, unit)]


def reasons(path: Path) -> list[str]:
    return [example.reason if isinstance(example, Unreadable) else example["text"][:40] for example in read_all(path)]


def places(text: str, sample: Sample) -> list[int]:
    """Return where each block of a sample stands in a text: its position, or -1."""
    flat = " ".join(words_of(text))
    return [flat.find(" ".join(words_of(block))) for block in sample.texts]


@NEEDS_LIBRARIES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pdf_gives_every_word_in_order_without_running_heads_page_numbers_and_hyphens(tmp_path, layout, converter):
    sample = contract(1, 40)
    pages = render_pdf(tmp_path / "a.pdf", sample, **LAYOUTS[layout])
    (example,) = read_all(tmp_path)
    assert pages >= 3 and example["pages"] == pages and example["title"] == sample.title
    assert word_error_rate(words_of(example["text"]), sample.words) == 0
    found = places(example["text"], sample)
    assert found == sorted(found) and found[0] >= 0, "every paragraph whole, and in order"
    assert len(example["text"].split("\n\n")) == len(sample.blocks)
    assert "Item | Quantity | Price\nLicence | 12 | 4,500\n" in example["text"]


@NEEDS_LIBRARIES
def test_a_compound_keeps_its_hyphen_where_the_document_has_it_elsewhere(tmp_path, converter):
    lines = [
        "a long-term lease and a well-",
        "known landlord of a long-",
        "term tenant in good agree-",
        "ment, is well-known",
    ]
    write_pdf(tmp_path / "a.pdf", [[(60, 700 - 12 * n, 10, line) for n, line in enumerate(lines)]])
    (example,) = read_all(tmp_path)
    assert example["text"] == (
        "a long-term lease and a well-known landlord of a long-term tenant in good agreement, is well-known"
    )


@NEEDS_LIBRARIES
def test_a_line_at_the_top_of_two_pages_only_is_text(tmp_path, converter):
    sample = contract(2, 16)
    assert render_pdf(tmp_path / "a.pdf", sample) == 2
    (example,) = read_all(tmp_path)
    assert "Acme Ltd - Licence Agreement - Confidential" in example["text"]


@NEEDS_LIBRARIES
def test_rows_of_figures_and_numbered_headings_at_the_edge_of_pages_are_text(tmp_path, converter):
    pages = []
    for page in range(6):
        head = [
            (60, 780, 10, f"Article {3 * page + 1}"),
            (60, 765, 9, "of the treaty"),
            (400, 810, 8, f"Draft 7, page {page}"),
        ]
        body = [
            (60, 740 - 12 * line, 9, f"Line {line} of page {page} says something of its own.") for line in range(20)
        ]
        figures = [(60 + 150 * cell, 60, 9, f"{page + 1},{page}{cell}7") for cell in range(3)]
        pages.append([*head, *body, *figures, (290, 30, 8, f"- {page + 11} -")])
    write_pdf(tmp_path / "a.pdf", pages)
    (example,) = read_all(tmp_path)
    for page in range(6):
        assert f"Article {3 * page + 1}\n" in example["text"] or f"Article {3 * page + 1} " in example["text"]
        assert " | ".join(f"{page + 1},{page}{cell}7" for cell in range(3)) in example["text"]
    assert not any(words in example["text"] for words in ("Draft", "- 11 -", "- 16 -", "of the treaty"))


@NEEDS_LIBRARIES
@pytest.mark.parametrize("kind", RENDERERS)
def test_every_format_gives_every_word_in_order_with_tables_and_title(tmp_path, kind, converter):
    sample = contract(3, 12)
    sample.blocks[3] = "Für die Kündigung – “schriftlich” – gilt § 568; naïve Änderungen € 5."
    RENDERERS[kind](tmp_path / f"a{kind.upper()}", sample)
    (example,) = read_all(tmp_path)
    assert word_error_rate(words_of(example["text"]), sample.words) == 0
    assert kind == ".rtf" or example["title"] == sample.title
    assert (
        "do not read" not in example["text"]
        and "Home" not in example["text"]
        and "Confidential" not in example["text"]
    )
    cells = "Licence|12|4,500" if kind == ".rtf" else "Licence | 12 | 4,500"
    assert cells in example["text"]
    if kind in (".eml", ".msg"):
        assert example["date"] == "2024-05-31" and example["attachments"] == 1


@NEEDS_LIBRARIES
def test_word_gives_inserted_text_boxes_and_footnotes_and_not_what_was_deleted(tmp_path, converter):
    import docx

    document = docx.Document()
    document.add_paragraph("The tenant ")
    word = WORD_XML
    box = "<w:r><w:pict><w:txbxContent><w:p><w:r><w:t>Boxed.</w:t></w:r></w:p></w:txbxContent></w:pict></w:r>"
    changes = f"""<w:p {word}><w:ins><w:r><w:t>shall pay</w:t></w:r></w:ins>
      <w:del><w:r><w:delText>may pay</w:delText></w:r></w:del><w:r><w:tab/><w:t>the rent.</w:t></w:r>{box}</w:p>"""
    document.element.body.insert(1, docx.oxml.parse_xml(changes))
    document.save(tmp_path / "a.docx")
    notes = f'<w:footnotes {word}><w:footnote w:type="separator"><w:p/></w:footnote>'
    notes += "<w:footnote><w:p><w:r><w:t>See section 12.</w:t></w:r></w:p></w:footnote></w:footnotes>"
    add_part(tmp_path / "a.docx", "word/footnotes.xml", notes, "footnotes")
    (example,) = read_all(tmp_path)
    assert example["text"] == "The tenant\n\nshall pay the rent.\n\nBoxed.\n\nSee section 12."


@NEEDS_LIBRARIES
def test_text_that_word_moves_and_a_table_in_a_cell_are_read_once(tmp_path, converter):
    import docx

    document = docx.Document()
    moved = "<w:moveFrom><w:r><w:t>Moved. </w:t></w:r></w:moveFrom><w:r><w:t>One. </w:t></w:r>"
    moved += "<w:moveTo><w:r><w:t>Moved.</w:t></w:r></w:moveTo>"
    document.element.body.insert(0, docx.oxml.parse_xml(f"<w:p {WORD_XML}>{moved}</w:p>"))
    away = f"<w:moveFrom {WORD_XML}><w:p><w:r><w:t>Moved away.</w:t></w:r></w:p></w:moveFrom>"
    document.element.body.insert(1, docx.oxml.parse_xml(away))
    table = document.add_table(2, 2)
    for number in range(4):
        table.cell(*divmod(number, 2)).text = f"outer {number}"
    inner = table.cell(0, 1).add_table(2, 2)
    for number in range(4):
        inner.cell(*divmod(number, 2)).text = f"inner {number}"
    control = docx.oxml.parse_xml(f"<w:sdt {WORD_XML}><w:sdtContent/></w:sdt>")
    control[0].append(table.rows[1]._tr)
    table._tbl.append(control)
    document.save(tmp_path / "a.docx")
    (example,) = read_all(tmp_path)
    rows = "outer 0 | outer 1 inner 0 | inner 1 inner 2 | inner 3\nouter 2 | outer 3"
    assert example["text"] == f"One. Moved.\n\n{rows}"


WORD_XML = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
# Level -> format, text, and what else its element holds.
LEGAL_LIST = [
    ("decimal", "%1.", '<w:pStyle w:val="Heading1"/>'),
    ("decimal", "%1.%2", ""),
    ("lowerLetter", "(%3)", ""),
    ("upperRoman", "%4.", '<w:lvlRestart w:val="0"/>'),
    ("bullet", "o", ""),
    ("decimal", "%1-%4-%6", "<w:isLgl/>"),
]


def write_numbered(path: Path, paragraphs: list[tuple], nums: str = "", start: int = 1) -> None:
    """Write a .docx of paragraphs (list, level, text), with list 1 of LEGAL_LIST; None: no list; a text: a style."""
    import docx

    document = docx.Document()
    relation = next(r for r in document.part.rels.values() if r.reltype.endswith("/numbering"))
    levels = "".join(
        f'<w:lvl w:ilvl="{level}"><w:start w:val="{start if level == 0 else 1}"/><w:numFmt w:val="{form}"/>{more}'
        f'<w:lvlText w:val="{text}"/></w:lvl>'
        for level, (form, text, more) in enumerate(LEGAL_LIST)
    )
    content = f'<w:numbering {WORD_XML}><w:abstractNum w:abstractNumId="7">{levels}</w:abstractNum>'
    content += f'<w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num>{nums}</w:numbering>'
    relation.target_part._element = docx.oxml.parse_xml(content)
    for number, level, text in paragraphs:
        paragraph = document.add_paragraph(text, style=number if isinstance(number, str) else None)
        if isinstance(number, int):
            named = f'<w:numPr {WORD_XML}><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>'
            paragraph._p.get_or_add_pPr().append(docx.oxml.parse_xml(named))
    heading = document.styles["Heading 1"].element.get_or_add_pPr()
    heading.append(docx.oxml.parse_xml(f'<w:numPr {WORD_XML}><w:numId w:val="1"/></w:numPr>'))
    document.save(path)


@NEEDS_LIBRARIES
def test_the_numbers_that_word_puts_before_paragraphs_are_text(tmp_path, converter):
    restarting = (
        '<w:num w:numId="2"><w:abstractNumId w:val="7"/><w:lvlOverride w:ilvl="0"><w:startOverride w:val="9"/>'
    )
    paragraphs = [
        ("Heading 1", None, "Definitions"),
        (1, 1, "Rent"),
        (1, 1, "Tenant"),
        (1, 2, "a person"),
        (1, 2, "a firm"),
        (1, 3, "roman"),
        ("Heading 1", None, "Term"),
        (1, 1, "Start"),
        (1, 2, "again from a"),
        (1, 3, "never restarts"),
        (1, 4, "a bullet"),
        (1, 5, "legal"),
        (None, None, "Without a number."),
        (0, 0, "Number taken away"),
        (1, 0, ""),
        (1, 0, "after an empty one"),
        (2, 0, "a list of its own start"),
        (2, 0, "and on"),
        (5, 0, "a list that is not there"),
    ]
    write_numbered(tmp_path / "a.docx", paragraphs, f"{restarting}</w:lvlOverride></w:num>")
    (example,) = read_all(tmp_path)
    assert example["text"].split("\n\n") == [
        "1. Definitions",
        "1.1 Rent",
        "1.2 Tenant",
        "(a) a person",
        "(b) a firm",
        "I. roman",
        "2. Term",
        "2.1 Start",
        "(a) again from a",
        "II. never restarts",
        "a bullet",
        "2-2-1 legal",
        "Without a number.",
        "Number taken away",
        "4. after an empty one",
        "9. a list of its own start",
        "10. and on",
        "a list that is not there",
    ]


def test_numbers_are_written_as_word_writes_them():
    written = {
        "decimalZero": ["01", "14"],
        "lowerLetter": ["a", "n"],
        "upperRoman": ["I", "XIV"],
        "ordinal": ["1st", "14th"],
        "chicago": ["1", "14"],
    }
    assert {form: [write_number(number, form) for number in (1, 14)] for form in written} == written
    assert [write_number(number, "upperLetter") for number in (26, 27, 53)] == ["Z", "AA", "AAA"]
    assert write_number(1999, "lowerRoman") == "mcmxcix" and write_number(0, "lowerLetter") == "0"


# The example of MS-OXRTFCP, 3.1.1: {\rtf1\ansi\ansicpg1252\pard hello world} and a line end.
PACKED_RTF = bytes.fromhex(
    "2d0000002b0000004c5a4675f1c5c7a703000a007263706731323542320af32068656c090020627705b06c647d0a800fa0"
)


@NEEDS_LIBRARIES
def test_a_mail_of_outlook_gives_html_or_rtf_where_it_has_no_text_and_the_senders_own_day(tmp_path, converter):
    html = "<p>Die Kündigung</p><script>no</script>".encode()
    header = "From: a@example.com\r\nDate: Fri, 31 May 2024 23:30:00 -0800\r\n\r\n"
    write_msg(tmp_path / "a.msg", {SUBJECT: "Notice", HEADERS: header}, 133_617_000_000_000_000, html)
    write_msg(tmp_path / "b.msg", {SUBJECT: "Long", BODY: "Wörter " * 3000}, 133_616_718_000_000_000)
    write_msg(tmp_path / "c.msg", {SUBJECT: "Only attachments"})
    (tmp_path / "d.msg").write_bytes(b"no mail")
    write_msg(tmp_path / "e.msg", {SUBJECT: "Only formatted"}, packed_rtf=PACKED_RTF)
    write_msg(tmp_path / "f.msg", {SUBJECT: "Damaged"}, packed_rtf=PACKED_RTF[:-9])
    page = rb"{\rtf1\ansi\fromhtml1{\*\htmltag64 <p>}Die K\'fcndigung\htmlrtf\par\htmlrtf0{\*\htmltag72 </p>}gilt.}"
    stored = struct.pack("<II4sI", len(page) + 12, len(page), b"MELA", 0) + page
    write_msg(tmp_path / "g.msg", {SUBJECT: "Of a page"}, packed_rtf=stored)
    first, second, third, fourth, fifth, sixth, seventh = read_all(tmp_path)
    assert first["text"] == "Notice\n\nDie Kündigung" and first["date"] == "2024-05-31"
    assert second["text"] == "Long\n\n" + "Wörter " * 2999 + "Wörter" and second["date"] == "2024-05-31"
    assert third.reason.endswith("no text in this mail")
    assert fourth.reason.startswith("damaged or cut short: ValueError: ")
    assert fifth["text"] == "Only formatted\n\nhello world"
    assert sixth.reason.startswith("damaged or cut short: ")
    assert seventh["text"] == "Of a page\n\nDie Kündigung\ngilt."


@NEEDS_LIBRARIES
@pytest.mark.parametrize("stated", ["31/05/2024 at noon", "Fri, 31 May 99999999999 23:30:00 -0800"])
def test_a_mail_whose_date_is_none_keeps_its_text(tmp_path, converter, stated):
    (tmp_path / "a.eml").write_text(f"Subject: Notice\nDate: {stated}\n\nThe lease ends.\n")
    write_msg(tmp_path / "b.msg", {SUBJECT: "Notice", BODY: "The lease ends.", HEADERS: f"Date: {stated}\r\n\r\n"})
    for example in read_all(tmp_path):
        assert example["text"] == "Notice\n\nThe lease ends." and example["date"] == stated
    assert len(read_all(tmp_path)) == 2


@NEEDS_LIBRARIES
@pytest.mark.parametrize("stored_as", ["OEBPS/text/chapter 1.xhtml", "OEBPS/text/chapter%201.xhtml"])
def test_a_book_whose_chapters_are_named_by_urls_is_read(tmp_path, converter, stored_as):
    sample_documents.render_epub(tmp_path / "a.epub", Sample("A book", ["One.", "Two."]))
    with zipfile.ZipFile(tmp_path / "a.epub") as book, zipfile.ZipFile(tmp_path / "b.epub", "w") as other:
        for name in book.namelist():
            content = book.read(name).replace(b'"text/a.xhtml"', b'"text/chapter%201.xhtml#start"')
            other.writestr(stored_as if name == "OEBPS/text/a.xhtml" else name, content)
    first, second = read_all(tmp_path)
    assert first["text"] == second["text"] == "One.\n\nTwo."


@NEEDS_LIBRARIES
def test_pages_of_a_pdf_and_slides_are_cited_through_to_the_ledger(tmp_path, converter, capsys):
    (tmp_path / "mine").mkdir()
    sample = contract(5, 40)
    pages = render_pdf(tmp_path / "mine" / "lease.pdf", sample, hyphenate=True)
    sample_documents.render_pptx(tmp_path / "mine" / "talk.pptx", contract(6, 5))
    for number in range(4):
        (tmp_path / "mine" / f"{number}.txt").write_text(make_text(number))
    lease, talk = read_all(tmp_path / "mine")[4:]
    for example, count in ((lease, pages), (talk, 7)):
        starts = example["page_starts"]
        assert len(starts) == count and starts == sorted(set(starts)) and starts[0] == 0
    assert talk["text"][talk["page_starts"][2] :].startswith("2.\n\n")
    write_tiny_texts(tmp_path / "texts")
    run = TinyRun(tmp_path / "texts", tmp_path / "run")
    sources = json.dumps([{"name": "mine", "path": str(tmp_path / "mine")}])
    prepare_data.main(run.argv(f"--data.sources={sources}", "--data.personal_data={profile: general}"))
    capsys.readouterr()
    passage = " ".join(lease["text"][lease["page_starts"][2] :].split()[3:10])
    document_ledger.main([str(run.output_dir), "--passage", passage])
    printed = capsys.readouterr().out
    assert f"{tmp_path}/mine/lease.pdf:1, page 3  Licence Agreement  'Licence Agreement" in printed
    document_ledger.main([str(run.output_dir), "--passage", passage, "--json"])
    (entry,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (entry["page"], entry["title"]) == (3, "Licence Agreement") and "page_starts" not in entry


def add_part(path: Path, name: str, content: str, kind: str) -> None:
    """Add a part to a .docx, with its relation and type."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    relation = f'<Relationship Id="rIdX" Type="{office}/{kind}" Target="{Path(name).name}"/></Relationships>'
    relations, types = "word/_rels/document.xml.rels", "[Content_Types].xml"
    parts[relations] = parts[relations].replace(b"</Relationships>", relation.encode())
    media = f"application/vnd.openxmlformats-officedocument.wordprocessingml.{kind}+xml"
    parts[types] = parts[types].replace(
        b"</Types>", f'<Override PartName="/{name}" ContentType="{media}"/></Types>'.encode()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for part, written in (parts | {name: content.encode()}).items():
            archive.writestr(part, written)


@NEEDS_LIBRARIES
def test_html_is_read_in_the_encoding_it_states_and_in_that_it_is_in(tmp_path, converter):
    text = "Die Kündigung bedarf der Schriftform, größere Änderungen auch."
    russian = "Арендатор обязан вносить плату."
    for name, charset, encoding in (
        ("a", "iso-8859-1", "cp1252"),
        ("b", "utf-8", "utf-8"),
        ("c", "", "cp1252"),
        ("d", "koi8-r", "koi8-r"),
        ("e", "utf-8", "cp1252"),
    ):
        text_of_page = russian if encoding == "koi8-r" else text
        meta = f'<meta charset="{charset}">' if charset else ""
        page = f"<html><head>{meta}<title>T</title></head><body><p>{text_of_page}</p></body></html>"
        (tmp_path / f"{name}.html").write_bytes(page.encode(encoding))
    assert [example["text"] for example in read_all(tmp_path)] == [
        *[text] * 3,
        "Арендатор обязан вносить плату.",
        text,
    ]
    (tmp_path / "deep.htm").write_text("<div>" * 30_000 + "deep" + "</div>" * 30_000)
    assert reasons(tmp_path / "deep.htm") == ["deep"]


@NEEDS_LIBRARIES
def test_documents_in_archives_and_packed_are_read_and_divided(tmp_path, converter):
    (tmp_path / "a.html").write_text("<p>one</p><p>===</p><p>two</p>")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a.html", "c.html")
    found = [example["text"].strip() for example in read_all(tmp_path, document_separator="===")]
    assert found == ["one", "two"] * 2


@NEEDS_LIBRARIES
def test_a_scan_is_named_and_read_by_tesseract_where_it_is_installed(tmp_path, monkeypatch, converter):
    (tmp_path / "texts").mkdir()
    write_pdf(
        tmp_path / "texts" / "a.pdf", [[], [], [(60, 700, 10, "A page with a text of its own.")]], image=bytes(64)
    )
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    scan = "a scan: 2 of 3 pages have no text; install tesseract to read them"
    assert reasons(tmp_path / "texts") == [scan]
    program = tmp_path / "bin" / "tesseract"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nhead=$(/usr/bin/head -c 2)\n[ "$head" = P5 ] && [ "$1$2" = "--" ] && echo "Recognised text."\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    conversion.start_converter.cache_clear()
    (example,) = read_all(tmp_path / "texts")
    assert example["text"].split("\n\n") == ["Recognised text.", "Recognised text.", "A page with a text of its own."]
    assert example["ocr_pages"] == 2
    program.write_text("#!/bin/sh\nexit 1\n")
    assert reasons(tmp_path / "texts") == ["a scan: 2 of 3 pages have no text; tesseract read 0 of them"]


@NEEDS_LIBRARIES
def test_pages_of_a_document_that_are_images_and_unread_are_counted(tmp_path, monkeypatch, converter, capsys):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    write_tiny_texts(tmp_path / "texts")
    lines = [[(60, 700 - 12 * row, 10, line) for row, line in enumerate(make_text(1).splitlines())]]
    write_pdf(tmp_path / "texts" / "web" / "a.pdf", [*lines, [], []], image=bytes(64))
    assert read_all(tmp_path / "texts" / "web")[-1]["unread_pages"] == 2
    run = TinyRun(tmp_path / "texts", tmp_path / "run")
    sources = [{"name": "web", "path": str(tmp_path / "texts" / "web"), "document_separator": "/(?=No tenant )/"}]
    prepare_data.main(run.argv(f"--data.sources={json.dumps(sources)}"))
    assert "web: note: 1 documents lack the text of 2 pages, which are images" in capsys.readouterr().out
    folder = run.output_dir / "documents"
    stats = json.loads((folder / "stats.json").read_text())["sources"]["web"]
    assert stats["unread_pages"] == {"documents": 1, "pages": 2}
    assert "1 documents lack the text of 2 pages, which are images." in (folder / "README.md").read_text()


@NEEDS_LIBRARIES
def test_damaged_documents_and_bombs_are_quarantined_and_the_next_is_read(tmp_path, converter):
    sample = contract(4, 40)
    render_pdf(tmp_path / "good.pdf", sample)
    content = (tmp_path / "good.pdf").read_bytes()
    (tmp_path / "cut.pdf").write_bytes(content[: len(content) // 8])
    (tmp_path / "fake.pdf").write_bytes(b"no PDF at all" * 50)
    (tmp_path / "fake.docx").write_bytes(b"PK\x03\x04 and no more")
    with (
        zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("word/document.xml", "w") as part,
    ):
        for _ in range(300):
            part.write(bytes(1 << 20))
    write_pdf(tmp_path / "many.pdf", [[]] * 5001)
    found = dict(zip(sorted(path.name for path in tmp_path.iterdir()), reasons(tmp_path), strict=True))
    assert found.pop("good.pdf").startswith("Licence Agreement")
    assert found.pop("many.pdf") == "5,001 pages, more than 5,000"
    assert found.pop("bomb.docx").startswith("unpacks to 314,572,800 bytes, from a file of")
    assert all(reason.startswith("damaged or cut short: ") for reason in found.values()) and len(found) == 3
    assert all(str(tmp_path) not in reason and "/tmp" not in reason for reason in found.values())


# A parser in place of striprtf's -> the reason that the document is quarantined for.
HOSTILE = {
    "while True: pass": "its parser took longer than a step of 5 s and was ended",
    "import time; time.sleep(60)": "its parser took longer than a step of 5 s and was ended",
    "import os; os.abort()": "its parser crashed (status -6)",
    "import sys; sys.exit(3)": "its parser crashed (status 3)",
    "x = [bytes(1 << 24) for _ in range(1000)]": "its parser took more than 1,073,741,824 bytes of memory",
    "raise RecursionError('too deep')": "damaged or cut short: RecursionError: too deep",
}


@pytest.mark.parametrize("code", HOSTILE)
def test_a_parser_that_hangs_crashes_or_takes_all_memory_is_ended_and_the_next_document_is_read(
    tmp_path, monkeypatch, converter, code
):
    (tmp_path / "modules" / "striprtf").mkdir(parents=True)
    (tmp_path / "modules" / "striprtf" / "__init__.py").write_text("")
    parser = f"def rtf_to_text(text):\n    if 'hostile' in text:\n        {code}\n    return text[6:]\n"
    (tmp_path / "modules" / "striprtf" / "striprtf.py").write_text(parser)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr(conversion, "STEP_SECONDS", 5.0)
    monkeypatch.setattr(conversion, "MEMORY_BYTES", 1 << 30)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.rtf").write_text("{\\rtf1 hostile")
    (tmp_path / "texts" / "b.rtf").write_text("{\\rtf1harmless")
    assert reasons(tmp_path / "texts") == [HOSTILE[code], "harmless"]


@NEEDS_LIBRARIES
def test_nothing_that_a_document_names_is_fetched(tmp_path, converter):
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with socketserver.TCPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        page = f'<link rel=stylesheet href="{url}/css"><img src="{url}/img"><iframe src="{url}/frame"></iframe>'
        (tmp_path / "a.html").write_text(f"{page}<p>text</p>")
        entity = f'<!DOCTYPE p [<!ENTITY e SYSTEM "{url}/entity">]>'
        sample_documents.render_docx(tmp_path / "b.docx", Sample("t", ["text"]))
        word = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
        footnotes = (
            f"{entity}<w:footnotes {word}><w:footnote><w:p><w:r><w:t>&e;</w:t></w:r></w:p></w:footnote></w:footnotes>"
        )
        add_part(tmp_path / "b.docx", "word/footnotes.xml", footnotes, "footnotes")
        examples = read_all(tmp_path)
        server.shutdown()
    assert [example["text"] for example in examples] == ["text", "text"] and asked == []


def test_documents_without_their_libraries_are_refused_with_the_line_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(file_kinds, "find_spec", lambda module: None)
    (tmp_path / "a.txt").write_text("text" * 100)
    for name in ("b.PDF", "c.docx", "d.html"):
        (tmp_path / name).write_text("x")
    with pytest.raises(RecipeError) as error:
        read_all(tmp_path)
    message, line = str(error.value).splitlines()
    assert line == INSTALL == "pip install -r recipes/requirements-documents.txt"
    assert "1 .docx, 1 .html, 1 .pdf need libraries that are not installed" in message
    assert 'ignore: [".docx", ".html", ".pdf"]' in message
    assert [example["text"] for example in read_all(tmp_path, ignore=[".docx", ".html", ".pdf"])] == ["text" * 100]


def test_the_libraries_are_pinned_and_each_says_its_formats_and_licence():
    lines = (Path(conversion.__file__).parent.parent / "requirements-documents.txt").read_text().splitlines()
    for line in lines:
        name, _, about = line.partition("==")
        assert name and any(kind in about for kind in DOCUMENTS) and ("MIT" in about or "BSD" in about), line


@NEEDS_LIBRARIES
def test_a_folder_of_documents_is_prepared_with_the_same_bytes_by_any_number_of_workers(tmp_path, capsys):
    write_tiny_texts(tmp_path / "texts")
    mine = tmp_path / "mine"
    mine.mkdir()
    for number, kind in enumerate([".pdf", *RENDERERS] * 2):
        sample = Sample("T", ["Title", *make_text(number).split("\n")])
        (RENDERERS[kind] if kind != ".pdf" else render_pdf)(mine / f"{number}{kind}", sample)
    (mine / "bad.pdf").write_bytes(b"%PDF-1.4 and no more")
    sources = json.dumps([{"name": "mine", "path": str(mine)}])
    hashes = []
    for workers in (1, 2):
        run = TinyRun(tmp_path / "texts", tmp_path / f"run{workers}")
        prepare_data.main(run.argv(f"--data.sources={sources}", f"--data.workers={workers}"))
        record = json.loads((run.output_dir / "documents" / "stage.json").read_text())
        hashes.append(record["files"])
    assert hashes[0] == hashes[1]
    stats = json.loads((run.output_dir / "documents" / "stats.json").read_text())["sources"]["mine"]
    assert stats["documents_in"] == 17 and stats["dropped"]["unreadable"]["documents"] == 1
    assert sum(kept["documents"] for kept in stats["kept"].values()) == 16
    assert "unreadable" in capsys.readouterr().out


def test_a_parser_imports_nothing_from_the_working_folder(tmp_path, monkeypatch):
    for name in ("json.py", "resource.py", "zipfile.py", "numpy.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    converter = conversion.Converter()
    answer = converter.convert(str(tmp_path / "absent.docx"), ".docx")
    converter.stop()
    assert "FileNotFoundError" in answer["error"] and not (tmp_path / "imported").exists()
