"""The interventions of one run as one: which hooks they implement, their states, their errors.

Resolved once, when the run is built: a hook that nobody implements has an empty list and is never called.
Token weights compose by product and are renormalised to mean 1, unless a method keeps its scale. Factors on the
learning rate multiply, and extra losses add up. Every other hook that returns something belongs to one method.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from zslx.intervention.base import Intervention, RunView, State, StepStats, StepView
from zslx.intervention.gradient_method import CoordinateSums, GradientMethod
from zslx.intervention.hooks import HOOKS, examine_class
from zslx.intervention.raised import attempt, told
from zslx.seeds import generator
from zslx.text.loader import Choice


class InterventionError(ValueError):
    """A plugin raised, or returned what its hook may not return. Names plugin, hook and step."""


class Methods:
    """Interventions with their states, in the order of the spec."""

    def __init__(self, methods: Sequence[Intervention], run: RunView):
        self.methods, self.run = list(methods), run
        self.states: dict[str, State] = {}
        for m in self.methods:
            examine_class(type(m))
            draws = generator(run.config.train.seed, "intervention", m.name)
            self.states[m.name] = self._guarded(m, "init_state", draws)
        self.hooks = {h: [m for m in self.methods if type(m).overrides(h)] for h in HOOKS}
        self.needs = frozenset().union(*(m.needs for m in self.methods))

    def _guarded(self, method: Intervention, hook: str, *arguments: Any) -> Any:
        try:
            return getattr(method, hook)(self.run, *arguments)
        except InterventionError:
            raise
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a plugin's exit() must not end the run without a word
            modules = {cls.__module__ for cls in type(method).__mro__}
            what = told(error, lambda frame: frame.f_globals.get("__name__") in modules)
            raise InterventionError(self._where(method, hook) + what) from error

    def _where(self, method: Intervention, hook: str) -> str:
        return f"intervention {method.name!r}, hook {hook}, step {self.run.step}: "

    def _call(self, method: Intervention, hook: str, *arguments: Any) -> Any:
        """What the hook returns, checked."""
        given = self._guarded(method, hook, *arguments, self.states[method.name])
        try:
            return HOOKS[hook].check(given, method, self.run, *arguments)
        except ValueError as error:
            raise InterventionError(self._where(method, hook) + str(error)) from None

    def has(self, hook: str) -> bool:
        """Whether any method implements the hook."""
        return bool(self.hooks[hook])

    def ask(self, hook: str, *arguments: Any) -> Any:
        """What the one method that implements an exclusive hook returns; None where there is none."""
        return self._call(self.hooks[hook][0], hook, *arguments) if self.hooks[hook] else None

    def needing(self, need: str) -> list[Intervention]:
        return [m for m in self.methods if need in m.needs]

    def due(self, need: str) -> bool:
        """Whether a method gets at this step what is computed at the first step and every `cadence` steps."""
        step = self.run.step
        return any(step == 1 or step % m.cadence == 0 for m in self.needing(need))

    @property
    def surgery(self) -> bool:
        """Whether the step goes through the gradient engine."""
        return self.has("group_weights") or self.has("combine")

    @property
    def surgeon(self) -> GradientMethod:
        """The method that combines the group gradients."""
        return cast(GradientMethod, (self.hooks["group_weights"] or self.hooks["combine"])[0])

    def depth(self) -> int:
        """Layers in use from this step on; a method of the run must have the hook."""
        found: int = self.ask("depth")
        return found

    def mixture(self) -> list[float] | None:
        """Shares (D,) of the domains, or None for the data's own."""
        return self.ask("mixture")

    def batch_size(self) -> int | None:
        """Windows of this step, or None for the configured number."""
        return self.ask("batch_size")

    def seq_len(self) -> int | None:
        """Positions of this step's sequences, or None for the full length."""
        return self.ask("sequence")

    def windows(self, walk: Any) -> Choice | None:
        """Windows (B,) of this step, or where its sequences begin, or None for the seeded order."""
        return self.ask("windows", walk)

    def context(self, tokens: Tensor) -> Tensor | None:
        """First position (B, T) that each position attends to, or None for the whole context."""
        return self.ask("context", tokens)

    def group_ids(self, view: StepView) -> tuple[Tensor, int]:
        """Ids (B,) or (B, T) of the groups, and their number K."""
        return self.ask("group_ids", view)

    def lr_factor(self) -> float:
        """The product of all factors on the learning rate."""
        product = 1.0
        for m in self.hooks["lr_factor"]:
            product *= self._call(m, "lr_factor")
        return product

    def optimizers(self, groups: list[dict[str, Any]]) -> list[torch.optim.Optimizer]:
        return self.ask("optimizer", groups)

    def average(self) -> Mapping[str, Tensor] | None:
        """The weights to evaluate, by the names of the parameters; None for the trained ones."""
        return self.ask("average")

    def token_weights(self, view: StepView) -> Tensor | None:
        """Product (B, T) of all token weights, each renormalised to mean 1 unless it keeps its scale."""
        product = None
        for m in self.hooks["token_weights"]:
            weights = self._call(m, "token_weights", view)
            product = weights if product is None else product * weights
        if product is not None and len(self.hooks["token_weights"]) > 1:
            if not product.sum() > 0:
                names = " and ".join(repr(m.name) for m in self.hooks["token_weights"])
                raise InterventionError(
                    f"interventions {names}, hook token_weights, step {self.run.step}: "
                    "the product of their weights is zero"
                )
            if not any(m.keep_scale for m in self.hooks["token_weights"]):
                product = product / product.mean()
        return product

    def extra_loss(self, view: StepView) -> Tensor | None:
        """Sum of the extra losses, a scalar with its graph."""
        total = None
        for m in self.hooks["extra_loss"]:
            term = self._call(m, "extra_loss", view)
            total = term if total is None else total + term
        return total

    def group_weights(self, gramian: Tensor | None, group_losses: Tensor) -> Tensor | None:
        """Weights (K,) of the group gradients; None skips the step."""
        return self.ask("group_weights", gramian, group_losses)

    def combine(self, sums: CoordinateSums) -> Tensor:
        return self.ask("combine", sums)

    def filter(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient of one parameter, as the method that filters it wants it."""
        return self.ask("filter", name, gradient)

    def observe(self, stats: StepStats) -> None:
        for m in self.hooks["observe"]:
            self._call(m, "observe", stats)

    def metrics(self) -> dict[str, float]:
        """What the methods report of this step, under `<name>/<key>`."""
        found: dict[str, float] = {}
        for m in self.hooks["metrics"]:
            found |= self._call(m, "metrics")
        return found


def group_weights(every: Sequence[Methods], gramians: Tensor, group_losses: Tensor) -> list[Tensor | Exception | None]:
    """Of R runs whose surgeons are equal, each one's weights (K,) from Gramians (R, K, K) and losses (R, K).

    None skips a run's step, an exception ends that run. All are solved at once where the method has a form for that.
    If anything is wrong there, they are asked one after the other, from the states of before: then it is clear whose
    fault it is, and the others go on.
    """
    method = every[0].surgeon
    if len(every) > 1 and method.solves_packs():
        states = [methods.states[method.name] for methods in every]
        undo = [kept(state) for state in states]
        try:
            given = method.packed_group_weights(gramians.clone(), group_losses.clone(), states)
            found = HOOKS["group_weights"].check(given, method, every[0].run, gramians, group_losses)
            if found is not None:
                return list(found)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException:  # as in `Methods`; asked alone, the run at fault says what it is
            pass
        for restore in undo:
            restore()
    return [
        attempt(partial(methods.group_weights, gramian, losses))
        for methods, gramian, losses in zip(every, gramians, group_losses, strict=True)
    ]


def kept(state: State) -> Callable[[], None]:
    """What makes a state again what it is now."""
    draws = {key: (g, g.get_state()) for key, g in state.items() if isinstance(g, torch.Generator)}
    rest = {
        key: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for key, value in state.items()
        if key not in draws
    }

    def restore() -> None:
        generators = {key: generator.set_state(value) for key, (generator, value) in draws.items()}
        state.clear()
        state.update(generators | rest)

    return restore
