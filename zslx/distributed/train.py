"""Trains a run on several ranks: rank 0 leads, the others follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zslx.config.run_config import Config
from zslx.distributed import group
from zslx.distributed.run import RankedRun
from zslx.runs.identity import device_kind
from zslx.training.course import Request, alone, by_itself
from zslx.training.loop import Progress, TrainingRun
from zslx.training.train import training


def train_on_ranks(config: Config, out: str | Path, *, progress: Progress | None = None) -> dict[str, Any] | None:
    """As `zslx.training.train.train`, called in every rank with the same configuration; the manifest on rank 0, and
    None on the others.

    ValueError where the run cannot be shared: a method that needs the whole batch in one place, fewer sequences than
    ranks. ConnectionError where another rank is gone: the same call goes on from the last checkpoint.
    """
    with group.joined(device_kind(config).split()[0]):
        if group.leads():
            return lead(config, out, progress)
        follow()
        return None


def lead(config: Config, out: str | Path, progress: Progress | None) -> dict[str, Any]:
    told = False

    def build(config: Config, out: Path) -> TrainingRun:
        nonlocal told
        told = True
        group.from_leader(config.to_dict())
        return kind(config, out)

    kind, answer = kind_of(config)
    try:
        return alone(training(config, out, progress=progress, build=build), answer)
    except RuntimeError as error:
        if group.lost(error):
            raise ConnectionError(f"{out}: another rank of this run is gone; the same command goes on") from error
        raise
    finally:
        if not told:  # refused, or finished before
            group.from_leader(None)
        group.say_ended()


def follow() -> None:
    values = group.from_leader()
    if values is None:
        return
    config = Config.from_dict(values)
    kind, answer = kind_of(config)
    try:
        run = kind(config, None)
        alone(run.course(run.resume()), answer)
    except Exception:
        if not group.leader_ended():  # else its words are enough
            raise


def kind_of(config: Config) -> tuple[type[RankedRun], Callable[[Request], Any]]:
    """The class of the run on a rank, and what answers its requests."""
    if not config.run.shard:
        return RankedRun, by_itself
    from zslx.distributed.sharding import ShardedRun, sharded_answer  # FSDP takes a second to import

    return ShardedRun, sharded_answer
