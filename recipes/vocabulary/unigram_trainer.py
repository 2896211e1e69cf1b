# SPDX-License-Identifier: Apache-2.0
"""Train a Unigram model on counted words: choose the pieces of bytes and fit their probabilities.

The algorithm is SentencePiece's (https://huggingface.co/papers/1804.10959): start from frequent substrings, fit their
probabilities by expectation maximisation, drop the pieces whose loss lowers the likelihood least, and repeat until the
size is reached. Two things differ. Seeds are weighted by how often the words that contain them occur; SentencePiece
counts each different word once. And the last round, too, drops by likelihood, not by probability.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from vocabulary.pretokenization import training_splitter
from vocabulary.special_tokens import BYTES
from vocabulary.unigram_lattice import Lattice, Level, Nodes, substrings


SEEDS_PER_PIECE = 20
EM_STEPS = 2
# Share of the remaining pieces that a round keeps.
KEPT_FRACTION = 0.75
# A piece with a smaller expected count is dropped; a byte counts at least this.
MIN_EXPECTED = 0.5
# Seeds this many times rarer than an average token are dropped to save memory.
RARER = 50


def count_words(texts: Iterable[str], style: str) -> Counter[bytes]:
    """Return how often each piece of the pre-tokenization `style` occurs in the texts."""
    pre_tokenizer, counts = training_splitter(style), Counter()
    for text in texts:
        counts.update(piece for piece, _ in pre_tokenizer.pre_tokenize_str(text))
    return Counter({piece.encode(): count for piece, count in counts.items()})


def by_length(pieces: Iterable[bytes]) -> list[bytes]:
    """Return pieces from the longest to the shortest, as `Nodes` takes them."""
    return sorted(pieces, key=lambda piece: (-len(piece), piece))


def choose_seeds(levels: list[Level], max_seeds: int) -> list[np.ndarray]:
    """Return, for each level of substrings, the names of the seeds: those that cover the most bytes of text.

    A substring that occurs only within one longer substring is left out.
    """
    covered = []
    for index, level in enumerate(levels):
        within_longer = np.zeros(len(level.counts))
        if index + 1 < len(levels):
            longer = levels[index + 1]
            np.maximum.at(within_longer, longer.prefixes, longer.counts)
            np.maximum.at(within_longer, longer.suffixes, longer.counts)
        covered.append(np.where(within_longer < level.counts, level.counts * (index + 1), 0))
    covered[0][:] = np.inf
    everything = np.concatenate(covered)
    chosen = np.argsort(-everything, kind="stable")[: BYTES + max_seeds]
    chosen = np.sort(chosen[everything[chosen] > 0])
    ends = np.cumsum([len(level.counts) for level in levels])
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    return [part - (end - len(level.counts)) for part, end, level in zip(parts, ends, levels, strict=True)]


def word_lattice(
    words: list[bytes], weights: np.ndarray, max_bytes: int, min_count: float, max_seeds: int
) -> tuple[list[bytes], np.ndarray, Lattice]:
    """Return the seeds by descending length, how often each occurs, and their lattice over the words."""
    nodes = Nodes(words)
    levels = list(substrings(nodes, weights, max_bytes, min_count))
    found = []
    for length, (level, names) in enumerate(zip(levels, choose_seeds(levels, max_seeds), strict=True), 1):
        example = np.zeros(len(level.counts), dtype=np.int64)
        example[level.names] = level.starts
        steps = np.searchsorted(nodes.first, example, side="right") - 1
        for name in names.tolist():
            step, word = steps[name], words[nodes.word[example[name]]]
            # A byte need not occur at all.
            seed = word[step : step + length] if length > 1 else bytes([name])
            found.append((seed, length, name))
    found.sort(key=lambda seed: (-seed[1], seed[0]))
    tables = [np.full(len(level.counts), -1, dtype=np.int32) for level in levels]
    counts = np.zeros(len(found))
    for index, (_, length, name) in enumerate(found):
        tables[length - 1][name] = index
        counts[index] = levels[length - 1].counts[name]
    starts, pieces = [], []
    for table in tables:
        level = levels.pop(0)
        is_seed = table[level.names] >= 0
        starts.append(level.starts[is_seed])
        pieces.append(table[level.names[is_seed]])
    return [seed for seed, _, _ in found], counts, Lattice(nodes, starts, pieces)


def piece_lattice(pieces: list[bytes]) -> Lattice:
    """Return the lattice of all segmentations of each piece into other pieces; a byte's is the byte itself."""
    nodes = Nodes(pieces)
    starts, parts = [], []
    for length, level in enumerate(substrings(nodes, np.ones(len(pieces)), len(pieces[0]), 0), 1):
        # The first nodes are those before the first byte, numbered as the pieces are.
        whole = level.starts < len(pieces)
        whole[whole] = nodes.lengths[level.starts[whole]] == length
        table = np.full(len(level.counts), -1, dtype=np.int32)
        table[level.names[whole]] = level.starts[whole]
        is_part = (table[level.names] >= 0) & ~(whole if length > 1 else np.zeros_like(whole))
        starts.append(level.starts[is_part])
        parts.append(table[level.names[is_part]])
    return Lattice(nodes, starts, parts)


def losses(frequencies: np.ndarray, scores: np.ndarray, parts: Lattice) -> np.ndarray:
    """Return how much the text's log-likelihood falls if a piece is replaced by its best parts, for each piece.

    Args:
        frequencies: [pieces] how often each is used; 0 for dropped ones.
        scores: [pieces] log-probabilities.
        parts: of piece_lattice.
    """
    total = frequencies.sum()
    num_parts, parts_log = np.zeros(len(frequencies)), np.zeros(len(frequencies))
    used = frequencies > 0
    for pieces, part in parts.best_segmentations(scores):
        pieces, part = pieces[used[pieces]], part[used[pieces]]
        num_parts[pieces] += 1
        parts_log[pieces] += np.log(frequencies[part] + frequencies[pieces])
    own, num_parts, parts_log = frequencies[used], num_parts[used], parts_log[used]
    without = parts_log - num_parts * np.log(total + own * (num_parts - 1))
    result = np.zeros(len(frequencies))
    result[used] = own * (np.log(own) - np.log(total) - without)
    return result


def learn_pieces(word_counts: Mapping[bytes, int], size: int, max_bytes: int) -> dict[bytes, float]:
    """Return the probabilities of at most `size` pieces, including all 256 bytes; they add up to 1.

    The same counts give the same result bit for bit, on one kind of processor.

    Args:
        word_counts: how often each word occurs. At the peak about 200 bytes of memory for each byte of the words.
        size: number of pieces, above 256; fewer are returned if the words do not contain as many.
        max_bytes: length of the longest piece.
    """
    from scipy.special import digamma  # only here: training imports this module and learns no pieces

    words = by_length(word_counts)
    weights = np.array([word_counts[word] for word in words], dtype=np.float64)
    num_bytes = sum(len(word) * count for word, count in word_counts.items())
    min_count = max(2, num_bytes / (4 * size * RARER))
    pieces, counts, lattice = word_lattice(words, weights, max_bytes, min_count, SEEDS_PER_PIECE * size)
    parts = piece_lattice(pieces)
    lengths = np.array([len(piece) for piece in pieces])
    is_byte = lengths == 1
    alive = np.ones(len(pieces), dtype=bool)
    covered = np.maximum(counts, MIN_EXPECTED) * lengths
    scores = np.log(covered / covered.sum())
    while True:
        for _ in range(EM_STEPS):
            expected = lattice.expected_counts(scores, weights)
            if np.count_nonzero(alive) > size:
                alive &= is_byte | (expected >= MIN_EXPECTED)
            expected = np.maximum(expected, MIN_EXPECTED)
            scores = np.where(alive, digamma(expected) - digamma(expected[alive].sum()), -np.inf)
            lattice.keep(alive)
        left = np.count_nonzero(alive)
        if left <= size:
            break
        used = np.zeros(len(pieces))
        for chosen, taken in lattice.best_segmentations(scores):
            used += np.bincount(taken, weights=weights[chosen], minlength=len(pieces))
        parts.keep(alive)
        loss = np.where(is_byte, np.inf, losses(used, scores, parts))
        loss[~alive] = -np.inf
        dropped = np.argsort(-loss, kind="stable")[max(size, int(KEPT_FRACTION * left)) :]
        alive[dropped] = False
        lattice.keep(alive)
    probabilities = np.exp(scores[alive])
    probabilities /= probabilities.sum()
    return dict(zip([pieces[index] for index in np.flatnonzero(alive)], probabilities.tolist(), strict=True))
