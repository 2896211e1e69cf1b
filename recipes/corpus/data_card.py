# SPDX-License-Identifier: Apache-2.0
"""Render the data card: README.md of a documents folder, from data_card.md and what prepare counted.

In:   the content of stats.json and decontamination.json, the documents, and the recipe's sources.
Out:  documents/README.md, which lets the folder be published as a dataset. A release has the same card without text of
      the sources. The card depends on nothing else, not even on the path of the run.

Licences are classified by name alone. A statement is known only if it consists of nothing but known names: "MIT for
the collection, each text its author's" is unknown, not MIT.
"""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from card_text import render_card
from corpus.personal_data import searched_kinds
from recipe_config import Recipe, Source
from sources.units import is_hub_dataset


# The strictest first: what the kind allows, and the names of its licences as `licence_kind` normalises them.
BY = r"(?:cc|creative commons) (?:by|attribution)"
NC, ND, SA = r"(?:nc|non ?commercial)", r"(?:nd|no ?deriv(?:ative)?s?)", r"(?:sa|share ?alike)"
LICENCE_KINDS = {
    "unknown": ("no licence that is known here is stated, so only the owner of the text can permit its use", None),
    "no derivatives": ("the text may be shared only unchanged, and it was changed", rf"{BY}(?: {NC})? {ND}"),
    "non-commercial": ("the text may be used and shared for non-commercial purposes only", rf"{BY} {NC}(?: {SA})?"),
    "share-alike": (
        "the text and works made from it may be shared under the same licence, with credit",
        rf"{BY} {SA}|odbl|gfdl|[al]?gpl|mpl|eupl",
    ),
    "attribution": (
        "the text may be shared with credit and its licence notice",
        rf"{BY}|odc by|open data commons attribution|mit|apache|(?:new |simplified )?bsd|isc|ogl",
    ),
    "public domain": (
        "its publisher claims no rights in the text",
        r"(?:us )?public domain(?: mark| in (?:us|united states))?|cc ?(?:0|zero)|pddl|unlicense",
    ),
}
# Kinds that let anyone share the text for any purpose, also in part, as in a sample.
REDISTRIBUTABLE = ("share-alike", "attribution", "public domain")
HUB_LICENSES = {
    *("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0"),
    *("cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "gfdl", "gpl-2.0"),
    *("gpl-3.0", "isc", "mit", "mpl-2.0", "odbl", "odc-by", "pddl", "unlicense"),
}
SAMPLES, SAMPLE_CHARACTERS = 3, 280  # of each source
# Settings of `data` that the card shows elsewhere, that are paths, or that do not change the documents.
HIDDEN_SETTINGS = {
    *("sources", "min_shares", "phases", "skip", "max_repetitions", "fit_to_corpus", "workers", "executor", "slurm"),
    *("extract_text", "personal_data", "decontamination", "dropped_samples_bytes"),
}


def write_data_card(recipe: Recipe, documents: Path, stats: dict, decontamination: dict | None) -> None:
    """Write README.md to a folder of documents, with samples of the sources that anyone may share."""
    kinds = {source.name: licence_kind(source.license) for source in recipe.data.sources}
    samples = {
        name: choose_samples(documents / "train" / name) for name, kind in kinds.items() if kind in REDISTRIBUTABLE
    }
    card = render_data_card(recipe, stats, decontamination, samples)
    (documents / "README.md").write_text(card, encoding="utf-8")


def render_data_card(
    recipe: Recipe, stats: dict, decontamination: dict | None, samples: dict | None, withheld: dict | None = None
) -> str:
    """Return the card.

    Args:
        recipe: gives the sources' current licences and URLs, since a licence may be corrected afterwards.
        stats: content of stats.json.
        decontamination: content of decontamination.json, or None.
        samples: source -> texts, for the sources that may be shared; None for a card without text of the sources.
        withheld: source -> why its text is not published with the card; None if all text is next to the card.
    """
    kinds = {source.name: licence_kind(source.license) for source in recipe.data.sources}
    strictest = strictest_licence(recipe)
    splits = split_names(stats)
    return render_card(
        Path(__file__).with_suffix(".md"),
        describe_dataset(recipe, stats, with_files=samples is not None, withheld=withheld or {}),
        stats=stats,
        withheld=withheld,
        decontamination=decontamination,
        samples=samples,
        sources=recipe.data.sources,
        origins={source.name: origin(source) for source in recipe.data.sources},
        kinds=kinds,
        strictest=strictest,
        strictest_sources=[name for name, kind in kinds.items() if kind == strictest],
        meaning=LICENCE_KINDS[strictest][0],
        order=list(LICENCE_KINDS),
        splits=splits,
        kept={split: sum_kept(stats, [split]) for split in splits},
        total=sum_kept(stats, splits),
        settings=flatten(recipe.data.model_dump(exclude=HIDDEN_SETTINGS)),
        canaries=recipe.data.canaries,
        actions=searched_kinds(recipe.data.personal_data, stats),
    )


def licence_kind(statement: str | None) -> str:
    """Return the kind of the licence that a statement names, the strictest if it names several."""
    words = re.sub(r"[-_\s]+", " ", (statement or "").lower())
    words = re.sub(r"\b(?:by|per) (?:article|document|item|work)\b", " ", words)  # which of the names, not terms
    words = re.sub(
        r"\b(?:v?\d+(?:\.\d+)*|licen[cs]es?|version|international|the|clause|only|or later)(?!\w)", " ", words
    )
    names = [" ".join(name.split()) for name in re.split(r"[,;/+]|\b(?:and|or)\b", words)]
    found = {
        next((kind for kind, (_, known) in LICENCE_KINDS.items() if known and re.fullmatch(known, name)), "unknown")
        for name in names
        if name
    }
    return next((kind for kind in LICENCE_KINDS if kind in found), "unknown")


def strictest_licence(recipe: Recipe) -> str:
    """Return the strictest kind of licence of the sources."""
    found = {licence_kind(source.license) for source in recipe.data.sources}
    return next(kind for kind in LICENCE_KINDS if kind in found)


def describe_dataset(recipe: Recipe, stats: dict, with_files: bool, withheld: dict) -> dict:
    """Return the front matter: what the Hub shows and filters by and, with_files, the files of each split."""
    published = {"sources": {name: entry for name, entry in stats["sources"].items() if name not in withheld}}
    strictest, labels = strictest_licence(recipe), list(dict.fromkeys(s.label for s in recipe.data.sources))
    stated = {
        re.sub(r"^odc-by-1\.0$", "odc-by", "-".join(source.license.lower().split()))
        for source in recipe.data.sources
        if licence_kind(source.license) == strictest != "unknown"
    }
    is_known = len(stated) == 1 and stated <= HUB_LICENSES
    other = {"license": "other", "license_name": strictest.replace(" ", "-")}
    splits = [split for split in split_names(published) if sum_kept(published, [split])["documents"]]
    files = [{"split": split, "path": f"{split}/*/*.parquet"} for split in splits]
    data = ({"license": stated.pop()} if is_known else other) | {
        "language": recipe.hub.language,
        "pretty_name": f"Text for pretraining: {', '.join(labels)}",
        "size_categories": [size_category(sum_kept(stats, split_names(stats))["documents"])],
        "task_categories": ["text-generation"],
        "tags": ["pretraining", *labels],
    }
    return data | ({"configs": [{"config_name": "default", "data_files": files}]} if with_files else {})


def size_category(documents: int) -> str:
    """Return the Hub's size category for a number of rows."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    exponent = len(str(documents)) - 1
    if exponent < 3:
        return "n<1K"
    return f"{names[exponent - 3]}<n<{names[exponent - 2]}" if exponent < 12 else "n>1T"


def origin(source: Source) -> str:
    """Return where a source comes from; for a local file only its name."""
    if is_hub_dataset(source):
        return f"Hub dataset {source.path}" + (f", {source.config}" if source.config else "") + f", {source.split}"
    if "://" in source.path:
        return re.sub(r"//[^/@]*@", "//", source.path)  # without a password
    return f"local file or folder {Path(source.path).name}"


def split_names(stats: dict) -> list[str]:
    """Return the splits that any source has, in order."""
    return list(dict.fromkeys(split for source in stats["sources"].values() for split in source["kept"]))


def sum_kept(stats: dict, splits: list[str]) -> dict[str, int]:
    """Return the documents and bytes of all sources in some splits."""
    entries = [
        source["kept"][split] for source in stats["sources"].values() for split in splits if split in source["kept"]
    ]
    return {unit: sum(entry[unit] for entry in entries) for unit in ("documents", "bytes")}


def flatten(settings: dict, prefix: str = "") -> dict[str, object]:
    """Return key path -> value of nested settings, with the number of earlier corpora in place of their paths."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        elif key == "against":
            flat[f"{prefix}{key}"] = f"{len(value)} earlier corpora"
        else:
            flat[f"{prefix}{key}"] = "off" if value is None else str(value)
    return flat


def choose_samples(folder: Path) -> list[str]:
    """Return the beginnings of the SAMPLES documents with the lowest ids, which are hashes of their text.

    Args: folder: has a source's Parquet files; only their ids are all read, one row group at a time.
    """
    lowest: list[tuple[str, str, int]] = []
    for path in sorted(folder.glob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["id"], use_threads=False)["id"]
            first = pc.select_k_unstable(pa.table({"id": ids}), k=SAMPLES, sort_keys=[("id", "ascending")])
            lowest += [(ids[row].as_py(), str(path), group) for row in first.to_pylist()]
        lowest = sorted(lowest)[:SAMPLES]
    return [shorten(read_text(Path(path), group, document)) for document, path, group in lowest]


def read_text(path: Path, group: int, document: str) -> str:
    table = pq.ParquetFile(path).read_row_group(group, columns=["id", "text"], use_threads=False)
    return table.filter(pc.equal(table["id"], document))["text"][0].as_py()


def shorten(text: str) -> str:
    """Return the beginning of a text on one line, without characters that cannot be printed."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * SAMPLE_CHARACTERS]).split())
    return (words[:SAMPLE_CHARACTERS] or "(no printable text)") + (" ..." if len(words) > SAMPLE_CHARACTERS else "")
