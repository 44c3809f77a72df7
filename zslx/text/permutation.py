"""A seeded order of n things that is computed, not stored.

A generalised Feistel network on Z_a × Z_b, a·b ≥ n, with a and b near √n: rounds alternate

    l ← l + h(r, key) mod a        r ← r + h(l, key) mod b

each a bijection whatever h is. Values that fall outside [0, n) go through again (cycle walking), about 2/√n of
them. So a place in the order costs O(1) time and no memory: the order of 10 windows or 10^12 needs one key.
(Levanter's data order rests on the same idea, over powers of two.)

Exact: every index appears exactly once. Approximate: the order is pseudo-random; for n of a handful not every one
of the n! orders is equally frequent. Checked in tests/unit/test_data.py: all small n, uniform places for larger ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8

Words = NDArray[np.uint64]


def permuted(index: NDArray[np.int64], n: NDArray[np.int64], key: Words) -> NDArray[np.int64]:
    """Element index[i] in [0, n[i]) of the order of range(n[i]) that belongs to key[i]; (N,), (N,), (N, ROUNDS)."""
    size = n.astype(np.uint64)
    b = np.sqrt(n).astype(np.uint64) + np.uint64(1)
    a = -(-n // b.astype(np.int64)).astype(np.uint64)
    value = _rounds(index.astype(np.uint64), a, b, key)
    while len(outside := np.flatnonzero(value >= size)):
        value[outside] = _rounds(value[outside], a[outside], b[outside], key[outside])
    return value.astype(np.int64)


def _rounds(value: Words, a: Words, b: Words, key: Words) -> Words:
    left, right = np.divmod(value, b)
    for i in range(0, ROUNDS, 2):
        left = (left + _mix(right ^ key[:, i]) % a) % a
        right = (right + _mix(left ^ key[:, i + 1]) % b) % b
    return left * b + right


def _mix(x: Words) -> Words:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
