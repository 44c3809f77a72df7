"""What a step with an intervention costs beside the plain step, and where its time goes.

Two runs in one process take turns, step by step, so that what else the machine does meets both: the ratio is that
of the medians, its spread the quartiles of the ratios of neighbours. The parts are exclusive times of the step,
measured in further steps of their own (a clock costs time too). Peak memory is that of a fresh process each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zslx.config.run_config import Config, override
from zslx.config.sizes import model_preset
from zslx.intervention.registry import reference_of
from zslx.training.clock import Clock
from zslx.training.course import Update
from zslx.training.loop import TrainingRun
from zslx.training.train import train

WARM_UP, PROFILED = 3, 5
PARTS = ("forward", "backward or engine", "method", "optimizer", "rest")


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Seconds a step (medians), the quartiles of the paired ratios, MB at the peak, seconds by part, and operators."""

    plain_seconds: float
    seconds: float
    quartiles: tuple[float, float]
    plain_peak: float
    peak: float
    plain_parts: dict[str, float]
    parts: dict[str, float]
    operators: list[tuple[str, float]]  # name and share of the step's operator time, the largest first

    @property
    def ratio(self) -> float:
        return self.seconds / self.plain_seconds


def measure(spec: str, size: str, *, rounds: int = 20, settings: list[tuple[str, Any]] | None = None) -> StepCost:
    """The cost of `spec` at a named size, B = 16, T = 128, unless `settings` say otherwise."""
    with steppers(spec, size, settings) as (plain, arm):
        peaks = [in_fresh_process(peak_memory, stepper.run.config) for stepper in (plain, arm)]
        times = in_turns(plain, arm, rounds)
        parts = [stepper.parts() for stepper in (plain, arm)]
        operators = arm.operators()
    quartiles = statistics.quantiles([own / base for base, own in times], n=4)
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return StepCost(
        plain_seconds=medians[0],
        seconds=medians[1],
        quartiles=(quartiles[0], quartiles[2]),
        plain_peak=peaks[0],
        peak=peaks[1],
        plain_parts=parts[0],
        parts=parts[1],
        operators=operators,
    )


@contextlib.contextmanager
def steppers(spec: str, size: str, settings: list[tuple[str, Any]] | None = None) -> Iterator[tuple[Stepper, Stepper]]:
    """The plain run and that of `spec`, ready to be stepped; a method that needs a reference model gets one."""
    shape = [("data.batch_size", 16), ("data.seq_len", 128), ("data.heldout_sequences", 4), ("train.steps", 1_000_000)]
    quiet = [("instruments.heldout_points", 2), ("instruments.probes", False)]
    base = dataclasses.replace(Config(), model=model_preset(size))
    with tempfile.TemporaryDirectory() as folder:
        usual = override(base, [("intervention", spec), *shape, *quiet])
        config = override(usual, settings or [])
        plain = dataclasses.replace(config, intervention="none", settings={})
        if needed := reference_of(config):
            train(override(needed, [("train.steps", 1)]), Path(folder) / "reference")
            config = dataclasses.replace(config, reference=str(Path(folder) / "reference"))
        pair = Stepper(plain, Path(folder) / "plain"), Stepper(config, Path(folder) / "arm")
        yield pair
        for stepper in pair:
            stepper.run.records.close()


def in_turns(plain: Stepper, arm: Stepper, rounds: int) -> list[tuple[float, float]]:
    """Seconds of (a plain step, a step of the arm), taken in turns after a few to warm up."""
    for _ in range(WARM_UP):
        plain.step(), arm.step()
    return [(plain.step(), arm.step()) for _ in range(rounds)]


class Stepper:
    """A run taken one step at a time."""

    def __init__(self, config: Config, folder: Path):
        self.run = TrainingRun(config, folder)
        self.run.instruments.heldout_steps = set()  # the step alone
        self.clock = Clock(self.run.records)
        self.done = 0

    def step(self) -> float:
        """Seconds of one more step."""
        self.done += 1
        synchronize()
        start = time.perf_counter()
        self.run.step(self.done, self.clock)
        synchronize()
        return time.perf_counter() - start

    def parts(self) -> dict[str, float]:
        """Median exclusive seconds of each part of a step."""
        rows = []
        for _ in range(PROFILED):
            watch = Stopwatch()
            with watch.around(self.run), watch.part("rest"):
                self.step()
            rows.append(watch.seconds)
        return {part: statistics.median(row[part] for row in rows) for part in PARTS}

    def operators(self) -> list[tuple[str, float]]:
        """The operators that take most of a step, with their shares of all operators' own time."""
        from torch.autograd.profiler import profile

        with profile(use_kineto=False) as profiler:
            self.step()
        own = {e.key: e.self_cpu_time_total for e in profiler.key_averages() if e.key.startswith("aten::")}
        largest = sorted(own.items(), key=lambda item: -item[1])[:6]
        return [(key, microseconds / sum(own.values())) for key, microseconds in largest]


class Stopwatch:
    """Exclusive seconds by part: entering a part stops the one around it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.stack: list[str] = []
        self.since = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self.stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self.stack.pop()

    def _charge(self) -> None:
        synchronize()
        now = time.perf_counter()
        if self.stack:
            self.seconds[self.stack[-1]] += now - self.since
        self.since = now

    @contextlib.contextmanager
    def around(self, run: TrainingRun) -> Iterator[None]:
        """Time the parts of this run's steps."""
        places = [
            (run, "gradient", "backward or engine"),
            (run.model, "forward", "forward"),
            (run.methods, "_call", "method"),
            (Update, "by_itself", "optimizer"),
        ]
        kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
        for (owner, name, part), (_, _, true) in zip(places, kept, strict=True):
            timed = Timed(self, true, part)
            setattr(owner, name, timed if owner is not Update else lambda ask, timed=timed: timed(ask))
        try:
            yield
        finally:
            for owner, name, true in kept:
                setattr(owner, name, true)


class Timed:
    """A callable whose calls are charged to a part; else it is what it stands for."""

    def __init__(self, watch: Stopwatch, true: Callable[..., Any], part: str):
        self.watch, self.true, self.part = watch, true, part

    def __call__(self, *arguments: Any) -> Any:
        with self.watch.part(self.part):
            return self.true(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.true, name)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(config: Config) -> float:
    """MB at the peak of three steps, the process as a whole (a GPU's: what torch allocated there)."""
    with tempfile.TemporaryDirectory() as folder:
        run = Stepper(config, Path(folder))
        for _ in range(3):
            run.step()
    if run.run.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def in_fresh_process(function: Callable[[Config], float], config: Config) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_call, (function, config.to_dict()))


def _call(function: Callable[[Config], float], values: dict[str, Any]) -> float:
    return function(Config.from_dict(values))
