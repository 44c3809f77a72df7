"""ADO: draw more of the domains whose loss falls fastest, by power laws fitted while the run trains.

    L̂_d(n) = e^ε_d + e^a_d n^−α_d                   fitted every `every` steps (power_law.py), n sequences so far
    λ_d = max(α_d, .05) (L̂_d(n) − e^ε_d) / n        how fast the loss falls
    ρ ∝ μ h^½ λ, then every share .01 at least       μ the prior; h ← .9 h + .1 (the batch's own shares)
    p = .9 p̄ + .1 ρ,   p̄ ← (1 − 1/(t + 1)) p̄ + ρ / (t + 1)

Before a fit the losses, one a step, go through a Savitzky-Golay filter, cubic, over 101 steps. Departures: of a long
history at most POINTS steps are fitted, evenly spread (the authors: every tenth); the credit is h^½, as in the paper,
where the authors' code has (h (1 − h))^½. Cost: the fits, some 80 ms a domain.
Oracle: the formulas by other lines, planted laws (tests/unit/test_mixing.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import savgol_filter
from torch import Tensor

from interventions.data_mixing.learned_shares import LearnedShares, domain_means, equal_shares
from interventions.data_mixing.power_law import Array, fit_power_law
from zslx import RunView, State, StepStats, setting

LEAST_EXPONENT, LEAST_SHARE = 0.05, 0.01
CREDIT = 0.5  # power of the history h
MEMORY, CONSERVED = 0.9, 0.9
FILTER, DEGREE = 101, 3  # steps and degree of the filter
POINTS = 300
PRIORS = ("equal", "size")


@dataclass(frozen=True)
class ADO(LearnedShares):
    """Draws domains by how fast their loss still falls, as extrapolated from the run's own losses.

    Acts on the mixture. Domains that are read anyway get the credit for what they learn (h). Until the first fit, and
    where a fit fails, the prior is drawn. The paper's prior is the natural one, `size`; here it is what the baseline
    draws, equal shares, unless that is asked for. The first `skip` steps are left out of the fits: theirs is no power
    law. In the authors' settings skip = every = 1000 of 60,000 steps. A batch without a domain repeats that domain's
    last loss. There is no placebo: its control is the baseline at other learning rates.
    """

    name = "ado"
    source = "Jiang et al. 2024, arXiv 2410.11820, with the constants of the authors' code"
    cost = "1.00 and the fits, some 80 ms a domain every 50 steps"

    skip: int = setting(50, "first steps, left out of the fits", low=0, high=1_000_000)
    every: int = setting(50, "steps from one fit to the next", low=1, high=1_000_000)
    prior: str = setting("equal", "shares to begin with: equal, or by the size of the text", choices=PRIORS)

    def init_state(self, run: RunView, generator: torch.Generator) -> State:
        prior = self.prior_shares(run)
        kept = torch.zeros(run.steps, len(prior) + 1, dtype=torch.float64)  # a row a step: sequences, losses
        return {
            "generator": generator,
            "shares": prior,
            "mean": prior,
            "drawn": prior,
            "history": kept,
            "laws": None,
        }

    def prior_shares(self, run: RunView) -> Tensor:
        if self.prior == "equal":
            return equal_shares(run)
        sizes = torch.tensor([float(size) for size in run.domain_tokens], dtype=torch.float64)
        return sizes / sizes.sum()

    def observe(self, run: RunView, stats: StepStats, state: State) -> None:
        """What this step adds to the histories, the fits, and the shares of the next step."""
        self.remember(run, stats, state)
        if run.step > self.skip and run.step % self.every == 0:
            laws = fits(state["history"][: run.step].numpy(), self.skip)
            state["laws"] = torch.from_numpy(laws) if np.isfinite(laws).all() else state["laws"]
        if state["laws"] is None:
            return
        fast = speeds(state["laws"], float(state["history"][: run.step, 0].sum()))
        wanted = at_least(self.prior_shares(run) * state["drawn"] ** CREDIT * fast, LEAST_SHARE)
        step = run.step + 1  # the one that draws by them
        state["shares"] = CONSERVED * state["mean"] + (1 - CONSERVED) * wanted
        state["mean"] = torch.lerp(state["mean"], wanted, 1 / (step + 1))

    def remember(self, run: RunView, stats: StepStats, state: State) -> None:
        view, count = stats.view, len(run.domains)
        if run.step > len(state["history"]):  # a run that goes on beyond its planned end
            state["history"] = torch.cat([state["history"], torch.zeros_like(state["history"])])
        losses, history = domain_means(view.losses, view.domains, count), state["history"]
        last = history[run.step - 2, 1:] if run.step > 1 else view.losses.double().mean().cpu()
        row = torch.where(losses.isnan(), last, losses)
        history[run.step - 1] = torch.cat([torch.tensor([view.losses.numel() / run.seq_len]).to(row), row])
        drawn = torch.bincount(view.domains.cpu(), minlength=count) / len(view.domains)
        state["drawn"] = MEMORY * state["drawn"] + (1 - MEMORY) * drawn.double()


def fits(history: Array, skip: int) -> Array:
    """Parameters (D, 3) of the domains' power laws from the steps so far, each (sequences, losses (D,))."""
    steps, read, losses = len(history), history[:, 0].cumsum(), history[:, 1:]
    window = min(FILTER, steps - 1 + steps % 2)  # odd
    if window > DEGREE:
        losses = savgol_filter(losses, window, DEGREE, axis=0)
    chosen = np.unique(np.linspace(skip, steps - 1, POINTS).astype(int))
    # The filter may overshoot below what is a loss.
    return np.array([fit_power_law(read[chosen], column.clip(1e-6)) for column in losses[chosen].T])


def speeds(laws: Tensor, read: float) -> Tensor:
    """How fast each loss falls (D,), nats per sequence, after `read` sequences of all domains."""
    a, _, alpha = laws.unbind(1)
    return alpha.clamp(min=LEAST_EXPONENT) * (a.exp() * read**-alpha) / read


def at_least(odds: Tensor, share: float) -> Tensor:
    """Shares (D,) ∝ odds, raised to `share` before they are scaled to sum 1 (so the least may end a little below)."""
    raised = (odds / odds.sum()).clamp(min=share)
    return raised / raised.sum()
