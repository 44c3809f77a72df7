"""Numbers that stay on the device until somebody asks: a transfer a step would keep a GPU waiting.

A run by itself has plain floats. The runs of a pack share a `Block` of losses and norms, which comes over as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class Diverged(Exception):
    """The loss or the gradient is not finite. Found before any method sees it: no plugin is blamed for it."""


def finite(what: str, number: float, step: int) -> float:
    """`number`, or Diverged if it is not finite."""
    if not math.isfinite(number):
        raise Diverged(f"{what} is {number} at step {step}")
    return number


class Block:
    """Rows of numbers on a device, one number a run in each; `fetch` brings them all over at once."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.values: list[list[float]] | None = None

    def add(self, row: Tensor) -> int:
        """Keep a row (R,); its index."""
        self.rows.append(row)
        return len(self.rows) - 1

    def fetch(self) -> list[list[float]]:
        """The numbers by row and run. The block takes no further row then."""
        if self.values is None:
            self.values = torch.stack(self.rows).tolist()
            self.rows = []
        return self.values


@dataclass(frozen=True)
class Later:
    """One number of a block."""

    block: Block
    row: int
    run: int

    def __float__(self) -> float:
        return self.block.fetch()[self.row][self.run]


Number = float | Later


def known(number: Number | None) -> bool:
    """Whether the number is here already."""
    return not isinstance(number, Later) or number.block.values is not None
