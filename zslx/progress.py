"""One line on stderr: what is being done, how much of it, and the time left."""

from __future__ import annotations

import sys
import time


class Progress:
    """`at(share, what)` says that `share` in [0, 1] of all the work is done and `what` is going on.

    On a terminal the line is redrawn. Elsewhere a new line is written for each `what`, and every ten seconds; `note` is
    shown beside `what` but starts no new line. Work that is over within a second says nothing.
    """

    def __init__(self, title: str, enabled: bool = True):
        self.title, self.enabled = title, enabled
        self.start = self.written = time.monotonic()
        self.first: float | None = None  # share that was done at the start: resumed work has some
        self.what, self.width = "", 0

    def at(self, share: float, what: str, note: str = "") -> None:
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if self.first is None:
            self.first = share
        recent = what == self.what and now - self.written < (0.2 if terminal else 10)
        if not self.enabled or recent or now - self.start < 1:
            return
        self.what, self.written = what, now
        done = share - self.first
        left = f", {duration((now - self.start) * (1 - share) / done)} left" if done > 0.02 else ""
        self._write(f"{self.title}: {what}{note} ({share:.0%}{left})", terminal)

    def say(self, message: str) -> None:
        """A line that stays, whatever the time."""
        if self.enabled:
            self._write(f"{self.title}: {message}", False)

    def done(self, message: str) -> None:
        if self.width or self.what:
            self.say(f"{message} ({duration(time.monotonic() - self.start)})")

    def _write(self, line: str, redraw: bool) -> None:
        start = "\r" if self.width else ""
        sys.stderr.write(start + line.ljust(self.width) + ("" if redraw else "\n"))
        sys.stderr.flush()
        self.width = len(line) if redraw else 0


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
