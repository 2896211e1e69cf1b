# SPDX-License-Identifier: Apache-2.0
"""What is a document in each medical source. The only code in a domain folder: copy it, change it, nothing else."""


def extract_text(example: dict, source: str) -> str | None:
    """Return the text of one example, or None for what is not a document of this corpus.

    Args:
        example: a row of the source, or `{"text": content of the file}`; `path` names the file.
        source: the source's name in the recipe.
    """
    if source == "guidelines":  # raw_text has the page numbers and running heads of the PDF
        return example.get("clean_text")
    if source == "questions" and "question" in example:
        # Two thirds of the rows have lost their answer for reasons of copyright; a question alone teaches nothing.
        return f"{example['question']}\n\n{example['answer']}" if example.get("answer") else None
    return example.get("text")
