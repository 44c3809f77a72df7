"""The norm of a gradient or an update that lies in several tensors. Exact to float64."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def norm(parts: Iterable[Tensor]) -> float:
    """√Σ x² over all entries, accumulated in float64."""
    return math.sqrt(sum(float(part.detach().double().square().sum()) for part in parts))
