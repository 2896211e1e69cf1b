# SPDX-License-Identifier: Apache-2.0
"""Unpack compressed files and tars while they are read, in bounded memory; what is cut short is an error."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from typing import BinaryIO

import zstandard

from sources.file_kinds import packing


# Errors on a file that is damaged, truncated or of another type.
DAMAGED_PACKING = (
    *(EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError),
    *(zipfile.BadZipFile, tarfile.TarError),
)
# xz states how much memory its own dictionary takes: `xz -9` 64 MiB, a hostile file up to 4 GiB.
MAX_XZ_BYTES = 256 << 20


def new_frame(kind: str):
    """Return a decompressor of one frame of .zst, .xz or .bz2."""
    if kind == ".zst":
        return zstandard.ZstdDecompressor().decompressobj()
    return lzma.LZMADecompressor(memlimit=MAX_XZ_BYTES) if kind == ".xz" else bz2.BZ2Decompressor()


class CheckedMember(tarfile.TarInfo):
    """A member of a tar. Where the next header is damaged or missing, tarfile takes that for the end; here it is an
    error."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # zeros, which are the end
            raise
        except tarfile.EmptyHeaderError as error:
            raise tarfile.ReadError(f"it ends at byte {archive.offset:,} without the zeros that end a tar") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no member begins at byte {archive.offset:,}: {error}") from error


class FrameStream(io.RawIOBase):
    """Read a file of one or more compressed frames; one that is cut short raises an error.

    The input is read in pieces of 1 KiB, which unpack to at most 32 MiB.

    Args:
        packed: the compressed stream.
        kind: .zst, .xz or .bz2.
    """

    def __init__(self, packed: BinaryIO, kind: str):
        self.packed, self.kind, self.frame = packed, kind, new_frame(kind)
        self.unpacked = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.unpacked:
            chunk = self.frame.unused_data if self.frame.eof else self.packed.read(1 << 10)
            if self.frame.eof:
                chunk = chunk or self.packed.read(1 << 10)
                if not chunk:
                    return 0
                self.frame = new_frame(self.kind)
            elif not chunk:
                raise EOFError("the file ends inside a frame")
            try:
                self.unpacked = memoryview(self.frame.decompress(chunk))
            except OSError as error:  # bz2 has no error of its own
                raise EOFError(str(error)) from error
        size = min(len(buffer), len(self.unpacked))
        buffer[:size], self.unpacked = self.unpacked[:size], self.unpacked[size:]
        return size


def unpack(stream: BinaryIO, name: str, opened: ExitStack) -> BinaryIO:
    """Return a stream of the unpacked content of a file, by its name."""
    kind = packing(name)
    if kind == ".gz":
        return opened.enter_context(gzip.GzipFile(fileobj=stream))
    return io.BufferedReader(FrameStream(stream, kind), 1 << 20) if kind else stream


@lru_cache(maxsize=2)
def open_archive(path: str, modified_ns: int) -> zipfile.ZipFile:
    """Open an archive once for all its members: reading the index of a wheel of 37,000 files takes 0.1 s.

    Args:
        path: of the archive.
        modified_ns: when it was last written, so that a newer archive with the same name is opened again.
    """
    return zipfile.ZipFile(path)


def read_tar(
    path: str, start: int = 0, stop: int | None = None, opened: Callable[[BinaryIO], object] = lambda stream: None
) -> Iterator[tuple[str, int, BinaryIO]]:
    """Yield name, size and content of the files in a tar, in its order; a content can be read until the next one.

    Links, devices and folders are not yielded.

    Args:
        path: of the tar.
        start: byte of the first member; another than 0 only of a tar that is not compressed.
        stop: members that begin here or later are left out.
        opened: gets the stream of the tar's own bytes.
    """
    for member, content in read_members(path, start, opened):
        if stop is not None and start + member.offset >= stop:
            return
        if member.isreg():
            yield member.name, member.size, content


def read_members(
    path: str, start: int, opened: Callable[[BinaryIO], object]
) -> Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]:
    """Yield the members of a tar from a byte on; their offsets are from there.

    Raises: DAMAGED_PACKING: it is damaged or cut short, or something but zeros follows its end.
    """
    with ExitStack() as open_files:
        packed = open_files.enter_context(open(path, "rb"))
        packed.seek(start)
        opened(packed)
        with tarfile.open(fileobj=unpack(packed, path, open_files), mode="r|", tarinfo=CheckedMember) as archive:
            for member in archive:
                yield member, archive.extractfile(member) if member.isreg() else None
            while rest := archive.fileobj.read(1 << 20):
                if rest.count(0) < len(rest):
                    raise tarfile.ReadError(
                        f"other bytes follow its end, at byte {archive.offset:,}, such as those of a second tar; "
                        "write each to a file of its own"
                    )


@lru_cache(maxsize=64)
def list_tar(path: str, modified_ns: int) -> list[tuple[str, int, int]]:
    """Return name, size and first byte of the files in a tar, which is read to its end for them."""
    members = read_members(path, 0, lambda stream: None)
    return [(member.name, member.size, member.offset) for member, _ in members if member.isreg()]


def list_zip(path: str) -> list[tuple[str, int]]:
    """Return name and size of the files in a zip or wheel."""
    archive = open_archive(path, os.stat(path).st_mtime_ns)
    return [(info.filename, info.file_size) for info in archive.infolist() if not info.is_dir()]
