# SPDX-License-Identifier: Apache-2.0
"""Domain tokenizers beside general ones, on held-out text of three domains: the report card of each.

    pip download --no-deps --dest packages mistral-common==1.13.1 litellm==1.109.1 openai-whisper==20250625
    PYTHONPATH=recipes python tests/benchmarks/compare_tokenizers.py DATA packages tokenizers.json

DATA holds legal/, finance/, medical/ and general/, each with JSON lines that have `text`. Of each file the tenth
of documents whose text has the lowest hash is held out. A domain tokenizer is trained on 51 parts of its domain and 49
of general text, by bytes, the baseline on general text alone, all by the settings of train_tokenizer.py. The general
tokenizers are read from the packages without installing them; nothing of them is kept. Prints tables in Markdown.
"""

import argparse
import base64
import hashlib
import json
import math
import time
from pathlib import Path

import fsspec
from tokenizers import Tokenizer

from vocabulary.byte_level_bpe import train_bpe
from vocabulary.measures import encoding_speed, first_bytes, num_bytes, read_terms
from vocabulary.report_card import report_card
from vocabulary.tokenizer_files import from_ranks, load_tokenizer
from vocabulary.training_sample import cut_pieces
from vocabulary.verdict import verdict


RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
DOMAINS = ("legal", "finance", "medical")
DOMAIN_PARTS, GENERAL_PARTS = 51, 49
HELD_OUT_ONE_IN = 10
MAX_HELD_OUT_BYTES = 300_000  # of a source
MAX_SAMPLE_BYTES = 2_000_000  # of a domain's training text, in which the use of entries is counted
# tiktoken's files carry no pattern; these are from its openai_public.py, the second in its older form, since `$` and
# `{1,3}+` mean something else to the regular expressions of `tokenizers`.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Name: package, file in it, pattern of a tiktoken file. Licences as the packages state them.
GENERAL = {
    "Mistral v1": ("mistral_common-*.whl", "mistral_common/data/tokenizer.model.v1", None),  # Apache-2.0
    "GPT-2": ("openai_whisper-*.tar.gz", "whisper/assets/gpt2.tiktoken", GPT2),  # MIT
    "cl100k (GPT-4)": (  # MIT, as tiktoken is
        "litellm-*.whl",
        "litellm/litellm_core_utils/tokenizers/9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        CL100K,
    ),
    "DeepSeek": ("litellm-*.whl", "litellm/litellm_core_utils/tokenizers/deepseek_tokenizer.json", None),  # MIT
    "Mistral Tekken": ("mistral_common-*.whl", "mistral_common/data/tekken_240911.json", None),  # Apache-2.0
}


def read_domain(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the training and the held-out texts of a domain, source by source."""
    train, held_out = {}, {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
        texts.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
        cut = math.ceil(len(texts) / HELD_OUT_ONE_IN)
        held_out[path.stem], train[path.stem] = texts[:cut], texts[cut:]
    return train, held_out


def take(sources: dict[str, list[str]], max_bytes: int) -> list[str]:
    """Return the first texts of each source, up to its share of max_bytes by size."""
    sizes = {name: num_bytes(texts) for name, texts in sources.items()}
    fraction = min(1, max_bytes / sum(sizes.values()))
    return [text for name, texts in sources.items() for text in first_bytes(texts, int(sizes[name] * fraction))]


def read_ranks(url: str) -> list[bytes]:
    with fsspec.open(url, "rb") as file:
        return [base64.b64decode(line.split()[0]) for line in file.read().splitlines() if line]


def load_general(packages: Path) -> dict[str, Tokenizer]:
    found = {}
    for name, (package, member, pattern) in GENERAL.items():
        archive = next(packages.glob(package))
        if archive.suffix == ".gz":
            member = f"{archive.name.removesuffix('.tar.gz')}/{member}"
        url = f"{'tar' if archive.suffix == '.gz' else 'zip'}://{member}::{archive}"
        found[name] = from_ranks(read_ranks(url), pattern, []) if pattern else load_tokenizer(url)
    return found


def train(texts: list[str], vocab_size: int) -> Tokenizer:
    return train_bpe(cut_pieces(texts), "gpt4", vocab_size)


def summary(card: dict, speeds: dict[str, dict]) -> dict:
    """Return the figures of a card without the examples."""
    return {
        "held_out": card["held_out"],
        "tokenizers": {
            name: {
                "vocab_size": measures["vocab_size"],
                "sources": {source: ratios["bytes_per_token"] for source, ratios in measures["sources"].items()},
                "domains": measures["domains"],
                "terms": {
                    domain: {key: value for key, value in terms.items() if key != "worst"}
                    for domain, terms in measures["terms"].items()
                },
                "numbers_consistent": measures["numbers"]["consistent"],
                "round_trip_exact": measures["round_trip"]["exact"],
                "round_trip_failures": measures["round_trip"]["corner_failures"],
                "never_used_fraction": measures["usage"]["never_used_fraction"],
                "under_trained_fraction": measures["usage"]["under_trained_fraction"],
                "megabytes_per_second": speeds[name]["megabytes_per_second"],
            }
            for name, measures in card["tokenizers"].items()
        },
        "verdict": card["verdict"]["sentences"],
    }


def print_table(domain: str, result: dict) -> None:
    print(f"\n### {domain}\n")
    print(
        f"| tokenizer | entries | {domain} B/token | general B/token | {domain} tokens/word, split | "
        "tokens/term, whole | whole without space | never used | numbers | lossless | MB/s |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|---|---|--:|")
    for name, one in result["tokenizers"].items():
        own, terms = one["domains"][domain], one["terms"][domain]
        cells = [
            name,
            f"{one['vocab_size']:,}",
            f"{own['bytes_per_token']:.3f}",
            f"{one['domains']['general']['bytes_per_token']:.3f}",
            f"{own['tokens_per_word']:.3f}, {100 * own['split_words_fraction']:.1f} %",
            f"{terms['tokens_per_term']:.2f}, {100 * terms['whole_fraction']:.1f} %",
            f"{100 * terms['whole_fraction_without_space']:.1f} %",
            f"{100 * one['never_used_fraction']:.1f} %",
            "same" if one["numbers_consistent"] else "uneven",
            "yes" if one["round_trip_exact"] else "no",
            f"{one['megabytes_per_second']:.2f}",
        ]
        print(f"| {' | '.join(cells)} |")
    print()
    for sentence in result["verdict"]:
        print(f"- {sentence}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("packages", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--max_megabytes", type=int, default=40, help="of training text of each tokenizer")
    parser.add_argument("--vocab_sizes", type=int, nargs="+", default=[32_768, 8_192])
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    options = parser.parse_args()

    started = time.perf_counter()
    max_bytes = options.max_megabytes * 10**6
    general_train, general_held_out = read_domain(options.data / "general")
    others = {"general text, same trainer": train(take(general_train, max_bytes), options.vocab_sizes[0])}
    others |= load_general(options.packages)
    results = {}
    for domain in options.domains:
        domain_train, domain_held_out = read_domain(options.data / domain)
        half = min(max_bytes * DOMAIN_PARTS // 100, num_bytes(t for texts in domain_train.values() for t in texts))
        texts = take(domain_train, half) + take(general_train, half * GENERAL_PARTS // DOMAIN_PARTS)
        ours = {f"{domain} {size:,}": train(texts, size) for size in options.vocab_sizes}
        held_out = {
            source: first_bytes(some, MAX_HELD_OUT_BYTES)
            for source, some in (domain_held_out | general_held_out).items()
        }
        domains = {source: domain if source in domain_held_out else "general" for source in held_out}
        terms = {domain: read_terms(RECIPES / domain / "terms.txt")}
        card = report_card(ours | others, held_out, domains, terms, {domain: take(domain_train, MAX_SAMPLE_BYTES)})
        for name in list(ours)[1:]:  # each size against all the others
            measured = {name: card["tokenizers"][name]} | card["tokenizers"]
            card["verdict"]["sentences"] += verdict(measured, {"general"})["sentences"]
        some = take(domain_held_out, MAX_HELD_OUT_BYTES)
        speeds = {name: encoding_speed(tokenizer, some) for name, tokenizer in (ours | others).items()}
        results[domain] = {"training_bytes": num_bytes(texts)} | summary(card, speeds)
        print_table(domain, results[domain])
    options.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{time.perf_counter() - started:.0f} s in all, in {options.output}")


if __name__ == "__main__":
    main()
