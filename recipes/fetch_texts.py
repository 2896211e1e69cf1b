# SPDX-License-Identifier: Apache-2.0
"""Fetch the public texts that the trials were run on, each at the commit that its row of public_texts/table.csv names.

In:   the domains to fetch: legal, finance, medical, general.
Out:  texts/<domain>/<name>.jsonl, a JSON object a line with text, id, source and license; and texts/fetched.json, what
      each file was made from, with its sha256.

    python recipes/fetch_texts.py legal general      # then run_recipe.py --config recipes/legal/trial.yaml

It needs git. Git names a commit by the hash of all its content, so what it fetches is what the row names. A file that
is there and unchanged is not fetched again.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from atomic_files import file_sha256, read_json, sync, write_json
from public_texts.converters import CONVERTERS
from recipe_config import RecipeError
from recipe_loading import run_command


FOLDER = Path(__file__).resolve().parent / "public_texts"
TABLE = FOLDER / "table.csv"
TRIALS = Path(__file__).resolve().parent / "experiments" / "corpora.csv"  # all that the trials read
DOMAINS = ("legal", "finance", "medical", "general")
TEXTS = Path("texts")


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def git(*arguments: str, folder: Path, **options) -> subprocess.CompletedProcess:
    """Run git in a bare repository, without asking for a password.

    Raises: RecipeError: git is missing, or failed; with its last line.
    """
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], env=environment, capture_output=True, **options)
    except FileNotFoundError as error:
        raise RecipeError("git is not installed") from error
    if done.returncode:
        raise RecipeError(
            f"git {' '.join(arguments)}: {(done.stderr.decode().strip().splitlines() or ['failed'])[-1]}"
        )
    return done


def fetch(row: dict[str, str], repository: Path) -> None:
    """Fetch a row's commit, without its history, into a new bare repository.

    Raises: RecipeError: the commit is not there.
    """
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir(parents=True)
    git("init", "--bare", "--quiet", folder=repository)
    try:
        git("fetch", "--quiet", "--depth", "1", row["repository"], row["commit"], folder=repository)
    except RecipeError as error:
        raise RecipeError(f"{row['name']}: {row['repository']} gave no commit {row['commit']}: {error}") from error
    fetched = git("rev-parse", "FETCH_HEAD", folder=repository).stdout.decode().strip()
    if fetched != row["commit"]:
        raise RecipeError(f"{row['name']}: {row['repository']} gave {fetched}, not the commit {row['commit']}")


def read_files(row: dict[str, str], repository: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the files that a row names, by path."""
    listed = git("ls-tree", "-r", "-z", "--name-only", row["commit"], folder=repository).stdout.decode().split("\0")
    patterns = row["paths"].split(";")
    chosen = sorted(path for path in listed if any(fnmatchcase(path, pattern) for pattern in patterns))
    asked = "".join(f"{row['commit']}:{path}\n" for path in chosen).encode()
    answer = memoryview(git("cat-file", "--batch", folder=repository, input=asked).stdout)
    for path in chosen:
        header, _, _ = bytes(answer[:200]).partition(b"\n")
        size = int(header.split()[-1])
        start = len(header) + 1
        yield path, bytes(answer[start : start + size])
        answer = answer[start + size + 1 :]


def read_documents(row: dict[str, str], repository: Path) -> dict[str, str]:
    """Return id -> text of a row's documents, without duplicates and short ones; the trial's sample, if it read one.

    Raises: RecipeError: there is none.
    """
    documents, seen = {}, set()
    for path, content in read_files(row, repository):
        for name, text in CONVERTERS[row["converter"]](path, content):
            if len(text) >= max(1, int(row["min_characters"])) and text not in seen:
                documents.setdefault(name, text)
                seen.add(text)
    sample = FOLDER / f"{row['name']}.txt"
    if sample.exists():
        names = sample.read_text(encoding="utf-8").splitlines()
        documents = {name: documents[name] for name in names if name in documents}
        if len(documents) < len(names):
            print(f"fetch_texts: note: {row['name']}: {len(names) - len(documents):,} of {len(names):,} are missing")
    if not documents:
        raise RecipeError(f"{row['name']}: {row['paths']} names no document of the commit {row['commit']}")
    return documents


def describe(row: dict[str, str]) -> dict[str, str]:
    """Return what decides a row's file."""
    sample = FOLDER / f"{row['name']}.txt"
    code = file_sha256(FOLDER / "converters.py")
    return row | {"converters_sha256": code, "sample_sha256": file_sha256(sample) if sample.exists() else ""}


def make_file(row: dict[str, str], target: Path) -> dict:
    """Fetch and convert a row; return its entry of fetched.json.

    Raises: RecipeError: it cannot be fetched, or the file is not the one whose sha256 the row has.
    """
    repository, partial = (target.with_name(f".{row['name']}.{kind}") for kind in ("git", "tmp"))
    fetch(row, repository)
    documents = read_documents(row, repository)
    with partial.open("w", encoding="utf-8") as file:
        for name, text in documents.items():
            line = {"text": text, "id": name, "source": row["name"], "license": row["license"]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    sha256 = file_sha256(partial)
    shutil.rmtree(repository)
    if row["sha256"] and sha256 != row["sha256"]:
        partial.unlink()
        raise RecipeError(f"{row['name']}: the sha256 of the converted text is {sha256}, not {row['sha256']}")
    sync(partial)
    os.replace(partial, target)
    sizes = {"documents": len(documents), "bytes": target.stat().st_size, "sha256": sha256}
    return {"made_from": describe(row), **sizes}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domains", nargs="+", choices=DOMAINS, metavar="DOMAIN", help=", ".join(DOMAINS))
    domains = parser.parse_args(argv).domains
    rows = [row for row in read_table(TABLE) if row["domain"] in domains]
    memory = TEXTS / "fetched.json"
    for row in rows:
        target = TEXTS / row["domain"] / f"{row['name']}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        entry = (read_json(memory) or {}).get(row["name"], {})
        is_same = entry.get("made_from") == describe(row) and target.exists()
        state = "up to date"
        if not is_same or file_sha256(target) != entry["sha256"]:
            entry, state = make_file(row, target), "fetched"
            write_json(memory, (read_json(memory) or {}) | {row["name"]: entry})
        print(
            f"fetch_texts: {target}: {state}, {entry['documents']:,} documents, {entry['bytes'] / 1e6:.1f} MB, "
            f"{row['license']}; credit: {row['credit']}; {row['repository']} at {row['commit'][:12]}"
        )
    for domain in domains:
        listed = {row["name"] for row in rows}
        missing = [
            row["corpus"] for row in read_table(TRIALS) if row["domain"] == domain and row["corpus"] not in listed
        ]
        if missing:
            print(f"fetch_texts: the {domain} trial also read {', '.join(missing)}, which this does not fetch")


if __name__ == "__main__":
    run_command(main)
