"""Compressibility: windows that zlib compresses well first.

    score = bytes of zlib(text) / bytes of the text,   text: the window's, UTF-8

Ranks and pacing: easiest_first.py. Departure: none of one paper; compression ratios are a common measure of
difficulty, the pacing is Platanios et al.'s. Cost: decoding and compressing the text of the ranked
windows once, 60 µs each at 32 tokens (one CPU core). Oracle: zlib on texts written by hand
(tests/unit/test_curricula.py).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from interventions.curriculum.easiest_first import EasiestFirst

if TYPE_CHECKING:
    from zslx.text.loader import Ids, Walk


@dataclass(frozen=True)
class Compressibility(EasiestFirst):
    """Reads repetitive windows first and ever less compressible ones until all of the text is read.

    Acts on which windows a step reads, each domain's by itself; how many come from each domain stays the same. The
    placebo reads as many windows of the text, as often, without regard to how they compress. Held-out loss is
    measured on the whole held-out set.
    """

    name = "compressibility"
    source = "Platanios et al. 2019 (competence), arXiv 1903.09848; the compression ratio as difficulty: no one source"
    cost = "1.00, and decoding and compressing as many windows at the first step"

    def scores(self, walk: Walk, domains: Ids, windows: Ids) -> NDArray[np.float64]:
        return np.array([ratio(text) for text in walk.text(domains, windows)])


def ratio(text: str) -> float:
    """Compressed bytes a byte; an empty text counts as one byte."""
    given = text.encode()
    return len(zlib.compress(given, 6)) / max(1, len(given))
