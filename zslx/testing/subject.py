"""An intervention under test: tiny runs of it, and what must be equal between two of them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import sysconfig
import tempfile
import unittest
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zslx.config.run_config import Config, override
from zslx.intervention import registry
from zslx.intervention.base import Intervention
from zslx.runs import checkpoints
from zslx.runs.json_files import read_json, write_atomic, write_json
from zslx.text.token_cache import cache_folder
from zslx.training.loop import TrainingRun
from zslx.training.pack import train_pack
from zslx.training.train import train

STEPS = 6
REFERENCE_STEPS = 64  # of a reference run: enough for a controller to have acted
TINY = {
    "data.vocab_size": 308,
    "data.batch_size": 4,
    "data.seq_len": 8,
    "data.heldout_sequences": 4,
    "model.d_model": 16,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "optim.warmup": 2,
    "train.steps": STEPS,
    "train.device": "cpu",
    "run.resume_seconds": 1e9,  # the whole state at the end alone
}
BLIND = {"instruments.heldout_points": 2, "instruments.probes": False, "instruments.gradient_sequences": 0}
WATCHED = {"instruments.heldout_points": 50, "instruments.gradient_sequences": 2, "instruments.token_samples": 4}
RECORDS = ("config.json", "steps.jsonl", "probes.jsonl")


class NotApplicable(unittest.SkipTest):
    """The check says nothing of this intervention (a skip, to pytest)."""


class Stopped(Exception):
    """The run was interrupted on purpose."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run leaves: its last checkpoint and its records."""

    folder: Path
    status: str
    state: Any  # the checkpoint as JSON, its tensors beside it
    tensors: Mapping[str, torch.Tensor]
    records: Mapping[str, bytes]

    @staticmethod
    def read(folder: Path) -> Outcome:
        kept = folder / checkpoints.RESUME
        tensors: dict[str, torch.Tensor] = {}
        state = checkpoints.pack(checkpoints.load(kept, checkpoints.steps(kept)[-1]), tensors)
        status = read_json(folder / "manifest.json")["status"]
        records = {name: (folder / name).read_bytes() for name in RECORDS}
        return Outcome(folder=folder, status=status, state=state, tensors=tensors, records=records)

    def difference(self, other: Outcome, *, weights_only: bool = False) -> str | None:
        """The first thing that is not bitwise the same, or None: weights first, then all else that is kept."""
        for path in sorted(self.tensors.keys() | other.tensors.keys(), key=lambda p: not p.startswith("/model")):
            if path.startswith("/model") or not weights_only:
                a, b = self.tensors.get(path), other.tensors.get(path)
                if a is None or b is None or a.dtype != b.dtype or not torch.equal(a, b):
                    return f"{path.lstrip('/')} of the checkpoint"
        if weights_only:
            return None
        for key in sorted(self.state.keys() | other.state.keys()):
            if self.state.get(key) != other.state.get(key):
                return f"{key} of the checkpoint"
        return next((name for name in RECORDS if self.records[name] != other.records[name]), None)

    def distance(self, other: Outcome) -> float:
        """Largest ‖Δθ‖/‖θ‖ over the parameters."""
        pairs = [(t, other.tensors[p]) for p, t in self.tensors.items() if p.startswith("/model")]
        return max(float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)) for a, b in pairs)


class Subject:
    """An intervention by name (or `placebo:NAME`), with settings, and the folder in which it may train."""

    def __init__(self, name: str, folder: Path, **settings: Any):
        loaded = registry.load_intervention(name, **settings)  # reads texts as the settings' types
        self.name, self.folder = name, Path(folder)
        self.settings = {key: getattr(loaded, key) for key in settings}
        self._runs = itertools.count()
        self._reference: str | None = None

    @property
    def method(self) -> Intervention:
        """A fresh object of the intervention."""
        return registry.load_intervention(self.name, **self.settings)

    @cached_property
    def cls(self) -> type[Intervention]:
        return type(self.method)

    def overrides(self, *hooks: str) -> bool:
        return any(self.cls.overrides(hook) for hook in hooks)

    def config(self, values: Mapping[str, Any] | None = None, **settings: Any) -> Config:
        """The tiny run of this intervention with some configuration keys and settings changed."""
        pairs: dict[str, Any] = {"intervention": self.name} | TINY | BLIND | {"data.path": str(text())} | self._shape
        plain = self.name.rpartition(":")[2]
        own = {f"{plain}.{key}": value for key, value in self.settings.items()}
        if self._reference is None:  # one for all runs of the intervention, where it needs one
            longer = {"train.steps": REFERENCE_STEPS}
            needed = registry.reference_of(override(Config(), list((pairs | own | longer).items())))
            self._reference = str(trained(needed, self.folder / "reference").folder) if needed else ""
        own |= {f"{plain}.{key}": value for key, value in settings.items()}
        pairs |= own | dict(values or {}) | ({"reference": self._reference} if self._reference else {})
        return override(Config(), list(pairs.items()))

    @cached_property
    def whole(self) -> Outcome:
        """The intervention's run, never stopped, nothing measured on the way."""
        return self.run()

    def run(self, values: Mapping[str, Any] | None = None, stops: Sequence[int] = (), **settings: Any) -> Outcome:
        """One run; `stops` are steps at which it is interrupted and taken up again from its last checkpoint."""
        folder = self.folder / f"run-{next(self._runs)}"
        return trained(self.config(values, **settings), folder, stops)

    def pack(self, values: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Runs of the intervention, trained as one pack."""
        outs = [self.folder / f"run-{next(self._runs)}" for _ in values]
        for found in train_pack([self.config(one) for one in values], outs):
            if isinstance(found, BaseException):
                raise found
        return [Outcome.read(out) for out in outs]

    def baseline(self, **values: Any) -> Outcome:
        """The plain run with the same settings otherwise."""
        return _baseline(tuple((self._shape | values).items()))

    @cached_property
    def _shape(self) -> dict[str, Any]:
        """A method that grows the model needs layers for it."""
        return {"model.n_layers": 3} if self.overrides("depth") else {}

    def stand_in(self, method: Intervention) -> TrainingRun:
        """The run in memory with `method` in place of this intervention."""
        config, folder = self.config(), self.folder / f"run-{next(self._runs)}"
        folder.mkdir(parents=True)
        write_json(folder / "config.json", config.to_dict())
        return TrainingRun(config, folder, [method])


def plain(values: Mapping[str, Any]) -> Config:
    """The tiny run without intervention."""
    return override(Config(), list((TINY | BLIND | {"data.path": str(text())} | dict(values)).items()))


@cache
def _baseline(values: tuple[tuple[str, Any], ...]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return trained(plain(dict(values)), Path(folder))


def trained(config: Config, folder: Path, stops: Sequence[int] = ()) -> Outcome:
    """Train, stopping once at each of `stops` and going on."""
    for stop in stops:

        def interrupt(step: int, steps: int, loss: float, stop: int = stop) -> None:
            if step == stop:
                raise Stopped

        with contextlib.suppress(Stopped):
            train(config, folder, progress=interrupt)
    train(config, folder)
    return Outcome.read(folder)


def train_values(values: Mapping[str, Any], folder: str) -> None:
    """`train` from plain values: what a process of its own can be given."""
    train(Config.from_dict(values), folder)


_seeds = itertools.count(1)


@contextlib.contextmanager
def global_draws_watched() -> Iterator[list[str]]:
    """Seeds the global generators anew (never twice the same) and lists those that were drawn from."""
    states = {"random": random.getstate, "numpy": _numpy_state, "torch": _torch_state}
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seed = next(_seeds)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    before = {name: state() for name, state in states.items()}
    drawn: list[str] = []
    try:
        yield drawn
        drawn += [name for name, state in states.items() if state() != before[name]]
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])


def _numpy_state() -> tuple[Any, ...]:
    parts = np.random.get_state()  # noqa: NPY002
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in parts)


def _torch_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def text() -> Path:
    """Two small domains from the standard library's sources, in the text cache: the same place every time."""
    folder = cache_folder() / "testing"
    library = Path(sysconfig.get_path("stdlib"))
    for domain, modules in (("code", ("ast", "calendar")), ("more", ("difflib", "textwrap"))):
        (folder / domain).mkdir(parents=True, exist_ok=True)
        for module in modules:
            lines = (library / f"{module}.py").read_text(encoding="utf-8").splitlines(keepends=True)
            for i in range(3):  # several files a domain: the held-out split goes by file
                file = folder / domain / f"{module}-{i}.txt"
                part = "".join(lines[100 * i : 100 * (i + 1)]).encode()
                if not file.exists() or file.read_bytes() != part:
                    write_atomic(file, part)
    return folder


def with_hooks(cls: type[Intervention], **hooks: Any) -> type[Intervention]:
    """A subclass of the same name with some hooks replaced."""
    made = type(cls.__name__, (cls,), {"__module__": cls.__module__, **hooks})
    return dataclasses.dataclass(frozen=True)(made)
