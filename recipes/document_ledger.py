# SPDX-License-Identifier: Apache-2.0
"""Answer which documents went into a training step, and when a document was or will be trained on.

In:   a run folder with tokens/ and at least one checkpoint, or that of a finished member of another run.
Out:  a table on the console, or JSON lines with --json.

    python recipes/document_ledger.py runs/legal-quickstart --step 120
    python recipes/document_ledger.py runs/legal-quickstart --document 3f2a9c51d0e84b7791c6f0aa52d8e310
    python recipes/document_ledger.py runs/legal-quickstart --passage "words that stand in a document"
    python recipes/document_ledger.py runs/legal-quickstart --passage "words that stand in a document" --before

With --before: the checkpoints that were saved before the documents were first trained on, the command that trains
again from the last of them without these documents, and the files and vocabulary entries that still show them.

A document is listed with its id, the file and row it was read from, its title and its first words; a passage of a PDF
or of slides with its page. Pieces that data.skip leaves out are marked as skipped."""

import argparse
import json
import shlex
from pathlib import Path

from corpus.document_files import in_form_of
from corpus.pages import page_of
from mixture.ledger import Ledger, describe_documents, find_passage
from provenance.removal import find_entries, find_mentions, first_step, read_removed
from recipe_config import RecipeError
from recipe_loading import load_recipe, run_command
from recovery.stored_tensors import list_checkpoints, newest_state


def open_ledger(run: Path) -> Ledger:
    """Open the ledger of a run whose training has saved a checkpoint, finished or not.

    Raises: RecipeError: there is no checkpoint.
    """
    state = newest_state(run)
    if state is None:
        raise RecipeError(f"{run}/checkpoints: no checkpoint yet, so nothing says how the run is trained")
    return Ledger(run, load_recipe([run / "recipe.yaml"]), state)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="run.output_dir of a recipe")
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--step", type=int, help="which documents went into this optimizer step")
    question.add_argument("--document", help="in which steps this document was or will be trained on")
    question.add_argument("--passage", help="which documents hold these words, by id, to be asked with --document")
    parser.add_argument("--before", action="store_true", help="which checkpoints never saw it, and what shows it")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    options = parser.parse_args(argv)
    if options.before and options.step is not None:
        raise RecipeError("--before: ask it with --document or --passage, not with --step")
    if options.passage is not None:
        passage = in_form_of(options.run_folder / "documents", options.passage)
        if not passage:
            raise RecipeError("--passage: empty; quote some words of the text")
        found = list(find_passage(options.run_folder, passage))
        if options.before:
            show_removal(
                options.run_folder, sorted({e["document"] for e in found if e["split"] == "train"}), options.json
            )
            return
        known = describe_documents(options.run_folder, {entry["document"] for entry in found})
        for entry in found:
            origin, position = known[entry["document"]], entry.pop("position")
            page = None if position is None else page_of(origin["page_starts"], position)
            entry |= without_pages(origin) | {"page": page}
            start = f"{entry['document']}  {entry['split']:<10} {entry['source']}"
            print(json.dumps(entry) if options.json else f"{start}  {describe_origin(entry)}")
        if not found and not options.json:
            print("no document holds it")
        return
    if options.before:
        show_removal(options.run_folder, [options.document], options.json)
        return
    ledger = open_ledger(options.run_folder)
    if options.step is not None and not 1 <= options.step <= ledger.max_steps:
        raise RecipeError(f"--step {options.step}: the run has steps 1 to {ledger.max_steps}")
    by_step = options.step is not None
    entries = list(ledger.documents_of(options.step) if by_step else ledger.steps_of(options.document))
    ids = {entry["document"] for entry in entries} if by_step else {options.document}
    known = describe_documents(options.run_folder, ids)
    if not options.json:
        if not by_step:
            print(f"{options.document}  {describe_origin(known[options.document])}")
        more = "  file and row, first words" if by_step else ""
        print(f"{'document' if by_step else 'step':<32}  {'source':<20} sequence  tokens of the document{more}")
    for entry in entries:
        if options.json:
            origin = known[entry["document"]] if by_step else known[options.document]
            print(json.dumps(entry | without_pages(origin)))
        else:
            key = entry["document"] if by_step else entry["step"]
            tokens = f"{entry['first_token']:,} to {entry['end_token'] - 1:,}"
            skipped = ", skipped" if entry["skipped"] else ""
            origin = f"  {describe_origin(known[entry['document']])}" if by_step else ""
            print(f"{key:<32}  {entry['source']:<20} {entry['sequence']:>8}  {tokens}{skipped}{origin}")


def show_removal(run: Path, documents: list[str], as_json: bool) -> None:
    """Print how to train a run again without some documents, and what would still show them."""
    if not documents:
        print(json.dumps({"documents": []}) if as_json else "no training document holds it")
        return
    ledger = open_ledger(run)
    first, texts = first_step(ledger, documents), read_removed(run, set(documents))
    clean = [path for step, path in list_checkpoints(run / "checkpoints") if first is None or step < first]
    command = ["python", "recipes/run_recipe.py", "--config", str(run / "recipe.yaml"), "--overwrite"]
    command += [f"--run.resume={clean[0]}"] if clean else []
    skipped = sorted({*load_recipe([run / "recipe.yaml"]).data.skip.documents, *documents})
    command += [f"--data.skip.documents={json.dumps(skipped)}"]
    found = {
        "documents": documents,
        "first_step": first,
        "clean_checkpoints": [str(path) for path in clean],
        "command": None if first is None else shlex.join(command),
        "tokenizer_entries": find_entries(run, set(documents), texts),
        "mentions": find_mentions(run, set(documents), texts),
    }
    if as_json:
        print(json.dumps(found))
        return
    print(f"documents: {', '.join(documents)}")
    if first is None:
        print("no step was or will be trained on them")
    else:
        print(f"first trained on in step {first:,} of {ledger.max_steps:,}")
        names = ", ".join(path.name for path in clean)
        print(f"checkpoints that never saw them: {names or 'none, so training starts again'}")
        print(f"train without them, and with every other step as it was:\n  {found['command']}")
    print("The tokenizer was trained on them too. Its entries that no other training document holds:", end=" ")
    print(", ".join(map(repr, found["tokenizer_entries"])) or "none")
    for entry in found["mentions"]:
        print(f"{entry['file']} shows {entry['shows']}")


def without_pages(origin: dict) -> dict:
    return {key: value for key, value in origin.items() if key != "page_starts"}


def describe_origin(document: dict) -> str:
    """Return the files and rows that a document was read from, the page if it is known, title and first words."""
    places = [f"{path}:{row}" for path, row in document["places"]]
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    page = f", page {document['page']}" if document.get("page") else ""
    title = f"  {document['title']}" if document["title"] else ""
    return f"{', '.join(places[:3]) or 'place not noted'}{more}{page}{title}  {document['first_words']!r}"


if __name__ == "__main__":
    run_command(main)
