"""The domains in a run's loss changes from step t/2 to t, as its probe lines have them under `dtt.by_domain`.

What the numbers are: zslx/instruments/domain_interference.py. Nothing is computed here. A doubling whose numbers are
no matrix over its own domains is a ValueError that names file and step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Doubling:
    """One of them: from step `start` to step `end`, over D domains. What was not defined is nan."""

    start: int
    end: int
    names: tuple[str, ...]
    between: np.ndarray  # (D, D), on the diagonal within
    shift: np.ndarray  # (D,) nats per token
    between_share: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Doublings:
    """All R of a run, in the order of their steps; `rows` are their probe lines."""

    names: tuple[str, ...]
    rows: np.ndarray  # (R,)
    starts: np.ndarray  # (R,)
    between: np.ndarray  # (R, D, D)
    shift: np.ndarray  # (R, D)
    between_share: np.ndarray  # (R,)

    def at(self, place: int, steps: np.ndarray) -> Doubling:
        """One of them; `steps` are those of the probe lines."""
        return Doubling(
            start=int(self.starts[place]),
            end=int(steps[self.rows[place]]),
            names=self.names,
            between=self.between[place],
            shift=self.shift[place],
            between_share=float(self.between_share[place]),
        )


def doublings(probes: Sequence[dict[str, Any]], path: Path) -> Doublings | None:
    """The doublings in the probe lines of the file `path`; None where there are none."""
    rows = [
        row for row, line in enumerate(probes) if isinstance(found := line.get("dtt"), dict) and "by_domain" in found
    ]
    if not rows:
        return None
    changes = [probes[row]["dtt"]["by_domain"] for row in rows]
    try:
        names = tuple(changes[0]["names"])
        found = Doublings(
            names=names,
            rows=np.array(rows, dtype=np.int32),
            starts=np.array([probes[row]["dtt"]["from"] for row in rows], dtype=np.float64),
            between=np.array([c["between"] for c in changes], dtype=np.float64),
            shift=np.array([c["shift"] for c in changes], dtype=np.float64),
            between_share=np.array([c["between_share"] for c in changes], dtype=np.float64),
        )
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path}: a dtt.by_domain lacks names, between, shift or between_share, or has no numbers"
        ) from None
    shapes = (len(rows), len(names), len(names)), (len(rows), len(names))
    same = all(tuple(c["names"]) == names for c in changes) and all(isinstance(name, str) for name in names)
    if not same or (found.between.shape, found.shift.shape) != shapes or not np.isfinite(found.starts).all():
        raise ValueError(f"{path}: the matrices in dtt.by_domain are not all over the same domains")
    return found
