"""Who gains at whose expense: the destructive interference D of loss changes, taken apart by domain.

x_i is the change of the loss of held-out token i, a and b are domains:

    S_a = Σ_{i in a} x_i      A_a = Σ_{i in a} |x_i|
    within[a]      1 − |S_a| / A_a                     D of the tokens of a alone
    between[a, b]  1 − |S_a + S_b| / (A_a + A_b)       D of the tokens of both; within[a] where a = b
    shift[a]       S_a / n_a                           mean change of a's loss, below 0: the domain gained
    between_share  part of all interference that is between the domains, and not within them

All the interference is what cancels, in nats: Σ|x| − |Σx| = Σ_a (A_a − |S_a|) + (Σ_a |S_a| − |Σ_a S_a|). The first sum
is what cancels between the tokens of one domain, the rest is what one domain gains while another loses. It is 0 where
all domains move the same way, however much their tokens oppose one another.

Laws, to rounding: no order of the tokens matters, and an order of the domains only orders the result. Every D lies in
[0, 1]. The two parts add up. Where a and b moved the same way, between[a, b] is the mean of within[a] and within[b]
with the weights A_a and A_b; where they moved apart, it is above it. One domain alone has within = between = the D of
loss_interference.py, and between_share 0.

A D is None where nothing moved, and between_share where nothing cancels. A domain without a token is left out.

Exact, float64. Cost: a pass over the tokens for each domain. Checked by tests/unit/test_domain_interference.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-12  # of Σ|x|: less interference than that is none


def domain_interference(changes: Tensor, domains: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """`names` of the domains that have tokens, and in their order within, between, shift; between_share.

    changes (S, T) in nats; domains (S,): the place in `names` of each sequence's domain.
    """
    x = changes.detach().double()
    present = [d for d in range(len(names)) if bool((domains == d).any())]
    parts = [x[domains == d] for d in present]
    # On the way to the CPU once, not number by number.
    sums = torch.stack([torch.stack([p.sum(), p.abs().sum()]) for p in parts]).tolist()
    s, a = [row[0] for row in sums], [row[1] for row in sums]
    every = range(len(present))

    def together(i: int, j: int) -> float | None:
        return destructive(s[i], a[i]) if i == j else destructive(s[i] + s[j], a[i] + a[j])

    inside = sum(max(a[i] - abs(s[i]), 0.0) for i in every)
    across = max(sum(map(abs, s)) - abs(sum(s)), 0.0)
    cancels = inside + across > ROUNDING * sum(a)
    return {
        "names": [names[d] for d in present],
        "within": [together(i, i) for i in every],
        "between": [[together(i, j) for j in every] for i in every],
        "shift": [s[i] / parts[i].numel() for i in every],
        "between_share": across / (inside + across) if cancels else None,
    }


def destructive(total: float, magnitude: float) -> float | None:
    """D of changes with the sum `total` and the sum of sizes `magnitude`; rounding never takes it out of [0, 1]."""
    return max(1 - abs(total) / magnitude, 0.0) if magnitude else None
