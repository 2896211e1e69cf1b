# SPDX-License-Identifier: Apache-2.0
"""The files of a run folder, and the section that the report makes of them."""

import hashlib
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
    """Read the files of a run folder, each once, and refuse one that is not as its stage recorded it.

    Paths are relative to the folder, as the report links them.

    Args:
        folder: run.output_dir of a recipe.
        reference: curve of another run to compare with, outside the folder.
    """

    def __init__(self, folder: Path, reference: Path | None = None):
        self.folder, self.reference = folder, reference
        self._read: dict[str, object] = {}
        self._records: dict[Path, dict[str, dict]] = {}

    @property
    def shown_folder(self) -> str:
        """The folder as a command in the report writes it: relative, for a report is published."""
        folder, here = self.folder.resolve(), Path.cwd()
        return folder.relative_to(here).as_posix() if folder.is_relative_to(here) else f"path/to/{folder.name}"

    def has(self, path: str) -> bool:
        return (self.folder / path).is_file()

    def text(self, path: str) -> str | None:
        """Return a file's text, None where there is no such file. Raises: ValueError: as for `content`."""
        return self.content(path).decode("utf-8") if self.has(path) else None

    def content(self, path: str) -> bytes:
        """Return a file's bytes.

        Raises: ValueError: they are not those that its stage recorded; a report of them would be published.
        """
        content = (self.folder / path).read_bytes()
        recorded = self._recorded(str(Path(path).parent)).get(Path(path).name)
        if recorded not in (None, describe(content)):
            raise ValueError(
                f"{self.folder / path} is not as it was written: its size or sha256 is not the recorded one. Restore "
                "it from a copy, or run the stage that writes it again"
            )
        return content

    def _recorded(self, folder: str) -> dict[str, dict]:
        """Return name -> bytes and sha256 of the files in a folder of the run, by its record; empty without one."""
        if folder == "figures":  # the report's own record, in which a chart by another script may be an earlier one
            return {}
        path = self.folder / folder / ("run_files.json" if folder == "." else "stage.json")
        if path not in self._records:
            try:
                self._records[path] = read_record(path)["files"]
            except FileNotFoundError:
                self._records[path] = {}
        return self._records[path]

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


def read_record(path: Path) -> dict:
    """Return the record of a stage, or of the run folder's own files: bytes and sha256 of each, and a hash over these.

    Raises: FileNotFoundError: there is none.  ValueError: it is damaged.
    """
    try:
        record = json.loads(path.read_bytes())
        if record["sha256"] == sha256_of(record["files"]):
            return record
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(
        f"{path} is not as it was written, so the files that it names cannot be checked. Restore it from a copy; "
        "recipes/verify_run.py lists all damage"
    )


def describe(content: bytes) -> dict:
    """Return a file's entry in a record."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def sha256_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
