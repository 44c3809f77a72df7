"""D taken apart by domain: against sums by hand, and the laws that its docstring states."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zslx.instruments.domain_interference import domain_interference
from zslx.instruments.loss_interference import interference

NAMES = ("a", "b", "c", "d")
CHANGES = st.integers(-64_000, 64_000).map(lambda n: n / 64)  # their sums are exact


@st.composite
def worlds(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Changes (S, T) and the domains (S,) of the sequences."""
    sequences, length = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    values = draw(st.lists(CHANGES, min_size=sequences * length, max_size=sequences * length))
    domains = draw(st.lists(st.integers(0, 3), min_size=sequences, max_size=sequences))
    return torch.tensor(values, dtype=torch.float64).view(sequences, length), torch.tensor(domains)


def close(found: object, expected: object) -> bool:
    """Equal to rounding, None to None; through lists."""
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)
    return found == expected


def test_toy_values() -> None:
    """a gains 3 of 5 that move, b loses 1 of 1: S = −3, 1; A = 5, 1."""
    changes = torch.tensor([[-4.0, 1.0], [1.0, 0.0]])
    found = domain_interference(changes, torch.tensor([0, 2]), ("a", "b", "c"))
    assert found["names"] == ["a", "c"]
    assert found["within"] == pytest.approx([1 - 3 / 5, 0.0])
    assert np.array(found["between"]) == pytest.approx(np.array([[0.4, 1 - 2 / 6], [1 - 2 / 6, 0.0]]))
    assert found["shift"] == [-1.5, 0.5]
    assert found["between_share"] == pytest.approx(0.5)  # 6 − 2 cancels: 2 in a, 2 between a and c


def test_domains_that_all_gain_take_nothing_from_one_another() -> None:
    changes = torch.tensor([[-4.0, 1.0], [-2.0, 1.0]])
    assert domain_interference(changes, torch.tensor([0, 1]), NAMES)["between_share"] == 0
    opposed = torch.tensor([[-4.0, -1.0], [3.0, 2.0]])
    assert domain_interference(opposed, torch.tensor([0, 1]), NAMES)["between_share"] == 1


def test_nothing_moved_and_nothing_cancelled() -> None:
    still = domain_interference(torch.zeros(2, 3), torch.tensor([0, 1]), NAMES)
    assert still["within"] == [None, None] and still["between"] == [[None, None], [None, None]]
    assert still["shift"] == [0, 0] and still["between_share"] is None
    same_way = domain_interference(torch.full((2, 3), -0.1), torch.tensor([0, 1]), NAMES)
    assert same_way["between_share"] is None and close(same_way["within"], [0.0, 0.0])


def test_what_is_no_number_stays_none() -> None:
    found = domain_interference(torch.tensor([[math.nan, 1.0], [1.0, -1.0]]), torch.tensor([0, 1]), NAMES)
    assert math.isnan(found["within"][0]) and found["within"][1] == 1 and math.isnan(found["shift"][0])


@given(worlds())
def test_against_sums_by_hand(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    changes, domains = world
    found = domain_interference(changes, domains, NAMES)
    values, of = changes.numpy(), domains.numpy()
    there = [d for d in range(4) if (of == d).any()]
    assert found["names"] == [NAMES[d] for d in there]
    for i, a in enumerate(there):
        assert math.isclose(found["shift"][i], values[of == a].mean(), rel_tol=1e-9, abs_tol=1e-9)
        assert found["between"][i][i] == found["within"][i]
        for j, b in enumerate(there):
            both = values[(of == a) | (of == b)]
            size = float(np.abs(both).sum())
            assert close(found["between"][i][j], 1 - abs(float(both.sum())) / size if size else None)
            assert found["between"][i][j] == found["between"][j][i]


@given(worlds())
def test_every_d_lies_in_0_to_1_and_the_parts_add_up(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    changes, domains = world
    found = domain_interference(changes, domains, NAMES)
    assert all(d is None or 0 <= d <= 1 for row in found["between"] for d in row)
    share, size = found["between_share"], float(changes.abs().sum())
    every = size - abs(float(changes.sum()))
    if share is None:
        assert every <= 1e-9 * max(1.0, size)
        return
    assert 0 <= share <= 1
    within = sum(float(p.abs().sum() - p.sum().abs()) for p in (changes[domains == d] for d in range(4)))
    assert math.isclose(within + share * every, every, rel_tol=1e-9, abs_tol=1e-9 * size)
    # The mean over all domains, weighted by their tokens, is the change of the loss.
    counts = [int((domains == NAMES.index(name)).sum()) * changes.shape[1] for name in found["names"]]
    mean = sum(n * s for n, s in zip(counts, found["shift"], strict=True)) / changes.numel()
    assert math.isclose(mean, float(changes.mean()), rel_tol=1e-9, abs_tol=1e-9)


@given(worlds())
def test_d_of_two_domains_is_the_mean_of_theirs_or_above(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    changes, domains = world
    found = domain_interference(changes, domains, NAMES)
    sizes = [float(changes[domains == NAMES.index(name)].abs().sum()) for name in found["names"]]
    for i, row in enumerate(found["between"]):
        for j, both in enumerate(row):
            if not (sizes[i] and sizes[j]):
                continue
            mean = (sizes[i] * found["within"][i] + sizes[j] * found["within"][j]) / (sizes[i] + sizes[j])
            apart = found["shift"][i] * found["shift"][j] < 0
            assert both > mean if apart else close(both, mean)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.integers(0, 2**32))
def test_rounding_takes_no_d_out_of_0_to_1(values: list[float], seed: int) -> None:
    domains = torch.randint(0, 4, (len(values),), generator=torch.Generator().manual_seed(seed))
    found = domain_interference(torch.tensor(values, dtype=torch.float64)[:, None], domains, NAMES)
    every = [found["between_share"], *(d for row in found["between"] for d in row)]
    assert all(d is None or 0 <= d <= 1 for d in every)


@given(worlds())
def test_no_order_matters(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    changes, domains = world
    found = domain_interference(changes, domains, NAMES)
    order = torch.randperm(len(domains), generator=torch.Generator().manual_seed(1))
    tokens = torch.randperm(changes.shape[1], generator=torch.Generator().manual_seed(2))
    moved = domain_interference(changes[order][:, tokens], domains[order], NAMES)
    assert all(close(found[key], moved[key]) for key in found)
    # Domains in the reverse order: the same numbers in the reverse order.
    turned = domain_interference(changes, 3 - domains, NAMES[::-1])
    assert turned["names"] == found["names"][::-1] and close(turned["within"], found["within"][::-1])
    assert close(turned["between"], [row[::-1] for row in found["between"][::-1]])
    assert close(turned["between_share"], found["between_share"])


@given(worlds())
def test_one_domain_is_the_d_of_all(world: tuple[torch.Tensor, torch.Tensor]) -> None:
    changes, domains = world
    found, whole = domain_interference(changes, torch.zeros_like(domains), ("all",)), interference(changes)
    assert found["names"] == ["all"] and close(found["within"], [whole["D"]])
    assert found["between"] == [found["within"]] and found["between_share"] in (0, None)
    assert close(found["shift"], [whole["dL"]])


@given(worlds(), st.floats(1e-3, 1e3), st.sampled_from((-1.0, 1.0)))
def test_scale_and_sign_are_none_of_d(world: tuple[torch.Tensor, torch.Tensor], scale: float, sign: float) -> None:
    changes, domains = world
    found = domain_interference(changes, domains, NAMES)
    scaled = domain_interference(sign * scale * changes, domains, NAMES)
    assert close(found["between"], scaled["between"])
    assert close([sign * scale * s for s in found["shift"]], scaled["shift"])
