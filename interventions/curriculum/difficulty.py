"""Difficulty: windows that a reference run finds easy first.

    score = mean loss of the reference run over the window's tokens

Ranks and pacing: easiest_first.py. Departure: the difficulty of Platanios et al. is a sentence's length or rarity of
words; a loss as difficulty is the transfer scoring of Hacohen & Weinshall. Cost: a forward pass of the reference over
as many windows as the run reads, at the first step. Oracle: losses given by hand (tests/unit/test_curricula.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from interventions.curriculum.easiest_first import EasiestFirst

if TYPE_CHECKING:
    from zslx.text.loader import Ids, Walk


@dataclass(frozen=True)
class Difficulty(EasiestFirst):
    """Reads windows of low reference loss first and ever more difficult ones until all of the text is read.

    Acts on which windows a step reads, each domain's by itself; how many come from each domain stays the same. The
    reference is a finished run of this platform (`reference=RUN_FOLDER`). The placebo reads as many windows, as
    often, without regard to their losses. Held-out loss is measured on the whole held-out set.
    """

    name = "difficulty"
    source = "Hacohen & Weinshall 2019, arXiv 1904.03626; Platanios et al. 2019 (competence), arXiv 1903.09848"
    cost = "at most 1.33: a forward pass of the reference over as many windows at the first step"
    needs = frozenset({"reference_losses"})

    def scores(self, walk: Walk, domains: Ids, windows: Ids) -> NDArray[np.float64]:
        assert walk.reference_losses is not None
        return walk.reference_losses(domains, windows)
