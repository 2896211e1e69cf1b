# SPDX-License-Identifier: Apache-2.0
"""What the quality rules take from corpora that are known to be good, and how fast documents are cleaned.

    PYTHONPATH=recipes python tests/benchmarks/quality_rules.py refused data/*/*.jsonl    # a table, a row a file
    PYTHONPATH=recipes python tests/benchmarks/quality_rules.py examples data/*/*.jsonl   # what professional refuses
    PYTHONPATH=recipes python tests/benchmarks/quality_rules.py rules                     # every rule and threshold
    PYTHONPATH=recipes python tests/benchmarks/quality_rules.py speed data/legal/*.jsonl  # beside datatrove's filters

The files hold JSON lines with `text`. Bytes are those of refused documents and of lines that were cut. Speeds are
megabytes of text a second of processor time, one process.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.word_tokenizers import WordTokenizer

from corpus.language import LanguageFilter, load_model
from corpus.text_normalisation import normalise
from corpus.text_quality import RULES, SENTENCE_END, QualityFilter
from corpus.words import WORD


def texts(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def refused(files: list[Path]) -> None:
    """Print for each file what each profile takes from it, and the rules that refuse most under web."""
    filters = {"web": QualityFilter("web"), "professional": QualityFilter("professional")}
    print("| corpus | documents | MB | web: documents | bytes | professional: documents | bytes | most by, in web |")
    print("|---|--:|--:|--:|--:|--:|--:|---|")
    for file in files:
        documents = num_bytes = 0
        lost_documents, lost_bytes, reasons = Counter(), Counter(), Counter()
        for text in map(normalise, texts(file)):
            size_bytes = len(text.encode())
            documents, num_bytes = documents + 1, num_bytes + size_bytes
            for profile, quality in filters.items():
                kept, reason = quality.apply(text)
                lost_documents[profile] += reason is not None
                lost_bytes[profile] += size_bytes if reason else size_bytes - len(kept.encode())
                if profile == "web" and reason:
                    reasons[reason] += 1
        most = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common(3))
        shares = [
            f"{lost_documents[profile] / documents:.1%} | {lost_bytes[profile] / num_bytes:.1%}" for profile in filters
        ]
        print(f"| {file.stem} | {documents:,} | {num_bytes / 1e6:.1f} | {' | '.join(shares)} | {most} |", flush=True)


def examples(files: list[Path]) -> None:
    """Print the beginning of documents that professional refuses, at most three a file and rule."""
    quality, shown = QualityFilter("professional"), Counter()
    for file in files:
        for text in map(normalise, texts(file)):
            reason = quality.apply(text)[1]
            shown[file, reason] += 1
            if reason and shown[file, reason] <= 3:
                print(f"{file.stem}: {reason}: {text[:300]!r}")


def rules() -> None:
    print("| rule | web | professional | unit | about |\n|---|--:|--:|---|---|")
    for name, rule in RULES.items():
        thresholds = ["no" if value is False else "yes" if value is True else f"{value:g}" for value in rule[:2]]
        print(f"| {name} | {' | '.join(thresholds)} | {rule.unit} | {rule.meaning} |")


class Words(WordTokenizer):
    """The words and sentences of text_quality.py for datatrove's filters, whose own need spaCy and are slower."""

    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = [match.end() for match in SENTENCE_END.finditer(text)]
        return list(zip([0, *ends], [*ends, len(text)], strict=True))


def speed(files: list[Path], repeats: int = 3) -> None:
    """Print MB/s of every step over the first 5 MB of each file, the best of some repeats."""
    language = LanguageFilter(["en"])
    load_model()
    steps: dict[str, Callable[[str], object]] = {
        "normalise": normalise,
        "language": language.refuse,
        "quality, professional": QualityFilter("professional").apply,
        "quality, web": QualityFilter("web").apply,
    }
    for step in (GopherRepetitionFilter, GopherQualityFilter, C4QualityFilter, FineWebQualityFilter):
        one = step(language=Words())
        steps[f"datatrove {step.__name__}"] = lambda text, one=one: one.filter(Document(text=text, id=""))
    print(f"| step | {' | '.join(file.stem for file in files)} |\n|---|{'--:|' * len(files)}")
    samples = []
    for file in files:
        sample, left = [], 5_000_000
        for text in texts(file):
            if left > 0:
                sample.append(text)
                left -= len(text)
        samples.append(sample)
    for name, step in steps.items():
        found = []
        for sample in samples:
            seconds = []
            for _ in range(repeats):
                start = time.process_time()
                for text in sample:
                    step(text)
                seconds.append(time.process_time() - start)
            found.append(f"{sum(map(len, sample)) / 1e6 / min(seconds):.1f}")
        print(f"| {name} | {' | '.join(found)} |", flush=True)


def main() -> None:
    commands = {"refused": refused, "examples": examples, "speed": speed}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=[*commands, "rules"])
    parser.add_argument("files", nargs="*", type=Path, help="JSON lines with text")
    options = parser.parse_args()
    if options.command == "rules":
        rules()
    else:
        commands[options.command](options.files)


if __name__ == "__main__":
    main()
