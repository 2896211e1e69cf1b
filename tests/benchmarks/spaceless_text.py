# SPDX-License-Identifier: Apache-2.0
"""Time and memory of encoding 1 MB and 10 MB of text without spaces, which is one piece to `qwen2`.

    PYTHONPATH=recipes python tests/benchmarks/spaceless_text.py runs/legal-quickstart/tokenizer

Each text is encoded in a process of its own, as tokenize_corpus.py does with a long text: by fastokens where that is
installed, and by tokenizers, which must give the same tokens.
"""

import argparse
import csv
import json
import random
import resource
import string
import subprocess
import sys
import time
from pathlib import Path


ALPHABETS = {
    "one letter": "a",
    "hex": "0123456789abcdef",
    "base64": string.ascii_letters + string.digits + "+/",
    "DNA": "ACGT",
    "Thai": "".join(chr(code) for code in range(0x0E01, 0x0E2F)),
    "line ends": "\n",
}


def encode(folder: Path, kind: str, num_bytes: int) -> dict:
    """Return seconds of processor time, added memory in bytes, and tokens."""
    from tokenizers import Tokenizer

    from vocabulary.bulk_encoding import encode_batch, load_fastokens

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    fast, _ = load_fastokens(tokenizer)
    alphabet = ALPHABETS[kind]
    text = "".join(random.Random(0).choices(alphabet, k=num_bytes // len(alphabet[0].encode())))
    before_kib, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    tokens, _ = encode_batch([text], tokenizer, fast, check_all=True)
    seconds = time.process_time() - started
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) * 1024
    return {"seconds": seconds, "memory_bytes": memory, "tokens": len(tokens)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "BYTES"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(encode(options.tokenizer, options.one[0], int(options.one[1]))))
        return
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["text", "bytes", "seconds", "memory_megabytes", "tokens"])
    for kind in ALPHABETS:
        for num_bytes in (1_000_000, 10_000_000):
            command = [sys.executable, __file__, str(options.tokenizer), "--one", kind, str(num_bytes)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            row = [kind, num_bytes, f"{found['seconds']:.2f}", round(found["memory_bytes"] / 1e6), found["tokens"]]
            table.writerow(row)


if __name__ == "__main__":
    main()
