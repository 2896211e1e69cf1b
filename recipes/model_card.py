# SPDX-License-Identifier: Apache-2.0
"""The model card: README.md of a release, rendered from model_card.md and the files of the release themselves.

In:   a release folder with the model's config.json and the records of the run; hub.* and the sources of the recipe.
Out:  README.md in it. Every number in it stands in one of those files; push_to_hub.py calls this.
"""

import html
import json
import re
from pathlib import Path

from huggingface_hub import metadata_load
from huggingface_hub.utils import yaml_dump
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from ruamel.yaml import YAML

from recipe_config import Recipe, RecipeError
from source_readers import is_hub_dataset


RECORDS = ("config", "data_stats", "tokenizer_report", "training", "results")


def write_card(recipe: Recipe, folder: Path) -> None:
    """Render model_card.md from the files of a release into its README.md.

    Raises: RecipeError: the front matter does not read back as what was written, by YAML 1.1 and 1.2.
    """
    paths = {name: folder / f"{name}.json" for name in RECORDS}
    files = {name: json.loads(p.read_text(encoding="utf-8")) if p.exists() else None for name, p in paths.items()}
    for source in recipe.data.sources:  # as the recipe says now: a licence may be corrected after training
        files["data_stats"]["sources"][source.name] |= {"license": source.license, "url": source.url}
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    validation = [line for line in map(json.loads, lines) if "eval/bits_per_byte" in line]
    title = Path(recipe.hub.repo_id or recipe.run.output_dir).absolute().name
    front_matter = describe_for_hub(recipe, title, files["results"])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
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
        "file_name": Markup,
    }
    card = environment.get_template("model_card.md").render(
        title=title,
        front_matter=Markup(yaml_dump(front_matter, sort_keys=False)),
        recipe=recipe,
        figures=sorted(path.stem for path in folder.glob("figures/*.png")),
        has_report=(folder / "report.html").exists(),
        validation=validation[-1] if validation else None,
        **files,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    readings = (metadata_load(folder / "README.md"), YAML(typ="safe", pure=True).load(card.split("\n---\n")[0]))
    if any(reading != front_matter for reading in readings):
        raise RecipeError("hub.license, hub.language: the card's front matter would not be read as it was written")


def describe_for_hub(recipe: Recipe, title: str, results: dict | None) -> dict:
    """Return the card's front matter: what the Hub shows, filters and compares by."""
    data = {
        "license": recipe.hub.license,
        "language": recipe.hub.language,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pretraining", *dict.fromkeys(source.label for source in recipe.data.sources), "llama"],
    }
    if hub_datasets := [source.path for source in recipe.data.sources if is_hub_dataset(source)]:
        data["datasets"] = hub_datasets
    measured = []
    if results is not None:
        split = results["settings"]["split"]
        measured += [
            (f"{name} ({split} split)", name, [{"type": "bits_per_byte", "value": entry["bits_per_byte"]}])
            for name, entry in results["bits_per_byte"]["sources"].items()
        ]
        measured += [
            (name, name, [{"type": metric, "value": score["value"]} for metric, score in task["metrics"].items()])
            for name, task in results["tasks"].items()
        ]
    if measured:
        entries = [
            {"task": {"type": "text-generation"}, "dataset": {"name": name, "type": kind}, "metrics": metrics}
            for name, kind, metrics in measured
        ]
        data["model-index"] = [{"name": title, "results": entries}]
    return data


def escape_markdown(value: object) -> str:
    """Make text stand for itself in Markdown, in one line: no HTML, table cell, link, image or heading begins in it.

    Everything that the template outputs goes through this, but for what it marks as Markup.

    Raises: ValueError: there is nothing to show, and the template has not said what to show then.
    """
    if isinstance(value, Markup):
        return str(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    if value is None or not text:
        raise ValueError(f"the card would have an empty field ({value!r})")
    text = re.sub(r"([\\`*_\[\]|~$!])", r"\\\1", html.escape(text, quote=False))
    return re.sub(r"^([#+=-])", r"\\\1", text)


def link(text: str, url: str | None) -> str | Markup:
    """Link text to an ordinary web address; to no other kind."""
    if url and re.fullmatch(r"https?://[\w.-]+(?:/[\w./%~?=&#+,@-]*)?", url, re.ASCII):
        return Markup(f"[{escape_markdown(text)}](<{url}>)")
    return text
