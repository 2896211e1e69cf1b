# SPDX-License-Identifier: Apache-2.0
"""List the files of a folder and of the folders that it links to, each folder once, so that no link is a loop."""

import heapq
import os
import posixpath
from dataclasses import dataclass, field

from sources.file_kinds import HIDDEN, is_hidden


@dataclass
class Found:
    """What a walk found; paths are relative to its folder.

    Attributes:
        files: path and size of each file.
        others: path, size and reason of what is left out: links to nothing, folders that are listed already, and
            what is in hidden folders.
        refused: paths of folders that this user may not list.
    """

    files: list[tuple[str, int]] = field(default_factory=list)
    others: list[tuple[str, int, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def walk(root: str, depth: int | None, enter_hidden: bool) -> Found:
    """List a folder.

    A folder is listed under its own path where that is below the root, else under the first of its links by name. So
    the paths do not depend on the order in which the file system lists.

    Args:
        root: the folder.
        depth: how many levels of folders to enter; None for all.
        enter_hidden: whether files of hidden folders are listed like any others.
    """
    found, entered = Found(), set()
    folders, links = [""], []
    while folders or links:
        relative = folders.pop() if folders else heapq.heappop(links)
        path = os.path.join(root, relative) if relative else root
        try:
            identity = (os.stat(path).st_dev, os.stat(path).st_ino)
            if identity in entered:
                found.others.append((relative, 0, "a folder that is listed already"))
                continue
            entered.add(identity)
            with os.scandir(path) as listing:
                entries = list(listing)
        except OSError:
            found.refused.append(path)
            continue
        for entry in entries:
            below = posixpath.join(relative, entry.name)
            if not is_folder(entry):
                add_file(found, entry, below)
            elif is_hidden(below + "/x") and not enter_hidden:
                count_hidden(found, root, below)
            elif depth is not None and below.count("/") >= depth:
                continue
            elif entry.is_symlink():
                heapq.heappush(links, below)
            else:
                folders.append(below)
    return found


def is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def add_file(found: Found, entry: os.DirEntry, relative: str) -> None:
    try:
        if entry.is_file():
            found.files.append((relative, entry.stat().st_size))
        else:
            found.others.append((relative, 0, "a link to nothing" if entry.is_symlink() else "not a file"))
    except OSError:
        found.others.append((relative, 0, "a link to nothing"))


def count_hidden(found: Found, root: str, relative: str) -> None:
    """Count what is in a hidden folder, as far as it can be listed."""
    for folder, _, names in os.walk(os.path.join(root, relative)):
        for name in names:
            path = os.path.join(folder, name)
            size_bytes = os.lstat(path).st_size if os.path.lexists(path) else 0
            found.others.append((os.path.relpath(path, root), size_bytes, HIDDEN))
