"""What the ranks of the tests do: train some runs, one after the other, on as many of the ranks as each wants."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zslx.distributed import group
from zslx.distributed.reduction import OrderedReduction
from zslx.distributed.run import RankedRun
from zslx.distributed.train import train_on_ranks
from zslx.runs import provenance
from zslx.testing.subject import Stopped, plain


@dataclass(frozen=True)
class Job:
    """A run on `world` ranks. stop_at: the step before which every rank ends as if it were stopped; processor: that of
    the machine, where it is another one."""

    name: str
    world: int
    values: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""
    stop_at: int = 0
    processor: str = ""


def work(jobs: Sequence[Job], base: str) -> dict[str, Any]:
    """What became of each job, on rank 0: its manifest, or the error."""
    rank, outcomes, own = int(os.environ["RANK"]), {}, provenance._processor()
    for number, job in enumerate(jobs):
        if rank >= job.world:
            continue
        os.environ |= {"WORLD_SIZE": str(job.world), group.STORE: f"{base}/store-{number}"}
        provenance._processor = partial(str, job.processor or own)
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


class Routed(nn.Module):
    """Each row x goes through one expert of five, which its number chooses; the fifth is never chosen."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(3, generator=draws, dtype=torch.float64))
        self.experts = nn.ParameterList(
            nn.Parameter(torch.randn(3, generator=draws, dtype=torch.float64)) for _ in range(5)
        )

    def loss(self, rows: Sequence[int]) -> Tensor:
        """Summed over the rows, later ones first: so that the order of use is another on each rank, too."""
        found = [(self.first * (n + 1)).tanh() @ self.experts[n % 4] for n in reversed(rows)]
        return torch.stack(found).square().sum()


def gradients(model: Routed) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def routed(rows: Sequence[Sequence[Sequence[int]]]) -> list[list[Tensor | None]]:
    """The gradients of a model of experts, after a step on each of `rows`: those of every rank in two parts."""
    found = []
    with group.joined("cpu"):
        model = Routed()
        reduction = OrderedReduction(model)
        for step in rows:
            model.zero_grad(set_to_none=True)
            own = step[group.rank()]
            model.loss(own[:1]).backward()  # a part of the batch before the last: added up with it
            reduction.backward(model.loss(own[1:]))
            found.append(gradients(model))
    return found
