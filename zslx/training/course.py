"""A run in training as a generator that asks for what takes a pass over its model, and does the rest itself.

    Begin          first of all: here is a run
    Losses         of the held-out set, before the update of a step or after it
    Gradient       of a step
    Update         of the weights by that gradient
    Interference   of gradients, at a probe step

By itself, a run answers its own requests (`alone`). In a pack, one pass answers those of several runs (pack.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zslx.instruments.during_training import Instruments
from zslx.instruments.heldout import HeldOut
from zslx.instruments.rank_decomposition import Decomposition
from zslx.text.loader import Batch
from zslx.training.gradient_pass import GradientPass
from zslx.training.numbers import Number, finite
from zslx.training.step_gradient import StepGradient

NORM = "the gradient's norm"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run waits for. `place`: its place within the step."""

    step: int
    place = 0

    def by_itself(self) -> Any:
        """The answer, from the run's own model."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Begin(Request):
    """A run that is about to train. `plain`: its one optimizer is the AdamW of every run."""

    gradient: GradientPass
    optimizers: list[torch.optim.Optimizer]
    clip: float
    plain: bool

    def by_itself(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Losses(Request):
    """Held-out losses (S, T), nats. The `decomposition` is given the ranks of the targets in the same pass."""

    heldout: HeldOut
    model: nn.Module
    before: bool = False
    decomposition: Decomposition | None = None

    @property
    def place(self) -> int:  # type: ignore[override]
        return 1 if self.before else 4

    def by_itself(self) -> Tensor:
        return self.heldout.losses(self.model, decomposition=self.decomposition)


@dataclass(frozen=True, kw_only=True)
class Gradient(Request):
    """The gradient of a step. Diverged where the loss is not finite."""

    own: GradientPass
    batch: Batch
    place = 2

    def by_itself(self) -> StepGradient:
        return self.own(self.batch, self.step)


@dataclass(frozen=True, kw_only=True)
class Update(Request):
    """The weights after this step; the answer is the gradient's norm before clipping. Diverged if it is not finite."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    clip: float
    place = 3

    def by_itself(self) -> Number:
        limit = self.clip if self.clip else math.inf
        norm = finite(NORM, float(nn.utils.clip_grad_norm_(self.model.parameters(), limit)), self.step)
        for optimizer in self.optimizers:
            optimizer.step()
        return norm


@dataclass(frozen=True, kw_only=True)
class Interference(Request):
    """Gradient interference after a probe step, and the effect of its update: a part of the record."""

    instruments: Instruments
    model: nn.Module
    place = 5

    def by_itself(self) -> dict[str, Any]:
        return self.instruments.gradients(self.step, self.model)


# A run in training: it gets each answer with the seconds that it took; its value is the manifest.
Answer = tuple[Any, float]
Course = Generator[Request, Answer, dict[str, Any]]
Value = TypeVar("Value")


def by_itself(request: Request) -> Any:
    return request.by_itself()


def alone(course: Generator[Request, Answer, Value], answer: Callable[[Request], Any] = by_itself) -> Value:
    """Let a run work by itself; `answer`: where something else than the run itself answers its requests."""
    try:
        request = next(course)
        while True:
            began = time.perf_counter()
            try:
                found = answer(request)
            except BaseException as error:
                request = course.throw(error)
            else:
                request = course.send((found, time.perf_counter() - began))
    except StopIteration as ended:
        value: Value = ended.value
        return value
