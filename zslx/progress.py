"""One line on stderr: what is being done, how much of it, and the time left."""

from __future__ import annotations

import sys
import time


class Progress:
    """`at(share, what)` says that `share` in [0, 1] of all the work is done and `what` is going on.

    On a terminal the line is redrawn; elsewhere a new one is written for each `what`, and every ten seconds. `note` is
    shown with it but starts no new line.
    Work that is over within a second says nothing.
    """

    def __init__(self, title: str, enabled: bool = True):
        self.title, self.enabled = title, enabled
        self.start = self.written = time.monotonic()
        self.what, self.width = "", 0

    def at(self, share: float, what: str, note: str = "") -> None:
        now = time.monotonic()
        elapsed, terminal = now - self.start, sys.stderr.isatty()
        if (
            not self.enabled
            or elapsed < 1
            or (now - self.written < (0.2 if terminal else 10)
            and what == self.what)
        ):
            return
        self.what, self.written = what, now
        left = f", {elapsed * (1 - share) / share:.0f} s left" if share > 0.02 else ""
        self._write(f"{self.title}: {what}{note} ({share:.0%}{left})", terminal)

    def say(self, message: str) -> None:
        """A line that stays, whatever the time."""
        if self.enabled:
            self._write(f"{self.title}: {message}", False)

    def done(self, message: str) -> None:
        if self.width or self.what:
            self.say(f"{message} ({time.monotonic() - self.start:.0f} s)")

    def _write(self, line: str, redraw: bool) -> None:
        start = "\r" if self.width else ""
        sys.stderr.write(start + line.ljust(self.width) + ("" if redraw else "\n"))
        sys.stderr.flush()
        self.width = len(line) if redraw else 0
