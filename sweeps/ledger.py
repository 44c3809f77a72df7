"""The ledger of trials: RESULTS/trials/<key>/ is the run folder of the trial with that identity.

There is no index to get out of step: a trial is done when its manifest says `finished` or `diverged`, names this
identity, and its records are whole (zslx/runs/integrity.py). What is done is never trained again, in whatever sweep
it is asked for; what is half done goes on from its checkpoint. `claim` gives a trial to one process at a time, also
across sweeps; the system takes the lock back from a process that dies. A folder that claims to be done and is not
(files lost, cut or changed) is set aside under `trials/.damaged`, never deleted.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.study import Study, Trial
from zslx.locking import locked
from zslx.runs.integrity import fault
from zslx.runs.records import read_json, read_run, write_json

DONE = ("finished", "diverged")


@dataclass(frozen=True)
class Ledger:
    """The trials under a results folder."""

    results: Path

    def folder(self, key: str) -> Path:
        return self.results / "trials" / key

    def status(self, trial: Trial) -> str:
        """finished | diverged | partial | missing."""
        folder = self.folder(trial.key)
        if is_done(folder, trial.identity):
            return str(read_json(folder / "manifest.json")["status"])
        return "partial" if (folder / "config.json").exists() else "missing"

    def split(self, trials: Iterable[Trial]) -> tuple[list[Trial], list[Trial]]:
        """(done, to train), each trial once: arms that coincide share one run."""
        unique = {trial.key: trial for trial in trials}
        done = [t for t in unique.values() if is_done(self.folder(t.key), t.identity)]
        keys = {t.key for t in done}
        return done, [t for t in unique.values() if t.key not in keys]


def is_done(folder: Path, identity: str) -> bool:
    """Whether `folder` holds the complete run of this identity."""
    try:
        run = read_run(folder)
    except (ValueError, OSError):
        return False
    return run.status in DONE and run.manifest.get("identity") == identity and not fault(run)


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold the trial in `folder`, waiting while another process does. The lock file lies outside the run folder."""
    with locked(folder.parent / ".locks" / f"{folder.name}.lock"):
        yield


def set_aside(folder: Path) -> None:
    """Move a damaged run folder out of the ledger."""
    damaged = folder.parent / ".damaged"
    damaged.mkdir(exist_ok=True)
    os.replace(folder, damaged / f"{folder.name}-{time.time_ns()}")


def write_study(study: Study, results: Path, statuses: list[dict[str, Any]], command: str, verdict: str) -> Path:
    """study.json: what is compared and how each trial stands; keeps the time at which the study was first asked for."""
    path = results / "studies" / study.name / "study.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if path.exists():
        with contextlib.suppress(ValueError):
            created = read_json(path).get("created", created)
    about = {"command": command, "verdict_command": verdict, "created": created, "trials": statuses}
    write_json(path, study.to_dict() | about)
    return path
