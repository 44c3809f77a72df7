"""Logs trials to wandb and to TensorBoard event files, from their records (zslx/tracking).

A trial is one wandb run, whichever studies ask for it: group = the study that logged it first, job type = arm. Offline
(the default, which never asks) it is written once, when the trial is over. Online it is streamed while it trains, and
goes on as the same run after an interruption or a pause. The marker RESULTS/wandb/logged/<run id>.json says that it is
logged. Its summary has the paired difference to the baseline of its size and seed: a trial that is over before that one
waits to be logged (offline), or gets it (online), at the end of the sweep. An error of wandb is reported and never
fails a trial.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from analysis.study.arm import Arm
from analysis.study.declaration import Entry
from analysis.study.load import Study, load_trial
from analysis.study.measures import Measures
from zslx.locking import locked
from zslx.runs.json_files import read_json, write_json
from zslx.runs.records import OVER, Run, read_manifest, read_run
from zslx.slug import slug
from zslx.tracking.event_files import EventFiles
from zslx.tracking.rows import Rows, dated
from zslx.tracking.stream import Feed, Sink, finish
from zslx.tracking.summary import about, summary
from zslx.tracking.wandb_run import WandbRun, run_id


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which trial a run is. `results` is the folder that holds `wandb/`; `baseline` the key of its partner, if any."""

    results: str
    study: str
    arm: str
    size: str
    seed: int
    baseline: str = ""

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.size}/{self.seed}"

    def run_id(self, folder: Path) -> str:
        """The wandb run of the trial in `folder`: the same one whichever study asks for it."""
        return run_id(folder.name)

    def marker(self, folder: Path) -> Path:
        return Path(self.results) / "wandb" / "logged" / f"{self.run_id(folder)}.json"

    def whole(self, folder: Path) -> Path:
        """The file that says that its event files have every row."""
        return Path(self.results) / "tensorboard" / ".whole" / folder.name


def log(folder: Path, labels: Labels, mode: str, live: Sink | None = None, *, last: bool = True) -> str | None:
    """Log the run in `folder` unless it is logged already; returns what went wrong, if anything did.

    `live`: its run in wandb that is open already. Not `last`: there will be another call, at the end of the sweep.
    """
    if mode == "off":
        return None
    marker = labels.marker(folder)
    try:
        # Sweeps that overlap share trials. Whoever streams one holds its lock.
        with contextlib.nullcontext() if live else locked(marker.with_name(f"{marker.name}.lock")):
            logged = read_json(marker) if marker.exists() else None
            if live is None and logged and not (last and mode == "online" and logged.get("waits") and _partner(labels)):
                return None
            waits = bool(labels.baseline) and not _partner(labels)
            if mode == "offline" and waits and not last:
                return None
            _write(folder, labels, mode, live)
            named = {"name": labels.name, "study": labels.study, "mode": mode}
            write_json(marker, named | ({"waits": True} if waits else {}))
    except Exception as error:  # wandb must not cost a trial
        return f"{type(error).__name__}: {error}"
    return None


def pause(folder: Path, live: Iterable[Sink | None]) -> str | None:
    """End the streams of a trial that is paused, with all that it has; they go on with it. Returns what went wrong.

    Offline there is nothing to do: a trial is logged when it is over.
    """
    try:
        for sink in filter(None, live):
            finish(sink, Rows(folder).new(whole=True), {}, ok=True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _write(folder: Path, labels: Labels, mode: str, live: Sink | None) -> None:
    run = read_run(folder)
    sink = live or _open(run, labels, mode)
    rows = Rows(folder).new(whole=True)
    found = summary(run) | difference(folder, labels)
    finish(sink, dated(rows, run) if mode == "offline" else rows, found, ok=run.status == "finished")


def _open(run: Run, labels: Labels, mode: str) -> WandbRun:
    identifier, root = labels.run_id(run.folder), Path(labels.results)
    own = {"study": labels.study, "arm": labels.arm, "size": labels.size, "seed": labels.seed}
    return WandbRun(
        identifier,
        root,
        mode,
        about(run) | own,
        name=labels.name,
        group=labels.study,
        job_type=labels.arm,
        tags=[labels.arm, labels.size, f"seed {labels.seed}"],
    )


def _partner(labels: Labels) -> bool:
    """Whether the baseline of this size and seed is over."""
    folder = Path(labels.results) / "trials" / labels.baseline
    with contextlib.suppress(ValueError):
        return bool(labels.baseline) and read_manifest(folder)["status"] in OVER
    return False


def difference(folder: Path, labels: Labels) -> dict[str, float]:
    """log held-out loss at T, less that of the baseline; T as of these two. Empty where there is none."""
    if not _partner(labels):
        return {}
    baseline = Arm(name="baseline", intervention="none", role="baseline")
    arms = (baseline, Arm(name="arm", intervention="", role="arm"))
    both = [
        load_trial(Path(labels.results), Entry(arm=arm.name, size=labels.size, seed=labels.seed, identity=key))
        for arm, key in zip(arms, (labels.baseline, folder.name), strict=True)
    ]
    if not all(trial.finished for trial in both):
        return {}
    names: dict[str, Any] = {"name": labels.study, "folder": folder, "arms": arms, "sizes": (labels.size,)}
    measures = Measures(Study(**names, seeds=(labels.seed,), trials=tuple(both)))
    plain, own = map(measures.log_loss, both)
    return {"paired_difference": own - plain} if np.isfinite(own - plain) else {}


@dataclass
class Streamed:
    """The feed of a trial to one tool, and the lock under which it is the only one."""

    feed: Feed
    held: contextlib.ExitStack

    def taken(self) -> Sink | None:
        """The open sink, to be finished; None, with the lock given back, where it was not begun or failed."""
        sink, self.feed.sink = self.feed.sink, None
        if self.feed.wrong or sink is None:
            self.held.close()
            return None
        return sink


Streams = dict[tuple[str, Path], Streamed]  # by wandb or tensorboard, and folder


@contextlib.contextmanager
def tracked(trials: Sequence[tuple[Path, Labels]], *, wandb: bool, tensorboard: bool) -> Iterator[Streams]:
    """The feeds of the trials of a worker, for `streaming`. What is not taken from them is ended as failed."""
    streams: Streams = {}
    for folder, labels in trials:
        if wandb:
            opened = partial(_open, labels=labels, mode="online")
            streams["wandb", folder] = _stream(folder, labels.marker(folder), opened)
        if tensorboard:
            streams["tensorboard", folder] = _stream(folder, labels.whole(folder), partial(_files, labels=labels))
    try:
        yield streams
    finally:
        for stream in streams.values():
            with contextlib.suppress(Exception):
                if sink := stream.taken():
                    sink.close(ok=False)
            stream.held.close()


def _stream(folder: Path, marker: Path, make: Callable[[Run], Sink]) -> Streamed:
    held = contextlib.ExitStack()

    def opened(run: Run) -> Sink | None:
        if run.status != "running" or marker.exists():
            return None
        try:
            held.enter_context(locked(marker.with_name(f"{marker.name}.lock"), refuse="another sweep streams it"))
        except ValueError:
            return None
        return make(run)

    return Streamed(Feed(folder, opened), held)


def _files(run: Run, labels: Labels) -> Sink:
    """Event files, in a folder whose path TensorBoard shows as the run's name."""
    place = Path(labels.results) / "tensorboard" / slug(labels.arm) / labels.size
    return EventFiles(place / f"{labels.seed}-{run.folder.name[:8]}")


def event_files(folder: Path, labels: Labels, live: Sink | None = None) -> str | None:
    """Write the event files of a trial that is over, unless they are there; what went wrong, if anything did."""
    whole = labels.whole(folder)
    try:
        with contextlib.nullcontext() if live else locked(whole.with_name(f"{whole.name}.lock")):
            if live or not whole.exists():
                run, rows = read_run(folder), Rows(folder).new(whole=True)
                finish(live or _files(run, labels), rows if live else dated(rows, run), {}, ok=True)
                whole.touch()
    except Exception as error:  # nor must these
        return f"{type(error).__name__}: {error}"
    return None


def close() -> None:
    """End wandb's own process, if there is one."""
    if wandb := sys.modules.get("wandb"):
        with contextlib.suppress(Exception):  # nothing is lost: every run was finished before
            wandb.teardown()
