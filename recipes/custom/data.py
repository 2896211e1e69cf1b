# SPDX-License-Identifier: Apache-2.0
"""What is a document: the whole of a text file, or the `text` of a row. Change it where your data is different."""


def extract_text(example: dict, source: str) -> str | None:
    """Return the text of one example, or None for what is not a document.

    Args:
        example: a row of the source, or `{"text": content of the file}`; `path` names the file.
        source: the source's name in the recipe.
    """
    return example.get("text")
