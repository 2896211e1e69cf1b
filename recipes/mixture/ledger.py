# SPDX-License-Identifier: Apache-2.0
"""Which documents a training step holds, and which steps hold a document, without replaying training.

The order of the data is a pure function of (seed, index), so a checkpoint's state, the token shards and their document
index answer both questions: the first in the same time for any step and corpus, the second after a search of the
index."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from corpus.document_files import PLACES, read_columns
from mixture.order import TokenMixture
from mixture.phases import make_mixture
from mixture.shards import TokenShards
from mixture.skips import extend_skips, in_rollback, is_skipped, skip_at
from recipe_config import Recipe, RecipeError


def documents_of_step(mixture: TokenMixture, sequences_per_step: int, step: int) -> Iterator[dict]:
    """Yield the pieces of documents in an optimizer step's sequences; see Ledger.documents_of."""
    shards, first = mixture.shards, (step - 1) * sequences_per_step
    for sequence in range(sequences_per_step):
        location = mixture.locate(first + sequence)
        index = shards.index(location.source, location.shard)
        begin, end = location.start + 1, location.start + 1 + shards.sequence_length  # of the labels
        number = bisect_left(index, begin, key=lambda record: record["end"])
        while number < len(index) and shards.document_start(index, number) < end:
            start = shards.document_start(index, number)
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

    Args:
        run: the run folder, for its tokens.
        recipe: of the run, for its seed and data.skip.
        state: of its newest checkpoint; see recovery.resuming.fresh_state.
    """

    def __init__(self, run: Path, recipe: Recipe, state: dict):
        self.max_steps, self.sequence_length = state["max_steps"], state["sequence_length"]
        self.sequences_per_step = state["tokens_per_step"] // self.sequence_length
        sources, repack = list(state["bytes_seen"]), recipe.data.repack
        self.shards = TokenShards(run / "tokens", sources, self.sequence_length, repack)
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
        skipped = is_skipped(self.skips, step) or in_rollback(self.rollbacks, step)
        return skipped or document in skip_at(self.skips, step)["documents"]

    def steps_of(self, document: str) -> Iterator[dict]:
        """Yield, in the order of training, the steps that hold a piece of a document, up to the last of the run.

        The whole index is searched, so the time grows with the number of documents.

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
        for index, window in self.mixture.find(source, shard, start, end, last):
            yield {
                "step": index // self.sequences_per_step + 1,
                "source": self.shards.names[source],
                "sequence": index % self.sequences_per_step,
                "first_token": max(window + 1, start) - start,
                "end_token": min(window + 1 + self.sequence_length, end) - start,
            }


FIRST_WORDS_CHARACTERS = 60


def describe_documents(run: Path, ids: Iterable[str]) -> dict[str, dict]:
    """Return id -> where each document was read, as [file, row], its title, page_starts and first words.

    Equal documents have one id and several places; title and pages are those of the first. Documents of a run that
    noted no places have none. All ids of the run are searched, so the time grows with the number of documents.
    """
    wanted = list(ids)
    found = {document: {"places": [], "title": None, "page_starts": None, "first_words": ""} for document in wanted}
    chosen = [("id", "in", wanted)]
    places = run / "documents" / PLACES
    for row in pq.read_table(places, filters=chosen).to_pylist() if places.exists() and wanted else []:
        entry = found[row["id"]]
        entry["places"].append([row["path"], row["row"]])
        for key in ("title", "page_starts"):
            entry[key] = row.get(key) if entry[key] is None else entry[key]
    for path in sorted((run / "documents").glob("*/*/*.parquet")) if wanted else []:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):  # their texts are read only where an id is found
            ids = file.read_row_group(group, columns=["id"])["id"].to_pylist()
            if not found.keys().isdisjoint(ids):
                texts = file.read_row_group(group, columns=["text"])["text"]
                for number, document in enumerate(ids):
                    if document in found:
                        start = texts[number].as_py()[: 4 * FIRST_WORDS_CHARACTERS]
                        found[document]["first_words"] = " ".join(start.split())[:FIRST_WORDS_CHARACTERS]
    return found


def find_passage(run: Path, passage: str) -> Iterator[dict]:
    """Yield the documents, of every split, in whose text a passage stands, whatever its case and line breaks, and
    where it stands first (characters).

    For whoever asks whether a text of theirs was used: all documents are read.

    Args: passage: in the form of the documents; see corpus.document_files.in_form_of.
    """
    wanted = " ".join(passage.split()).lower()
    with_spaces = re.compile(r"\s+".join(map(re.escape, passage.split())), re.IGNORECASE)
    for path in sorted((run / "documents").glob("*/*/*.parquet")):
        for row in read_columns(path, ["id", "text"]):
            if wanted in " ".join(row["text"].split()).lower():
                first = with_spaces.search(row["text"])
                entry = {"document": row["id"], "source": path.parent.name, "split": path.parent.parent.name}
                yield entry | {"position": first and first.start()}
