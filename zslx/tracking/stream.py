"""Feeds sinks (wandb, event files) while runs train: a thread that reads what the trainer has written.

Training does not wait for it, whatever the network does, and knows nothing of it. What goes wrong is kept as a text and
ends that sink alone: the records have everything, and it can be logged from them afterwards.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zslx.runs.records import Run, read_run
from zslx.tracking.rows import Row, Rows

SECONDS = 2.0  # between looks


class Sink(Protocol):
    """Where rows go; rows before step `first` are there already."""

    first: int

    def write(self, rows: Iterable[Row]) -> None: ...

    def close(self, summary: Mapping[str, Any] | None = None, *, ok: bool) -> None: ...


@dataclass
class Feed:
    """One run folder and its sink, which `open` makes once the run has begun. `wrong`: the error that ended it."""

    folder: Path
    open: Callable[[Run], Sink | None]  # None: not now, ask again
    sink: Sink | None = None
    wrong: str = ""
    rows: Rows | None = None

    def look(self) -> None:
        """Write what is new."""
        if self.wrong:
            return
        try:
            if self.sink is None and (self.folder / "manifest.json").exists():
                self.sink = self.open(read_run(self.folder))
                self.rows = Rows(self.folder)
            if self.sink and self.rows:
                self.sink.write(self.rows.new())
        except Exception as error:
            self.wrong = f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def streaming(feeds: Iterable[Feed]) -> Iterator[None]:
    """Feed inside this context. Afterwards sinks are open still, without the last rows."""
    feeds, over = list(feeds), threading.Event()

    def work() -> None:
        while not over.wait(SECONDS):
            for feed in feeds:
                feed.look()

    thread = threading.Thread(target=work, daemon=True, name="tracking")
    if feeds:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if feeds:
            thread.join()


def finish(sink: Sink, rows: Iterable[Row], summary: Mapping[str, Any], *, ok: bool) -> None:
    """Write the rows that the sink lacks and end it, whatever happens."""
    try:
        sink.write(rows)
    except BaseException:
        with contextlib.suppress(Exception):
            sink.close(ok=False)
        raise
    sink.close(summary, ok=ok)
