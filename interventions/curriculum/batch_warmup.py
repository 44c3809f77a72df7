"""Batch size warm-up: small batches first, that grow linearly to the full one.

    b(x) = start + (1 − start) · min(1, x / duration)          x: share of the run
    n_t  = ⌊C(t/S) + ½⌋ − ⌊C((t−1)/S) + ½⌋,   C(x) = B·S · ∫₀ˣ b / ∫₀¹ b     (S steps of B windows)

So the batches have as many tokens in all as the baseline's. With match_tokens=false the divisor is left out: batches
end at B, as published, and the run has fewer tokens. Departure: growth over a share of the run, the paper's over a
number of tokens. Cost: nothing. Oracle: closed form (tests/unit/test_curricula.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class BatchWarmup(Intervention):
    """Trains on small batches first and lets them grow linearly.

    Acts on the number of windows in a step. By default the last batches are larger than the baseline's, so that a
    run has the same tokens in the same steps: 1.09 times at the default settings. It has no placebo: which batches
    are small is the method, so its control is the baseline with an equally tuned learning rate.
    """

    name = "batch_warmup"
    family = "curriculum"
    source = "Brown et al. 2020 (GPT-3), arXiv 2005.14165, Section 2.3 and Appendix B"
    cost = "1.00"
    neutral = {"duration": 0.0}

    start: float = setting(0.125, "first batch as a share of the full one", low=0.001, high=1.0)
    duration: float = setting(0.2, "share of the run after which batches are full", low=0.0, high=1.0)
    match_tokens: bool = setting(True, "train on as many tokens as the baseline, by larger batches at the end")

    def grown(self, x: float) -> float:
        """∫₀ˣ b, which is x for a batch that is always full."""
        if not self.duration:
            return x
        rise = min(x, self.duration)
        return self.start * rise + (1 - self.start) * rise**2 / (2 * self.duration) + x - rise

    def batch_size(self, run: RunView, state: State) -> int:
        total = run.batch_size * run.steps / (self.grown(1.0) if self.match_tokens else 1.0)
        before, after = (math.floor(total * self.grown(t / run.steps) + 0.5) for t in (run.step - 1, run.step))
        return max(1, after - before)
