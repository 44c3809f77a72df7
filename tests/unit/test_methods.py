"""Several interventions as one: weights multiply and are renormalised, exclusive places are asked once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from zslx.config import Config
from zslx.intervention import Intervention, StepView
from zslx.methods import InterventionError, Methods


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
    with pytest.raises(InterventionError, match="step 7: the product of all token weights is zero"):
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

    with pytest.raises(ValueError, match=r"needy needs \['hessian'\]; known are entropy"):
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
