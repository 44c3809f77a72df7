"""Trials as Ray Tune trials. The only file that imports Ray.

One trial is one call of `sweeps.trial.run` in a reused actor, so that a worker imports torch once. Ray gets the
trials that the ledger has not, the largest first so that the slots stay full, one CPU core for each thread of a trial
and a share of a GPU where there is one. A worker that dies is started again and its trial goes on from its own
checkpoint, MAX_FAILURES times; an error that would come back is reported at once. Ray's own state is thrown away:
what survives a sweep is the ledger.

A local sweep starts a Ray of its own on 127.0.0.1, with a token made for it, without dashboard or usage statistics,
in a short temporary folder (socket paths must stay under 108 bytes) that is removed afterwards. RAY_ADDRESS names a
cluster to use instead; it is left as it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CLUSTER = os.environ.get("RAY_ADDRESS")
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # else SIGTERM prints a C++ stack
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns that it will change a default
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is a KeyboardInterrupt here, not a quiet end
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",
}
_LOCAL_ENVIRONMENT = {
    # Ray's switch for machines that are no cluster: every process binds to 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_local_fs_capacity_threshold": "1.0",
    # No workers before there is work: a sweep would wait forever for one that dies before it has registered.
    "RAY_prestart_worker_first_driver": "0",
}
# Ray reads these when it is imported.
os.environ.update(_ENVIRONMENT if CLUSTER else _ENVIRONMENT | _LOCAL_ENVIRONMENT)
if not CLUSTER:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

import ray  # noqa: E402
from ray import tune  # noqa: E402

from sweeps import trial as trials  # noqa: E402
from sweeps.progress import Progress  # noqa: E402
from sweeps.study import Trial  # noqa: E402

MAX_FAILURES = 2
OBJECT_STORE = 100 * 2**20  # bytes: trials exchange nothing through it
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Failure:
    """A trial that was given up: one line, and where there is one the traceback."""

    error: str
    details: str = ""


class NoSpace(OSError):
    """The results folder takes no more data: every further trial would fail the same way."""


class TrialActor(tune.Trainable):
    """A worker. `step` is a whole trial; `reset_config` gives it the next one."""

    def setup(self, config: Mapping[str, Any]) -> None:
        self.job = trials.Job(**json.loads(config["job"]))

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
    import torch

    cause: BaseException = error.__cause__ or error  # what a plugin raises comes wrapped
    if isinstance(cause, OSError):
        return not no_space(cause)
    transient = isinstance(cause, MemoryError | torch.OutOfMemoryError)
    return transient or (isinstance(cause, RuntimeError) and "CUDA" in str(cause))


def described(error: Exception) -> dict[str, Any]:
    """An exception as plain values: one line, with the place where a plugin or a bug raised, and the traceback."""
    first = (str(error).strip() or repr(error)).splitlines()[0]
    line = first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"
    cause = error.__cause__ or error
    if cause is not error or not isinstance(error, ValueError | OSError):
        frame = traceback.extract_tb(cause.__traceback__)[-1]
        line += f" ({Path(frame.filename).name}:{frame.lineno})"
    return {"error": line, "details": "".join(traceback.format_exception(error)), "full": no_space(cause)}


def no_space(error: BaseException) -> bool:
    """Whether the results folder takes no more data; libraries wrap the system's error in their own."""
    return (isinstance(error, OSError) and error.errno in FULL) or os.strerror(errno.ENOSPC) in str(error)


class Watch(tune.Callback):
    """Tells the progress display what Tune does, and collects how each trial ended."""

    def __init__(self, byjob: Mapping[str, Trial], progress: Progress, failures: dict[str, Failure], notes: set[str]):
        self.byjob, self.progress, self.failures, self.notes = byjob, progress, failures, notes
        self.full = False

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks to be able to restore them; this one belongs to the running sweep alone."""
        return {}

    def _trial(self, trial: Any) -> Trial:
        return self.byjob[trial.config["job"]]

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.progress.update(self._trial(t) for t in trials if t.status == "RUNNING")
        if self.full:  # raised here: what on_trial_complete raises Tune takes for the trial's own failure
            raise NoSpace(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.progress.ledger.results))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        ours, result = self._trial(trial), trial.last_result or {}
        if result.get("wandb"):
            self.notes.add(f"wandb could not log every trial ({result['wandb']}); the records have everything")
        if result.get("status") == "failed":
            self.failures[ours.key] = Failure(result["error"], result.get("details", ""))
        self.progress.finished(ours, failed=ours.key in self.failures)
        if result.get("full"):
            self.full = True

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        ours, error = self._trial(trial), trial.get_error()
        cause = getattr(error, "cause", None) or error
        if isinstance(error, ray.exceptions.RayActorError) or error is None:
            failure = Failure(f"its process died {MAX_FAILURES + 1} times (killed, or out of memory)", str(error))
        else:
            first = (str(cause).strip() or repr(cause)).splitlines()[0]
            failure = Failure(f"{type(cause).__name__}: {first}", str(error))
        self.failures[ours.key] = failure
        self.progress.finished(ours, failed=True)


def train_all(
    jobs: Sequence[tuple[Trial, trials.Job]], progress: Progress, slots: int, notes: set[str]
) -> dict[str, Failure]:
    """Train every job; returns what failed, by the trial's key. KeyboardInterrupt leaves no process behind."""
    failures: dict[str, Failure] = {}
    texts = {json.dumps(asdict(job), sort_keys=True): trial for trial, job in jobs}
    ordered = sorted(texts, key=lambda text: -size(texts[text]))
    shares = {text: resources(texts[text]) for text in ordered}
    with started(slots, jobs) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(TrialActor, lambda config: shares[config["job"]]),
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
                callbacks=[Watch(texts, progress, failures, notes)],
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        tuner.fit()
    return failures


def size(trial: Trial) -> float:
    """What orders trials: parameters × tokens, roughly."""
    model, data = trial.config.model, trial.config.data
    blocks = model.n_layers * model.d_model**2 * (4 + 1.5 * model.mlp_ratio)
    parameters = blocks + model.d_model * (model.vocab_size or data.vocab_size)
    return parameters * data.batch_size * data.seq_len * trial.steps


def resources(trial: Trial) -> tune.PlacementGroupFactory:
    """One core for each thread, and the share of a GPU that the trial's memory asks for."""
    share = gpu_share(trial)
    need: dict[str, float] = {"CPU": trial.config.train.threads} | ({"GPU": share} if share else {})
    return tune.PlacementGroupFactory([need])


def gpu_share(trial: Trial) -> float:
    """Fraction of a GPU: weights, gradients and Adam's moments (16 bytes each), activations twice, and 2 GiB."""
    import torch

    if trial.config.train.device == "cpu" or not torch.cuda.is_available():
        return 0.0
    model, data = trial.config.model, trial.config.data
    rows = model.vocab_size or data.vocab_size
    parameters = model.n_layers * model.d_model**2 * (4 + 1.5 * model.mlp_ratio) + rows * model.d_model
    tokens = data.batch_size * data.seq_len
    activations = tokens * 4 * (24 * model.n_layers * model.d_model + 4 * rows)
    share = (16 * parameters + 2 * activations + 2 * 2**30) / torch.cuda.get_device_properties(0).total_memory
    return min(1.0, max(0.05, round(share + 0.005, 2)))


@contextlib.contextmanager
def started(slots: int, jobs: Sequence[tuple[Trial, trials.Job]]) -> Iterator[Path]:
    """Ray, and a scratch folder for Tune's own state; both gone afterwards, whatever happens."""
    remove_stale()
    base = Path(os.environ.get("RAY_TMPDIR") or ("/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()))
    home = Path(tempfile.mkdtemp(prefix=f"zslx-{os.getpid()}-", dir=base))
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    outside = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(home)  # for the workers: what they leave goes with the folder
    try:
        threads = max(trial.config.train.threads for trial, _ in jobs)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
        if CLUSTER:
            start(address=CLUSTER, **quiet)
            # Tune wants one place that every node sees.
            yield Path(jobs[0][1].labels["results"]) / ".tune"
        else:
            start(
                address="local",
                num_cpus=slots * threads,
                num_gpus=0 if not any(gpu_share(trial) for trial, _ in jobs) else None,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(home / "ray"),  # Ray opens this one to everybody; the folder around it is ours alone
                **quiet,
            )
            yield home / "tune"
    finally:
        with uninterrupted():
            ray.shutdown()
            os.environ.pop("TMPDIR") if outside is None else os.environ.update(TMPDIR=outside)
            shutil.rmtree(home, ignore_errors=True)
            if CLUSTER:
                shutil.rmtree(Path(jobs[0][1].labels["results"]) / ".tune", ignore_errors=True)


def start(**options: Any) -> None:
    """ray.init, tried twice: one of the processes that it starts may die. ValueError with Ray's reason after that."""
    for attempt in (1, 2):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises plain exceptions here
            with uninterrupted():
                ray.shutdown()
            if attempt == 2:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise ValueError(f"Ray did not start, twice: {reason[0]}") from error
            print("Ray did not start; trying once more ...", file=sys.stderr, flush=True)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not leave Ray half shut down."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def remove_stale() -> None:
    """Remove the temporary folders of sweeps whose process was killed."""
    base = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
    for folder in base.glob("zslx-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdigit() and folder.is_dir() and folder.stat().st_uid == os.getuid():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                shutil.rmtree(folder, ignore_errors=True)
            except PermissionError:
                continue
