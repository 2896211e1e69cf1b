# SPDX-License-Identifier: Apache-2.0
"""Pairs to learn summarising from that a statute brings along: the text of a section, and its heading.

In:   documents/ of a run of trial.yaml.
Out:  <folder>/train.jsonl and test.jsonl, rows of `text` and `summary`, from the documents that the model was
      trained on, and from those that were held out.

    python recipes/legal/section_headings.py runs/legal-trial runs/legal-headings
"""

import json
import re
import sys
from pathlib import Path

import pyarrow.parquet


SECTION = re.compile(r"§ [\w.:–-]+\. (?P<heading>[^\n]{8,120}?)\.?\n(?P<text>.{80,})", re.DOTALL)


def main(run: str, folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows = []
        for path in sorted(Path(run, "documents", split, "legal-texts").glob("*.parquet")):
            texts = pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist()
            rows += [
                {"text": found["text"], "summary": found["heading"]} for found in map(SECTION.match, texts) if found
            ]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        Path(folder, f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
