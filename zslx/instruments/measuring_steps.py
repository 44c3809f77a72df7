"""The steps at which held-out loss and the other instruments are measured. Torch-free."""

from __future__ import annotations

import math
from itertools import pairwise

FINAL_SHARE, FINAL_POINTS = 1 / 8, 8


def heldout_steps(steps: int, points: int, probes: bool = True) -> list[int]:
    """About `points` log-spaced steps from 0 (before training) to the last.

    Among them the probe steps t, and t − 1: what a probe needs before its update is then a point of the curve and
    not a pass of its own; and FINAL_POINTS over the last FINAL_SHARE of the steps, because at a constant rate the
    loss of one step's weights fluctuates: what a run has reached at T is their mean. The rest halves the widest
    gap in log t, again and again.
    """
    chosen = {0, 1, steps}
    first = steps - steps * FINAL_SHARE
    chosen |= {round(first + (steps - first) * i / FINAL_POINTS) for i in range(1, FINAL_POINTS + 1)}
    if probes:
        chosen |= {s for t in probe_steps(steps) for s in (t - 1, t)}
    while len(chosen) < points:
        gaps = [(b / a, a, b) for a, b in pairwise(sorted(chosen - {0})) if b - a > 1]
        if not gaps:
            break
        _, a, b = max(gaps)
        chosen.add(round(math.sqrt(a * b)))
    return sorted(chosen)


def token_steps(steps: int) -> list[int]:
    """The probe steps of what takes gradients of single tokens, which cost more: powers of two, and the last."""
    return [s for s in probe_steps(steps) if s & (s - 1) == 0 or s == steps]


def probe_steps(steps: int) -> list[int]:
    """Powers of two, the steps half-way between (1.5 × 2^k), and the last: with t they hold 2t up to the last."""
    found = {steps}
    power = 1
    while power <= steps:
        found |= {power, power * 3 // 2} if power > 1 else {1}
        power *= 2
    return sorted(s for s in found if s <= steps)
