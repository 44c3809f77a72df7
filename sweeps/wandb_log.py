"""Logs a finished trial to wandb: its whole history, written once, from the records.

The records are the source of truth, since a wandb run that is killed loses its last rows. So a trial is logged after it
is done. A trial is one wandb run, whichever studies ask for it: group = the study that logged it first, job type = arm,
every metric against the run's own `step`. The marker RESULTS/wandb/logged/<run id>.json says that it is logged. The
default mode is offline and never asks; `online` uses the key that the environment holds. Nothing about the machine is
logged: no code, git, host, user, paths, packages or system metrics. An error of wandb is reported and never fails a
trial.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zslx.locking import locked
from zslx.runs.json_files import write_json
from zslx.runs.records import Run, numbers, read_run

PROJECT = "zslx"


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Which trial a run is. `results` is the folder that holds `wandb/`."""

    results: str
    study: str
    arm: str
    size: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.size}/{self.seed}"

    def run_id(self, folder: Path) -> str:
        """The wandb run of the trial in `folder`: the same one whichever study asks for it."""
        return hashlib.sha256(folder.name.encode()).hexdigest()[:16]


def log(folder: Path, labels: Labels, mode: str) -> str | None:
    """Log the run in `folder` unless it is logged already; returns what went wrong, if anything did."""
    if mode == "off":
        return None
    identifier = labels.run_id(folder)
    marker = Path(labels.results) / "wandb" / "logged" / f"{identifier}.json"
    try:
        with locked(marker.with_suffix(".lock")):  # sweeps that overlap share trials
            if marker.exists():
                return None
            _remove_torn(Path(labels.results) / "wandb", identifier)
            _write(read_run(folder), identifier, labels, mode)
            write_json(marker, {"name": labels.name, "study": labels.study, "mode": mode})
    except Exception as error:  # wandb must not cost a trial
        return f"{type(error).__name__}: {error}"
    return None


def _remove_torn(folder: Path, identifier: str) -> None:
    """Remove what a process left of this run when it was killed while logging: it would count as a second run."""
    for torn in folder.glob(f"*run-*-{identifier}"):
        shutil.rmtree(torn, ignore_errors=True)


def close() -> None:
    """End wandb's own process, if there is one."""
    if wandb := sys.modules.get("wandb"):
        with contextlib.suppress(Exception):  # nothing is lost: every run was finished before
            wandb.teardown()


def _write(run: Run, identifier: str, labels: Labels, mode: str) -> None:
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when wandb is imported
    import wandb

    root = Path(labels.results) / "wandb"
    logging.getLogger("wandb").setLevel(logging.CRITICAL)
    live = wandb.init(
        project=PROJECT,
        id=identifier,
        name=labels.name,
        group=labels.study,
        job_type=labels.arm,
        tags=[labels.arm, labels.size, f"seed {labels.seed}"],
        config=_config(run, labels),
        dir=str(root.parent),
        reinit="create_new",
        settings=_settings(wandb, mode, root.parent),
    )
    try:
        live.define_metric("step")
        live.define_metric("*", step_metric="step")
        for row in history(run):
            live.log(row)
        live.summary.update(summary(run))
    finally:
        # The folder ends in files/; its sibling logs/ names paths of this machine and is not for syncing.
        folder = Path(live.dir).parent
        live.finish(exit_code=0 if run.status == "finished" else 1)
        for name in ("logs", "tmp"):
            shutil.rmtree(folder / name, ignore_errors=True)


def _settings(wandb: Any, mode: str, results: Path) -> Any:
    return wandb.Settings(
        mode=mode,
        root_dir=str(results),
        silent=True,
        quiet=True,
        console="off",
        symlink=False,
        disable_git=True,
        disable_code=True,
        save_code=False,
        host="",
        program="",
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


def _config(run: Run, labels: Labels) -> dict[str, Any]:
    """The trial's settings without those that name a place on this machine."""
    config = {key: dict(value) if isinstance(value, Mapping) else value for key, value in run.config.items()}
    config.get("data", {}).pop("path", None)
    config.pop("reference", None)
    about = {"study": labels.study, "arm": labels.arm, "size": labels.size, "seed": labels.seed}
    return config | about | {"identity": run.manifest.get("identity"), "versions": run.manifest.get("versions", {})}


def history(run: Run) -> Iterator[dict[str, Any]]:
    """One row a step: the step's numbers and, where there was a probe, its numbers under `probe/`."""
    probes = {line["step"]: line for line in run.probes}
    columns = run.steps
    steps = [int(step) for step in columns.get("step", ())]
    place = {step: row for row, step in enumerate(steps)}
    for step in sorted({*steps, *probes}):
        row: dict[str, Any] = {"step": step}
        if step in place:
            values = ((key, float(column[place[step]])) for key, column in columns.items() if key != "step")
            row |= {key: value for key, value in values if value == value}
        if step in probes:
            row |= {f"probe/{key}": value for key, value in _leaves(probes[step])}
        yield row


def _leaves(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((key, value) for key, value in numbers(line, "/") if key not in ("step", "tokens"))


def summary(run: Run) -> dict[str, Any]:
    """The last value of every probe's number, the status and the totals."""
    last = {f"probe/{key}": value for line in run.probes for key, value in _leaves(line)}
    totals = {f"totals/{key}": value for key, value in run.manifest.get("totals", {}).items()}
    return last | totals | {"status": run.status}
