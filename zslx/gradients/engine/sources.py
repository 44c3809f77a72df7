"""Sources, the tensors that carry parameters into the forward, and uses, the places where they meet the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from zslx.gradients.engine.contributions import Grouping


@dataclass(eq=False)
class Source:
    """A tensor without batch dimension that stems from parameters: one of them, or computed from them alone."""

    tensor: Tensor
    names: tuple[str, ...]
    kind: str  # parameter | transposed | rows | graph
    index: Tensor | None = None  # of `rows`: which rows of the table `tensor` is


@dataclass(eq=False)
class Use:
    """One place where a source meets the batch, as rows of shape `layout`. `failed`: found to mix sequences."""

    source: Source
    what: str
    layout: tuple[int, ...]
    failed: bool = False


class Receiver(Protocol):
    """What an autograd node hands its gradients to during a measured backward: the tape."""

    sequences: int
    phase: str
    grouping: Grouping

    def check(self, use: Use | None, delta: Tensor) -> None: ...
    def wants(self, use: Use | None) -> bool: ...
    def passes(self, use: Use | None) -> bool: ...
    def collect_product(self, use: Use, rows: Tensor, inputs: Tensor, transposed: bool) -> None: ...
    def collect_dense(self, use: Use, delta: Tensor) -> None: ...
    def arrive(self, name: str, contribution: Any) -> None: ...
