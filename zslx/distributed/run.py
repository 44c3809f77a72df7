"""One run on several ranks: rank 0 leads, the others follow.

All run the same course and come to the same numbers, because losses and gradients are added up over the ranks before
anybody uses them. The leader alone reads and writes the run folder: it tells the others which run it is, and on a
resume gives them the state that it found. So the run folder need not lie where all see it (text, reference run and a
model's folder must), and the number of ranks may be another one at each start; timing.jsonl keeps which it was.
Whenever the state is saved, the ranks compare their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zslx.config.run_config import Config
from zslx.distributed import group
from zslx.distributed.gradient import RankedPass
from zslx.distributed.measuring import RankedHeldOut, RankedInstruments
from zslx.model.transformer import Model
from zslx.runs import checkpoints
from zslx.runs.records import RunRecords
from zslx.training.clock import Clock
from zslx.training.loop import TrainingRun


class Unrecorded(RunRecords):
    """What takes the lines of a rank that does not lead: nothing."""

    def __init__(self) -> None:
        self._files = {}

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        pass


class RankedRecords(RunRecords):
    """Records that say how many ranks there were, and what each sent, in bytes by kind of collective."""

    def append_timing(self, line: Mapping[str, Any]) -> None:
        super().append_timing({**line, "ranks": group.world(), "sent": dict(group.sent)})
        group.sent.clear()


class RankedRun(TrainingRun):
    """A run on one of several ranks. `out`: its folder, known to the leader alone."""

    gradient_pass = RankedPass
    held_out = RankedHeldOut
    measuring = RankedInstruments

    def __init__(self, config: Config, out: Path | None):
        for key in ("batch_size", "heldout_sequences"):
            if (count := getattr(config.data, key)) < group.world():
                raise ValueError(f"data.{key}={count}: fewer sequences than the {group.world()} ranks")
        super().__init__(config, out or Path())

    def placed(self, model: Model) -> Model:
        model = super().placed(model)
        for parameter in model.parameters():  # other machines may draw other last bits
            group.tensor_from_leader(parameter.data)
        return model

    def recorded(self) -> RunRecords:
        return RankedRecords(self.out) if group.leads() else Unrecorded()

    def agreed(self, due: bool) -> bool:
        return bool(group.tensor_from_leader(torch.tensor([due])))

    def totals(self, step: int, clock: Clock) -> dict[str, Any]:
        return super().totals(step, clock) | {"ranks": group.world()} if group.leads() else {}

    def save(self, step: int) -> None:
        check_alike(self.model, step)
        super().save(step)

    def _write(self, kind: str, step: int, state: dict[str, Any]) -> None:
        if group.leads():
            super()._write(kind, step, state)

    def resume(self, continued_from: int = 0) -> int:
        """The leader's state on every rank; the step it stands at."""
        if group.leads():
            step = super().resume(continued_from)
            if not step:
                group.from_leader(None)
            group.from_leader(step)
            return step
        given = group.from_leader()
        if given is not None:
            skeleton, kinds = given
            tensors = {
                name: self.kept(name, group.bytes_from_leader(torch.empty(shape, dtype=dtype)))
                for name, (shape, dtype) in kinds.items()
            }
            self.put(checkpoints.unpack(skeleton, tensors, self.device))
        return int(group.from_leader())

    def kept(self, name: str, whole: Tensor) -> Tensor:
        """What this rank keeps of a tensor of the leader's state: all of it."""
        return whole

    def restore(self, state: dict[str, Any]) -> None:
        skeleton, tensors = checkpoints.packed(state)
        group.from_leader((skeleton, {name: (t.shape, t.dtype) for name, t in tensors.items()}))
        for tensor in tensors.values():
            group.bytes_from_leader(tensor)
        self.put(state)

    def put(self, state: dict[str, Any]) -> None:
        """Put this rank where the run stood when the whole `state` was saved."""
        super().restore(state)


def check_alike(model: nn.Module, step: int) -> None:
    """RuntimeError where the ranks have come to hold different weights: an error of a method, or of the hardware."""
    names, own = zip(*((name, bits(p)) for name, p in model.named_parameters()), strict=True)
    least, most = (torch.stack(own) for _ in range(2))
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    differing = [name for name, same in zip(names, (least == most).tolist(), strict=True) if not same]
    if differing:
        raise RuntimeError(f"step {step}: the ranks hold different weights, first in {differing[0]}")


def bits(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits, read as whole numbers: another one after almost any change."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]
    return tensor.detach().contiguous().view(whole).sum(dtype=torch.int64)
