"""Methods that try out how training on one domain lowers another's loss: against formulas and in a linear world."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interventions.data_mixing.aioli import normalised
from interventions.data_mixing.skill_it import drawn
from zslx import RunView, load_intervention
from zslx.testing import Subject
from zslx.testing.laws import packs, resumes


def doubles(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def run_of(count: int, **values) -> RunView:
    return RunView(domains=[f"d{i}" for i in range(count)], steps=1000, **values)


def trained(method, transfer: np.ndarray, steps: int, losses=None) -> tuple[dict, list[np.ndarray]]:
    """The state after `steps` in a world where a step on domain j lowers the loss of i by transfer[i, j] per share;
    the shares of every step."""
    run = run_of(len(transfer))
    losses = np.full(len(transfer), 100.0) if losses is None else np.array(losses)
    state, history = method.init_state(run, torch.Generator().manual_seed(0)), []
    for step in range(1, steps + 1):
        run.step = step
        shares = np.array(method.mixture(run, state))
        assert shares.min() >= 0 and shares.sum() == pytest.approx(1)
        history.append(shares)
        losses = losses - transfer @ shares
        if step == 1 or step % method.cadence == 0:
            run.domain_losses = losses.tolist()
        method.observe(run, None, state)
    return state, history


TRANSFER = np.array([[0.2, 0.1, 0.0], [0.0, 0.3, 0.1], [-0.1, 0.0, 0.2]])


def test_aioli_has_the_reference_shares():
    odds = np.exp(2 * normalised(torch.from_numpy(TRANSFER)).sum(0).numpy())
    assert odds / odds.sum() == pytest.approx([0.27111084, 0.3858578, 0.34303136], abs=1e-7)
    assert normalised(torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(("focus", "sweeps"), [(0.625, 2), (1.0, 1), (0.5, 3)])
def test_aioli_finds_the_transfer_of_a_linear_world(focus: float, sweeps: int):
    method = load_intervention("aioli", focus=focus, sweeps=sweeps, cadence=4, period=100, rate=0.5)
    phase = 4 * (1 + 3 * sweeps)
    state, history = trained(method, TRANSFER, phase + 20)
    blocks = [history[4 * b] for b in range(1 + 3 * sweeps)]
    assert blocks[0] == pytest.approx([1 / 3] * 3)
    tried = [int(np.argmax(block)) for block in blocks[1:]]
    for sweep in range(sweeps):
        assert sorted(tried[3 * sweep : 3 * sweep + 3]) == [0, 1, 2]
    rest = (1 - focus) / 2
    assert sorted(blocks[1]) == pytest.approx([rest, rest, focus])
    a = 4 * TRANSFER  # of a block
    a = (a - a.min()) / (a - a.min()).sum()
    odds = np.exp(0.5 * a.sum(0))
    for shares in history[phase:]:
        assert shares == pytest.approx(odds / odds.sum(), rel=1e-9)
    assert state["shares"].argsort().tolist() == [0, 2, 1]


def test_aioli_learns_again_after_a_period_and_goes_on_from_its_shares():
    method = load_intervention("aioli", focus=0.7, sweeps=1, cadence=2, period=20, rate=0.5)
    _, history = trained(method, TRANSFER, 50)
    a = (TRANSFER - TRANSFER.min()) / (TRANSFER - TRANSFER.min()).sum()
    for rounds, step in ((1, 9), (1, 21), (2, 29), (2, 41)):  # phases take steps 3 to 8, 23 to 28 and 43 to 48
        odds = np.exp(0.5 * rounds * a.sum(0))
        assert history[step - 1] == pytest.approx(odds / odds.sum(), rel=1e-9)
    for step in (3, 8, 23, 28, 43, 48):
        assert max(history[step - 1]) == pytest.approx(0.7)


def test_aioli_wants_blocks_that_tell_the_domains_apart():
    with pytest.raises(ValueError, match=r"aioli\.focus=0\.2: with 4 domains it must be above 0\.25"):
        load_intervention("aioli", focus=0.2).init_state(run_of(4), torch.Generator())
    alone = load_intervention("aioli")
    assert alone.mixture(run_of(1), alone.init_state(run_of(1), torch.Generator())) == [1.0]


def test_skill_it_has_the_reference_shares():
    links = doubles([[1, 0.5, 0], [0, 1, 0.5], [0, 0, 1]])
    shares = drawn(links, doubles([[2.0, 1.0, 3.0]]), 0.5)
    assert shares.tolist() == pytest.approx([0.30450434, 0.30450434, 0.39099132], abs=1e-7)
    assert torch.allclose(drawn(links, doubles([[1.5, 0.0, 1], [0.5, 1, 2]]), 0.5), shares)  # summed over the window


def test_skill_it_tries_the_domains_once_and_follows_the_losses():
    method = load_intervention("skill_it", sweeps=2, cadence=5, window=2, rate=0.1)
    transfer = np.array([[0.04, 0.02, 0.0], [0.0, 0.05, 0.0], [0.01, -0.03, 0.03]])
    start = np.array([5.0, 6.0, 4.0])
    _, history = trained(method, transfer, 50, losses=start)
    blocks = [history[5 * b] for b in range(10)]
    assert blocks[0] == pytest.approx([1 / 3] * 3)
    assert all(sorted(block) == [0, 0, 1] for block in blocks[1:7])
    losses, falls = [start], np.zeros((3, 3))  # after each block
    for block in blocks:
        losses.append(losses[-1] - 5 * transfer @ block)
    for b in range(1, 7):
        falls[np.argmax(blocks[b])] += (losses[b] - losses[b + 1]) / losses[b] / 2
    links = np.maximum(falls, 0) / falls.max()
    for b, window in ((7, [7]), (8, [7, 8]), (9, [8, 9])):  # losses at the ends of the blocks before
        odds = np.exp(0.1 * links @ sum(losses[w] for w in window))
        assert blocks[b] == pytest.approx(odds / odds.sum(), rel=1e-9)


@pytest.mark.parametrize("name", ["aioli", "skill_it"])
def test_a_world_where_nothing_is_learned_has_equal_shares(name: str):
    method = load_intervention(name, sweeps=1, cadence=2)
    losses = [3.0, 3.0, 3.0]
    _, history = trained(method, np.zeros((3, 3)), 30, losses)
    assert history[-1] == pytest.approx([1 / 3] * 3)


@pytest.mark.medium
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["aioli", "skill_it"])
def test_a_run_is_the_same_when_it_is_resumed_among_its_trials(name: str, tmp_path):
    subject = Subject(name, tmp_path, cadence=1, sweeps=1)
    resumes(subject)
    packs(subject)
