"""Trains one trial on ranks that lie on several nodes of a cluster, through Ray Train.

Ray Train finds a place for each rank, gives them a process group, and ends all of them when one is lost. The rest is as
with torchrun: rank 0 leads, and writes the run folder. Nothing is reported to Ray Train, so it keeps no checkpoint of
its own, and it starts no ranks again: the sweep does.

Its workers are no part of what Tune counts for a trial. So such a trial asks Tune for next to nothing
(`waiting_place`), and the sweep starts as many at a time as the cluster has room for (`room`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeps import cluster
from sweeps.ray_session import ray
from sweeps.trial import enter, fresh
from zslx.config.run_config import Config
from zslx.distributed import group
from zslx.distributed.launch import lost
from zslx.distributed.train import train_on_ranks
from zslx.locking import locked
from zslx.runs.identity import device_kind
from zslx.runs.records import read_manifest

ASKED = 10  # minutes that ranks wait for their places, where others have them


def across_nodes(common: cluster.Common, config: Config, folder: Path) -> dict[str, Any]:
    """Train a run on `run.workers` ranks wherever the cluster has room; its manifest.

    What the ranks raise is raised here. ConnectionError where one was killed, or where they found no place.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    device = device_kind(config).split()[0]
    gpu = device == "cuda"
    with tempfile.TemporaryDirectory(prefix="train-", dir=common.mark) as state:
        trainer = TorchTrainer(
            one_rank,
            train_loop_config={
                "config": config.to_dict(),
                "folder": str(folder.resolve()),
                "working_directory": str(Path.cwd()),
                "common": common,
            },
            torch_config=TorchConfig(backend=group.backend(device), timeout_s=int(group.PATIENCE.total_seconds())),
            scaling_config=ScalingConfig(
                num_workers=config.run.workers,
                use_gpu=gpu,
                resources_per_worker={"CPU": config.train.threads} | ({"GPU": 1} if gpu else {}),
            ),
            run_config=RunConfig(
                name="ranks",
                storage_path=state,
                # Ray Train asks for places once a minute. (mypy sees the class of its first version.)
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=0, max_preemption_failures=0, controller_failure_limit=ASKED
                ),
            ),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            why = told(error.worker_failures, config.run.workers)
            why.add_note(str(error).strip())
            raise why from None  # faults.may_pass goes by the cause
        except TrainingFailedError as error:
            said = str(error).strip().splitlines()[-1]
            raise ConnectionError(f"Ray Train gave the {config.run.workers} ranks up ({said})") from None
    return read_manifest(folder)


def one_rank(given: Mapping[str, Any]) -> None:
    """What each of Ray Train's workers runs."""
    cluster.check(given["common"])
    enter(given["working_directory"])
    config = Config.from_dict(given["config"])
    fresh(config)
    if os.environ["RANK"] == "0":
        # The trial is ours alone (sweeps.ledger.claim). A rank 0 of before may not be gone yet, or its node's lock.
        with locked(Path(given["folder"]) / ".lock"):
            pass
    train_on_ranks(config, given["folder"])


def told(failures: Mapping[int, BaseException], ranks: int) -> BaseException:
    """The error that says why. A node that is unlike the others stops the sweep, so it comes first; then what a rank
    says itself, rank 0 before the others; else a rank was lost, and the others found a broken connection."""
    own = [failures[rank] for rank in sorted(failures) if not broken(failures[rank])]
    unlike = [error for error in own if isinstance(error, cluster.Unlike)]
    if own:
        return (unlike or own)[0]
    rank = next((rank for rank in failures if gone(failures[rank])), min(failures, default=0))
    why = (str(failures.get(rank, "")).strip().splitlines() or ["no word of it"])[0]
    return lost(rank, ranks, f"is gone ({why})")


def broken(error: BaseException) -> bool:
    """Whether an error says no more than that a rank is gone."""
    return gone(error) or isinstance(error, ConnectionError) or (isinstance(error, RuntimeError) and group.lost(error))


def gone(error: BaseException) -> bool:
    """Whether Ray Train says it of a worker, and not the worker itself."""
    return type(error).__module__.startswith("ray.")


def room(nodes: Sequence[Mapping[str, float]], ranks: int, threads: int, gpu: bool) -> int:
    """How many trials of so many ranks find places on nodes of these resources, none of which is in use.

    ValueError where there is none for a single one.
    """
    each = {"CPU": threads} | ({"GPU": 1} if gpu else {})
    places = sum(min(int(node.get(kind, 0) // need) for kind, need in each.items()) for node in nodes)
    if places < ranks:
        what = f"{threads} {'core' if threads == 1 else 'cores'}" + (" and a GPU" if gpu else "")
        raise ValueError(f"run.workers={ranks}: the cluster has places for {places} ranks of {what}: add nodes")
    return places // ranks


def nodes() -> list[dict[str, float]]:
    """The resources of each node of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def waiting_place(gpu: bool) -> dict[str, float]:
    """What a trial asks of Tune whose ranks have places of their own: something, since Tune wants that. With GPUs it
    must run where there is one, since the kind of device is a part of its identity."""
    kinds = [kind for kind in ray.cluster_resources() if kind.startswith("accelerator_type:")] if gpu else []
    return {kinds[0]: 0.001} if kinds else {"memory": 1}
