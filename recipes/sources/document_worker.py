# SPDX-License-Identifier: Apache-2.0
"""The process that converts documents: a line of JSON in, {"path", "kind"}; a line out, {"text"} or {"error"}.

An empty line out says that a page is done. conversion.py starts and ends it.
"""

import json
import os
import resource
import sys
import zipfile

from sources import document_formats, pdf_text


MOST_TEXT_BYTES = 128 << 20
# What a .docx, .pptx or .epub may unpack to; a page of text has some kilobytes.
MOST_UNPACKED_BYTES = 1 << 30
MOST_RATIO = 200


def convert(path: str, kind: str) -> dict:
    """Return the text of a document, or why it has none."""
    if kind in (".docx", ".pptx", ".epub"):
        unpacked = sum(info.file_size for info in zipfile.ZipFile(path).infolist())
        if unpacked > MOST_UNPACKED_BYTES or unpacked > MOST_RATIO * os.path.getsize(path) + (64 << 20):
            return {"error": f"unpacks to {unpacked:,} bytes, from a file of {os.path.getsize(path):,}"}
    found = pdf_text.read_pdf(path, say_alive) if kind == ".pdf" else document_formats.READERS[kind](path)
    if "error" in found:
        return found
    # Characters that no document can contain, such as those of a font that says nothing of its letters.
    content = found["text"].replace("\0", "").encode(errors="replace")
    if "page_starts" in found:
        found["page_starts"] = [start - found["text"].count("\0", 0, start) for start in found["page_starts"]]
    if len(content) > MOST_TEXT_BYTES:
        return {"error": f"longer than {MOST_TEXT_BYTES:,} bytes"}
    return found | {"text": content.decode()}


def say_alive() -> None:
    os.write(sys.stdout.fileno(), b"\n")


def main() -> None:
    most = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            answer = convert(request["path"], request["kind"])
        except MemoryError:
            answer = {"error": f"its parser took more than {most:,} bytes of memory"}
        except Exception as error:  # of parsers that others wrote, on files that others damaged
            first = (str(error) or "no message").splitlines()[0].replace(request["path"], "the file")
            answer = {"error": f"damaged or cut short: {type(error).__name__}: {first[:200]}"}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
