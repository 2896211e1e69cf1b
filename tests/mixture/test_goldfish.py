# SPDX-License-Identifier: Apache-2.0
"""Goldfish loss leaves out the same token after the same words, wherever, however often and by whom they are read."""

import numpy as np
import pytest
from token_files import open_shards, write_tokens

from mixture.batches import MicroBatches
from mixture.goldfish import left_out
from mixture.labels import IGNORED_LABEL
from mixture.order import TokenMixture
from mixture.shards import Location, TokenShards
from mixture.skips import SkippedDocuments
from recipe_config import Goldfish


GOLDFISH = Goldfish(k=4, context=5)
PASSAGE = np.random.default_rng(0).integers(1, 500, 60)


def shard_of(seed: int) -> np.ndarray:
    """Return some documents of random tokens between end-of-text tokens (0); each has the passage somewhere."""
    generator, parts = np.random.default_rng(seed), [[0]]
    for _ in range(12):
        before, after = (generator.integers(1, 500, generator.integers(0, 90)) for _ in range(2))
        parts += [before, PASSAGE, after, [0]]
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> TokenShards:
    sources = {"law": [shard_of(1), shard_of(2)], "web": [shard_of(3)]}
    return open_shards(write_tokens(tmp_path_factory.mktemp("goldfish") / "tokens", sources), 8)


def decisions(shards: TokenShards, sequence_length: int) -> dict[tuple[int, int, int], bool]:
    """Return (source, shard, place) -> whether the token is left out, from sequences of a length."""
    found = {}
    for source, files in enumerate(shards.shards):
        for shard, tokens in enumerate(files):
            for start in range(0, len(tokens) - sequence_length, sequence_length):
                out = left_out(shards, Location(source, shard, start), sequence_length, GOLDFISH)
                found |= {(source, shard, start + 1 + place): one for place, one in enumerate(out.tolist())}
    return found


def test_the_same_token_after_the_same_words_is_always_left_out_and_one_in_k_is(shards):
    found = decisions(shards, 8)
    by_words: dict[tuple, set[bool]] = {}
    for (source, shard, place), out in found.items():
        words = shards.shards[source][shard][max(0, place - GOLDFISH.context) : place]
        if len(words) == GOLDFISH.context and 0 not in words:
            by_words.setdefault(tuple(words.tolist()), set()).add(out)
        else:
            assert not out, "a token without enough words of its document before it always counts"
    assert all(len(outs) == 1 for outs in by_words.values())
    assert abs(sum(found.values()) / len(found) - 1 / GOLDFISH.k) < 0.03


def test_every_copy_of_a_passage_loses_the_same_tokens(shards):
    found, patterns = decisions(shards, 8), set()
    for source, files in enumerate(shards.shards):
        for shard, tokens in enumerate(files):
            windows = np.lib.stride_tricks.sliding_window_view(tokens, len(PASSAGE))
            for start in np.flatnonzero((windows == PASSAGE).all(axis=1)).tolist():
                places = range(start + GOLDFISH.context, start + len(PASSAGE))
                pattern = [found.get((source, shard, place)) for place in places]
                if None not in pattern:  # the last window of a shard is cut short
                    patterns.add(tuple(pattern))
    assert len(patterns) == 1
    assert any(patterns.pop())


@pytest.mark.parametrize("sequence_length", [3, 64])
def test_the_length_of_sequences_changes_nothing(shards, sequence_length):
    short, other = decisions(shards, 8), decisions(shards, sequence_length)
    common = short.keys() & other.keys()
    assert len(common) > 0.9 * len(short)
    assert all(short[place] == other[place] for place in common)


def test_another_k_or_context_leaves_out_others(shards):
    location = Location(0, 0, 0)
    ours, others = (left_out(shards, location, 4000, goldfish) for goldfish in (GOLDFISH, Goldfish(k=4, context=6)))
    assert (ours & others).sum() / ours.sum() < 0.3
    rarely = left_out(shards, location, 4000, Goldfish(k=40, context=5))
    assert 0 < rarely.mean() < 0.05


def test_batches_ignore_those_labels_on_any_number_of_processes_and_count_what_is_left(shards):
    mixture = TokenMixture(shards, {0: {"law": 0.5, "web": 0.5}, 40: {"law": 0.7, "web": 0.3}}, 3, {40: 4})
    skipped, lengths = SkippedDocuments(shards, []), np.arange(500) % 7
    whole = MicroBatches(mixture, skipped, lengths, 20, 0, 1)
    alone = MicroBatches(mixture, skipped, lengths, 20, 0, 1, GOLDFISH)
    shared = [MicroBatches(mixture, skipped, lengths, 4, process, 5, GOLDFISH) for process in range(5)]
    for k in (0, 1, 2, 3):
        plain, ours, parts = whole[k], alone[k], [dataset[k] for dataset in shared]
        labels = ours["labels"].numpy()
        assert np.array_equal(labels, np.concatenate([part["labels"] for part in parts]))
        kept = labels != IGNORED_LABEL
        assert (~kept).any()
        assert np.array_equal(labels[kept], plain["labels"].numpy()[kept])
        assert np.array_equal(ours["input_ids"], plain["input_ids"])
        assert ours["seen"].tolist() == plain["seen"].tolist(), "what is read does not change"
        assert plain["scored"].tolist() == plain["seen"].sum(0).tolist()
        assert ours["scored"].tolist() == [lengths[labels[kept]].sum(), kept.sum()]
        assert sum(part["scored"] for part in parts).tolist() == ours["scored"].tolist()
