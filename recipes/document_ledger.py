# SPDX-License-Identifier: Apache-2.0
"""The ledger: which documents went into a training step, and when a document was or will be trained on.

In:   a run folder with tokens/ and at least one checkpoint.
Out:  a table on the console, or JSON lines with --json.

    python recipes/document_ledger.py runs/legal-quickstart --step 120
    python recipes/document_ledger.py runs/legal-quickstart --document 3f2a9c51d0e84b7791c6f0aa52d8e310
    python recipes/document_ledger.py runs/legal-quickstart --passage "words that stand in a document"

Nothing is replayed and no log is kept: the order of the data is a pure function of (seed, index), so either question
is answered from the newest checkpoint's state, the token shards and their document index: the first in the same time
for any step and corpus, the second after a search of the index for the document. What data.skip passes over is shown
and said to be skipped.
"""

import argparse
import json
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from checkpointing import list_checkpoints, load_state
from mixture_shares import make_mixture
from recipe_config import RecipeError
from recipe_loading import load_recipe, run_command
from token_mixture import Location, TokenMixture, TokenShards, document_start
from training_batches import extend_skips, is_skipped, skip_at
from training_stability import in_rollback


def documents_of_step(mixture: TokenMixture, sequences_per_step: int, step: int) -> Iterator[dict]:
    """Yield the pieces of documents in an optimizer step's sequences; see Ledger.documents_of."""
    shards, first = mixture.shards, (step - 1) * sequences_per_step
    for sequence in range(sequences_per_step):
        location = mixture.locate(first + sequence)
        index = shards.index(location.source, location.shard)
        begin, end = location.start + 1, location.start + 1 + shards.sequence_length  # of the labels
        number = bisect_left(index, begin, key=lambda record: record["end"])
        while number < len(index) and document_start(index, number) < end:
            start = document_start(index, number)
            yield {
                "document": index[number]["id"].decode(),
                "source": shards.names[location.source],
                "sequence": sequence,
                "first_token": max(begin, start) - start,
                "end_token": min(end, int(index[number]["end"]) + 1) - start,
            }
            number += 1


class Ledger:
    """The training order of a run, open for questions.

    Args: run: a run folder whose training has saved a checkpoint, be it finished or not.
    Raises: RecipeError: there is none.
    """

    def __init__(self, run: Path):
        checkpoints = list_checkpoints(run / "checkpoints")
        if not checkpoints:
            raise RecipeError(f"{run}/checkpoints: no checkpoint yet, so nothing says how the run is trained")
        state, recipe = load_state(checkpoints[0][1]), load_recipe([run / "recipe.yaml"])
        self.max_steps, self.sequence_length = state["max_steps"], state["sequence_length"]
        self.sequences_per_step = state["tokens_per_step"] // self.sequence_length
        self.shards = TokenShards(run / "tokens", list(state["bytes_seen"]), self.sequence_length)
        self.mixture = make_mixture(self.shards, state["phases"], self.sequences_per_step, recipe.run.seed)
        self.skips = extend_skips(state["skips"], recipe.data.skip, state["step"])
        self.rollbacks = state["rollbacks"]

    def documents_of(self, step: int) -> Iterator[dict]:
        """Yield the pieces of documents that optimizer step `step` (from 1) was or will be trained on.

        Each says the document, its source, the sequence of the step it stands in (a window of training.sequence_length
        tokens, also where a phase has longer ones), which tokens of the document are
        labels there, from `first_token` (0 is the document's first) to before `end_token`, and whether data.skip has
        them `skipped`: then this is what the step would have been trained on.
        """
        for piece in documents_of_step(self.mixture, self.sequences_per_step, step):
            yield piece | {"skipped": self.is_skipped(step, piece["document"])}

    def is_skipped(self, step: int, document: str) -> bool:
        passed_over = is_skipped(self.skips, step) or in_rollback(self.rollbacks, step)
        return passed_over or document in skip_at(self.skips, step)["documents"]

    def steps_of(self, document: str) -> Iterator[dict]:
        """Yield, in the order of training, the steps that hold a piece of a document, up to the last of the run.

        The document is looked for in the whole index, so this takes time that grows with the documents at hand.

        Raises: RecipeError: no training document has this id.
        """
        places = self.shards.find_documents([document])[document]
        if not places:
            raise RecipeError(
                f"document {document}: not in the training split; ids are in documents/train/*/*.parquet"
            )
        found = [
            visit | {"skipped": self.is_skipped(visit["step"], document)}
            for place in places
            for visit in self.visits(*place)
        ]
        yield from sorted(found, key=lambda visit: visit["step"])

    def visits(self, source: int, shard: int, start: int, end: int) -> Iterator[dict]:
        """Yield the steps in which tokens [start, end) of a shard are labels."""
        last = self.max_steps * self.sequences_per_step
        for window in range((start - 1) // self.sequence_length, (end - 2) // self.sequence_length + 1):
            begin = window * self.sequence_length + 1
            for index in self.mixture.find(Location(source, shard, window * self.sequence_length), last):
                yield {
                    "step": index // self.sequences_per_step + 1,
                    "source": self.shards.names[source],
                    "sequence": index % self.sequences_per_step,
                    "first_token": max(begin, start) - start,
                    "end_token": min(begin + self.sequence_length, end) - start,
                }


def find_passage(run: Path, passage: str) -> Iterator[dict]:
    """Yield the documents, of every split, in whose text a passage stands, whatever its case and line breaks.

    For whoever asks whether a text of theirs was used: all documents are read.
    """
    wanted = " ".join(passage.split()).lower()
    for path in sorted((run / "documents").glob("*/*/*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(1000, columns=["id", "text"]):
            for document, text in zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True):
                if wanted in " ".join(text.split()).lower():
                    yield {"document": document, "source": path.parent.name, "split": path.parent.parent.name}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="run.output_dir of a recipe")
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--step", type=int, help="which documents went into this optimizer step")
    question.add_argument("--document", help="in which steps this document was or will be trained on")
    question.add_argument("--passage", help="which documents hold these words, by id, to be asked with --document")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    options = parser.parse_args(argv)
    if options.passage is not None:
        if not options.passage.strip():
            raise RecipeError("--passage: empty; quote some words of the text")
        found = list(find_passage(options.run_folder, options.passage))
        for entry in found:
            print(
                json.dumps(entry) if options.json else f"{entry['document']}  {entry['split']:<10} {entry['source']}"
            )
        if not found and not options.json:
            print("no document holds it")
        return
    ledger = Ledger(options.run_folder)
    if options.step is not None and not 1 <= options.step <= ledger.max_steps:
        raise RecipeError(f"--step {options.step}: the run has steps 1 to {ledger.max_steps}")
    by_step = options.step is not None
    entries = ledger.documents_of(options.step) if by_step else ledger.steps_of(options.document)
    if not options.json:
        print(f"{'document' if by_step else 'step':<32}  {'source':<20} sequence  tokens of the document")
    for entry in entries:
        if options.json:
            print(json.dumps(entry))
        else:
            key = entry["document"] if by_step else entry["step"]
            tokens = f"{entry['first_token']:,} to {entry['end_token'] - 1:,}"
            skipped = ", skipped" if entry["skipped"] else ""
            print(f"{key:<32}  {entry['source']:<20} {entry['sequence']:>8}  {tokens}{skipped}")


if __name__ == "__main__":
    run_command(main)
