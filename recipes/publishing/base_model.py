# SPDX-License-Identifier: Apache-2.0
"""The models of others that a run started or learned from: their names, and the licences that their cards state."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from atomic_files import read_json
from recipe_config import Recipe


OTHERS, OWN = 200_000, 1_000_000  # characters of a card and of a recipe, which may skip thousands of documents
MAX_YAML_DEPTH = 32  # thousands of brackets would be read for minutes


@dataclass(frozen=True)
class Base:
    """A model that training continued from.

    Attributes:
        name: as `public_name` returns it.
        is_on_hub: whether the name is a Hub id.
        revision: commit on the Hub; None: its head.
        licence: as its card states it, else that of `earlier`; None: not stated, or no card could be read.
        earlier: what a local model was made from itself, where its folder or its run says so.
        quantised: whether its card says that its weights were rounded to few bits.
    """

    name: str
    is_on_hub: bool
    revision: str | None
    licence: str | None
    earlier: "Base | None" = None
    quantised: bool = False

    def chain(self) -> list["Base"]:
        """Return this model, what it was made from, and so on."""
        return [self, *(self.earlier.chain() if self.earlier else [])]

    def lineage(self) -> str:
        return ", which was made from ".join(link.name for link in self.chain())

    def hub_id(self) -> str | None:
        """Return the Hub id that is nearest in the chain."""
        return next((link.name for link in self.chain() if link.is_on_hub), None)

    def licensors(self) -> list["Base"]:
        """Return the models of the chain whose own cards state a licence; where none does, the first of all."""
        stating = [link for link in self.chain() if link.licence and link.licence != inherited(link)]
        return stating or self.chain()[-1:]


def inherited(base: Base) -> str | None:
    return base.earlier.licence if base.earlier else None


def find_base(recipe: Recipe) -> Base | None:
    """Return the model that training continued from; None where it started from scratch."""
    if recipe.model.from_pretrained is None:
        return None
    training = read_json(Path(recipe.run.output_dir) / "training.json") or {}
    return base_of(recipe.model.from_pretrained, training.get("base_commit") or recipe.model.revision)


def find_teachers(recipe: Recipe) -> list[Base]:
    """Return the models that a run learned from, without the members that it trained itself."""
    distillation = recipe.training.distillation
    return [base_of(place) for place in distillation.teachers] if distillation else []


def find_licensors(base: Base | None, teachers: Sequence[Base] = ()) -> list[Base]:
    """Return the models whose licences a release is under: of a base's chain, and of those that it learned from.

    A teacher that is a run's own, from scratch, has no licence to name.
    """
    taught = [link for teacher in teachers for link in teacher.licensors()]
    return [*(base.licensors() if base else []), *(link for link in taught if link.licence or link.is_on_hub)]


def base_of(place: str, revision: str | None = None, seen: tuple[str, ...] = ()) -> Base:
    """Return a Hub id or folder as the base of another model.

    Args: seen: the models that were made from this one.
    """
    card = read_front_matter(place, revision)
    before = None if is_hub_id(place) else made_from(place, card)
    seen = (*seen, place)
    earlier = base_of(*before, seen) if before and before[0] not in seen else None
    licence = card.get("license_name") or card.get("license")
    licence = str(licence) if licence else earlier and earlier.licence
    quantised = card.get("base_model_relation") == "quantized"
    return Base(public_name(place), is_hub_id(place), revision, licence, earlier, quantised)


def public_name(place: str) -> str:
    """Return a model's Hub id, or "the local model" and the last component of its folder."""
    return place if is_hub_id(place) else f"the local model {Path(place).absolute().name}"


def is_hub_id(place: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", place) is not None and not Path(place).exists()


def made_from(folder: str, card: dict) -> tuple[str, str | None] | None:
    """Return the model and revision that a local model was made from: by its card, or the recipe of its run."""
    named = card.get("base_model")
    named = named[0] if isinstance(named, list) and named else named
    if isinstance(named, str) and is_hub_id(named):
        return named, None
    for path in (Path(folder).parent / "recipe.yaml", Path(folder) / "recipe.yaml"):  # of a run; of a release
        try:
            model = read_yaml(path.read_text(encoding="utf-8"), OWN)["model"] if path.is_file() else {}
            base, revision = model.get("from_pretrained"), model.get("revision")
        except (OSError, ValueError, YAMLError, KeyError, TypeError, AttributeError):
            continue
        if isinstance(base, str):
            return base, revision if isinstance(revision, str) else None
    return None


def read_front_matter(place: str, revision: str | None) -> dict:
    """Return the front matter of a model's card; {} where it has none or cannot be read."""
    try:
        path = (
            hf_hub_download(place, "README.md", revision=revision) if is_hub_id(place) else Path(place) / "README.md"
        )
        front_matter = re.match(r"---\n(.*?)\n---\n", Path(path).read_text(encoding="utf-8"), re.DOTALL)
        data = read_yaml(front_matter[1], OTHERS) if front_matter else {}
    except (OSError, ValueError, TypeError, YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def read_yaml(text: str, longest: int) -> object:
    """Parse YAML of others. Raises: YAMLError, ValueError, TypeError: it is none, or too large or deep."""
    if len(text) > longest:
        raise ValueError(f"{len(text):,} characters")
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MAX_YAML_DEPTH
    return yaml.load(text)
