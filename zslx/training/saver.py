"""Writes checkpoints while training goes on: one at a time, in order.

What is written is a copy, made before the next step moves the weights. A write that fails (a full disk) raises where
the next one begins, or where the run ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Saver:
    """At most one write is under way; leaving the context waits for it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], object]) -> None:
        """Begin a write, once the last one is done."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until the last write is done; its error, if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, write: Callable[[], object]) -> None:
        try:
            write()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except Exception:
            if error is None:
                raise  # else the run ends by an error of its own, which came first
