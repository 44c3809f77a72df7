"""Token weights and extra losses against published values, closed forms and autograd."""

from functools import cache

import pytest
import torch

from interventions.token_weighting.alignment import mid_ranks
from interventions.token_weighting.confidence_penalty import log_confidence, target_ranks
from zslx import RunView, StepView
from zslx.intervention.registry import load_intervention

load = cache(load_intervention)

# Four tokens over three ids; the published values are for these.
LOGITS = torch.tensor([[[2.0, 0, -1], [0, 1, 0], [3, -2, 0.5], [-1, 0, 1]]], dtype=torch.float64)
TARGETS = torch.tensor([[0, 0, 1, 2]])
RUN = RunView(step=50, steps=100)


def view(logits=LOGITS, targets=TARGETS, **fields) -> StepView:
    log_p = logits.log_softmax(-1)
    losses = -log_p.gather(-1, targets[..., None])[..., 0]
    domains = torch.zeros(len(targets), dtype=torch.int64)
    v = StepView(tokens=targets, targets=targets, losses=losses.detach(), domains=domains)
    v.live_losses, v.logits, v.entropy = losses, logits, -(log_p.exp() * log_p).sum(-1).detach()
    for name, value in fields.items():
        setattr(v, name, value)
    return v


def sequences(losses: list[float], positions=3) -> StepView:
    """Sequences of the given mean losses, T = positions."""
    values = torch.tensor(losses, dtype=torch.float64)[:, None].repeat(1, positions)
    v = view()
    v.losses = values + torch.linspace(-0.1, 0.1, positions, dtype=torch.float64)
    v.targets = v.tokens = torch.zeros(values.shape, dtype=torch.int64)
    return v


def weigh(name: str, v: StepView, seed: int = 0, state=None, run=RUN, **settings) -> torch.Tensor:
    method = load(name, **settings)
    if state is None:
        state = method.init_state(RUN, torch.Generator().manual_seed(seed))
    before = torch.get_rng_state()
    weights = method.token_weights(run, v, state)
    assert torch.equal(before, torch.get_rng_state())
    assert weights.shape == v.losses.shape and weights.dtype == v.losses.dtype
    assert torch.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0
    return weights


def close(got: torch.Tensor, expected, tolerance=1e-8) -> bool:
    return got.flatten().tolist() == pytest.approx(list(expected), abs=tolerance)


def test_cross_entropy_of_the_example():
    assert close(view().losses, (0.16984602, 1.55144471, 5.08509725, 0.40760596))
    assert close(view().entropy, (0.52426662, 0.97532783, 0.30451054, 0.83239558))


def test_focal():
    weights = weigh("focal", view())
    assert close(weights, (0.15620527, 0.78805844, 0.99381171, 0.33475904))
    losses = view().losses
    assert (weights * losses).mean().item() == pytest.approx(1.60980974, abs=1e-8)
    assert (weights / weights.mean() * losses).mean().item() == pytest.approx(2.83313151, abs=1e-8)
    weights = weigh("focal", view(), gamma=2.0)
    assert (weights * losses).mean().item() == pytest.approx(1.50892029, abs=1e-8)
    assert (weights / weights.mean() * losses).mean().item() == pytest.approx(3.45852291, abs=1e-8)


def test_focal_of_certain_tokens_has_a_positive_total():
    v = view()
    v.losses = torch.zeros_like(v.losses)
    assert weigh("focal", v).sum() > 0


def test_mile():
    weights = weigh("mile", view())
    assert close(weights, (0.91871709, 1.19058399, 0.7862641, 1.10443482))
    assert (weights * view().losses).mean().item() == pytest.approx(1.61289233, abs=1e-8)
    weights = weigh("mile", view(), gamma=2.0)
    assert (weights * view().losses).mean().item() == pytest.approx(1.45952912, abs=1e-8)


def test_rho1():
    v = view(reference_losses=torch.tensor([[0.5, 1.0, 3.0, 0.9]], dtype=torch.float64))
    weights = weigh("rho1", v, keep=0.5)
    assert weights.tolist() == [[0, 1, 1, 0]]
    assert ((weights * v.losses).sum() / weights.sum()).item() == pytest.approx(3.31827098, abs=1e-8)
    assert weigh("rho1", v, keep=0.01).sum() == 1  # never none


@pytest.mark.parametrize(
    "shape, r, expected",
    [
        ("linupper", 1.0, (0.12368148, 0.20391629, 0.33620112, 0.33620112)),
        ("linupper", 0.4, (0.03465564, 0.12096007, 0.42219214, 0.42219214)),
        ("quadratic", 1.0, (0.14629975, 0.30971657, 0.39768395, 0.14629975)),
        ("extremes", 1.0, (0.33620112, 0.20391629, 0.12368148, 0.33620112)),
    ],
)
def test_sow(shape, r, expected):
    weights = weigh("sow", sequences([1, 2, 3, 5]), shape=shape, r=r)
    assert close(weights[:, 0], expected)
    assert (weights == weights[:, :1]).all()


def test_sow_warm_up_and_equal_losses():
    early = weigh("sow", sequences([1, 2, 3, 5]), run=RunView(step=5, steps=100), warmup_r=1e5)
    assert torch.allclose(early, early.mean().expand_as(early), rtol=1e-4)
    equal = weigh("sow", sequences([2, 2, 2]))
    assert torch.allclose(equal, equal.mean().expand_as(equal))


def test_infobatch():
    v = sequences([0.2, 0.4, 1, 2])
    seen = set()
    for seed in range(60):
        first, second, *hard = weigh("infobatch", v, seed=seed)[:, 0].tolist()
        assert hard == [1, 1]
        assert {first, second} <= {0, 2}
        seen.add((first, second))
    assert seen == {(0, 0), (0, 2), (2, 0), (2, 2)}
    assert weigh("infobatch", sequences([1, 2]), run=RunView(step=88, steps=100), prune=0.9).tolist() == [[1] * 3] * 2


def test_infobatch_is_unbiased():
    method = load("infobatch", prune=0.3)
    state = method.init_state(RUN, torch.Generator().manual_seed(0))
    v = sequences([0.2, 0.4, 1, 2])
    mean = torch.stack([method.token_weights(RUN, v, state)[:, 0] for _ in range(4000)]).mean(0)
    assert torch.allclose(mean, torch.ones(4, dtype=torch.float64), atol=0.04)  # 4 standard errors of .0104


def test_truncation_of_tokens():
    v, first = view(), RunView(step=1, steps=100)
    v.losses = torch.arange(1.0, 11).view(2, 5)
    assert weigh("truncation", v, run=first, drop=0.2, start=1).sum() == 8
    assert weigh("truncation", v, run=first, drop=0.2, start=2).sum() == 10  # before the hot start is over
    assert weigh("truncation", v, run=first, drop=0.9, start=1).flatten().tolist() == [1] + [0] * 9


def test_truncation_of_sequences():
    weights = weigh("truncation", sequences([3, 1, 2, 5]), drop=0.25, level="sequence", start=1)
    assert weights[:, 0].tolist() == [1, 1, 1, 0] and (weights == weights[:, :1]).all()


def test_truncation_remembers_the_quantile():
    method = load("truncation", drop=0.5, decay=0.5, start=1)
    state = method.init_state(RUN, torch.Generator())
    v = view()
    for losses, quantile, kept in (([1.0, 2, 3, 4], 2, 2), ([5.0, 6, 7, 8], 4, 1), ([1.0, 1, 1, 1], 2.5, 4)):
        v.losses = torch.tensor([losses])
        assert method.token_weights(RUN, v, state).sum() == kept
        assert state["quantile"] == quantile


def test_poly():
    loss = load("poly").extra_loss(RUN, view(), {})
    assert loss.item() + view().losses.mean().item() == pytest.approx(2.37170710, abs=1e-8)


def test_poly_gradient():
    logits = LOGITS.clone().requires_grad_()
    v = view(logits)
    (v.live_losses.mean() + load("poly", epsilon=0.7).extra_loss(RUN, v, {})).backward()
    p = LOGITS.softmax(-1)
    target = torch.nn.functional.one_hot(TARGETS, 3)
    scale = 1 + 0.7 * p.gather(-1, TARGETS[..., None])
    assert torch.allclose(logits.grad, scale * (p - target) / 4, rtol=1e-12)


def random_view(seed=0, vocabulary=12) -> StepView:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, 40, vocabulary, dtype=torch.float64, generator=generator)
    targets = torch.randint(vocabulary, (3, 40), generator=generator)
    return view(logits.requires_grad_(), targets)


def test_confidence_decomposition_adds_up():
    """Cross-entropy = error-entropy + self-alignment − log C, C from its definition rank by rank."""
    v = random_view()
    ranks, losses = target_ranks(v.logits, v.targets).flatten(), v.losses.flatten()
    share, quality = [], []
    for e in range(12):
        at = ranks == e
        if at.any():
            share.append(at.double().mean())
            quality.append((-losses[at]).mean().exp())
    p, big_q = torch.stack(share), torch.stack(quality)
    q = big_q / big_q.sum()
    entropy, alignment = -(p * p.log()).sum(), (p * (p / q).log()).sum()
    log_c = log_confidence(v.live_losses, target_ranks(v.logits, v.targets))
    assert log_c.item() == pytest.approx(big_q.sum().log().item(), rel=1e-12)
    assert losses.mean().item() == pytest.approx((entropy + alignment - log_c).item(), rel=1e-12)


def test_confidence_penalty_gradient():
    """∂(L + λ log C)/∂ log s_i = −(1 − λ q_e/p_e)/N."""
    v = random_view()
    log_s = (-v.losses).clone().requires_grad_()
    v.live_losses = -log_s
    strength = 0.6
    (v.live_losses.mean() + load("confidence_penalty", strength=strength).extra_loss(RUN, v, {})).backward()
    ranks = target_ranks(v.logits, v.targets)
    expected = torch.zeros_like(log_s)
    observed = ranks.unique()
    big_q = torch.stack([(-v.losses[ranks == e]).mean().exp() for e in observed])
    for e, q in zip(observed, big_q / big_q.sum(), strict=True):
        p = (ranks == e).double().mean()
        expected[ranks == e] = -(1 - strength * q / p) / ranks.numel()
    assert torch.allclose(log_s.grad, expected, rtol=1e-12)


def test_target_ranks_do_not_count_ties():
    logits = torch.tensor([[[1.0, 1, 1], [2, 1, 2], [0, 5, 3]]])
    assert target_ranks(logits, torch.tensor([[0, 1, 2]])).tolist() == [[0, 2, 1]]


def test_mid_ranks():
    values = torch.tensor([3.0, 1, 3, 2], dtype=torch.float64)
    assert mid_ranks(values).tolist() == [0.5, -0.75, 0.5, -0.25]
    assert mid_ranks(torch.zeros(5)).tolist() == [0] * 5
    assert mid_ranks(torch.randn(50, generator=torch.Generator().manual_seed(0))).sum().abs() < 1e-12


def test_token_alignment_orders_weights():
    v = view(token_alignment=torch.tensor([[0.3, -2.0, 5.0, 0.1]], dtype=torch.float64))
    assert weigh("token_alignment", v, strength=1.0).flatten().argsort().tolist() == [1, 3, 0, 2]
    assert weigh("token_alignment", v, strength=-1.0).flatten().argsort().tolist() == [2, 0, 3, 1]
    assert weigh("token_alignment", v, strength=0.0).tolist() == [[1] * 4]


@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.5])
def test_alignment_against_full_gradients(strength):
    jacobian = torch.randn(7, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.2
    cosines = []
    for k in range(7):
        rest = jacobian.sum(0) - jacobian[k]
        cosines.append(jacobian[k] @ rest / jacobian[k].norm())
    rank = torch.stack(cosines).argsort().argsort().double()
    expected = (strength * (2 * (rank + 0.5) / 7 - 1)).exp()
    method = load("alignment", strength=strength)
    weights = method.weights(jacobian @ jacobian.T, torch.ones(7))
    assert torch.allclose(weights, expected / expected.mean(), rtol=1e-12)
    assert method.weights(torch.zeros(3, 3), torch.ones(3)).tolist() == [1, 1, 1]


NEUTRAL = ["focal", "mile", "truncation", "rho1", "infobatch", "token_alignment"]


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_give_equal_weights(name):
    v = random_view()
    v.live_losses = v.logits = None
    v.reference_losses = v.losses * 0.5
    v.token_alignment = v.losses
    weights = weigh(name, v, **load(name).neutral)
    assert (weights == weights[0, 0]).all()
    assert load(name).keep_scale is False or weights[0, 0] == 1


@pytest.mark.parametrize("name", ["poly", "confidence_penalty"])
def test_neutral_settings_give_no_extra_loss(name):
    loss = load(name, **load(name).neutral).extra_loss(RUN, random_view(), {})
    assert loss.item() == 0
