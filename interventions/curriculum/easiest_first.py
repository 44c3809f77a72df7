"""What curricula by difficulty share: windows are ranked once, and a step draws from the easiest ones.

    c(t) = √(x (1 − start²) + start²),   x = min(1, (t − 1) / (duration · steps))
    window ← order[⌊window · ⌈c P⌉ / N⌋]     window: of the seeded walk, 0 to N − 1; order: P windows by rising score

The competence c of Platanios et al. 2019 (arXiv 1903.09848). P windows of each domain are ranked: as
many as an even share of the run reads, drawn at random, or all N. The walk of an epoch is a permutation, so that the
windows of a step are uniform among the ⌈c P⌉ easiest of their domain. From c = 1 on the walk is the baseline's.
Ranks lie in the state until then, 4
bytes a window: a resumed run does not rank again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from zslx import Intervention, RunView, State, setting

if TYPE_CHECKING:
    from zslx.text.loader import Ids, Walk

CHUNK = 1024  # windows that are scored at once


@dataclass(frozen=True)
class EasiestFirst(Intervention, ABC):
    """A curriculum that needs `scores` alone."""

    family = "curriculum"
    placebo = "windows"
    neutral = {"start": 1.0}

    start: float = setting(0.1, "share of the windows, the easiest, that step 1 draws from", low=0.001, high=1.0)
    duration: float = setting(0.5, "share of the run after which all windows are drawn", low=0.0, high=1.0)

    @abstractmethod
    def scores(self, walk: Walk, domains: Ids, windows: Ids) -> NDArray[np.float64]:
        """Difficulty (n,) of these windows, in any unit."""

    def competence(self, run: RunView) -> float:
        x = min(1.0, (run.step - 1) / (self.duration * run.steps)) if self.duration else 1.0
        return 1.0 if x == 1 else math.sqrt(x * (1 - self.start**2) + self.start**2)

    def windows(self, run: RunView, walk: Walk, state: State) -> Ids | None:
        competence = self.competence(run)
        if competence == 1:
            state.pop("order", None)
            return None
        if "order" not in state:
            state["order"] = [torch.from_numpy(self.order(run, walk, d, state)) for d in range(len(walk.counts))]
        chosen = walk.windows.copy()
        for d in np.unique(walk.domains).tolist():
            order, at = state["order"][d].cpu().numpy(), walk.domains == d
            easiest = math.ceil(competence * len(order))
            chosen[at] = order[walk.windows[at] * easiest // walk.counts[d]]
        return chosen

    def order(self, run: RunView, walk: Walk, d: int, state: State) -> NDArray[np.int32]:
        """Windows of domain d, the easiest first; equally difficult ones in the order of the text."""
        every, most = np.arange(walk.counts[d]), -(-run.steps * run.batch_size // len(run.domains))
        if most < len(every):
            every = np.sort(torch.randperm(len(every), generator=state["generator"])[:most].numpy())
        parts = (every[i : i + CHUNK] for i in range(0, len(every), CHUNK))
        scores = np.concatenate([self.scores(walk, np.full(len(part), d), part) for part in parts])
        return every[scores.argsort(kind="stable")].astype(np.int32)
