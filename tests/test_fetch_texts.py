# SPDX-License-Identifier: Apache-2.0
"""Public texts: one commit and no other, converted to JSON lines, fetched once; repositories of this machine only."""

import csv
import json
import re
import signal
import subprocess
import sys

import pytest
from tiny_run import RECIPES

import fetch_texts
from public_texts.converters import CONVERTERS
from recipe_config import RecipeError


ROWS = fetch_texts.read_table(fetch_texts.TABLE)
KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import fetch_texts
from pathlib import Path
fetch_texts.TABLE = Path(sys.argv[2])
fetch_texts.CONVERTERS["wrapped_lines"] = lambda path, content: os.kill(os.getpid(), 9)
fetch_texts.main(["legal"])
"""


def git(repository, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", repository, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def row(tmp_path, monkeypatch) -> dict[str, str]:
    """A row of a table of its own, for the first of two commits of a repository."""
    repository = tmp_path / "made"
    (repository / "laws" / "old").mkdir(parents=True)
    git(repository, "init", "--quiet", "--initial-branch=main")
    (repository / "laws" / "one.txt").write_text("The parties\nagree.\n\nIt is so ordered.\n")
    (repository / "laws" / "old" / "two ü.txt").write_text("The parties do not\nagree.\n")
    (repository / "laws" / "same.txt").write_text("The parties do not agree.\n")
    (repository / "laws" / "short.txt").write_text("No.\n")
    (repository / "README.txt").write_text("This file is not among the laws.\n")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "first")
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "laws" / "one.txt").write_text("Somebody changed it later.\n")
    git(repository, "commit", "--quiet", "-am", "second")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetch_texts, "TABLE", tmp_path / "table.csv")
    place = {"name": "laws", "domain": "legal", "repository": repository.as_uri(), "commit": commit}
    kind = {"paths": "laws/*.txt", "converter": "wrapped_lines", "min_characters": "5"}
    return write(place | kind | {"license": "CC0 1.0", "credit": "the parties", "sha256": ""})


def write(row: dict[str, str], **changes: str) -> dict[str, str]:
    with fetch_texts.TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerow(row | changes)
    return row | changes


def files(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_commit_that_the_repository_lacks_is_refused(row, tmp_path):
    write(row, commit="0" * 40)
    with pytest.raises(RecipeError, match=rf"laws: file://.*/made gave no commit {'0' * 40}: git fetch"):
        fetch_texts.main(["legal"])
    assert not (tmp_path / "texts" / "legal" / "laws.jsonl").exists()


@pytest.mark.parametrize("name", ["main", "a-tag"])
def test_a_name_in_place_of_a_commit_is_refused_since_it_may_move(row, tmp_path, name):
    git(tmp_path / "made", "tag", "--annotate", "-m", "a", "a-tag")
    write(row, commit=name)
    with pytest.raises(RecipeError, match=rf"gave [0-9a-f]{{40}}, not the commit {name}"):
        fetch_texts.main(["legal"])


def test_a_text_of_another_sha256_is_refused_and_not_kept(row, tmp_path):
    write(row, sha256="f" * 64)
    with pytest.raises(
        RecipeError, match=rf"laws: the sha256 of the converted text is [0-9a-f]{{64}}, not {'f' * 64}"
    ):
        fetch_texts.main(["legal"])
    assert files(tmp_path / "texts") == []


def test_a_repository_without_such_files_is_refused(row):
    write(row, paths="rules/*.txt")
    with pytest.raises(RecipeError, match=r"rules/\*.txt names no document of the commit"):
        fetch_texts.main(["legal"])


def test_the_named_commit_is_converted_to_one_object_a_line_and_a_second_run_does_nothing(row, tmp_path, capsys):
    fetch_texts.main(["legal", "medical"])
    target = tmp_path / "texts" / "legal" / "laws.jsonl"
    lines = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [(line["id"], line["text"]) for line in lines] == [
        ("laws/old/two ü.txt", "The parties do not agree."),
        ("laws/one.txt", "The parties agree.\n\nIt is so ordered."),
    ]
    assert all(line["source"] == "laws" and line["license"] == "CC0 1.0" for line in lines)
    shown = capsys.readouterr().out
    assert "laws.jsonl: fetched, 2 documents, 0.0 MB, CC0 1.0; credit: the parties; file://" in shown
    assert "the legal trial also read scotus_opinions, us_code" in shown
    made = json.loads((tmp_path / "texts" / "fetched.json").read_text())["laws"]
    assert made["bytes"] == target.stat().st_size and files(tmp_path / "texts") == ["fetched.json", "legal/laws.jsonl"]

    (tmp_path / "made").rename(tmp_path / "gone")
    before = target.stat().st_mtime_ns
    fetch_texts.main(["legal"])
    assert "laws.jsonl: up to date, 2 documents" in capsys.readouterr().out and target.stat().st_mtime_ns == before
    write(row, sha256=made["sha256"])
    with pytest.raises(RecipeError, match="gave no commit"):
        fetch_texts.main(["legal"])
    assert target.stat().st_mtime_ns == before, "what is there stays until its successor is whole"


def test_a_file_that_was_edited_is_fetched_again(row, tmp_path, capsys):
    fetch_texts.main(["legal"])
    target = tmp_path / "texts" / "legal" / "laws.jsonl"
    right = target.read_bytes()
    target.write_bytes(right.replace(b"agree", b"argue"))
    write(row, sha256=json.loads((tmp_path / "texts" / "fetched.json").read_text())["laws"]["sha256"])
    fetch_texts.main(["legal"])
    assert target.read_bytes() == right


def test_a_kill_in_the_middle_leaves_no_text_and_the_next_run_finishes(row, tmp_path):
    command = [sys.executable, "-c", KILLED, str(RECIPES), str(fetch_texts.TABLE)]
    assert subprocess.run(command, cwd=tmp_path).returncode == -signal.SIGKILL
    assert not [name for name in files(tmp_path / "texts") if not name.startswith("legal/.laws.git/")]
    fetch_texts.main(["legal"])
    assert files(tmp_path / "texts") == ["fetched.json", "legal/laws.jsonl"]


def test_only_the_sample_of_a_trial_is_kept_in_its_order_and_what_lacks_is_counted(row, tmp_path, monkeypatch, capsys):
    for name in ("converters.py",):
        (tmp_path / name).write_bytes((fetch_texts.FOLDER / name).read_bytes())
    (tmp_path / "laws.txt").write_text("laws/one.txt\nlaws/three.txt\nlaws/old/two ü.txt\n", encoding="utf-8")
    monkeypatch.setattr(fetch_texts, "FOLDER", tmp_path)
    fetch_texts.main(["legal"])
    lines = (tmp_path / "texts" / "legal" / "laws.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["laws/one.txt", "laws/old/two ü.txt"]
    assert "note: laws: 1 of 3 are missing" in capsys.readouterr().out


def test_every_row_of_the_table_names_a_whole_commit_a_converter_a_licence_and_a_text_of_a_trial():
    trials = {row["corpus"]: row for row in fetch_texts.read_table(fetch_texts.TRIALS)}
    assert len({row["name"] for row in ROWS}) == len(ROWS)
    for row in ROWS:
        trial = trials[row["name"]]
        assert re.fullmatch("[0-9a-f]{40}", row["commit"]) and row["commit"].startswith(trial["commit"])
        assert row["repository"] == f"https://github.com/{trial['repository']}" and row["domain"] == trial["domain"]
        assert row["license"] == trial["licence"] and row["credit"] and row["converter"] in CONVERTERS
    samples = {path.stem for path in fetch_texts.FOLDER.glob("*.txt")}
    assert samples <= {row["name"] for row in ROWS}


DC = '<section xmlns="https://code.dccouncil.us/schemas/dc-library"><num>1-2</num><heading>Dogs.</heading>'
USLM = '<title xmlns="http://xml.house.gov/schemas/uslm/1.0"><section identifier="/us/usc/t0/s1"><num>§ 1.</num>'
CFR = '<part xmlns="eregs"><section label="1-2"><subject>§ 1.2 Dogs.</subject>'


@pytest.mark.parametrize(
    ("converter", "path", "content", "name", "text"),
    [
        ("whole_file", "txt/2000/01/a.txt", "One.\n Two. ", "a.txt", "One. Two."),
        ("wrapped_lines", "a.txt", "One\r\ntwo.\r\n\r\n\r\nThree.\r\n", "a.txt", "One two.\n\nThree."),
        ("opinion", "x/DoeCleaned/A v. B.txt", "One.\nTwo  two.\n\n", "Doe/A v. B", "One.\n\nTwo two."),
        (
            "markdown",
            "a.md",
            "---\ntitle: 'Dogs'\nx: y\n---\n{% if x %}\n## A _head_\n\nRead **this** [page]({{ 'u' }}), "
            "&amp; `that`.\n"
            "\n * one\n * two_three_four\n\n<div>\n![dog](d.png)</div>\n| a | b |\n|---|---|\n> said",
            "a.md",
            "Dogs\n\nA head\n\nRead this page, & that.\n- one\n- two_three_four\n\n| a | b |\n\nsaid",
        ),
        (
            "treebank",
            "s/answers/a.xml.conllu",
            "# newdoc id = a\n# newpar id = 1\n# text = One.\n1\tOne\n\n# text = Two.\n\n# newpar id = 2\n"
            "# text = Three.\n",
            "answers/a.xml",
            "One. Two.\n\nThree.",
        ),
        (
            "questions",
            "1_A/1.xml",
            "<D><QAPair><Question>What is (are) Flu ?</Question><Answer>A\n  cold. - sneezing</Answer></QAPair>"
            "<QAPair>"
            "<Question>What now ?</Question><Answer/></QAPair><QAPair><Question>Signs ?</Question><Answer>The Human "
            "Phenotype Ontology provides the following list of signs</Answer></QAPair></D>",
            "1_A/1.xml",
            "What is Flu?\nA cold.\n- sneezing",
        ),
        (
            "dc_code",
            "x.xml",
            f"{DC}<text>No <cite>dog</cite>:</text><para><num>(1)</num><text>barks;</text><para><num>(A)</num><text>or"
            "</text></para></para><annotations><annotation>1901</annotation></annotations></section>",
            "dc/1-2",
            "§ 1-2. Dogs.\nNo dog:\n(1) barks;\n(A) or",
        ),
        (
            "us_code",
            "x.xml",
            f"{USLM}<heading> Dogs</heading><chapeau>No dog</chapeau><subsection><num>(a)</num><content> barks"
            "<p>or</p></content></subsection><sourceCredit>1901</sourceCredit></section></title>",
            "us/usc/t0/s1",
            "§ 1. Dogs No dog\n(a) barks or",
        ),
        (
            "regulation",
            "regulation/1000/2011-1.xml",
            f'{CFR}<paragraph marker="(a)"><title>Cats.</title><content>No <def>cat</def></content>'
            '<paragraph marker="(1)"><content>barks.</content></paragraph></paragraph></section></part>',
            "12CFR1000/2011-1#1-2",
            "§ 1.2 Dogs.\n(a) Cats. No cat\n(1) barks.",
        ),
    ],
)
def test_a_converter_gives_the_id_and_the_text_without_what_is_not_text(converter, path, content, name, text):
    assert list(CONVERTERS[converter](path, content.encode())) == [(name, text)]


def test_a_file_that_is_not_utf8_is_read_as_windows_1252():
    assert list(CONVERTERS["whole_file"]("a.txt", "“Müller”".encode("cp1252"))) == [("a.txt", "“Müller”")]
