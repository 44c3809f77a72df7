"""Weights solved for all runs of a pack at once are, bit for bit, those of each run alone, whatever the others are."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zslx.intervention.base import RunView
from zslx.intervention.composed import InterventionError, Methods, group_weights
from zslx.intervention.discovery import discover
from zslx.intervention.gradient_method import GradientMethod
from zslx.intervention.registry import load_class, load_intervention
from zslx.testing.subject import plain
from zslx.training.group_weights import GroupWeights, weigh
from zslx.training.numbers import Diverged
from zslx.training.pack import train_pack

OWN = [n for n, [s, *_] in discover().items() if (s.module or "").startswith("interventions.") and n != "placebo"]
PACKED = [n for n in OWN if issubclass(cls := load_class(n), GradientMethod) and cls.solves_packs()]
pytestmark = pytest.mark.usefixtures("cache")

NAMES = [*PACKED, "placebo:pcgrad", "placebo:adacons"]
STEPS = 3  # what a method remembers counts, too


def methods(name: str, groups: int, runs: int) -> list[Methods]:
    """Of runs that differ in their seed."""
    every = []
    for seed in range(runs):
        view = RunView(step=1, steps=9, batch_size=groups, config=plain({"train.seed": seed, "intervention": name}))
        every.append(Methods([load_intervention(name)], view))
    return every


@st.composite
def gramians(draw: st.DrawFn) -> Tensor:
    """(R, K, K): small, with groups without gradient, of low rank, of very different lengths, or all alike."""
    groups, seed = draw(st.integers(1, 9)), draw(st.integers(0, 10**6))
    draws = torch.Generator().manual_seed(seed)
    found = []
    for kind in draw(
        st.lists(st.sampled_from(("any", "zero", "some zero", "rank 1", "lengths", "alike")), min_size=2, max_size=6)
    ):
        width = 1 if kind == "rank 1" else 2 * groups
        g = torch.randn(groups, width, generator=draws, dtype=torch.float64)
        if kind in ("zero", "some zero"):
            g[: groups if kind == "zero" else groups // 2] = 0
        if kind == "lengths":
            g *= torch.logspace(-4, 4, groups, dtype=torch.float64)[:, None]
        found.append((g[:1] if kind == "alike" else g).expand(groups, -1))
    return torch.stack([g @ g.T for g in found])


def losses_of(gramians: Tensor) -> Tensor:
    """A group without gradient is empty in every second run."""
    squares = gramians.diagonal(dim1=1, dim2=2)
    kept = (squares > 0) | (torch.arange(len(gramians)) % 2 == 0)[:, None]
    return torch.where(kept, 1.0 + torch.arange(squares.shape[1]), 0.0)


def same(one: object, other: object) -> bool:
    """Weights, or what a method that finds none says."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and str(one) == str(other)


def test_there_are_methods_with_a_packed_form():
    own = {"pcgrad", "gradvac", "imtl_g", "config", "aligned_mtl", "adacons", "fairgrad", "nash_mtl"}
    assert set(PACKED) == own | {"alignment", "random"}


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=12)
@given(gramians())
def test_at_once_is_one_after_the_other(name: str, gramians: Tensor):
    runs, groups, _ = gramians.shape
    together, alone = (methods(name, groups, runs) for _ in range(2))
    losses = losses_of(gramians)
    for _ in range(STEPS):
        found = group_weights(together, gramians, losses)
        for r, own in enumerate(alone):
            [expected] = group_weights([own], gramians[r : r + 1], losses[r : r + 1])
            assert same(found[r], expected), f"run {r}: {found[r]}, alone {expected}"


@pytest.mark.medium
@pytest.mark.parametrize("groups", [16, 33, 64])  # where sums and products go in blocks
@pytest.mark.parametrize("name", NAMES)
def test_many_groups_at_once_are_one_run_after_the_other(name: str, groups: int):
    draws = torch.Generator().manual_seed(groups)
    g = torch.randn(3, groups, groups + 7, generator=draws, dtype=torch.float64)
    gramians, losses = g @ g.mT, 1.0 + torch.rand(3, groups, generator=draws, dtype=torch.float64)
    found = weigh(methods(name, groups, 3), gramians, losses, 1)
    for r, own in enumerate(methods(name, groups, 3)):
        [expected] = weigh([own], gramians[r : r + 1], losses[r : r + 1], 1)
        one = found[r]
        assert isinstance(one, GroupWeights) and isinstance(expected, GroupWeights)
        assert torch.equal(one.weights, expected.weights) and one.record == expected.record


@pytest.mark.parametrize("name", ["fairgrad", "nash_mtl"])
def test_gradients_whose_squares_underflow_are_weighed_as_longer_ones(name: str):
    draws = torch.Generator().manual_seed(0)
    g = torch.randn(4, 6, generator=draws, dtype=torch.float64)
    method = load_intervention(name, **({"max_norm": 0.0} if name == "nash_mtl" else {}))
    tiny, usual = method.weights(g @ g.T * 1e-170, torch.ones(4)), method.weights(g @ g.T, torch.ones(4))
    assert tiny is not None and usual is not None
    assert (tiny / tiny.sum()).tolist() == pytest.approx((usual / usual.sum()).tolist())


@pytest.mark.parametrize("name", ["pcgrad", "aligned_mtl", "placebo:config", "mgda"])
def test_a_run_whose_gradient_is_not_finite_is_no_other_runs_concern(name: str):
    draws = torch.Generator().manual_seed(0)
    g = torch.randn(4, 5, 6, generator=draws, dtype=torch.float64)
    good = g @ g.mT
    losses = torch.ones(4, 5, dtype=torch.float64)
    expected = weigh(methods(name, 5, 4), good, losses, 1)
    for bad in (float("nan"), float("inf")):
        spoiled = good.clone()
        spoiled[2, 1, 3] = bad
        found = weigh(methods(name, 5, 4), spoiled, losses, 1)
        assert isinstance(found[2], Diverged)
        for r in (0, 1, 3):
            one, other = found[r], expected[r]
            assert isinstance(one, GroupWeights) and isinstance(other, GroupWeights)
            assert torch.equal(one.weights, other.weights) and one.record == other.record


@pytest.mark.parametrize("how", ["raises", "not finite", "the wrong shape"])
def test_a_packed_form_that_fails_for_one_run_fails_that_run_alone(how: str, monkeypatch: pytest.MonkeyPatch):
    cls = load_class("pcgrad")
    true = cls.packed_solve

    def broken(self, gramians, losses, states):
        weights = true(self, gramians, losses, states)
        bad = [bool(g[0, 0] == 7) for g in gramians]
        if any(bad):
            if how == "raises":
                raise SystemExit("on purpose")
            if how == "the wrong shape":
                return weights[:, :-1]
            weights[bad] = torch.nan
        return weights

    draws = torch.Generator().manual_seed(0)
    g = torch.randn(3, 4, 6, generator=draws, dtype=torch.float64)
    good = g @ g.mT
    losses = torch.ones(3, 4, dtype=torch.float64)
    whole, spoiled = methods("pcgrad", 4, 3), methods("pcgrad", 4, 3)
    expected = [group_weights(whole, good, losses) for _ in range(2)]
    monkeypatch.setattr(cls, "packed_solve", broken)
    gramians = good.clone()
    gramians[1, 0, 0] = 7
    for step in range(2):  # the draws of the others go on where they were
        found = group_weights(spoiled, gramians, losses)
        assert isinstance(found[1], InterventionError) and "'pcgrad', hook group_weights, step 1" in str(found[1])
        for r in (0, 2):
            assert torch.equal(found[r], expected[step][r])


def test_a_subclass_with_a_form_for_one_run_alone_is_asked_for_each():
    cls = load_class("pcgrad")

    class Other(cls):
        def solve(self, gramian, losses, state):
            return super().solve(gramian, losses, state) + 1

    class Above(Other):
        def packed_solve(self, gramians, losses, states):
            return super().packed_solve(gramians, losses, states) + 1

    class Whole(Other):
        solve, packed_solve = Other.solve, Above.packed_solve

    assert cls.solves_packs() and not Other.solves_packs()
    assert not Above.solves_packs() and Whole.solves_packs()  # by itself a run of `Above` is asked as one of `Other`
    assert not load_class("mgda").solves_packs() and not type(load_intervention("placebo:mgda")).solves_packs()
    assert torch.equal(Other().weights(torch.eye(2), torch.ones(2)), torch.full((2,), 2.0))


@pytest.mark.parametrize("name", ["pcgrad", "placebo:pcgrad"])
def test_runs_of_one_method_are_solved_at_once(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Not those of other settings."""
    cls, seen = load_class("pcgrad"), []
    true = cls.packed_solve

    def counting(self, gramians, losses, states):
        seen.append((self.reduction, len(states)))
        return true(self, gramians, losses, states)

    monkeypatch.setattr(cls, "packed_solve", counting)
    chosen = [
        plain({"train.seed": seed, "train.steps": 2, "intervention": name, "pcgrad.reduction": reduction})
        for seed, reduction in enumerate(("sum", "mean", "sum", "sum"))
    ]
    train_pack(chosen, [tmp_path / str(seed) for seed in range(4)])
    assert seen == [("sum", 3), ("mean", 1)] * 2


def test_states_are_as_they_were_after_a_failure():
    """What `group_weights` gives back, whatever a method keeps."""
    from zslx.intervention.composed import kept

    state = {"generator": torch.Generator().manual_seed(3), "seen": [1, [2]], "mean": torch.ones(2), "count": 4}
    before = copy.deepcopy({k: v for k, v in state.items() if k != "generator"})
    drawn = torch.rand(3, generator=torch.Generator().manual_seed(3))
    restore = kept(state)
    torch.rand(5, generator=state["generator"])
    state["seen"][1].append(3)
    state["mean"] += 1
    state["new"] = 0
    restore()
    assert torch.equal(torch.rand(3, generator=state.pop("generator")), drawn)
    assert torch.equal(state.pop("mean"), before.pop("mean")) and state == before
