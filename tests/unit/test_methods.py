"""Several interventions as one: weights multiply and are renormalised, exclusive places are asked once."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch

from zslx.intervention.base import Intervention, RunView, StepStats, StepView
from zslx.intervention.composed import InterventionError, Methods
from zslx.intervention.gradient_method import GradientMethod


def view(losses: torch.Tensor) -> StepView:
    ids = torch.zeros(losses.shape, dtype=torch.int64)
    domains = torch.zeros(len(losses), dtype=torch.int64)
    return StepView(tokens=ids, targets=ids, losses=losses, domains=domains)


def weigher(label: str, values: torch.Tensor, keep: bool = False) -> Intervention:
    @dataclass(frozen=True)
    class Weigher(Intervention):
        name = label
        keep_scale = keep

        def token_weights(self, run, view, state):
            return values

    return Weigher()


LOSSES = torch.ones(2, 3)
RUN = RunView(step=7, steps=9, domains=("a", "b"), parameters={"w": LOSSES})
A = torch.tensor([[1.0, 2, 3], [0, 1, 1]])
B = torch.tensor([[4.0, 0, 1], [1, 1, 9]])


def test_weights_are_normalised():
    assert torch.allclose(Methods([weigher("a", A)], RUN).token_weights(view(LOSSES)), A / A.mean())


def test_weights_multiply_and_the_order_does_not_matter():
    expected = A * B / (A * B).mean()
    for order in ((("a", A), ("b", B)), (("b", B), ("a", A))):
        found = Methods([weigher(*x) for x in order], RUN).token_weights(view(LOSSES))
        assert torch.allclose(found, expected)


def test_a_kept_scale_stays():
    methods = Methods([weigher("a", A, keep=True)], RUN)
    assert torch.equal(methods.token_weights(view(LOSSES)), A)
    both = Methods([weigher("a", A, keep=True), weigher("b", B)], RUN)
    assert torch.allclose(both.token_weights(view(LOSSES)), A * B / B.mean())


def test_weights_that_cancel_each_other_are_an_error():
    first, second = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 1, 1]])
    methods = Methods([weigher("a", first), weigher("b", second)], RUN)
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
    methods = Methods([weigher("mine", weights)], RUN)
    with pytest.raises(InterventionError, match="intervention 'mine', hook token_weights, step 7: .*" + message):
        methods.token_weights(view(LOSSES))


def test_weights_carry_no_graph():
    losses = LOSSES.clone().requires_grad_()
    found = Methods([weigher("a", losses * A)], RUN).token_weights(view(losses.detach()))
    assert not found.requires_grad


def test_an_unknown_need_is_refused():
    @dataclass(frozen=True)
    class Needy(Intervention):
        name = "needy"
        needs = frozenset({"hessian"})

    with pytest.raises(ValueError, match=r"'needy': needs has \['hessian'\]; allowed are domain_gramian,"):
        Methods([Needy()], RUN)


def test_a_metric_that_is_not_finite_is_kept_for_the_record_to_null():
    @dataclass(frozen=True)
    class Loud(Intervention):
        name = "loud"

        def metrics(self, run, state):
            return {"cosine": float("nan"), "count": torch.tensor(3)}

    found = Methods([Loud()], RUN).metrics()
    assert found["loud/count"] == 3.0 and found["loud/cosine"] != found["loud/cosine"]


def test_extra_losses_add_up_with_their_graph():
    @dataclass(frozen=True)
    class Extra(Intervention):
        def extra_loss(self, run, view, state):
            return view.live_losses.mean() * 2

    one, two = (dataclass(frozen=True)(type("E", (Extra,), {"name": n, "__module__": __name__}))() for n in "ab")
    v = view(LOSSES)
    v.live_losses = LOSSES.clone().requires_grad_()
    total = Methods([one, two], RUN).extra_loss(v)
    assert float(total.detach()) == 4.0 and total.requires_grad


# What each hook returns that it may not, and what the error says.
NONSENSE = {
    "metrics": (lambda self, run, state: ["cosine"], "must return numbers by name, got list"),
    "mixture": (lambda self, run, state: 5, "must return 2 shares, got 5"),
    "average": (lambda self, run, state: {"w": 1}, "must return a tensor of the same shape"),
    "group_ids": (
        lambda self, run, view, state: (torch.zeros(2, dtype=torch.int64), "a"),
        "must be a whole number above 0, got 'a'",
    ),
    "extra_loss": (lambda self, run, view, state: view.losses.mean(), "the term has no gradient"),
    "token_weights": (lambda self, run, view, state: view.losses * 0 + 3e38, "the total weight is inf"),
    "observe": (lambda self, run, stats, state: sys.exit(3), "SystemExit: 3"),
}
CALLS = {
    "metrics": lambda m: m.metrics(),
    "mixture": lambda m: m.mixture(),
    "average": lambda m: m.average(),
    "group_ids": lambda m: m.group_ids(view(LOSSES)),
    "extra_loss": lambda m: m.extra_loss(view(LOSSES)),
    "token_weights": lambda m: m.token_weights(view(LOSSES)),
    "observe": lambda m: m.observe(StepStats(view=view(LOSSES))),
}


@pytest.mark.parametrize("hook", NONSENSE)
def test_nonsense_from_a_hook_names_plugin_hook_and_step(hook):
    wrong, message = NONSENSE[hook]
    cls = dataclass(frozen=True)(
        type(
            "Wrong",
            (GradientMethod if hook == "group_ids" else Intervention,),
            {"name": "wrong", "__module__": __name__, hook: wrong},
        )
    )
    with pytest.raises(InterventionError, match=f"intervention 'wrong', hook {hook}, step 7: .*{message}"):
        CALLS[hook](Methods([cls()], RUN))


def test_making_the_state_is_guarded_like_the_hooks():
    @dataclass(frozen=True)
    class Counts(Intervention):
        name = "counts"

        def init_state(self, run, generator):
            raise RuntimeError("no idea")

    with pytest.raises(InterventionError, match=r"intervention 'counts', hook init_state, step 7: .*no idea"):
        Methods([Counts()], RUN)


def test_lengths_are_rounded_down_to_a_divisor():
    for full, asked, given in ((64, 63, 32), (64, 1, 1), (8, 5, 4), (7, 6, 1), (1024, 1000, 512)):

        def sequence(self, run, state):
            return asked  # noqa: B023

        cls = type("Short", (Intervention,), {"name": "short", "sequence": sequence})
        assert Methods([cls()], RunView(seq_len=full)).seq_len() == given


def test_factors_on_the_rate_multiply():
    def half(label: str) -> Intervention:
        return type("Half", (Intervention,), {"name": label, "lr_factor": lambda self, run, state: 0.5})()

    assert Methods([half("a"), half("b")], RUN).lr_factor() == 0.25
    assert Methods([], RUN).lr_factor() == 1.0


def test_what_was_not_asked_for_is_refused_by_name():
    with pytest.raises(AttributeError, match=r"view.entropy is computed only .* needs = frozenset\({'entropy'}\)"):
        _ = view(LOSSES).entropy


OLD = {
    "schedule": (lambda self, step, config: 1.0, "schedule is no hook any more; write lr_factor"),
    "token_weights": (lambda self, view, state: view.losses, r"token_weights\(self, view, state\) must be"),
    "lr_factor": (lambda self, run, state, extra=1: 1.0, r"must be lr_factor\(self, run, state\)"),
    "group_weights": (lambda self, run, gramian, group_losses, state: None, "needs the base class zslx.GradientMethod"),
}


@pytest.mark.parametrize("hook", OLD)
def test_a_class_that_could_not_be_called_is_told_what_to_change(hook):
    written, message = OLD[hook]
    cls = type("Old", (Intervention,), {"name": "old", hook: written})
    with pytest.raises(ValueError, match=f"intervention 'old': .*{message}"):
        Methods([cls()], RUN)


def test_several_optimizers_hold_every_parameter_once():
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in "pq")
    groups = [{"params": [p, q]}]

    def made(*parts: list) -> list:
        given = [torch.optim.SGD(part, lr=1.0) for part in parts]
        cls = type("Two", (Intervention,), {"name": "two", "optimizer": lambda self, run, groups, state: given})
        return Methods([cls()], RUN).optimizers(groups)

    assert len(made([p], [q])) == 2
    with pytest.raises(InterventionError, match="1 are missing, 0 held twice"):
        made([p])
    with pytest.raises(InterventionError, match="0 are missing, 1 held twice"):
        made([p], [p, q])
