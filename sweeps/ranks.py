"""Trains one trial on ranks that lie on several nodes of a cluster, through Ray Train.

Ray Train finds a place for each rank, gives them a process group, and ends all of them when one is lost. The rest is as
with torchrun: rank 0 leads, and writes the run folder. Nothing is reported to Ray Train, so it keeps no checkpoint of
its own, and it starts no trial again: the sweep does.

Its workers are no part of what Tune counts for a trial. So such a trial asks Tune for nothing (`resources` in tune.py),
and the sweep starts as many at a time as the cluster has room for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps import cluster
from sweeps.trial import enter, fresh
from zslx.config.run_config import Config
from zslx.distributed.train import train_on_ranks
from zslx.runs.identity import device_kind
from zslx.runs.records import read_manifest


def across_nodes(common: cluster.Common, config: Config, folder: Path) -> dict[str, Any]:
    """Train a run on `run.workers` ranks wherever the cluster has room; its manifest.

    What rank 0 raises is raised here. ConnectionError where a rank was killed, with its node.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = device_kind(config).startswith("cuda")
    with tempfile.TemporaryDirectory(prefix="train-", dir=common.mark) as state:
        trainer = TorchTrainer(
            one_rank,
            train_loop_config={
                "config": config.to_dict(),
                "folder": str(folder.resolve()),
                "working_directory": str(Path.cwd()),
                "common": common,
            },
            # As zslx.distributed.group.joined has it: plain values go through gloo, whatever the device.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo", timeout_s=1800),
            scaling_config=ScalingConfig(
                num_workers=config.run.workers,
                use_gpu=gpu,
                resources_per_worker={"CPU": config.train.threads} | ({"GPU": 1} if gpu else {}),
            ),
            run_config=RunConfig(name="ranks", storage_path=state, failure_config=FailureConfig(max_failures=0)),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            why = told(error.worker_failures, config.run.workers)
            why.add_note(str(error).strip())
            raise why from None  # faults.may_pass goes by the cause
    return read_manifest(folder)


def one_rank(given: Mapping[str, Any]) -> None:
    """What each of Ray Train's workers runs."""
    cluster.check(given["common"])
    enter(given["working_directory"])
    config = Config.from_dict(given["config"])
    fresh(config)
    train_on_ranks(config, given["folder"])


def told(failures: Mapping[int, BaseException], ranks: int) -> BaseException:
    """The error that says why: rank 0's own, whose words are enough where all fail for one reason; else that a rank was
    lost, since the others then find a broken connection."""
    leader = failures.get(0)
    if leader and not gone(leader) and not isinstance(leader, ConnectionError):
        return leader
    rank, error = next(((r, e) for r, e in failures.items() if r), (0, leader))
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ConnectionError(f"rank {rank} of {ranks} is gone ({why}); the trial goes on from its last checkpoint")


def gone(error: BaseException) -> bool:
    """Whether Ray Train says it of a worker, and not the worker itself."""
    return type(error).__module__.startswith("ray.")
