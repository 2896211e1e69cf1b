# SPDX-License-Identifier: Apache-2.0
"""Write NOTICE.md of a release: the terms of its parts and the sources of the text."""

import json
from collections.abc import Sequence
from pathlib import Path

from card_text import render_card
from corpus.data_card import LICENCE_KINDS, licence_kind
from publishing.base_licence import terms_along
from publishing.base_model import Base, find_licensors
from recipe_config import Recipe


# Packages that decide the numbers of a run; environment.json lists all.
SHOWN_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "datatrove",
    "datasets",
    "safetensors",
)


def write_notice(recipe: Recipe, folder: Path, base: Base | None, teachers: Sequence[Base] = ()) -> None:
    """Render NOTICE.md from the recipe's sources, the base model, the teachers and the installed packages."""
    environment = folder / "environment.json"
    packages = json.loads(environment.read_text(encoding="utf-8"))["packages"] if environment.exists() else {}
    notice = render_card(
        Path(__file__).with_suffix(".md"),
        None,
        recipe=recipe,
        base=base,
        teachers=teachers,
        licensors=find_licensors(base, teachers),
        terms=terms_along(base, teachers),
        has_licence=(folder / "LICENSE").exists(),
        kinds={source.name: licence_kind(source.license) for source in recipe.data.sources},
        meanings={kind: meaning for kind, (meaning, _) in LICENCE_KINDS.items()},
        packages={name: packages[name] for name in SHOWN_PACKAGES if name in packages},
    )
    (folder / "NOTICE.md").write_text(notice, encoding="utf-8")
