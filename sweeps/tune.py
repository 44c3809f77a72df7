"""Trains trials as Ray Tune trials.

One trial is one call of `sweeps.trial.run` in a reused actor, so that a worker imports torch once. Ray gets the
trials that the ledger does not have, the largest first so that the slots stay full. Each has one CPU core for each of
its threads and a share of a GPU where there is one. A worker that dies is started again, and its trial goes on from its
own checkpoint, MAX_FAILURES times; an error that would come back is reported at once. Ray's own state is thrown away:
what survives a sweep is the ledger.
"""

from __future__ import annotations

import errno
import json
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sweeps import trial as trials
from sweeps.outcome import Failure, Outcome
from sweeps.progress import Progress
from sweeps.ray_session import ray, started  # before anything else of Ray
from sweeps.study import PlannedTrial
from zslx.intervention.base import Intervention
from zslx.intervention.discovery import define, defined
from zslx.intervention.registry import ready_to_send
from zslx.printable import one_line, printable

from ray import tune  # isort: skip

MAX_FAILURES = 2
LONGEST = 500  # characters of an error's line
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class NoSpace(OSError):
    """The results folder takes no more data: every further trial would fail the same way."""


class TrialActor(tune.Trainable):
    """A worker. `step` is a whole trial; `reset_config` gives it the next one."""

    def setup(self, config: Mapping[str, Any], classes: Sequence[type[Intervention]] = ()) -> None:
        """`classes` are interventions of the session that started the sweep, which no file defines."""
        self.job = trials.Job(**json.loads(config["job"]))
        for cls in classes:
            define(cls)

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        try:
            return {"done": True, **trials.run(self.job)}
        except Exception as error:
            if may_pass(error):
                raise
            return {"done": True, "status": "failed", **described(error)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The trial keeps its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See save_checkpoint."""


def may_pass(error: BaseException) -> bool:
    """Whether trying again can help: a run is deterministic, but memory, disks and GPUs are not."""
    cause: BaseException = error.__cause__ or error  # what a plugin raises comes wrapped
    if isinstance(cause, OSError):
        return not no_space(cause)
    transient = isinstance(cause, MemoryError | torch.OutOfMemoryError)
    return transient or (isinstance(cause, RuntimeError) and "CUDA" in str(cause))


def described(error: Exception) -> dict[str, Any]:
    """An exception as plain values: one line, with the place where a bug raised, and the traceback."""
    line = one_line(str(error)) or repr(error)
    if not isinstance(error, ValueError):
        line = f"{type(error).__name__}: {line}"
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not isinstance(error, ValueError | OSError):
        line += f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
    details, cause = "".join(traceback.format_exception(error)), error.__cause__ or error
    return {"error": printable(line, LONGEST), "details": details, "full": no_space(cause)}


def no_space(error: BaseException) -> bool:
    """Whether the results folder takes no more data; libraries wrap the system's error in their own."""
    return (isinstance(error, OSError) and error.errno in FULL) or os.strerror(errno.ENOSPC) in str(error)


class Watch(tune.Callback):
    """Tells the progress display what Tune does, and collects in `outcome` how each trial ended."""

    def __init__(self, byjob: Mapping[str, PlannedTrial], progress: Progress, outcome: Outcome):
        self.byjob, self.progress, self.outcome = byjob, progress, outcome
        self.full = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks to be able to restore them; this one belongs to the running sweep alone."""
        return {}

    def _trial(self, trial: Any) -> PlannedTrial:
        return self.byjob[trial.config["job"]]

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.progress.update(self._trial(t) for t in trials if t.status == "RUNNING")
        if self.full:  # raised here: what on_trial_complete raises Tune takes for the trial's own failure
            raise NoSpace(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.progress.ledger.results))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours, result = self._trial(trial), trial.last_result or {}
        if result.get("wandb"):
            self.outcome.notes.add(f"wandb could not log every trial ({result['wandb']}); the records have everything")
        if result.get("trained"):
            self.outcome.trained.add(ours.key)
        if result.get("status") == "failed":
            self.outcome.failures[ours.key] = Failure(result["error"], result.get("details", ""))
        self.progress.finished(ours, failed=ours.key in self.outcome.failures)
        if result.get("full"):
            self.full = True

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours, error, log = self._trial(trial), trial.get_pickled_error(), str(trial.get_error())
        cause = getattr(error, "cause", None) or error
        if cause is None or isinstance(cause, ray.exceptions.RayActorError):
            why = "killed, out of memory, or ended by the plugin"
            failure = Failure(f"its process died {MAX_FAILURES + 1} times ({why})", log)
        else:
            failure = Failure(described(cause)["error"], log)
        self.outcome.failures[ours.key] = failure
        self.progress.finished(ours, failed=True)


def train_all(jobs: Sequence[tuple[PlannedTrial, trials.Job]], progress: Progress, slots: int) -> Outcome:
    """Train every job, `slots` at a time. KeyboardInterrupt leaves no process behind; NoSpace ends the whole sweep."""
    outcome = Outcome()
    texts = {json.dumps(asdict(job), sort_keys=True): trial for trial, job in jobs}
    ordered = sorted(texts, key=lambda text: -size(texts[text]))
    shares = {text: resources(texts[text]) for text in ordered}
    cpus = slots * max(trial.config.train.threads for trial, _ in jobs)
    results = Path(jobs[0][1].labels["results"])
    with started(results, cpus, any(gpu_share(trial) for trial, _ in jobs)) as scratch:
        classes = [ready_to_send(cls) for cls in defined()]
        actor = tune.with_parameters(TrialActor, classes=classes) if classes else TrialActor
        tuner = tune.Tuner(
            tune.with_resources(actor, lambda config: shares[config["job"]]),
            param_space={"job": tune.grid_search(ordered)},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                trial_name_creator=lambda trial: texts[trial.config["job"]].label,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[Watch(texts, progress, outcome)],
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        tuner.fit()
    return outcome


def size(trial: PlannedTrial) -> float:
    """What orders trials: parameters × tokens, roughly."""
    model, data = trial.config.model, trial.config.data
    blocks = model.n_layers * model.d_model**2 * (4 + 1.5 * model.mlp_ratio)
    parameters = blocks + model.d_model * (model.vocab_size or data.vocab_size)
    return parameters * data.batch_size * data.seq_len * trial.steps


def resources(trial: PlannedTrial) -> tune.PlacementGroupFactory:
    """One core for each thread, and the share of a GPU that the trial's memory asks for."""
    share = gpu_share(trial)
    need: dict[str, float] = {"CPU": trial.config.train.threads} | ({"GPU": share} if share else {})
    return tune.PlacementGroupFactory([need])


def gpu_share(trial: PlannedTrial) -> float:
    """Fraction of a GPU: weights, gradients and Adam's moments (16 bytes each), activations twice, and 2 GiB."""
    if trial.config.train.device == "cpu" or not torch.cuda.is_available():
        return 0.0
    model, data = trial.config.model, trial.config.data
    rows = model.vocab_size or data.vocab_size
    parameters = model.n_layers * model.d_model**2 * (4 + 1.5 * model.mlp_ratio) + rows * model.d_model
    tokens = data.batch_size * data.seq_len
    activations = tokens * 4 * (24 * model.n_layers * model.d_model + 4 * rows)
    share = (16 * parameters + 2 * activations + 2 * 2**30) / torch.cuda.get_device_properties(0).total_memory
    return min(1.0, max(0.05, round(share + 0.005, 2)))
