"""Methods that learn the domains' shares, in a simulated world of domains whose right mixture is known.

Skills s_k grow as the gradients of what is read ask for it, and losses fall with them as power laws:

    L_d = e_d + Σ_k W_dk (1 + s_k)^(−a)            s ← s − rate Σ_i ∇_s L_d(i), over the sequences i of a batch

So a sequence of domain e lowers the loss of d by rate · ⟨∇L_d, ∇L_e⟩: the transfer matrix is the Gramian. The domains:

    core     teaches a skill that nearly all need
    mixed    needs that and one of its own
    easy     is learned already, next to it
    noise    has a high loss that hardly falls, gradients that hardly agree, and undoes what the others need
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from zslx import RunView, StepView, load_intervention
from zslx.intervention.base import StepStats

DOMAINS = ("core", "mixed", "easy", "noise")
SKILLS = np.array([[1.5, 0.0, 0.0, 0.0], [0.8, 1.0, 0.0, 0.0], [0.3, 0.0, 0.2, 0.0], [-0.3, 0.0, 0.0, 0.3]])
LEAST = np.array([2.0, 2.0, 1.8, 5.0])  # e
EXPONENT, RATE = 0.5, 0.05
BATCH, EACH, STEPS = 32, 8, 600
EQUAL, BEST = np.full(4, 0.25), np.array([0.3, 0.6, 0.0, 0.1])  # fixed shares; best of a grid, as a test checks
SPREAD = np.array([1.0, 1.0, 1.0, 4.0])  # variance of a sequence's gradient


@dataclass
class World:
    seed: int = 0
    skills: np.ndarray = field(default_factory=lambda: np.array([0.0, 0.0, 3.0, 0.0]))

    def __post_init__(self) -> None:
        self.draws = np.random.default_rng(self.seed)

    @property
    def losses(self) -> np.ndarray:
        return LEAST + SKILLS @ (1 + self.skills) ** -EXPONENT

    @property
    def gradients(self) -> np.ndarray:
        return -SKILLS * EXPONENT * (1 + self.skills) ** (-EXPONENT - 1)

    def read(self, counts: np.ndarray) -> None:
        self.skills = np.maximum(self.skills - RATE * counts @ self.gradients, -0.5)


def counts_of(shares: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    edges = np.cumsum(shares) / shares.sum() * BATCH
    edges[-1] = BATCH
    return np.diff(np.floor(edges + draws.random()), prepend=0)


def fixed(shares: np.ndarray, steps: int = STEPS) -> World:
    """The world after a run with fixed shares."""
    world = World()
    for _ in range(steps):
        world.read(BATCH * shares)
    return world


def final(shares: np.ndarray) -> float:
    """The mean loss after a run with fixed shares."""
    return float(fixed(shares).losses.mean())


def learned() -> World:
    """The world after a long run: what its losses are below the present ones can still be learned."""
    return fixed(BEST, 4 * STEPS)


def run(method, steps: int = STEPS) -> tuple[dict[str, float], np.ndarray]:
    """The mean shares of the domains over the second half of a run, and the losses at its end."""
    world, reference = World(), learned()
    count = len(DOMAINS)
    view = RunView(steps=steps, batch_size=BATCH, seq_len=2, domains=DOMAINS, domain_tokens=[1] * count)
    view.control_sequences = [EACH] * count
    state, seen = method.init_state(view, torch.Generator().manual_seed(0)), []
    for step in range(1, steps + 1):
        view.step = step
        shares = np.full(count, 1 / count)
        if method.overrides("mixture"):
            shares = np.array(method.mixture(view, state))
        counts = counts_of(shares, world.draws)
        domains = np.repeat(np.arange(count), counts.astype(int))
        losses = world.losses[domains][:, None] + world.draws.normal(0, 0.05, (BATCH, 2))
        batch = StepView(
            tokens=torch.zeros(BATCH, 2, dtype=torch.int64),
            targets=torch.zeros(BATCH, 2, dtype=torch.int64),
            losses=torch.from_numpy(losses),
            domains=torch.from_numpy(domains),
        )
        if method.overrides("token_weights"):
            batch.reference_losses = torch.from_numpy(np.repeat(reference.losses[domains][:, None], 2, 1))
            weights = method.token_weights(view, batch, state).numpy()[:, 0]
            counts = np.bincount(domains, weights * BATCH / weights.sum(), count)
            shares = counts / BATCH
        if step == 1 or step % method.cadence == 0:
            noise = np.diag(SPREAD / EACH)
            view.domain_gramian = torch.from_numpy(world.gradients @ world.gradients.T + noise)
            view.domain_variance = torch.from_numpy(SPREAD)
        world.read(counts)
        if step == 1 or step % method.cadence == 0:
            view.domain_losses = world.losses.tolist()
        if method.overrides("observe"):
            method.observe(view, StepStats(view=batch), state)
        seen.append(shares)
    means = np.mean(seen[steps // 2 :], axis=0).tolist()
    return dict(zip(DOMAINS, means, strict=True)), world.losses


def test_the_best_fixed_shares_are_those_of_a_grid():
    tenths = itertools.product(range(11), repeat=4)
    grid = [np.array(shares) / 10 for shares in tenths if sum(shares) == 10]
    assert min(grid, key=final).tolist() == BEST.tolist()


# At rates for gradients as small as this world's.
SETTINGS = {
    "ado": {},
    "doge": {"rate": 3.0},
    "pike": {"zeta1": 1.0, "zeta2": 1.0},
    "grape": {"rate": 6.0, "task_rate": 6.0},
    "interference_mixing": {},
    "skill_it": {},
    "aioli": {"rate": 3.0},
}


@pytest.mark.medium
@pytest.mark.parametrize("name", SETTINGS)
def test_more_is_read_of_what_helps(name: str):
    found, losses = run(load_intervention(name, **SETTINGS[name]))
    assert min(found["core"], found["mixed"]) > max(found["easy"], found["noise"]) + 0.02, found
    gain = (final(EQUAL) - losses.mean()) / (final(EQUAL) - final(BEST))
    assert gain > 0.3, gain


def test_a_bandit_that_is_paid_by_the_loss_reads_noise():
    found, losses = run(load_intervention("odm"))
    assert sorted(found, key=lambda name: found[name]) == ["easy", "core", "mixed", "noise"]  # as the losses
    assert list(found.values()) == pytest.approx(losses / losses.sum(), abs=0.02)
    assert losses.mean() > final(EQUAL)


def test_excess_loss_leads_to_the_domain_that_is_furthest_behind():
    found, losses = run(load_intervention("doremi"))
    assert found["mixed"] > found["core"] > max(found["easy"], found["noise"])  # in the order of what is left to learn
    assert max(losses - learned().losses) < max(fixed(EQUAL).losses - learned().losses)
