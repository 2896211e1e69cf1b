# SPDX-License-Identifier: Apache-2.0
"""The models of others that a run started or learned from: their names, and the licences that their cards state."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from atomic_files import read_json
from recipe_config import Recipe, names_folder


OTHERS, OWN = 200_000, 1_000_000  # characters of a card and of a recipe, which may skip thousands of documents
MAX_YAML_DEPTH = 32  # thousands of brackets would be read for minutes
# Folders of a run that hold its model; its recipe is beside them.
OF_RUN = ("model", "model_final", "release")


@dataclass(frozen=True)
class Base:
    """A model that training continued from or learned from.

    Attributes:
        name: as `public_name` returns it.
        is_on_hub: whether the name is a Hub id.
        revision: commit on the Hub; None: its head.
        licence: as its card states it, else that of `earlier`; None: not stated, or no card could be read.
        earlier: what a local model was made from itself, where its folder or its run says so.
        quantised: whether its card says that its weights were rounded to few bits.
        teachers: models of others that a local model learned from, where its run says so.
        is_from_scratch: whether the recipe of its run says so: no other model has a say in it but these teachers.
    """

    name: str
    is_on_hub: bool
    revision: str | None
    licence: str | None
    earlier: "Base | None" = None
    quantised: bool = False
    teachers: tuple["Base", ...] = ()
    is_from_scratch: bool = False

    def chain(self) -> list["Base"]:
        """Return this model, what it was made from, and so on."""
        return [self, *(self.earlier.chain() if self.earlier else [])]

    def lineage(self) -> str:
        links = []
        for link in self.chain():
            taught = " and of ".join(teacher.lineage() for teacher in link.teachers)
            links.append(f"{link.name} (which learned the predictions of {taught})" if taught else link.name)
        return ", which was made from ".join(links)

    def hub_id(self) -> str | None:
        """Return the Hub id that is nearest in the chain."""
        return next((link.name for link in self.chain() if link.is_on_hub), None)

    def licensors(self) -> list["Base"]:
        """Return the models whose licences bind what is made from this one, also those whose licence is not known.

        They are those of the chain whose own cards state a licence, or the first of all where none does and it is not
        from scratch; and the same of each one's teachers.
        """
        chain = self.chain()
        stating = [link for link in chain if link.licence and link.licence != inherited(link)]
        unknown = [] if stating or chain[-1].is_from_scratch else chain[-1:]
        taught = [one for link in chain for teacher in link.teachers for one in teacher.licensors()]
        return [*stating, *unknown, *taught]


def inherited(base: Base) -> str | None:
    return base.earlier.licence if base.earlier else None


@dataclass(frozen=True)
class Origin:
    """What a local model was made from.

    Attributes:
        base: Hub id or folder; None: it was trained from scratch.
        revision: of a Hub id.
        teachers: folders of the models of others that it learned from.
    """

    base: str | None
    revision: str | None = None
    teachers: tuple[str, ...] = ()


def find_base(recipe: Recipe) -> Base | None:
    """Return the model that training continued from; None where it started from scratch."""
    if recipe.model.from_pretrained is None:
        return None
    training = read_json(Path(recipe.run.output_dir) / "training.json") or {}
    return base_of(recipe.model.from_pretrained, training.get("base_commit") or recipe.model.revision)


def find_teachers(recipe: Recipe) -> list[Base]:
    """Return the models that a run learned from, without the members that it trained itself."""
    distillation = recipe.training.distillation
    return [base_of(as_folder(place)) for place in distillation.teachers] if distillation else []


def find_licensors(base: Base | None, teachers: Sequence[Base] = ()) -> list[Base]:
    """Return the models whose licences a release is under: of its base, and of those that it learned from."""
    found = [link for model in (base, *teachers) if model for link in model.licensors()]
    return list(dict.fromkeys(found))


def base_of(place: str, revision: str | None = None, seen: tuple[str, ...] = ()) -> Base:
    """Return a Hub id or folder as the base of another model.

    Args: seen: the models that were made from this one.
    """
    card, on_hub, seen = read_front_matter(place, revision), is_hub_id(place), (*seen, place)
    origin = None if on_hub else made_from(Path(place), card)
    earlier = teachers = None
    if origin:
        earlier = base_of(origin.base, origin.revision, seen) if origin.base not in (None, *seen) else None
        teachers = [base_of(teacher, None, seen) for teacher in origin.teachers if teacher not in seen]
    licence = card.get("license_name") or card.get("license")
    licence = None if licence == "other" else licence  # which names none
    return Base(
        public_name(place),
        on_hub,
        revision,
        str(licence) if licence else earlier and earlier.licence,
        earlier,
        card.get("base_model_relation") == "quantized",
        tuple(teachers or ()),
        origin is not None and origin.base is None,
    )


def public_name(place: str) -> str:
    """Return a model's Hub id, or "the local model" and the last component of its folder."""
    return place if is_hub_id(place) else f"the local model {Path(place).absolute().name}"


def is_hub_id(place: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place) is not None and not names_folder(place)


def as_folder(place: str) -> str:
    """Return the path of a folder in a form that is no Hub id, even where the folder is not there."""
    return os.path.join(".", place)


def made_from(folder: Path, card: dict) -> Origin | None:
    """Return what a local model was made from, by the recipe of its run or its card; None: neither says so."""
    folder = folder.resolve()
    if folder.name == "finetuned" and (origin := read_tuning(folder)):
        return origin
    of_run = read_recipe(folder.parent / "recipe.yaml") if folder.name in OF_RUN else None
    origin = of_run or read_recipe(folder / "recipe.yaml")
    named = card.get("base_model")
    named = named[0] if isinstance(named, list) and named else named
    if of_run is None and isinstance(named, str) and is_hub_id(named):  # a release's recipe has shortened paths
        return Origin(named, None, origin.teachers if origin else ())
    return origin


def read_recipe(path: Path) -> Origin | None:
    """Return what the recipe of a run or a release says that its model was made from; None: it cannot be read."""
    try:
        recipe = read_yaml(path.read_text(encoding="utf-8"), OWN) if path.is_file() else {}
        base, revision = recipe["model"].get("from_pretrained"), recipe["model"].get("revision")
        learned = (recipe.get("training") or {}).get("distillation") or {}
        teachers = tuple(as_folder(place) for place in learned.get("teachers") or ())
    except (OSError, ValueError, YAMLError, KeyError, TypeError, AttributeError):
        return None
    if base is not None and not isinstance(base, str):
        return None
    return Origin(base, revision if isinstance(revision, str) else None, teachers)


def read_tuning(folder: Path) -> Origin | None:
    """Return the model that finetune.py made finetuned/ from; None: its record cannot be read."""
    try:
        settings = read_json(folder / "results.json")["made_from"]["settings"]
        model, revision = settings["model"] or str(folder.parent / "model"), settings["revision"]
    except (KeyError, TypeError):
        return None
    return Origin(model, revision) if isinstance(model, str) and isinstance(revision, str | None) else None


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
