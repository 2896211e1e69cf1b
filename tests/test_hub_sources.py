# SPDX-License-Identifier: Apache-2.0
"""Sources on the Hub, read as Hub datasets and as hf:// URLs from the local double of the Hub."""

import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mini_hub import hub_environment, start_hub

from recipe_config import Source
from source_readers import list_units, read_unit


def rows(label: str) -> list[dict]:
    return [{"text": f"{label} {index}", "number": index} for index in range(3)]


def packed_lines(label: str) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows(label)).encode())


def parquet(label: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(label)), buffer)
    return buffer.getvalue()


def read_all(**settings: object) -> list[dict] | str:
    """Return every example of a source named `statutes`, or the error that reading it ends with."""
    source = Source(name="statutes", **settings)
    try:
        return [example for unit in list_units(source) for example in read_unit(source, unit)]
    except Exception as error:  # whatever a library raises is what is looked at
        return f"{type(error).__name__}: {error}"


def read_session(out: str) -> None:
    """Fill the double with datasets and read them, in a process that takes it for the Hub from the start."""
    from huggingface_hub import CommitOperationAdd, HfApi, close_session

    api = HfApi()

    def commit(repo_id: str, **files: bytes) -> str:
        api.create_repo(repo_id, repo_type="dataset", private=True, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        return api.create_commit(repo_id, operations, commit_message="data", repo_type="dataset").oid

    old = commit("me/lines", **{"data/a.jsonl.gz": packed_lines("old a"), "data/b.jsonl.gz": packed_lines("old b")})
    commit("me/lines", **{"data/a.jsonl.gz": packed_lines("new a")})
    commit("me/tables", **{"data/train-0.parquet": parquet("shown"), "data/test-0.parquet": parquet("held out")})
    url = "hf://datasets/me/lines"
    seen = {
        "head": read_all(path="me/lines"),
        "pinned": read_all(path="me/lines", revision=old),
        "one file": read_all(path="me/lines", revision=old, data_files="data/b.*"),
        "tables": read_all(path="me/tables"),
        "test split": read_all(path="me/tables", split="test"),
        "url": read_all(path=f"{url}/data/a.jsonl.gz"),
        "pinned url": read_all(path=f"{url}@{old}/data/a.jsonl.gz"),
        "url pattern": read_all(path="hf://datasets/me/tables", data_files=["data/*.parquet"]),
        "missing dataset": read_all(path="me/missing"),
        "missing revision": read_all(path="me/lines", revision="0" * 40),
        "missing split": read_all(path="me/tables", split="dev"),
        "missing files": read_all(path="me/tables", data_files="text/*.parquet"),
        "missing url": read_all(path="hf://datasets/me/missing/a.jsonl"),
        "missing file of a url": read_all(path=f"{url}/data/c.jsonl"),
    }
    os.kill(int(os.environ["HUB_PID"]), signal.SIGKILL)
    close_session()  # or the broken connection would be met, not the refused one
    time.sleep = lambda seconds: None  # the clients wait 23 s in all between their tries
    seen["no hub"] = read_all(path="me/unseen")
    seen["no hub for a url"] = read_all(path="hf://datasets/me/unseen/a.jsonl")
    Path(out).write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What happened in `read_session`."""
    folder = tmp_path_factory.mktemp("hub")
    with start_hub() as (hub, endpoint):
        environment = hub_environment(endpoint, folder / "home") | {"HUB_PID": str(hub.pid)}
        code = "import sys, test_hub_sources; test_hub_sources.read_session(sys.argv[1])"
        command = [sys.executable, "-c", code, str(folder / "seen.json")]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "seen.json").read_text())


def expected(path: str, *labels: str) -> list[dict]:
    return [{**row, "path": path} for label in labels for row in rows(label)]


def test_a_hub_dataset_of_packed_lines_is_read_in_the_order_of_its_files(seen):
    assert seen["head"] == expected("me/lines", "new a", "old b")


def test_a_pinned_revision_reads_what_it_held_after_a_newer_commit(seen):
    assert seen["pinned"] == expected("me/lines", "old a", "old b")


def test_data_files_choose_files_of_a_hub_dataset(seen):
    assert seen["one file"] == expected("me/lines", "old b")


def test_a_hub_dataset_of_tables_is_read_by_split(seen):
    assert seen["tables"] == expected("me/tables", "shown")
    assert seen["test split"] == expected("me/tables", "held out")


def test_a_file_of_a_hub_dataset_is_read_by_its_url(seen):
    assert seen["url"] == expected("hf://datasets/me/lines/data/a.jsonl.gz", "new a")


def test_a_url_can_name_a_commit(seen):
    assert [example["text"] for example in seen["pinned url"]] == ["old a 0", "old a 1", "old a 2"]


def test_a_url_takes_patterns_in_the_order_of_names(seen):
    paths = [f"hf://datasets/me/tables/data/{split}-0.parquet" for split in ("test", "train")]
    assert seen["url pattern"] == expected(paths[0], "held out") + expected(paths[1], "shown")


ERRORS = {
    "missing dataset": "me/missing",
    "missing revision": "0{40}.*me/lines",
    "missing split": "dev.*train.*test",
    "missing files": "me/tables",
    "missing url": "me/missing",
    "missing file of a url": "me/lines/data/c.jsonl.*no file",
    "no hub": "me/unseen",
    "no hub for a url": "Connection refused",
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_read_is_an_error_that_says_what(seen, case):
    assert isinstance(seen[case], str), seen[case]
    assert re.search(ERRORS[case], seen[case])


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_read_is_an_error_that_names_the_source(seen, case):
    assert re.match("RecipeError: data.sources: statutes: ", seen[case])
