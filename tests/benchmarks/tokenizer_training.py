# SPDX-License-Identifier: Apache-2.0
"""Time, memory and compression of Unigram training: split-and-merge beside `tokenizers` and SentencePiece.

    python tests/benchmarks/tokenizer_training.py --data path/to/data --megabytes 10 --pretokenization gpt4

`--data` holds a folder of JSON-lines files with a `text` for each of DOMAINS; as many are used, in this order, as the
amount of text takes, each file in proportion to its size. Every 20th document is held out. Each row is measured in a
process of its own, and what was measured before is not measured again (`--results`). SentencePiece, which is no
requirement of the project, is measured if it is installed; it makes its own cuts, at white space and single digits.
"""

import argparse
import importlib.util
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path


ROOT = Path(__file__).parents[2]
DOMAINS = ["legal", "finance", "medical", "general"]
HELD_OUT_BYTES_PER_FILE = 400_000
METHODS = {
    "tokenizers' UnigramTrainer": {"trainer": "tokenizers"},
    "SentencePiece, 2 threads": {"trainer": "sentencepiece"},
    "one chunk": {"trainer": "ours", "chunk_megabytes": 1_000_000, "workers": 1},
    "split-and-merge, 1 worker": {"trainer": "ours", "workers": 1},
    "split-and-merge, 2 workers": {"trainer": "ours", "workers": 2},
    "byte-level BPE": {"trainer": "bpe"},
}


def read(file: Path, held_out: bool) -> Iterator[str]:
    with open(file, encoding="utf-8") as lines:
        for index, line in enumerate(lines):
            if (index % 20 == 0) == held_out:
                yield json.loads(line)["text"]


def choose_files(data: Path, num_bytes: int) -> dict[Path, int]:
    """Return the files of as many domains as are needed, and how many bytes to take of each."""
    sizes: dict[Path, int] = {}
    for domain in DOMAINS:
        for file in sorted((data / domain).glob("*.jsonl")):
            sizes[file] = sum(len(text.encode()) for text in read(file, held_out=False))
        if sum(sizes.values()) >= num_bytes:
            break
    total = sum(sizes.values())
    if total < num_bytes:
        raise SystemExit(f"{data}: only {total / 1e6:.0f} MB of text for training, not {num_bytes / 1e6:.0f}")
    return {file: num_bytes * size // total for file, size in sizes.items()}


def held_out_texts(files: Iterable[Path]) -> list[str]:
    texts = []
    for file in files:
        room = HELD_OUT_BYTES_PER_FILE
        for text in read(file, held_out=True):
            room -= len(text.encode())
            if room < 0:
                break
            texts.append(text)
    return texts


def train(options: argparse.Namespace, sample: dict[str, Iterator[str]]) -> Callable[[list[str]], int]:
    """Train one tokenizer and return what counts the tokens of texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from vocabulary.byte_level_bpe import train_bpe
    from vocabulary.pretokenization import byte_level, splitter
    from vocabulary.split_and_merge import train_unigram
    from vocabulary.training_sample import write_chunks

    method, style, size = METHODS[options.measure], options.pretokenization, options.vocab_size
    everything = chain.from_iterable(sample.values())
    if method["trainer"] == "sentencepiece":
        import sentencepiece

        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in everything for line in text.split("\n") if line),
            model_writer=model,
            vocab_size=size,
            model_type="unigram",
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            byte_fallback=True,
            split_digits=True,
            split_by_whitespace=style != "multiword",
            max_sentencepiece_length=options.max_token_bytes,
            max_sentence_length=1 << 20,
            num_threads=2,
            minloglevel=2,
        )
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        # It has no token for a line end; here it gets one.
        return lambda texts: sum(len(processor.encode(line)) + 1 for text in texts for line in text.split("\n"))
    if method["trainer"] == "ours":
        chunk_bytes = method.get("chunk_megabytes", options.chunk_megabytes) * 1e6
        with tempfile.TemporaryDirectory() as folder:
            chunks = {}
            for name, pieces in sample.items():
                num_chunks = max(1, round(options.bytes_of[name] / chunk_bytes))
                chunks[name] = write_chunks(pieces, num_chunks, Path(folder) / name, seed=0)
            if method.get("chunk_megabytes"):
                (Path(folder) / "one").write_bytes(b"".join(file.read_bytes() for [file] in chunks.values()))
                chunks = {"one": [Path(folder) / "one"]}
            tokenizer = train_unigram(
                chunks, style, size, max_token_bytes=options.max_token_bytes, workers=method["workers"]
            )
    elif method["trainer"] == "bpe":
        tokenizer = train_bpe(everything, style, size, max_token_bytes=options.max_token_bytes)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = byte_level(splitter(style)), decoders.ByteLevel()
        trainer = trainers.UnigramTrainer(
            vocab_size=size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_piece_length=options.max_token_bytes,
            show_progress=False,
        )
        tokenizer.train_from_iterator(everything, trainer)
    return lambda texts: sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts))


def measure(options: argparse.Namespace) -> dict:
    """Train and return what it took: CPU and wall-clock seconds, and memory at its peak."""
    from vocabulary.training_sample import SLOTS, copy_pieces, count_slots, read_copies

    files = choose_files(options.data, int(options.megabytes[0] * 1e6))
    options.bytes_of = {file.stem: num_bytes for file, num_bytes in files.items()}
    start, before = time.perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        sample = {}
        for file, num_bytes in files.items():
            copies = Path(folder) / file.stem
            copies.mkdir()
            copy_pieces(read(file, held_out=False), SLOTS, 0, copies / "0.jsonl")
            sample[file.stem] = chain.from_iterable(read_copies(copies, count_slots(copies, num_bytes)))
        count_tokens = train(options, sample)
    seconds, spent = time.perf_counter() - start, cpu_seconds() - before
    # Of the children it is that of the largest one.
    own, largest = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    texts = held_out_texts(files)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(spent, 1),
        "peak_megabytes": round(own + largest * METHODS[options.measure].get("workers", 1)),
        "bytes_per_token": round(sum(len(text.encode()) for text in texts) / count_tokens(texts), 4),
        "domains": sorted({file.parent.name for file in files}),
    }


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10, 40, 100])
    parser.add_argument("--pretokenization", choices=["gpt4", "multiword", "neutral"], default="gpt4")
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--max_token_bytes", type=int, default=32)
    parser.add_argument("--chunk_megabytes", type=float, default=4, help="size of the chunks of split-and-merge")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--minutes", type=float, default=60, help="a row that takes longer is stopped")
    parser.add_argument("--results", type=Path, help="JSON lines to continue and to add to")
    parser.add_argument("--measure", choices=list(METHODS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "recipes"))
    if options.measure:
        print(json.dumps(measure(options)))
        return
    known = {}
    if options.results and options.results.exists():
        known = {row["key"]: row for row in map(json.loads, options.results.read_text().splitlines())}
    print("| MB | trainer | seconds | CPU seconds | peak MB | bytes per token |\n|---|---|---|---|---|---|")
    for megabytes in options.megabytes:
        for method in options.methods:
            if "SentencePiece" in method and importlib.util.find_spec("sentencepiece") is None:
                continue
            arguments = {
                "megabytes": megabytes,
                "pretokenization": options.pretokenization,
                "vocab_size": options.vocab_size,
                "max_token_bytes": options.max_token_bytes,
                "chunk_megabytes": options.chunk_megabytes,
                "measure": method,
            }
            key = json.dumps(arguments)
            if key not in known:
                command = [sys.executable, __file__, "--data", str(options.data)]
                command += [f"--{name}={value}" for name, value in arguments.items()]
                try:
                    done = subprocess.run(
                        command, stdout=subprocess.PIPE, text=True, check=True, timeout=60 * options.minutes
                    )
                    known[key] = {"key": key, **json.loads(done.stdout)}
                except subprocess.TimeoutExpired:
                    known[key] = {"key": key, "seconds": f"more than {60 * options.minutes:.0f}"}
                if options.results:
                    with open(options.results, "a", encoding="utf-8") as file:
                        file.write(json.dumps(known[key]) + "\n")
            row = known[key]
            values = [row.get(name, "") for name in ("seconds", "cpu_seconds", "peak_megabytes", "bytes_per_token")]
            print("|", " | ".join(map(str, [megabytes, method, *values])), "|", flush=True)


if __name__ == "__main__":
    main()
