# SPDX-License-Identifier: Apache-2.0
"""The page that shows traced texts, with what stands in training documents underlined."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def write_page(found: dict, run_name: str) -> str:
    """Return the HTML of a page: one file, no scripts, nothing loaded from elsewhere, everything escaped.

    Args:
        found: what trace_text.py writes as JSON.
        run_name: the run folder's name.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("trace_page.html.jinja").render(found, run_name=run_name)
