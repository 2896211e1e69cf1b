# SPDX-License-Identifier: Apache-2.0
"""Render pages in HTML, and cards in Markdown: escaped values under front matter that reads back as written.

Names, licences and samples come from data and models, so every value is escaped unless it is Markup. In a card, an
empty field is an error.
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
    """Render a template, with `front_matter` between two lines of `---` unless it is None.

    Raises: RecipeError: the front matter does not read back as written, by YAML 1.1 and 1.2.
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
        "signed": "{:+.3f}".format,
        "percent": lambda share: f"{100 * share:.1f} %",
        "link": link,
        "code": lambda text: Markup(json.dumps(text)),
        "shell": lambda text: Markup(shlex.quote(text)),
        "file_name": Markup,
        "printed": printed,
    }
    if front_matter is None:
        return environment.get_template(template.name).render(**values)
    written = Markup(yaml_dump(front_matter, sort_keys=False))
    card = environment.get_template(template.name).render(front_matter=written, **values)
    block = card.partition("\n---\n")[0]
    for version in ("1.1", "1.2"):  # YAML 1.1 reads `no`, Norwegian, as false
        if YAML(typ="safe", pure=True).load(f"%YAML {version}\n{block}") != front_matter:
            raise RecipeError("hub.license, hub.language: the card's front matter would not read back as written")
    return card


def render_html(template: Path, **values: object) -> str:
    """Render a template of HTML, in which every value is escaped unless it is Markup."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def printed(text: str) -> str:
    """Return what a line shows of a text: no control characters, and one space between words."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def escape_markdown(value: object) -> str:
    """Escape text for one line of Markdown: no HTML, table cell, link, list or heading begins in it.

    Raises: ValueError: the text is empty, and the template has no alternative.
    """
    if isinstance(value, Markup):
        return str(value)
    text = printed(str(value))
    if value is None or not text:
        raise ValueError(f"the card would have an empty field ({value!r})")
    text = re.sub(r"([\\`*_\[\]|~$!])", r"\\\1", html.escape(text, quote=False))
    text = re.sub(r"(:)(?=//)|(?<=\bwww)(\.)", r"\\\g<0>", text)  # a bare address would become a link
    return re.sub(r"^(?:(\d+)(?=[.)](?: |$))|(?=[#+=-]))", r"\1\\", text)


def link(text: str, url: str | None) -> str | Markup:
    """Link text to an http or https address; leave it without a link for any other."""
    if url and re.fullmatch(r"https?://[\w.-]+(?:/[\w./%~?=&#+,@-]*)?", url, re.ASCII):
        return Markup(f"[{escape_markdown(text)}](<{url}>)")
    return text
