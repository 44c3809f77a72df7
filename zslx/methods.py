"""The interventions of one run together: which hooks they override, their states, their errors.

Resolved once, when the run is built: a hook that nobody overrides has an empty list and is never called.
Token weights compose by product and are renormalised to mean 1, unless a method keeps its scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zslx.config import Config
from zslx.intervention import (
    CLAIMED_BY_HOOK,
    NEEDS,
    CoordinateSums,
    Intervention,
    State,
    StepStats,
    StepView,
)
from zslx.seeds import generator

HOOKS = (*CLAIMED_BY_HOOK, "token_weights", "extra_loss", "observe", "metrics")


class InterventionError(ValueError):
    """A plugin raised, or returned what its hook may not return. Names plugin, hook and step."""


class Methods:
    """Interventions with their states, in the order of the spec."""

    def __init__(self, methods: Sequence[Intervention], config: Config, num_domains: int):
        self.methods = list(methods)
        self.config = config
        self.states: dict[str, State] = {}
        for m in self.methods:
            if unknown := m.needs - NEEDS:
                raise ValueError(f"{m.name} needs {sorted(unknown)}; known are {', '.join(sorted(NEEDS))}")
            groups = m.count_groups(config.data.batch_size, num_domains)
            draws = generator(config.train.seed, "intervention", m.name)
            self.states[m.name] = self._call(m, "init_state", 0, groups, draws)
        self.hooks = {h: [m for m in self.methods if type(m).overrides(h)] for h in HOOKS}
        self.needs = frozenset().union(*(m.needs for m in self.methods))

    def _call(self, method: Intervention, hook: str, step: int, *arguments: Any) -> Any:
        try:
            return getattr(method, hook)(*arguments)
        except InterventionError:
            raise
        except Exception as error:
            raise InterventionError(
                f"intervention {method.name!r}, hook {hook}, step {step}: {type(error).__name__}: {error}"
            ) from error

    def one(self, hook: str) -> Intervention | None:
        """The method that takes an exclusive place, if any."""
        return self.hooks[hook][0] if self.hooks[hook] else None

    def ask(self, hook: str, step: int, *arguments: Any) -> Any:
        """Call an exclusive hook with its arguments."""
        return self._call(self.hooks[hook][0], hook, step, *arguments)

    def state(self, hook: str) -> State:
        """The state of the method that takes an exclusive place."""
        return self.states[self.hooks[hook][0].name]

    @property
    def surgery(self) -> bool:
        """Whether the step goes through the gradient engine."""
        return bool(self.hooks["group_weights"] or self.hooks["combine"])

    def mixture(self, step: int) -> list[float] | None:
        if not self.hooks["mixture"]:
            return None
        shares = self.ask("mixture", step, step, self.state("mixture"))
        return None if shares is None else [float(s) for s in shares]

    def seq_len(self, step: int) -> int | None:
        if not self.hooks["sequence"]:
            return None
        return self.ask("sequence", step, step, self.state("sequence"))

    def token_weights(self, view: StepView) -> Tensor | None:
        """Product (B, T) of all token weights, each renormalised to mean 1 unless it keeps its scale."""
        product = None
        for m in self.hooks["token_weights"]:
            weights = self._call(m, "token_weights", view.step, view, self.states[m.name])
            weights = checked(m, "token_weights", view.step, weights, view.losses.shape, view.losses)
            if (weights < 0).any():
                self._fail(m, "token_weights", view.step, "weights are negative")
            if not m.keep_scale:
                weights = weights / weights.mean()
            product = weights if product is None else product * weights
        if product is not None and len(self.hooks["token_weights"]) > 1:
            if not product.sum() > 0:
                self._fail(self.methods[0], "token_weights", view.step, "the product of all token weights is zero")
            if not any(m.keep_scale for m in self.hooks["token_weights"]):
                product = product / product.mean()
        return product

    def _fail(self, m: Intervention, hook: str, step: int, what: str) -> None:
        raise InterventionError(f"intervention {m.name!r}, hook {hook}, step {step}: {what}")

    def extra_loss(self, view: StepView) -> Tensor | None:
        """Sum of the extra losses, a scalar with its graph."""
        total = None
        for m in self.hooks["extra_loss"]:
            term = self._call(m, "extra_loss", view.step, view, self.states[m.name])
            if not isinstance(term, Tensor) or term.numel() != 1:
                self._fail(m, "extra_loss", view.step, "must return one scalar tensor")
            total = term if total is None else total + term
        return total

    def group_weights(self, gramian: Tensor, group_losses: Tensor, step: int) -> Tensor | None:
        """Weights (K,) of the group gradients; None skips the step."""
        m = self.hooks["group_weights"][0]
        weights = self.ask("group_weights", step, gramian, group_losses, self.state("group_weights"))
        if weights is None:
            return None
        return checked(m, "group_weights", step, weights, group_losses.shape, gramian)

    def combine(self, sums: CoordinateSums, step: int) -> Tensor:
        m = self.hooks["combine"][0]
        gradient = self.ask("combine", step, sums, self.state("combine"))
        if not isinstance(gradient, Tensor) or gradient.shape != sums.sum.shape:
            self._fail(m, "combine", step, f"must return a tensor of shape {tuple(sums.sum.shape)} for {sums.name}")
        if not torch.isfinite(gradient).all():
            self._fail(m, "combine", step, f"the gradient of {sums.name} has entries that are not finite")
        return gradient

    def observe(self, stats: StepStats) -> None:
        for m in self.hooks["observe"]:
            self._call(m, "observe", stats.view.step, stats, self.states[m.name])

    def metrics(self, step: int) -> dict[str, float]:
        """What the methods report of this step, under `<name>/<key>`."""
        found: dict[str, float] = {}
        for m in self.hooks["metrics"]:
            values: Mapping[str, float] = self._call(m, "metrics", step, self.states[m.name])
            found |= {f"{m.name}/{key}": float(value) for key, value in values.items()}
        return found


def checked(m: Intervention, hook: str, step: int, weights: Any, shape: torch.Size, like: Tensor) -> Tensor:
    """`weights` detached, in the dtype and on the device of `like`; refused if not of the shape, not finite, or
    without a positive total."""
    where = f"intervention {m.name!r}, hook {hook}, step {step}"
    if not isinstance(weights, Tensor) or weights.shape != shape:
        got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise InterventionError(f"{where}: must return a tensor of shape {tuple(shape)}, got {got}")
    weights = weights.detach().to(like.device, like.dtype)
    if not torch.isfinite(weights).all():
        raise InterventionError(f"{where}: weights are not finite")
    if not weights.sum() > 0:
        raise InterventionError(f"{where}: the total weight is {weights.sum().item():g}, not positive")
    return weights
