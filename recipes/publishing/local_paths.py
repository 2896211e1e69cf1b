# SPDX-License-Identifier: Apache-2.0
"""Local paths in a release: relative below the current folder, elsewhere only their last component.

The folders on the way to a file name clients, matters and the user of this machine. What else must not be shown stands
in hub.confidential.
"""

import html
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from atomic_files import read_json, write_json
from publishing.base_model import as_folder
from publishing.release_checks import home_folder
from recipe_config import Recipe, RecipeError


REMOVED = "(removed)"  # in place of a word of hub.confidential
TEXT_KEYS = (
    "prompts",
    "instruction",
    "terms",
    "special_tokens",
)  # hold text, which may begin with /


def shorten_path(path: str) -> str:
    """Return a path relative to the current folder, or its last component where it is outside of it."""
    absolute = os.path.abspath(os.path.expanduser(path))
    relative = os.path.relpath(absolute)
    return os.path.basename(absolute) if relative.startswith("..") else relative


def shorten_value(value: str) -> str:
    """Return a value of a recipe with the local path in it shortened, also that of `zip://member::/path`."""
    before, separator, path = value.rpartition("::")
    path = path.removeprefix("file://")
    return before + separator + shorten_path(path) if re.match(r"/|~|\.\.(/|$)", path) else value


def shorten_paths(recipe: Recipe) -> Recipe:
    """Return a recipe with shortened paths, and without the words of hub.confidential.

    Raises: RecipeError: a path that shows the home folder even then.
    """
    shown = remove_words(recipe.model_dump(exclude={"hub": {"confidential"}}), recipe.hub.confidential)
    for key, parent, name in strings(shown):
        value, short = parent[name], shorten_value(parent[name])
        if short != value and shows_home(short):
            raise RecipeError(
                f"{key}={value!r} lies below your home folder, which a published recipe would show: start the command "
                "in a folder below it, or move what it names and set the new path"
            )
        is_model = name == "from_pretrained" or key.startswith("evaluation.baselines.")
        if short != value and is_model:  # `acme`, of a folder elsewhere, would be a name of the Hub
            short = as_folder(short)
        parent[name] = short
    return Recipe.model_validate(shown)


def shows_home(path: str) -> bool:
    """Return whether the folders of the home folder stand in a path, one after another."""
    home, parts = Path(home_folder() or "/").parts[1:], Path(path.rpartition("::")[2]).parts
    return bool(home) and any(parts[start : start + len(home)] == home for start in range(len(parts)))


def remove_words(value: Any, words: Iterable[str]) -> Any:
    """Return a value of JSON with each confidential word in its strings replaced by REMOVED."""
    if isinstance(value, dict):
        return {key: remove_words(part, words) for key, part in value.items()}
    if isinstance(value, list):
        return [remove_words(part, words) for part in value]
    for word in words if isinstance(value, str) else ():
        forms = {word, *(unicodedata.normalize(form, word) for form in ("NFC", "NFD"))}
        for spelling in {written for form in forms for written in (form, json.dumps(form)[1:-1], html.escape(form))}:
            value = re.sub(rf"(?i)(?<![^\W_]){re.escape(spelling)}(?![^\W_])", REMOVED, value)
    return value


def strings(value: dict | list, key: str = "") -> Iterator[tuple[str, dict | list, str | int]]:
    """Yield (key path, parent, key or index) of each string in a recipe that may be a path."""
    for name, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if name in TEXT_KEYS:
            continue
        inner = f"{key}.{name}".strip(".")
        if isinstance(part, str):
            yield inner, value, name
        elif isinstance(part, dict | list):
            yield from strings(part, inner)


def shorten_paths_in_text(text: str, recipe: Recipe) -> str:
    """Return the text of a file with the recipe's paths as the published recipe has them, and no home folder."""
    values = [parent[name] for _, parent, name in strings(recipe.model_dump())]
    results = read_json(Path(recipe.run.output_dir) / "eval" / "results.json") or {}
    values.append(os.path.dirname(results.get("model", "")))  # where the run was then: it may have been moved
    paths = {value.rpartition("::")[2].removeprefix("file://") for value in values if shorten_value(value) != value}
    paths -= {"", "/"}  # as of a model at the root of a container
    for path in sorted(paths | {os.path.abspath(os.path.expanduser(path)) for path in paths}, key=len, reverse=True):
        for spelling in dict.fromkeys((path, json.dumps(path)[1:-1], html.escape(path))):
            found = rf"(?<![\w.]){re.escape(spelling.rstrip('/'))}(?![\w-])"
            text = re.sub(found, lambda _, path=path: shorten_path(path), text)
    roots = [re.escape(root) for root in (home_folder(), os.getcwd()) if root not in (None, "/")]
    if not roots:
        return text
    below = rf"(?<![\w.])(?:{'|'.join(roots)})(?![\w-])[^\s\"'<>:,;]*"
    return re.sub(below, lambda found: shorten_path(found[0]), text)


def copy_without_paths(path: Path, target: Path, recipe: Recipe) -> None:
    """Copy a text file with shortened paths, in stats.json of all sources, and without confidential words."""
    text = shorten_paths_in_text(path.read_text(encoding="utf-8"), recipe)
    text = remove_words(text, recipe.hub.confidential)
    target.write_text(text, encoding="utf-8")
    if path.name == "stats.json":
        stats = json.loads(text)
        for source in stats["sources"].values():
            source["path"] = shorten_value(source["path"])
        write_json(target, stats)
