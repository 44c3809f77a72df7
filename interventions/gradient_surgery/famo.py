"""FAMO: weight the groups so that all their losses fall at the same relative rate.

    z = softmax(ξ),   w_k = c z_k / (ℓ_k − b + ε),   c = 1 / Σ_k z_k / (ℓ_k − b + ε)    (so Σ w = 1, b = 0)
    after the step, with δ_k = log ℓ_k(before) − log ℓ_k(after) on the same batch:
    ξ ← Adam step along ∇_ξ zᵀδ = z ∘ (δ − zᵀδ)

Exact. Cost: a forward pass on the same batch after the step. Oracle: the published values and TorchJD's FAMO
(tests/oracles/test_famo.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import GROUPINGS, GradientMethod, RunView, State, StepStats, floating, setting

EPSILON = 1e-8  # beside a loss
BETAS = (0.9, 0.999)  # Adam's
ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class FAMO(GradientMethod):
    """Learns weights of the groups' log losses from how much each loss fell in the last steps.

    Acts in loss space: it sees losses, no gradients. Remembers one logit a group, so the groups must mean the
    same at every step; hence the default `domain` and not `sequence`, whose logits would be noise. The
    group losses here are shares of the batch loss, which changes nothing (their logs differ by a constant).
    An empty group is left as it is. The memory starts afresh when the number of groups changes.
    `weight_decay` = 1e-3 is that of the paper's Algorithm 2; the authors' code has 1e-5.
    """

    name = "famo"
    source = "Liu et al. 2023, arXiv 2306.03792"
    cost = "a second forward pass, 1.33, and the group gradients for scale=matched, 1.2 in all by domain"
    needs = frozenset({"post_losses"})
    placebo = "group_weights"

    groups: str = setting("domain", "which tokens form a group", choices=GROUPINGS)
    rate: float = setting(0.025, "learning rate of the logits", low=1e-4, high=1.0, log=True)
    weight_decay: float = setting(1e-3, "decay of the logits", low=0.0, high=1.0)

    def init_groups(self, num_groups: int, generator: torch.Generator) -> State:
        zeros = torch.zeros(num_groups, dtype=torch.float64)
        return {"generator": generator, "logits": zeros, "mean": zeros, "square": zeros, "updates": 0}

    def group_weights(self, run: RunView, gramian: Tensor, group_losses: Tensor, state: State) -> Tensor:
        return self.weights(group_losses, state).to(gramian.device, gramian.dtype)

    def weights(self, group_losses: Tensor, state: State) -> Tensor:
        """Weights (K,), float64 on the CPU, from the groups' losses (K,) and the logits in `state`."""
        losses = floating(group_losses).detach().to("cpu", torch.float64)
        if not torch.isfinite(losses).all() or (losses < 0).any():
            raise ValueError("famo: group losses must be finite and not negative")
        if len(state["logits"]) != len(losses):
            state |= self.init_groups(len(losses), state["generator"])
        if not (losses > 0).any():
            return torch.ones_like(losses)
        z = torch.where(losses > 0, state["logits"], -torch.inf).softmax(0)
        weights = z / (losses + EPSILON)
        return weights / weights.sum()

    def observe(self, run: RunView, stats: StepStats, state: State) -> None:
        assert stats.post_losses is not None
        ids, count = self.group_ids(run, stats.view, state)
        before = group_shares(stats.view.losses, ids, count)
        self.update(before, group_shares(stats.post_losses, ids, count), state)

    def update(self, before: Tensor, after: Tensor, state: State) -> None:
        """One Adam step of the logits from the group losses (K,) before and after the update."""
        present = (before > 0) & (after > 0)
        delta = torch.where(present, (before + EPSILON).log() - (after + EPSILON).log(), 0.0)
        z = torch.where(present, state["logits"], -torch.inf).softmax(0)
        gradient = z * (delta - z @ delta) + self.weight_decay * state["logits"]
        state["updates"] += 1
        state["mean"] = torch.lerp(gradient, state["mean"], BETAS[0])
        state["square"] = torch.lerp(gradient**2, state["square"], BETAS[1])
        mean = state["mean"] / (1 - BETAS[0] ** state["updates"])
        square = state["square"] / (1 - BETAS[1] ** state["updates"])
        state["logits"] = state["logits"] - self.rate * mean / (square.sqrt() + ADAM_EPSILON)


def group_shares(losses: Tensor, ids: Tensor, count: int) -> Tensor:
    """Σ of the losses (B, T) of each group over the number of tokens, (K,) in float64 on the CPU."""
    losses, ids = losses.detach().to("cpu", torch.float64), ids.cpu()
    ids = ids if ids.ndim == 2 else ids[:, None].expand_as(losses)
    return torch.zeros(count, dtype=torch.float64).index_add(0, ids.flatten(), losses.flatten()) / losses.numel()
