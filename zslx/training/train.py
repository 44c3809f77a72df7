"""Trains a run in its folder, or goes on with it.

Calling `train` again on the same folder goes on from the newest whole state; the result is bitwise that of a run
that never stopped (CPU, fixed threads). A finished baseline at a constant rate also goes on for more steps
(run_folder.py). The steps themselves are in loop.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from zslx.config.run_config import Config
from zslx.intervention import registry
from zslx.intervention.base import Intervention
from zslx.intervention.discovery import define, discover
from zslx.locking import locked
from zslx.runs.digest import digest
from zslx.runs.identity import ingredients
from zslx.runs.integrity import checksums
from zslx.runs.json_files import remove_left, write_json
from zslx.runs.provenance import environment
from zslx.text.token_cache import corpus_of, with_vocabulary
from zslx.training.course import Course, alone
from zslx.training.loop import Progress, TrainingRun
from zslx.training.run_folder import ended_run, longer, same_run, trained_before, went_on


def train(
    config: Config,
    out: str | Path,
    *,
    intervention: Intervention | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train one run in the folder `out`, or go on with it; returns its manifest.

    `intervention`: an object to train with, such as one whose class a notebook cell defines; by default the one that
    the configuration names. `progress(step, steps, loss)` is called after each step. A run that diverged returns with
    that status, and one that stands at `run.until` as `paused`: called again with a later step there, or 0, it goes on.
    What a user can mend raises ValueError, and the manifest says so.
    """
    if intervention is not None:
        config = with_intervention(config, intervention)
    if config.run.workers > 1:
        raise ValueError(
            f"run.workers={config.run.workers}: this call trains in its own process; zslx train and zslx sweep start "
            "more, and from Python zslx.distributed.launch.launch"
        )
    return alone(training(config, out, progress=progress))


def training(
    config: Config,
    out: str | Path,
    *,
    progress: Progress | None = None,
    packed: bool = False,
    build: Callable[[Config, Path], TrainingRun] = TrainingRun,
) -> Course:
    """A run in its folder, as a generator that asks for the gradient of each step. See `train`.

    `packed`: the gradients come from a pass over several runs (pack.py), whose rounding differs. `build`: makes
    the run.
    """
    out = Path(out).absolute()  # a plugin may change the working directory
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{out} cannot hold a run ({error.strerror}): give a folder, or where one can be made"
        ) from None
    with claimed(out):
        remove_left(out)
        config = with_vocabulary(config)
        parts = ingredients(config, packed=packed)
        now = environment(config)
        base = {"identity": digest(parts), "ingredients": parts, **now}
        if data_set := corpus_of(config.data).data_set:
            base["data_set"] = {key: value for key, value in data_set.items() if key != "files"}
        if ended := longer(out, config, parts):
            base["continued_from"] = ended
        else:
            same_run(out, config, digest(parts))
            if over := ended_run(out):
                return over
            base |= went_on(out)
        if earlier := trained_before(out, now):
            base["earlier"] = earlier
        run = build(config, out)  # what cannot be built is refused before the folder holds a run
        base["parameters"] = run.parameter_count()._asdict()
        begun = {"status": "running", **base}
        if ended:  # where this process dies before config.json is written, the manifest says which run is to go on
            write_json(out / "manifest.json", begun)
        write_json(out / "config.json", config.to_dict())
        write_json(out / "manifest.json", begun)
        try:
            done = run.resume(base.get("continued_from", 0))
            if earlier and not done:  # it begins anew: all of it is trained here
                del base["earlier"]
                write_json(out / "manifest.json", {"status": "running", **base})
            outcome = yield from run.course(done, progress)
        except Exception as error:
            failed = {"status": "failed", "error": f"{type(error).__name__}: {error}", **base}
            with contextlib.suppress(OSError):  # a full disk must not hide its own message
                write_json(out / "manifest.json", failed)
            raise
        manifest = {**outcome, **base, "records": checksums(out)}
        write_json(out / "manifest.json", manifest)
        return manifest


def claimed(out: Path) -> AbstractContextManager[None]:
    """Hold the run folder; ValueError while another process does."""
    return locked(out / ".lock", refuse=f"{out}: another process is training this run")


def with_intervention(config: Config, method: Intervention) -> Config:
    """The configuration that names this object and its settings; its class is made known where no file defines it."""
    if method.name not in discover() or registry.load_class(method.name) is not type(method):
        define(type(method))
    settings = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    return dataclasses.replace(config, intervention=method.name, settings={method.name: settings})
