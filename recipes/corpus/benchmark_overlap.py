# SPDX-License-Identifier: Apache-2.0
"""Find benchmark items in training text, drop the documents that contain them, and report what remains.

In:   benchmarks/<task>.jsonl with id, context, choices and gold, as `eval/run_eval.py --export_requests` writes them.
Out:  the documents that contain no item, and decontamination.json: for each task what could be checked, what was found
      in which document, and what remains, so that clean items can be scored separately.

    python eval/run_eval.py --export_requests benchmarks        # then data.decontamination.benchmarks=benchmarks

A document is dropped if the runs of at least `ngram_words` words that it shares with an item cover a given fraction of
the item's words, or of its question's: the choices that a prompt lists can be most of its words. The rule combines
three sources:

    Llama 2       counts the words in shared n-grams, so one changed word does not hide a copy (arXiv:2307.09288, A.6)
    Cosmopedia    asks one document to cover half of the item (github.com/huggingface/cosmopedia, decontamination)
    GPT-3         uses runs of 13 words, or a whole item of 8 to 12 (arXiv:2005.14165, appendix C)

At a fraction of a half, one run is enough for an item of up to twice its length, so a common phrase in a short item
can drop documents; such an item has many documents in the report. Reworded or translated items are not found, nor
items that a document has only in scattered parts, each shorter than a run.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from datatrove.data import Document

from atomic_files import file_sha256, write_json
from corpus.dropped_samples import no_samples
from corpus.finished_tasks import note_written
from corpus.words import BASE, WORD, ngram_hashes


MIN_WORDS = 8
# An n-gram in at least TEMPLATE_ITEMS and more than this fraction of a task's items is the task's wording
# (instructions, worked examples) and identifies no item.
TEMPLATE_FRACTION = 0.05
TEMPLATE_ITEMS = 10
LISTED_DOCUMENTS = 10
TABLE_CELLS_PER_NGRAM = 16
# Soft hyphen, zero-width and direction marks, fillers, variation selectors.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0]"
)


# A prompt up to the choices that it lists by letter, and within that the question between its marks.
LISTED_CHOICES = re.compile(r"^\s*\(?A[.):]\s", re.MULTILINE)
LETTER = re.compile(r"\s*\(?[A-Z][.):]?\s*")
# A passage before the question, such as a page of a filing, belongs to the item and not to its question.
QUESTION = re.compile(r"\s*(?:(?:.*\n)?Question:)?(?P<question>.*?)(?:(?:Choices|Answer):)?\s*", re.DOTALL)


class Item(NamedTuple):
    """A benchmark item.

    Attributes:
        id: of the item.
        words: of the context and the right choice.
        question: the first word of the question, and the one after its last.
    """

    id: str | int
    words: list[str]
    question: tuple[int, int]


class Passage(NamedTuple):
    """Consecutive words of an item, as hashes, and where among them the question begins and ends."""

    words: np.ndarray
    question: tuple[int, int]


def normalised_words(text: str) -> list[str]:
    """Return the words of a text without differences of case, punctuation, spacing and character variants."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text))
    return WORD.findall(text.casefold().replace("_", " "))


def read_items(path: Path) -> list[Item]:
    """Return a task's items, ordered by id.

    Raises: ValueError: a line is not an item, or repeats an id.
    """
    items: dict[str | int, Item] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        try:
            item = json.loads(line)
            item_id, text = item["id"], item["context"] + item["choices"][item["gold"]]
        except (ValueError, LookupError, TypeError) as error:
            form = "an item needs id, context, choices and gold, as eval/run_eval.py --export_requests writes them"
            raise ValueError(f"{path}:{number}: {error!r}; {form}") from error
        if item_id in items:
            raise ValueError(f"{path}:{number}: the id {item_id!r} is not unique; give each item its own")
        items[item_id] = Item(item_id, normalised_words(text), find_question(item["context"], item["choices"]))
    return sorted(items.values(), key=lambda item: str(item.id))


def find_question(context: str, choices: list[str]) -> tuple[int, int]:
    """Return the first word of an item's question and the one after its last, without the choices that it lists."""
    listed = LISTED_CHOICES.search(context) if all(map(LETTER.fullmatch, choices)) else None
    prompt = context[: listed.start()] if listed else context
    found = QUESTION.fullmatch(prompt)
    first = len(normalised_words(prompt[: found.start("question")]))
    return first, first + len(normalised_words(found["question"]))


def widen_shared_questions(items: list[Item]) -> list[Item]:
    """Return the items of a task; a question that is the task's wording, such as "what is the sentiment?", is made to
    begin where the item begins: there the text before it is what the item asks.
    """
    asked = [tuple(item.words[slice(*item.question)]) for item in items]
    counts = Counter(asked)
    shared = {
        words for words, count in counts.items() if count >= TEMPLATE_ITEMS and count > TEMPLATE_FRACTION * len(items)
    }
    return [
        item._replace(question=(0, item.question[1])) if words in shared else item
        for item, words in zip(items, asked, strict=True)
    ]


class BenchmarkIndex:
    """The n-grams of benchmark items by their hashes; it pickles, and depends on the items alone.

    The wording of a task (TEMPLATE_FRACTION) is removed from its items. Each remaining passage of at least MIN_WORDS
    words is searched for, in runs of `ngram_words` words or, if it is shorter, as a whole.

    Attributes:
        items: (task, id) of the items that can be checked.
        num_items: task -> items in its file.
        sha256: task -> hash of its file.
        not_checkable: task -> reason (too_short, template) -> ids.
        template_ngrams: task -> n-grams of its wording.

    Raises: ValueError: there are no items to check, or a file has a line that is not an item.
    """

    def __init__(self, folder: Path, ngram_words: int = 13):
        if ngram_words < MIN_WORDS:
            raise ValueError(f"ngram_words={ngram_words} is too few to identify an item; use at least {MIN_WORDS}")
        paths = sorted(Path(folder).glob("*.jsonl"))
        tasks = {path.stem: read_items(path) for path in paths}
        self.ngram_words = ngram_words
        self.sha256 = {path.stem: file_sha256(path) for path in paths}
        self.num_items = {task: len(items) for task, items in tasks.items()}
        self.not_checkable = {task: {"too_short": [], "template": []} for task in tasks}
        self.template_ngrams: dict[str, int] = {}
        vocabulary = set(chain.from_iterable(item.words for items in tasks.values() for item in items))
        self.word_hashes = {word: xxhash.xxh64_intdigest(word) for word in sorted(vocabulary)}

        self.items: list[tuple[str, str | int]] = []
        passages_of_items = []
        for task, items in tasks.items():
            for item_id, passages in self.find_passages(task, items):
                self.items.append((task, item_id))
                passages_of_items.append(passages)
        if not self.items:
            remedy = f"write <task>.jsonl with: python eval/run_eval.py --export_requests {folder}"
            raise ValueError(f"{folder}: no item of at least {MIN_WORDS} words besides its task's wording; {remedy}")
        self.index_passages(passages_of_items)

    def find_passages(self, task: str, items: list[Item]) -> Iterator[tuple[str | int, list[Passage]]]:
        """Yield (id, passages to search for) of the items that have any; note the others in not_checkable."""
        items = widen_shared_questions(items)
        hashed = [self.hash_words(item.words) for item in items]
        templates = self.find_templates(hashed)
        self.template_ngrams[task] = len(templates)
        for item, words in zip(items, hashed, strict=True):
            if passages := self.remove_templates(templates, words, item.question):
                yield item.id, passages
            else:
                self.not_checkable[task]["too_short" if len(words) < MIN_WORDS else "template"].append(item.id)

    def index_passages(self, passages_of_items: list[list[Passage]]) -> None:
        """Set the arrays that `overlaps` searches.

        All passages form one sequence of words, in which item i has the words from bounds[i] to bounds[i + 1];
        in_question says which belong to a question. ngrams are the sorted hashes of the n-grams, runs their (start,
        end) in the sequence. A question too short for an n-gram is one by itself. Most positions of a text are ruled
        out by table, which says whether any n-gram begins with MIN_WORDS words whose hash has these bits.
        """
        bounds, in_question, ngrams, runs, beginnings = [0], [], [], [], []

        def add(words: np.ndarray, start: int) -> None:
            ngrams.append(ngram_hashes(words, self.ngram_words))
            first = start + np.arange(len(ngrams[-1]))
            runs.append(np.stack([first, first + min(self.ngram_words, len(words))], axis=1))
            beginnings.append(ngram_hashes(words, MIN_WORDS)[: len(first)])

        for passages in passages_of_items:
            start = bounds[-1]
            for words, (first, end) in passages:
                add(words, start)
                if MIN_WORDS <= end - first < min(self.ngram_words, len(words)):
                    add(words[first:end], start + first)
                place = np.arange(len(words))
                in_question.append((first <= place) & (place < end))
                start += len(words)
            bounds.append(start)
        self.bounds, self.in_question, self.ngrams = map(
            np.asarray, (bounds, np.concatenate(in_question), np.concatenate(ngrams))
        )
        order = np.argsort(self.ngrams, kind="stable")
        self.ngrams, self.runs = self.ngrams[order], np.concatenate(runs)[order]
        bits = (TABLE_CELLS_PER_NGRAM * len(self.ngrams)).bit_length()
        self.shift, self.table = np.uint64(64 - bits), np.zeros(1 << bits, dtype=bool)
        self.table[np.concatenate(beginnings) >> self.shift] = True

    def hash_words(self, words: list[str]) -> np.ndarray:
        """Return one uint64 a word, 0 for words that no item has."""
        return np.fromiter(map(self.word_hashes.get, words, repeat(0)), dtype=np.uint64, count=len(words))

    def find_templates(self, items: list[np.ndarray]) -> np.ndarray:
        """Return the hashes of the n-grams that are a task's wording, given the word hashes of its items."""
        distinct = [np.unique(ngram_hashes(words, self.ngram_words)) for words in items if len(words) >= MIN_WORDS]
        ngrams, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *distinct]), return_counts=True)
        return ngrams[(counts >= TEMPLATE_ITEMS) & (counts > TEMPLATE_FRACTION * len(items))]

    def remove_templates(self, templates: np.ndarray, words: np.ndarray, question: tuple[int, int]) -> list[Passage]:
        """Return the passages between the templates that have at least MIN_WORDS words."""
        own = np.ones(len(words), dtype=bool)
        for start in np.flatnonzero(np.isin(ngram_hashes(words, self.ngram_words), templates)):
            own[start : start + self.ngram_words] = False
        edges = np.flatnonzero(np.diff(own, prepend=False, append=False)).reshape(-1, 2).tolist()
        return [
            Passage(words[start:end], tuple(min(max(edge, start), end) - start for edge in question))
            for start, end in edges
            if end - start >= MIN_WORDS
        ]

    def candidates(self, found: list[str]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield, for each length of a run, the length, the places of runs that items may have, and their hashes."""
        words = self.hash_words(found)
        hashes = ngram_hashes(words, MIN_WORDS)
        places = np.flatnonzero(self.table[hashes >> self.shift])
        hashes = hashes[places]
        yield MIN_WORDS, places, hashes
        for length in range(MIN_WORDS, self.ngram_words):
            places = places[places + length < len(words)]
            hashes = hashes[: len(places)] * BASE + words[places + length]
            yield length + 1, places, hashes

    def mark(self, text: str) -> list[tuple[int, int]]:
        """Return (start, end) of the runs of a text that items have, in characters; empty where its words as they are
        compared are not its words one by one."""
        words, spans = normalised_words(text), [word.span() for word in WORD.finditer(text.replace("_", " "))]
        shared = np.zeros(len(words), dtype=bool)
        for length, places, hashes in self.candidates(words):
            first = np.searchsorted(self.ngrams, hashes)
            for place in places[self.ngrams[np.minimum(first, len(self.ngrams) - 1)] == hashes]:
                shared[place : place + length] = True
        edges = np.flatnonzero(np.diff(shared, prepend=False, append=False)).reshape(-1, 2).tolist()
        return [(spans[a][0], spans[b - 1][1]) for a, b in edges] if len(spans) == len(words) else []

    def overlaps(self, text: str) -> dict[tuple[str, str | int], float]:
        """Return the fraction that the text covers of each item that shares a run with it.

        It is the fraction of the words of its passages, or that of its question's words among them if they are at
        least MIN_WORDS and more of them are covered.
        """
        return {item: max(whole, apart) for item, (whole, apart, _) in self.covered_parts(text).items()}

    def covered_parts(self, text: str) -> dict[tuple[str, str | int], tuple[float, float, bool]]:
        """Return, for each item that shares a run with the text, the fraction that it covers of the words of its
        passages and of its question, 0 for one below MIN_WORDS; and whether it covers no word of the question.
        """
        candidates = np.unique(np.concatenate([hashes for _, _, hashes in self.candidates(normalised_words(text))]))
        first, last = (np.searchsorted(self.ngrams, candidates, side) for side in ("left", "right"))
        runs = self.runs[[rank for a, b in zip(first, last, strict=True) for rank in range(a, b)]]
        owners = np.searchsorted(self.bounds, runs[:, 0], "right") - 1
        fractions = {}
        for owner in np.unique(owners):
            begin, end = self.bounds[owner], self.bounds[owner + 1]
            covered = np.zeros(end - begin, dtype=bool)
            for start, stop in runs[owners == owner] - begin:
                covered[start:stop] = True
            question = covered[self.in_question[begin:end]]
            apart = float(question.mean()) if len(question) >= MIN_WORDS else 0.0
            fractions[self.items[owner]] = float(covered.mean()), apart, bool(len(question)) and not question.any()
        return fractions


def drop_overlapping(
    documents,
    rank: int,
    world_size: int,
    index: BenchmarkIndex,
    min_overlap_fraction: float,
    folder: Path,
    new_samples: Callable = no_samples,
) -> Iterator[Document]:
    """Yield the documents that cover less than `min_overlap_fraction` (above 0, at most 1) of every item.

    When the task ends, every overlap, of dropped and of kept documents, is in folder/<rank>.jsonl.
    """
    rows, samples = [], new_samples("overlap", rank)
    for document in documents:
        parts = index.covered_parts(document.text)
        overlaps = {item: max(whole, apart) for item, (whole, apart, _) in parts.items()}
        dropped = max(overlaps.values(), default=0) >= min_overlap_fraction
        where = {"source": document.metadata["source"], "document": document.id, "dropped": dropped}
        where["bytes"] = len(document.text.encode())
        rows += [
            {"task": task, "id": item, "fraction": share, "passage_only": parts[task, item][2], **where}
            for (task, item), share in overlaps.items()
        ]
        if not dropped:
            yield document
        elif samples.wants(document.metadata["source"], "benchmark_overlap", document.id):
            (task, item), share = max(overlaps.items(), key=lambda entry: entry[1])
            note = f"shares {100 * share:.0f} % of item {item} of {task}" + f" and {len(overlaps) - 1} more items" * (
                len(overlaps) > 1
            )
            marks = [(start, end, task) for start, end in index.mark(document.text)]
            samples.add(document.metadata["source"], "benchmark_overlap", document.id, document.text, marks, note=note)
    samples.write()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{rank:05d}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    note_written(path)


def write_report(path: Path, index: BenchmarkIndex, min_overlap_fraction: float, folder: Path) -> dict:
    """Merge what the tasks of `drop_overlapping` wrote to a folder; write the report to path and return it.

    Each overlapping item has its documents, and the largest fraction in any of them and in any that was kept.
    """
    rows = [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.open(encoding="utf-8")]
    rows.sort(key=lambda row: (row["task"], str(row["id"]), -row["fraction"], row["source"], row["document"]))
    settings = {"ngram_words": index.ngram_words, "min_overlap_fraction": min_overlap_fraction, "min_words": MIN_WORDS}
    settings |= {"template_fraction": TEMPLATE_FRACTION, "template_items": TEMPLATE_ITEMS, "sha256": index.sha256}
    settings["question_apart"] = True  # fractions of runs without it are of whole items
    report = {"settings": settings, "removed": sum_removed(rows), "tasks": {}}
    for task, num_items in index.num_items.items():
        found = [row for row in rows if row["task"] == task]
        overlaps = []
        for item_id, group in groupby(found, key=lambda row: row["id"]):
            documents = [{key: row[key] for key in ("source", "document", "fraction", "dropped")} for row in group]
            kept = max((row["fraction"] for row in documents if not row["dropped"]), default=0.0)
            held = {"documents": len(documents), "fraction": documents[0]["fraction"], "fraction_after_removal": kept}
            overlaps.append({"id": item_id, **held, "largest": documents[:LISTED_DOCUMENTS]})
        report["tasks"][task] = {
            "items": num_items,
            "checkable": num_items - sum(map(len, index.not_checkable[task].values())),
            "not_checkable": index.not_checkable[task],
            "template_ngrams": index.template_ngrams[task],
            "removed": sum_removed(row for row in found if row["fraction"] >= min_overlap_fraction),
            "removed_for_passages": sum_removed(passage_rows(found, min_overlap_fraction)),
            "overlapping_items": len(overlaps),
            "overlapping_items_after_removal": sum(item["fraction_after_removal"] > 0 for item in overlaps),
            "overlaps": overlaps,
        }
    write_json(path, report)
    return report


def passage_rows(rows: list[dict], min_overlap_fraction: float) -> list[dict]:
    """Return the rows of documents that hold the passages of a task's items, such as a filing, but no question."""
    holding = [row for row in rows if row["fraction"] >= min_overlap_fraction]
    asked = {(row["source"], row["document"]) for row in holding if not row.get("passage_only")}
    return [row for row in holding if (row["source"], row["document"]) not in asked]


def sum_removed(rows: Iterable[dict]) -> dict[str, dict[str, int]]:
    """Return source -> documents and bytes dropped; a document counts once, however many items it overlaps."""
    dropped = {(row["source"], row["document"]): row["bytes"] for row in rows if row["dropped"]}
    totals: dict[str, dict[str, int]] = {}
    for (source, _), num_bytes in sorted(dropped.items()):
        before = totals.get(source, {"documents": 0, "bytes": 0})
        totals[source] = {"documents": before["documents"] + 1, "bytes": before["bytes"] + num_bytes}
    return totals
