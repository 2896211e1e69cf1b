# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of the data stages: prepare, tokenizer and tokenize on 10 MB, 100 MB and 1 GB, 1 and 2 workers.

    PYTHONPATH=recipes python tests/benchmarks/data_stages.py FOLDER --megabytes 10 100 1000 --workers 1 2

FOLDER holds JSON lines, at any depth; those with `text` are taken. To get to a size its documents are written over and
over, each time with 3 words in 10 replaced by others of the corpus, so that they are no near-duplicates of each other.
The recipe is custom/base.yaml, and --section.key=value overrides it. Prints one table of the stages and one of the
steps of prepare; seconds are wall-clock, memory is the largest sum over the processes of a stage of the memory that is
their own (PSS).
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from tqdm import tqdm


ROOT = Path(__file__).resolve().parent.parent.parent
STAGES = ("prepare_data", "train_tokenizer", "tokenize_corpus")
REPLACED_FRACTION = 0.3
FILES = 8
# Runs a stage, and says on its last line how long each pipeline in it took.
TIMED = """
import importlib, json, sys, time
stage, seconds = importlib.import_module(sys.argv.pop(1)), {}
def timed(pipeline, tasks, data, folder, description, *rest, run=getattr(stage, "run_pipeline", None), **more):
    started = time.perf_counter()
    run(pipeline, tasks, data, folder, description, *rest, **more)
    seconds[description] = time.perf_counter() - started
stage.run_pipeline = timed
stage.main()
print(json.dumps(seconds))
"""


def write_corpus(folder: Path, texts: list[str], megabytes: int) -> None:
    """Write `megabytes` of text that resembles `texts` to FILES files of JSON lines."""
    choose = random.Random(0)
    words = [word for text in texts for word in re.findall(r"\w+", text)]
    files = [(folder / f"{number}.jsonl").open("w") for number in range(FILES)]
    written, number = 0, 0
    with tqdm(total=megabytes * 10**6, desc="write corpus", unit="B", unit_scale=True) as bar:
        while written < megabytes * 10**6:
            pieces = re.split(r"(\w+)", texts[number % len(texts)])
            if number >= len(texts):
                for place in range(1, len(pieces), 2):
                    if choose.random() < REPLACED_FRACTION:
                        pieces[place] = words[int(choose.random() * len(words))]
            text = "".join(pieces)
            files[number % FILES].write(json.dumps({"text": text}) + "\n")
            size_bytes = len(text.encode())
            written, number = written + size_bytes, number + 1
            bar.update(size_bytes)
    for file in files:
        file.close()


def measure(command: list[str]) -> tuple[float, int, dict[str, float]]:
    """Run a stage: seconds, peak bytes of memory of all its processes, and seconds of each pipeline in it."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak_bytes = 0

    def watch() -> None:
        nonlocal peak_bytes
        root = psutil.Process(process.pid)
        while process.poll() is None:
            total_bytes = 0
            for member in [root, *root.children(recursive=True)]:
                try:
                    total_bytes += member.memory_full_info().pss
                except (psutil.Error, OSError):
                    continue
            peak_bytes = max(peak_bytes, total_bytes)
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, errors = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(errors[-3000:])
    return time.perf_counter() - started, peak_bytes, json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    # argparse takes an unknown option with a space in its value for a file name, so overrides are taken out before.
    overrides = [argument for argument in sys.argv[1:] if re.match(r"--\w+\.", argument)]
    options = parser.parse_args([argument for argument in sys.argv[1:] if argument not in overrides])
    rows = (json.loads(line) for file in sorted(options.folder.rglob("*.jsonl")) for line in file.open("rb"))
    texts = [row["text"] for row in rows if "text" in row]
    print("| MB | workers | stage | seconds | MB/s | MB/s per worker | peak MiB |\n|--:|--:|---|--:|--:|--:|--:|")
    steps: dict[tuple, dict] = {}
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "texts").mkdir()
            write_corpus(Path(folder) / "texts", texts, megabytes)
            for workers in options.workers:
                output_dir = Path(folder) / f"run{workers}"
                arguments = ["--config", "recipes/custom/base.yaml", f"--run.output_dir={output_dir}"]
                source = [{"name": "text", "path": str(Path(folder) / "texts")}]
                arguments += [f"--data.sources={json.dumps(source)}", f"--data.workers={workers}", *overrides]
                for stage in STAGES:
                    command = [sys.executable, "-c", TIMED, stage, *arguments]
                    seconds, peak_bytes, pipelines = measure(command)
                    rate = megabytes / seconds
                    row = [megabytes, workers, stage, f"{seconds:.0f}", f"{rate:.2f}", f"{rate / workers:.2f}"]
                    print(f"| {' | '.join(map(str, row))} | {peak_bytes / 2**20:.0f} |", flush=True)
                    if stage == "prepare_data":
                        steps[megabytes, workers] = pipelines | {"all": seconds}
    names = list(dict.fromkeys(name for pipelines in steps.values() for name in pipelines))
    print("\n| seconds of |", " | ".join(f"{size} MB, {workers}" for size, workers in steps), "|")
    print("|---|" + "--:|" * len(steps))
    for name in names:
        print(f"| {name} |", " | ".join(f"{pipelines.get(name, 0):.1f}" for pipelines in steps.values()), "|")


if __name__ == "__main__":
    main()
