"""Trains one trial: a configuration, in a run folder of its own. This file needs no Ray, so any launcher can call it.

A process may run many trials, one after the other. `fresh` resets what one trial can leave behind for the next, so
that the order of trials does not matter (tests/sweeps/test_trial.py): global generators, torch's modes and threads,
and the modules of our interventions and of plugin folders, which are imported again from the source that the identity
hashes. `run` sets the working directory. Installed packages stay imported, with whatever state their modules keep.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import random
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweeps import wandb_log
from sweeps.faults import described, may_pass
from sweeps.ledger import PAUSED, claim, is_done, set_aside
from sweeps.wandb_log import Labels, Streams
from zslx.config.run_config import Config
from zslx.config.spec import Spec
from zslx.distributed.launch import launch
from zslx.distributed.train import train_on_ranks
from zslx.intervention.discovery import defined
from zslx.runs.digest import digest
from zslx.runs.identity import identity, ingredients
from zslx.runs.integrity import fault
from zslx.runs.records import OVER, read_config, read_manifest, read_run
from zslx.tracking.stream import streaming
from zslx.training.pack import train_pack
from zslx.training.train import train

PLUGINS = ("interventions.", "zslx_plugins.")
Manifest = dict[str, Any]
OnRanks = Callable[[Config, Path], Manifest]  # trains a run of several ranks in a folder


@dataclass(frozen=True, kw_only=True)
class Job:
    """A trial as it is sent to a worker: plain JSON values. `packed`: its gradients come from a pass over several.

    `made_of`: what `identity` hashes beside the settings (zslx.runs.identity.ingredients).
    """

    config: Mapping[str, Any]
    folder: str
    identity: str
    packed: bool
    working_directory: str
    labels: Mapping[str, Any]  # of wandb_log.Labels
    wandb: str  # off | offline | online
    tensorboard: bool = False
    made_of: Mapping[str, Any] = field(default_factory=dict)


def trial(config: Mapping[str, Any], out: str | Path, *, expected: str | None = None) -> dict[str, Any]:
    """Train `config` in the folder `out`, go on with a half-trained run there, or find it done; returns its manifest.

    While another process trains the same trial, this one waits, and then uses or continues what it finds. Raises
    ValueError when the identity is not the `expected` one: a plugin or the text changed after the sweep was planned.
    """
    return _trained(config, Path(out), expected, {}, on_this_machine)[0]


def on_this_machine(config: Config, folder: Path) -> Manifest:
    """Train a run on `run.workers` processes of this machine."""
    manifest: Manifest = launch(config.run.workers, train_on_ranks, config, folder)
    return manifest


def run(jobs: Sequence[Job], on_ranks: OnRanks = on_this_machine) -> list[dict[str, Any]]:
    """Train the trials of one worker, one or a pack, and log them to wandb. `on_ranks` trains one of several ranks.

    Of each its status, whether it was trained here, and wandb's error; of a trial in a pack that raised, the error.
    """
    enter(jobs[0].working_directory)
    labels = {job.folder: Labels(**job.labels) for job in jobs}
    folders = [(Path(folder), own) for folder, own in labels.items()]
    online, events = jobs[0].wandb == "online", jobs[0].tensorboard
    with wandb_log.tracked(folders, wandb=online, tensorboard=events) as streams:
        with streaming(stream.feed for stream in streams.values()):
            found = _pack(jobs) if jobs[0].packed else [_alone(jobs[0], on_ranks)]
        outcomes = zip(jobs, found, strict=True)
        return [described(o) if isinstance(o, BaseException) else _logged(job, streams, *o) for job, o in outcomes]


def _logged(job: Job, streams: Streams, manifest: Mapping[str, Any], trained: bool) -> dict[str, Any]:
    folder, labels = Path(job.folder), Labels(**job.labels)
    live = {tool: stream.taken() for (tool, of), stream in streams.items() if of == folder}
    # Where wandb could not be reached, it is tried once more at the end of the sweep, and not by every trial.
    failed = streams["wandb", folder].feed.wrong if ("wandb", folder) in streams else ""
    if manifest["status"] == PAUSED:
        return {"status": PAUSED, "trained": trained, "wandb": failed or wandb_log.pause(folder, live.values())}
    wrong = failed or wandb_log.log(folder, labels, job.wandb, live.get("wandb"), last=False)
    if job.tensorboard:
        wrong = wandb_log.event_files(folder, labels, live.get("tensorboard")) or wrong
    return {"status": manifest["status"], "trained": trained, "wandb": wrong}


def enter(folder: str) -> None:
    """Work in this folder, where there is one: another node of a cluster may not have it."""
    if Path(folder).is_dir():
        os.chdir(folder)


def _alone(job: Job, on_ranks: OnRanks) -> tuple[Manifest, bool]:
    return _trained(job.config, Path(job.folder), job.identity, job.made_of, on_ranks)


def _trained(
    config: Mapping[str, Any], folder: Path, expected: str | None, made_of: Mapping[str, Any], on_ranks: OnRanks
) -> tuple[Manifest, bool]:
    """The manifest of the finished trial, and whether this call trained any of it."""
    wanted = Config.from_dict(config)
    fresh(wanted)
    with claim(folder):
        begun = _to_train(wanted, folder, expected, made_of, packed=False)
        return (read_manifest(folder), False) if begun is None else (_train(begun, folder, on_ranks), True)


def _train(config: Config, folder: Path, on_ranks: OnRanks) -> Manifest:
    """Train in this process, or in as many as the run asks for."""
    if config.run.workers == 1:
        return train(config, folder)
    used = Spec.parse(config.intervention).names
    if own := [cls.name for cls in defined() if cls.name in used]:
        raise ValueError(
            f"run.workers={config.run.workers}: {own[0]} is defined in a notebook alone, where other processes do not "
            "find it: write it to a file of plugins/"
        )
    return on_ranks(config, folder)


def _pack(jobs: Sequence[Job]) -> list[tuple[Manifest, bool] | BaseException]:
    """As `_trained`, of the trials of a pack; the error of one that raised. An error that may pass is raised here."""
    configs = [Config.from_dict(job.config) for job in jobs]
    fresh(configs[0])
    found: dict[str, tuple[Manifest, bool] | BaseException] = {}
    with contextlib.ExitStack() as claims:
        for folder in sorted(job.folder for job in jobs):  # one order: sweeps never wait for each other
            claims.enter_context(claim(Path(folder)))
        left = {}
        for job, config in zip(jobs, configs, strict=True):
            begun = _to_train(config, Path(job.folder), job.identity, job.made_of, packed=True)
            if begun is None:
                found[job.folder] = (read_manifest(job.folder), False)
            else:
                left[job.folder] = begun
        for folder, outcome in zip(left, train_pack(list(left.values()), list(left)) if left else [], strict=True):
            if isinstance(outcome, BaseException) and may_pass(outcome):
                raise outcome
            found[folder] = outcome if isinstance(outcome, BaseException) else (outcome, True)
    return [found[job.folder] for job in jobs]


def _to_train(
    wanted: Config, folder: Path, expected: str | None, made_of: Mapping[str, Any], *, packed: bool
) -> Config | None:
    """The configuration to train in a folder that is claimed; None where the trial is done."""
    parts = ingredients(wanted, packed=packed)
    name = digest(parts)
    if expected not in (None, name):
        what = differing(made_of, parts) if made_of else f"the intervention {wanted.intervention!r} or the text"
        raise ValueError(
            f"{what} changed while the sweep was running, or node {socket.gethostname()} has another: "
            "mend that and give the same command again"
        )
    return None if is_done(folder, name, wanted.run.until) else _as_begun(wanted, folder, name, packed=packed)


def differing(planned: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In words, what a trial was planned with and is not made of here."""
    found = []
    for name in dict.fromkeys([*planned, *(key for key in here if key != "config")]):
        was: Any = planned.get(name)
        now: Any = here.get(name)
        if name == "sources":
            found += [
                f"the source {file}" for file in sorted(was.keys() | now.keys()) if was.get(file) != now.get(file)
            ]
        elif was != now:
            found.append(f"{'the text' if name == 'corpus' else name} ({now}, and {was} was planned)")
    return ", ".join(found) or "the reference run"


def _as_begun(wanted: Config, folder: Path, name: str, *, packed: bool) -> Config:
    """The configuration with which the run in `folder` was begun if it describes the same run, else `wanted`.

    One identity has several spellings (a default given explicitly, a text at another path), and its reference run may
    lie elsewhere by now. A folder that holds another run, or wrongly claims to be done or paused, is set aside.
    """
    if not (folder / "config.json").exists():
        return wanted
    with contextlib.suppress(ValueError):
        begun = Config.from_dict(read_config(folder))
        begun = dataclasses.replace(begun, reference=wanted.reference, run=wanted.run)
        same = identity(begun, packed=packed) == name and begun.instruments == wanted.instruments
        status = read_manifest(folder)["status"]
        if same and status not in OVER and not (status == PAUSED and fault(read_run(folder))):
            return begun
    set_aside(folder)
    return wanted


def fresh(config: Config) -> None:
    """Reset what a plugin can have changed to what a new process starts with."""
    seed = config.train.seed
    random.seed(seed)
    # Nobody should draw from the global generators; whoever does draws the same after any other trial.
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(config.train.threads)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if "torch._dynamo" in sys.modules:  # it gives up at eight forms of a function, whichever trials had them
        torch._dynamo.reset()
    for name in [name for name in sys.modules if name.startswith(PLUGINS)]:
        del sys.modules[name]
    importlib.invalidate_caches()
