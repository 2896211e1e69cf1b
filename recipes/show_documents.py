# SPDX-License-Identifier: Apache-2.0
"""Write a page with documents of a run, kept and dropped, to choose thresholds by looking at them.

In:   <run>/documents/ and <run>/dropped_samples.jsonl, which prepare_data.py writes (data.dropped_samples_bytes).
Out:  <run>/documents.html, one file without scripts, for this machine: it quotes the text. Its path is printed.

    python recipes/show_documents.py runs/legal-quickstart
    python recipes/show_documents.py runs/legal-quickstart --source opinions --dropped quality
    python recipes/show_documents.py runs/legal-quickstart --split validation --grep "without prejudice"

Kept documents come with their text as it was read, if prepare sampled them. What a rule counts in a dropped document
is marked, near-duplicates are beside the document kept instead. Values of personal data are hidden, their kind is
marked."""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from atomic_files import read_json
from corpus.accounting import SPLITS
from corpus.document_files import PLACES
from corpus.document_page import Section, Shown, View, group_of, in_order, render_page, title_of, view_pair, view_text
from corpus.dropped_samples import KEPT, PASSAGES_REMOVED, SAMPLE_CHARACTERS, SAMPLES, sample_rank
from recipe_config import RecipeError
from recipe_loading import run_command


PAGE, MOST_PLACES = "documents.html", 3


def choose_kept(folder: Path, most: int, wanted: re.Pattern | None) -> list[tuple[str, str]]:
    """Return (id, text) of the documents of a split's source with the lowest hashes, of those that match.

    Texts are read only where a row group has one of the lowest hashes.
    """
    lowest: list[tuple[int, str, str]] = []
    for path in sorted(folder.glob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            ranks = {document: sample_rank(document) for document in column(file, group, "id")}
            worst = lowest[-1][0] if len(lowest) == most else None
            if worst is None or min(ranks.values()) < worst:
                rows = zip(ranks.values(), ranks, column(file, group, "text"), strict=True)
                found = [row for row in rows if wanted is None or wanted.search(row[2])]
                lowest = sorted([*lowest, *found])[:most]
    return [(document, text) for _, document, text in lowest]


def column(file: pq.ParquetFile, group: int, name: str) -> list[str]:
    return file.read_row_group(group, columns=[name])[name].to_pylist()


def find_texts(folders: list[Path], ids: set[str]) -> dict[str, str]:
    """Return id -> text of documents, of any split; without those that are not there."""
    found: dict[str, str] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*/*/*.parquet"))):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            own = column(file, group, "id")
            if not ids.isdisjoint(own):
                texts = column(file, group, "text")
                found |= {document: text for document, text in zip(own, texts, strict=True) if document in ids}
    return found


def find_places(run: Path, ids: set[str]) -> dict[str, str]:
    """Return id -> the first files and rows of documents; exact duplicates have one id and several of them."""
    path = run / "documents" / PLACES
    rows = pq.read_table(path, filters=[("id", "in", list(ids))]).to_pylist() if path.exists() and ids else []
    places: dict[str, list[str]] = {}
    for row in rows:
        places.setdefault(row["id"], []).append(f"{row['path']}:{row['row']}")
    return {document: ", ".join(own[:MOST_PLACES]) for document, own in places.items()}


def find_scores(run: Path, ids: set[str]) -> dict[str, str]:
    """Return id -> its score by the quality model, beside the least that is kept of its source."""
    path = run / "documents" / "quality_scores.parquet"
    if not ids or not path.exists():
        return {}
    least = read_json(run / "documents" / "stats.json")["quality_model"]["least_score"]
    return {
        row["id"]: f"score {row['score']:.3f}, where at least {least[row['source']]:.3f} is kept"
        for row in pq.read_table(path, filters=[("id", "in", list(ids))]).to_pylist()
    }


def grep_marks(text: str, wanted: re.Pattern | None) -> list[tuple[int, int, str]]:
    return [(*found.span(), "grep") for found in wanted.finditer(text)] if wanted else []


def show_kept(document: str, source: str, text: str, before: dict | None, wanted: re.Pattern | None) -> Shown:
    """Return a kept document, beside its text as it was read where that is known and differs."""
    start = max(0, wanted.search(text).start() - SAMPLE_CHARACTERS // 2) if wanted else 0
    shown = text[start : start + SAMPLE_CHARACTERS]
    if before is None or "before" not in before or start:
        note = "Unchanged by cleaning." if before is not None and "before" not in before else ""
        view = view_text("As it is kept", shown, grep_marks(shown, wanted), len(text), start)
        return Shown(source, document, "", note, [view])
    views = view_pair(("As it was read", "As it is kept"), (before["before"], shown), (0, len(text)))
    return Shown(source, document, "", "", views)


def show_dropped(sample: dict, texts: dict[str, str], wanted: re.Pattern | None) -> Shown:
    """Return a dropped document with its marks, and a near-duplicate beside the document kept instead."""
    text, note = sample["text"], sample.get("note", "")
    if sample.get("near") in texts:
        kept = texts[sample["near"]]
        captions = ("Dropped", f"Kept instead: {sample['near']}")
        views = view_pair(captions, (text, kept[:SAMPLE_CHARACTERS]), (sample["characters"], len(kept)))
    else:
        if "near" in sample:
            note = (
                f"Kept instead: {sample['near']}, whose text was removed or changed later, or is not in this folder."
            )
        caption = "As it was before" if sample["reason"] == PASSAGES_REMOVED else "Dropped"
        marks = [*map(tuple, sample["marks"]), *grep_marks(text, wanted)]
        views = [view_text(caption, text, marks, sample["characters"], sample["start"])]
    folded: list[View] = []
    if "before" in sample:
        folded = view_pair(("As it was read", "After normalisation"), (sample["before"], text), (0, 0))
    return Shown(sample["source"], sample["id"], sample.get("place", ""), note, views, folded)


def read_samples(run: Path) -> Iterator[dict]:
    path = run / SAMPLES
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    yield from (json.loads(line) for line in lines if line)


def describe_run(run: Path, options: argparse.Namespace) -> tuple[dict, list[Section], list[Section], list[str]]:
    """Return the sources of stats.json, the sections of kept and of dropped documents, and notes."""
    stats = read_json(run / "documents" / "stats.json")
    if stats is None:
        raise RecipeError(f"{run}/documents: no documents yet; run recipes/prepare_data.py first")
    sources = stats["sources"]
    if unknown := set(options.source or ()) - set(sources):
        raise RecipeError(f"--source {sorted(unknown)[0]}: no such source; there are {', '.join(sources)}")
    sources = {name: entry for name, entry in sources.items() if name in (options.source or sources)}
    try:
        wanted = re.compile(options.grep, re.IGNORECASE) if options.grep else None
    except re.error as error:
        raise RecipeError(f"--grep {options.grep!r}: not a regular expression: {error}") from error
    samples = [sample for sample in read_samples(run) if sample["source"] in sources]
    splits = [options.split] if options.split else [] if options.dropped else ["train"]
    kept = show_splits(run, sources, splits, samples, wanted, options.most)
    dropped = [] if options.split and not options.dropped else show_reasons(run, sources, samples, wanted, options)
    notes = []
    if not (run / SAMPLES).exists():
        notes.append(
            f"{SAMPLES} is not there, so no dropped document can be shown: set data.dropped_samples_bytes in the "
            "recipe and prepare again with --overwrite."
        )
    return sources, kept, dropped, notes


def show_splits(
    run: Path, sources: dict, splits: list[str], samples: list[dict], wanted: re.Pattern | None, most: int
) -> list[Section]:
    before = {sample["id"]: sample for sample in samples if sample["reason"] == KEPT}
    sections = []
    for split in splits:
        shown = [
            show_kept(document, name, text, before.get(document), wanted)
            for name in sources
            for document, text in choose_kept(run / "documents" / split / name, most, wanted)
        ]
        places = find_places(run, {document.document for document in shown})
        for document in shown:
            document.place = places.get(document.document, "")
        number = sum(entry["kept"].get(split, {"documents": 0})["documents"] for entry in sources.values())
        sections.append(Section(split, f"Kept: {split}", number, shown))
    return sections


def show_reasons(
    run: Path, sources: dict, samples: list[dict], wanted: re.Pattern | None, options: argparse.Namespace
) -> list[Section]:
    numbers: dict[str, int] = {}
    for entry in sources.values():
        for reason, count in entry["dropped"].items():
            numbers[reason] = numbers.get(reason, 0) + count["documents"]
        if entry["cut"]["documents"]:
            numbers[PASSAGES_REMOVED] = numbers.get(PASSAGES_REMOVED, 0) + entry["cut"]["documents"]
    chosen = [reason for reason in in_order(numbers) if options.dropped in (None, reason, group_of(reason))]
    if options.dropped and not chosen:
        known = dict.fromkeys(name for reason in in_order(numbers) for name in (group_of(reason), reason))
        raise RecipeError(f"--dropped {options.dropped}: no document; there are {', '.join(known) or 'none'}")
    by_reason: dict[str, list[dict]] = {reason: [] for reason in chosen}
    for sample in samples:
        own = by_reason.get(sample["reason"])
        if own is not None and (wanted is None or wanted.search(sample["text"])):
            own.append(sample)
    quarantined = quarantine(run, sources, wanted) if "unreadable" in chosen else []
    by_reason = {
        reason: sorted(own, key=lambda sample: sample_rank(sample["id"]))[: options.most]
        for reason, own in by_reason.items()
    }
    near = [sample for own in by_reason.values() for sample in own if "near" in sample]
    folders = {run / "documents", *(Path(folder) for sample in near for folder in sample["near_in"])}
    texts = find_texts(sorted(folders), {sample["near"] for sample in near}) if near else {}
    places = find_places(run, {sample["id"] for own in by_reason.values() for sample in own})
    scores = find_scores(run, {sample["id"] for sample in by_reason.get("quality_model", ())})
    sections = []
    for reason, own in by_reason.items():
        shown = [show_dropped(sample, texts, wanted) for sample in own]
        for document in shown:
            document.place = document.place or places.get(document.document, "")
            document.note = document.note or (scores.get(document.document, "") if reason == "quality_model" else "")
        shown = quarantined[: options.most] if reason == "unreadable" else shown
        sections.append(Section(reason, title_of(reason), numbers[reason], shown))
    return sections


def quarantine(run: Path, sources: dict, wanted: re.Pattern | None) -> list[Shown]:
    """Return what could not be read, by place and reason; there is no text to show."""
    with (run / "documents" / "quarantine.jsonl").open(encoding="utf-8") as lines:
        entries = [entry for entry in map(json.loads, lines) if entry["source"] in sources]
    return [
        Shown(entry["source"], "", entry["position"], entry["reason"], [])
        for entry in entries
        if wanted is None or wanted.search(entry["position"] + entry["reason"])
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="run.output_dir of a recipe")
    parser.add_argument("--source", action="append", help="only this source; may be repeated")
    parser.add_argument(
        "--dropped", help="only documents dropped for this reason: quality, language, near_duplicate, ..."
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="only kept documents of this split (with neither: train and all)"
    )
    parser.add_argument("--grep", help="only documents in which this regular expression matches, in any case")
    parser.add_argument("--most", type=int, default=10, help="documents of a split's source and of a reason (10)")
    parser.add_argument("--output", type=Path, help=f"the page (<run>/{PAGE})")
    options = parser.parse_args(argv)
    sources, kept, dropped, notes = describe_run(options.run_folder, options)
    path = options.output or options.run_folder / PAGE
    render_page(path, options.run_folder.name, sources, kept, dropped, notes)
    print(f"show_documents: {sum(len(section.shown) for section in [*kept, *dropped])} documents, in {path.resolve()}")


if __name__ == "__main__":
    run_command(main)
