"""A loss curve: the steps of a run, its loss at each, and the length of its warm-up where that is known.

`curve` makes one from two sequences and checks them; curve_file.py reads one from a file. Everything else in this
package takes a `Curve`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """steps (N,) > 0 and increasing, losses (N,) > 0 in nats per token, the warm-up in steps where it is known."""

    steps: Array
    losses: Array
    warmup: int | None = None

    @property
    def log_losses(self) -> Array:
        """log L (N,)."""
        return np.log(self.losses)

    @property
    def gap(self) -> float:
        """The median number of steps between neighbouring points. Above 1, the curve was thinned."""
        return float(np.median(np.diff(self.steps))) if self.steps.size > 1 else 1.0

    def after(self, cut: float) -> Curve:
        """The steps after `cut`."""
        return self.where(self.steps > cut)

    def until(self, step: float) -> Curve:
        """The steps up to and including `step`."""
        return self.where(self.steps <= step)

    def where(self, kept: NDArray[np.bool_]) -> Curve:
        """The points chosen by a mask (N,)."""
        return replace(self, steps=self.steps[kept], losses=self.losses[kept])


def curve(steps: ArrayLike, losses: ArrayLike, warmup: int | None = None) -> Curve:
    """A loss curve from steps (N,) and losses (N,) in nats per token, ready for `fit`.

    Steps must be finite and increase, losses must be finite and above 0; anything else is a ValueError that names the
    entry. Step 0 (before training) is left out, since it has no place on a logarithmic axis. `warmup` is the number of
    steps over which the learning rate rose; a fit leaves them out.
    """
    s, y = np.asarray(steps, dtype=np.float64).ravel(), np.asarray(losses, dtype=np.float64).ravel()
    if s.size != y.size:
        raise ValueError(f"{s.size} steps but {y.size} losses")
    for name, bad in (
        ("steps must be finite and not negative", ~np.isfinite(s) | (s < 0)),
        ("steps must increase", np.diff(s, prepend=-np.inf) <= 0),
        ("losses must be finite and above 0", ~np.isfinite(y) | ~(y > 0)),
    ):
        if bad.any():
            at = int(np.argmax(bad))
            raise ValueError(f"{name}: entry {at} has step {s[at]:g}, loss {y[at]:g}")
    return Curve(steps=s[s > 0], losses=y[s > 0], warmup=warmup)
