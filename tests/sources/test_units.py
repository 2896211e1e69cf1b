# SPDX-License-Identifier: Apache-2.0
"""Which files of a source are read: nothing is left out without a word, and no link is followed for ever."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from recipe_config import RecipeError, Source
from sources.readers import read_unit
from sources.row_checks import Unreadable
from sources.units import Listing, list_source, list_units, source_fingerprint


def source_of(path: Path, **settings) -> Source:
    return Source(name="a", path=str(path), **settings)


def write(folder: Path, *names: str) -> None:
    """Write files whose text is their own name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(Path(name).name)


def texts(source: Source) -> list[str]:
    examples = [example for unit in list_units(source) for example in read_unit(source, unit)]
    return [example.reason if isinstance(example, Unreadable) else example["text"] for example in examples]


def counts(listing: Listing) -> dict[tuple[str, str | None], int]:
    return {(count.ending, count.reason): count.files for count in listing.inventory.rows()}


def test_endings_in_capitals_and_packed_files_are_read_as_the_small_and_unpacked_ones(tmp_path):
    line = json.dumps({"text": "a row"}).encode() + b"\n"
    write(tmp_path, "a.TXT", "b.Md", "c.rst")
    (tmp_path / "d.JSONL").write_bytes(line)
    (tmp_path / "e.ndjson").write_bytes(line)
    (tmp_path / "f.JSONL.GZ").write_bytes(gzip.compress(line))
    (tmp_path / "g.jsonl.bz2").write_bytes(bz2.compress(line) + bz2.compress(line))
    (tmp_path / "h.txt.xz").write_bytes(lzma.compress(b"h.txt"))
    table = pa.table({"text": ["first", "second"]})
    with pa.ipc.new_file(str(tmp_path / "i.arrow"), table.schema) as file:
        file.write_table(table)
    with pa.ipc.new_stream(str(tmp_path / "j.arrow"), table.schema) as stream:
        stream.write_table(table)
    expected = ["a.TXT", "b.Md", "c.rst", *["a row"] * 5, "h.txt", *["first", "second"] * 2]
    assert texts(source_of(tmp_path)) == expected
    endings = {count.ending for count in list_source(source_of(tmp_path)).inventory.rows()}
    assert {".txt", ".txt.xz", ".jsonl", ".jsonl.gz", ".jsonl.bz2", ".arrow"} <= endings


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
def test_a_file_of_bz2_or_xz_that_is_cut_short_is_quarantined_after_what_comes_before(tmp_path, pack):
    lines = b"".join(json.dumps({"text": os.urandom(50).hex()}).encode() + b"\n" for _ in range(30_000))
    packed = pack(lines)
    (tmp_path / f"a.jsonl.{'bz2' if pack is bz2.compress else 'xz'}").write_bytes(packed[: len(packed) * 2 // 3])
    found = texts(source_of(tmp_path))
    assert len(found) > 10_000 and found[-1].startswith("damaged or cut short")


def test_an_xz_file_that_wants_much_memory_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"text", filters=filters))
    (reason,) = texts(source_of(tmp_path))
    assert reason.startswith("damaged or cut short: Memory usage limit")


def write_tar(path: Path, mode: str, members: dict[str, bytes]) -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


MEMBERS = {
    "z.txt": b"z",
    "sub/a.jsonl": b'{"text": "row 1"}\n{"text": "row 2"}\n',
    "b.json": b'{"text": "row 3"}\n{"text": "row 4"}\n',
    "c.txt.gz": gzip.compress(b"packed"),
    "page.xyz": b"?",
    "__MACOSX/._z.txt": b"hidden",
}


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz"), ("A.TAR.BZ2", "w:bz2")]
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_the_files_of_a_tar_are_read_in_its_order_and_links_in_it_are_not_followed(tmp_path, name, mode, in_folder):
    write_tar(tmp_path / name, mode, MEMBERS)
    source = source_of(tmp_path if in_folder else tmp_path / name)
    assert texts(source) == ["z", "row 1", "row 2", "row 3", "row 4", "packed"]
    found = counts(list_source(source))
    assert found["", "hidden or temporary"] == 1 and found[".xyz", "no reader for this ending"] == 1
    (unit,) = list_units(source)
    paths = [example["path"] for example in read_unit(source, unit)]
    assert paths[:2] == [f"{tmp_path}/{name}/z.txt", f"{tmp_path}/{name}/sub/a.jsonl"]


def test_a_tar_takes_patterns_for_its_members_and_names_its_damaged_end(tmp_path):
    write_tar(tmp_path / "a.tar", "w", MEMBERS)
    assert texts(source_of(tmp_path / "a.tar", data_files="sub/*")) == ["row 1", "row 2"]
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content[:700])
    with pytest.raises(RecipeError, match="b.tar': damaged or cut short"):
        list_units(source_of(tmp_path / "b.tar"))
    packed = bz2.compress(content)
    (tmp_path / "c.tar.bz2").write_bytes(packed[:20] + b"damaged" + packed[27:])
    listing = list_source(source_of(tmp_path))
    assert counts(listing)[".tar", "a damaged archive"] == counts(listing)[".tar.bz2", "a damaged archive"] == 1


@pytest.mark.parametrize("path", ["./data/a.tar", "data//a.tar", "data/./a.tar"])
def test_a_tar_takes_patterns_however_its_path_is_written(tmp_path, monkeypatch, path):
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "a.tar", "w", MEMBERS)
    monkeypatch.chdir(tmp_path)
    assert texts(Source(name="a", path=path, data_files="sub/*")) == ["row 1", "row 2"]


def damage_tar(content: bytes, second: int) -> dict[str, tuple[bytes, str]]:
    """Return kind of damage -> content and reason, for a tar whose second member begins at a byte."""
    return {
        "cut between members": (content[:second], f"it ends at byte {second:,} without the zeros"),
        "cut in a header": (content[: second + 100], f"no member begins at byte {second:,}: truncated header"),
        "damaged header": (
            content[:second] + b"?" + content[second + 1 :],
            f"no member begins at byte {second:,}: bad checksum",
        ),
        "two tars": (content + content, "other bytes follow its end, at byte"),
    }


@pytest.mark.parametrize("kind", ["cut between members", "cut in a header", "damaged header", "two tars"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_tar_whose_rest_cannot_be_read_is_refused(tmp_path, kind, pack):
    write_tar(tmp_path / "a.tar", "w", MEMBERS)
    with tarfile.open(tmp_path / "a.tar") as archive:
        second = archive.getmembers()[1].offset
    content, reason = damage_tar((tmp_path / "a.tar").read_bytes(), second)[kind]
    damaged = tmp_path / ("b.tar" if pack is bytes else "b.tar.gz")
    damaged.write_bytes(pack(content))
    with pytest.raises(RecipeError, match=f"damaged or cut short: {reason}"):
        list_units(source_of(damaged))
    assert ("a damaged archive", 1) in {(n.reason, n.files) for n in list_source(source_of(tmp_path)).inventory.rows()}


def test_a_tar_may_end_in_any_number_of_zeros(tmp_path):
    write_tar(tmp_path / "a.tar", "w", {"a.txt": b"a"})
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content.rstrip(b"\0") + bytes(512 - len(content.rstrip(b"\0")) % 512 + 512))
    (tmp_path / "c.tar").write_bytes(content + bytes(3 << 20))
    assert texts(source_of(tmp_path)) == ["a", "a", "a"]


def test_zips_in_a_folder_are_read_by_the_types_of_their_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.ZIP", "w") as archive:
        archive.writestr("sub/one.txt", "one")
        archive.writestr("two.xyz", "?")
        archive.writestr("__MACOSX/._one.txt", "hidden")
    write(tmp_path, "a.txt", "c.txt")
    source = source_of(tmp_path)
    assert texts(source) == ["a.txt", "one", "c.txt"]
    names = [example["path"] for unit in list_units(source) for example in read_unit(source, unit)]
    assert names[1] == f"{tmp_path}/b.ZIP/sub/one.txt"
    assert counts(list_source(source))[".xyz", "no reader for this ending"] == 1
    before = source_fingerprint(source)
    with zipfile.ZipFile(tmp_path / "b.ZIP", "a") as archive:
        archive.writestr("three.txt", "three")
    assert source_fingerprint(source) != before


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("below", ["", "a.zip"])
def test_a_zip_with_two_files_of_one_name_is_refused_unless_they_are_left_out(tmp_path, below):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for text in ("first", "second"):
            archive.writestr("one.txt", text)
            archive.writestr("index.html", text)
    with pytest.raises(RecipeError, match=r"a.zip: 1 of its names stand for several files each, such as 'one.txt'"):
        list_source(source_of(tmp_path / below, ignore=[".html"]))
    assert list_source(source_of(tmp_path / below, ignore=[".html", ".txt"])).units == []


def test_linked_folders_are_read_once_whatever_loops_there_are(tmp_path):
    write(tmp_path, "texts/own/a.txt", "texts/b.txt", "elsewhere/c.txt", "elsewhere/deep/d.txt")
    root = tmp_path / "texts"
    (root / "linked").symlink_to("../elsewhere")
    (root / "again").symlink_to(root / "own")
    (root / "own" / "loop").symlink_to(root)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "gone.txt").symlink_to("nowhere")
    source = source_of(root)
    assert [Path(unit.path).relative_to(root).as_posix() for unit in list_units(source)] == [
        "b.txt",
        "linked/c.txt",
        "linked/deep/d.txt",
        "own/a.txt",
    ]
    found = counts(list_source(source))
    assert found["(no ending)", "a folder that is listed already"] == 3
    assert found[".txt", "a link to nothing"] == 1 and found["(no ending)", "a link to nothing"] == 1
    assert len(source_fingerprint(source)) == 64


def test_hidden_and_temporary_files_are_left_out_and_counted_unless_data_files_names_them(tmp_path):
    write(
        tmp_path, "a.txt", ".b.txt", "._a.txt", ".~lock.a.txt", "~$c.txt", ".git/d.txt", ".ipynb_checkpoints/a-c.txt"
    )
    write(tmp_path, "e.txt~", "f.tmp", "__MACOSX/g.txt", "lost+found/h.txt", "Thumbs.db")
    assert texts(source_of(tmp_path)) == ["a.txt"]
    assert counts(list_source(source_of(tmp_path))) == {(".txt", None): 1, ("", "hidden or temporary"): 11}
    assert texts(source_of(tmp_path, data_files=".git/*.txt")) == ["d.txt"]
    assert texts(source_of(tmp_path, data_files="**/*.txt")) == ["a.txt"]
    (tmp_path / ".texts").mkdir()
    write(tmp_path / ".texts", "i.txt")
    assert texts(source_of(tmp_path / ".texts")) == ["i.txt"], "the folder that the recipe names may be hidden"


def test_patterns_name_files_also_below_links_and_what_they_do_not_name_is_counted(tmp_path):
    write(tmp_path, "texts/a.txt", "texts/sub/b.LICENSE", "texts/sub/deep/c.txt", "elsewhere/d.LICENSE")
    (tmp_path / "texts" / "linked").symlink_to("../elsewhere")
    root = tmp_path / "texts"
    assert texts(source_of(root, data_files="**/*.LICENSE")) == ["d.LICENSE", "b.LICENSE"]
    assert texts(source_of(root, data_files=["*.txt", "sub/**/*.txt"])) == ["a.txt", "c.txt"]
    assert texts(source_of(root, data_files="./sub/*")) == ["b.LICENSE"]
    found = counts(list_source(source_of(root, data_files="**/*.LICENSE")))
    assert found == {(".license", None): 2, ("", "not named by data_files"): 2}


def test_a_run_that_would_leave_out_more_than_it_reads_is_refused_until_the_endings_are_named(tmp_path):
    write(tmp_path, "a.txt")
    (tmp_path / "b.xyz").write_text("x" * 3)
    assert texts(source_of(tmp_path)) == ["a.txt"]
    (tmp_path / "b.xyz").write_text("x" * 300)
    (tmp_path / "c.DOC").write_text("x" * 40)
    (tmp_path / "README").write_text("x")
    with pytest.raises(RecipeError) as error:
        list_units(source_of(tmp_path))
    assert (
        "341 bytes would be left out and 5 read: 1 .xyz (300 bytes: no reader for this ending); 1 .doc (40 bytes: "
        in (str(error.value))
    )
    assert str(error.value).endswith('ignore: [".xyz", ".doc", "(no ending)"]')
    source = source_of(tmp_path, ignore=[".xyz", ".doc", "(no ending)"])
    assert texts(source) == ["a.txt"]
    assert "NOT READ: named in ignore, such as" in list_source(source).inventory.describe()


def test_ignore_also_leaves_out_what_could_be_read(tmp_path):
    write(tmp_path, "a.txt", "b.md", "c.md")
    assert texts(source_of(tmp_path, ignore=[".md"])) == ["a.txt"]
    before = source_fingerprint(source_of(tmp_path))
    assert source_fingerprint(source_of(tmp_path, ignore=[".md"])) != before
    assert source_fingerprint(source_of(tmp_path, ignore=[".pdf"])) == before


def test_ignore_may_name_a_packed_tar_by_either_ending(tmp_path):
    write(tmp_path, "a.txt")
    write_tar(tmp_path / "b.TGZ", "w:gz", {"b.txt": b"b"})
    for ending in (".tgz", ".tar.gz", ".tar"):
        assert texts(source_of(tmp_path, ignore=[ending])) == ["a.txt"], ending
    assert texts(source_of(tmp_path, ignore=[".txz"])) == ["a.txt", "b"]


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_what_is_read_of_an_archive_is_part_of_its_fingerprint(tmp_path, name, in_folder):
    if name == "a.tar":
        write_tar(tmp_path / name, "w", {"a.txt": b"a", "b.md": b"b"})
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a.txt", "a")
            archive.writestr("b.md", "b")
    path = tmp_path if in_folder else tmp_path / name
    fingerprints = {source_fingerprint(source_of(path, ignore=ignore)) for ignore in ([], [".md"], [".txt"])}
    assert len(fingerprints) == 3
    assert source_fingerprint(source_of(path, ignore=[".md"]), whole=False) == source_fingerprint(source_of(path))


def test_a_folder_or_file_without_anything_to_read_is_refused_with_what_is_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="no file to read .the folder is empty"):
        list_units(source_of(tmp_path / "empty"))
    write(tmp_path, "pages/a.xyz", "pages/b.XLSX", "table.csv")
    with pytest.raises(RecipeError, match="no file can be read: 1 .xlsx .*save it as .csv.*1 .xyz"):
        list_units(source_of(tmp_path / "pages"))
    (tmp_path / "table.csv").write_text("id,body\n1,text\n")
    with pytest.raises(RecipeError, match="a table; set text_field or text_template; columns: id,body"):
        list_units(source_of(tmp_path / "table.csv"))
    with pytest.raises(RecipeError, match="no file that matches data_files='\\*.md'"):
        list_units(source_of(tmp_path / "pages", data_files="*.md"))
    with pytest.raises(RecipeError, match="save it as .docx"):
        list_units(source_of(tmp_path / "old.doc", **(write(tmp_path, "old.doc") or {})))


def list_as_nobody(source: Source) -> str:
    """Return the error of listing a source as a user without rights."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        message = "nothing"
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(54321)
                os.setuid(54321)
            list_units(source)
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(writing, message.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read()


def test_folders_and_files_that_may_not_be_read_are_refused_with_their_paths():
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        write(root, "a.txt", "private/b.txt", "c.txt", "deep/d.txt", ".git/secret/e.txt")
        assert list_as_nobody(source_of(root)) == "nothing"
        for path in ("private", "c.txt", ".git/secret"):
            (root / path).chmod(0)
        message = list_as_nobody(source_of(root))
        assert message.startswith("RecipeError") and f"{root}/c.txt, {root}/private;" in message
        assert "secret" not in message, "what is hidden is not read in any case"
        assert list_as_nobody(source_of(root, data_files=["a.txt", "deep/*.txt"])).startswith("RecipeError")
        assert list_as_nobody(source_of(root, data_files="a.txt")) == "nothing"
        assert "c.txt" in list_as_nobody(source_of(root / "c.txt"))
    finally:
        for path in ("private", ".git/secret"):
            (root / path).chmod(0o755)
        shutil.rmtree(root)


def test_the_table_shows_what_is_read_and_what_is_not_with_files_and_bytes(tmp_path):
    write(tmp_path, "a.txt", "b.txt", "c.pages", ".hidden")
    listing = list_source(source_of(tmp_path))
    lines = listing.inventory.describe().splitlines()
    assert lines[0] == f"a: {tmp_path}"
    assert lines[1].split() == [".txt", "2", "files", "10", "bytes", "read"]
    assert lines[2].split()[:7] == [".pages", "1", "files", "7", "bytes", "NOT", "READ:"]
    assert lines[3].endswith("bytes  NOT READ: hidden or temporary, such as " + f"{tmp_path}/.hidden")
    assert listing.inventory.as_stats() == [
        {"ending": ".txt", "files": 2, "bytes": 10, "not_read": None},
        {"ending": ".pages", "files": 1, "bytes": 7, "not_read": "no reader for this ending"},
        {"ending": "", "files": 1, "bytes": 7, "not_read": "hidden or temporary"},
    ]
