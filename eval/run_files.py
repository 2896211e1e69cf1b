# SPDX-License-Identifier: Apache-2.0
"""The files of a run folder as the report reads them, and what a section of the report makes of them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure


@dataclass
class Shown:
    """One section of the report.

    Attributes:
        title: its heading.
        values: what its template, sections/<name>.html.jinja, may use beside `run` and `figures`.
        figures: {file name without .png: (figure, what it shows)}.
        summary: its lines in summary.txt, none to say nothing there.
    """

    title: str
    values: dict = field(default_factory=dict)
    figures: dict[str, tuple[Figure, str]] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)


class RunFiles:
    """Reads files of a run folder, each once. Paths are relative to the folder, as the report links them.

    Args: reference: a curve of another run to compare with, which lies elsewhere.
    """

    def __init__(self, folder: Path, reference: Path | None = None):
        self.folder, self.reference = folder, reference
        self._read: dict[str, object] = {}

    def has(self, path: str) -> bool:
        return (self.folder / path).is_file()

    def text(self, path: str) -> str | None:
        """Return a file's text, None where there is no such file."""
        return (self.folder / path).read_text(encoding="utf-8") if self.has(path) else None

    def json(self, path: str) -> dict | None:
        """Return a JSON file's content, None where there is no such file. Raises: ValueError: it is not JSON."""
        return self._parsed(path, json.loads)

    def lines(self, path: str) -> list[dict]:
        """Return the entries of a file of JSON lines; a last line that a kill cut short is left out.

        Raises: ValueError: a line is not JSON.
        """
        return self._parsed(path, read_lines) or []

    def metrics(self) -> dict[str, list[dict]]:
        """Return metrics.jsonl's lines as {"training": [...], "evaluation": [...]}, in the order of steps.

        Where a resumed run wrote a step twice, the later line counts.
        """
        by_step: dict[str, dict[int, dict]] = {"training": {}, "evaluation": {}}
        for entry in self.lines("metrics.jsonl"):
            by_step["training" if "train/loss" in entry else "evaluation"][entry["step"]] = entry
        return {kind: [entries[step] for step in sorted(entries)] for kind, entries in by_step.items()}

    def _parsed(self, path: str, parse) -> object:
        if path not in self._read:
            text = self.text(path)
            try:
                self._read[path] = None if text is None else parse(text)
            except ValueError as error:
                raise ValueError(
                    f"{self.folder / path}: not valid JSON: {error}; run the stage that writes it again"
                ) from error
        return self._read[path]


def read_lines(text: str) -> list[dict]:
    lines, entries = text.split("\n"), []  # not splitlines, which also cuts at characters that JSON leaves alone
    for number, line in enumerate(lines):
        try:
            entries += [json.loads(line)] if line.strip() else []
        except ValueError:
            if number == len(lines) - 1:  # without a line end
                break
            raise
    return entries
