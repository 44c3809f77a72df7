"""No intervention: the baseline arm."""

from __future__ import annotations

from dataclasses import dataclass

from zslx import Intervention


@dataclass(frozen=True)
class NoIntervention(Intervention):
    """Does nothing: every hook is left alone, so the run is bitwise the plain run.

    The arm that runs `none` is the baseline of a comparison.
    """

    name = "none"
    family = "controls"
    source = ""
    cost = "1.00"
    neutral = {}
