# SPDX-License-Identifier: Apache-2.0
"""The files of a run folder, and the section that the report makes of them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from limits import read_yaml


# What the stages of every recipe write. The report names those that are missing.
STAGE_FILES = [
    "documents/stats.json",
    "tokenizer/report.json",
    "training.json",
    "metrics.jsonl",
    "chronicle.jsonl",
    "eval/results.json",
]


@dataclass
class Section:
    """One section of the report.

    Attributes:
        title: its heading.
        values: what its template, sections/<name>.html.jinja, uses beside `run` and `figures`.
        figures: {file name without .png: (figure, caption)}.
        summary: its lines in summary.txt; empty to stay out of it.
    """

    title: str
    values: dict = field(default_factory=dict)
    figures: dict[str, tuple[Figure, str]] = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)


class RunFiles:
    """Read the files of a run folder, each once. Paths are relative to the folder, as the report links them.

    Args:
        folder: run.output_dir of a recipe.
        reference: curve of another run to compare with, outside the folder.
    """

    def __init__(self, folder: Path, reference: Path | None = None):
        self.folder, self.reference = folder, reference
        self._read: dict[str, object] = {}

    @property
    def shown_folder(self) -> str:
        """The folder as a command in the report writes it: relative, for a report is published."""
        folder, here = self.folder.resolve(), Path.cwd()
        return folder.relative_to(here).as_posix() if folder.is_relative_to(here) else f"path/to/{folder.name}"

    def has(self, path: str) -> bool:
        return (self.folder / path).is_file()

    def text(self, path: str) -> str | None:
        """Return a file's text, None where there is no such file."""
        return (self.folder / path).read_text(encoding="utf-8") if self.has(path) else None

    def json(self, path: str) -> dict | None:
        """Return a JSON file's content, None where there is no such file. Raises: ValueError: it is not JSON."""
        return self._parsed(path, json.loads)

    def yaml(self, path: str) -> dict | None:
        """Return a YAML file's content, None where there is no such file. Raises: ValueError: it is not YAML."""
        return self._parsed(path, read_yaml)

    def lines(self, path: str) -> list[dict]:
        """Return the objects of a file of JSON lines, without a last line that a kill left incomplete.

        Raises: ValueError: a line is not JSON.
        """
        return self._parsed(path, read_lines) or []

    def metrics(self) -> dict[str, list[dict]]:
        """Return metrics.jsonl's lines as {"training": [...], "evaluation": [...]}, by step.

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
                kind = "YAML" if path.endswith(".yaml") else "JSON"
                raise ValueError(
                    f"{self.folder / path}: not valid {kind}: {error}; run the stage that writes it again"
                ) from error
        return self._read[path]


def read_lines(text: str) -> list[dict]:
    lines, entries = text.split("\n"), []  # splitlines would also split at characters that JSON allows in a string
    for number, line in enumerate(lines):
        try:
            entries += [json.loads(line)] if line.strip() else []
        except ValueError:
            if number == len(lines) - 1:  # it has no line end
                break
            raise
    return entries
