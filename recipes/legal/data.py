# SPDX-License-Identifier: Apache-2.0
"""What is a document in each legal source. The only code in a domain folder: copy it, change it, nothing else."""

import re


FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
UNWANTED = re.compile(r"^(is_deprecated|is_generic|is_unknown): *(yes|true)", re.MULTILINE)
# Shorter ones are notices that point to a licence, not licences.
MIN_LICENSE_BYTES = 2_000
OTHER_LANGUAGE = re.compile(r"^language: *(?!en\b)\S+", re.MULTILINE)


def extract_text(example: dict, source: str) -> str | None:
    """Return the text of one example, or None for what is not a document of this corpus.

    Args:
        example: a row of the source, or `{"text": content of the file}`; `path` names the file.
        source: the source's name in the recipe.
    """
    if source == "licenses":
        front_matter = FRONT_MATTER.match(example["text"])
        if front_matter is None or UNWANTED.search(front_matter[1]) or OTHER_LANGUAGE.search(front_matter[1]):
            return None
        text = example["text"][front_matter.end() :].strip()
        return text if len(text.encode()) >= MIN_LICENSE_BYTES else None
    if source == "wikipedia":
        return f"{example['title']}\n\n{example['extract']}" if "extract" in example else example.get("text")
    return example.get("text")
