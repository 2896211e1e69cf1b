# SPDX-License-Identifier: Apache-2.0
"""The model or tokenizer of others that a run started from: its name, and the licence that its card states."""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from recipe_config import Recipe


MAX_YAML_CHARACTERS, MAX_YAML_DEPTH = 200_000, 32  # thousands of brackets would be read for minutes


@dataclass(frozen=True)
class Base:
    """A model that training continued from.

    Attributes:
        name: as `public_name` returns it.
        is_on_hub: whether the name is a Hub id.
        revision: commit on the Hub; None: its head.
        licence: as its card states it; None: not stated, or the card could not be read.
    """

    name: str
    is_on_hub: bool
    revision: str | None
    licence: str | None


def find_base(recipe: Recipe) -> Base | None:
    """Return the model that training continued from; None where it started from scratch."""
    base, revision = recipe.model.from_pretrained, recipe.model.revision
    if base is None:
        return None
    name = public_name(base)
    return Base(name, is_hub_id(base), revision, read_licence(base, revision) or inherited_licence(base))


def public_name(place: str) -> str:
    """Return a model's Hub id, or "the local model" and the last component of its folder."""
    return place if is_hub_id(place) else f"the local model {Path(place).absolute().name}"


def is_hub_id(place: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", place) is not None and not Path(place).exists()


def inherited_licence(place: str, seen: tuple[str, ...] = ()) -> str | None:
    """Return the licence of what another run of these recipes, whose model this is, was continued from.

    Args: seen: the models that continue from this one.
    """
    path = Path(place).parent / "recipe.yaml"
    try:
        recipe = read_yaml(path.read_text(encoding="utf-8")) if path.is_file() else {}
        base, revision = recipe["model"]["from_pretrained"], recipe["model"].get("revision")
    except (OSError, ValueError, YAMLError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(base, str) or base in seen:
        return None
    return read_licence(base, revision) or inherited_licence(base, (*seen, base))


def read_licence(place: str, revision: str | None) -> str | None:
    """Return the licence that a model's card states; None where it states none or cannot be read."""
    try:
        path = (
            hf_hub_download(place, "README.md", revision=revision) if is_hub_id(place) else Path(place) / "README.md"
        )
        front_matter = re.match(r"---\n(.*?)\n---\n", Path(path).read_text(encoding="utf-8"), re.DOTALL)
        data = read_yaml(front_matter[1]) if front_matter else {}
    except (OSError, ValueError, TypeError, YAMLError):
        return None
    licence = data.get("license") if isinstance(data, dict) else None
    return str(data.get("license_name") or licence) if licence else None


def read_yaml(text: str) -> object:
    """Parse YAML of others. Raises: YAMLError, ValueError, TypeError: it is none, or too large or deep."""
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"{len(text):,} characters")
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_YAML_DEPTH
    return yaml.load(text)
