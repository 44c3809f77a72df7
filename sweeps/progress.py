"""Live progress of a sweep on stderr: trials done, step and loss of each running one, time left.

On a terminal a view is redrawn (live.py); elsewhere a plain line is written every PLAIN_SECONDS. What a trial does is
read from the end of its own records (one small read a trial a second), so that no message passes through the workers.
The time left uses the rates of the trials that run and have run; before there are any, the estimate made at the start.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sweeps.estimate import Estimate
from sweeps.ledger import Ledger
from sweeps.live import Row, View
from sweeps.planned import PlannedTrial
from sweeps.rounds import rounds
from zslx.printable import printable
from zslx.progress import duration
from zslx.runs.json_files import last_line
from zslx.runs.records import read_manifest

PLAIN_SECONDS = 15.0
REDRAW_SECONDS = 1.0


@dataclass
class Pace:
    """Steps of one running trial: the last one seen, and where and when the present count of time began."""

    step: int
    first: int
    since: float

    def seen(self, step: int, now: float) -> float | None:
        """Seconds a step over the steps since `first`; None while there are none.

        The count begins anew whenever the step has grown fourfold: early steps are slow, since probes and
        checkpoints are dense there.
        """
        if step <= self.step:
            return None
        self.step, rate = step, (now - self.since) / (step - self.first)
        if step >= 4 * max(1, self.first):
            self.first, self.since = step, now
        return rate


class Progress:
    """`total` trials of which `done` are; `update` may be called as often as one likes."""

    def __init__(self, pending: Sequence[PlannedTrial], total: int, ledger: Ledger, estimate: Estimate, slots: int):
        self.ledger, self.estimate, self.slots = ledger, estimate, slots
        self.pending = {trial.key: trial for trial in pending}
        self.total, self.failed = total, 0
        self.rates: dict[tuple[str, str], float] = {}
        self.settled: set[tuple[str, str]] = set()  # where a whole trial has been timed
        self.paces: dict[str, Pace] = {}
        self.planned = list(pending)
        self.view: View | None = None
        self.drawn = self.started = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console

            self.view = View(self.planned, Console(stderr=True))
            self.view.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.view:
            self.view.live.__exit__(None, None, None)
            self.view = None

    def finished(self, trial: PlannedTrial, failed: bool = False) -> None:
        """A trial is over: its own timing becomes the rate of its arm and size."""
        self.pending.pop(trial.key, None)
        self.paces.pop(trial.key, None)
        self.failed += failed
        if self.view:
            self.view.finished(trial, self.ledger.folder(trial.key), failed)
        with contextlib.suppress(ValueError, OSError):
            totals = read_manifest(self.ledger.folder(trial.key)).get("totals", {})
            if totals.get("steps") and totals.get("seconds"):
                self.rates[trial.arm, trial.size] = totals["seconds"] / totals["steps"]
                self.settled.add((trial.arm, trial.size))

    def update(self, running: Iterable[PlannedTrial]) -> None:
        """Redraw if it is time."""
        now = time.monotonic()
        if now - self.drawn < (REDRAW_SECONDS if self.view else PLAIN_SECONDS):
            return
        self.drawn = now
        rows = [(trial, *self._look(trial, now)) for trial in running if trial.key in self.pending]
        if not self.view:
            self._print(rows)
            return
        live = [Row(trial=t, step=step, left=self._left(t, self._drift())) for t, step, _ in rows]
        share = (now - self.started) / max(now - self.started + self.left(), 1e-9)
        folders = [self.ledger.folder(trial.key) for trial, _, _ in rows]
        self.view.draw(
            f"{self.headline()}, {duration(now - self.started)} so far", share, list(zip(live, folders, strict=True))
        )

    def _look(self, trial: PlannedTrial, now: float) -> tuple[int, float | None]:
        """(step, loss) of a running trial, as its records have it."""
        line = last_line(self.ledger.folder(trial.key) / "steps.jsonl")
        step, loss = int(line.get("step", 0)), line.get("loss")
        rate = self.paces.setdefault(trial.key, Pace(step, step, now)).seen(step, now)
        if rate is not None and (trial.arm, trial.size) not in self.settled:
            self.rates[trial.arm, trial.size] = rate
        return step, loss

    def left(self) -> float:
        """Seconds until the last trial ends, about."""
        drift, total = self._drift(), 0.0
        for together in rounds(self.pending.values()):
            seconds = [self._left(trial, drift) for trial in together]
            total += max(sum(seconds) / self.slots, max(seconds))
        return total

    def _drift(self) -> float:
        """By what factor trials take longer than estimated."""
        ratios = [rate / self.estimate.rates[where] for where, rate in self.rates.items()]
        return sum(ratios) / len(ratios) if ratios else 1.0

    def _left(self, trial: PlannedTrial, drift: float) -> float:
        """Seconds of work that are left of a trial; `drift` corrects the estimate of one whose rate is not known."""
        rate = self.rates.get((trial.arm, trial.size), drift * self.estimate.rates[trial.arm, trial.size])
        pace = self.paces.get(trial.key)
        return rate * max(0, trial.steps - (pace.step if pace else self.estimate.begun.get(trial.key, 0)))

    def headline(self) -> str:
        done = self.total - len(self.pending)
        failed = f" ({self.failed} failed)" if self.failed else ""
        return f"{done} of {self.total} trials done{failed}, about {duration(self.left())} left"

    def _print(self, rows: Sequence[tuple[PlannedTrial, int, float | None]]) -> None:
        running = "; ".join(f"{t.label} step {step} of {t.steps}{_loss(loss)}" for t, step, loss in rows)
        line = f"  {self.headline()}" + (f"; {running}" if running else "")
        print(printable(line), file=sys.stderr, flush=True)


def _loss(loss: float | None) -> str:
    return "" if loss is None else f", loss {loss:.3f}"
