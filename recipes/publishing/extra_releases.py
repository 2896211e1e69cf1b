# SPDX-License-Identifier: Apache-2.0
"""Releases beside the model: the tokenizer alone, and the data card with statistics and, if set, the text.

A source's text is published only if its licence lets anyone redistribute it and all personal data found in it was
removed. Both are judged by the recipe and its patterns, not by a lawyer.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from atomic_files import discard, sync, write_json
from corpus.data_card import REDISTRIBUTABLE, choose_samples, licence_kind, render_data_card
from corpus.document_files import DOCUMENT_SCHEMA, FAMILY, PLACES
from corpus.personal_data import searched_kinds
from publishing.base_model import find_base, find_teachers
from publishing.croissant import describe_in_croissant
from publishing.local_paths import copy_without_paths, shorten_paths
from publishing.notice import write_notice
from publishing.release_checks import refuse_secrets_in_text
from publishing.release_files import (
    describe_files,
    empty,
    own_licence,
    public_names,
    read_if_there,
    recorded_files,
    refuse_changed,
    seal,
)
from recipe_config import Recipe, RecipeError
from run_folder import require


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SCANNED_ROWS = 1000  # of a Parquet file, in memory at a time


def build_tokenizer_release(recipe: Recipe) -> None:
    """Make release_tokenizer/: the tokenizer's files, its report and its card.

    Raises: RecipeError: the tokenizer was not trained by this run.
    """
    taken = recipe.tokenizer.from_pretrained or recipe.model.from_pretrained
    if taken:
        raise RecipeError(
            f"hub.tokenizer_repo_id: the tokenizer is that of {taken}, not this run's; leave the key out"
        )
    stage = require(recipe, "tokenizer")
    recorded = recorded_files(stage)
    refuse_changed((stage / name for name in (*TOKENIZER_FILES, "report.json", "README.md")), recorded)
    with new_folder(recipe, "release_tokenizer") as folder:
        for name in (name for name in TOKENIZER_FILES if stage / name in recorded):
            shutil.copyfile(stage / name, folder / name)
        copy_without_paths(stage / "report.json", folder / "tokenizer_report.json", recipe)
        copy_without_paths(stage / "README.md", folder / "README.md", recipe)
        shown = shorten_paths(recipe)
        write_terms(shown, recipe, folder)
        seal(recipe, folder)


def build_dataset_release(recipe: Recipe) -> list[str]:
    """Make release_dataset/: the data card, croissant.json, the statistics, and with hub.dataset_text the text that
    may be published.

    Returns: with hub.dataset_text, a sentence for each source whose text is withheld.
    """
    stage = require(recipe, "prepare")
    recorded = recorded_files(stage)
    shown = shorten_paths(recipe)
    stats = read_if_there(stage / "stats.json")
    withheld = {source.name: why_withheld(recipe, source.name, stats) for source in recipe.data.sources}
    published = [name for name, reason in withheld.items() if reason is None] if recipe.hub.dataset_text else []
    with new_folder(recipe, "release_dataset") as folder:
        names = {"stats.json": "stats.json" if published else "data_stats.json"}
        names |= {"decontamination.json": "decontamination.json"} if (stage / "decontamination.json").exists() else {}
        for name, new_name in names.items():
            copy_without_paths(stage / name, folder / new_name, recipe)
        texts = (path for path in recorded if path.suffix == ".parquet" and path.name != PLACES)
        texts = sorted(path for path in texts if path.parent.name in published)
        refuse_changed([*(stage / name for name in names), *texts], recorded)
        for path in texts:
            copy_text(recipe, path, folder / path.relative_to(stage))
        card = render_data_card(
            shown,
            stats,
            read_if_there(stage / "decontamination.json"),
            samples={name: choose_samples(stage / "train" / name) for name in published} if published else None,
            withheld={name: reason for name, reason in withheld.items() if reason} if published else None,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_terms(shown, recipe, folder)
        if recipe.hub.dataset_repo_id:
            write_json(folder / "croissant.json", describe_in_croissant(shown, stats, describe_files(folder)))
        seal(recipe, folder)
    reasons = withheld.items() if recipe.hub.dataset_text else ()
    return [f"the text of {name} is not published: {reason}" for name, reason in reasons if reason]


def why_withheld(recipe: Recipe, name: str, stats: dict) -> str | None:
    """Return why a source's text may not be published; None if it may."""
    kind = licence_kind(next(source.license for source in recipe.data.sources if source.name == name))
    if kind not in REDISTRIBUTABLE:
        return f'a licence of the kind "{kind}" does not let anyone share the text'
    actions = searched_kinds(recipe.data.personal_data, stats)
    if actions is None:
        return "personal data was not looked for in it"
    found = stats["sources"][name]["personal_data"]
    left = [kind for kind, count in found.items() if count and actions.get(kind, "leave") == "leave"]
    return f"personal data was found in it and left: {', '.join(left)}" if left else None


def copy_text(recipe: Recipe, path: Path, target: Path) -> None:
    """Search every document of a file for secrets, then put the file into the release.

    The column of families is left out: the Hub needs the same columns in all splits.
    """
    file = pq.ParquetFile(path)
    for batch in file.iter_batches(SCANNED_ROWS, columns=["id", "text"]):
        texts, ids = batch["text"].to_pylist(), batch["id"].to_pylist()
        refuse_secrets_in_text(texts, ids, str(path), public_names(recipe), recipe.hub.confidential)
    target.parent.mkdir(parents=True, exist_ok=True)
    if FAMILY in file.schema_arrow.names:
        with pq.ParquetWriter(target, DOCUMENT_SCHEMA, compression="zstd") as writer:
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group, columns=DOCUMENT_SCHEMA.names))
        return
    try:
        os.link(path, target)  # not a copy, since text may be large
    except OSError:
        shutil.copyfile(path, target)


def write_terms(shown: Recipe, recipe: Recipe, folder: Path) -> None:
    """Write LICENSE, if its text is known, and NOTICE.md."""
    licence = recipe.hub.license_file or own_licence(recipe)
    if licence:
        shutil.copyfile(licence, folder / "LICENSE")
    write_notice(shown, folder, find_base(recipe), find_teachers(recipe))


@contextmanager
def new_folder(recipe: Recipe, name: str) -> Iterator[Path]:
    """Yield a folder to write into; it becomes <run.output_dir>/<name> if the block ends without error."""
    final = Path(recipe.run.output_dir) / name
    partial = final.with_name(f".{name}.tmp")
    partial.mkdir(exist_ok=True)
    empty(partial)
    yield partial
    if final.exists():
        discard(final)
    partial.rename(final)
    sync(final.parent)
