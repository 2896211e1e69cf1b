# SPDX-License-Identifier: Apache-2.0
"""Turn a run folder into figures, a report to read in a browser, and a summary for the terminal.

In:  the files that the stages left in the run folder, each read by the section of eval/sections that shows it. What is
     not there has no section.
Out: figures/*.png, report.html (one file, figures inside), summary.txt (also printed).

    python eval/report.py runs/legal-quickstart
    python eval/report.py runs/legal-quickstart --save_reference curve.csv   # its curve, to compare later runs with
    python eval/report.py runs/another --reference curve.csv                 # "2.1 % above the reference at step 400"

Every number stands in one of those files; nothing is measured here. Text from data or a model is escaped.
"""

import argparse
import logging
import os
import shutil
import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from figure_style import is_drawn_here, save_figure, style
from run_files import RunFiles, Shown
from sections import (
    benchmarks,
    chronicle,
    contamination,
    curves,
    documents,
    held_out_text,
    mixture,
    personal_data,
    plan,
    preflight,
    reference,
    samples,
    tokenizer,
    training,
)
from wording import count, decimals, duration


logger = logging.getLogger(__name__)

# In the order of the page.
SECTIONS = [
    training,
    plan,
    preflight,
    documents,
    personal_data,
    contamination,
    mixture,
    tokenizer,
    curves,
    reference,
    held_out_text,
    benchmarks,
    samples,
    chronicle,
]
# What the stages of every recipe write. The report says which of them are not there.
STAGE_FILES = [
    "documents/stats.json",
    "tokenizer/report.json",
    "training.json",
    "metrics.jsonl",
    "chronicle.jsonl",
    "eval/results.json",
]


def show_sections(run: RunFiles) -> dict[str, Shown]:
    """Return what each section has to show, {its name: ...} in the order of the page."""
    shown = {module.__name__.rpartition(".")[2]: module.show(run) for module in SECTIONS}
    return {name: section for name, section in shown.items() if section}


def draw_figures(shown: dict[str, Shown], folder: Path) -> dict[str, dict[str, str]]:
    """Write folder/figures/*.png, replacing earlier ones at once; return {name: {"uri", "text"}}.

    Images that another script put there stay.
    """
    new, figures = folder / ".figures.tmp", folder / "figures"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    drawn = {
        name: {"uri": save_figure(figure, new / f"{name}.png"), "text": text}
        for section in shown.values()
        for name, (figure, text) in section.figures.items()
    }
    for path in figures.glob("*.png"):
        if path.stem not in drawn and not is_drawn_here(path):
            shutil.copy2(path, new)
    shutil.rmtree(figures, ignore_errors=True)
    new.rename(figures)
    return drawn


def write_html(run: RunFiles, shown: dict[str, Shown], figures: dict[str, dict[str, str]]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "decimals": decimals, "duration": duration}
    environment.globals |= {"run": run, "figures": figures}
    parts = [
        {
            "name": name,
            "title": section.title,
            "html": Markup(environment.get_template(f"sections/{name}.html.jinja").render(section.values)),
        }
        for name, section in shown.items()
    ]
    return environment.get_template("report.html.jinja").render(
        title=run.folder.resolve().name,
        sections=parts,
        missing=[path for path in STAGE_FILES if not run.has(path)],
    )


def write_summary(run: RunFiles, shown: dict[str, Shown]) -> str:
    """Return the text that a newcomer sees at the end of a run."""
    lines = [line for section in shown.values() if section.summary for line in [*section.summary, ""]]
    missing = [path for path in STAGE_FILES if not run.has(path)]
    if missing:
        lines += [f"Not in this run folder, and so not shown: {', '.join(missing)}", ""]
    lines.append(f"report  {run.folder / 'report.html'}")
    for name, path in (("model", run.folder / "model"), ("card", run.folder / "release" / "README.md")):
        if path.exists():
            lines.append(f"{name:<6}  {path}")
    return "\n".join(lines) + "\n"


def replace_text(path: Path, text: str) -> None:
    """Write a file so that it is there in full or as it was before."""
    new = path.with_name(f".{path.name}.tmp")
    with new.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, path)


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("run_folder", type=Path, help="run.output_dir of a recipe")
    parser.add_argument("--reference", type=Path, help="curve of an earlier run of the recipe, to compare this with")
    parser.add_argument("--save_reference", type=Path, help="write this run's curve there too, as CSV")
    arguments = parser.parse_args(argv)
    run = RunFiles(arguments.run_folder, arguments.reference)
    if not run.folder.is_dir():
        raise SystemExit(f"{run.folder}: there is no such folder; give the run.output_dir of a recipe")
    if run.reference is not None and not run.reference.is_file():
        raise SystemExit(f"--reference: there is no file {run.reference}; --save_reference makes one")
    try:
        if arguments.save_reference is not None:
            replace_text(arguments.save_reference, reference.format_curve(reference.curve_of(run)))
        with style():
            shown = show_sections(run)
            if not shown:
                raise SystemExit(f"{run.folder} is not a run folder: it holds none of {', '.join(STAGE_FILES)}")
            figures = draw_figures(shown, run.folder)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    replace_text(run.folder / "report.html", write_html(run, shown, figures))
    summary = write_summary(run, shown)
    replace_text(run.folder / "summary.txt", summary)
    print(summary)
    sys.stdout.flush()
    logger.info("report: %d sections, %d figures, in %s", len(shown), len(figures), run.folder / "report.html")


if __name__ == "__main__":
    main()
