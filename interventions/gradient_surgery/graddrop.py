"""GradDrop: at each coordinate keep the positive or the negative parts of the group gradients, by a draw.

    P = ½ (1 + Σg / Σ|g|);   U uniform;   keep the positive parts where U < P, else the negative ones
    Σ positive parts = ½ (Σ|g| + Σg),   Σ negative parts = ½ (Σg − Σ|g|)

Exact, from the engine's sums; its expectation is the plain gradient. Cost: the engine with absolute sums, and
one uniform number a parameter. Oracle: the same on full gradients (tests/oracles/test_elementwise.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import CoordinateSums, GradientMethod, RunView, State, setting


@dataclass(frozen=True)
class GradDrop(GradientMethod):
    """Lets one sign win at every coordinate, at random in proportion to how much gradient has it.

    Acts elementwise. Unbiased, and noisier the more the groups cancel. `leak` is the share of the plain
    gradient that is kept. The variant on parameter gradients (that of the paper's appendix and of TorchJD); the
    paper's own layer acts on gradients of a shared representation.
    """

    name = "graddrop"
    source = "Chen et al. 2020, arXiv 2010.06808"
    cost = "at most 1.35; absolute sums take one more copy of the gradient"
    sums = ("abs_sum",)
    placebo = "elementwise"
    neutral = {"leak": 1.0}

    leak: float = setting(0.0, "share of the plain gradient that is kept", low=0.0, high=1.0)

    def combine(self, run: RunView, sums: CoordinateSums, state: State) -> Tensor:
        assert sums.abs_sum is not None
        if self.leak == 1:
            return sums.sum
        # U < P  ⇔  (2U − 1) Σ|g| − Σg < 0: the sign of `kept` on the way. In place, since fresh memory costs more
        # than the arithmetic.
        kept = uniform(sums.sum, state["generator"])
        kept.mul_(2).sub_(1).mul_(sums.abs_sum).sub_(sums.sum)
        torch.copysign(sums.abs_sum, kept, out=kept)
        torch.sub(sums.sum, kept, out=kept).div_(2)
        return torch.lerp(kept, sums.sum, self.leak) if self.leak else kept

    def mask(self, sums: CoordinateSums, combined: Tensor) -> Tensor:
        """+1 where the parts of the sum's own sign were kept, else −1. The factor has no bound: Σ|g| / |Σg|."""
        kept = combined - self.leak * sums.sum  # (1 − leak) × the parts
        return torch.where((2 * kept - (1 - self.leak) * sums.sum < 0) == (sums.sum < 0), 1.0, -1.0)

    def apply_mask(self, sums: CoordinateSums, mask: Tensor) -> Tensor:
        assert sums.abs_sum is not None
        if self.leak == 1:
            return sums.sum
        kept = (sums.sum + torch.where(sums.sum < 0, -mask, mask) * sums.abs_sum) / 2
        return torch.lerp(kept, sums.sum, self.leak)


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers of the shape and on the device of `like`, decided by a CPU generator."""
    if like.device.type == "cpu":
        return torch.rand(like.shape, generator=generator, dtype=like.dtype)
    seed = int(torch.randint(2**62, (), generator=generator))
    device_generator = torch.Generator(like.device).manual_seed(seed)
    return torch.rand(like.shape, generator=device_generator, dtype=like.dtype, device=like.device)
