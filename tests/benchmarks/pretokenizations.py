# SPDX-License-Identifier: Apache-2.0
"""Bytes per token of pre-tokenizations at equal vocabulary size, on held-out text of each domain.

    PYTHONPATH=recipes python tests/benchmarks/pretokenizations.py DATA --vocab_sizes 8192 16384

DATA has a folder of JSON lines with `text` for each of --domains and, for the mixture, `general`. A tenth of each
source's documents is held out. Each tokenizer is trained on as much general text as text of its domain, `general` and
`korean` on their own alone. gpt-4o, which keeps up to three digits together, is not a choice of recipes.

Prints CSV: bytes per token, and the tokens beside those of --baseline with the 95 % interval of a bootstrap over the
held-out documents, the same ones for both.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from compare_tokenizers import read_domain, take

from vocabulary.byte_level_bpe import train_bpe
from vocabulary.measures import num_bytes
from vocabulary.pretokenization import PATTERNS
from vocabulary.training_sample import cut_pieces


CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PUBLISHED = {
    "gpt-4o": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:{CONTRACTIONS})?|"
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:{CONTRACTIONS})?|"
        rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
    ),
}
MAX_HELD_OUT_BYTES_PER_SOURCE = 400_000
RESAMPLES = 2_000
ALONE = ("general", "korean")


def count_tokens(name: str, texts: list[str], vocab_size: int, held_out: list[str]) -> np.ndarray:
    """Train a tokenizer and return the tokens of each held-out document."""
    tokenizer = train_bpe(cut_pieces(texts), name, vocab_size)
    return np.array([len(one.ids) for one in tokenizer.encode_batch_fast(held_out, add_special_tokens=False)])


def compare(tokens: np.ndarray, baseline: np.ndarray) -> tuple[float, float, float]:
    """Return the ratio of tokens to the baseline's, and its 95 % interval over the documents."""
    documents = np.random.default_rng(0).integers(len(tokens), size=(RESAMPLES, len(tokens)))
    ratios = tokens[documents].sum(1) / baseline[documents].sum(1)
    return tokens.sum() / baseline.sum(), *np.quantile(ratios, [0.025, 0.975])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--domains", nargs="+", default=["legal", "finance", "medical", "general", "korean"])
    parser.add_argument("--names", nargs="+", default=["gpt4", "neutral", "qwen2", "qwen35", "llama-bpe", *PUBLISHED])
    parser.add_argument("--baseline", default="gpt4")
    parser.add_argument("--vocab_sizes", type=int, nargs="+", default=[8_192, 16_384])
    parser.add_argument("--megabytes", type=float, default=10, help="of training text of each domain")
    options = parser.parse_args()
    PATTERNS.update(PUBLISHED)

    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = "domain,vocab_size,pretokenization,documents,bytes,bytes_per_token,tokens_ratio,low,high"
    writer.writerow(columns.split(","))
    general, _ = read_domain(options.data / "general")
    for domain in options.domains:
        train, held_out_of = read_domain(options.data / domain)
        texts = take(train, int(options.megabytes * 1e6))
        texts += [] if domain in ALONE else take(general, num_bytes(texts))
        held_out = []
        for some in held_out_of.values():
            sizes = np.cumsum([len(text.encode()) for text in some])
            held_out += some[: max(1, np.searchsorted(sizes, MAX_HELD_OUT_BYTES_PER_SOURCE, side="right"))]
        for vocab_size in options.vocab_sizes:
            counts = {name: count_tokens(name, texts, vocab_size, held_out) for name in options.names}
            for name, tokens in counts.items():
                ratio = [f"{value:.4f}" for value in compare(tokens, counts[options.baseline])]
                size = num_bytes(held_out)
                row = [domain, vocab_size, name, len(held_out), size, f"{size / tokens.sum():.4f}", *ratio]
                writer.writerow(row)
                sys.stdout.flush()


if __name__ == "__main__":
    main()
