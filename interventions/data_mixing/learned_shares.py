"""What methods share that learn how much to draw of each domain.

The shares (D,) lie in the state, equal at first, as in the baseline. Each step draws by them; a method changes them in
`observe`. They are kept in float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import Intervention, RunView, State


@dataclass(frozen=True)
class LearnedShares(Intervention):
    """A method that changes `state["shares"]` in `observe`."""

    family = "data_mixing"

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        return {"generator": generator, "shares": equal_shares(run)}

    def mixture(self, run: RunView, state: State) -> list[float]:
        return state["shares"].tolist()

    def metrics(self, run: RunView, state: State) -> Mapping[str, float]:
        """The shares by which the next step draws."""
        return {f"share/{name}": share for name, share in zip(run.domains, state["shares"].tolist(), strict=True)}


def equal_shares(run: RunView) -> Tensor:
    return torch.full((len(run.domains),), 1 / len(run.domains), dtype=torch.float64)


def domain_means(values: Tensor, domains: Tensor, count: int) -> Tensor:
    """Mean (D,) over each domain's tokens of `values` (B, T), float64 on the CPU; NaN for domains without any."""
    sequences, ids = values.detach().double().mean(1).cpu(), domains.cpu()
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, ids, sequences)
    return sums / torch.bincount(ids, minlength=count)


def exponentiated(shares: Tensor, scores: Tensor) -> Tensor:
    """Shares (D,) ∝ shares · exp(scores)."""
    return (shares.log() + scores).softmax(0)
