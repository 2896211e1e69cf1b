# SPDX-License-Identifier: Apache-2.0
"""The tokenizer: tokenizer/report.json."""

from run_files import RunFiles, Shown
from wording import decimals, heading, plain, table


def show(run: RunFiles) -> Shown | None:
    report = run.json("tokenizer/report.json")
    return report and Shown("Tokenizer", {"tokenizer": report}, summary=summarise(report))


def summarise(report: dict) -> list[str]:
    measured = report["bytes_per_token"]
    names = list(measured)
    sources = list(dict.fromkeys(source for values in measured.values() for source in values))
    rows = [[plain(source), *(decimals(measured[name].get(source), 2) for name in names)] for source in sources]
    lines = [*heading("Bytes per token (higher is better: shorter sequences)"), *table(["source", *names], rows)]
    terms = report.get("terms") or {}
    cut = [[plain(term), *(pieces(by[name]) if name in by else "-" for name in names)] for term, by in terms.items()]
    return lines + (["", *table(["term", *names], cut, left=1 + len(names))] if cut else [])


def pieces(tokens: list[str]) -> str:
    return plain("|".join(tokens))
