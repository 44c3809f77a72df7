"""Destructive interference D and magnitude M of changes that add up.

    D(x) = 1 − |Σ x_i| / Σ |x_i|  in [0, 1]        M(x) = mean |x_i|        |mean x| = M (1 − D)

What x_i is, by the key of a record at step t, with ℓ_i(s) the loss of token i at the weights after step s:

    dtt    ℓ_i(t) − ℓ_i(t/2), everywhere; `from` is t/2
    dt1_*  ℓ_i(t) − ℓ_i(t−1), of the run's own update

Source: the zero-sum learning paper, Section 4. Sums run in float64, so the identity holds to rounding.
"""

from __future__ import annotations

from torch import Tensor


def interference(changes: Tensor) -> dict[str, float | int | None]:
    """D, M, the mean change dL and the count n of `changes` (any shape; nats for token losses).

    Where nothing changes at all (a rate of 0, a step that a method skips), D is not defined: None.
    """
    x = changes.detach().double().flatten()
    if not len(x):
        raise ValueError("interference of no changes at all is not defined")
    total, magnitude = float(x.sum()), float(x.abs().sum())
    return {
        "D": 1 - abs(total) / magnitude if magnitude else None,
        "M": magnitude / len(x),
        "dL": total / len(x),
        "n": len(x),
    }
