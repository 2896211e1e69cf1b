# SPDX-License-Identifier: Apache-2.0
"""Write an evaluation's folder as a whole: a run that is killed leaves the earlier folder as it was."""

import json
import os
import shutil
from pathlib import Path


OWN_FILES = {"results.json", "stage.json", "items", "baselines"}


def parts_folder(output: Path) -> Path:
    """Return the folder that keeps finished pieces of an evaluation until all of it is done."""
    return output.resolve().with_name(f".{output.resolve().name}.parts")


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_results(output: Path, files: dict[str, str]) -> None:
    """Write {path: text} to a new folder beside the output, then swap the two."""
    output = output.resolve()
    new, old = (output.with_name(f".{output.name}.{suffix}") for suffix in ("tmp", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for name, text in files.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        write_synced(new / name, text)
    if output.exists():
        output.rename(old)
    new.rename(output)
    shutil.rmtree(old, ignore_errors=True)
