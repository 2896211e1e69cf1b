# SPDX-License-Identifier: Apache-2.0
"""What is a document in each finance source. The only code in a domain folder: copy it, change it, nothing else."""

import re


# Who regulates money in the United States. The regulations and the documents of the government are of all agencies;
# a document belongs here when it names one of these near its beginning.
FINANCIAL_AGENCY = re.compile(
    r"Securities and Exchange Commission|Commodity Futures Trading Commission|Federal (Reserve|Open Market Committee)"
    r"|Federal Deposit Insurance|Comptroller of the Currency|Consumer Financial Protection|Federal Housing Finance"
    r"|Financial Stability Oversight|National Credit Union|Department of the Treasury|Internal Revenue Service"
    r"|Council of Economic Advisers|Committee on (Banking|Financial Services|Ways and Means)|Joint Economic Committee",
    re.IGNORECASE,
)
BEGINNING_CHARACTERS = 4_000
OF_ALL_AGENCIES = ("regulations", "government-documents")


def extract_text(example: dict, source: str) -> str | None:
    """Return the text of one example, or None for what is not a document of this corpus.

    Args:
        example: a row of the source, or `{"text": content of the file}`; `path` names the file.
        source: the source's name in the recipe.
    """
    text = example.get("text")
    if text is not None and source in OF_ALL_AGENCIES and not FINANCIAL_AGENCY.search(text[:BEGINNING_CHARACTERS]):
        return None
    return text
