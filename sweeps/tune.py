"""Trains trials as Ray Tune trials.

One of Ray's trials is one call of `sweeps.trial.run` in a reused actor, so that a worker imports torch once: one trial
of ours, or a pack. Ray gets what the ledger does not have: first the reference runs, then what needs them (rounds.py),
the largest first in each round so that the slots stay full. Each has one CPU core for each of its threads and a share
of a GPU where there is one; on a cluster, the ranks of a trial have places of their own (ranks.py). A worker that dies
is started again, and its trials go on from their own checkpoints, MAX_FAILURES times; those of a pack then go on by
themselves, since one of them may be what kills it. An error that would come back is reported at once. Ray's own state
is thrown away: what survives a sweep is the ledger.
"""

from __future__ import annotations

import errno
import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeps import cluster, ranks
from sweeps import trial as trials
from sweeps.faults import NoSpace, described, may_pass
from sweeps.outcome import Failure, Outcome
from sweeps.packing import cores_of, gpu_share, parameters
from sweeps.planned import PlannedTrial
from sweeps.progress import Progress
from sweeps.ray_session import CLUSTER, ray, started  # before anything else of Ray
from sweeps.rounds import lost
from zslx.intervention.base import Intervention
from zslx.intervention.discovery import define, defined
from zslx.intervention.registry import ready_to_send

from ray import tune  # isort: skip

MAX_FAILURES = 2


class TrialActor(tune.Trainable):
    """A worker. `step` is a whole trial or pack; `reset_config` gives it the next one."""

    def setup(
        self,
        config: Mapping[str, Any],
        classes: Sequence[type[Intervention]] = (),
        common: cluster.Common | None = None,
    ) -> None:
        """`classes` are interventions of the session that started the sweep, which no file defines; `common` is what
        a node of a cluster must share with it."""
        self.jobs = [trials.Job(**job) for job in json.loads(config["jobs"])]
        self.common = common
        for cls in classes:
            define(cls)

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            if self.common is None:
                return {"done": True, "results": trials.run(self.jobs)}
            cluster.check(self.common)
            across = functools.partial(ranks.across_nodes, self.common)
            return {"done": True, "results": trials.run(self.jobs, across)}
        except cluster.Unlike as error:
            return {"done": True, "results": [], "unlike": str(error)}
        except Exception as error:
            if may_pass(error):
                raise
            return {"done": True, "results": [described(error)] * len(self.jobs)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The trial keeps its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See save_checkpoint."""


class Watch(tune.Callback):
    """Tells the progress display what Tune does, and collects in `outcome` how each trial ended.

    `again`: trials of packs whose process died too often.
    """

    def __init__(self, byjob: Mapping[str, Sequence[PlannedTrial]], progress: Progress, outcome: Outcome):
        self.byjob, self.progress, self.outcome = byjob, progress, outcome
        self.again: list[PlannedTrial] = []
        self.stop: Exception | None = None  # why no further trial can be trained

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks to be able to restore them; this one belongs to the running sweep alone."""
        return {}

    def _trials(self, trial: Any) -> Sequence[PlannedTrial]:
        return self.byjob[trial.config["jobs"]]

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.progress.update(ours for t in trials if t.status == "RUNNING" for ours in self._trials(t))
        if self.stop:  # raised here: what on_trial_complete raises Tune takes for the trial's own failure
            raise self.stop

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = trial.last_result or {}
        if why := last.get("unlike"):
            self.stop = cluster.Unlike(why)
            return
        for ours, result in zip(self._trials(trial), last.get("results", []), strict=True):
            if result.get("wandb"):
                wrong = result["wandb"]
                self.outcome.notes.add(f"wandb could not log every trial ({wrong}); the records have everything")
            if result.get("trained"):
                self.outcome.trained.add(ours.key)
            if result.get("status") == "failed":
                self.outcome.failures[ours.key] = Failure(result["error"], result.get("details", ""))
            self.progress.finished(ours, failed=ours.key in self.outcome.failures)
            if result.get("full"):
                self.stop = NoSpace(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.progress.ledger.results))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error, log = trial.get_pickled_error(), str(trial.get_error())
        cause = getattr(error, "cause", None) or error
        if cause is None or isinstance(cause, ray.exceptions.RayActorError):
            why = "killed, out of memory, or ended by the plugin"
            failure = Failure(f"its process died {MAX_FAILURES + 1} times ({why})", log)
        else:
            failure = Failure(described(cause)["error"], log)
        pack = self._trials(trial)
        done, left = self.progress.ledger.split(pack)
        self.outcome.trained |= {ours.key for ours in done}
        for ours in done:
            self.progress.finished(ours)
        if len(pack) > 1:
            self.again += left
            return
        for ours in left:
            self.outcome.failures[ours.key] = failure
            self.progress.finished(ours, failed=True)


Jobs = Sequence[Sequence[tuple[PlannedTrial, trials.Job]]]  # by worker


def train_all(rounds: Sequence[Jobs], progress: Progress, slots: int | None) -> Outcome:
    """Train every job, `slots` at a time, one round after the other. A trial whose reference run came to nothing fails.

    slots: None for as many as a cluster has cores for. KeyboardInterrupt leaves no process behind; NoSpace and
    cluster.Unlike end the whole sweep.
    """
    outcome = Outcome()
    every = {trial.key: (trial, job) for jobs in rounds for pack in jobs for trial, job in pack}
    cores = max(cores_of(trial.config) for trial, _ in every.values())
    results = Path(rounds[0][0][0][1].labels["results"])
    gpu = any(gpu_share([trial.config]) for trial, _ in every.values())
    with started(results, (slots or 1) * cores, gpu) as scratch:
        workers = max(trial.config.run.workers for trial, _ in every.values())
        if workers > 1 and CLUSTER:
            most = ranks.room(ranks.nodes(), workers, cores // workers, gpu)
            slots = min(slots or most, most)
        progress.slots = slots or max(1, int(ray.cluster_resources().get("CPU", 1)) // cores)
        train = Round(progress, outcome, scratch, slots, cluster.common(results, scratch) if CLUSTER else None)
        for number, jobs in enumerate(rounds):
            left = with_reference(jobs, progress, outcome)
            again = train(left, f"packs-{number}") if left else []
            if again:
                train([[every[trial.key]] for trial in again], f"alone-{number}")
    return outcome


def with_reference(jobs: Jobs, progress: Progress, outcome: Outcome) -> Jobs:
    """The jobs without those trials whose reference run came to nothing: these are among the failures."""
    gone = lost((trial for pack in jobs for trial, _ in pack), progress.ledger.status, outcome.failures)
    outcome.failures |= gone
    for pack in jobs:
        for trial, _ in pack:
            if trial.key in gone:
                progress.finished(trial, failed=True)
    left = [[(trial, job) for trial, job in pack if trial.key not in gone] for pack in jobs]
    return [pack for pack in left if pack]


@dataclass(frozen=True)
class Round:
    """Trains jobs, all that are given at once. `common`: what the nodes of a cluster must share."""

    progress: Progress
    outcome: Outcome
    scratch: Path
    slots: int | None
    common: cluster.Common | None

    def __call__(self, jobs: Jobs, name: str) -> list[PlannedTrial]:
        """Train the jobs; the trials of packs whose process died too often."""
        texts = {
            json.dumps([asdict(job) for _, job in pack], sort_keys=True): [trial for trial, _ in pack] for pack in jobs
        }
        ordered = sorted(texts, key=lambda text: -sum(map(size, texts[text])))
        shares = {text: resources(texts[text]) for text in ordered}
        watch = Watch(texts, self.progress, self.outcome)
        classes = [ready_to_send(cls) for cls in defined()]
        given = ({"classes": classes} if classes else {}) | ({"common": self.common} if self.common else {})
        actor = tune.with_parameters(TrialActor, **given) if given else TrialActor
        tuner = tune.Tuner(
            tune.with_resources(actor, lambda config: shares[config["jobs"]]),
            param_space={"jobs": tune.grid_search(ordered)},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=self.slots if CLUSTER else None,  # a Ray of our own has no more cores than that
                trial_name_creator=lambda trial: texts[trial.config["jobs"]][0].label,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(self.scratch / name),
                verbose=0,
                callbacks=[watch],
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        tuner.fit()
        return watch.again


def size(trial: PlannedTrial) -> float:
    """What orders trials: parameters × tokens, roughly."""
    data = trial.config.data
    return parameters(trial.config) * data.batch_size * data.seq_len * trial.steps


def resources(pack: Sequence[PlannedTrial]) -> tune.PlacementGroupFactory:
    """One core for each thread, and the share of a GPU that the memory of the runs asks for; to a trial of several
    ranks a core for each thread and a GPU for each rank. On a cluster Ray Train gives the ranks their places, and the
    trial's own process only waits."""
    share, workers = gpu_share([trial.config for trial in pack]), pack[0].config.run.workers
    if workers > 1 and CLUSTER:
        return tune.PlacementGroupFactory([ranks.waiting_place(bool(share))])
    gpus = workers if workers > 1 else share
    need: dict[str, float] = {"CPU": cores_of(pack[0].config)} | ({"GPU": gpus} if share else {})
    return tune.PlacementGroupFactory([need])
