"""Held-out loss on the fixed set: of all tokens, of each domain, and of rare and frequent tokens apart.

The set is the same for all arms of a text, whatever they trained on: an arm that leaves a domain or the rare tokens out
is charged for it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zslx.instruments.domain_interference import domain_interference
from zslx.instruments.loss_interference import interference
from zslx.instruments.rank_decomposition import Decomposition
from zslx.model.losses import arithmetic, cross_entropy, token_losses
from zslx.text.loader import Batch
from zslx.text.token_frequency import frequency_groups

FREQUENCY_GROUPS = 4  # of the targets, each about a quarter of the training text; group 0 the most frequent


class HeldOut:
    """Per-token losses of the fixed held-out set, in passes that leave nothing behind.

    Always in the dtype of the parameters, float32 at least: loss changes of a single update are of the size of
    bfloat16's rounding, which would pass for interference. `token_counts` (V,) are those of the training text.
    """

    def __init__(self, batch: Batch, domains: tuple[str, ...], *, token_counts: Tensor, chunk: int, dtype: str):
        self.batch, self.domains, self.chunk, self.dtype = batch, domains, max(1, chunk), dtype
        groups = frequency_groups(token_counts.to(batch.targets.device), FREQUENCY_GROUPS)[batch.targets]
        self._by_domain = _members(batch.domains, domains)
        self._by_frequency = _members(groups, [str(group) for group in range(FREQUENCY_GROUPS)])

    @torch.no_grad()
    def losses(
        self,
        model: nn.Module,
        weights: Mapping[str, Tensor] | None = None,
        decomposition: Decomposition | None = None,
    ) -> Tensor:
        """Losses (S, T) in nats, with `weights` in place of the model's own where given.

        A `decomposition` is given the ranks of the targets in the same pass.
        """
        return self.losses_of(self.parts(), model, weights, decomposition)

    def losses_of(
        self,
        parts: Sequence[Batch],
        model: nn.Module,
        weights: Mapping[str, Tensor] | None,
        decomposition: Decomposition | None,
    ) -> Tensor:
        """As `losses`, of these parts of the set."""
        if weights is not None:
            model = _WithWeights(model, dict(weights))
        found = []
        for part in parts:
            logits = model(part.tokens)
            losses = cross_entropy(logits, part.targets)
            if decomposition is not None:
                decomposition.add(logits, part.targets, losses)
            found.append(losses)
        return torch.cat(found)

    def training_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Losses (B, T) of any batch in the arithmetic of the training, to set beside those of its steps."""
        with torch.no_grad(), arithmetic(self.dtype, self.batch.tokens.device):
            return token_losses(model, batch)

    def parts(self) -> list[Batch]:
        return self.batch.parts(self.chunk)

    def shipped(
        self,
        model: nn.Module,
        losses: Tensor,
        average: Mapping[str, Tensor] | None,
        decomposition: Decomposition | None,
    ) -> dict[str, object]:
        """The record of the weights that the arm would ship: of `average` where given, with the `decomposition` of its
        losses, else of the model, whose losses (S, T) these are."""
        record = self.record(losses)
        if average is None:
            return record
        return self.record(self.losses(model, average, decomposition)) | {
            "heldout_loss_trained": record["heldout_loss"]
        }

    def record(self, losses: Tensor) -> dict[str, object]:
        """Mean loss over all tokens, by domain, and by frequency of the target; groups without a token are left out."""
        losses = losses.double()
        by_sequence = losses.mean(1)
        return {
            "heldout_loss": float(losses.mean()),
            "heldout_by_domain": {name: float(by_sequence[at].mean()) for name, at in self._by_domain.items()},
            "heldout_by_frequency": {name: float(losses[at].mean()) for name, at in self._by_frequency.items()},
        }

    def interference(self, changes: Tensor) -> dict[str, Any]:
        """D and M of the changes (S, T) of the tokens' losses, and what they are between the domains."""
        by_domain = domain_interference(changes, self.batch.domains, self.domains)
        return interference(changes) | {"by_domain": by_domain}


def _members(groups: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Where in `groups` each group lies, by name; those that are nowhere are left out."""
    found = {name: groups == group for group, name in enumerate(names)}
    return {name: at for name, at in found.items() if bool(at.any())}


class _WithWeights(nn.Module):
    """A model called with other weights (the tied ones follow their first name)."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]):
        super().__init__()
        self._call = lambda tokens: functional_call(model, weights, (tokens,))

    def forward(self, tokens: Tensor) -> Tensor:
        return self._call(tokens)
