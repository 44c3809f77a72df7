"""What methods share that learn how training on one domain lowers the loss of another, by trying it in the run.

The run is cut into blocks of `cadence` steps, and the domains' losses on the control set are measured at the end of
each. In a block of the learning phase one domain is drawn more than the others, each domain in turn, in an order that
is drawn anew for every sweep:

    F_ij = mean over the sweeps of the fall of domain i's loss in a block that draws mostly domain j

The first block of the run draws equal shares: its end gives the losses from which the first fall counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.data_mixing.learned_shares import LearnedShares, equal_shares
from zslx import RunView, State, StepStats


@dataclass(frozen=True)
class ByBlocks(LearnedShares, ABC):
    """A method whose learning phase fills `state["falls"]`. `state["order"]` has the domains yet to be tried."""

    needs = frozenset({"domain_losses"})
    sweeps = 1  # without annotation, so that a method may make it a setting

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        zeros = torch.zeros(len(run.domains), len(run.domains), dtype=torch.float64)
        state = super().init_state(run, generator)
        return state | {"learned": state["shares"], "falls": zeros, "order": [], "trying": None, "before": None}

    @abstractmethod
    def trial(self, run: RunView, domain: int) -> Tensor:
        """Shares (D,) of a block that draws mostly this domain."""

    @abstractmethod
    def begins(self, run: RunView, state: State) -> bool:
        """Whether a learning phase begins with the next block, when none is under way."""

    @abstractmethod
    def learn(self, run: RunView, state: State) -> None:
        """Make `state["learned"]`, the shares outside of learning phases, of the falls so far."""

    def observe(self, run: RunView, stats: StepStats, state: State) -> None:
        if run.step % self.cadence:
            return
        assert run.domain_losses is not None
        losses = torch.tensor(run.domain_losses, dtype=torch.float64)
        if state["trying"] is not None:
            falls = state["falls"].clone()
            falls[:, state["trying"]] += self.fall(state["before"], losses) / self.sweeps
            state["falls"] = falls
        elif self.begins(run, state):
            state["falls"] = torch.zeros_like(state["falls"])
            state["order"] = [d for _ in range(self.sweeps) for d in self.shuffled(run, state)]
        state["before"] = losses
        if state["order"]:
            state["trying"], *state["order"] = state["order"]
            state["shares"] = self.trial(run, state["trying"])
        else:
            self.learn(run, state)
            state["trying"], state["shares"] = None, state["learned"]

    @staticmethod
    def shuffled(run: RunView, state: State) -> list[int]:
        return torch.randperm(len(run.domains), generator=state["generator"]).tolist()

    @staticmethod
    def fall(before: Tensor, after: Tensor) -> Tensor:
        return before - after


def mostly(run: RunView, domain: int, focus: float) -> Tensor:
    """Shares (D,): `focus` for one domain, what is left in equal parts for the others."""
    count = len(run.domains)
    if count == 1:
        return equal_shares(run)
    shares = torch.full((count,), (1 - focus) / (count - 1), dtype=torch.float64)
    shares[domain] = focus
    return shares
