"""What the ranks of the tests do: train some runs, one after the other, on as many of the ranks as each wants."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zslx.distributed import group
from zslx.distributed.run import RankedRun
from zslx.distributed.train import train_on_ranks
from zslx.testing.subject import Stopped, plain


@dataclass(frozen=True)
class Job:
    """A run on `world` ranks. stop_at: the step before which every rank ends as if it were stopped."""

    name: str
    world: int
    values: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    stop_at: int = 0


def work(jobs: Sequence[Job], base: str) -> dict[str, Any]:
    """What became of each job, on rank 0: its manifest, or the error."""
    rank, outcomes = int(os.environ["RANK"]), {}
    for number, job in enumerate(jobs):
        if rank >= job.world:
            continue
        os.environ |= {"WORLD_SIZE": str(job.world), group.STORE: f"{base}/store-{number}"}
        with stopping(job.stop_at):
            try:
                outcomes[job.name] = train_on_ranks(plain(job.values), Path(base) / (job.folder or job.name))
            except (Stopped, ValueError) as error:
                outcomes[job.name] = f"{type(error).__name__}: {error}"
    return outcomes


class stopping:
    def __init__(self, step: int):
        self.step, self.true = step, RankedRun.advance

    def __enter__(self) -> None:
        true, stop = self.true, self.step

        def advance(run: RankedRun, step: int, clock: Any) -> Any:
            if step == stop:
                raise Stopped
            return true(run, step, clock)

        RankedRun.advance = advance  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        RankedRun.advance = self.true  # type: ignore[method-assign]
