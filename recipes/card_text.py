# SPDX-License-Identifier: Apache-2.0
"""Cards in Markdown: a template in which every value stands for itself, under front matter that reads back.

Names, licences and samples come from data and models. Whatever a template outputs is escaped, but for what is marked
as Markup, and an empty field is an error rather than a hole.
"""

import html
import json
import re
import shlex
from pathlib import Path

from huggingface_hub.utils import yaml_dump
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from ruamel.yaml import YAML

from recipe_config import RecipeError


def render_card(template: Path, front_matter: dict | None, **values: object) -> str:
    """Render a template, which begins with `front_matter` between two lines of `---` unless that is None.

    Raises: RecipeError: the front matter does not read back as what was written, by YAML 1.1 and 1.2.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        finalize=escape_markdown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": "{:,.0f}".format,
        "decimals": "{:.3f}".format,
        "percent": lambda share: f"{100 * share:.1f} %",
        "link": link,
        "code": lambda text: Markup(json.dumps(text)),
        "shell": lambda text: Markup(shlex.quote(text)),
        "file_name": Markup,
    }
    if front_matter is None:
        return environment.get_template(template.name).render(**values)
    written = Markup(yaml_dump(front_matter, sort_keys=False))
    card = environment.get_template(template.name).render(front_matter=written, **values)
    block = card.partition("\n---\n")[0]
    for version in ("1.1", "1.2"):  # some readers take `no`, Norwegian, for false
        if YAML(typ="safe", pure=True).load(f"%YAML {version}\n{block}") != front_matter:
            raise RecipeError("hub.license, hub.language: the card's front matter would not be read as it was written")
    return card


def escape_markdown(value: object) -> str:
    """Make text stand for itself in Markdown, in one line: no HTML, table cell, link, list or heading begins in it.

    Raises: ValueError: there is nothing to show, and the template has not said what to show then.
    """
    if isinstance(value, Markup):
        return str(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    if value is None or not text:
        raise ValueError(f"the card would have an empty field ({value!r})")
    text = re.sub(r"([\\`*_\[\]|~$!])", r"\\\1", html.escape(text, quote=False))
    text = re.sub(r"(:)(?=//)|(?<=\bwww)(\.)", r"\\\g<0>", text)  # a bare address would become a link
    return re.sub(r"^(?:(\d+)(?=[.)](?: |$))|(?=[#+=-]))", r"\1\\", text)


def link(text: str, url: str | None) -> str | Markup:
    """Link text to an ordinary web address; to no other kind."""
    if url and re.fullmatch(r"https?://[\w.-]+(?:/[\w./%~?=&#+,@-]*)?", url, re.ASCII):
        return Markup(f"[{escape_markdown(text)}](<{url}>)")
    return text
