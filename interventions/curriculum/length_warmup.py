"""Sequence length warm-up: short sequences first, all the length after `duration` of the run.

    T(t) = T · (start + (1 − start) · min(1, (t − 1) / (duration · steps))),   rounded down to a divisor of T

Departure: lengths divide T, so that a step keeps its tokens (a window of T tokens is cut into T/length sequences).
The paper rounds to a multiple of 8 and drops the rest of each sequence. Cost: below 1, since attention over short
sequences is cheaper. Oracle: closed form (tests/unit/test_exemplars.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class LengthWarmup(Intervention):
    """Trains on short sequences first and lets their length grow linearly to the full one.

    Acts on the batch: the tokens of a step and their order stay the same, but early steps cut them into shorter
    sequences, so that most predictions have little context. Held-out loss is always measured at full length.
    """

    name = "length_warmup"
    family = "curriculum"
    source = "Li et al. 2022 (sequence length warm-up), arXiv 2108.06084"
    cost = "at most 1.00"
    neutral = {"duration": 0.0}

    start: float = setting(0.125, "length of the first sequences as a share of the full one", low=0.001, high=1.0)
    duration: float = setting(0.3, "share of the run after which the length is full", low=0.0, high=1.0)

    def sequence(self, run: RunView, state: State) -> int:
        grown = min(1.0, (run.step - 1) / (self.duration * run.steps)) if self.duration else 1.0
        return max(1, int(run.seq_len * (self.start + (1 - self.start) * grown)))
