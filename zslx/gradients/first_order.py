"""What an update does to every token's loss, to first order, and how it splits into agreement and interference.

With token gradients g_i, an update u = Δθ and p_ij = g_ij u_j:

    Δℓ̂_i = Σ_j p_ij                       D(Δℓ̂), M(Δℓ̂)
    C_g  = Σ_j |Σ_i p_ij| / Σ_ij |p_ij|    agreement between token gradients, weighted by |u_j|
    C_ug = Σ_i |Σ_j p_ij| / Σ_ij |p_ij|    update against each token's gradient
    C_uG = |Σ_ij p_ij| / Σ_j |Σ_i p_ij|    update against the total gradient
    1 − D(Δℓ̂) = C_g · C_uG / C_ug

Source: as in cancellation.py (the authors' decomposition). A tied matrix is one set of coordinates here, two in
their code. Δℓ̂ for all tokens is one forward-mode product (or a central difference of two forwards: error of
order ε² plus rounding/ε); Σ_i p_ij comes from one backward; only Σ_ij |p_ij| is sampled, and C_g / C_ug is
exact all the same, since they share it. Checked by tests/oracles/test_gradients_interference.py.

Shapes: B sequences, T positions, N tokens, n sampled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zslx.gradients.engine.loss_batch import LossFn, choose, split
from zslx.gradients.engine.token_pass import TokenBatch, TokenPass, TokenSample
from zslx.gradients.norm import norm


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """change (B, T): Δℓ̂ of each token, 0 outside the mask; true_change (B, T): ℓ(θ+u) − ℓ(θ).

    error: Σ_i |Δℓ_i − Δℓ̂_i| / Σ_i |Δℓ_i|; count n of num_tokens N tokens in Σ_ij |p_ij|, whose relative
    standard error is `relative_error` (0 when exact); abs_of_sum, sum_of_abs: Σ_j |Σ_i p_ij| and Σ_ij |p_ij| by
    parameter.
    """

    C_g: float
    C_ug: float
    C_uG: float
    D: float
    M: float
    true_D: float
    true_M: float
    error: float
    count: int
    num_tokens: int
    relative_error: float
    change: Tensor
    true_change: Tensor
    abs_of_sum: Mapping[str, float]
    sum_of_abs: Mapping[str, float]


def first_order(
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    update: Mapping[str, Tensor],
    *,
    n: int | str = "all",
    generator: torch.Generator | None = None,
    method: str = "forward",
    sequences_at_once: int | None = None,
) -> FirstOrder:
    """First-order decomposition for `update`, parameter name to Δθ (others: 0). The model stays as it is.

    method: "forward" (forward-mode derivative, exact; every operation of the model must have one) or
    "difference" (central difference, for any model).
    """
    chosen = choose(model, list(update))
    for name, u in update.items():
        if u.shape != chosen[name].shape:
            raise ValueError(f"update: {name} has shape {tuple(u.shape)}, expected {tuple(chosen[name].shape)}")
    moves = {name: update[name].detach().to(p) for name, p in chosen.items()}
    change, true_change = token_changes(model, loss_fn, batch, moves, method)
    weights = {name: u.abs() for name, u in moves.items()}
    over = TokenBatch(
        model=model,
        loss_fn=loss_fn,
        batch=batch,
        n=n,
        generator=generator,
        parameters=list(moves),
        sequences_at_once=sequences_at_once,
    )
    return decomposed(change, true_change, moves, TokenPass(over, l1_weights=weights))


def decomposed(change: Tensor, true_change: Tensor, moves: Mapping[str, Tensor], measured: TokenSample) -> FirstOrder:
    """The decomposition from the changes (B, T) of the token losses and what was measured of the tokens' gradients,
    their `l1` weighted by |u_j|."""
    sample = measured.sample
    net = {name: g.double() * moves[name].double() for name, g in measured.sums.items()}
    abs_of_sum = {name: float(q.abs().sum()) for name, q in net.items()}
    per_token = torch.stack(list(measured.l1.values())).sum(0)
    whole, total_abs = float(per_token.sum()), sum(abs_of_sum.values())
    over_tokens = float(change.double().abs().sum())
    return FirstOrder(
        C_g=total_abs / whole if whole else math.nan,
        C_ug=over_tokens / whole if whole else math.nan,
        C_uG=abs(sum(float(q.sum()) for q in net.values())) / total_abs if total_abs else math.nan,
        D=destructive(change),
        M=over_tokens / sample.num_tokens,
        true_D=destructive(true_change),
        true_M=float(true_change.double().abs().sum()) / sample.num_tokens,
        error=float((true_change - change).double().abs().sum() / true_change.double().abs().sum()),
        count=sample.count,
        num_tokens=sample.num_tokens,
        relative_error=0.0 if sample.count == sample.num_tokens else sample.relative_error(per_token),
        change=change,
        true_change=true_change,
        abs_of_sum=abs_of_sum,
        sum_of_abs={name: float(value.sum()) for name, value in measured.l1.items()},
    )


def destructive(x: Tensor) -> float:
    """D(x) = 1 − |Σx| / Σ|x|."""
    size = x.double().abs().sum()
    return float(1 - x.double().sum().abs() / size) if size else math.nan


class _Losses(nn.Module):
    """loss_fn(model, batch) as a module, so that its parameters can be exchanged for a call."""

    def __init__(self, model: nn.Module, loss_fn: LossFn):
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        losses, mask = split(self.loss_fn(self.model, batch))
        return losses, torch.ones_like(losses) if mask is None else mask.to(losses.dtype)

    def at(self, parameters: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(self, dict(parameters), (batch,))


def token_changes(
    model: nn.Module, loss_fn: LossFn, batch: Any, update: Mapping[str, Tensor], method: str = "forward"
) -> tuple[Tensor, Tensor]:
    """Δℓ̂ = Σ_j g_ij u_j and ℓ(θ+u) − ℓ(θ) of every token, both (B, T), 0 outside the mask."""
    if method not in ("forward", "difference"):
        raise ValueError(f"method={method!r}: allowed are forward, difference")
    losses = _Losses(model, loss_fn)
    chosen = {id(p): name for name, p in choose(model, list(update)).items()}
    names = {name: chosen[id(p)] for name, p in losses.named_parameters() if id(p) in chosen}
    point = {name: p.detach() for name, p in losses.named_parameters() if name in names}
    moves = {name: update[own].to(point[name]) for name, own in names.items()}

    def shifted(step: float) -> Tensor:
        with torch.no_grad():
            return losses.at({name: p + step * moves[name] for name, p in point.items()}, batch)[0]

    if method == "forward":
        with forward_mode():
            result: Any = torch.func.jvp(lambda p: losses.at(p, batch), (point,), (moves,), has_aux=True)
        before, change, mask = result
    else:
        with torch.no_grad():
            before, mask = losses.at(point, batch)
        step = difference_step(point, moves)
        change = (shifted(step) - shifted(-step)) / (2 * step)
    return change * mask, (shifted(1.0) - before) * mask


@contextmanager
def forward_mode() -> Iterator[None]:
    """What forward-mode derivatives need: the fused attention kernels have none."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # torch itself uses torch.jit when it first loads its forward-mode formulas.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def difference_step(point: Mapping[str, Tensor], moves: Mapping[str, Tensor]) -> float:
    """The multiple of the update at which truncation (ε²) and rounding (1/ε) are about equal."""
    size, whole = norm(moves.values()), norm(point.values())
    eps = torch.finfo(next(iter(point.values())).dtype).eps
    return eps ** (1 / 3) * whole / size if size else 1.0
