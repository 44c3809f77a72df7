"""Where a run's seconds go: training and instruments apart. Nothing that depends on time reaches another record."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from zslx.runs.records import RunRecords, read_run
from zslx.runs.timing import time_totals


class Clock:
    """Seconds of training and of instruments; everything that depends on them goes to timing.jsonl alone."""

    def __init__(self, records: RunRecords):
        self.records = records
        self.steps: list[float] = []
        self.measured = 0.0
        self._parts = 0.0  # of the step that is being made

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """A part of a step."""
        start = time.perf_counter()
        yield
        self._parts += time.perf_counter() - start

    def charge(self, seconds: float) -> None:
        """A part of a step took so long."""
        self._parts += seconds

    def stepped(self) -> None:
        """A step is done."""
        self.steps.append(self._parts)
        self._parts = 0.0

    @contextlib.contextmanager
    def instruments(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.measured += time.perf_counter() - start

    def write(self, step: int) -> None:
        """A line for the steps since the last one."""
        if not self.steps and not self.measured:
            return
        self.records.append_timing(
            {
                "step": step,
                "steps": len(self.steps),
                "seconds": sum(self.steps),
                "step_seconds": statistics.median(self.steps) if self.steps else None,
                "instrument_seconds": self.measured,
            }
        )
        self.steps, self.measured = [], 0.0

    def totals(self, folder: Path) -> dict[str, float]:
        """Totals over the run, killed attempts included as far as their records were kept."""
        return time_totals(read_run(folder).timing)
