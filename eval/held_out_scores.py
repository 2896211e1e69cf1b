# SPDX-License-Identifier: Apache-2.0
"""Bits per byte of a run's held-out documents: by source, domain, month after the cut-off and context length."""

import argparse
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bits_per_byte import bits_per_byte, encode_text, score_documents, xz_baselines
from intervals import bootstrap_interval, draws, family_sums
from shared_work import SharedWork


logger = logging.getLogger(__name__)

XZ_KINDS = ("xz_documents", "xz_stream", "xz_primed")
PIECE_DOCUMENTS = 32  # scored together by one process
CONTEXT_FACTORS = (0.5, 1, 2, 4)  # of the model's own context, for long documents
LONG_CONTEXTS = 64  # long documents are read until they fill the model's context so many times


class Document(NamedTuple):
    """A row of a source's parquet files. Documents of one family share long runs of words."""

    id: str
    text: str
    date: str | None = None
    family: str | int | None = None


def read_documents(folder: Path) -> Iterator[Document]:
    """Yield the documents of a source's parquet files, whose columns date and family are optional."""
    for path in sorted(folder.glob("*.parquet")):
        file = pq.ParquetFile(path)
        columns = [name for name in Document._fields if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns, batch_size=256, use_threads=False):
            yield from (Document(**row) for row in batch.to_pylist())


def chosen_documents(folder: Path, max_bytes: int | None) -> list[Document]:
    """Return a source's documents in the order of their ids; with max_bytes, the first that fit, at least one."""
    chosen, total_bytes = [], 0
    for document in sorted(read_documents(folder), key=lambda document: document[:2]):
        total_bytes += len(document.text.encode())
        if chosen and max_bytes is not None and total_bytes > max_bytes:
            break
        chosen.append(document)
    return chosen


def summed(name: str, documents: list[dict], sizes: dict, seed: int) -> dict:
    """Return the entry of one source, domain or month in results.json.

    The 95 % interval comes from the bootstrap over families of documents: each resample draws families with their nats
    and bytes together. It covers the choice of documents, not that of a training seed. A single family has none.

    Args:
        name: of the source, domain or month, which has its own draws.
        documents: [{"id", "family", "nats", "bytes", "tokens", "restored"}].
        sizes: {kind of XZ_KINDS: compressed bytes of all documents}; a kind may be missing or None.
        seed: of the bootstrap.
    """
    nats, byte_counts = (family_sums(documents, key) for key in ("nats", "bytes"))
    total_nats, total_bytes = (sum(each[key] for each in documents) for key in ("nats", "bytes"))
    interval = None
    if len(nats) > 1:
        resampled = [nats[draw].sum() / math.log(2) / byte_counts[draw].sum() for draw in draws(name, len(nats), seed)]
        interval = bootstrap_interval(np.array(resampled), len(nats))
    return {
        "documents": len(documents),
        "families": len(nats),
        "bytes": total_bytes,
        "tokens": sum(each["tokens"] for each in documents),
        "nats": total_nats,
        "bits_per_byte": bits_per_byte(total_nats, total_bytes),
        "confidence_interval": interval,
        **{kind: None if sizes.get(kind) is None else 8 * sizes[kind] / total_bytes for kind in XZ_KINDS},
        "documents_not_restored": sum(not each["restored"] for each in documents),
    }


def score_split(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: argparse.Namespace,
    split: str,
    work: SharedWork,
) -> dict[str, list[dict]]:
    """Score the documents of a split: {source: [{"id", "date", "family", "nats", "bytes", "tokens", "restored"}]}."""

    def score(texts: list[str]) -> list:
        settings = {"context_length": arguments.context_length, "stride": arguments.stride}
        scores = score_documents(
            model, tokenizer, texts, **settings, batch_size=arguments.batch_size, description=None
        )
        return [[each.nats, each.bytes, each.tokens, each.restored] for each in scores]

    scored = {}
    for folder in sorted(path for path in (arguments.documents / split).iterdir() if path.is_dir()):
        documents = [each for each in chosen_documents(folder, arguments.max_bytes_per_source) if each.text]
        if not documents:
            logger.warning("%s holds no text: %s is skipped", folder, folder.name)
            continue
        texts = [each.text for each in documents]
        pieces = [texts[start : start + PIECE_DOCUMENTS] for start in range(0, len(texts), PIECE_DOCUMENTS)]
        costs = [cost for part in work.map("documents", pieces, score, folder.name) for cost in part]
        scored[folder.name] = [
            {"id": each.id, "date": each.date, "family": each.family}
            | dict(zip(("nats", "bytes", "tokens", "restored"), cost, strict=True))
            for each, cost in zip(documents, costs, strict=True)
        ]
        not_restored = sum(not each["restored"] for each in scored[folder.name])
        if not_restored:
            logger.warning("%s: tokens of %d documents do not decode back to the text", folder.name, not_restored)
    return scored


def score_sources(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace, work: SharedWork
) -> tuple[dict[str, dict], dict[str, list[dict]]]:
    """Score the held-out documents.

    Returns: {"sources", "domains", "months", "context_lengths"}, each {name: entry}, and the documents of each source.
        months: of the dated documents in the split `future`, which is later than all training text, if there is one.
        context_lengths: from `score_context_lengths`.
    """
    stats = arguments.documents / "stats.json"
    known = json.loads(stats.read_text(encoding="utf-8"))["sources"] if stats.is_file() else {}
    scored = score_split(model, tokenizer, arguments, arguments.split, work)
    sources, compressed, domains = {}, {}, {}
    for name, documents in scored.items():
        compressed[name] = {}
        if arguments.xz:
            held_out = chosen_documents(arguments.documents / arguments.split / name, arguments.max_bytes_per_source)
            training = read_documents(arguments.documents / "train" / name)
            compressed[name] = work.map(
                "xz",
                [[each.text for each in held_out if each.text]],
                lambda texts, training=training: xz_baselines(
                    [text.encode() for text in texts], (each.text.encode() for each in training)
                ),
                f"{name}: xz",
            )[0]
        domain = known.get(name, {}).get("domain") or name
        sources[name] = {"domain": domain, **summed(name, documents, compressed[name], arguments.seed)}
        domains.setdefault(domain, []).append(name)
    by_domain = {}
    for domain, names in sorted(domains.items()):
        sizes = {
            kind: sum(compressed[name][kind] for name in names)
            for kind in XZ_KINDS
            if all(compressed[name].get(kind) is not None for name in names)
        }
        documents = [each for name in names for each in scored[name]]
        by_domain[domain] = {"domain": domain, **summed(domain, documents, sizes, arguments.seed)}
    months: dict[str, list[dict]] = {}
    if arguments.split != "future" and any((arguments.documents / "future").glob("*/*.parquet")):
        for name, documents in score_split(model, tokenizer, arguments, "future", work).items():
            scored[f"future.{name}"] = documents
            for each in documents:
                if each["date"] and len(each["date"]) >= 7:
                    months.setdefault(each["date"][:7], []).append(each)
    by_month = {month: summed(month, documents, {}, arguments.seed) for month, documents in sorted(months.items())}
    by_length = score_context_lengths(model, tokenizer, arguments, sorted(sources), work)
    return {"sources": sources, "domains": by_domain, "months": by_month, "context_lengths": by_length}, scored


def score_context_lengths(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: argparse.Namespace,
    sources: list[str],
    work: SharedWork,
) -> dict[str, dict]:
    """Score documents that are longer than the model's context, at CONTEXT_FACTORS times that context.

    Returns: {tokens of the context: entry}, the same documents in each; {} if none is so long, or if the model cannot
        read beyond its context, as with learned positions.
    """
    config = model.config.get_text_config()
    own_length = getattr(config, "max_position_embeddings", None) or arguments.context_length
    if getattr(config, "rope_parameters", None) is None:
        return {}
    long, num_tokens = [], 0
    for name in sources:
        folder = arguments.documents / arguments.split / name
        for each in chosen_documents(folder, arguments.max_bytes_per_source):
            length = len(encode_text(tokenizer, each.text)[0]) if len(each.text.encode()) > own_length else 0
            if length > own_length and num_tokens < LONG_CONTEXTS * own_length:
                long.append(each)
                num_tokens += length
    entries = {}
    for length in (int(factor * own_length) for factor in CONTEXT_FACTORS if long):

        def score(text: str, length: int = length) -> dict:
            scores = score_documents(
                model, tokenizer, [text], context_length=length, batch_size=arguments.batch_size, description=None
            )
            return vars(scores[0])

        costs = work.map(f"context of {length}", [each.text for each in long], score, f"context of {length} tokens")
        documents = [{"id": each.id, "family": each.family} | cost for each, cost in zip(long, costs, strict=True)]
        entries[str(length)] = summed("long documents", documents, {}, arguments.seed)
    return entries
