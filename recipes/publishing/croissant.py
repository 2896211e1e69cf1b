# SPDX-License-Identifier: Apache-2.0
"""Describe a dataset repository in Croissant 1.1 (https://mlcommons.org/croissant), which search engines and loaders
of datasets read.

Every value is of the run's records and the recipe, as the data card's are.
"""

from atomic_files import hash_files
from corpus.data_card import describe_dataset, licence_kind, origin, split_names, sum_kept
from corpus.personal_data import searched_kinds
from recipe_config import Recipe


VOCABULARY = "http://mlcommons.org/croissant/"
TERMS = (
    "column",
    "containedIn",
    "extract",
    "field",
    "fileObject",
    "fileSet",
    "includes",
    "isLiveDataset",
    "recordSet",
)
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": VOCABULARY,
    "dct": "http://purl.org/dc/terms/",
    "rai": f"{VOCABULARY}RAI/",
    "conformsTo": "dct:conformsTo",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "source": "cr:source",
}
COLUMNS = {
    "id": "A hash of the text.",
    "source": "The source of the text.",
    "text": "A document, cleaned.",
    "date": "Day, month or year of the text, where it is known.",
}


def describe_in_croissant(recipe: Recipe, stats: dict, files: dict[str, dict]) -> dict:
    """Return the content of croissant.json.

    Args:
        recipe: as it is published, with hub.dataset_repo_id.
        stats: content of stats.json.
        files: name in the repository -> bytes and sha256, of all other files.
    """
    owner, name = recipe.hub.dataset_repo_id.split("/")
    url = f"https://huggingface.co/datasets/{recipe.hub.dataset_repo_id}"
    splits = [split for split in split_names(stats) if any(is_text_of(split, file) for file in files)]
    total, card = sum_kept(stats, split_names(stats)), describe_dataset(recipe, stats, with_files=False, withheld={})
    description = f"{card['pretty_name']}. {total['documents']:,} documents, {total['bytes']:,} bytes of text"
    records = [file for file in files if file.endswith(".json")]
    return {
        "@context": CONTEXT | {term: f"cr:{term}" for term in TERMS},
        "@type": "sc:Dataset",
        "conformsTo": f"{VOCABULARY}1.1",
        "name": name,
        "description": description
        + ("." if splits else ", of which this repository has the card and the statistics."),
        "license": sorted({source.license or "not stated" for source in recipe.data.sources}),
        "url": url,
        "creator": {"@type": "sc:Organization", "name": owner},
        "inLanguage": recipe.hub.language,
        "keywords": card["tags"],
        "isLiveDataset": False,
        "rai:dataCollection": "; ".join(describe_source(recipe, name, stats) for name in stats["sources"]),
        "rai:personalSensitiveInformation": describe_personal_data(recipe, stats),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "repository",
                "name": "repository",
                "description": "The repository. Its sha256 is of the names and hashes of all files but this one.",
                "contentUrl": f"{url}/tree/main",
                "encodingFormat": "git+https",
                "sha256": hash_files(files),
            },
            *(
                {
                    "@type": "cr:FileObject",
                    "@id": file,
                    "name": file,
                    "contentUrl": f"{url}/resolve/main/{file}",
                    "encodingFormat": "application/json",
                    "sha256": files[file]["sha256"],
                }
                for file in records
            ),
            *(
                {
                    "@type": "cr:FileSet",
                    "@id": split,
                    "containedIn": {"@id": "repository"},
                    "encodingFormat": "application/x-parquet",
                    "includes": f"{split}/*/*.parquet",
                }
                for split in splits
            ),
        ],
        "recordSet": [describe_records(split) for split in splits],
    }


def is_text_of(split: str, file: str) -> bool:
    return file.startswith(f"{split}/") and file.endswith(".parquet")


def describe_records(split: str) -> dict:
    """Return the columns of a split's documents."""
    return {
        "@type": "cr:RecordSet",
        "@id": f"documents-{split}",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"documents-{split}/{column}",
                "description": description,
                "dataType": "sc:Text",
                "source": {"fileSet": {"@id": split}, "extract": {"column": column}},
            }
            for column, description in COLUMNS.items()
        ],
    }


def describe_source(recipe: Recipe, name: str, stats: dict) -> str:
    """Return where a source is from, its licence and how much of it was kept."""
    source, entry = next(one for one in recipe.data.sources if one.name == name), stats["sources"][name]
    kept = sum(number["bytes"] for number in entry["kept"].values())
    return (
        f"{name}: {origin(source)}, licence {source.license or 'not stated'} ({licence_kind(source.license)}), "
        f"{kept:,} of {entry['bytes_in']:,} bytes read were kept"
    )


def describe_personal_data(recipe: Recipe, stats: dict) -> str:
    """Return which kinds of personal data were looked for, and what was done with them."""
    actions = searched_kinds(recipe.data.personal_data, stats)
    if actions is None:
        return "Personal data was not searched for."
    done = ", ".join(f"{kind}: {action}" for kind, action in actions.items())
    return f"Searched for by patterns, which miss some, names among them. What was done with each kind: {done}."
