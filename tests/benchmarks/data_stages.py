# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of the data stages: prepare, tokenizer and tokenize on 10 MB, 100 MB and 1 GB, 1 and 2 workers.

    PYTHONPATH=recipes python tests/benchmarks/data_stages.py FOLDER --megabytes 10 100 1000 --workers 1 2

FOLDER holds JSON lines, at any depth; those with `text` are taken. To get to a size its documents are written over and
over, each time with 3 words in 10 replaced by others of the corpus, so that they are no near-duplicates of each other.
The recipe is custom/base.yaml, and --section.key=value overrides it. --against names other checkouts of this
repository, which run each stage in turn with this one, in run folders of their own.

Prints a table with a row a stage, and one a pipeline in it. Seconds are wall-clock; CPU seconds are those of all the
processes of the stage, which other work on the machine moves less, and the rate a core is by these. Memory is the
largest sum over the processes of their own (PSS), looked at every SAMPLE_SECONDS.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil


ROOT = Path(__file__).resolve().parent.parent.parent
STAGES = ("prepare_data", "train_tokenizer", "tokenize_corpus")
REPLACED_FRACTION = 0.3
FILES = 8
PIECE = re.compile(r"\w+|\W+")
SAMPLE_SECONDS = 0.5
# Runs a stage, and says on its last line when each pipeline in it began and ended.
TIMED = """
import importlib, json, sys, time
stage, spans = importlib.import_module(sys.argv.pop(1)), {}
def timed(pipeline, tasks, data, folder, description, *rest, run=getattr(stage, "run_pipeline", None), **more):
    started = time.monotonic()
    run(pipeline, tasks, data, folder, description, *rest, **more)
    spans[description] = started, time.monotonic()
stage.run_pipeline = timed
stage.main()
print(json.dumps(spans))
"""


class Corpus:
    """Texts as numbers of their words and of what stands between them, so that processes share one copy."""

    def __init__(self, texts: list[str]):
        numbers: dict[str, int] = {}
        self.texts = [
            np.array([numbers.setdefault(piece, len(numbers)) for piece in PIECE.findall(text)], dtype=np.int32)
            for text in texts
        ]
        self.pieces = np.array(list(numbers), dtype=object)
        self.is_word = np.array([piece[0].isalnum() for piece in numbers])
        everything = np.concatenate(self.texts)
        self.words = everything[self.is_word[everything]]  # each as often as in the texts

    def write(self, file: Path, first: int, num_bytes: int) -> None:
        """Write every FILES-th document from the first on, over and over; all but the first time with other words."""
        draw, number, written = np.random.default_rng(first), first, 0
        with file.open("w") as lines:
            while written < num_bytes:
                pieces = self.texts[number % len(self.texts)]
                if number >= len(self.texts):
                    is_replaced = self.is_word[pieces] & (draw.random(len(pieces)) < REPLACED_FRACTION)
                    replaced = self.words[draw.integers(0, len(self.words), int(is_replaced.sum()))]
                    pieces = pieces.copy()
                    pieces[is_replaced] = replaced
                text = "".join(self.pieces[pieces].tolist())
                lines.write(json.dumps({"text": text}) + "\n")
                written, number = written + len(text.encode()), number + FILES


def write_corpus(folder: Path, texts: list[str], megabytes: int) -> None:
    """Write `megabytes` of text that resembles `texts` to FILES files of JSON lines."""
    write = partial(Corpus(texts).write, num_bytes=megabytes * 10**6 // FILES)
    files = [folder / f"{number}.jsonl" for number in range(FILES)]
    processes = [get_context("fork").Process(target=write, args=(file, n)) for n, file in enumerate(files)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def watch(process: subprocess.Popen, samples: list[tuple[float, float, int]]) -> None:
    """Append (time, CPU seconds so far, bytes of memory) of a process and its descendants until it ends."""
    root, cpu_seconds = psutil.Process(process.pid), {}
    while process.poll() is None:
        num_bytes = 0
        for member in [root, *root.children(recursive=True)]:
            try:
                times = member.cpu_times()
                cpu_seconds[member] = times.user + times.system
                num_bytes += member.memory_full_info().pss
            except (psutil.Error, OSError):  # it has ended, and keeps what it was last seen to have got
                continue
        samples.append((time.monotonic(), sum(cpu_seconds.values()), num_bytes))
        time.sleep(SAMPLE_SECONDS)


def measure(stage: str, arguments: list[str], checkout: Path) -> dict[str, tuple[float, float, int]]:
    """Run a stage; return seconds, CPU seconds and peak bytes of memory of the whole and of each pipeline in it."""
    samples = [(time.monotonic(), 0.0, 0)]
    command = [sys.executable, "-c", TIMED, stage, *arguments]
    process = subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watcher = threading.Thread(target=watch, args=(process, samples))
    watcher.start()
    output, errors = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(errors[-3000:])
    times, cpu_seconds, num_bytes = map(np.array, zip(*samples, strict=True))
    spans = {stage: (times[0], time.monotonic())} | json.loads(output.splitlines()[-1])
    figures = {}
    for name, (start, end) in spans.items():
        started, done = np.interp([start, end], times, cpu_seconds)
        within = num_bytes[(times >= start - SAMPLE_SECONDS) & (times <= end + SAMPLE_SECONDS)]
        figures[name] = end - start, done - started, int(within.max())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="other checkouts of this repository")
    # argparse takes an unknown option with a space in its value for a file name, so overrides are taken out before.
    overrides = [argument for argument in sys.argv[1:] if re.match(r"--\w+\.", argument)]
    options = parser.parse_args([argument for argument in sys.argv[1:] if argument not in overrides])
    rows = (json.loads(line) for file in sorted(options.folder.rglob("*.jsonl")) for line in file.open("rb"))
    texts = [row["text"] for row in rows if "text" in row]
    checkouts = [ROOT, *options.against]
    print("| checkout | MB | workers | stage or step | seconds | CPU seconds | MB/s | MB/s a core | peak MiB |")
    print("|---|--:|--:|---|--:|--:|--:|--:|--:|")
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "texts").mkdir()
            write_corpus(Path(folder) / "texts", texts, megabytes)
            for workers in options.workers:
                source = json.dumps([{"name": "text", "path": str(Path(folder) / "texts")}])
                arguments = ["--config", "recipes/custom/base.yaml", f"--data.sources={source}"]
                arguments += [f"--data.workers={workers}", *overrides]
                for stage in STAGES:
                    for number, checkout in enumerate(checkouts):
                        run = f"--run.output_dir={folder}/run{workers}-{number}"
                        for name, measured in measure(stage, [*arguments, run], checkout).items():
                            seconds, cpu_seconds, num_bytes = measured
                            row = [checkout.name, megabytes, workers, name, f"{seconds:.1f}", f"{cpu_seconds:.1f}"]
                            row += [f"{megabytes / seconds:.2f}", f"{megabytes / max(cpu_seconds, 0.01):.2f}"]
                            print(f"| {' | '.join(map(str, row))} | {num_bytes / 2**20:.0f} |", flush=True)


if __name__ == "__main__":
    main()
