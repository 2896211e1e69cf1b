# SPDX-License-Identifier: Apache-2.0
"""Prepare and tokenize beside plain datatrove pipelines that do the same, on the same text, by one worker each.

    pip install orjson spacy    # for datatrove; not in requirements.txt
    PYTHONPATH=recipes python tests/benchmarks/datatrove_stages.py FOLDER --megabytes 50

FOLDER holds JSON lines, at any depth; documents with `text` are drawn. Both sides apply the rules of Gopher and C4,
drop near-duplicates with 14 buckets of 8 hashes of 5-grams, and tokenize with the tokenizer that is trained on our
documents. datatrove runs as its examples do: JSON lines between its steps, MinHash in four steps, `--words` for its
words. Neither side filters languages, since datatrove's model is fetched from the network. Ours also drops exact
duplicates, splits, and accounts for every document. Prints seconds of processor time, start-up included.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from loguru import logger
from quality_rules import Words

from corpus.text_quality import RULES


ROOT = Path(__file__).resolve().parent.parent.parent
FILES = 8
BUCKETS = 14
THEIRS = ("filter", "signatures", "buckets", "cluster", "drop", "tokenize")


def write_texts(source: Path, folder: Path, megabytes: int) -> tuple[int, int]:
    """Write documents drawn from a folder to FILES files of JSON lines; return how many, and their bytes."""
    rows = (json.loads(line) for file in sorted(source.rglob("*.jsonl")) for line in file.open("rb"))
    texts = [row["text"] for row in rows if "text" in row]
    random.Random(0).shuffle(texts)
    folder.mkdir()
    files = [(folder / f"{number}.jsonl").open("w") for number in range(FILES)]
    documents = num_bytes = 0
    while num_bytes < megabytes * 1e6 and documents < len(texts):
        files[documents % FILES].write(json.dumps({"id": str(documents), "text": texts[documents]}) + "\n")
        num_bytes += len(texts[documents].encode())
        documents += 1
    for file in files:
        file.close()
    return documents, num_bytes


def run_theirs(step: str, folder: Path, words: str) -> None:
    """Run one step of datatrove's in this process."""
    language = Words() if words == "ours" else "eng"
    read, write = partial(JsonlReader, glob_pattern="*.jsonl*"), JsonlWriter
    tokenizer = str(folder / "run" / "tokenizer" / "tokenizer.json")
    places = {name: str(folder / name) for name in ("kept", "signatures", "buckets", "removed", "distinct", "tokens")}
    steps = {
        "filter": [
            read(str(folder / "texts")),
            GopherQualityFilter(language=language),
            C4QualityFilter(filter_no_terminal_punct=False, language=language),
            write(places["kept"]),
        ],
        "signatures": [read(places["kept"]), MinhashDedupSignature(places["signatures"], language=language)],
        "buckets": [MinhashDedupBuckets(places["signatures"], places["buckets"])],
        "cluster": [MinhashDedupCluster(places["buckets"], places["removed"])],
        "drop": [read(places["kept"]), MinhashDedupFilter(places["removed"]), write(places["distinct"])],
        "tokenize": [
            read(places["distinct"]),
            DocumentTokenizer(places["tokens"], tokenizer, eos_token="<|endoftext|>", shuffle_documents=False),
        ],
    }
    tasks = {"buckets": BUCKETS, "cluster": 1}.get(step, FILES)
    LocalPipelineExecutor(steps[step], tasks=tasks, workers=1, logging_dir=str(folder / "logs" / step)).run()


def cpu_seconds(command: list[str]) -> float:
    """Run a command and return the processor time of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--words", choices=["spacy", "ours"], default="spacy", help="what divides text for datatrove")
    parser.add_argument("--step", choices=THEIRS, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    logger.remove()
    if options.step:
        run_theirs(options.step, options.folder, options.words)
        return
    off = [name for name in RULES if name.startswith(("gopher_max_repeated", "gopher_max_top", "fineweb"))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents, num_bytes = write_texts(options.folder, folder / "texts", options.megabytes)
        recipe = ["--config", "recipes/custom/base.yaml", f"--run.output_dir={folder / 'run'}", "--data.workers=1"]
        recipe += ["--data.sources=" + json.dumps([{"name": "text", "path": str(folder / "texts")}])]
        recipe += ["--data.quality=" + json.dumps({"profile": "web", "overrides": dict.fromkeys(off, False)})]
        recipe += ["--data.languages=null", "--data.personal_data=null", "--data.decontamination=null"]
        ours = {}
        for stage in ("prepare_data", "train_tokenizer", "tokenize_corpus"):
            ours[stage] = cpu_seconds([sys.executable, f"recipes/{stage}.py", *recipe])
        command = [sys.executable, __file__, str(folder), "--words", options.words, "--step"]
        theirs = {step: cpu_seconds([*command, step]) for step in THEIRS}
        stats = json.loads((folder / "run" / "documents" / "stats.json").read_text())["sources"]["text"]["kept"]
        kept = sum(split["documents"] for split in stats.values())
        distinct = sum(1 for _ in JsonlReader(str(folder / "distinct"))())
    print(f"{documents:,} documents, {num_bytes / 1e6:.1f} MB; kept by ours {kept:,}, by datatrove {distinct:,}\n")
    print("| stage | ours | datatrove | ratio | datatrove's steps |\n|---|--:|--:|--:|---|")
    for stage, steps in (("prepare_data", THEIRS[:-1]), ("tokenize_corpus", THEIRS[-1:])):
        total = sum(theirs[step] for step in steps)
        listed = ", ".join(f"{step} {theirs[step]:.1f}" for step in steps)
        print(f"| {stage} | {ours[stage]:.1f} | {total:.1f} | {total / ours[stage]:.2f} | {listed} |")


if __name__ == "__main__":
    main()
