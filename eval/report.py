# SPDX-License-Identifier: Apache-2.0
"""Turn a run folder into figures, a report to read in a browser, and a summary for the terminal.

In:  the files that the stages wrote to the run folder, each read by the section of eval/sections that shows it. A
     section without its files is left out; the first one, overview, says which files are missing.
Out: figures/*.png, report.html (one file, figures inside), summary.txt (also printed).

    python eval/report.py runs/legal-quickstart
    python eval/report.py runs/legal-quickstart --save_reference curve.csv   # its curve, to compare later runs with
    python eval/report.py runs/another --reference curve.csv                 # "2.1 % above the reference at step 400"

Every number comes from one of those files; nothing is measured here. A file that is not as its stage recorded it is
refused. Text from data or a model is escaped. A report of a run whose earlier one was recorded takes its place in the
record, so that the run stays whole.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from figure_style import is_drawn_here, save_figure, style
from limits import run_script
from results_folder import locked_run
from run_files import STAGE_FILES, RunFiles, Section, describe, read_record, sha256_of
from sections import (
    benchmarks,
    chronicle,
    contamination,
    curves,
    documents,
    held_out_text,
    leaks,
    mixture,
    overview,
    personal_data,
    plan,
    preflight,
    reference,
    samples,
    tokenizer,
    training,
)
from wording import count, decimals, duration, marked


logger = logging.getLogger(__name__)

# In the order of the page.
SECTIONS = [
    overview,
    held_out_text,
    benchmarks,
    samples,
    leaks,
    training,
    curves,
    reference,
    mixture,
    tokenizer,
    documents,
    personal_data,
    contamination,
    plan,
    preflight,
    chronicle,
]


def build_sections(run: RunFiles) -> dict[str, Section]:
    """Return the sections that have their files, {name: section} in the order of the page."""
    built = {module.__name__.rpartition(".")[2]: module.build(run) for module in SECTIONS}
    return {name: section for name, section in built.items() if section}


def draw_figures(sections: dict[str, Section], folder: Path) -> dict[str, dict[str, str]]:
    """Write folder/figures/*.png, replacing earlier ones at once; return {name: {"uri", "text"}}.

    Images that another script put there stay.
    """
    new, figures = folder / ".figures.tmp", folder / "figures"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    drawn = {
        name: {"uri": save_figure(figure, new / f"{name}.png"), "text": text}
        for section in sections.values()
        for name, (figure, text) in section.figures.items()
    }
    for path in figures.glob("*.png"):
        if path.stem not in drawn and not is_drawn_here(path):
            shutil.copy2(path, new)
    shutil.rmtree(figures, ignore_errors=True)
    new.rename(figures)
    return drawn


def write_html(run: RunFiles, sections: dict[str, Section], figures: dict[str, dict[str, str]]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "decimals": decimals, "duration": duration, "marked": marked}
    environment.globals |= {"run": run, "figures": figures}
    parts = [
        {
            "name": name,
            "title": section.title,
            "html": Markup(environment.get_template(f"sections/{name}.html.jinja").render(section.values)),
        }
        for name, section in sections.items()
    ]
    return environment.get_template("report.html.jinja").render(overview=parts[0], sections=parts[1:])


def write_summary(run: RunFiles, sections: dict[str, Section]) -> str:
    """Return the text that a newcomer sees at the end of a run."""
    lines = [line for section in sections.values() if section.summary for line in [*section.summary, ""]]
    lines.append(f"report  {run.folder / 'report.html'}")
    for name, path in (("model", run.folder / "model"), ("card", run.folder / "release" / "README.md")):
        if path.exists():
            lines.append(f"{name:<6}  {path}")
    return "\n".join(lines) + "\n"


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically: afterwards it has the new text or the old."""
    new = path.with_name(f".{path.name}.tmp")
    with new.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, path)


def read_records(run: Path) -> dict[Path, dict]:
    """Return what run_recipe.py recorded of an earlier report: {path: record}, without those that are damaged."""
    records = {}
    for path in (run / "figures" / "stage.json", run / "run_files.json"):
        with suppress(FileNotFoundError, ValueError):
            records[path] = read_record(path)
    return records


def write_records(records: dict[Path, dict]) -> None:
    """Enter the new report's files in the records of the earlier one."""
    for path, record in records.items():
        if path.name == "stage.json":
            files = {image.name: describe(image.read_bytes()) for image in path.parent.glob("*.png")}
        else:
            new = {name: describe((path.parent / name).read_bytes()) for name in ("report.html", "summary.txt")}
            files = record["files"] | {name: file for name, file in new.items() if name in record["files"]}
        record |= {"files": dict(sorted(files.items()))}
        record["sha256"] = sha256_of(record["files"])
        if record.pop("record_sha256", None):
            record["record_sha256"] = sha256_of(record)
        replace_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("run_folder", type=Path, help="run.output_dir of a recipe")
    parser.add_argument("--reference", type=Path, help="curve of an earlier run to compare with")
    parser.add_argument("--save_reference", type=Path, help="write this run's curve there too, as CSV")
    arguments = parser.parse_args(argv)
    run = RunFiles(arguments.run_folder, arguments.reference)
    if not run.folder.is_dir():
        raise SystemExit(f"{run.folder}: there is no such folder; give the run.output_dir of a recipe")
    if run.reference is not None and not run.reference.is_file():
        raise SystemExit(f"--reference: there is no file {run.reference}; --save_reference makes one")
    with locked_run(run.folder, "report"):
        write_report(run, arguments.save_reference)


def write_report(run: RunFiles, save_reference: Path | None) -> None:
    """Write figures, report and summary, and print the summary.

    Args: save_reference: file for the run's curve; None: it is not written.
    Raises: SystemExit: a file of the run cannot be read, or the folder is no run folder.
    """
    try:
        if save_reference is not None:
            replace_text(save_reference, reference.format_curve(reference.curve_of(run)))
        with style():
            sections = build_sections(run)
            if not sections:
                raise SystemExit(f"{run.folder} is not a run folder: it holds none of {', '.join(STAGE_FILES)}")
            records = read_records(run.folder)
            figures = draw_figures(sections, run.folder)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    replace_text(run.folder / "report.html", write_html(run, sections, figures))
    summary = write_summary(run, sections)
    replace_text(run.folder / "summary.txt", summary)
    write_records(records)
    print(summary)
    sys.stdout.flush()
    logger.info("report: %d sections, %d figures, in %s", len(sections), len(figures), run.folder / "report.html")


if __name__ == "__main__":
    run_script(main)
