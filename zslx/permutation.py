"""A seeded order of n things that is computed, not stored.

A generalised Feistel network on Z_a × Z_b, a·b ≥ n, with a and b near √n: rounds alternate

    l ← l + h(r, key) mod a        r ← r + h(l, key) mod b

each a bijection whatever h is. Values that fall outside [0, n) go through again (cycle walking), about √n⁻¹ of
them. So a place in the order costs O(1) time and no memory, and the order of 10 windows or 10^12 needs one key.
(Levanter's data order is built on the same idea, over powers of two.)

Exact: every index appears exactly once (tests/unit/test_data.py checks it for all small n). Approximate: the order
is pseudo-random; for n of a handful not every one of the n! orders occurs.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8


def permuted(index: NDArray[np.int64], n: int, key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Element `index` (any shape, each in [0, n)) of the order of range(n) that belongs to `key` (ROUNDS,)."""
    b = isqrt(n - 1) + 1
    a = -(-n // b)
    value = index.astype(np.uint64)
    result = _rounds(value, a, b, key)
    while (outside := result >= n).any():
        result[outside] = _rounds(result[outside], a, b, key)
    return result.astype(np.int64)


def _rounds(value: NDArray[np.uint64], a: int, b: int, key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    left, right = np.divmod(value, np.uint64(b))
    for i in range(0, ROUNDS, 2):
        left = (left + _mix(right ^ key[i]) % np.uint64(a)) % np.uint64(a)
        right = (right + _mix(left ^ key[i + 1]) % np.uint64(b)) % np.uint64(b)
    return left * np.uint64(b) + right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
