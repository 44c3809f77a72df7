"""Gramians (K, K), float64, that a weighting must survive: small, singular, opposed, badly scaled."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def hard_gramians() -> Iterator[tuple[str, Tensor]]:
    """(what is hard about it, Gramian)."""
    draws = torch.Generator().manual_seed(0)

    def gradients(groups: int, width: int) -> Tensor:
        return torch.randn(groups, width, generator=draws, dtype=torch.float64)

    one = gradients(6, 1)
    cases = {
        "one group": gradients(1, 8),
        "one group without gradient": torch.zeros(1, 8, dtype=torch.float64),
        "no gradient at all": torch.zeros(6, 8, dtype=torch.float64),
        "a group without gradient": torch.cat([gradients(5, 8), torch.zeros(1, 8, dtype=torch.float64)]),
        "rank 1": one @ gradients(1, 8),
        "rank 2 of 6": gradients(6, 2) @ gradients(2, 8),
        "equal gradients": gradients(1, 8).expand(6, 8),
        "two opposed groups": torch.cat([one[:1], -one[:1]]) @ gradients(1, 8),
        "three groups that cancel": torch.tensor([[1.0, 0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]]).double(),
        "orthogonal gradients": torch.eye(6, dtype=torch.float64),
        "many groups": gradients(32, 8),
        "norms from 1e-8 to 1e8": gradients(6, 8) * torch.logspace(-8, 8, 6, dtype=torch.float64)[:, None],
    }
    for what, g in cases.items():
        yield what, g @ g.T
    whole = gradients(6, 8)
    for scale in (1e-30, 1e-15, 1e15, 1e30):
        yield f"entries about {scale:g}", whole @ whole.T * scale
