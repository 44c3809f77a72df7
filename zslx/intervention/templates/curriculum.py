"""my_idea: trains on half-length sequences until a share of the run is over.

T(t) = T / 2 for t ≤ until · steps, then T
"""

from __future__ import annotations

from dataclasses import dataclass

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class MyIdea(Intervention):
    """Cuts the sequences of the first steps in two.

    Acts on the batch: its tokens and their order stay the same. Any length is allowed; the trainer rounds it down to
    one that divides the full length.
    """

    name = "my_idea"
    family = "curriculum"
    source = "an idea of mine"
    cost = "at most 1.00"
    neutral = {"until": 0.0}

    until: float = setting(0.5, "share of the run with half-length sequences", low=0.0, high=1.0)

    def sequence(self, run: RunView, state: State) -> int | None:
        return max(1, run.seq_len // 2) if run.step <= self.until * run.steps else None
