"""Several interventions as one: weights multiply and are renormalised, exclusive places are asked once."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch

from zslx.config.run_config import Config
from zslx.intervention.base import Intervention, StepStats, StepView
from zslx.intervention.composed import InterventionError, Methods


def view(losses: torch.Tensor) -> StepView:
    ids = torch.zeros(losses.shape, dtype=torch.int64)
    domains = torch.zeros(len(losses), dtype=torch.int64)
    return StepView(step=7, steps=9, tokens=ids, targets=ids, losses=losses, domains=domains, num_domains=2)


def weigher(label: str, values: torch.Tensor, keep: bool = False) -> Intervention:
    @dataclass(frozen=True)
    class Weigher(Intervention):
        name = label
        keep_scale = keep

        def token_weights(self, view, state):
            return values

    return Weigher()


LOSSES = torch.ones(2, 3)
A = torch.tensor([[1.0, 2, 3], [0, 1, 1]])
B = torch.tensor([[4.0, 0, 1], [1, 1, 9]])


def test_weights_are_normalised():
    assert torch.allclose(Methods([weigher("a", A)], Config(), 2).token_weights(view(LOSSES)), A / A.mean())


def test_weights_multiply_and_the_order_does_not_matter():
    expected = A * B / (A * B).mean()
    for order in ((("a", A), ("b", B)), (("b", B), ("a", A))):
        found = Methods([weigher(*x) for x in order], Config(), 2).token_weights(view(LOSSES))
        assert torch.allclose(found, expected)


def test_a_kept_scale_stays():
    methods = Methods([weigher("a", A, keep=True)], Config(), 2)
    assert torch.equal(methods.token_weights(view(LOSSES)), A)
    both = Methods([weigher("a", A, keep=True), weigher("b", B)], Config(), 2)
    assert torch.allclose(both.token_weights(view(LOSSES)), A * B / B.mean())


def test_weights_that_cancel_each_other_are_an_error():
    first, second = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 1, 1]])
    methods = Methods([weigher("a", first), weigher("b", second)], Config(), 2)
    with pytest.raises(InterventionError, match="step 7: the product of their weights is zero"):
        methods.token_weights(view(torch.ones(1, 3)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3, 2), r"must return a tensor of shape \(2, 3\), got \(3, 2\)"),
        ([[1.0]], "got list"),
        (None, "got NoneType"),
        (A * torch.nan, "weights are not finite"),
        (A * torch.inf, "weights are not finite"),
        (A * 0, "the total weight is 0, not positive"),
        (A - 1, "weights are negative"),
        (-A, "the total weight is -8, not positive"),
    ],
)
def test_bad_weights_name_plugin_hook_and_step(weights, message: str):
    methods = Methods([weigher("mine", weights)], Config(), 2)
    with pytest.raises(InterventionError, match="intervention 'mine', hook token_weights, step 7: .*" + message):
        methods.token_weights(view(LOSSES))


def test_weights_carry_no_graph():
    losses = LOSSES.clone().requires_grad_()
    found = Methods([weigher("a", losses * A)], Config(), 2).token_weights(view(losses.detach()))
    assert not found.requires_grad


def test_an_unknown_need_is_refused():
    @dataclass(frozen=True)
    class Needy(Intervention):
        name = "needy"
        needs = frozenset({"hessian"})

    with pytest.raises(ValueError, match=r"needy: needs has \['hessian'\]; known are entropy"):
        Methods([Needy()], Config(), 2)


def test_a_metric_that_is_not_finite_is_kept_for_the_record_to_null():
    @dataclass(frozen=True)
    class Loud(Intervention):
        name = "loud"

        def metrics(self, state):
            return {"cosine": float("nan"), "count": torch.tensor(3)}

    found = Methods([Loud()], Config(), 2).metrics(1)
    assert found["loud/count"] == 3.0 and found["loud/cosine"] != found["loud/cosine"]


def test_extra_losses_add_up_with_their_graph():
    @dataclass(frozen=True)
    class Extra(Intervention):
        def extra_loss(self, view, state):
            return view.live_losses.mean() * 2

    one, two = (dataclass(frozen=True)(type("E", (Extra,), {"name": n, "__module__": __name__}))() for n in "ab")
    v = view(LOSSES)
    v.live_losses = LOSSES.clone().requires_grad_()
    total = Methods([one, two], Config(), 2).extra_loss(v)
    assert float(total.detach()) == 4.0 and total.requires_grad


# What each hook returns that it may not, and what the error says.
NONSENSE = {
    "metrics": (lambda self, state: ["cosine"], "must return numbers by name, got list"),
    "mixture": (lambda self, step, state: 5, "must return 2 shares, got 5"),
    "average": (lambda self, parameters, state: {"w": 1}, "must return a tensor of the same shape"),
    "group_ids": (
        lambda self, view: (torch.zeros(2, dtype=torch.int64), "a"),
        "must be a whole number above 0, got 'a'",
    ),
    "extra_loss": (lambda self, view, state: view.losses.mean(), "the term has no gradient"),
    "token_weights": (lambda self, view, state: view.losses * 0 + 3e38, "the total weight is inf"),
    "observe": (lambda self, stats, state: sys.exit(3), "SystemExit: 3"),
}
CALLS = {
    "metrics": lambda m: m.metrics(7),
    "mixture": lambda m: m.mixture(7),
    "average": lambda m: m.average(7, {"w": LOSSES}),
    "group_ids": lambda m: m.group_ids(view(LOSSES)),
    "extra_loss": lambda m: m.extra_loss(view(LOSSES)),
    "token_weights": lambda m: m.token_weights(view(LOSSES)),
    "observe": lambda m: m.observe(StepStats(view=view(LOSSES))),
}


@pytest.mark.parametrize("hook", NONSENSE)
def test_nonsense_from_a_hook_names_plugin_hook_and_step(hook):
    wrong, message = NONSENSE[hook]
    cls = dataclass(frozen=True)(type("Wrong", (Intervention,), {"name": "wrong", "__module__": __name__, hook: wrong}))
    with pytest.raises(InterventionError, match=f"intervention 'wrong', hook {hook}, step 7: .*{message}"):
        CALLS[hook](Methods([cls()], Config(), 2))


def test_counting_groups_is_a_hook_like_the_others():
    @dataclass(frozen=True)
    class Counts(Intervention):
        name = "counts"

        def count_groups(self, batch_size, num_domains):
            raise RuntimeError("no idea")

    with pytest.raises(InterventionError, match=r"intervention 'counts', hook count_groups, step 0: .*no idea"):
        Methods([Counts()], Config(), 2)
