"""The view of a sweep on a terminal: what trains, with its held-out loss so far, D and the time left; what is done.

It is fed from the records: every second the new lines of each running trial's probes.jsonl, each read once
(zslx/tracking/follow.py). So no message passes through the workers, and trials cost the same with the view or without.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.planned import PlannedTrial
from zslx.printable import printable
from zslx.progress import duration
from zslx.tracking.follow import Follower

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

BARS = "▁▂▃▄▅▆▇█"
SPARK = 18  # characters of a curve
BAR = 14
LABEL = 40
HEADER = 8  # lines of the terminal that are not rows of tables


@dataclass
class Curve:
    """What the probes of one trial said so far."""

    follower: Follower
    losses: list[float] = field(default_factory=list)  # held-out, nats per token, at log-spaced steps
    interference: float | None = None  # D of the last probe that had it

    def look(self) -> None:
        """Take in what is new."""
        for line in self.follower.new():
            loss, changes = line.get("heldout_loss"), line.get("dt1_heldout")
            if isinstance(loss, float) and loss > 0:
                self.losses.append(loss)
            if isinstance(changes, dict) and isinstance(changes.get("D"), float):
                self.interference = changes["D"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A running trial: its step and the seconds that it still takes."""

    trial: PlannedTrial
    step: int
    left: float


class View:
    """Draws on `console`. `planned` trials are those that this sweep is to train."""

    def __init__(self, planned: Sequence[PlannedTrial], console: Console):
        from rich.live import Live

        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.planned: dict[tuple[str, str], int] = defaultdict(int)
        for trial in planned:
            self.planned[trial.arm, trial.size] += 1
        self.ended: dict[tuple[str, str], list[float | None]] = defaultdict(list)
        self.curves: dict[str, Curve] = {}

    def finished(self, trial: PlannedTrial, folder: Path, failed: bool) -> None:
        """A trial is over."""
        curve = self._curve(trial, folder)
        curve.look()
        self.ended[trial.arm, trial.size].append(None if failed or not curve.losses else curve.losses[-1])
        del self.curves[trial.key]

    def draw(self, headline: str, share: float, rows: Sequence[tuple[Row, Path]]) -> None:
        """Redraw. `share` of the work is done."""
        self.live.update(self.page(headline, share, rows), refresh=True)

    def page(self, headline: str, share: float, rows: Sequence[tuple[Row, Path]]) -> RenderableType:
        """The whole view."""
        from rich.console import Group
        from rich.text import Text

        # All are looked at, so that a curve is whole when its row comes into sight.
        for row, folder in rows:
            self._curve(row.trial, folder).look()
        room = max(1, self.console.height - HEADER)
        shown = rows[:room]
        parts: list[Any] = [Text(printable(headline), style="bold"), bar(1.0, share, 60)]
        parts += ["", self.running([row for row, _ in shown])]
        if len(rows) > len(shown):
            parts.append(Text(f"and {len(rows) - len(shown)} more", style="dim"))
        arms = {arm for arm, _ in self.planned}
        if self.ended and len(arms) + 2 <= room - len(shown):
            parts += ["", self.done()]
        return Group(*parts)

    def running(self, rows: Sequence[Row]) -> RenderableType:
        """A row a trial."""
        from rich.text import Text

        table = grid("training", "", "step", "held-out loss", "", "D", "left")
        for row in rows:
            curve, steps = self.curves[row.trial.key], row.trial.steps
            table.add_row(
                Text(printable(row.trial.label, LABEL)),
                bar(steps, row.step, BAR),
                f"{row.step}/{steps}",
                Text(sparkline(curve.losses), style="cyan"),
                f"{curve.losses[-1]:.4f}" if curve.losses else "",
                "" if curve.interference is None else f"{curve.interference:.3f}",
                duration(row.left),
            )
        return table

    def done(self) -> RenderableType:
        """A row an arm, a column a size: how many of the trials are done, and their mean held-out loss at the end."""
        from rich.text import Text

        sizes = list(dict.fromkeys(size for _, size in self.planned))
        table = grid("trained", *(f"{size}, loss" for size in sizes))
        for arm in dict.fromkeys(arm for arm, _ in self.planned):
            cells = [self._cell(arm, size) for size in sizes]
            table.add_row(Text(printable(arm, LABEL)), *cells)
        return table

    def _cell(self, arm: str, size: str) -> str:
        if not (planned := self.planned.get((arm, size))):
            return ""
        ended = self.ended[arm, size]
        losses = [loss for loss in ended if loss is not None]
        mean = f"  {math.fsum(losses) / len(losses):.4f}" if losses else ""
        return f"{len(ended)}/{planned}{mean}"

    def _curve(self, trial: PlannedTrial, folder: Path) -> Curve:
        if trial.key not in self.curves:
            self.curves[trial.key] = Curve(Follower(folder / "probes.jsonl"))
        return self.curves[trial.key]


def bar(total: float, completed: float, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar

    return ProgressBar(total=total, completed=completed, width=width, complete_style="cyan")


def grid(*titles: str) -> Any:
    """A table without lines."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True, justify="right" if title in ("step", "D", "left") else "left")
    return table


def sparkline(values: Sequence[float], width: int = SPARK) -> str:
    """log values as `width` bars at most, the lowest value the lowest bar."""
    if not values:
        return ""
    count = min(width, len(values))
    logs = [math.log(values[round(i * (len(values) - 1) / max(1, count - 1))]) for i in range(count)]
    low, high = min(logs), max(logs)
    return "".join(BARS[round((x - low) / (high - low) * (len(BARS) - 1))] if high > low else BARS[0] for x in logs)
