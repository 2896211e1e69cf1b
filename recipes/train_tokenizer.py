# SPDX-License-Identifier: Apache-2.0
"""Stage 2: train a byte-level tokenizer on the training split, and measure what it gains on the domain.

In:   <run.output_dir>/documents/train/<source>/*.parquet (and validation for the report), tokenizer.* of the recipe.
Out:  <run.output_dir>/tokenizer/, which AutoTokenizer loads, with report.json and README.md, its card.

    python recipes/train_tokenizer.py --config recipes/legal/quickstart.yaml
    python recipes/train_tokenizer.py --config recipes/finance/base.yaml --tokenizer.algorithm=unigram \\
        --tokenizer.pretokenization=multiword --tokenizer.compare_with='["mistralai/Mistral-7B-v0.1"]'

Every byte string can be encoded and decodes to itself. The training sample follows the sources' shares and the hash
of the text, so the number of workers and the order of files change nothing. The text is read once, on data.executor.
A second tokenizer of the same kind and size, trained on general text only, is the baseline. With model.from_pretrained
or tokenizer.from_pretrained that tokenizer is used instead, with tokenizer.extend_by more tokens; the baseline is then
the tokenizer before the extension.

report.json: vocab_size, num_reserved_tokens, train_bytes {source: bytes}, sample_bytes {source: bytes trained on},
samples {tokenizer: documents and bytes that it was trained on, by source and by domain}, bytes_per_token {tokenizer:
{source: ratio}} on validation text, terms {term: {tokenizer: pieces}}, card: the measures of
vocabulary/report_card.py, and differs: how a tokenizer that was taken differs from the original.
speed.json, which differs from run to run: {tokenizer: bytes and megabytes_per_second on one thread}.
"""

import json
from collections import Counter
from itertools import chain, islice
from pathlib import Path

from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from atomic_files import discard, write_json
from corpus.pipeline_executor import check_executor
from mixture.fitting import check_length
from mixture.shard_writer import encode_as_text
from mixture.shares import average_shares, resolve_shares
from recipe_config import Recipe, RecipeError, Source, refuse_missing_folder
from recipe_loading import parse_command_line, run_command, silence_transformers
from recovery.run_lock import stage_lock
from run_folder import is_finished, new_output, require
from vocabulary.bulk_encoding import encode
from vocabulary.document_ends import settle_document_ends
from vocabulary.measures import CONTEXT, encoding_speed, pieces, read_terms
from vocabulary.new_tokens import choose_tokens
from vocabulary.report_card import report_card, write_tokenizer_card
from vocabulary.special_tokens import BYTES
from vocabulary.taken_tokenizer import exact_tokenizer, save_taken
from vocabulary.token_bytes import refuse_changed_text, token_bytes
from vocabulary.tokenizer_extension import extend_tokenizer, refuse_unextendable
from vocabulary.tokenizer_files import load_others
from vocabulary.tokenizer_training import (
    TrainingSample,
    as_transformers,
    read_texts,
    train_tokenizer,
)


MIN_BYTES_PER_TOKEN = 100
CHECKED_DOCUMENTS = 100  # of each source; tokenize_corpus.py checks every document
OURS, BASELINE = "domain tokenizer", "general tokenizer"  # keys of report.json


def supported_size(recipe: Recipe, train_bytes: dict[str, int]) -> int:
    """Return tokenizer.vocab_size, or with data.fit_to_corpus the smaller size that the text supports, with a note."""
    settings = recipe.tokenizer
    if not recipe.data.fit_to_corpus:
        return settings.vocab_size
    fixed = BYTES + len(settings.special_tokens) + settings.num_reserved_tokens
    supported = fixed + min(sum(train_bytes.values()), settings.max_train_bytes) // MIN_BYTES_PER_TOKEN
    vocab_size = min(settings.vocab_size, max(fixed + 64, supported // 64 * 64))
    if vocab_size < settings.vocab_size:
        print(
            f"tokenizer: note: {sum(train_bytes.values()):,} bytes yield about {vocab_size:,} tokens, "
            f"not the {settings.vocab_size:,} of tokenizer.vocab_size"
        )
    return vocab_size


def domain_terms(recipe: Recipe) -> dict[str, list[str]]:
    """Return {domain: terms} for the domain of the first source that is not general text; empty without a list.

    Raises: RecipeError: tokenizer.terms_file is missing, or lists a term twice.
    """
    file = Path(recipe.tokenizer.terms_file or Path(recipe.data.extract_text).with_name("terms.txt"))
    if not file.exists():
        if recipe.tokenizer.terms_file:
            raise RecipeError(f"tokenizer.terms_file: {file} is missing; correct the path or leave the key out")
        return {}
    labels = [source.label for source in recipe.data.sources]
    return {next((label for label in labels if label != "general"), labels[0]): read_terms(file)}


def sum_domains(sources: list[Source], drawn: dict[str, dict[str, int]]) -> dict[str, dict]:
    """Return the documents and bytes of a sample by source, and their sums by domain."""
    domains: dict[str, Counter] = {}
    for source in sources:
        domains.setdefault(source.label, Counter()).update(drawn.get(source.name, {}))
    return {"sources": drawn, "domains": {name: dict(count) for name, count in domains.items() if count}}


def is_general(source: Source) -> bool:
    return source.label == "general"


def take_tokenizer(
    recipe: Recipe, taken: str, sample: TrainingSample, shares: dict[str, float], output: Path
) -> tuple[dict[str, Tokenizer], list[str]]:
    """Write an existing tokenizer, with tokenizer.extend_by new tokens, instead of training one.

    Returns: the run's tokenizer and, if it was extended, the old one as the baseline; and what differs from the one
        that was taken, beside new tokens.

    Raises: RecipeError: it cannot be loaded, has no token for some bytes, has no eos token, puts more than bos
        around a text, changes text, or splits fewer words than extend_by often enough.
    """
    settings, where = recipe.tokenizer, f"from_pretrained={taken!r}: its tokenizer"
    refuse_missing_folder("from_pretrained", taken)
    try:
        revision = recipe.model.revision or settings.revision
        wrapped = AutoTokenizer.from_pretrained(taken, revision=revision, trust_remote_code=False)
        config = LlamaConfig()  # of a new model
        if base := recipe.model.from_pretrained:
            config = AutoConfig.from_pretrained(base, revision=recipe.model.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{where} cannot be loaded: {error}") from error
    exact, changes = exact_tokenizer(wrapped, where)
    settle_document_ends(wrapped, where)
    save_taken(wrapped, exact, output, config, where)
    old = encode_as_text(exact)
    table = token_bytes(old)
    for source in recipe.data.sources:
        for text in islice(read_texts(sample.documents, "validation", source.name), CHECKED_DOCUMENTS):
            refuse_changed_text(text, encode(old, text).tolist(), table, f"{where}, on {source.name}")
    if settings.extend_by is None:
        return {OURS: old}, changes
    refuse_unextendable(old, where)
    texts = chain.from_iterable(sample.read(shares, old.pre_tokenizer, OURS).values())
    with tqdm(texts, "tokenizer: read, new tokens", unit=" texts", leave=False) as bar:
        new_tokens = choose_tokens(old, bar, settings.extend_by, settings.min_frequency)
    if len(new_tokens) < settings.extend_by:
        raise RecipeError(
            f"tokenizer.extend_by={settings.extend_by}: only {len(new_tokens)} words occur "
            f"{settings.min_frequency} times and are more than one token; lower it"
        )
    write_json(output / "new_entries.json", extend_tokenizer(output, new_tokens, output))
    return {OURS: Tokenizer.from_file(str(output / "tokenizer.json")), BASELINE: old}, changes


def make_tokenizer(recipe: Recipe) -> dict:
    """Run the stage and return tokenizer/report.json's content."""
    check_executor(recipe.data)
    documents = require(recipe, "prepare")
    settings, sources = recipe.tokenizer, recipe.data.sources
    # Read before training, so that a mistake in them is refused at once.
    terms = domain_terms(recipe)
    others = load_others(settings.compare_with)
    stats = json.loads((documents / "stats.json").read_text(encoding="utf-8"))["sources"]
    train_bytes = {source.name: stats[source.name]["kept"]["train"]["bytes"] for source in sources}
    shares = average_shares(recipe.data, resolve_shares(recipe.data, train_bytes))
    check_length(recipe, train_bytes)
    general = {source.name: shares[source.name] for source in sources if is_general(source)}
    mixtures = [shares, general] if sum(general.values()) and len(general) < len(sources) else [shares]
    with new_output(recipe, "tokenizer") as output:
        sample = TrainingSample(recipe, documents, mixtures, output / "sample")
        taken = settings.from_pretrained or recipe.model.from_pretrained
        if taken is not None:
            tokenizers, changes = take_tokenizer(recipe, taken, sample, shares, output)
            vocab_size, num_reserved = tokenizers[OURS].get_vocab_size(), 0
            for change in changes:
                print(f"tokenizer: note: unlike the tokenizer of {taken}, {change}")
        else:
            vocab_size = supported_size(recipe, train_bytes)
            pad = settings.pad_vocabulary or recipe.data.fit_to_corpus
            tokenizers = {OURS: train_tokenizer(recipe, sample, shares, vocab_size, pad, OURS)}
            num_reserved = sum(token.startswith("<|reserved_") for token in tokenizers[OURS].get_vocab())
            if num_reserved > settings.num_reserved_tokens:
                print(
                    f"tokenizer: note: the text yields {vocab_size - num_reserved:,} tokens; {num_reserved:,} "
                    f"reserved tokens fill them up to {vocab_size:,}"
                )
            if len(mixtures) > 1:
                tokenizers[BASELINE] = train_tokenizer(recipe, sample, general, vocab_size, True, BASELINE)
        if sample.folder.exists():
            discard(sample.folder)
        card = report_card(
            tokenizers | others,
            {source.name: read_texts(documents, "validation", source.name) for source in sources},
            {source.name: source.label for source in sources},
            terms,
            {source.name: read_texts(documents, "train", source.name) for source in sources if shares[source.name]},
        )
        report = {
            "vocab_size": vocab_size,
            "num_reserved_tokens": num_reserved,
            "train_bytes": train_bytes,
            "sample_bytes": {name: part["bytes"] for name, part in sample.drawn.get(OURS, {}).items()},
            "samples": {name: sum_domains(sources, parts) for name, parts in sample.drawn.items()},
            "bytes_per_token": {
                name: {source: part["bytes"] / part["tokens"] for source, part in measured["sources"].items()}
                for name, measured in card["tokenizers"].items()
            },
            "terms": {
                term: {name: split_in_sentence(other, term) for name, other in tokenizers.items()}
                for term in settings.terms
            },
            "card": card,
        } | ({"differs": changes} if taken is not None else {})
        speed = {
            name: encoding_speed(one, chain.from_iterable(read_texts(documents, "validation", n) for n in shares))
            for name, one in (tokenizers | others).items()
        }
        if taken is None:
            end_of_text = settings.special_tokens[0]
            wrapped = as_transformers(tokenizers[OURS], end_of_text, recipe.training.sequence_length)
            wrapped.save_pretrained(output)
            write_tokenizer_card(recipe, card, output)
        write_json(output / "report.json", report)
        write_json(output / "speed.json", speed)
    return report


def split_in_sentence(tokenizer: Tokenizer, term: str) -> list[str]:
    """Return the readable tokens of a term inside a sentence, after a space."""
    return pieces(tokenizer, tokenizer.encode(f"{CONTEXT} {term}", add_special_tokens=False), len(CONTEXT))


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    silence_transformers()
    if options.dry_run and not is_finished(recipe, "tokenizer", options.overwrite):
        require(recipe, "prepare")
        print(
            f"tokenizer: would train {recipe.tokenizer.algorithm} with a vocabulary of {recipe.tokenizer.vocab_size:,}"
        )
        return
    with stage_lock(recipe, "tokenizer", options.overwrite) as has_work:
        if not has_work:
            print(f"tokenizer: nothing to do, {recipe.run.output_dir}/tokenizer is up to date")
            return
        report = make_tokenizer(recipe)
    ratios = ", ".join(f"{ratio:.2f} on {name}" for name, ratio in report["bytes_per_token"][OURS].items())
    print(
        f"tokenizer: vocabulary of {report['vocab_size']:,}, bytes per token {ratios}, in "
        f"{recipe.run.output_dir}/tokenizer"
    )
    for sentence in report["card"]["verdict"]["sentences"]:
        print(f"tokenizer: {sentence}")


if __name__ == "__main__":
    run_command(main)
