"""The confidence term of the cross-entropy's decomposition as a penalty: L + λ log C.

    e = rank of the target among the logits (0 = top, ties do not count),  Q_e = geometric mean of the targets'
    probabilities at rank e,  C = Σ_e Q_e over the ranks that occur,  p_e = share of rank e,  q_e = Q_e / C
    ∂(L + λ log C)/∂ log s_i = −(1/N) (1 − λ q_e/p_e)       s_i the probability of target i, of rank e

Cross-entropy = error-entropy + self-alignment − log C: the penalty takes the confidence part out of the loss
(fully at λ = 1). Exact given the ranks, which have no gradient. Cost: one comparison of the logits with the
target's. Oracle: the derivative above against autograd (tests/unit/test_token_weighting.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import Intervention, RunView, State, StepView, setting


@dataclass(frozen=True)
class ConfidencePenalty(Intervention):
    """Stops rewarding the model for sharper probabilities at ranks it already gets.

    Acts through a loss of its own, over the whole batch at once: tokens of rank e lose the share λ q_e/p_e of their
    gradient, most at rare ranks with high probability. λ = 0 is the baseline. Its scale is the method's and
    is kept. C depends on the number of tokens in the batch (only ranks that occur count). No placebo: the
    control is a learning rate tuned as much.
    """

    name = "confidence_penalty"
    family = "token_weighting"
    source = "Yan et al. 2025, What Scales in Cross-Entropy Scaling Law?, arXiv 2510.04067"
    cost = "1.05: one more pass over the logits"
    needs = frozenset({"logits"})
    neutral = {"strength": 0.0}

    strength: float = setting(0.1, "λ", low=0.0, high=1.0)

    def extra_loss(self, run: RunView, view: StepView, state: State) -> Tensor:
        assert view.live_losses is not None and view.logits is not None
        return self.strength * log_confidence(view.live_losses, target_ranks(view.logits, view.targets))


def target_ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """How many logits (B, T, V) lie above the target's, (B, T)."""
    logits = logits.detach()
    return (logits > logits.gather(-1, targets[..., None])).sum(-1)


def log_confidence(losses: Tensor, ranks: Tensor) -> Tensor:
    """log C from the losses −log s_i (B, T), with their graph, and the ranks (B, T)."""
    _, slot, count = ranks.flatten().unique(return_inverse=True, return_counts=True)
    total = torch.zeros(len(count), dtype=losses.dtype, device=losses.device)
    total = total.index_add(0, slot, losses.flatten())
    return torch.logsumexp(-total / count, 0)
