# SPDX-License-Identifier: Apache-2.0
"""Public texts: one commit and no other, converted to JSON lines, fetched once; repositories of this machine only."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
import zipfile

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
    return write(place | kind | {"license": "CC0 1.0", "credit": "the parties", "sha256": "", "texts_sha256": ""})


def write(row: dict[str, str], *others: dict[str, str], **changes: str) -> dict[str, str]:
    with fetch_texts.TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows([row | changes, *others])
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


def test_a_text_of_another_sha256_is_refused_with_what_differs_and_what_to_do(row, tmp_path):
    write(row, sha256="f" * 64, documents="3", text_bytes="20000")
    with pytest.raises(RecipeError) as refused:
        fetch_texts.main(["legal"])
    expected = (
        rf"laws: the sha256 of the converted text is [0-9a-f]{{64}}, not {'f' * 64}: 2 documents, 0\.00 MB of text "
    )
    assert re.match(expected + r"\(the trial read 3, 0\.02 MB\)\. .* restore .*, or empty sha256", str(refused.value))
    assert files(tmp_path / "texts") == []


def test_a_short_commit_that_no_branch_has_is_refused(row):
    write(row, commit="0" * 7)
    with pytest.raises(RecipeError, match="gave no commit 0000000: git rev-parse"):
        fetch_texts.main(["legal"])


def test_a_text_that_cannot_be_fetched_does_not_keep_the_others_back(row, tmp_path):
    write(row | {"name": "gone", "commit": "0" * 40}, row)
    with pytest.raises(RecipeError, match="gone: .* gave no commit"):
        fetch_texts.main(["legal"])
    assert "legal/laws.jsonl" in files(tmp_path / "texts")


def test_a_file_that_cannot_be_converted_is_left_out_with_a_note(row, tmp_path, monkeypatch, capsys):
    def broken(path, content):
        if path == "laws/one.txt":
            raise ValueError("no such format")
        yield path, content.decode()

    monkeypatch.setitem(CONVERTERS, "wrapped_lines", broken)
    fetch_texts.main(["legal"])
    shown = capsys.readouterr().out
    assert "note: laws: laws/one.txt left out: ValueError: no such format" in shown and "fetched, 2 documents" in shown


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
    assert "laws.jsonl: fetched, 2 documents, 0.00 MB of text, CC0 1.0; credit: the parties; file://" in shown
    assert "not the trial's documents (sha256)" in shown
    made = json.loads((tmp_path / "texts" / "fetched.json").read_text())["laws"]
    assert made["texts_sha256"] == fetch_texts.hash_texts(line["text"] for line in reversed(lines))
    assert made["bytes"] == target.stat().st_size and files(tmp_path / "texts") == ["fetched.json", "legal/laws.jsonl"]

    (tmp_path / "made").rename(tmp_path / "gone")
    before = target.stat().st_mtime_ns
    fetch_texts.main(["legal"])
    shown = capsys.readouterr().out
    assert "laws.jsonl: up to date, 2 documents" in shown and target.stat().st_mtime_ns == before
    write(row, sha256=made["sha256"])
    with pytest.raises(RecipeError, match="gave no commit"):
        fetch_texts.main(["legal"])
    assert target.stat().st_mtime_ns == before, "what is there stays until its successor is whole"


def test_the_documents_of_the_trial_are_recognised_whatever_their_order(row, tmp_path, capsys):
    write(
        row,
        texts_sha256=fetch_texts.hash_texts(["The parties do not agree.", "The parties agree.\n\nIt is so ordered."]),
    )
    fetch_texts.main(["legal"])
    assert "its documents are those of the trial (sha256)" in capsys.readouterr().out


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


def test_two_repositories_make_one_text_and_a_short_commit_is_found_in_the_history(row, tmp_path, capsys):
    other = tmp_path / "other"
    (other / "laws").mkdir(parents=True)
    git(other, "init", "--quiet", "--initial-branch=main")
    (other / "laws" / "one.txt").write_text("A third party agrees.\n")
    git(other, "add", ".")
    git(other, "commit", "--quiet", "-m", "first")
    second = row | {"repository": other.as_uri(), "commit": git(other, "rev-parse", "HEAD")}
    write(row, second, commit=row["commit"][:7], documents="4", text_bytes="1", differences="other editions")
    fetch_texts.main(["legal"])
    lines = (tmp_path / "texts" / "legal" / "laws.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [
        "made/laws/old/two ü.txt",
        "made/laws/one.txt",
        "other/laws/one.txt",
    ]
    shown = capsys.readouterr().out
    assert "3 documents, 0.00 MB of text (the trial read 4, 0.00 MB), CC0 1.0" in shown
    assert "; 2 repositories; not the trial's documents (sha256); other editions" in shown


def test_texts_are_joined_to_documents_of_so_many(row, tmp_path):
    write(row, joined="2")
    fetch_texts.main(["legal"])
    (line,) = (tmp_path / "texts" / "legal" / "laws.jsonl").read_text(encoding="utf-8").splitlines()
    text = "The parties do not agree.\n\nThe parties agree.\n\nIt is so ordered."
    assert json.loads(line)["id"] == "laws/old/two ü.txt" and json.loads(line)["text"] == text


def test_the_table_has_every_text_of_the_trials_with_commit_licence_and_size():
    trials = {row["corpus"]: row for row in fetch_texts.read_table(RECIPES / "experiments" / "corpora.csv")}
    assert {row["name"]: row["domain"] for row in ROWS} == {name: row["domain"] for name, row in trials.items()}
    sizes = {name: 0 for name in trials}
    for row in ROWS:
        trial = trials[row["name"]]
        if row["name"] == "standard_ebooks":  # thirty repositories, whose commits the trial did not note
            assert row["repository"].startswith("https://github.com/standardebooks/")
        else:
            assert row["repository"] == f"https://github.com/{trial['repository']}"
            assert row["commit"].startswith(trial["commit"])
        assert re.fullmatch("[0-9a-f]{40}" if row["name"] != "federalist_papers" else "75f7b50", row["commit"])
        assert row["license"] == trial["licence"] and row["credit"] and row["converter"] in CONVERTERS
        sizes[row["name"]] += int(row["text_bytes"] or 0)
    assert all(abs(size / 1e6 - float(trials[name]["megabytes"])) < 0.06 for name, size in sizes.items())
    assert {path.stem for path in fetch_texts.FOLDER.glob("*.txt")} <= set(sizes)


DC = '<section xmlns="https://code.dccouncil.us/schemas/dc-library"><num>1-2</num><heading>Dogs.</heading>'
USLM = '<title xmlns="http://xml.house.gov/schemas/uslm/1.0"><section identifier="/us/usc/t0/s1"><num>§ 1.</num>'
XHTML = '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><head><title>x</title></head>'
RDF = '<r:RDF xmlns:r="r" xmlns:s="s" xmlns:k="k"><r:Ontology><s:label>Dogs</s:label></r:Ontology>'
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
        (
            "agreement",
            "a.txt",
            "\n\nDATE:\tMay 29, 2007\n\nTHE  PARTIES:\nA. Dog and\nB. Cat\n\nThe parties agree,\n80\t"
            " \t624,000\nas follows\n\n\n"
            "\nbelow.\nIt is so ordered by them all.\nSigned\n",
            "a.txt",
            "THE PARTIES:\n\nA. Dog and B. Cat\n\nThe parties agree, as follows below.\n\nIt is so or"
            "dered by them all. Signed",
        ),
        (
            "encounters",
            "data/a.csv",
            'dataset,encounter_id,dialogue,note\nx,D1,"[doctor] hi,\n[patient] hi. ","CC:\n\n\nFlu."\n',
            "a.csv#D1",
            "[doctor] hi,\n[patient] hi.\n\nCC:\n\nFlu.",
        ),
        (
            "factbook",
            "a/x.json",
            '{"Government": {"Country name": {"conventional short form": {"text": "Dogland"}}, "Area"'
            ': {"total ": {"text": '
            '"2 &amp; 3"}, "note": "<b>note:</b> small"}, "Climate": {"text": "<p>hot</p> <p><em>Nort'
            'h</em>, cold</p>"}}}',
            "a/x.json#Government",
            "Dogland - Government\nCountry name:\nconventional short form: Dogland\nArea:\ntotal : 2 "
            "& 3\nnote: note: small"
            "\nClimate: hot\n\nNorth , cold",
        ),
        (
            "filing",
            "10-K/D/1/p.html",
            "<head><title>x</title></head><body><ix:header><div>hidden facts</div></ix:header>"
            + "<p>Dog Inc. 10-K</p>" * 5
            + "<div>We <span>sell</span> <b>dogs</b>.</div><table><tr><td>Dogs</td></tr></table><p>2,"
            "024</p><p>And&nbsp;cats.</p>",
            "10-K/D/1/p.html",
            "We sell dogs.\n\nAnd cats.",
        ),
        (
            "disease_terms",
            "a.obo",
            'format-version: 1.2\n\n[Term]\nid: DOID:1\nname: flu\ndef: "A disease that has_symptom '
            '\\"cough\\"" [url:x]\n'
            'synonym: "Flu" EXACT []\nsynonym: "grippe" EXACT []\nsynonym: "cold" RELATED []\n\n[Term'
            "]\nid: DOID:2\nname: x\n"
            'def: "Old." []\nis_obsolete: true\n\n[Term]\nid: DOID:3\nname: y\n\n[Typedef]\nid: z\nde'
            'f: "A relation." []\n',
            "DOID:1",
            'Flu: A disease that has symptom "cough". Also called grippe.',
        ),
        (
            "financial_terms",
            "FND/A.rdf",
            f"{RDF}<r:Class><s:label>loan</s:label><k:definition>a debt</k:definition><k:explanatoryNote>It is repaid."
            "</k:explanatoryNote></r:Class><r:Class><s:label>bond</s:label></r:Class></r:RDF>",
            "FND/A.rdf",
            "Loan: a debt. It is repaid.",
        ),
        (
            "chapter",
            "src/epub/text/chapter-1.xhtml",
            f"{XHTML}<body><section><hgroup><h2>I</h2><p>Dogs</p></hgroup><p>A\u2060—<i>dog</i>.<a epu"
            'b:type="noteref">1</a> It'
            "<br/>barks.</p><blockquote><p>Bark</p><cite>A dog</cite></blockquote><table><tr><td>a</t"
            "d><td>b</td></tr></table>"
            "</section></body></html>",
            "chapter-1",
            "I\n\nDogs\n\nA—dog. It barks.\n\nBark\n\nA dog\n\na b",
        ),
        (
            "article",
            "x/PMC1.nxml",
            "<article><front><article-meta><title-group><article-title>Dogs</article-title><alt-title"
            ">D</alt-title></title-group>"
            "<abstract><sec><title>Aim</title><p>To bark.</p></sec></abstract></article-meta></front>"
            "<body><sec><title>Methods"
            '</title><p>We barked [<xref ref-type="bibr">1</xref>,<xref ref-type="bibr">2</xref>] (<x'
            'ref ref-type="table">Table 1'
            "</xref>).</p><table-wrap><caption><p>Barks</p></caption></table-wrap></sec></body></article>",
            "PMC1",
            "Dogs\n\nAim\n\nTo bark.\n\nMethods\n\nWe barked (Table 1).",
        ),
    ],
)
def test_a_converter_gives_the_id_and_the_text_without_what_is_not_text(converter, path, content, name, text):
    assert list(CONVERTERS[converter](path, content.encode())) == [(name, text)]


def zipped(**contents: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return target.getvalue()


def test_the_files_of_a_zip_are_documents_by_name():
    content = zipped(
        a__2_dot_txt="Two \n\n\n\ntwo.", a__1_dot_txt="One.\r\nOne.", a__README_dot_txt="About.", b_dot_csv="x"
    )
    assert list(CONVERTERS["zipped_lines"]("a.zip", content)) == [
        ("a/1.txt", "One.\nOne."),
        ("a/2.txt", "Two\n\ntwo."),
    ]


def test_the_items_of_zipped_filings_are_documents_without_their_numbers():
    filing = json.dumps({"cik": "1", "item_3": "ITEM 3.\n\nNone, of  note.\n1,024 2,048 dogs"})
    items = list(CONVERTERS["filing_items"]("10-K.zip", zipped(**{"x__1_10K_dot_json": filing})))
    assert items == [("1_10K#item_3", "ITEM 3.\nNone, of note.")]


def test_a_file_of_a_book_that_is_not_its_text_is_no_document():
    assert list(CONVERTERS["chapter"]("src/epub/text/colophon.xhtml", b"<html/>")) == []


def test_a_file_that_is_not_utf8_is_read_as_windows_1252():
    assert list(CONVERTERS["whole_file"]("a.txt", "“Müller”".encode("cp1252"))) == [("a.txt", "“Müller”")]
