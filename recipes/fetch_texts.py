# SPDX-License-Identifier: Apache-2.0
"""Fetch the public texts that the trials were run on, each at the commit that its row of public_texts/table.csv names.

In:   the domains to fetch: legal, finance, medical, general. Rows of one name are one text from several repositories.
Out:  texts/<domain>/<name>.jsonl, a JSON object a line with text, id, source and license; and texts/fetched.json, what
      each file was made from, with its sha256.

    python recipes/fetch_texts.py legal general      # then run_recipe.py --config recipes/legal/trial.yaml

It needs git. Git names a commit by the hash of all its content, so what it fetches is what the row names. A text with
a sha256 must have it to the byte. Of each text this prints whether its documents are those that the trial read, by
their sha256, and otherwise how much it gave, how much the trial read, and what is known to differ. A file that is
there and unchanged is not fetched again.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path

from atomic_files import file_sha256, read_json, sync, write_json
from public_texts.converters import CONVERTERS
from recipe_config import RecipeError
from recipe_loading import run_command


FOLDER = Path(__file__).resolve().parent / "public_texts"
TABLE = FOLDER / "table.csv"
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
    """Fetch a row's commit into a new bare repository: without its history, unless the row abbreviates the commit.

    Raises: RecipeError: the commit is not there.
    """
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir(parents=True)
    commit = row["commit"]
    is_short = re.fullmatch("[0-9a-f]{7,39}", commit)
    wanted = ["+refs/heads/*:refs/heads/*"] if is_short else ["--depth", "1", commit]
    options, refs = (wanted[:-1], wanted[-1:])
    git("init", "--bare", "--quiet", folder=repository)
    try:
        git("fetch", "--quiet", *options, row["repository"], *refs, folder=repository)
        found = git("rev-parse", "--verify", f"{commit}^{{commit}}" if is_short else "FETCH_HEAD", folder=repository)
    except RecipeError as error:
        raise RecipeError(f"{row['name']}: {row['repository']} gave no commit {commit}: {error}") from error
    fetched = found.stdout.decode().strip()
    if not fetched.startswith(commit):
        raise RecipeError(f"{row['name']}: {row['repository']} gave {fetched}, not the commit {commit}")


def read_files(row: dict[str, str], repository: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the files that a row names, by path.

    Raises: RecipeError: git stopped before the last one.
    """
    listed = git("ls-tree", "-r", "-z", "--name-only", row["commit"], folder=repository).stdout.decode().split("\0")
    patterns = row["paths"].split(";")
    chosen = sorted(path for path in listed if any(fnmatchcase(path, pattern) for pattern in patterns))
    asked = repository / "asked"
    asked.write_text("".join(f"{row['commit']}:{path}\n" for path in chosen), encoding="utf-8")
    command = ["git", "-C", repository, "cat-file", "--batch"]
    with asked.open("rb") as paths, subprocess.Popen(command, stdin=paths, stdout=subprocess.PIPE) as answer:
        for path in chosen:
            size = answer.stdout.readline().split()[-1:]
            if not size:
                raise RecipeError(f"{row['name']}: git cat-file --batch ended before {path}")
            yield path, answer.stdout.read(int(size[0]))
            answer.stdout.read(1)


def read_documents(rows: list[dict[str, str]], repository: Path) -> dict[str, str]:
    """Fetch the rows of a text; return id -> text of its documents, without duplicates and short ones.

    Where the trial read a sample, it is that; where the trial joined texts to one document, it joins as many. It notes
    files that cannot be converted.

    Raises: RecipeError: a row's commit is not there, or has no document.
    """
    documents, seen = {}, set()
    for row in rows:
        fetch(row, repository)
        before = len(documents)
        prefix = f"{row['repository'].rpartition('/')[2]}/" if len(rows) > 1 else ""
        for path, content in read_files(row, repository):
            try:
                converted = list(CONVERTERS[row["converter"]](path, content))
            except Exception as error:  # of whichever library reads the format
                print(f"fetch_texts: note: {row['name']}: {path} left out: {type(error).__name__}: {error}")
                converted = []
            for name, text in converted:
                if len(text) >= max(1, int(row["min_characters"])) and text not in seen:
                    documents.setdefault(prefix + name, text)
                    seen.add(text)
        shutil.rmtree(repository)
        if len(documents) == before:
            raise RecipeError(f"{row['name']}: {row['paths']} names no document of the commit {row['commit']}")
    joined = int(rows[0]["joined"] or 1)
    if joined > 1:
        names = list(documents)
        groups = [names[start : start + joined] for start in range(0, len(names), joined)]
        documents = {group[0]: "\n\n".join(documents[name] for name in group) for group in groups}
    sample = FOLDER / f"{rows[0]['name']}.txt"
    if sample.exists():
        names = sample.read_text(encoding="utf-8").splitlines()
        documents = {name: documents[name] for name in names if name in documents}
        if len(documents) < len(names):
            print(
                f"fetch_texts: note: {rows[0]['name']}: {len(names) - len(documents):,} of {len(names):,} are missing"
            )
    return documents


def describe(rows: list[dict[str, str]]) -> dict:
    """Return what decides a text's file."""
    sample = FOLDER / f"{rows[0]['name']}.txt"
    code = file_sha256(FOLDER / "converters.py")
    return {"rows": rows, "converters_sha256": code, "sample_sha256": file_sha256(sample) if sample.exists() else ""}


def make_file(rows: list[dict[str, str]], target: Path) -> dict:
    """Fetch and convert a text; return its entry of fetched.json.

    Raises: RecipeError: it cannot be fetched, or the file is not the one whose sha256 its first row has.
    """
    first = rows[0]
    repository, partial = (target.with_name(f".{first['name']}.{kind}") for kind in ("git", "tmp"))
    documents = read_documents(rows, repository)
    with partial.open("w", encoding="utf-8") as file:
        for name, text in documents.items():
            line = {"text": text, "id": name, "source": first["name"], "license": first["license"]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    sha256 = file_sha256(partial)
    sizes = {"documents": len(documents), "text_bytes": sum(len(text.encode()) for text in documents.values())}
    if first["sha256"] and sha256 != first["sha256"]:
        partial.unlink()
        raise RecipeError(
            f"{first['name']}: the sha256 of the converted text is {sha256}, not {first['sha256']}: "
            f"{compare(first, sizes)}. The commit is right, so a converter, the sample or the row differs: restore "
            f"{FOLDER}, or empty sha256 in the row of {TABLE} to keep this text"
        )
    sync(partial)
    os.replace(partial, target)
    entry = {"made_from": describe(rows), **sizes, "bytes": target.stat().st_size, "sha256": sha256}
    return entry | {"texts_sha256": hash_texts(documents.values())}


def hash_texts(texts: Iterable[str]) -> str:
    """Return a hash of texts, whatever their order and ids."""
    hashes = sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts)
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def compare(row: dict[str, str], sizes: dict[str, int]) -> str:
    """Return a text's size and, where it differs, that of the trial's."""
    read = {name: int(row[name] or 0) for name in ("documents", "text_bytes")}
    found = f"{sizes['documents']:,} documents, {sizes['text_bytes'] / 1e6:.2f} MB of text"
    is_same = all(sizes[name] == value for name, value in read.items())
    differs = f" (the trial read {read['documents']:,}, {read['text_bytes'] / 1e6:.2f} MB)"
    return found if is_same or not read["documents"] else found + differs


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("domains", nargs="+", choices=DOMAINS, metavar="DOMAIN", help=", ".join(DOMAINS))
    domains = parser.parse_args(argv).domains
    rows = [row for row in read_table(TABLE) if row["domain"] in domains]
    memory, problems = TEXTS / "fetched.json", []
    for name, group in groupby(rows, key=lambda row: row["name"]):
        text = list(group)
        row = text[0]
        target = TEXTS / row["domain"] / f"{name}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        entry = (read_json(memory) or {}).get(name, {})
        is_same = entry.get("made_from") == describe(text) and target.exists()
        state = "up to date"
        if not is_same or file_sha256(target) != entry["sha256"]:
            try:
                entry, state = make_file(text, target), "fetched"
            except RecipeError as error:  # the other texts may be there
                problems += error.problems
                continue
            write_json(memory, (read_json(memory) or {}) | {name: entry})
        place = f"{row['repository']} at {row['commit'][:12]}" if len(text) == 1 else f"{len(text)} repositories"
        is_trials = entry["texts_sha256"] == row["texts_sha256"]
        proof = "its documents are those of the trial (sha256)" if is_trials else "not the trial's documents (sha256)"
        print(
            f"fetch_texts: {target}: {state}, {compare(row, entry)}, {row['license']}; credit: {row['credit']}; "
            f"{place}; {proof}{'; ' if row['differences'] else ''}{row['differences']}"
        )
    if problems:
        raise RecipeError(*problems)


if __name__ == "__main__":
    run_command(main)
