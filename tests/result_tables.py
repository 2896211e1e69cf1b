# SPDX-License-Identifier: Apache-2.0
"""Fill the result tables of pages from the files that runs wrote, so that a number stands in one place.

    python tests/result_tables.py                          # fill the tables of all pages
    python tests/result_tables.py --keep runs/legal-quickstart recipes/legal/quickstart   # keep a run's result first

`result.json` holds what a page shows of a run, from its eval/results.json and training.json. One with an
`origin` was made in another way, which that says. A table is between `<!-- result: FOLDER -->` and `<!-- /result -->`,
where FOLDER has the `result.json`, and the scores of its tasks between `<!-- tasks: FOLDER -->` and `<!-- /tasks -->`.
"""

import argparse
import json
import re
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- (result|tasks): (\S+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
SCORES = ("bytes", "bits_per_byte", "xz_documents", "xz_stream", "xz_primed")


def keep_result(run: Path, folder: Path) -> None:
    """Write the folder's result.json from a finished run."""
    results = json.loads((run / "eval" / "results.json").read_text(encoding="utf-8"))
    training = json.loads((run / "training.json").read_text(encoding="utf-8"))
    sources = results["bits_per_byte"]["sources"]
    result = {
        "sources": {
            name: {key: source[key] for key in ("domain", *SCORES, "confidence_interval")}
            for name, source in sources.items()
        },
        "tasks": {
            name: {"items": task["num_items"], "score": task["score"]}
            | {key: task["metrics"][task["score"]][key] for key in ("value", "interval", "baseline")}
            for name, task in results["tasks"].items()
        },
        "parameters": training["parameters"]["total"],
        **{key: training[key] for key in ("tokens_seen", "seconds", "device")},
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def make_table(result: dict) -> str:
    """Return a result as a Markdown table with a sentence on how it was made."""
    tokenizers = list(next(iter(result["sources"].values())).get("bytes_per_token", {}))
    columns = ["held-out text", "this model", "`xz` of each document", "`xz` of one stream", "`xz` with training text"]
    columns += [f"bytes a token, {name}" for name in tokenizers]
    lines = [f"| {' | '.join(columns)} |", f"|---|{'--:|' * (len(columns) - 1)}"]
    for name, source in result["sources"].items():
        low, high = source["confidence_interval"]
        named = "" if name == source["domain"] else f"{name}, "
        cells = [f"{source['domain']} ({named}{source['bytes'] / 1000:,.0f} kB)"]
        cells += [f"**{source['bits_per_byte']:.3f}** ({low:.3f} to {high:.3f})"]
        cells += [f"{source[key]:.3f}" for key in SCORES[2:]]
        cells += [f"{source['bytes_per_token'][one]:.2f}" for one in tokenizers]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Bits needed to predict a byte of unseen text, with 95 % intervals: lower is better, 8 is knowing nothing.",
        f"{result['parameters']:,} parameters, {result['tokens_seen']:,} tokens, "
        f"{result['seconds']:.0f} s of training on {result['device']}.",
    ]
    return "\n".join(lines) + "\n"


def list_tasks(result: dict) -> str:
    """Return the scores of a result's tasks as a Markdown list."""
    lines = []
    for name, task in result["tasks"].items():
        low, high = task["interval"]
        lines.append(
            f"- `{name}`, {task['score']} on {task['items']} items: {task['value']:.3f} ({low:.3f} to {high:.3f}); "
            f"baseline {task['baseline']:.3f}\n"
        )
    return "".join(lines)


def fill(page: str) -> str:
    """Return a page with its tables as the result files have them."""

    def table(match: re.Match) -> str:
        result = json.loads((ROOT / match[3] / "result.json").read_text(encoding="utf-8"))
        return match[1] + {"result": make_table, "tasks": list_tasks}[match[2]](result) + match[4]

    return TABLE.sub(table, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", nargs=2, type=Path, metavar=("RUN", "FOLDER"), help="write FOLDER/result.json")
    options = parser.parse_args()
    if options.keep:
        keep_result(*options.keep)
    for path in [ROOT / "README.md", *ROOT.glob("recipes/**/README.md")]:
        page = path.read_text(encoding="utf-8")
        if (filled := fill(page)) != page:
            path.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
