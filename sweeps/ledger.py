"""The ledger of trials: RESULTS/trials/<key>/ is the run folder of the trial with that key.

There is no index that could disagree with the folders. A trial is done when its manifest says `finished` or
`diverged` and names this identity, and its records are whole (zslx/runs/integrity.py). One that is asked for up to a
step (`run.until`) is done, too, when it was `paused` there or later. A trial that is done is never trained again,
whichever sweep asks for it; a trial that is half done goes on from its checkpoint. `claim` gives a trial
to one process at a time, across sweeps, too; the system releases the lock of a process that dies. A folder that claims
to be done and is not (files lost, cut or changed) is set aside under `trials/.damaged`, never deleted.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.study.declaration import Declaration, Entry
from sweeps.earlier import earlier_looks
from sweeps.outcome import Failure
from sweeps.planned import PlannedTrial, folder
from sweeps.study import PlannedStudy
from zslx.locking import locked
from zslx.runs.integrity import fault
from zslx.runs.records import LINE_FILES, OVER, read_manifest, read_run

PAUSED = "paused"
FILES = ("config.json", "manifest.json", *(f"{name}.jsonl" for name in LINE_FILES))
# Run folders that were whole: identity, stamps, and the step that they reached.
_whole: dict[Path, tuple[str, tuple[tuple[int, ...], ...], float]] = {}


@dataclass(frozen=True)
class Ledger:
    """The trials under a results folder."""

    results: Path

    def folder(self, key: str) -> Path:
        return folder(self.results, key)

    def status(self, trial: PlannedTrial) -> str:
        """One of finished, diverged, paused (where that is all that is asked), partial and missing."""
        folder = self.folder(trial.key)
        if is_done(folder, trial.identity, trial.config.run.until):
            return str(read_manifest(folder)["status"])
        return "partial" if (folder / "config.json").exists() else "missing"

    def split(self, trials: Iterable[PlannedTrial]) -> tuple[list[PlannedTrial], list[PlannedTrial]]:
        """Trials that are done and trials to train, each once: arms that coincide share one run."""
        unique = {trial.key: trial for trial in trials}
        done = [t for t in unique.values() if is_done(self.folder(t.key), t.identity, t.config.run.until)]
        keys = {t.key for t in done}
        return done, [t for t in unique.values() if t.key not in keys]

    def record(self, study: PlannedStudy, failures: Mapping[str, Failure] | None = None) -> Path:
        """Write study.json: what is compared, and how each trial stands. `zslx compare` finds the study by it.

        It keeps the time at which the study was first asked for, and which studies looked at it before (earlier.py).
        The tracebacks of `failures` (by the trials' keys) go into files beside it.
        """
        folder = self.results / "studies" / study.name
        for key, failure in (failures or {}).items():
            if failure.details:
                path = self.traceback(study, key)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(failure.details)
        before = None
        with contextlib.suppress(ValueError):
            before = Declaration.read(folder)
        created = (before and before.created) or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        trials, references = (
            [self._entry(trial, (failures or {}).get(trial.key)) for trial in some]
            for some in (study.trials, study.references)
        )
        declared = study.declaration(trials, str(self.results), created, references)
        return replace(declared, earlier=earlier_looks(declared, before, folder.parent)).write(folder)

    def _entry(self, trial: PlannedTrial, failure: Failure | None) -> Entry:
        """How a trial stands."""
        reference = trial.reference.key if trial.reference else ""
        entry = Entry(arm=trial.arm, size=trial.size, seed=trial.seed, identity=trial.key, reference=reference)
        if failure:
            return replace(entry, status="failed", error=failure.error)
        status = self.status(trial)
        return replace(entry, status=status if status in (*OVER, PAUSED) else entry.status)

    def traceback(self, study: PlannedStudy, key: str) -> Path:
        """The file for the traceback of a trial that failed."""
        return self.results / "studies" / study.name / "errors" / f"{key}.txt"


def is_done(folder: Path, identity: str, until: int = 0) -> bool:
    """Whether `folder` holds the complete run of this identity, or, where it is asked for up to step `until`, as much.

    Every byte of its records is read for that. A sweep asks several times, so what was whole is looked at again only
    where a file has changed since.
    """
    stamps = tuple(map(_stamp, (folder / name for name in FILES)))
    known, seen, reached = _whole.get(folder, ("", (), 0.0))
    if (known, seen) != (identity, stamps):
        reached = _reached(folder, identity)
        if reached:
            _whole[folder] = (identity, stamps, reached)
    return reached >= (until or math.inf)


def _reached(folder: Path, identity: str) -> float:
    """The step at which the run of this identity is paused; inf where it is over, 0 where it is neither or damaged."""
    try:
        run = read_run(folder)
    except (ValueError, OSError):
        return 0.0
    if run.status not in (*OVER, PAUSED) or run.manifest.get("identity") != identity or fault(run):
        return 0.0
    return float(run.manifest["totals"]["steps"]) if run.status == PAUSED else math.inf


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with a file; empty where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold the trial in `folder`, after waiting for any other process that holds it.

    The lock file lies outside the run folder.
    """
    with locked(folder.parent / ".locks" / f"{folder.name}.lock"):
        yield


def set_aside(folder: Path) -> None:
    """Move a damaged run folder out of the ledger."""
    damaged = folder.parent / ".damaged"
    damaged.mkdir(exist_ok=True)
    os.replace(folder, damaged / f"{folder.name}-{time.time_ns()}")
