# SPDX-License-Identifier: Apache-2.0
"""Convert documents (.docx, .pdf, ...) to text in a process of their own, within limits of time and memory.

A file that crashes, hangs or fills the memory of its parser ends that process and nothing else: the document is
quarantined with the reason, and a new process takes the next one. Nothing in a document is executed or fetched.
"""

import atexit
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from sources.file_kinds import suffix


# A page, or a document of another format, may take this long, and a whole document that long (seconds).
STEP_SECONDS, DOCUMENT_SECONDS = 60.0, 3600.0
MEMORY_BYTES = 4 << 30
# A process is replaced after this many documents, so that what a parser leaks does not add up.
DOCUMENTS_PER_PROCESS = 500
MAX_FILE_BYTES = 1 << 30


class Converter:
    """The process that converts, started when it is needed."""

    def __init__(self):
        self.process: subprocess.Popen | None = None
        self.converted = 0

    def convert(self, path: str, kind: str) -> dict:
        """Return what the worker returns: {"text", "title", ...}, or {"error": why there is no text}."""
        if self.process is None or self.process.poll() is not None or self.converted >= DOCUMENTS_PER_PROCESS:
            self.start()
        self.converted += 1
        request = {"path": path, "kind": kind}
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return self.failed()
        end, received = time.monotonic() + DOCUMENT_SECONDS, bytearray()
        while True:
            wait = min(STEP_SECONDS, end - time.monotonic())
            if wait <= 0 or not select.select([self.process.stdout], [], [], wait)[0]:
                self.stop()
                what = f"a step of {STEP_SECONDS:.0f} s" if wait > 0 else f"{DOCUMENT_SECONDS:.0f} s"
                return {"error": f"its parser took longer than {what} and was ended"}
            chunk = os.read(self.process.stdout.fileno(), 1 << 20)
            if not chunk:
                return self.failed()
            received += chunk
            if b"\n" in chunk and (answer := received.rpartition(b"\n")[0].strip()):
                return json.loads(answer)

    def start(self) -> None:
        self.stop()
        paths = [str(Path(__file__).resolve().parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sources.document_worker", str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
            bufsize=0,
        )
        self.converted = 0

    def failed(self) -> dict:
        status = self.process.wait()
        self.stop()
        return {"error": f"its parser crashed (status {status})"}

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


@lru_cache(maxsize=1)
def start_converter(process_id: int) -> Converter:
    """Return the converter of this process; a forked one has its own."""
    converter = Converter()
    atexit.register(converter.stop)
    return converter


def convert_file(opener: Callable[[], AbstractContextManager[BinaryIO]], name: str) -> tuple[dict, int]:
    """Return the worker's answer for a file, which is copied for it, and the file's size.

    Args:
        opener: opens the file at its start, unpacked.
        name: of the file, whose ending says what it is.
    """
    converter, kind = start_converter(os.getpid()), suffix(name)
    with opener() as stream, tempfile.NamedTemporaryFile(suffix=kind) as copied:
        shutil.copyfileobj(LimitedStream(stream), copied, 1 << 20)
        copied.flush()
        size_bytes = copied.tell()
        if size_bytes > MAX_FILE_BYTES:
            return {"error": f"longer than {MAX_FILE_BYTES:,} bytes"}, size_bytes
        return converter.convert(copied.name, kind), size_bytes


class LimitedStream:
    """Read a stream to a little past MAX_FILE_BYTES."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.num_bytes = stream, 0

    def read(self, size: int) -> bytes:
        content = self.stream.read(size) if self.num_bytes <= MAX_FILE_BYTES else b""
        self.num_bytes += len(content)
        return content
