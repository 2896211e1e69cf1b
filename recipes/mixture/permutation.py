# SPDX-License-Identifier: Apache-2.0
"""A permutation of 0..n-1 in O(1) memory that can be computed, and inverted, at any index."""

from functools import lru_cache


def permute(index: int, size: int, key: tuple[int, ...]) -> int:
    """Return where `index` goes in a pseudo-random permutation of range(size) chosen by key.

    A four-round Feistel network on the smallest even number of bits that holds size. A result outside the range goes
    through again until it is inside (four times at most on average), which keeps the map a permutation.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask, rounds = (1 << half_bits) - 1, round_keys(key)
    while True:
        left, right = index >> half_bits, index & mask
        for key_of_round in rounds:
            left, right = right, left ^ (mix(right ^ key_of_round) & mask)
        index = left << half_bits | right
        if index < size:
            return index


def unpermute(index: int, size: int, key: tuple[int, ...]) -> int:
    """Return the index that `permute` maps to `index`."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask, rounds = (1 << half_bits) - 1, round_keys(key)
    while True:
        left, right = index >> half_bits, index & mask
        for key_of_round in reversed(rounds):
            left, right = right ^ (mix(left ^ key_of_round) & mask), left
        index = left << half_bits | right
        if index < size:
            return index


@lru_cache(maxsize=1024)
def round_keys(key: tuple[int, ...]) -> list[int]:
    return [mix(hash_key(key) + number) for number in range(4)]


def hash_key(key: tuple[int, ...]) -> int:
    state = 0
    for part in key:
        state = mix(state ^ part)
    return state


def mix(value: int) -> int:
    """Scramble 64 bits: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
