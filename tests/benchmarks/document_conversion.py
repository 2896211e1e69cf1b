# SPDX-License-Identifier: Apache-2.0
"""Documents to text: word error rate, paragraphs in order, tables and speed, on documents whose exact text is known.

    pip install -r recipes/requirements-documents.txt
    PYTHONPATH=recipes:tests python tests/benchmarks/document_conversion.py

tests/sample_documents.py writes 20 contracts in each format and layout. Of a PDF the word error rate of PDFium's own
text is beside ours. Prints a table in Markdown; the time is of one core, without the start of the process.
"""

import tempfile
import time
from pathlib import Path

import pypdfium2
from sample_documents import LAYOUTS, RENDERERS, contract, render_pdf, word_error_rate, words_of

from sources.document_formats import READERS
from sources.pdf_text import read_pdf


DOCUMENTS, PARAGRAPHS = 20, 40


def places(text: str, blocks: list[str]) -> list[int]:
    flat = " ".join(words_of(text))
    return [flat.find(" ".join(words_of(block))) for block in blocks]


def measure(kind: str, layout: dict) -> str:
    errors, plain_errors, whole, blocks, tables, pages, seconds = [], [], 0, 0, 0, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(DOCUMENTS):
            path, sample = Path(folder) / f"{seed}{kind}", contract(seed, PARAGRAPHS)
            if kind == ".pdf":
                pages += render_pdf(path, sample, **layout)
            else:
                RENDERERS[kind](path, sample)
            start = time.process_time()
            text = (read_pdf(str(path), lambda: None) if kind == ".pdf" else READERS[kind](str(path)))["text"]
            seconds += time.process_time() - start
            errors.append(word_error_rate(words_of(text), sample.words))
            if kind == ".pdf":
                plain = "\n".join(page.get_textpage().get_text_range() for page in pypdfium2.PdfDocument(path))
                plain_errors.append(word_error_rate(words_of(plain), sample.words))
            found = places(text, sample.texts)
            whole += sum(a < b for a, b in zip([-1, *found], found, strict=False))
            blocks += len(found)
            tables += "Licence | 12 | 4,500" in text or "Licence|12|4,500" in text
    plain = f"{100 * sum(plain_errors) / DOCUMENTS:.2f} %" if plain_errors else "-"
    speed = f"{pages / seconds:,.0f} pages" if pages else f"{DOCUMENTS / seconds:,.0f} documents"
    error = f"{100 * sum(errors) / DOCUMENTS:.2f} %"
    return f"{error} | {plain} | {100 * whole / blocks:.1f} % | {tables} of {DOCUMENTS} | {speed}"


def main() -> None:
    print("| format | word error rate | PDFium alone | paragraphs whole and in order | table rows | a second a core |")
    print("|---|--:|--:|--:|--:|--:|")
    for layout, settings in LAYOUTS.items():
        print(f"| .pdf, {layout} | {measure('.pdf', settings)} |")
    for kind in RENDERERS:
        print(f"| {kind} | {measure(kind, {})} |")


if __name__ == "__main__":
    main()
