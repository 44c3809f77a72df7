"""The interventions of one run together: which hooks they override, their states, their errors.

Resolved once, when the run is built: a hook that nobody overrides has an empty list and is never called.
Token weights compose by product and are renormalised to mean 1, unless a method keeps its scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from zslx.config.run_config import Config
from zslx.intervention.base import (
    CLAIMED_BY_HOOK,
    NEEDS,
    SUMS,
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
        self.config, self.num_domains = config, num_domains
        self.states: dict[str, State] = {}
        for m in self.methods:
            for what, asked, known in (("needs", m.needs, NEEDS), ("sums", m.sums, SUMS)):
                if unknown := sorted(set(asked) - set(known)):
                    raise ValueError(f"{m.name}: {what} has {unknown}; known are {', '.join(sorted(known))}")
            groups = self._call(m, "count_groups", 0, config.data.batch_size, num_domains)
            draws = generator(config.train.seed, "intervention", m.name)
            self.states[m.name] = self._call(m, "init_state", 0, groups, draws)
        self.hooks = {h: [m for m in self.methods if type(m).overrides(h)] for h in HOOKS}
        self.needs = frozenset().union(*(m.needs for m in self.methods))

    def _call(self, method: Intervention, hook: str, step: int, *arguments: Any) -> Any:
        try:
            return getattr(method, hook)(*arguments)
        except InterventionError:
            raise
        except (Exception, SystemExit) as error:  # a plugin's exit() must not end the run without a word
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

    @property
    def surgeon(self) -> Intervention:
        """The method that combines the group gradients."""
        return (self.hooks["group_weights"] or self.hooks["combine"])[0]

    def mixture(self, step: int) -> list[float] | None:
        """Shares (D,) of the domains, or None for the data's own."""
        if not self.hooks["mixture"]:
            return None
        given = self.ask("mixture", step, step, self.state("mixture"))
        if given is None:
            return None
        m = self.hooks["mixture"][0]
        if not isinstance(given, Iterable):
            self._fail(m, "mixture", step, f"must return {self.num_domains} shares, got {given!r}")
        shares = [self._number(m, "mixture", step, s) for s in given]
        if len(shares) != self.num_domains or min(shares) < 0 or not sum(shares) > 0:
            wanted = f"{self.num_domains} shares, none negative, with a positive total"
            self._fail(m, "mixture", step, f"must return {wanted}, got {shares}")
        return shares

    def seq_len(self, step: int) -> int | None:
        """Positions of this step's sequences, or None for the full length."""
        if not self.hooks["sequence"]:
            return None
        given, full = self.ask("sequence", step, step, self.state("sequence")), self.config.data.seq_len
        if given is None:
            return None
        if not isinstance(given, (int, np.integer)) or not 1 <= given <= full or full % given:
            what = f"must return None or a divisor of data.seq_len={full}, got {given!r}"
            self._fail(self.hooks["sequence"][0], "sequence", step, what)
        return int(given)

    def group_ids(self, view: StepView) -> tuple[Tensor, int]:
        """Ids (B,) or (B, T) of the groups, and their number K."""
        m, step = self.hooks["group_ids"][0], view.step
        given = self.ask("group_ids", step, view)
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor)):
            self._fail(m, "group_ids", step, "must return (ids, number of groups)")
        ids, count = given
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            self._fail(m, "group_ids", step, f"the number of groups must be a whole number above 0, got {count!r}")
        if ids.shape not in (view.losses.shape, view.losses.shape[:1]) or ids.is_floating_point():
            wanted = f"whole numbers of shape {tuple(view.losses.shape[:1])} or {tuple(view.losses.shape)}"
            self._fail(m, "group_ids", step, f"ids must be {wanted}, got {ids.dtype} {tuple(ids.shape)}")
        if not 0 <= int(ids.min()) <= int(ids.max()) < count:
            self._fail(m, "group_ids", step, f"ids must lie from 0 to {count - 1}")
        return ids, int(count)

    def schedule(self, step: int) -> float:
        """The factor on the peak learning rate."""
        m = self.hooks["schedule"][0]
        factor = self._number(m, "schedule", step, self.ask("schedule", step, step, self.config))
        if factor < 0:
            self._fail(m, "schedule", step, f"the factor {factor:g} is negative")
        return factor

    def optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        """The optimizer for these parameter groups."""
        made = self.ask("optimizer", 0, groups, self.config.optim)
        if not isinstance(made, torch.optim.Optimizer):
            what = f"must return a torch.optim.Optimizer, got {type(made).__name__}"
            self._fail(self.hooks["optimizer"][0], "optimizer", 0, what)
        return made

    def average(self, step: int, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights that the run would ship, by the names of `parameters`."""
        m, given = self.hooks["average"][0], self.ask("average", step, parameters, self.state("average"))
        if not isinstance(given, Mapping) or {n: getattr(t, "shape", None) for n, t in given.items()} != {
            n: p.shape for n, p in parameters.items()
        }:
            self._fail(m, "average", step, "must return a tensor of the same shape for every parameter")
        for name, tensor in given.items():
            if torch.isfinite(parameters[name]).all() and not torch.isfinite(tensor).all():
                self._fail(m, "average", step, f"{name} has entries that are not finite")
        return given

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
                names = " and ".join(repr(m.name) for m in self.hooks["token_weights"])
                raise InterventionError(
                    f"interventions {names}, hook token_weights, step {view.step}: the product of their weights is zero"
                )
            if not any(m.keep_scale for m in self.hooks["token_weights"]):
                product = product / product.mean()
        return product

    def _fail(self, m: Intervention, hook: str, step: int, what: str) -> NoReturn:
        raise InterventionError(f"intervention {m.name!r}, hook {hook}, step {step}: {what}")

    def _number(self, m: Intervention, hook: str, step: int, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            self._fail(m, hook, step, f"{value!r} is no finite number")
        return number

    def extra_loss(self, view: StepView) -> Tensor | None:
        """Sum of the extra losses, a scalar with its graph."""
        total = None
        for m in self.hooks["extra_loss"]:
            term = self._call(m, "extra_loss", view.step, view, self.states[m.name])
            if not isinstance(term, Tensor) or term.numel() != 1:
                self._fail(m, "extra_loss", view.step, "must return one scalar tensor")
            if not torch.isfinite(term):
                self._fail(m, "extra_loss", view.step, f"the term is {float(term.detach())}")
            if term.detach() != 0 and not term.requires_grad:
                what = "the term has no gradient: build it on view.live_losses or view.logits"
                self._fail(m, "extra_loss", view.step, what)
            total = term if total is None else total + term
        return total

    def group_weights(self, gramian: Tensor, group_losses: Tensor, step: int) -> Tensor | None:
        """Weights (K,) of the group gradients; None skips the step."""
        m = self.hooks["group_weights"][0]
        weights = self.ask("group_weights", step, gramian, group_losses, self.state("group_weights"))
        if weights is None:
            return None
        return checked(m, "group_weights", step, weights, group_losses.shape, gramian, signed=m.signed)

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
            values = self._call(m, "metrics", step, self.states[m.name])
            if not isinstance(values, Mapping):
                self._fail(m, "metrics", step, f"must return numbers by name, got {type(values).__name__}")
            for key, value in values.items():  # one that is not finite is recorded as null
                try:
                    found[f"{m.name}/{key}"] = float(value)
                except (TypeError, ValueError):
                    self._fail(m, "metrics", step, f"{key}={value!r} is no number")
        return found


def checked(
    m: Intervention, hook: str, step: int, weights: Any, shape: torch.Size, like: Tensor, *, signed: bool = False
) -> Tensor:
    """`weights` detached, in the dtype and on the device of `like`; refused if not of the shape, not finite, or
    without a positive total (`signed`: all zero)."""
    where = f"intervention {m.name!r}, hook {hook}, step {step}"
    if not isinstance(weights, Tensor) or weights.shape != shape:
        got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise InterventionError(f"{where}: must return a tensor of shape {tuple(shape)}, got {got}")
    weights = weights.detach().to(like.device, like.dtype)
    if not torch.isfinite(weights).all():
        raise InterventionError(f"{where}: weights are not finite")
    total = float((weights.abs() if signed else weights).sum())
    if not 0 < total < math.inf:  # an infinite one would divide every weight to 0
        raise InterventionError(f"{where}: the total weight is {total:g}, not positive and finite")
    return weights
