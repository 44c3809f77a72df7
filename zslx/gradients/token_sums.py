"""Sums over the gradients of single tokens, coordinate by coordinate: plain, absolute, and with random signs.

With g_i = ∇ℓ_i / N, the share of token i in the gradient of the mean loss over N tokens, and s_i = ±1 at random:

    sum          Σ_i g_i         the gradient of the mean loss: one backward, exact
    signed_sum   Σ_i s_i g_i     one backward; the mean of its square over draws is Σ_i g_i²
    abs_sum      Σ_i |g_i|       from n sampled tokens, without bias; exact with n at least all tokens

So |sum| / abs_sum is the agreement of the tokens on a coordinate, and |signed_sum| what |sum| would be by chance.
Cost: a forward, a backward for each of the first two, and ⌈n/B⌉ engine backwards for the third (token_pass.py).
Checked by tests/oracles/test_token_sums.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zslx.gradients.engine.loss_batch import LossFn, choose, random_signs
from zslx.gradients.engine.token_pass import TokenBatch, TokenPass


@dataclass(frozen=True, kw_only=True)
class TokenSums:
    """step at which they were measured; count n of num_tokens N tokens in `abs_sum`; each sum by parameter.

    `abs_sum` has no parameters where no token was sampled.
    """

    step: int
    count: int
    num_tokens: int
    sum: Mapping[str, Tensor]
    signed_sum: Mapping[str, Tensor]
    abs_sum: Mapping[str, Tensor]


def token_sums(
    model: nn.Module, loss_fn: LossFn, batch: Any, n: int, *, generator: torch.Generator, step: int = 0
) -> TokenSums:
    """Sums over the token gradients of a batch. loss_fn(model, batch) returns losses (B, T), all of them counted.

    n: tokens sampled for the absolute sums, rounded up to a multiple of B; 0 for none. Signs and sample are drawn
    from `generator`.
    """
    if n == 0:
        return _without_sample(model, loss_fn, batch, generator, step)
    over = TokenBatch(model=model, loss_fn=loss_fn, batch=batch, n=n, generator=generator, chance=generator)
    measured = TokenPass(over, abs_sums=True)
    share = 1 / measured.sample.num_tokens
    absolute = {name: torch.stack(parts).sum(0) * share for name, parts in measured.abs_sums.items()}
    return TokenSums(
        step=step,
        count=measured.sample.count,
        num_tokens=measured.sample.num_tokens,
        sum={name: value * share for name, value in measured.sums.items()},
        signed_sum={name: value * share for name, value in measured.chance_sums.items()},
        abs_sum=absolute,
    )


def _without_sample(model: nn.Module, loss_fn: LossFn, batch: Any, generator: torch.Generator, step: int) -> TokenSums:
    """The two backwards alone: the engine, which keeps sequences apart, has nothing to do."""
    chosen = choose(model, None)
    losses = loss_fn(model, batch)
    assert isinstance(losses, Tensor)
    count = losses.numel()
    each = torch.full_like(losses, 1 / count)
    signs = random_signs(count, generator, losses).view_as(losses).to(losses.dtype)

    def backward(cotangent: Tensor, again: bool) -> dict[str, Tensor]:
        found = torch.autograd.grad(losses, list(chosen.values()), cotangent, retain_graph=again, allow_unused=True)
        return {name: g for name, g in zip(chosen, found, strict=True) if g is not None}

    return TokenSums(
        step=step,
        count=0,
        num_tokens=count,
        sum=backward(each, True),
        signed_sum=backward(each * signs, False),
        abs_sum={},
    )
