# SPDX-License-Identifier: Apache-2.0
"""Which files are read, by the ending of their name, and why the others are not."""

from importlib.util import find_spec


TABLES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow")
COLUMNS = (".csv", ".tsv")
TEXTS = (".txt", ".md", ".text", ".rst")
# Documents, and the modules that read them, which recipes/requirements-documents.txt installs.
DOCUMENTS = {
    ".pdf": ("pypdfium2",),
    ".docx": ("docx",),
    ".pptx": ("pptx",),
    ".html": ("selectolax",),
    ".htm": ("selectolax",),
    ".xhtml": ("selectolax",),
    ".eml": ("selectolax",),
    ".msg": ("oxmsg", "selectolax", "compressed_rtf", "striprtf"),
    ".epub": ("selectolax",),
    ".rtf": ("striprtf",),
}
PACKED = (".gz", ".zst", ".xz", ".bz2")
PACKED_TARS = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz"}
ARCHIVES = (".zip", ".tar")
NO_ENDING = "(no ending)"
# What to do with endings that many folders have; these are not read as plain text even where the recipe names them.
ADVICE = {
    "save it as .docx": (".doc", ".odt", ".wpd"),
    "save it as .pptx": (".ppt", ".odp"),
    "save it as .csv": (".xls", ".xlsx", ".ods"),
    "save it as .eml": (".mbox", ".pst"),
    "unpack it": (".7z", ".rar"),
    "an image": (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".gif", ".bmp"),
    "a recording": (".mp3", ".wav", ".mp4", ".mov", ".avi"),
    "an archive; give its path as a source of its own": (".zip", ".tar", ".whl"),
}
NEEDS_LIBRARY = "its library is not installed"
HIDDEN, UNNAMED = "hidden or temporary", "not named by data_files"
# Reasons that the recipe or the system gives: such files do not count against the bytes that are read.
CHOSEN = (HIDDEN, UNNAMED, "named in ignore")
HIDDEN_FOLDERS = ("__MACOSX", "__pycache__", "lost+found", "$RECYCLE.BIN", "System Volume Information")
HIDDEN_STARTS, HIDDEN_ENDS = (".", "~$"), ("~", ".tmp", ".swp", ".part", ".crdownload")
HIDDEN_NAMES = ("Thumbs.db", "desktop.ini")


def split_ending(name: str) -> tuple[str, str]:
    """Return the name without its folders and its suffix, and the suffix, as pathlib does in a tenth of the time."""
    name = name.rpartition("/")[2]
    dot = name.rfind(".")
    return (name[:dot], name[dot:]) if 0 < dot < len(name) - 1 else (name, "")


def plain_name(name: str) -> str:
    """Return a name with its ending in small letters and a packed tar's ending written out: `A.TGZ` is `A.tar.gz`."""
    stem, ending = split_ending(name)
    ending = ending.lower()
    if ending in PACKED:
        stem, inner = split_ending(stem)
        return stem + inner.lower() + ending
    return stem + PACKED_TARS.get(ending, ending)


def suffix(name: str) -> str:
    """Return the suffix of a file in small letters, without that of its compression: `.jsonl` of `a.JSONL.gz`."""
    stem, ending = split_ending(plain_name(name))
    return split_ending(stem)[1] if ending in PACKED else ending


def packing(name: str) -> str:
    """Return the suffix of a file's compression, or nothing."""
    ending = split_ending(plain_name(name))[1]
    return ending if ending in PACKED else ""


def whole_ending(name: str) -> str:
    """Return how a table of files shows the ending of a name: `.jsonl.gz`."""
    return suffix(name) + packing(name) or NO_ENDING


def is_hidden(relative: str) -> bool:
    """Return whether a path below a source is hidden, or left by an editor, a download or the system."""
    *folders, name = relative.split("/")
    if any(folder.startswith(".") or folder in HIDDEN_FOLDERS for folder in folders):
        return True
    return name.startswith(HIDDEN_STARTS) or name.lower().endswith(HIDDEN_ENDS) or name in HIDDEN_NAMES


def why_not_read(name: str, ignored: list[str], has_columns: bool, is_named: bool) -> str | None:
    """Return why a file is not read; None if it is.

    Args:
        name: of the file, without its folders.
        ignored: the endings that the recipe leaves out.
        has_columns: whether the recipe says which columns of a table are the text.
        is_named: whether the recipe names the file or a pattern that it matches: then an ending that is not known
            here is plain text.
    """
    kind = suffix(name)
    if {kind or NO_ENDING, whole_ending(name)} & {PACKED_TARS.get(ending, ending) for ending in ignored}:
        return "named in ignore"
    if kind in COLUMNS and not has_columns:
        return "a table; set text_field or text_template"
    if kind in TABLES + COLUMNS + TEXTS:
        return None
    if kind in DOCUMENTS:
        return None if all(find_spec(module) for module in DOCUMENTS[kind]) else NEEDS_LIBRARY
    for advice, endings in ADVICE.items():
        if kind in endings:
            return f"no reader; {advice}"
    return None if is_named else "no reader for this ending"
