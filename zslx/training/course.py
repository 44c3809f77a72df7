"""A run in training as a generator that asks for the gradient of each step.

By itself, the run's own pass answers (`alone`). In a pack, one pass answers for several runs (pack.py).
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from zslx.text.loader import Batch
from zslx.training.step_gradient import GradientPass, StepGradient


@dataclass(frozen=True)
class Request:
    """What a run in training waits for: the gradient of its next step. It lies in the parameters' `.grad` then."""

    own: GradientPass  # the run's
    batch: Batch
    step: int


Course = Generator[Request, StepGradient, dict[str, Any]]  # a run in training; its value is the manifest
Value = TypeVar("Value")


def alone(course: Generator[Request, StepGradient, Value]) -> Value:
    """Let a run work by itself: its own pass computes each gradient."""
    try:
        request = next(course)
        while True:
            began = time.perf_counter()
            try:
                gradient = request.own(request.batch, request.step)
            except BaseException as error:
                request = course.throw(error)
            else:
                gradient.seconds = time.perf_counter() - began
                request = course.send(gradient)
    except StopIteration as ended:
        value: Value = ended.value
        return value
